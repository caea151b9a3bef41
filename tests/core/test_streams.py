"""Streams of chunks, truncated backpropagation, and the initial state in front of the output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from reference import dense, layers, one_direction
from refusals import refused
from sequence_problem import (
    DRAWN,
    FLAGS,
    H0,
    KEY,
    LEARNED,
    RESETS,
    SEEDS,
    VALID,
    B,
    H,
    I,
    L,
    T,
    X,
    as_jax,
    poisoned,
    random_params,
    random_weights,
    valid_steps,
)

from grujax import GRU, GRUModel, GRUWeights, gru
from grujax.testing import assert_close, assert_trees_close

STREAM = GRUModel(H, 2, num_layers=L, pooling=None, **LEARNED)


@jax.jit
def stream(params, x, h, lengths, resets):
    return STREAM.apply({"params": params}, x, h, lengths=lengths, resets=resets, return_state=True)


@jax.jit
def stream_in_scan(params, x, h, valid, resets):
    """One step at a time, the state as the carry."""

    def one_step(h, inputs):
        x, valid, resets = inputs
        y, h = stream(params, x[:, None], h, valid.astype(int), resets[:, None])
        return h, y[:, 0]

    h, ys = jax.lax.scan(one_step, h, jax.tree.map(lambda a: a.swapaxes(0, 1), (x, valid, resets)))
    return ys.swapaxes(0, 1), h


@given(SEEDS, valid_steps(holes=False), FLAGS)
@settings(max_examples=6, **DRAWN)
def test_a_stream_of_chunks_equals_the_whole(seed, valid, resets):
    rng = np.random.default_rng(seed)
    params, x = random_params(STREAM, rng), poisoned(rng.normal(size=(B, T, I)), valid)
    handed, lengths, learned = as_jax(params), valid.sum(1), params["encoder"]["gru"]["h0"]
    start = jnp.asarray(np.repeat(learned[:, None], B, 1))
    output, expected_last, _ = layers(params["encoder"]["gru"], x, None, valid, resets, 1)
    expected = np.where(valid[..., None], dense(params["head"], output), 0)

    def chunk(at, size, h, rows=slice(None)):
        steps, still = slice(at, at + size), np.clip(lengths - at, 0, min(size, T - at))
        return stream(handed, *as_jax((x[rows, steps], h, still[rows], resets[rows, steps])))

    def in_chunks(size, h):
        ys = []
        for at in range(0, T, size):
            y, h = chunk(at, size, h)
            ys.append(y)
        return jnp.concatenate(ys, 1), h

    runs = {
        "the whole": chunk(0, T, None),
        "chunks of 1": in_chunks(1, start),
        "chunks of 3": in_chunks(3, None),
        "a scan": stream_in_scan(handed, *as_jax((x, start, valid, resets))),
    }
    for name, (y, h_last) in runs.items():
        assert_close(y, expected, name=name)
        assert_close(h_last, expected_last, name=f"h_last of {name}")
        assert not np.asarray(y)[~valid].any()
        np.testing.assert_array_equal(h_last[:, lengths == 0], start[:, lengths == 0])
    _, h = chunk(0, 3, None)
    backwards = slice(None, None, -1)
    y, _ = chunk(3, 3, jax.tree.map(lambda a: a[:, backwards], h), backwards)
    assert_close(y, expected[backwards, 3:6], name="rows in another order from there on")


def test_truncated_backpropagation_stops_at_the_chunk():
    rng, cut = np.random.default_rng(6), 4
    params, x, resets = random_params(STREAM, rng), rng.normal(size=(B, T, I)), rng.random((B, T)) < 0.2
    d = rng.normal(size=(B, T - cut, 2))

    @jax.jit
    def gradients(params, x, resets):
        def loss(params):
            _, h = STREAM.apply({"params": params}, x[:, :cut], resets=resets[:, :cut], return_state=True)
            h = jax.lax.stop_gradient(h)
            return (STREAM.apply({"params": params}, x[:, cut:], h, resets=resets[:, cut:]) * d).sum(), h

        return jax.grad(loss, has_aux=True)(params)

    def expected(x, h0, resets):
        """The gradients of what the last steps give, of a run over x from h0."""
        output, h_last, backward = layers(params["encoder"]["gru"], x, h0, np.ones_like(resets), resets, 1)
        d_output = np.zeros_like(output)
        d_output[:, cut - T :] = d @ params["head"]["kernel"].T
        d_kernel = np.einsum("bti,bto->io", output[:, cut - T :], d)
        of_layers = backward(d_output, 0 * h_last)[0]
        return {"encoder": {"gru": of_layers}, "head": {"kernel": d_kernel, "bias": d.sum((0, 1))}}

    found, h = gradients(*as_jax((params, x, resets)))
    assert_trees_close(found, expected(x[:, cut:], np.asarray(h), resets[:, cut:]), "gradient")
    of_whole = expected(x, None, resets)["encoder"]["gru"]
    for name, d_weights in found["encoder"]["gru"]["l0"].items():
        assert np.abs(d_weights - of_whole["l0"][name]).max() > 1e-2


# The initial state in front of the output.


@pytest.mark.parametrize(("time_major", "h0_given"), [(False, True), (True, False)])
def test_the_initial_state_stands_in_front(time_major, h0_given):
    rng, states = np.random.default_rng(7), H0[:L] if h0_given else None
    x, mask, resets = (jnp.asarray(a.swapaxes(0, 1) if time_major else a) for a in (X, VALID, RESETS))
    steering = {"mask": mask, "resets": resets}

    def batch_first(a):
        return np.asarray(a).swapaxes(0, 1) if time_major else np.asarray(a)

    weights, h0 = random_weights(rng), H0[0] if h0_given else np.zeros((B, H))
    expected, expected_last, _ = one_direction(X, h0, np.zeros(H), weights, VALID, RESETS, False)
    options = {"time_major": time_major, "include_initial": True, **steering}
    hs, h_last = gru(x, GRUWeights(**as_jax(weights)), jnp.asarray(h0) if h0_given else None, **options)
    np.testing.assert_array_equal(batch_first(hs)[:, 0], h0)
    assert_close(batch_first(hs)[:, 1:], expected)
    assert_close(h_last, expected_last)

    model = GRUModel(H, 2, num_layers=L, pooling=None, include_initial=True, time_major=time_major, **LEARNED)
    params = random_params(model, rng)
    y = model.apply({"params": as_jax(params)}, x, as_jax(states), **steering)
    learned = np.repeat(params["encoder"]["gru"]["h0"][:, None], B, 1)
    first = dense(params["head"], (states if h0_given else learned)[-1])
    output = layers(params["encoder"]["gru"], X, states, VALID, RESETS, 1)[0]
    assert_close(batch_first(y)[:, 0], first)
    assert_close(batch_first(y)[:, 1:], np.where(VALID[..., None], dense(params["head"], output), 0))


@pytest.mark.parametrize("residual", [False, True])
def test_the_initial_state_in_front_is_the_last_layers(residual):
    rng = np.random.default_rng(8)
    model = GRU(H, num_layers=L, include_initial=True, connection="residual" if residual else None, **LEARNED)
    params, d = random_params(model, rng), rng.normal(size=(B, T + 1, H))

    @jax.jit
    def run(params, x):
        def loss(params):
            output, _ = model.apply({"params": params}, x, mask=VALID, resets=RESETS)
            return (output * d).sum(), output

        return jax.grad(loss, has_aux=True)(params)

    gradients, output = run(*as_jax((params, X)))
    expected, h_last, backward = layers(params, X, None, VALID, RESETS, 1, residual=residual)
    expected_gradients = backward(d[:, 1:] * VALID[..., None], 0 * h_last)[0]
    expected_gradients["h0"][-1] += d[:, 0].sum(0)
    np.testing.assert_array_equal(output[:, 0], np.repeat(params["h0"][-1][None], B, 0))
    assert_close(output[:, 1:], np.where(VALID[..., None], expected, 0))
    assert_trees_close(gradients, expected_gradients, "gradient")


INITIAL = {"include_initial": True, "param_dtype": jnp.float64}
NO_FRONT = {
    "gru in reverse": (
        lambda: gru(
            jnp.asarray(X),
            GRUWeights(**as_jax(random_weights(np.random.default_rng(0)))),
            include_initial=True,
            reverse=True,
        ),
        "False where time runs backwards",
    ),
    "both directions": (lambda: GRU(H, bidirectional=True, **INITIAL).init(KEY, jnp.asarray(X)), "False where time"),
    "pooling": (lambda: GRUModel(H, 2, pooling="last", **INITIAL).init(KEY, jnp.asarray(X)), "False beside pooling"),
}


@pytest.mark.parametrize("case", NO_FRONT)
def test_where_there_is_no_front_the_initial_state_is_refused(case):
    call, expected = NO_FRONT[case]
    with refused("include_initial: expected", expected):
        call()
