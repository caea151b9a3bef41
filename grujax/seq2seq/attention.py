"""Attention over the valid steps of a source: dot attention and additive attention."""

import jax
import jax.numpy as jnp

from grujax.core.inputs import check_flags
from grujax.errors import require_equal
from grujax.kernels.products import along
from grujax.types import Array, state_dtype


def dot_attention(
    query: Array, keys: Array, values: Array, valid: Array | None = None, *, precision: jax.lax.PrecisionLike = None
) -> tuple[Array, Array]:
    """Luong's dot attention: the weighted mean of the values for each query, and the weights.

        e_ts = s_t · k_s        a_t = softmax(e_t)        c_t = Σ_s a_ts v_s

    Args:
      query: s (..., T, H), the states of the decoder.
      keys: k (..., S, H), the keys of the source.
      values: v (..., S, F), the values of the source.
      valid: bool (..., S), True at the valid steps of the source; None: all are valid. Other steps have weight 0, even
        if they contain NaN. If no step is valid, weights and context are 0.
      precision: the precision of the products; see `jax.lax.dot_general`.

    Returns:
      The context c (..., T, F) and the weights a (..., T, S).

    Raises:
      InputError: the shapes do not fit each other.

    >>> c, a = dot_attention(jnp.ones((2, 4, 3)), jnp.ones((2, 5, 3)), jnp.ones((2, 5, 6)))
    >>> c.shape, a.shape
    ((2, 4, 6), (2, 4, 5))

    Source: Luong et al. 2015, arXiv 1508.04025, equations 7 and 8.
    """
    valid = _checked(query, keys, values, valid)
    scores = jnp.einsum(
        "...th,...sh->...ts",
        query,
        _held(keys, valid),
        precision=precision,
        preferred_element_type=state_dtype(jnp.result_type(query, keys)),
    )
    return _attend(scores, values, valid, precision)


def additive_attention(
    query: Array,
    keys: Array,
    values: Array,
    v: Array,
    valid: Array | None = None,
    *,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Array, Array]:
    """Bahdanau's additive attention: the weighted mean of the values for each query, and the weights.

        e_ts = v_a · tanh(W_a s_t + U_a h_s)        a_t = softmax(e_t)        c_t = Σ_s a_ts h_s

    Args:
      query: W_a s (..., T, A), for the states of the decoder.
      keys: U_a h (..., S, A), for the source; they can be computed once for all steps of the decoder.
      values: h (..., S, F), the values of the source.
      v: v_a (A,).
      valid, precision: see `dot_attention`.

    Returns:
      The context c (..., T, F) and the weights a (..., T, S).

    Raises:
      InputError: the shapes do not fit each other.

    >>> c, a = additive_attention(jnp.ones((2, 4, 3)), jnp.ones((2, 5, 3)), jnp.ones((2, 5, 6)), jnp.ones(3))
    >>> c.shape, a.shape
    ((2, 4, 6), (2, 4, 5))

    Source: Bahdanau et al. 2015, arXiv 1409.0473, appendix A.1.2.
    """
    valid = _checked(query, keys, values, valid)
    require_equal(v.shape, query.shape[-1:], "v", "One weight for each feature of query and keys.")
    inside = jnp.tanh(query[..., :, None, :] + _held(keys, valid)[..., None, :, :])
    scores = (inside * along(v, inside)).sum(-1)
    return _attend(scores, values, valid, precision)


def _checked(query: Array, keys: Array, values: Array, valid: Array | None) -> Array | None:
    """Returns `valid` as an array; `InputError` if the shapes do not fit each other."""
    require_equal(keys.shape[-1], query.shape[-1], "keys", "Query and keys have the same last axis.")
    require_equal(keys.shape[:-2], query.shape[:-2], "keys", "Query and keys have the same batch axes.")
    require_equal(values.shape[:-1], keys.shape[:-1], "values", "One value for each key.")
    return check_flags(valid, "valid", keys.shape[:-1])


def _held(a: Array, valid: Array | None) -> Array:
    """Sets `a` to 0 where it is not valid, because NaN times a weight of 0 would be NaN."""
    return a if valid is None else jnp.where(valid[..., None], a, 0)


def _attend(scores: Array, values: Array, valid: Array | None, precision: jax.lax.PrecisionLike) -> tuple[Array, Array]:
    """Returns the mean of values (..., S, F), weighted by softmax(scores (..., T, S)), and the weights.

    The softmax is computed in float32 at least.
    """
    scores = scores.astype(state_dtype(scores.dtype))
    if valid is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        counts = valid[..., None, :]
        scores = jnp.where(counts, scores, jnp.finfo(scores.dtype).min)  # a row of −inf only would give NaN
        weights = jnp.where(counts, jax.nn.softmax(scores, axis=-1), 0)
    read = weights.astype(values.dtype)
    return jnp.einsum("...ts,...sf->...tf", read, _held(values, valid), precision=precision), weights
