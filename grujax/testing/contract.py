"""The contract that every kernel must pass: values and gradients equal to the oracle, in cases that cover all pairs.

Every pair of values of two properties of a call is in at least one case. To test a kernel:

from functools import partial
from grujax import kernels
from grujax.testing import CASES, assert_serves

for case in CASES.values():
    assert_serves(partial(kernels.run, implementation="mine"), case)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax import equations
from grujax.testing.tolerances import assert_close
from grujax.types import Control, GRUSpec, GRUWeights, Recurrence, Result

Run = Callable[..., list[Result]]
"""A function with the arguments of `grujax.kernels.run` without `implementation`."""


class Case(NamedTuple):
    """A call of the contract: the variant, the sizes, the control arrays, and the layout and dtype of the arrays."""

    spec: GRUSpec = GRUSpec()
    sizes: tuple[int, int, int, int] = (5, 3, 4, 2)  # T, B, I, H
    given: tuple[str, ...] = ()  # the fields of `Control` that the call passes
    reverse: tuple[bool, ...] = (False,)  # for each recurrence of the call, whether it reads backwards
    time_major: bool = True
    plain: bool = False  # without biases and h0
    dtype: str = "float64"
    with_gates: bool = False


TAKE: dict[str, Any] = {"update": "take"}
OTHERS: dict[str, Any] = {"activation": "softsign", "gate_activation": "sigmoid", "clip": 1.2}
KINKS: dict[str, Any] = {"activation": "relu", "gate_activation": "hard_sigmoid"}
TORCH, TORCH_TAKE, CHO, CHO_TAKE = (
    GRUSpec(after, update=update) for after in (True, False) for update in ("keep", "take")
)
BEGIN = ("reset", "h_reset")
ALL = ("valid", *BEGIN, "state_mask", "hold")
SMALL: dict[str, Any] = {"dtype": "float32"}
HALF: dict[str, Any] = {"dtype": "bfloat16"}
BATCH_MAJOR: dict[str, Any] = {"time_major": False}
BACK: dict[str, Any] = {"reverse": (True,)}
BOTH: dict[str, Any] = {"reverse": (False, True)}
PLAIN: dict[str, Any] = {"plain": True}
GATES: dict[str, Any] = {"with_gates": True}
CASES: dict[str, Case] = {
    "take, others": Case(GRUSpec(**TAKE, **OTHERS), given=(*BEGIN, "hold"), **BATCH_MAJOR, **PLAIN, **SMALL, **GATES),
    "take, others, both": Case(GRUSpec(**TAKE, **OTHERS), given=("hold",), **BOTH, **GATES),
    "take, all that acts on the state": Case(TORCH_TAKE, (9, 7, 5, 13), ALL, **SMALL),
    "torch": Case(TORCH, (6, 5, 2, 3), ("valid", "reset", "hold"), **BATCH_MAJOR, **GATES),
    "kinks, both": Case(GRUSpec(**KINKS), given=(*BEGIN, "hold"), **BOTH, **PLAIN),
    "others, one unit": Case(GRUSpec(**OTHERS), (4, 1, 1, 1), ("valid", *BEGIN), **PLAIN),
    "others, both": Case(GRUSpec(**OTHERS), given=("state_mask",), **BOTH, **BATCH_MAJOR, **PLAIN),
    "others, one step": Case(GRUSpec(**OTHERS), (1, 3, 2, 5), ("reset",), **SMALL, **GATES),
    "others, back": Case(GRUSpec(**OTHERS), (6, 2, 3, 5), ("valid", *BEGIN), **BACK, **PLAIN, **HALF),
    "Cho, take": Case(CHO_TAKE, given=("valid", "state_mask"), **GATES),
    "Cho, take, both": Case(CHO_TAKE, given=("reset", "state_mask"), **BOTH, **BATCH_MAJOR, **PLAIN),
    "Cho, others, both": Case(
        GRUSpec(False, **OTHERS), given=("valid", *BEGIN), **BOTH, **BATCH_MAJOR, **SMALL, **GATES
    ),
    "normalised, others": Case(GRUSpec(layer_norm=True, **OTHERS), given=("state_mask",), **PLAIN, **SMALL, **GATES),
    "normalised, Cho, take": Case(
        GRUSpec(False, layer_norm=True, **TAKE), given=("valid", *BEGIN, "hold"), **BOTH, **BATCH_MAJOR
    ),
    "normalised, back": Case(GRUSpec(layer_norm=True), given=("hold",), **BACK, **HALF),
    "no steps": Case(sizes=(0, 3, 4, 2), given=("valid", "reset"), **GATES),
    "no rows": Case(sizes=(4, 0, 3, 2), given=("valid",), **BATCH_MAJOR),
    # Sizes around the edges of vectors (4 to 16 units) and tiles (4 or 8 rows); more than 64 rows.
    "one unit": Case(CHO, (5, 2, 3, 1), ALL, **BOTH, **SMALL),
    "15 units": Case(CHO, (9, 7, 3, 15), ALL, **BACK, **BATCH_MAJOR, **SMALL, **GATES),
    "16 units": Case(TORCH, (5, 8, 4, 16), ALL, **BOTH, **BATCH_MAJOR, **SMALL),
    "17 units": Case(TORCH_TAKE, (6, 9, 17, 17), ("valid", "hold"), **BACK, **SMALL, **GATES),
    "33 units, 65 rows": Case(CHO_TAKE, (7, 65, 5, 33), ALL, **BOTH, **BATCH_MAJOR, **SMALL),
    # Calls that do not pack their weights: fewer than 8 rows times steps, and whole vectors.
    "few": Case(TORCH, (3, 2, 3, 16), ("valid", *BEGIN, "state_mask"), **BOTH, **SMALL, **GATES),
    "few, one row": Case(TORCH_TAKE, (5, 1, 2, 32), ("reset", "hold"), **PLAIN),
    "few, seven rows": Case(TORCH, (1, 7, 9, 16), ALL, **BOTH, **SMALL),
    "few, Cho": Case(CHO, (2, 3, 9, 17), ("valid", *BEGIN), **BACK, **SMALL),
    "few, threads": Case(TORCH, (2, 3, 17, 384), ("valid", *BEGIN), **SMALL),
    "few, bfloat16": Case(TORCH, (3, 2, 5, 32), ("valid", *BEGIN, "state_mask"), **BOTH, **BATCH_MAJOR, **HALF),
    "few, bfloat16, part": Case(TORCH_TAKE, (1, 7, 4, 17), ("reset", "hold"), **HALF, **GATES),
    # One row: the inputs of 64 steps are projected at once.
    "one row": Case(CHO, (70, 1, 3, 17), ("valid", *BEGIN), **BACK, **GATES),
    # Enough work for several threads: one row; divided by columns; by rows; by columns because the weights fill the
    # cache. The backward pass processes about 384 rows of all steps at once.
    "threads, one row": Case(TORCH, (400, 1, 17, 49), ("valid", *BEGIN, "state_mask"), **SMALL),
    "threads, one row, Cho": Case(CHO_TAKE, (130, 1, 17, 65), ("reset", "hold"), **BATCH_MAJOR, **SMALL),
    "threads, columns": Case(TORCH_TAKE, (50, 9, 17, 49), ALL, **BATCH_MAJOR, **SMALL, **GATES),
    "threads, columns, Cho": Case(CHO, (50, 9, 17, 49), ALL, **BACK, **SMALL),
    "threads, rows": Case(TORCH, (30, 17, 17, 33), ALL, **BATCH_MAJOR, **SMALL),
    "threads, rows, Cho": Case(CHO_TAKE, (30, 17, 17, 33), (*BEGIN, "hold"), **BACK, **GATES),
    "threads, wide": Case(TORCH, (3, 130, 3, 300), ("valid", "reset"), **SMALL),
    # Pairs of bfloat16: an odd number of features is padded.
    "bfloat16": Case(TORCH, (6, 9, 4, 16), **BOTH, **HALF, **PLAIN),
    "bfloat16, odd": Case(TORCH_TAKE, (6, 7, 3, 15), ALL, **BOTH, **BATCH_MAJOR, **HALF, **GATES),
    "bfloat16, Cho": Case(CHO, (5, 8, 5, 33), ALL, **BATCH_MAJOR, **HALF, **GATES),
    "bfloat16, one row": Case(TORCH, (70, 1, 5, 17), ("reset", "state_mask"), **HALF),
    "bfloat16, threads": Case(TORCH, (30, 17, 17, 33), ("valid", *BEGIN), **BACK, **HALF),
    "bfloat16, threads, Cho": Case(CHO_TAKE, (50, 9, 17, 49), ("valid", "hold"), **HALF),
}
"""The cases by name. tests/kernels/test_contract.py checks that they cover all pairs."""


class Drawn(NamedTuple):
    """The arrays of one recurrence in float64, rounded to what float32 (in bfloat16 cases: bfloat16) can represent."""

    x: NDArray  # (T, B, I), NaN at steps that are not valid
    h0: NDArray | None
    weights: dict[str, NDArray]
    control: dict[str, NDArray]
    dhs: NDArray
    dh_last: NDArray


def draw(case: Case, rng: np.random.Generator) -> Drawn:
    """Draws the arrays of a case at random."""
    n_steps, n_rows, n_features, hidden_size = case.sizes
    columns, state = 3 * hidden_size, (n_rows, hidden_size)

    def rounded(a: NDArray) -> NDArray:
        dtype = jnp.bfloat16 if case.dtype == "bfloat16" else np.float32
        return a if a.dtype == bool else a.astype(dtype).astype(np.float64)

    def normal(*shape: int) -> NDArray:
        return rounded(rng.normal(size=shape))

    scale = 1 / np.sqrt(hidden_size)
    weights = {"w_ih": normal(n_features, columns) * 0.5, "w_hh": normal(hidden_size, columns) * scale * 0.75}
    if not case.plain:
        weights |= {"b_ih": normal(columns), "b_hh": normal(columns)}
    if case.spec.layer_norm:
        weights |= {"scale_ih": 1 + 0.3 * normal(columns), "scale_hh": 1 + 0.3 * normal(columns)}
    control = {
        "valid": rng.random((n_steps, n_rows)) < 0.7,
        "reset": rng.random((n_steps, n_rows)) < 0.4,
        "h_reset": normal(hidden_size),
        "state_mask": 1.25 * rng.integers(0, 2, state),
        "hold": rng.random((n_steps, n_rows, hidden_size)) * rng.integers(0, 2, (n_steps, n_rows, hidden_size)),
    }
    x = normal(n_steps, n_rows, n_features)
    if "valid" in case.given:
        control["valid"][:, 1:2] = False  # a sequence of length 0
        x[~control["valid"]] = np.nan
    weights = {name: rounded(a) for name, a in weights.items()}
    control = {name: rounded(a) for name, a in control.items() if name in case.given}
    h0 = None if case.plain else normal(*state)
    return Drawn(x, h0, weights, control, normal(n_steps, *state), normal(*state))


def assert_serves(run: Run, case: Case) -> None:
    """Raises `AssertionError` unless `run` returns the values and gradients of `grujax.equations`.

    Compares hs, h_last and, with_gates, r, z and n; and the gradients of sum(dhs * hs) + sum(dh_last * h_last) with
    respect to x, h0, the weights and h_reset. At steps that are not valid, hs and the gradient of x must be exactly 0,
    and the gates must be 0 within the tolerance. A case of dtype float64 needs `jax_enable_x64`.

    >>> from grujax import kernels
    >>> assert_serves(kernels.run, CASES["others, one step"])
    """
    rng = np.random.default_rng(sum(case.sizes) + len(case.given))
    drawn = [draw(case, rng) for _ in case.reverse]

    def as_jax(a: Any) -> Any:  # converted by NumPy, because JAX would compile a program for each shape
        dtype = jnp.dtype(case.dtype)
        return jax.tree.map(lambda a: jax.device_put(a.astype(a.dtype if a.dtype == bool else dtype)), a)

    def in_layout(a: Any) -> Any:
        return a if case.time_major else a.swapaxes(0, 1)

    def loss(arrays: list[dict], controls: list[dict], cotangents: list[tuple]) -> tuple[Any, list[Result]]:
        recurrences = [
            Recurrence(a["x"], GRUWeights(**a["weights"]), a["h0"], Control(**control | {"h_reset": a["h_reset"]}))
            for a, control in zip(arrays, controls, strict=True)
        ]
        options = {"reverse": case.reverse, "with_gates": case.with_gates, "time_major": case.time_major}
        results = run(recurrences, case.spec, **options)
        weighed = [
            (dhs.astype(result.hs.dtype) * result.hs).sum() + (dh_last.astype(result.hs.dtype) * result.h_last).sum()
            for result, (dhs, dh_last) in zip(results, cotangents, strict=True)
        ]
        return sum(weighed), results

    arrays = as_jax(
        [{"x": in_layout(d.x), "h0": d.h0, "weights": d.weights, "h_reset": d.control.get("h_reset")} for d in drawn]
    )
    controls = as_jax([{name: a for name, a in d.control.items() if name != "h_reset"} for d in drawn])
    cotangents = as_jax([(in_layout(d.dhs), d.dh_last) for d in drawn])
    # XLA's optimisations are not tested here, and they would take most of the time.
    compiled = jax.jit(jax.grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    gradients, results = compiled(arrays, controls, cotangents)
    for d, reverse, gradient, result in zip(drawn, case.reverse, gradients, results, strict=True):
        _assert_recurrence(case, d, reverse, gradient, result, in_layout)


def _assert_recurrence(
    case: Case, drawn: Drawn, reverse: bool, found: dict, result: Result, in_layout: Callable
) -> None:
    """Compares one recurrence. found: its gradients; result: its values."""
    n_steps, n_rows, _, hidden_size = case.sizes
    bias = np.zeros(3 * hidden_size)
    weights = {"b_ih": bias, "b_hh": bias} | drawn.weights
    h0 = np.zeros((n_rows, hidden_size)) if drawn.h0 is None else drawn.h0
    variant = equations.Variant(*(getattr(case.spec, name) for name in equations.Variant._fields))
    valid = drawn.control.get("valid", np.ones((n_steps, n_rows), bool))
    control = dict(drawn.control)
    if reverse and "reset" in control:
        control["reset"] = _entered_from_a_reset(control["reset"], valid)
    arguments: Any = {"x": drawn.x, "h0": h0, **weights, "variant": variant, "reverse": reverse, **control}
    expected = equations.sequence(**arguments)
    gradient = equations.sequence_backward(**arguments, dhs=drawn.dhs, dh_last=drawn.dh_last)

    def close(a: Any, b: Any, name: str, kind: Any = "forward") -> None:
        assert_close(a, b, kind, case.dtype, name)

    hs, dx = in_layout(np.asarray(result.hs)), in_layout(np.asarray(found["x"]))
    close(hs, expected.hs, "hs")
    close(result.h_last, expected.h_last, "h_last")
    assert not hs[~valid].any(), "hs: expected 0 at every step that is not valid"
    assert not dx[~valid].any(), "dx: expected 0 at every step that is not valid"
    returned = "arrays" if result.gates is not None else "None"
    assert (result.gates is not None) == case.with_gates, f"gates: found {returned} with with_gates={case.with_gates}"
    for name in "rzn" if case.with_gates else "":
        times, steps = range(n_steps), expected.steps[:: -1 if reverse else 1]
        gates = [np.where(valid[t][:, None], getattr(step, name), 0) for t, step in zip(times, steps, strict=True)]
        close(getattr(result.gates, name), np.array(gates).reshape(n_steps, n_rows, hidden_size), name)
    close(dx, gradient.x, "dx", "gradient")
    if found["h0"] is not None:
        close(found["h0"], gradient.h0, "dh0", "gradient")
    flat = found["weights"] | ({} if found["h_reset"] is None else {"h_reset": found["h_reset"]})
    for name, a in flat.items():
        close(a, getattr(gradient, name), f"d{name}", "gradient")


def _entered_from_a_reset(reset: NDArray, valid: NDArray) -> NDArray:
    """Where the state that enters a step in reverse is the initial one: the next valid step resets. (T, B) in time."""
    entered, begins = np.zeros_like(reset), np.zeros(reset.shape[1], bool)
    for t in reversed(range(len(reset))):
        entered[t], begins = begins, np.where(valid[t], reset[t], begins)
    return entered
