"""What any kernel must pass: values and gradients against the oracle, in cases that cover all pairs of what varies.

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
"""A function with the arguments of `grujax.kernels.run` but `implementation`."""


class Case(NamedTuple):
    """One call: the equations, the sizes, which steps count, and how the arrays are handed over."""

    spec: GRUSpec = GRUSpec()
    sizes: tuple[int, int, int, int] = (5, 3, 4, 2)  # T, B, I, H
    given: tuple[str, ...] = ()  # fields of `Control` that the call has
    directions: int = 1  # how many recurrences go in one call
    time_major: bool = True
    plain: bool = False  # without biases and h0
    dtype: str = "float64"
    with_gates: bool = False


TAKE: dict[str, Any] = {"update": "take"}
OTHERS: dict[str, Any] = {"activation": "softsign", "gate_activation": "sigmoid", "clip": 1.2}
KINKS: dict[str, Any] = {"activation": "relu", "gate_activation": "hard_sigmoid"}
BEGIN = ("reset", "h_reset")
SMALL: dict[str, Any] = {"dtype": "float32"}
BATCH_MAJOR: dict[str, Any] = {"time_major": False}
TWO: dict[str, Any] = {"directions": 2}
PLAIN: dict[str, Any] = {"plain": True}
GATES: dict[str, Any] = {"with_gates": True}
CASES: dict[str, Case] = {
    "take, others": Case(GRUSpec(**TAKE, **OTHERS), given=(*BEGIN, "hold"), **BATCH_MAJOR, **PLAIN, **SMALL, **GATES),
    "take, others, two": Case(GRUSpec(**TAKE, **OTHERS), given=("hold",), **TWO, **GATES),
    "take, all that acts on the state": Case(
        GRUSpec(**TAKE), (9, 7, 5, 13), ("valid", *BEGIN, "state_mask", "hold"), **SMALL
    ),
    "torch": Case(GRUSpec(), (6, 5, 2, 3), ("valid", "reset", "hold"), **BATCH_MAJOR, **GATES),
    "kinks, two": Case(GRUSpec(**KINKS), given=(*BEGIN, "hold"), **TWO, **PLAIN),
    "others, one unit": Case(GRUSpec(**OTHERS), (4, 1, 1, 1), ("valid", *BEGIN), **PLAIN),
    "others, two": Case(GRUSpec(**OTHERS), given=("state_mask",), **TWO, **BATCH_MAJOR, **PLAIN),
    "others, one step": Case(GRUSpec(**OTHERS), (1, 3, 2, 5), ("reset",), **SMALL, **GATES),
    "Cho, take": Case(GRUSpec(False, **TAKE), given=("valid", "state_mask"), **GATES),
    "Cho, take, two": Case(GRUSpec(False, **TAKE), given=("reset", "state_mask"), **TWO, **BATCH_MAJOR, **PLAIN),
    "Cho, others, two": Case(GRUSpec(False, **OTHERS), given=("valid", *BEGIN), **TWO, **BATCH_MAJOR, **SMALL, **GATES),
    "normalised, others": Case(GRUSpec(layer_norm=True, **OTHERS), given=("state_mask",), **PLAIN, **SMALL, **GATES),
    "normalised, Cho, take": Case(
        GRUSpec(False, layer_norm=True, **TAKE), given=("valid", *BEGIN, "hold"), **TWO, **BATCH_MAJOR
    ),
    "no steps": Case(sizes=(0, 3, 4, 2), given=("valid", "reset"), **GATES),
    "no rows": Case(sizes=(4, 0, 3, 2), given=("valid",), **BATCH_MAJOR),
}
"""By name. Every pair of what varies is in one case at least (tests/kernels/test_contract.py counts)."""


class Drawn(NamedTuple):
    """The arrays of one recurrence, NumPy: float64 that float32 holds too, none of them zero."""

    x: NDArray  # (T, B, I), NaN at steps that are not valid
    h0: NDArray | None
    weights: dict[str, NDArray]
    control: dict[str, NDArray]
    dhs: NDArray
    dh_last: NDArray


def assert_serves(run: Run, case: Case) -> None:
    """Raises `AssertionError` unless `run` gives the values and gradients of `grujax.equations`.

    hs, h_last and, with_gates, r, z and n; the gradients of sum(dhs * hs) + sum(dh_last * h_last) by x, h0, the weights
    and h_reset. hs, the gates and the gradient by x are exactly 0 at steps that are not valid. A case of dtype float64
    needs `jax_enable_x64`.

    >>> from grujax import kernels
    >>> assert_serves(kernels.run, CASES["others, one step"])
    """
    rng = np.random.default_rng(sum(case.sizes) + len(case.given))
    assert_equals_the_oracle(run, case, [draw(case, rng) for _ in range(case.directions)])


def draw(case: Case, rng: np.random.Generator) -> Drawn:
    """The arrays of a case at random."""
    n_steps, n_rows, n_features, hidden_size = case.sizes
    columns, state = 3 * hidden_size, (n_rows, hidden_size)

    def normal(*shape: int) -> NDArray:
        return rng.normal(size=shape).astype(np.float32).astype(np.float64)

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
    weights = {name: a.astype(np.float32).astype(np.float64) for name, a in weights.items()}
    control = {name: a for name, a in control.items() if name in case.given}
    h0 = None if case.plain else normal(*state)
    return Drawn(x, h0, weights, control, normal(n_steps, *state), normal(*state))


def assert_equals_the_oracle(run: Run, case: Case, drawn: list[Drawn], rows: NDArray | None = None) -> None:
    """`assert_serves` on given arrays; only `rows` are in the loss, for sizes that are large for NumPy."""
    rows = np.arange(case.sizes[1]) if rows is None else rows
    in_loss = np.isin(np.arange(case.sizes[1]), rows)[:, None]
    drawn = [of._replace(dhs=of.dhs * in_loss, dh_last=of.dh_last * in_loss) for of in drawn]

    def as_jax(a: Any) -> Any:
        return jax.tree.map(lambda a: jnp.asarray(a, a.dtype if a.dtype == bool else case.dtype), a)

    def lie(a: Any) -> Any:
        return a if case.time_major else a.swapaxes(0, 1)

    def loss(given: list[dict], steering: list[dict], directions: list[tuple]) -> tuple[Any, list[Result]]:
        recurrences = [
            Recurrence(of["x"], GRUWeights(**of["weights"]), of["h0"], Control(**steers | {"h_reset": of["h_reset"]}))
            for of, steers in zip(given, steering, strict=True)
        ]
        results = run(recurrences, case.spec, with_gates=case.with_gates, time_major=case.time_major)
        weighed = [
            (dhs * result.hs).sum() + (dh_last * result.h_last).sum()
            for result, (dhs, dh_last) in zip(results, directions, strict=True)
        ]
        return sum(weighed), results

    given = as_jax(
        [{"x": lie(of.x), "h0": of.h0, "weights": of.weights, "h_reset": of.control.get("h_reset")} for of in drawn]
    )
    steering = as_jax([{name: a for name, a in of.control.items() if name != "h_reset"} for of in drawn])
    weighing = as_jax([(lie(of.dhs), of.dh_last) for of in drawn])
    # XLA's own optimisations are not what is tested here, and would take most of the time.
    compiled = jax.jit(jax.grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    gradients, results = compiled(given, steering, weighing)
    for of, found, result in zip(drawn, gradients, results, strict=True):
        _assert_one(case, of, found, result, lie, rows)


def _assert_one(case: Case, drawn: Drawn, found: dict, result: Result, lie: Callable, rows: NDArray) -> None:
    n_steps, n_rows, _, hidden_size = case.sizes
    bias = np.zeros(3 * hidden_size)
    weights = {"b_ih": bias, "b_hh": bias} | drawn.weights
    h0 = np.zeros((n_rows, hidden_size)) if drawn.h0 is None else drawn.h0
    variant = equations.Variant(*(getattr(case.spec, name) for name in equations.Variant._fields))
    of_rows = {"h_reset": slice(None), "state_mask": rows}
    masks = {name: a[of_rows.get(name, (slice(None), rows))] for name, a in drawn.control.items()}
    arguments: Any = {"x": drawn.x[:, rows], "h0": h0[rows], **weights, "variant": variant, **masks}
    expected = equations.sequence(**arguments)
    gradient = equations.sequence_backward(**arguments, dhs=drawn.dhs[:, rows], dh_last=drawn.dh_last[rows])

    def close(a: Any, b: Any, name: str, kind: Any = "forward") -> None:
        assert_close(a, b, kind, case.dtype, name)

    hs, dx = np.asarray(lie(result.hs)), np.asarray(lie(found["x"]))
    close(hs[:, rows], expected.hs, "hs")
    close(np.asarray(result.h_last)[rows], expected.h_last, "h_last")
    valid = drawn.control.get("valid", np.ones((n_steps, n_rows), bool))
    assert not hs[~valid].any(), "hs: not 0 at a step that is not valid"
    assert not dx[~valid].any(), "dx: not 0 at a step that is not valid"
    assert (result.gates is not None) == case.with_gates, "gates: handed out unless asked for, or not where asked for"
    for name in "rzn" if case.with_gates else "":
        of_steps = [np.where(valid[t][rows, None], getattr(step, name), 0) for t, step in enumerate(expected.steps)]
        of_steps = np.array(of_steps).reshape(n_steps, len(rows), hidden_size)
        close(np.asarray(getattr(result.gates, name))[:, rows], of_steps, name)
    close(dx[:, rows], gradient.x, "dx", "gradient")
    if found["h0"] is not None:
        close(np.asarray(found["h0"])[rows], gradient.h0, "dh0", "gradient")
    flat = found["weights"] | ({} if found["h_reset"] is None else {"h_reset": found["h_reset"]})
    for name, a in flat.items():
        close(a, getattr(gradient, name), f"d{name}", "gradient")
