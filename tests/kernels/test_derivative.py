"""The derivative rule against JAX's own derivative of the loop, in every mode that JAX has, for every kind of GRU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grujax import GRUSpec
from grujax.kernels import gru_sequence, table
from grujax.kernels.derivative import Chunks
from grujax.testing import assert_trees_close
from grujax.types import Projection

T, B, I, H = 5, 3, 4, 2
RNG = np.random.default_rng(0)
ARRAYS = ("x", "w_ih", "bias", "h0", "w_hh", "b_hn")
SHAPES = {"x": (T, B, I), "w_ih": (I, 3 * H), "bias": (3 * H,), "h0": (B, H), "w_hh": (H, 3 * H), "b_hn": (H,)}
SHAPES |= {"h_reset": (H,), "gates_x": (T, B, 3 * H)}
VALID = jnp.asarray([[1, 0, 1], [1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
RESET = jnp.asarray([[0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1]], bool)
STEPS = {"valid": VALID, "reset": RESET}
STATE_MASK = jnp.asarray(2.0 * RNG.integers(0, 2, (B, H)))
HOLD = jnp.asarray(RNG.uniform(size=(T, B, H)))
HELD = jnp.asarray(1.0 * (RNG.uniform(size=(T, B, H)) < 0.3))  # zoneout in training: a unit moves or it does not
EVERYTHING = STEPS | {"state_mask": STATE_MASK, "hold": HELD}


def draw():
    return {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in SHAPES.items()}


PRIMALS, TANGENTS, WEIGH = draw(), draw(), jnp.asarray(RNG.normal(size=(T, B, H)))
GATES = RNG.normal(size=(3, T, B, H))
CASES = {
    "plain, after": (GRUSpec(), {}),
    "plain, before": (GRUSpec(False), {}),
    "masks, after": (GRUSpec(), STEPS),
    "masks, before": (GRUSpec(False), STEPS),
    "everything": (GRUSpec(False, None, "take", "softsign", "sigmoid", 1.2), EVERYTHING),
    "relu, hard sigmoid": (GRUSpec(activation="relu", gate_activation="hard_sigmoid"), STEPS),
    "clip": (GRUSpec(clip=0.8), {}),
    "state mask, after": (GRUSpec(), {"state_mask": STATE_MASK}),
    "state mask, before": (GRUSpec(False), {"state_mask": STATE_MASK}),
    "hold": (GRUSpec(), {"hold": HOLD}),
    "hold, take": (GRUSpec(update="take"), {"hold": HELD}),
}
"""What is static and what steers the steps."""


AT_ONCE = Chunks(None, emitted=True)
CHUNKS = {
    "chunks": Chunks(2, emitted=False),
    "chunks of what is emitted": Chunks(2, emitted=True),
    "at once, the gates made anew": Chunks(None, emitted=False),
}
RULES = (*(name for name, kernel in table.KERNELS.items() if kernel.differentiated), *CHUNKS)
"""The loops under the rule; with CHUNKS it is "fused", where there are some two steps at once and a rest of one."""


def recurrence(case, implementation):
    spec, control = CASES[case]

    def f(given):
        start = {"h_reset": given["h_reset"]} if "reset" in control else {}
        x, w_ih, bias, *arrays = [given[name] for name in ARRAYS]
        name = "fused" if implementation in CHUNKS else implementation
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(table, "chunks_of", lambda sizes: CHUNKS.get(implementation, AT_ONCE))
            return gru_sequence(Projection(x, w_ih, bias), *arrays, **start, **control, spec=spec, implementation=name)

    return f


def rules(case):
    kernels = table.KERNELS
    return [rule for rule in RULES if rule in CHUNKS or kernels[rule].refuses(CASES[case][0], False) is None]


def jacobians(case):
    """Every loop under torch's GRU and all that steers it; of the variants, which are the rule's affair, one."""
    plain = CASES[case][0] in (GRUSpec(), GRUSpec(False))
    return rules(case) if plain and case != "masks, before" else ["fused"]


def loss(f):
    def scalar(given):
        hs, h_last = f(given)
        return (hs * WEIGH).sum() + h_last.sum()

    return scalar


def along(tree):
    return sum(jnp.vdot(tree[name], TANGENTS[name]) for name in tree)


def products(f):
    """The Hessian of the loss times TANGENTS, in the three ways that give all of it."""
    g = loss(f)
    return {
        "forward over reverse": jax.jvp(jax.grad(g), (PRIMALS,), (TANGENTS,))[1],
        "reverse over forward": jax.grad(lambda p: jax.jvp(g, (p,), (TANGENTS,))[1])(PRIMALS),
        "reverse over reverse": jax.grad(lambda p: along(jax.grad(g)(p)))(PRIMALS),
    }


FIRST = {
    "grad": lambda f: jax.grad(loss(f))(PRIMALS),
    "jvp": lambda f: jax.jvp(f, (PRIMALS,), (TANGENTS,)),
    "remat": lambda f: jax.grad(loss(jax.checkpoint(f)))(PRIMALS),
}


def compiled(f):
    """XLA's own optimisations are not what is tested here, and take most of the time."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})()


