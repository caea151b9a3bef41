"""Packed sequences and pooling, against separate runs of each sequence."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dense, encoded, layers
from sequence_problem import (
    BOTH,
    DRAWN,
    EDGES,
    LEARNED,
    SEEDS,
    VALID,
    B,
    H,
    I,
    L,
    T,
    X,
    as_jax,
    compiled_layers,
    poisoned,
    random_layers,
    random_params,
    valid_steps,
)

from grujax import GRUEncoder, GRUModel
from grujax.data import pack_sequences, unpack_sequences
from grujax.testing import assert_close, assert_trees_close

N, LONGEST = 6, 3
SIZES = st.lists(st.integers(0, LONGEST), min_size=N, max_size=N)  # two or more fit in a row: at most 3 of the B rows


def packed_and_apart(rng, sizes):
    """N sequences packed into B rows of T steps; and in a row each: x (N, LONGEST, I) and valid."""
    sequences = [rng.normal(size=(size, I)) for size in sizes]
    apart, valid = np.zeros((N, LONGEST, I)), np.arange(LONGEST) < np.array(sizes)[:, None]
    apart[valid] = np.concatenate(sequences)
    return pack_sequences(sequences, length=T, num_rows=B), apart, valid


def unpacked(packed, output):
    """All valid steps of `output` (B, T, F), one sequence after another."""
    return np.concatenate(unpack_sequences(packed, np.asarray(output)))


@given(SEEDS, SIZES)
@settings(max_examples=6, **DRAWN)
def test_packed_sequences_equal_separate_runs(seed, sizes):
    rng = np.random.default_rng(seed)
    params, h0 = random_layers(rng)
    packed, apart, valid = packed_and_apart(rng, sizes)
    expected, last, backward = layers(params, apart, None, valid, np.zeros_like(valid))
    d_output, d_last = rng.normal(size=(B, T, 2 * H)), rng.normal(size=h0.shape)
    d_apart, d_last_apart = np.zeros_like(expected), np.zeros_like(last)
    d_apart[valid] = unpacked(packed, d_output)
    expected_last, d_learned = np.repeat(params["h0"][:, None], B, 1), np.zeros_like(params["h0"])
    for row in range(B):
        inside = packed.segments[row, : packed.lengths[row]]
        for i in range(2 * L):  # the state of the row's last sequence, in reverse of its first
            if inside.size:
                owner = inside[0 if i % 2 else -1]
                expected_last[i, row], d_last_apart[i, owner] = last[i, owner], d_last[i, row]
            else:
                d_learned[i] += d_last[i, row]
    expected_gradients, dx, _ = backward(d_apart, d_last_apart)
    expected_gradients["h0"] += d_learned

    run = compiled_layers("lengths", False, implementation=None, reset_after=True)
    x = poisoned(packed.x, packed.segments >= 0)
    handed = as_jax((params, x, h0, packed.lengths, packed.resets, d_output, d_last))
    (gradients, packed_dx, _), (output, h_last) = run(*handed)
    assert_close(unpacked(packed, output), expected[valid], name="output")
    assert_close(h_last, expected_last, name="h_last")
    assert_close(unpacked(packed, packed_dx), dx[valid], "gradient", name="x")
    assert_trees_close(gradients, expected_gradients, "gradient")


ENCODERS = {
    "last": {"num_layers": L, "bidirectional": True, "merge": "sum"},
    "mean": {},
    "max": {"num_layers": L, "connection": "residual"},
    "attention": {},
}


@cache
def compiled_encoder(pooling, num_segments=None):
    """Compiles a function (params, x, steering, d) -> the gradients of params and x, and the features."""
    model = GRUEncoder(H, pooling=pooling, **ENCODERS[pooling], **LEARNED)

    def loss(params, x, steering, d):
        features = model.apply({"params": params}, x, **steering, num_segments=num_segments)
        return (features * d).sum(), features

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))


def encoder_params(pooling, rng):
    """The parameters, and the settings as keywords of `encoded`."""
    options = ENCODERS[pooling]
    params = random_params(GRUEncoder(H, pooling=pooling, **options, **LEARNED), rng)
    directions, residual = 1 + options.get("bidirectional", False), "connection" in options
    return params, {"directions": directions, "merge": options.get("merge", "concat"), "residual": residual}


@pytest.mark.parametrize("pooling", ENCODERS)
@given(SEEDS, SIZES)
@settings(max_examples=6, **DRAWN)
def test_pooled_segments_equal_separate_runs(pooling, seed, sizes):
    rng = np.random.default_rng(seed)
    params, named = encoder_params(pooling, rng)
    packed, apart, valid = packed_and_apart(rng, sizes)
    expected, backward = encoded(params, apart, None, valid, np.zeros_like(valid), pooling, **named)
    d = rng.normal(size=expected.shape)
    there = packed.segments >= 0
    segments = np.where(there, packed.segments, rng.integers(-1, N, (B, T)))  # ignored in the padding
    steering = {"lengths": packed.lengths, "resets": packed.resets, "segments": segments}
    x = poisoned(packed.x, there)
    (gradients, packed_dx), features = compiled_encoder(pooling, len(packed))(*as_jax((params, x, steering, d)))
    expected_gradients, dx = backward(d)
    assert_close(features, expected)
    assert_trees_close(gradients, expected_gradients, "gradient")
    assert_close(unpacked(packed, packed_dx), dx[valid], "gradient", name="x")


@pytest.mark.parametrize("pooling", ENCODERS)
@given(SEEDS, valid_steps())
@settings(max_examples=6, **DRAWN)
def test_pooling_goes_over_the_valid_steps_of_each_row(pooling, seed, valid):
    rng = np.random.default_rng(seed)
    params, named = encoder_params(pooling, rng)
    x = rng.normal(size=(B, T, I))
    expected, backward = encoded(params, x, None, valid, np.zeros_like(valid), pooling, **named)
    d = rng.normal(size=expected.shape)
    handed = as_jax((params, poisoned(x, valid), {"mask": valid}, d))
    gradients, features = compiled_encoder(pooling)(*handed)
    assert_close(features, expected)
    assert_trees_close(gradients, backward(d), "gradient")
    if pooling != "last":
        assert not np.asarray(features)[~valid.any(1)].any()


def test_a_function_pools_what_it_likes():
    seen = []

    def first_and_count(output, valid):
        seen.append((output, valid))
        return output[..., 0, :] + valid.sum(-1, keepdims=True).astype(output.dtype)

    model = GRUEncoder(H, bidirectional=True, pooling=first_and_count, **LEARNED)
    params = random_params(model, np.random.default_rng(9))
    del seen[:]
    features = model.apply({"params": as_jax(params)}, jnp.asarray(X), mask=jnp.asarray(VALID))
    ((found, valid),) = seen
    expected = layers(params["gru"], X, None, VALID, np.zeros_like(VALID))[0]
    assert_close(found, expected, name="what the function is given")
    np.testing.assert_array_equal(valid, VALID)
    assert_close(features, expected[:, 0] + VALID.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("edge", "pooling"), [(edge, pooling) for edge in ("no steps", "no rows") for pooling in ENCODERS]
)
def test_pooling_at_the_edge(edge, pooling):
    n_rows, n_steps, input_size, hidden_size = EDGES[edge]
    rng = np.random.default_rng(4)
    model = GRUModel(hidden_size, 2, pooling=pooling, **BOTH)
    params = random_params(model, rng, input_size)
    x, flags = rng.normal(size=(n_rows + 1, n_steps, input_size)), rng.random((2, n_rows + 1, n_steps)) < 0.7
    flags[:, -1] = False  # an extra row, only in the reference: a segment without steps
    (expected, _), (expected_segments, _) = (
        encoded(params["encoder"], x, None, flags[0], resets, pooling) for resets in (0 * flags[1], flags[1])
    )
    handed = {"params": as_jax(params)}, jnp.asarray(x[:-1])
    mask, resets = as_jax((flags[0, :-1], flags[1, :-1]))
    segments = jnp.asarray(np.repeat(np.arange(n_rows)[:, None], n_steps, 1))

    @jax.jit
    def both(variables, x, mask, resets, segments):
        steering = {"resets": resets, "segments": segments, "num_segments": n_rows + 1}
        return model.apply(variables, x, mask=mask), model.apply(variables, x, mask=mask, **steering)

    found, of_segments = both(*handed, mask, resets, segments)
    assert_close(found, dense(params["head"], expected[:-1]))
    assert_close(of_segments, dense(params["head"], expected_segments))


@pytest.mark.parametrize("edge", EDGES)
def test_an_output_a_step_at_the_edge(edge):
    n_rows, n_steps, input_size, hidden_size = EDGES[edge]
    rng = np.random.default_rng(4)
    model = GRUModel(hidden_size, 2, pooling=None, **BOTH)
    params = random_params(model, rng, input_size)
    x, (mask, resets) = rng.normal(size=EDGES[edge][:3]), rng.random((2, n_rows, n_steps)) < 0.7
    output, expected_last, _ = layers(params["encoder"]["gru"], x, None, mask, resets)
    run = jax.jit(partial(model.apply, return_state=True))
    y, h_last = run({"params": as_jax(params)}, jnp.asarray(x), **as_jax({"mask": mask, "resets": resets}))
    assert_close(y, np.where(mask[..., None], dense(params["head"], output), 0))
    assert_close(h_last, expected_last)
