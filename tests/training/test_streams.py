"""Truncated backpropagation: a window as long as the stream is full backpropagation; shorter ones carry the state."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import drawn

from grujax import GRUModel
from grujax.testing import assert_close
from grujax.training.streams import StreamState, stream_step

MODEL = GRUModel(5, 2, num_layers=2, pooling=None, param_dtype=jnp.float64)
OPTIMIZER = optax.sgd(0.1)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 12, 4)), RNG.normal(size=(3, 12, 2))
RESETS = RNG.random((3, 12)) < 0.2


def squared(outputs, y):
    return jnp.mean((outputs - y) ** 2)


def first():
    params = drawn(MODEL, X)["params"]
    h = jax.device_put(np.random.default_rng(1).normal(size=(2, 3, 5)))
    return StreamState(params, OPTIMIZER.init(params), h)


def moved(params, gradient):
    return jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * np.asarray(g), params, gradient)


@pytest.mark.parametrize("resets", [None, RESETS])
def test_a_window_as_long_as_the_stream_is_full_backpropagation(resets):
    begin = first()

    def whole(params):
        return squared(MODEL.apply({"params": params}, X, begin.h, resets=resets), Y)

    value, gradient = jax.jit(jax.value_and_grad(whole))(begin.params)
    expected = moved(begin.params, gradient)
    after, found = stream_step(MODEL, squared, OPTIMIZER, first(), X, Y, resets)
    assert_close(found, value, "forward")
    jax.tree.map(lambda a, b: assert_close(a, b, "gradient"), after.params, expected)


def test_the_state_is_carried_and_no_gradient_crosses_a_window():
    state, still = first(), optax.sgd(0.0)
    for window in (slice(0, 5), slice(5, 12)):
        state, value = stream_step(MODEL, squared, still, state, X[:, window], Y[:, window])
    outputs, h = jax.jit(partial(MODEL.apply, return_state=True))({"params": state.params}, X, first().h)
    assert_close(state.h, h, "forward")
    assert_close(value, np.mean((np.asarray(outputs)[:, 5:] - Y[:, 5:]) ** 2), "forward")
    middle, _ = stream_step(MODEL, squared, still, first(), X[:, :5], Y[:, :5])
    kept, begin = np.array(middle.h), jax.tree.map(np.array, middle.params)  # a step donates the buffers of its state

    def last(params):
        return squared(MODEL.apply({"params": params}, X[:, 5:], kept), Y[:, 5:])

    expected = moved(begin, jax.jit(jax.grad(last))(begin))
    after, _ = stream_step(MODEL, squared, OPTIMIZER, middle, X[:, 5:], Y[:, 5:])
    jax.tree.map(lambda a, b: assert_close(a, b, "gradient"), after.params, expected)
