"""The derivative rule against JAX's own derivative of the loop, in every mode of JAX, for every kind of GRU.

test_contract.py tests the gradients of every kernel against the oracle.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grujax import GRUSpec, GRUWeights
from grujax.kernels import run
from grujax.kernels.derivative import Chunks, under_the_rule
from grujax.kernels.order import as_read, in_time
from grujax.kernels.xla import loop
from grujax.testing import assert_trees_close
from grujax.types import Control, Recurrence

T, B, I, H = 5, 3, 4, 2
RNG = np.random.default_rng(0)
WEIGHTS = GRUWeights._fields[:4]
SHAPES = {"x": (T, B, I), "w_ih": (I, 3 * H), "w_hh": (H, 3 * H), "b_ih": (3 * H,), "b_hh": (3 * H,), "h0": (B, H)}
ARRAYS = tuple(SHAPES)
SHAPES |= {"h_reset": (H,)}
VALID = np.asarray([[1, 0, 1], [1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
RESET = np.asarray([[0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]], bool)
STEPS = {"valid": VALID, "reset": RESET}
STATE_MASK = 2.0 * RNG.integers(0, 2, (B, H))
HOLD = RNG.uniform(size=(T, B, H))
HELD = 1.0 * (RNG.uniform(size=(T, B, H)) < 0.3)  # zoneout in training: a unit is held or it is not
EVERYTHING = STEPS | {"state_mask": STATE_MASK, "hold": HELD}


def draw():
    return {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}


PRIMALS, TANGENTS, WEIGH = draw(), draw(), RNG.normal(size=(T, B, H))
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
"""The static spec, and the control arrays."""

CHUNKS = {
    "chunks": Chunks(2, kept=False),
    "chunks of what is kept": Chunks(2, kept=True),
    "at once, the gates made anew": Chunks(None, kept=False),
}
RULES = ("xla", *CHUNKS)
"""The loop under the rule. Two of the CHUNKS divide the five steps into twos and a remainder of one."""


def result_of(case, implementation, given, **options):
    spec, steps = CASES[case]
    control = Control(**steps, h_reset=given["h_reset"] if "reset" in steps else None)
    recurrence = Recurrence(given["x"], GRUWeights(*(given[name] for name in WEIGHTS)), given["h0"], control)
    if implementation not in CHUNKS:
        return run([recurrence], spec, implementation, **options)[0]
    read = as_read(recurrence, False, True)
    (result,) = under_the_rule(loop, [read], spec, False, CHUNKS[implementation])
    return in_time(result, control.valid, False, True)


def outputs(case, implementation):
    return lambda given: result_of(case, implementation, given)[:2]


def rules(case, all_rules=RULES):
    """The rules to test a case with: chunks too where steps are masked."""
    return all_rules if case == "masks, after" else ["xla"]


def loss(f):
    def scalar(given):
        hs, h_last = f(given)
        return (hs * WEIGH).sum() + h_last.sum()

    return scalar


def along(tree):
    return sum(jnp.vdot(tree[name], TANGENTS[name]) for name in tree)


WAYS = ["forward over reverse", "reverse over forward", "reverse over reverse"]


def hessian_product(f, way):
    """The product of the loss's Hessian and TANGENTS, in one of the three ways that give all of it."""
    g = loss(f)
    if way == "forward over reverse":
        return jax.jvp(jax.grad(g), (PRIMALS,), (TANGENTS,))[1]
    if way == "reverse over forward":
        return jax.grad(lambda p: jax.jvp(g, (p,), (TANGENTS,))[1])(PRIMALS)
    return jax.grad(lambda p: along(jax.grad(g)(p)))(PRIMALS)


