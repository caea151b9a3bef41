"""The model: pooling, the head and the statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn

from grujax import GRU, GRUEncoder, GRUModel
from grujax.testing import assert_close

X = np.random.default_rng(0).normal(size=(4, 6, 3))
LENGTHS = np.array([6, 0, 2, 5])
OPTIONS = {"num_layers": 2, "bidirectional": True, "param_dtype": jnp.float64}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def layer():
    gru = GRU(5, **OPTIONS)
    variables = drawn(gru, X)
    return variables["params"], *map(np.asarray, jax.jit(gru.apply)(variables, X, lengths=LENGTHS))


def pooled(output, h_last, pooling):
    """Pools in NumPy, row by row."""
    if pooling is None:
        return output
    if pooling == "last":
        return np.concatenate([h_last[-2], h_last[-1]], -1)
    by = {"mean": np.mean, "max": np.max}[pooling]
    return np.stack([by(o[:n], 0) if n else np.zeros(10) for o, n in zip(output, LENGTHS, strict=True)])


@pytest.mark.parametrize("pooling", ["last", "mean", "max", None])
def test_pooling_goes_over_the_valid_steps(layer, pooling):
    params, output, h_last = layer
    encoder = GRUEncoder(5, pooling=pooling, **OPTIONS)
    run = jax.jit(encoder.apply, static_argnames="return_state")
    found, state = run({"params": {"gru": params}}, X, lengths=LENGTHS, return_state=True)
    assert_close(found, pooled(output, h_last, pooling))
    assert_close(state, h_last)
    if pooling == "last":
        assert (np.abs(np.asarray(found) - output[:, -1]).max(axis=1)[[0, 2, 3]] > 1e-3).all()


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_has_finite_gradients_where_a_row_is_empty(layer, pooling):
    encoder = GRUEncoder(5, pooling=pooling, **OPTIONS)
    summed = lambda x: encoder.apply({"params": {"gru": layer[0]}}, x, lengths=LENGTHS).sum()  # noqa: E731
    gradient = np.asarray(jax.jit(jax.grad(summed))(X))
    assert np.isfinite(gradient).all() and gradient[0].any() and not gradient[1].any()


@pytest.mark.parametrize("pooling", ["last", None])
def test_the_head_is_a_dense_layer_on_what_was_pooled(layer, pooling):
    model = GRUModel(5, 2, pooling=pooling, **OPTIONS)
    variables = drawn(model, X)
    head = jax.tree.map(np.asarray, variables["params"]["head"])
    gru = variables["params"]["encoder"]["gru"]
    output, h_last = map(np.asarray, jax.jit(GRU(5, **OPTIONS).apply)({"params": gru}, X, lengths=LENGTHS))
    expected = pooled(output, h_last, pooling) @ head["kernel"] + head["bias"]
    if pooling is None:
        expected = np.where((np.arange(6) < LENGTHS[:, None])[..., None], expected, 0)
    assert_close(jax.jit(model.apply)(variables, X, lengths=LENGTHS), expected)


@pytest.mark.parametrize("pooling", ["last", None])
def test_statistics_take_raw_inputs_in_and_give_raw_targets_out(pooling):
    model = GRUModel(5, 2, pooling=pooling, **OPTIONS)
    variables = drawn(model, X)
    x_mean, x_std, y_mean, y_std = (np.asarray(a) for a in ([1.0, -2, 3], [0.5, 2, 4], [10.0, -20], [3.0, 0.1]))
    statistics = {"input_mean": x_mean, "input_std": x_std, "output_mean": y_mean, "output_std": y_std}
    raw = X * x_std[None, None] + x_mean[None, None]
    shape = (1, 1, 2) if pooling is None else (1, 2)
    expected = jax.jit(model.apply)(variables, X, lengths=LENGTHS) * y_std.reshape(shape) + y_mean.reshape(shape)
    if pooling is None:
        expected = np.where((np.arange(6) < LENGTHS[:, None])[..., None], expected, 0)
    assert_close(
        jax.jit(model.apply)(variables | {"statistics": statistics}, raw, lengths=LENGTHS), expected, "gradient"
    )
    only_inputs = {"statistics": {"input_mean": x_mean, "input_std": x_std}}
    assert_close(jax.jit(model.apply)(variables | only_inputs, raw), jax.jit(model.apply)(variables, X), "gradient")


def test_dropout_falls_before_the_head_too():
    model = GRUModel(5, 2, dropout=1.0, param_dtype=jnp.float64)
    variables = drawn(model, X)
    y = model.apply(variables, X, deterministic=False, rngs={"dropout": KEY})
    assert_close(y, np.broadcast_to(variables["params"]["head"]["bias"], (4, 2)))
    np.testing.assert_array_equal(
        jax.jit(model.apply)(variables, X), GRUModel(5, 2, param_dtype=jnp.float64).apply(variables, X)
    )


def test_equal_models_are_one_static_argument():
    one, other = (GRUModel(5, {"a": 2, "b": 1}, head_hidden=widths) for widths in ((4,), [4]))
    assert one == other and hash(one) == hash(other)
    assert one != GRUModel(5, {"a": 2, "b": 3}, head_hidden=(4,))