@pytest.mark.parametrize("case", list(CASES)[:4])
def test_the_rule_equals_scan(case):
    def run(implementation):
        return {mode: of(recurrence(case, implementation)) for mode, of in FIRST.items()}

    expected = compiled(lambda: run("scan"))
    for rule in rules(case):
        assert_trees_close(compiled(lambda rule=rule: run(rule)), expected, "gradient")


@pytest.mark.parametrize("case", CASES)
def test_both_jacobians_are_those_of_scan(case):
    expected = compiled(lambda: jax.jacrev(recurrence(case, "scan"))(PRIMALS))
    for rule in jacobians(case):
        for jacobian in (jax.jacrev, jax.jacfwd):
            found = compiled(lambda jacobian=jacobian, rule=rule: jacobian(recurrence(case, rule))(PRIMALS))
            assert_trees_close(found, expected, "gradient")


@pytest.mark.parametrize("case", list(CASES)[:6])
def test_hessian_products_are_those_of_scan_in_all_three_ways(case):
    expected = compiled(lambda: products(recurrence(case, "scan"))["forward over reverse"])
    assert all(expected[name].any() for name in ARRAYS)
    for rule in jacobians(case):
        for found in compiled(lambda rule=rule: products(recurrence(case, rule))).values():
            assert_trees_close(found, expected, "gradient")


def test_gates_from_outside_and_gates_handed_out_have_their_derivatives():
    """The door with gates in place of the input, and r, z and n as outputs: the rule against JAX's own derivative."""

    def run(implementation):
        def f(given):
            arrays = [given[name] for name in ("gates_x", "h0", "w_hh", "b_hn")]
            control = STEPS | {"state_mask": STATE_MASK, "h_reset": given["h_reset"]}
            return gru_sequence(*arrays, **control, implementation=implementation, with_gates=True)

        def scalar(given):
            hs, h_last, gates = f(given)
            told = sum(
                (g * w).sum() for g, w in zip(gates, jnp.asarray(GATES * np.asarray(VALID)[..., None]), strict=True)
            )
            return (hs * WEIGH).sum() + h_last.sum() + told

        return {"jvp": jax.jvp(scalar, (PRIMALS,), (TANGENTS,)), "grad": jax.grad(scalar)(PRIMALS)}

    expected = compiled(lambda: run("scan"))
    assert_trees_close(compiled(lambda: run("fused")), expected, "gradient")
    assert all(expected["grad"][name].any() for name in ("gates_x", "h0", "w_hh", "b_hn", "h_reset"))


def test_what_is_not_differentiated_costs_no_product():
    """The gradient of the input alone makes no weight gradient, nor the other way round."""

    def products(*names):
        def f(some):
            return loss(recurrence("plain, after", "fused"))(PRIMALS | some)

        return str(jax.make_jaxpr(jax.grad(f))({name: PRIMALS[name] for name in names})).count("dot_general")

    both, x, weights = products("x", "w_ih", "w_hh"), products("x"), products("w_ih", "w_hh")
    assert x < both and weights < both


@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_the_masks_of_regularisation_have_no_derivative(implementation):
    arrays = [PRIMALS[name] for name in ("gates_x", "h0", "w_hh", "b_hn")]

    def f(masks):
        return loss(lambda _: gru_sequence(*arrays, **masks, implementation=implementation))(None)

    for gradient in jax.grad(f)({"state_mask": STATE_MASK, "hold": HOLD}).values():
        np.testing.assert_array_equal(gradient, 0)
