"""The equations of the sequence-to-sequence model, as functions of a dict of arrays, for Flax Linen and Flax NNX.

x is the source, y the target, e(y) its embedding; h are the states of the encoder, s the states of the decoder.
`GRU(s, a)` is one step of the layers from state s with input a. The papers omit biases; grujax has them, except in the
attention.

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

y_t is the token that step t reads, and logits_t belong to the next token; y_1 is the start token. max2 takes the larger
of each pair of neighbours (maxout). h_S is the last state of the top layer. For a bidirectional encoder it is both last
states, and then s_0 = tanh(W_s h_S) for None and "luong" too.

Differences from the papers: Bahdanau's s_0 reads only the backward state, and his readout reads s_{t−1} in the
appendix, but s_t in equation 4. Sutskever and Luong use LSTMs. In some of Luong's models the next step also reads the
vector before W_o.
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
    """The part of a source that the decoder reads at every step. Fields that the context does not use are None."""

    summary: Array | None = None  # c (B, H), for "cho"
    values: Array | None = None  # h (B, S, F), for attention
    keys: Array | None = None  # h, or U_a h (B, S, H), for attention
    valid: Array | None = None  # (B, S), True at valid steps


class Advanced(NamedTuple):
    """The result of some steps of the decoder."""

    state: Array  # (B, L, H), after the last step
    s: Array  # (B, T, H), the states of the top layer
    context: Array | None  # (B, T, F)
    weights: Array | None  # (B, T, S), the attention weights


def encode(
    config: Seq2SeqConfig, params: Params, source: ArrayLike, lengths: ArrayLike | None, noise: Noise | None = None
) -> tuple[Memory, Array]:
    """Encodes tokens (B, S). Returns what the decoder reads at every step, and its initial state (B, L, H)."""
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
    """Runs T steps of the decoder on embeddings e (B, T, E) from `state` (B, L, H).

    All steps run in one call of the layers, except with "bahdanau", where they are a `lax.scan`.
    """
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
    """Computes the logits (B, T, V) of the next tokens.

    Args:
      config: the model.
      params: its parameters.
      e: the embeddings (B, T, E) of the tokens that were read.
      at: the decoder after it has read them.
      kept: the dropout mask (B, T, H) for the input of the last layer; None: no dropout.
    """
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
    """Runs the model with teacher forcing. Returns logits (B, T, V), 0 past the end of a target, and attention weights.

    The weights are (B, T, S), or None if the context has no attention.

    sampling: the share of target tokens that are replaced by draws from the model's own logits of the previous step,
      and a key (Bengio et al. 2015, arXiv 1506.03099). No gradient passes through a draw. None: no token is replaced.
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
        state, drawn = carry
        token, masks, key = inputs
        coin, draw = jax.random.split(key)
        token = jnp.where(jax.random.bernoulli(coin, sampling[0], (n_rows,)), drawn, token)
        at, logits = read(token[:, None], jax.tree.map(lambda a: a[:, None], masks), state)
        drawn = jax.random.categorical(draw, lax.stop_gradient(logits[:, 0])).astype(token.dtype)
        return (at.state, drawn), (logits[:, 0], None if at.weights is None else at.weights[:, 0])

    if sampling is None:
        at, logits = read(tokens, masks, state)
        weights = at.weights
    else:
        by_step = jax.tree.map(lambda a: a.swapaxes(0, 1), (tokens, masks))
        inputs = (*by_step, jax.random.split(sampling[1], n_steps))
        _, outputs = lax.scan(one_step, (state, tokens[:, 0]), inputs)  # the start token is never replaced
        logits, weights = jax.tree.map(lambda a: a.swapaxes(0, 1), outputs)
    return logits if valid is None else jnp.where(valid[..., None], logits, 0), weights


class Decoding(Seq2SeqConfig):
    """The methods that the Flax Linen and the Flax NNX module share; each defines `__call__` and `weights` itself."""

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
        """Returns the attention weights (B, T, S) with teacher forcing; None if the context has no attention.

        Arguments and errors are those of a call.
        """
        self.check()
        return forced(self, self.weights(), source, target, source_lengths, target_lengths)[1]

    def encode(self, source: ArrayLike, *, source_lengths: ArrayLike | None = None) -> tuple[Memory, Array]:
        """Encodes `source` (B, S). Returns what the decoder reads at every step, and its initial state (B, L, H).

        `source_lengths` (B,) is the number of valid tokens; None: all are valid.
        """
        self.check()
        return encode(self, self.weights(), source, source_lengths)

    def step(self, memory: Memory, state: Array, token: Array) -> tuple[Array, Array]:
        """Reads one token (B,). Returns the next state (B, L, H), and the logits (B, V) of the following token."""
        params = self.weights()
        e = _embedded(self, params["target_embedding"], token)[:, None]
        at = advance(self, params, memory, state, e)
        return at.state, readout(self, params, e, at)[:, 0]


def check_tokens(
    tokens: ArrayLike, name: str, lengths: ArrayLike | None, of_lengths: str, vocabulary: int
) -> tuple[Array, Array | None]:
    """Returns the tokens (B, T), with 0 in the padding, and a mask of valid ones (B, T), or None if all are valid.

    Raises:
      InputError: a shape, dtype, token or length is wrong. `name` and `of_lengths` are the names of the arguments.
    """
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
    """Returns the embeddings (..., E) in the compute dtype; NaN for an unknown token, which tracing cannot refuse."""
    rows = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return rows if config.dtype is None else rows.astype(config.dtype)


def _times(config: Seq2SeqConfig, x: Array, w: Array) -> Array:
    """Computes the product x w in the compute dtype."""
    dtype = jnp.dtype(config.dtype or jnp.result_type(x, w))
    return jnp.dot(x.astype(dtype), w.astype(dtype), precision=config.precision)
