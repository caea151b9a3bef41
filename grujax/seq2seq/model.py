"""The equations of a sequence-to-sequence model, on a dict of arrays: both faces run these.

x is the source, y the target, e(y) its embedding; h the states of the encoder, s those of the decoder. `GRU(s, a)` is
one step of the layers from s, with input a. The papers leave biases out; here they are, except in the attention.

    every context    h_1 ... h_S = GRU over e(x_1) ... e(x_S)

    None             s_0 = h_S        s_t = GRU(s_{t−1}, e(y_t))             Sutskever et al. 2014, arXiv 1409.3215
                     logits_t = W_o s_t

    "cho"            c = tanh(V h_S)                                         Cho et al. 2014, arXiv 1406.1078
                     s_0 = tanh(V' c)
                     s_t = GRU(s_{t−1}, [e(y_t); c])
                     logits_t = W_o max2(U [e(y_t); s_t; c])

    "bahdanau"       s_0 = tanh(W_s h_S)                                     Bahdanau et al. 2015, arXiv 1409.0473
                     a_t = softmax over s of v_a · tanh(W_a s_{t−1} + U_a h_s)
                     c_t = Σ_s a_ts h_s
                     s_t = GRU(s_{t−1}, [e(y_t); c_t])
                     logits_t = W_o max2(U [e(y_t); s_t; c_t])

    "luong"          s_0 = h_S        s_t = GRU(s_{t−1}, e(y_t))             Luong et al. 2015, arXiv 1508.04025
                     a_t = softmax over s of s_t · h_s
                     c_t = Σ_s a_ts h_s
                     logits_t = W_o tanh(W_c [c_t; s_t])

y_t is the token that is read at step t, logits_t are those of the next one: y_1 is the start token. max2 takes the
larger of each two neighbours (maxout). h_S is the last state of the top layer; of a bidirectional encoder both last
states, and then s_0 = tanh(W_s h_S) for None and "luong" too.

Differences from the papers: Bahdanau's s_0 reads the backward state alone, and his readout s_{t−1} in the appendix, s_t
in equation 4. Sutskever and Luong have LSTMs; Luong feeds the vector before W_o back into the next step in some models.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from grujax.arrays import as_array
from grujax.core.functional import dense, run_on_arrays
from grujax.core.inputs import Steps, check_integers, valid_steps
from grujax.core.stack import Noise, dropped
from grujax.errors import require, require_equal
from grujax.seq2seq.attention import additive_attention, dot_attention
from grujax.seq2seq.config import Seq2SeqConfig
from grujax.types import Array

Params = Mapping[str, Any]


class Memory(NamedTuple):
    """What the decoder reads of a source at every step; None where it reads nothing."""

    summary: Array | None = None  # c (B, H) of "cho"
    values: Array | None = None  # h (B, S, F) of attention
    keys: Array | None = None  # h, or U_a h (B, S, H)
    valid: Array | None = None  # (B, S)


class Advanced(NamedTuple):
    """After some steps of the decoder."""

    state: Array  # (B, L, H)
    s: Array  # (B, T, H), of the top layer
    context: Array | None  # (B, T, F)
    weights: Array | None  # (B, T, S)


def encode(
    config: Seq2SeqConfig, params: Params, source: ArrayLike, lengths: ArrayLike | None, noise: Noise | None = None
) -> tuple[Memory, Array]:
    """Tokens (B, S) -> what the decoder reads, and its initial state (B, L, H)."""
    tokens, valid = check_tokens(source, "source", lengths, "source_lengths", config.source_vocabulary)
    x = dropped(_embedded(config, params["source_embedding"], tokens), config.dropout, noise)
    run = run_on_arrays(config.encoder_layer, params["encoder"], Steps(x, valid, None, False), None)
    h, last = run.output, run.states
    summary = jnp.concatenate(list(last[-config.encoder_layer.num_directions :]), -1)
    if config.context == "cho":
        summary = jnp.tanh(dense(config, params["summary"], summary))
    state = last.swapaxes(0, 1)
    if "start" in params:
        state = jnp.tanh(dense(config, params["start"], summary)).astype(last.dtype)
        state = state.reshape(state.shape[0], config.num_layers, config.hidden_size)
    if config.context is None or config.context == "cho":
        return Memory(summary if config.context == "cho" else None), state
    keys = h if config.context == "luong" else _times(config, h, params["attention"]["key"])
    return Memory(None, h, keys, valid), state


def advance(config: Seq2SeqConfig, params: Params, memory: Memory, state: Array, e: Array) -> Advanced:
    """T steps of the decoder from `state` (B, L, H), which read e (B, T, E); all at once where the equations allow."""
    summary, values, keys, valid = memory

    def layers(x: Array, state: Array) -> tuple[Array, Array]:
        run = run_on_arrays(config.decoder_layer, params["decoder"], Steps(x, None, None, False), state.swapaxes(0, 1))
        return run.output, run.states.swapaxes(0, 1)

    def one_step(state: Array, e: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        assert values is not None and keys is not None
        query = _times(config, state[:, -1:], params["attention"]["query"])
        v = params["attention"]["score"].astype(query.dtype)
        c, a = additive_attention(query, keys, values, v, valid, precision=config.precision)
        s, state = layers(jnp.concatenate([e[:, None], c.astype(e.dtype)], -1), state)
        return state, (s[:, 0], c[:, 0], a[:, 0])

    if config.context == "bahdanau":
        state, outputs = lax.scan(one_step, state, e.swapaxes(0, 1))
        return Advanced(state, *(a.swapaxes(0, 1) for a in outputs))
    c = a = None
    if config.context == "cho":
        assert summary is not None
        c = jnp.broadcast_to(summary[:, None], (*e.shape[:2], config.hidden_size)).astype(e.dtype)
    s, state = layers(e if c is None else jnp.concatenate([e, c], -1), state)
    if config.context == "luong":
        assert values is not None and keys is not None
        c, a = dot_attention(s, keys, values, valid, precision=config.precision)
    return Advanced(state, s, c, a)


def readout(config: Seq2SeqConfig, params: Params, e: Array, at: Advanced, kept: Array | None = None) -> Array:
    """Logits (B, T, V) of the tokens after those with embeddings e (B, T, E); `kept` is a mask of dropout (B, T, H)."""
    s = at.s
    if at.context is not None:
        parts = [at.context, s] if config.context == "luong" else [e, s, at.context]
        s = dense(config, params["readout"], jnp.concatenate(parts, -1))
        s = jnp.tanh(s) if config.context == "luong" else s.reshape(*s.shape[:-1], s.shape[-1] // 2, 2).max(-1)
    return dense(config, params["logits"], s if kept is None else s * kept.astype(s.dtype))


def forced(
    config: Seq2SeqConfig,
    params: Params,
    source: ArrayLike,
    target: ArrayLike,
    source_lengths: ArrayLike | None,
    target_lengths: ArrayLike | None,
    noise: Noise | None = None,
    sampling: tuple[ArrayLike, Array] | None = None,
) -> tuple[Array, Array | None]:
    """Logits (B, T, V), 0 past the end of a target, and the weights of attention (B, T, S).

    sampling: the share of target tokens that are replaced by what the model draws from its own logits of the step
      before, and a key. No gradient goes through a draw (Bengio et al. 2015, arXiv 1506.03099).
    """
    tokens, valid = check_tokens(target, "target", target_lengths, "target_lengths", config.target_vocabulary)
    memory, state = encode(config, params, source, source_lengths, noise)
    n_sources, (n_rows, n_steps) = state.shape[0], tokens.shape
    require(n_rows == n_sources, "target", f"{n_sources} rows, as source", f"{n_rows} rows")
    if sampling is not None:
        rate = as_array(sampling[0], "sampling_rate")
        require_equal(rate.shape, (), "sampling_rate")
        known = isinstance(rate, Tracer) or 0 <= float(rate) <= 1
        require(known, "sampling_rate", "0 to 1", sampling[0])
    table = params["target_embedding"]
    masks = None
    if noise is not None and config.dropout:
        shapes = [(*tokens.shape, n) for n in (config.embedded, config.hidden_size)]
        masks = [dropped(jnp.ones(shape), config.dropout, noise) for shape in shapes]

    def read(token: Array, masks: list[Array] | None, state: Array) -> tuple[Advanced, Array]:
        e = _embedded(config, table, token)
        e = e if masks is None else e * masks[0].astype(e.dtype)
        at = advance(config, params, memory, state, e)
        return at, readout(config, params, e, at, None if masks is None else masks[1])

    def one_step(carry: tuple[Array, Array], inputs: tuple) -> tuple[tuple[Array, Array], tuple]:
        assert sampling is not None
        state, own = carry
        token, masks, key = inputs
        coin, draw = jax.random.split(key)
        token = jnp.where(jax.random.bernoulli(coin, sampling[0], (n_rows,)), own, token)
        at, logits = read(token[:, None], jax.tree.map(lambda a: a[:, None], masks), state)
        own = jax.random.categorical(draw, lax.stop_gradient(logits[:, 0])).astype(token.dtype)
        return (at.state, own), (logits[:, 0], None if at.weights is None else at.weights[:, 0])

    if sampling is None:
        at, logits = read(tokens, masks, state)
        weights = at.weights
    else:
        given = (tokens, masks)
        inputs = (*jax.tree.map(lambda a: a.swapaxes(0, 1), given), jax.random.split(sampling[1], n_steps))
        _, outputs = lax.scan(one_step, (state, tokens[:, 0]), inputs)  # the start token is always the given one
        logits, weights = jax.tree.map(lambda a: a.swapaxes(0, 1), outputs)
    return logits if valid is None else jnp.where(valid[..., None], logits, 0), weights


class Decoding(Seq2SeqConfig):
    """The methods that both faces share; each has its own `__call__` and its own `weights`."""

    if TYPE_CHECKING:

        def weights(self) -> Params: ...

    def align(
        self,
        source: ArrayLike,
        target: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
    ) -> Array | None:
        """The weights of attention (B, T, S) under teacher forcing; None where the context is no attention."""
        self.check()
        return forced(self, self.weights(), source, target, source_lengths, target_lengths)[1]

    def encode(self, source: ArrayLike, *, source_lengths: ArrayLike | None = None) -> tuple[Memory, Array]:
        """What the decoder reads of `source` (B, S) at every step, and its initial state (B, L, H)."""
        self.check()
        return encode(self, self.weights(), source, source_lengths)

    def step(self, memory: Memory, state: Array, token: Array) -> tuple[Array, Array]:
        """Reads one token (B,): the next state (B, L, H), and the logits (B, V) of the token after it."""
        params = self.weights()
        e = _embedded(self, params["target_embedding"], token)[:, None]
        at = advance(self, params, memory, state, e)
        return at.state, readout(self, params, e, at)[:, 0]


def check_tokens(
    tokens: ArrayLike, name: str, lengths: ArrayLike | None, of_lengths: str, vocabulary: int
) -> tuple[Array, Array | None]:
    """Tokens (B, T), 0 in the padding, and which are valid (B, T); `InputError` where they do not fit."""
    array = as_array(tokens, name)
    require(array.ndim == 2, name, "tokens (B, T)", f"shape {array.shape}")
    require(jnp.issubdtype(array.dtype, jnp.integer), name, "integers", f"dtype {array.dtype}")
    valid = None
    if lengths is not None:
        n_steps, bounded = array.shape[1], f"0 to T = {array.shape[1]}"
        lengths = check_integers(lengths, of_lengths, array.shape[:1], "sequence", (0, n_steps), bounded)
        valid = valid_steps(n_steps, lengths)
        array = jnp.where(valid, array, 0)
    bounded = f"tokens 0 to V - 1 = {vocabulary - 1}"
    return check_integers(array, name, array.shape, "step", (0, vocabulary - 1), bounded), valid


def _embedded(config: Seq2SeqConfig, table: Array, tokens: Array) -> Array:
    """(..., E), in the compute dtype; NaN for a token that is not in the table, where none was checked."""
    rows = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return rows if config.dtype is None else rows.astype(config.dtype)


def _times(config: Seq2SeqConfig, x: Array, w: Array) -> Array:
    dtype = jnp.dtype(config.dtype or jnp.result_type(x, w))
    return jnp.dot(x.astype(dtype), w.astype(dtype), precision=config.precision)