def compiled(f):
    """Runs f, compiled without XLA's optimisations: they take most of the time and are not tested here."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})()


def test_a_loop_that_is_computed_again_has_the_same_gradient():
    def gradient(implementation, wrapped):
        return compiled(lambda: jax.grad(loss(wrapped(outputs("masks, after", implementation))))(PRIMALS))

    expected = gradient("autodiff", lambda f: f)
    for rule in ("xla", "chunks"):
        assert_trees_close(gradient(rule, jax.checkpoint), expected, "gradient")


@functools.cache
def of_autodiff(case):
    return compiled(lambda: jax.jacrev(outputs(case, "autodiff"))(PRIMALS))


REVERSED = ("masks, after", "everything")
"""Both values of `reset_after`: "everything" has False, as "plain, before" does."""

FORWARDS = (*REVERSED, "relu, hard sigmoid", "state mask, after", "hold, take")
"""Each static option and each control array at least once. Reverse mode is JAX's transpose of forward mode, and
test_contract.py tests the gradients of all pairs."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in FORWARDS else pytest.mark.slow) for case in CASES]
)
def test_the_jacobian_forwards_is_that_of_autodiff(case):
    for rule in rules(case, ("xla", "chunks")):  # what is kept for reverse mode makes no difference
        found = compiled(lambda rule=rule: jax.jacfwd(outputs(case, rule))(PRIMALS))
        assert_trees_close(found, of_autodiff(case), "gradient")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in REVERSED else pytest.mark.slow) for case in CASES]
)
def test_the_jacobian_in_reverse_is_that_of_autodiff(case):
    for rule in rules(case):
        found = compiled(lambda rule=rule: jax.jacrev(outputs(case, rule))(PRIMALS))
        assert_trees_close(found, of_autodiff(case), "gradient")


@pytest.mark.parametrize(
    ("case", "rule", "ways"),  # for chunks, the way that uses the derivative of the rule and its transpose
    [("masks, after", "chunks", ["forward over reverse"]), ("everything", "xla", WAYS)]
    + [
        pytest.param(name, rule, WAYS, marks=pytest.mark.slow)
        for name, rule in [("masks, after", "chunks"), *((name, "xla") for name in CASES if name != "everything")]
    ],
)
def test_hessian_products_are_those_of_autodiff_in_all_three_ways(case, rule, ways):
    expected = compiled(lambda: hessian_product(outputs(case, "autodiff"), "forward over reverse"))
    assert all(np.asarray(expected[name]).any() for name in ARRAYS)
    for found in compiled(lambda: [hessian_product(outputs(case, rule), way) for way in ways]):
        assert_trees_close(found, expected, "gradient")


def test_gates_that_are_handed_out_have_their_derivatives():
    def derivatives(implementation):
        def scalar(given):
            hs, h_last, gates, _ = result_of("everything", implementation, given, with_gates=True)
            of_gates = sum((g * w).sum() for g, w in zip(gates, GATES, strict=True))
            return (hs * WEIGH).sum() + h_last.sum() + of_gates

        return {"jvp": jax.jvp(scalar, (PRIMALS,), (TANGENTS,)), "grad": jax.grad(scalar)(PRIMALS)}

    expected = compiled(lambda: derivatives("autodiff"))
    assert_trees_close(compiled(lambda: derivatives("xla")), expected, "gradient")
    assert all(np.asarray(expected["grad"][name]).any() for name in (*ARRAYS, "h_reset"))


def test_what_is_not_differentiated_costs_no_product():
    """The gradient of x alone computes no weight gradient, and the weight gradients alone compute none of x."""

    def products(*names):
        def f(some):
            return loss(outputs("plain, after", "xla"))(PRIMALS | some)

        return str(jax.make_jaxpr(jax.grad(f))({name: PRIMALS[name] for name in names})).count("dot_general")

    both, x, weights = products("x", "w_ih", "w_hh"), products("x"), products("w_ih", "w_hh")
    assert x < both and weights < both


@pytest.mark.parametrize("implementation", ["xla", "autodiff"])
def test_the_masks_of_regularisation_have_no_derivative(implementation):
    weights = GRUWeights(*(PRIMALS[name] for name in WEIGHTS))

    def f(masks):
        (result,) = run([Recurrence(PRIMALS["x"], weights, PRIMALS["h0"], Control(**masks))], GRUSpec(), implementation)
        return (result.hs * WEIGH).sum()

    for gradient in jax.grad(f)({"state_mask": STATE_MASK, "hold": HOLD}).values():
        np.testing.assert_array_equal(gradient, 0)
