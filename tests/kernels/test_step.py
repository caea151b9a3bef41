"""One step and the projection of the input against the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grujax import equations
from grujax.kernels.products import dot, input_bias, input_products, split_gates
from grujax.kernels.step import cell_step
from grujax.testing import assert_close
from grujax.types import GRUSpec, GRUWeights

RNG = np.random.default_rng(0)
X, H = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 4, 5))
WEIGHTS = [RNG.normal(size=s) * 0.5 for s in [(3, 15), (5, 15), (15,), (15,)]]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_step_equals_the_oracle_whatever_the_batch_axes(reset_after, dtype):
    spec = GRUSpec(reset_after)
    weights = GRUWeights(*(jnp.asarray(w, dtype) for w in WEIGHTS))
    h = cell_step(jnp.asarray(X, dtype), jnp.asarray(H, dtype), weights, spec)
    assert h.dtype == dtype
    assert_close(
        h,
        np.stack(
            [
                equations.step(x, h, *WEIGHTS, variant=equations.Variant(reset_after)).h
                for x, h in zip(X, H, strict=True)
            ]
        ),
    )


def test_the_projection_without_biases_is_one_product():
    spec = GRUSpec()
    weights = GRUWeights(*(jnp.asarray(w) for w in WEIGHTS[:2]))
    assert_close(jnp.concatenate(input_products(jnp.asarray(X), weights, spec), -1), X @ WEIGHTS[0])
    assert input_bias(weights) is None


def test_products_of_half_precision_are_summed_in_float32():
    a, w = jnp.ones((1, 4096), jnp.bfloat16), jnp.full((4096, 1), 1 + 2**-7, jnp.bfloat16)
    assert dot(a, w, GRUSpec()).dtype == jnp.float32
    assert float(dot(a, w, GRUSpec())[0, 0]) == 4096 * (1 + 2**-7)


def test_gates_split_in_the_order_reset_update_candidate():
    r, z, n = split_gates(jnp.arange(6.0))
    assert (r.tolist(), z.tolist(), n.tolist()) == ([0, 1], [2, 3], [4, 5])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_of_one_row_is_differentiated_as_any_product(dtype):
    """JVP, VJP, vmap and second derivatives equal those of the first of three rows, where the other two are zero."""
    a, w, da, dw, g = (jnp.asarray(RNG.normal(size=s), dtype) for s in [(1, 4), (4, 3), (1, 4), (4, 3), (1, 3)])
    g = g.astype(jnp.float32)

    def one(a, w):
        return dot(a, w, GRUSpec())

    def of_three(a, w):
        return dot(jnp.concatenate([a, jnp.zeros((2, 4), a.dtype)]), w, GRUSpec())[:1]

    def square(f):
        return lambda a, w: ((f(a, w) * g) ** 2).sum()

    for f in (one, of_three):
        assert f(a, w).dtype == jnp.float32
    row = "float32" if dtype == "float32" else "bfloat16"
    for made in (
        lambda f: jax.jvp(f, (a, w), (da, dw)),
        lambda f: jax.vjp(f, a, w)[1](g),
        lambda f: jax.vmap(f, (None, 0))(a, jnp.stack([w, dw])),
        lambda f: jax.jvp(jax.grad(square(f), (0, 1)), (a, w), (da, dw)),
    ):
        both = jax.jit(lambda made=made: [jax.tree.leaves(made(f)) for f in (one, of_three)])()
        for found, expected in zip(*both, strict=True):
            assert found.dtype == expected.dtype
            assert_close(found, expected, "gradient", dtype=row)
