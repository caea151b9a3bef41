"""Tests every kernel of the table, also a new one, against the contract of kernels."""

from functools import partial
from itertools import combinations

import jax
import pytest
from implementations import HERE
from refusals import refused

from grujax import GRUSpec, equations, kernels
from grujax.kernels import explain, native
from grujax.kernels.table import KERNELS, Asked
from grujax.testing import CASES, Case, assert_serves


def asked(case):
    n_steps, n_rows, _, hidden_size = case.sizes
    return Asked(case.spec, case.dtype, (n_steps, n_rows, hidden_size), frozenset(case.given))


PAIRS = [(kernel, case) for kernel in KERNELS for case in CASES]
REFUSED = [(kernel, case) for kernel, case in PAIRS if KERNELS[kernel].refuses(asked(CASES[case]))]
SERVED = [(kernel, case) for kernel, case in PAIRS if kernel in HERE and (kernel, case) not in REFUSED]


def levels(case):
    """The properties of a case, by name."""
    spec = case.spec
    steering = {name: name in case.given for name in ("valid", "reset", "h_reset", "state_mask", "hold")}
    equations_of = {"reset_after": spec.reset_after, "update": spec.update, "layer_norm": spec.layer_norm}
    others = {"told": spec.activation == "tanh", "reverse": case.reverse, "time_major": case.time_major}
    return steering | equations_of | others | {"plain": case.plain, "dtype": case.dtype, "gates": case.with_gates}


def every(kernel, of, edges=()):
    """`edges`, and enough cases that a kernel serves to cover all that `of` finds in the levels of any of them."""
    served = {case: set(of(levels(CASES[case]).items())) for by, case in SERVED if by == kernel}
    chosen, missing = [*edges], set().union(*served.values())
    while missing:
        chosen.append(max(served, key=lambda case: len(served[case] & missing)))
        missing -= served[chosen[-1]]
    return chosen


IN_A_STEP = {"valid", "reset", "h_reset", "state_mask", "hold", "reset_after", "update"}


def alone_or_in_a_step(items):
    """Each level, and each pair of levels that act in the equations of a step."""
    return [*items, *(pair for pair in combinations(items, 2) if dict(pair).keys() <= IN_A_STEP)]


def alone_or_normalised(items):
    """Each level, and layer normalisation with each level that acts in a step."""
    beside = [item for item in items if item[0] in IN_A_STEP]
    return [*items, *((("layer_norm", True), item) for item in beside if ("layer_norm", True) in items)]


QUICK = {
    "xla": every("xla", alone_or_in_a_step, ["no steps", "no rows", "few, one row"]),
    "autodiff": every("autodiff", alone_or_normalised),
}
"""Most cases exist for the sizes at which the native kernel takes another path. XLA's loop has one path for all sizes
but a single row, and order.py handles the order of steps and axes (core/test_lengths_and_resets.py, test_layouts.py).
autodiff runs the same steps; only normalisation and the derivative, which JAX derives, are its own."""


@pytest.mark.parametrize(
    ("kernel", "case"),
    [
        pytest.param(kernel, case, marks=[] if case in QUICK.get(kernel, CASES) else pytest.mark.slow)
        for kernel, case in SERVED
    ],
)
def test_values_and_gradients_are_those_of_the_oracle(kernel, case):
    assert_serves(partial(kernels.run, implementation=kernel), CASES[case])


@pytest.mark.parametrize(("kernel", "case"), REFUSED)
def test_what_a_kernel_cannot_serve_is_refused_by_name(kernel, case):
    with refused(f"implementation={kernel!r} cannot serve this call", "Pass None"):
        explain(implementation=kernel, **asked(CASES[case])._asdict())


def test_every_pair_of_what_varies_is_in_a_case():
    all_levels = [levels(case) for case in CASES.values()]
    for a, b in combinations(all_levels[0], 2):
        expected = {(x, y) for x in {of[a] for of in all_levels} for y in {of[b] for of in all_levels}}
        expected -= {(False, True)} if (a, b) == ("reset", "h_reset") else set()  # h_reset has no effect without resets
        assert {(of[a], of[b]) for of in all_levels} == expected, (a, b)


def test_a_wrong_kernel_fails():
    """A halved h_last and a lost gradient are both detected."""

    def wrong_value(*args, **options):
        return [result._replace(h_last=result.h_last / 2) for result in kernels.run(*args, **options)]

    def wrong_gradient(recurrences, *args, **options):
        return kernels.run([of._replace(x=jax.lax.stop_gradient(of.x)) for of in recurrences], *args, **options)

    for run, name in ((wrong_value, "h_last"), (wrong_gradient, "dx")):
        with pytest.raises(AssertionError, match=name):
            assert_serves(run, Case())


DEFAULTS = {"native": Case(), "xla": Case(GRUSpec(activation="relu")), "autodiff": Case(GRUSpec(layer_norm=True))}


@pytest.mark.parametrize("kernel", DEFAULTS)
def test_each_kernel_where_it_is_the_default(kernel):
    if kernel == "native" and native.status()[0] is None:
        pytest.skip(native.status()[1])
    (n_steps, n_rows, _, hidden_size), spec = DEFAULTS[kernel].sizes, DEFAULTS[kernel].spec
    found = explain(spec=spec, sizes=(n_steps, n_rows, hidden_size), dtype="float64", platform="cpu")
    assert found.implementation == kernel and found.reason != "named by the caller"
    assert_serves(kernels.run, DEFAULTS[kernel])


def test_the_oracle_has_the_fields_of_the_spec_that_change_an_equation():
    beside = {"precision", "layer_norm"}  # precision only affects products; the scales imply layer_norm
    assert set(equations.Variant._fields) == set(GRUSpec._fields) - beside
    assert equations.Variant()._asdict().items() <= GRUSpec()._asdict().items()
