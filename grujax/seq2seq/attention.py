"""Attention over the valid steps of a source: two score functions, and the weighted mean."""

import jax
import jax.numpy as jnp

from grujax.core.inputs import check_flags
from grujax.errors import require_equal
from grujax.kernels.products import along
from grujax.types import Array, state_dtype


def dot_attention(
    query: Array, keys: Array, values: Array, valid: Array | None = None, *, precision: jax.lax.PrecisionLike = None
) -> tuple[Array, Array]:
    """Luong's dot attention: what each query reads of the values, and with which weights.

        e_ts = s_t · k_s        a_t = softmax(e_t)        c_t = Σ_s a_ts v_s

    Args:
      query: s (..., T, H), the states of the decoder.
      keys: k (..., S, H), of the source.
      values: v (..., S, F).
      valid: bool (..., S), which steps of the source count; all where None. Others have weight 0, whatever stands
        there, NaN too. Where none counts, weights and context are 0.
      precision: of the products, see `jax.lax.dot_general`.

    Returns:
      c (..., T, F) and a (..., T, S).

    Raises:
      InputError: shapes that do not fit.

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
    """Bahdanau's additive attention: what each query reads of the values, and with which weights.

        e_ts = v_a · tanh(W_a s_t + U_a h_s)        a_t = softmax(e_t)        c_t = Σ_s a_ts h_s

    Args:
      query: W_a s (..., T, A), of the decoder.
      keys: U_a h (..., S, A), of the source: computed once, for all steps of the decoder.
      values: h (..., S, F).
      v: v_a (A,).
      valid, precision: see `dot_attention`.

    Returns:
      c (..., T, F) and a (..., T, S).

    Raises:
      InputError: shapes that do not fit.

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
    require_equal(keys.shape[-1], query.shape[-1], "keys", "Query and keys have the same last axis.")
    require_equal(keys.shape[:-2], query.shape[:-2], "keys", "Query and keys have the same batch axes.")
    require_equal(values.shape[:-1], keys.shape[:-1], "values", "One value for each key.")
    return check_flags(valid, "valid", keys.shape[:-1])


def _held(a: Array, valid: Array | None) -> Array:
    """a, 0 where it is not valid: NaN times a weight of 0 would be NaN."""
    return a if valid is None else jnp.where(valid[..., None], a, 0)


def _attend(scores: Array, values: Array, valid: Array | None, precision: jax.lax.PrecisionLike) -> tuple[Array, Array]:
    """The mean of values (..., S, F), weighed by softmax(scores (..., T, S)); softmax in float32 at least."""
    scores = scores.astype(state_dtype(scores.dtype))
    if valid is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        counts = valid[..., None, :]
        scores = jnp.where(counts, scores, jnp.finfo(scores.dtype).min)  # −inf alone in a row would give NaN
        weights = jnp.where(counts, jax.nn.softmax(scores, axis=-1), 0)
    read = weights.astype(values.dtype)
    return jnp.einsum("...ts,...sf->...tf", read, _held(values, valid), precision=precision), weights
