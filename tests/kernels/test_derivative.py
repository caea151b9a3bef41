"""The derivative rule against JAX's own derivative of the loop, in every mode that JAX has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_trees_close

from grujax import GRUSpec
from grujax.kernels import gru_sequence

T, B, H = 5, 3, 2
RNG = np.random.default_rng(0)
SHAPES = {"gates_x": (T, B, 3 * H), "h0": (B, H), "w_hh": (H, 3 * H), "b_hn": (H,), "h_reset": (H,)}
VALID = jnp.asarray([[1, 0, 1], [1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
RESET = jnp.asarray([[0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1]], bool)


def draw():
    return {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in SHAPES.items()}


PRIMALS, TANGENTS, WEIGH = draw(), draw(), jnp.asarray(RNG.normal(size=(T, B, H)))
MODES = {
    "grad": lambda f: jax.grad(lambda p: (f(p)[0] * WEIGH).sum() + f(p)[1].sum())(PRIMALS),
    "jvp": lambda f: jax.jvp(f, (PRIMALS,), (TANGENTS,)),
    "jacfwd": lambda f: jax.jacfwd(f)(PRIMALS),
    "jacrev": lambda f: jax.jacrev(f)(PRIMALS),
    "hvp": lambda f: jax.jvp(jax.grad(lambda p: (f(p)[0] * WEIGH).sum() + f(p)[1].sum()), (PRIMALS,), (TANGENTS,))[1],
    "remat": lambda f: jax.grad(lambda p: (jax.checkpoint(f)(p)[0] * WEIGH).sum())(PRIMALS),
}


@pytest.mark.parametrize("masks", [False, True], ids=["plain", "masks"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("mode", MODES)
def test_fused_equals_scan(mode, reset_after, masks):
    def run(implementation):
        def f(given):
            options = {"valid": VALID, "reset": RESET, "h_reset": given["h_reset"]} if masks else {}
            arrays = [given[name] for name in ("gates_x", "h0", "w_hh", "b_hn")]
            return gru_sequence(*arrays, **options, spec=GRUSpec(reset_after), implementation=implementation)

        return f

    assert_trees_close(*(jax.jit(lambda i=i: MODES[mode](run(i)))() for i in ("fused", "scan")), "gradient")
