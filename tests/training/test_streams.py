"""Truncated backpropagation: with a window as long as the stream it is full backpropagation; shorter ones go on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grujax import GRUModel
from grujax.testing import assert_close
from grujax.training.streams import StreamState, stream_step

MODEL = GRUModel(5, 2, num_layers=2, pooling=None, param_dtype=jnp.float64)
OPTIMIZER = optax.sgd(0.1)
RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(3, 12, 4))), jnp.asarray(RNG.normal(size=(3, 12, 2)))
RESETS = jnp.asarray(RNG.random((3, 12)) < 0.2)


def squared(outputs, y):
    return jnp.mean((outputs - y) ** 2)


def first():
    params = MODEL.init(jax.random.key(0), X)["params"]
    h = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 5)))
    return StreamState(params, OPTIMIZER.init(params), h)


@pytest.mark.parametrize("resets", [None, RESETS])
def test_a_window_as_long_as_the_stream_is_full_backpropagation(resets):
    begin = first()

    def whole(params):
        return squared(MODEL.apply({"params": params}, X, begin.h, resets=resets), Y)

    value, gradient = jax.value_and_grad(whole)(begin.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, begin.params, gradient)
    after, found = stream_step(MODEL, squared, OPTIMIZER, first(), X, Y, resets)
    assert_close(found, value, "forward")
    jax.tree.map(lambda a, b: assert_close(a, b, "gradient"), after.params, expected)


def test_the_state_is_carried_and_no_gradient_crosses_a_window():
    state, still = first(), optax.sgd(0.0)
    for window in (slice(0, 5), slice(5, 12)):
        state, value = stream_step(MODEL, squared, still, state, X[:, window], Y[:, window])
    outputs, h = MODEL.apply({"params": state.params}, X, first().h, return_state=True)
    assert_close(state.h, h, "forward")
    assert_close(value, squared(outputs[:, 5:], Y[:, 5:]), "forward")
    middle, _ = stream_step(MODEL, squared, still, first(), X[:, :5], Y[:, :5])
    kept = jnp.copy(middle.h)

    def last(params):
        return squared(MODEL.apply({"params": params}, X[:, 5:], kept), Y[:, 5:])

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, middle.params, jax.grad(last)(middle.params))
    after, _ = stream_step(MODEL, squared, OPTIMIZER, middle, X[:, 5:], Y[:, 5:])
    jax.tree.map(lambda a, b: assert_close(a, b, "gradient"), after.params, expected)
