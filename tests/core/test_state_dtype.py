"""In a user's own scan the state keeps its dtype, whatever the dtypes of x and the parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from pairs import by_turns

import grujax
from grujax import GRU, GRUCell, GRUModel, GRUWeights, gru
from grujax.testing import assert_close

X, H0 = (jax.random.normal(jax.random.key(i), shape, jnp.float32) for i, shape in enumerate([(3, 4, 2), (4, 5)]))


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def weights(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(2), 4)
    return GRUWeights(*(jax.random.normal(k, s, dtype) for k, s in zip(keys, [(2, 15), (5, 15), 15, 15], strict=True)))


def linen(cls, **fields):
    module = cls(hidden_size=5, **fields)
    params = dict(zip(("w_ih", "w_hh", "b_ih", "b_hh"), weights(), strict=False))
    return module, {"params": params if cls is GRUCell else {"l0": params}}


def cell_step(face):
    """Returns a function h (B, H), x (B, I) -> h'."""
    module, variables = linen(GRUCell)
    if face == "linen":
        return lambda h, x: module.apply(variables, h, x)[0]
    return lambda h, x: grujax.nnx.from_linen(module, variables, rngs=nnx.Rngs(0))(h, x)[0]


def layer_step(face):
    """The same by a layer that runs one step."""
    module, variables = linen(GRU)
    if face == "linen":
        return lambda h, x: module.apply(variables, x[:, None], h[None])[1][0]
    return lambda h, x: grujax.nnx.from_linen(module, variables, rngs=nnx.Rngs(0))(x[:, None], h[None])[1][0]


STEPS = {
    "gru": lambda h, x: gru(x[:, None], weights(), h)[1],
    **{f"cell, {face}": cell_step(face) for face in ("linen", "nnx")},
    **{f"layer, {face}": layer_step(face) for face in ("linen", "nnx")},
}


DTYPES = ["float64-float32", "float32-float64", "float32-bfloat16"]
"""The dtypes of x and of the state."""


@pytest.mark.parametrize(("step", "dtypes"), by_turns(STEPS, DTYPES, quick=2))
def test_a_scan_carries_a_state_of_any_dtype(step, dtypes):
    x_dtype, h_dtype = dtypes.split("-")
    scan = lambda h, x: (STEPS[step](h, x), None)  # noqa: E731
    h_last, _ = jax.lax.scan(scan, H0.astype(h_dtype), X.astype(x_dtype))
    assert h_last.dtype == h_dtype
    expected = gru(jnp.moveaxis(X, 0, 1), weights(), H0)[1]
    assert_close(h_last, expected, dtype="bfloat16" if h_dtype == "bfloat16" else "float32")


def test_a_bfloat16_cell_computes_in_bfloat16_and_carries_float32():
    cell, variables = linen(GRUCell, dtype=jnp.bfloat16)
    carry = cell.initialize_carry(jax.random.key(0), X[0].shape)
    new, y = cell.apply(variables, carry, X[0].astype(jnp.bfloat16))
    assert (carry.dtype, new.dtype, y.dtype) == ("float32", "float32", "bfloat16")


def test_the_rnns_of_flax_run_float32_parameters_on_float64():
    x = jnp.moveaxis(X, 0, 1).astype(jnp.float64)
    cell, variables = linen(GRUCell)
    expected = gru(x, weights())[0]
    assert_close(nn.RNN(cell).apply({"params": {"cell": variables["params"]}}, x), expected, dtype="float32")
    assert_close(nnx.RNN(grujax.nnx.from_linen(cell, variables, rngs=nnx.Rngs(0)))(x), expected, dtype="float32")


def test_a_model_returns_the_state_in_the_dtype_of_h0_and_pools_the_state_itself():
    model, x = GRUModel(hidden_size=5, output_size=2), jnp.moveaxis(X, 0, 1)
    variables = model.init(jax.random.key(0), x)
    y, state = model.apply(variables, x, H0[None].astype(jnp.bfloat16), return_state=True)
    assert (y.dtype, state.dtype) == ("float32", "bfloat16")
    assert_close(y, model.apply(variables, x, H0[None].astype(jnp.bfloat16).astype(jnp.float32)), dtype="float32")
