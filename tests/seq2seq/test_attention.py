"""Attention: each score function against a loop in NumPy, and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from grujax.seq2seq import additive_attention, dot_attention
from grujax.testing import assert_close

RNG = np.random.default_rng(0)
B, T, S, H, F = 3, 4, 5, 6, 7
QUERY, KEYS, VALUES, V = (RNG.normal(size=shape) for shape in ((B, T, H), (B, S, H), (B, S, F), (H,)))
LENGTHS = np.array([5, 0, 3])
VALID = np.arange(S) < LENGTHS[:, None]


def dot(query, keys, values, valid=None):
    return dot_attention(query, keys, values, valid)


def additive(query, keys, values, valid=None):
    return additive_attention(query, keys, values, jnp.asarray(V), valid)


SCORES = {dot: lambda s, k: s @ k, additive: lambda s, k: V @ np.tanh(s + k)}


def oracle(score, lengths):
    """Computes one query and one valid key at a time."""
    contexts, weights = np.zeros((B, T, F)), np.zeros((B, T, S))
    for b, n in enumerate(lengths):
        for t in range(T) if n else ():
            e = np.exp([score(QUERY[b, t], KEYS[b, s]) for s in range(n)])
            weights[b, t, :n] = e / e.sum()
            contexts[b, t] = sum(weights[b, t, s] * VALUES[b, s] for s in range(n))
    return contexts, weights


@pytest.mark.parametrize("attention", SCORES, ids=lambda f: f.__name__)
def test_attention_equals_the_oracle(attention):
    for valid, lengths in ((None, [S] * B), (jnp.asarray(VALID), LENGTHS)):
        context, weights = attention(*map(jnp.asarray, (QUERY, KEYS, VALUES)), valid)
        expected, expected_weights = oracle(SCORES[attention], lengths)
        assert_close(context, expected)
        assert_close(weights, expected_weights)
        assert (np.asarray(weights)[expected_weights == 0] == 0).all()


@pytest.mark.parametrize("attention", SCORES, ids=lambda f: f.__name__)
def test_nan_in_the_padding_reaches_no_value_and_no_gradient(attention):
    def loss(query, keys, values):
        context, weights = attention(query, keys, values, jnp.asarray(VALID))
        return (context**2).sum() + (weights**2).sum()

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    poisoned = [np.where(VALID[..., None], a, np.nan) for a in (KEYS, VALUES)]
    jax.tree.map(np.testing.assert_array_equal, run(QUERY, *poisoned), run(QUERY, KEYS, VALUES))
    _, (_, d_keys, d_values) = run(QUERY, *poisoned)
    assert not np.asarray(d_keys)[~VALID].any() and not np.asarray(d_values)[~VALID].any()
    assert np.asarray(d_values)[VALID].all()


def test_half_precision_weighs_in_float32():
    query, keys, values = (jnp.asarray(a, jnp.bfloat16) for a in (QUERY, KEYS, VALUES))
    context, weights = dot_attention(query, keys, values)
    assert (context.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    wide = dot_attention(*(a.astype(jnp.float32) for a in (query, keys, values)))
    assert_close(context, wide[0], dtype="bfloat16")


def test_shapes_that_do_not_fit_are_refused():
    query, keys, values = map(jnp.asarray, (QUERY, KEYS, VALUES))
    with refused("keys: expected 6, found 5", "last axis"):
        dot_attention(query, keys[..., 1:], values)
    with refused("keys: expected shape (3,), found shape (2,)", "batch axes"):
        dot_attention(query, keys[1:], values[1:])
    with refused("values: expected shape (3, 5), found shape (3, 4)"):
        dot_attention(query, keys, values[:, 1:])
    with refused("valid: expected shape (3, 5), found shape (5,)"):
        dot_attention(query, keys, values, jnp.asarray(VALID[0]))
    with refused("v: expected shape (6,), found shape (5,)"):
        additive_attention(query, keys, values, jnp.asarray(V[1:]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scores_of_narrow_types_are_float32(dtype):
    """300 * 300 * 4 overflows float16, and bfloat16 keeps only 8 bits of a score."""
    rng = np.random.default_rng(0)
    query, keys, values = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((4, 64), (5, 64), (5, 6)))
    wide = dot_attention(*(a.astype("float32") for a in (query, keys, values)))[1]
    np.testing.assert_allclose(dot_attention(query, keys, values)[1], wide, atol=1e-6)
    large = jnp.full((2, 4), 300, dtype)
    assert np.isfinite(dot_attention(large, large, large)[0].astype("float32")).all()
