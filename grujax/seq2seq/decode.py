"""Decoding in one compiled loop: greedy, sampling and beam search, for any decoder.

A decoder is a function `step(state, token) -> (state, logits)`: state is a tree of arrays (B, ...), token are integers
(B,), logits (B, V). All three loops work under `jit` and end as soon as every sequence has ended.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from grujax.arrays import as_array
from grujax.errors import require, require_count
from grujax.types import Array, state_dtype

State = TypeVar("State")
Step = Callable[[State, Array], tuple[State, Array]]


class Decoded(NamedTuple):
    """The decoded sequences. The results of beam search have an axis of beams after B, best first.

    tokens: int32 (B, N), where N is `max_length`; filled with `end` after the end of a sequence.
    lengths: int32 (B,), the number of tokens before the end token.
    scores: (B,), log p of the tokens, including the end token; beam search divides it by the length penalty.
    """

    tokens: Array
    lengths: Array
    scores: Array


def greedy(step: Step[State], state: State, start: ArrayLike, *, end: int, max_length: int) -> Decoded:
    """Decodes with the most probable token at each step.

    Args:
      step: the decoder, `step(state, token) -> (state, logits)`: a tree of arrays (B, ...), integers (B,), and (B, V).
      state: the state before the first step.
      start: the token that is read first: one for all sequences, or integers (B,).
      end: the token that ends a sequence.
      max_length: the length N at which a sequence without `end` stops.

    Returns:
      tokens (B, N), lengths and scores (B,); see `Decoded`.

    Raises:
      InputError: a shape, token or number is not valid.

    >>> def count(state, token):  # after token i comes i + 1
    ...     return state, jax.nn.one_hot(token + 1, 5)
    >>> greedy(count, jnp.zeros((1, 1)), 0, end=4, max_length=6).tokens.tolist()
    [[1, 2, 3, 4, 4, 4]]
    """
    return _one_by_one(step, state, start, end, max_length, lambda _, log_p: jnp.argmax(log_p, -1))


def sample(
    step: Step[State],
    state: State,
    start: ArrayLike,
    *,
    end: int,
    max_length: int,
    key: Array,
    temperature: ArrayLike = 1.0,
    top_k: int | None = None,
) -> Decoded:
    """Decodes with a random token at each step, drawn from softmax(logits / temperature).

    Args:
      step, state, start, end, max_length: see `greedy`.
      key: the random key; the same key gives the same tokens.
      temperature: a positive number; below 1 probable tokens become more probable.
      top_k: draws only from the k most probable tokens; None: from all.

    Returns:
      tokens (B, N), lengths and scores (B,); see `Decoded`. Scores are log p at temperature 1, over all tokens.

    Raises:
      InputError: a shape, token or number is not valid.

    >>> def uniform(state, token):
    ...     return state, jnp.zeros((len(token), 5))
    >>> sample(uniform, jnp.zeros((2, 1)), 0, end=4, max_length=3, key=jax.random.key(0)).tokens.shape
    (2, 3)
    """
    scalar = np.shape(temperature) == ()
    positive = scalar and (isinstance(temperature, Tracer) or bool(np.asarray(temperature) > 0))
    require(positive, "temperature", "a positive number", temperature, "The limit at 0 is greedy.")
    if top_k is not None:
        require_count(top_k, "top_k")

    def choose(t: Array, log_p: Array) -> Array:
        draw = partial(jax.random.categorical, jax.random.fold_in(key, t))
        scaled = log_p / jnp.asarray(temperature, log_p.dtype)
        if top_k is None:
            return draw(scaled)
        n_tokens = scaled.shape[-1]
        require(top_k <= n_tokens, "top_k", f"at most V = {n_tokens}", top_k)
        best, tokens = lax.top_k(scaled, top_k)
        return jnp.take_along_axis(tokens, draw(best)[:, None], 1)[:, 0]

    return _one_by_one(step, state, start, end, max_length, choose)


def beam_search(
    step: Step[State],
    state: State,
    start: ArrayLike,
    *,
    end: int,
    max_length: int,
    beam_size: int,
    length_penalty: float = 0.0,
) -> Decoded:
    """Decodes with beam search: the best K sequences that a beam of size K finds.

    At each step every unfinished sequence is extended by every token, and the best K of all sequences are kept. A
    finished sequence keeps its score and competes with the others. Sequences are compared by log p / lp(n), where n is
    the number of tokens, including the end token:

        lp(n) = ((5 + n) / 6)^α

    Args:
      step: see `greedy`. `jax.vmap` batches it over the beams, so arrays that it closes over are not copied.
      state, start, end, max_length: see `greedy`.
      beam_size: the number of beams, K.
      length_penalty: α. 0 compares log p itself, which favours short sequences.

    Returns:
      tokens (B, K, N), lengths and scores (B, K), best first; see `Decoded`. If there are fewer than K sequences, the
      others have score −inf.

    Raises:
      InputError: a shape, token or number is not valid.

    >>> def count(state, token):
    ...     return state, 9 * jax.nn.one_hot(token + 1, 5)
    >>> beam_search(count, jnp.zeros((1, 1)), 0, end=4, max_length=4, beam_size=2).tokens.tolist()[0][0]
    [1, 2, 3, 4]

    Source: Wu et al. 2016, arXiv 1609.08144, equation 14, without coverage.
    """
    require_count(beam_size, "beam_size")
    token, n_tokens, dtype = _checked(step, state, start, end, max_length)
    n_rows = token.shape[0]

    finite = np.shape(length_penalty) == () and bool(np.isfinite(length_penalty))
    require(finite, "length_penalty", "a finite number", length_penalty)

    def to_beams(a: Array) -> Array:
        return jnp.broadcast_to(a[:, None], (n_rows, beam_size, *a.shape[1:]))

    def penalised(scores: Array, counts: Array) -> Array:
        return scores / ((5 + counts.astype(dtype)) / 6) ** length_penalty

    only_end = jnp.where(jnp.arange(n_tokens) == end, 0, -jnp.inf).astype(dtype)

    def body(carry: tuple) -> tuple:
        t, state, token, tokens, scores, counts, done = carry
        state, logits = jax.vmap(step, in_axes=1, out_axes=1)(state, token)
        log_p = jnp.where(done[..., None], only_end[None, None], jax.nn.log_softmax(logits.astype(dtype)))
        scores, counts = scores[..., None] + log_p, jnp.where(done, counts, counts + 1)
        ranks = penalised(scores, counts[..., None]).reshape(n_rows, beam_size * n_tokens)
        _, best = lax.top_k(ranks, beam_size)
        parent, token = best // n_tokens, (best % n_tokens).astype(jnp.int32)

        def of_parent(a: Array) -> Array:
            return jax.vmap(lambda row, i: row[i])(a, parent)

        state, tokens, counts, done = jax.tree.map(of_parent, (state, tokens, counts, done))
        scores = jnp.take_along_axis(scores.reshape(n_rows, beam_size * n_tokens), best, 1)
        return t + 1, state, token, tokens.at[:, :, t].set(token), scores, counts, done | (token == end)

    first = jnp.where(jnp.arange(beam_size) == 0, 0, -jnp.inf).astype(dtype)  # at the start only one beam counts
    scores = jnp.broadcast_to(first, (n_rows, beam_size))
    tokens = jnp.full((n_rows, beam_size, max_length), end, jnp.int32)
    counts, done = (jnp.zeros((n_rows, beam_size), kind) for kind in (jnp.int32, jnp.bool_))
    carry = (jnp.int32(0), jax.tree.map(to_beams, state), to_beams(token), tokens, scores, counts, done)
    *_, tokens, scores, counts, done = lax.while_loop(_goes_on(max_length), body, carry)
    return Decoded(tokens, jnp.where(done, counts - 1, counts), penalised(scores, counts))


def _one_by_one(
    step: Step, state: Any, start: ArrayLike, end: int, max_length: int, choose: Callable[[Array, Array], Array]
) -> Decoded:
    """Decodes one sequence for each row; `choose(t, log p (B, V))` returns the tokens (B,) of step t."""
    token, _, dtype = _checked(step, state, start, end, max_length)

    def body(carry: tuple) -> tuple:
        t, state, token, tokens, scores, counts, done = carry
        state, logits = step(state, token)
        log_p = jax.nn.log_softmax(logits.astype(dtype))
        token = jnp.where(done, end, choose(t, log_p)).astype(jnp.int32)
        scores = scores + jnp.where(done, 0, jnp.take_along_axis(log_p, token[:, None], 1)[:, 0])
        tokens, counts = tokens.at[:, t].set(token), jnp.where(done, counts, counts + 1)
        return t + 1, state, token, tokens, scores, counts, done | (token == end)

    tokens = jnp.full((len(token), max_length), end, jnp.int32)
    scores, counts, done = (jnp.zeros(len(token), kind) for kind in (dtype, jnp.int32, jnp.bool_))
    carry = (jnp.int32(0), state, token, tokens, scores, counts, done)
    *_, tokens, scores, counts, done = lax.while_loop(_goes_on(max_length), body, carry)
    return Decoded(tokens, jnp.where(done, counts - 1, counts), scores)


def _goes_on(max_length: int) -> Callable[[tuple], Array]:
    """Returns the condition of the loop: the length is not reached, and a sequence is unfinished."""
    return lambda carry: (carry[0] < max_length) & ~carry[-1].all()


def _checked(step: Step, state: Any, start: ArrayLike, end: int, max_length: int) -> tuple[Array, int, Any]:
    """Checks the arguments. Returns the first tokens (B,), the number of tokens V, and the dtype of scores."""
    require_count(max_length, "max_length")
    sizes = {a.shape[:1] for a in jax.tree.leaves(state)}
    remedy = "The first axis of every array must be the batch."
    require(len(sizes) == 1 and () not in sizes, "state", "arrays (B, ...)", f"first axes {sorted(sizes)}", remedy)
    ((n_rows,),) = sizes
    token = as_array(start, "start")
    require(jnp.issubdtype(token.dtype, jnp.integer), "start", "integers", f"dtype {token.dtype}")
    shapes = (), (n_rows,)
    require(token.shape in shapes, "start", f"one token, or one for each of {n_rows} rows", f"shape {token.shape}")
    token = jnp.broadcast_to(jnp.asarray(token, jnp.int32), (n_rows,))
    logits = jax.eval_shape(step, state, token)[1]
    fits = len(logits.shape) == 2 and logits.shape[0] == n_rows
    require(fits, "step", f"logits (B, V) with B = {n_rows}", f"shape {logits.shape}")
    n_tokens = logits.shape[1]
    require(
        isinstance(end, int | np.integer) and 0 <= end < n_tokens, "end", f"a token, 0 to V - 1 = {n_tokens - 1}", end
    )
    return token, n_tokens, state_dtype(logits.dtype)
