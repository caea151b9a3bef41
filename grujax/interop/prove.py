"""Proves conversions: runs grujax and the other framework on the same random data and compares their outputs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import ArrayLike
from numpy.typing import NDArray

from grujax.core.config import input_size_of
from grujax.errors import require, require_equal
from grujax.linen import GRU, MODELS, GRUCell, Module
from grujax.testing.tolerances import tolerances_used
from grujax.types import state_dtype

OWN_ERRORS = 4
"""Where rounding is large, the other side may be this many times as far from the exact outputs as grujax is."""
TWO_SIZES = ((3, 7), (2, 5))
"""B and T of the data, where a function is identified by its outputs: at one size alone two may agree by chance."""
LONG = (2, 40)
"""A third size. It reveals a function that reads only the last ten steps, or that clips its input."""
STEADY = 1e-4
"""`LONG` is left out if rounding exceeds this: with very large weights it grows without bound and hides differences."""
GROWTH = 0.2
"""The growth of x per step, if it grows."""
FIND = "grujax.interop.find lists the GRUs in it; prefix= takes one of them out."

log = logging.getLogger("grujax.interop")


class Runner(NamedTuple):
    """Runs a model in the other framework.

    call: takes NumPy arrays, x (B, T, I), h0 (L*D, B, H) and lengths (B,); a cell takes x (B, I) and h0 (B, H). It
    returns those of "output", "h_last" and "y" (of the head) that the framework returns.
    takes_h0, takes_lengths: if False, `call` gets None for that argument.
    """

    call: Callable[[NDArray, NDArray | None, NDArray | None], Mapping[str, Any]]
    takes_h0: bool = True
    takes_lengths: bool = False


class Difference(NamedTuple):
    """The largest absolute difference of all outputs, and the largest in units of the tolerance table (limit: 1)."""

    largest: float
    tolerances: float


def sizes(model: Any, variables: Mapping) -> tuple[int, int, int]:
    """I, H and L*D of a model; a cell has L*D = 1."""
    require(isinstance(model, Module), "model", f"one of {sorted(MODELS)} of grujax", type(model).__name__)
    params: dict[tuple[str, ...], Any] = flatten_dict(dict(variables["params"]))
    shapes = {path: a.shape for path, a in params.items()}
    n_states = 1 if isinstance(model, GRUCell) else model.num_states
    rows = shapes[min(path for path in shapes if path[-1] == "w_ih")][0]
    return input_size_of(model, rows), model.hidden_size, n_states


def outputs(model: Any, variables: Mapping, x: ArrayLike, h0: ArrayLike | None, lengths: ArrayLike | None) -> dict:
    """All outputs of a model, under the names of `Runner` and batch-major like the arguments."""
    model = model.clone(time_major=False) if getattr(model, "time_major", False) else model
    x, h0 = jnp.asarray(x), None if h0 is None else jnp.asarray(h0)
    if isinstance(model, GRUCell):
        carry = model.initialize_carry(jax.random.key(0), x.shape) if h0 is None else h0
        return {"h_last": model.apply(variables, carry, x)[0]}
    if isinstance(model, GRU):
        return dict(zip(("output", "h_last"), model.apply(variables, x, h0, lengths=lengths), strict=True))
    return dict(zip(("y", "h_last"), model.apply(variables, x, h0, lengths=lengths, return_state=True), strict=True))


computed = jax.jit(outputs, static_argnums=0)
"""`outputs` as one program; outside jit, JAX would compile each operation separately."""


def data(
    model: Any,
    variables: Mapping,
    size: tuple[int, int],
    *,
    seed: int = 0,
    h0: bool = False,
    lengths: bool = False,
    grows: bool = False,
) -> tuple:
    """Random x (B, T, I), h0 (L*D, B, H) and lengths (B,); the latter two are None unless requested.

    grows: x starts with a standard deviation of 1, which grows by `GROWTH` per step."""
    rng, stored = np.random.default_rng(seed), jnp.dtype(model.param_dtype)
    input_size, hidden_size, n_states = sizes(model, variables)
    x = rng.normal(size=(*size, input_size)) * (1 + GROWTH * grows * np.arange(size[1])[:, None])
    x = x.astype(coarser(model))
    if "input_mean" in variables.get("statistics", {}):  # raw inputs, as in training
        mean, std = (np.asarray(variables["statistics"][f"input_{s}"]) for s in ("mean", "std"))
        x = (x * std + mean).astype(x.dtype)
    states = rng.normal(size=(n_states, size[0], hidden_size)).astype(state_dtype(model.dtype or stored))
    counts = np.maximum(size[1] - 3 * np.arange(size[0]), 1).astype(np.int32)
    x, states = (x[:, 0], states[0]) if isinstance(model, GRUCell) else (x, states)
    return x, states if h0 else None, counts if lengths else None


def proof_sizes(model: Any, variables: Mapping) -> list[tuple[int, int]]:
    """`TWO_SIZES`, and also `LONG` if the model computes the same on it in float32 and float64."""
    given = data(model, variables, LONG, h0=isinstance(model, GRUCell), grows=True)
    with jax.enable_x64(True):
        states = []
        for dtype in (jnp.float32, jnp.float64):
            weights, x, h0 = jax.tree.map(lambda a: np.asarray(a, dtype), (variables, *given[:2]))  # noqa: B023
            h_last = computed(model.clone(dtype=dtype, param_dtype=dtype), weights, x, h0, None)["h_last"]
            states.append(np.asarray(h_last, np.float64))
    finite = all(np.isfinite(a).all() for a in states)
    steady = finite and bool(np.abs(states[0] - states[1]).max() < STEADY * max(1.0, np.abs(states[1]).max()))
    return [*TWO_SIZES, *[LONG] * steady]


def coarser(model: Any) -> jnp.dtype:
    """The narrower of the dtypes in which a model stores its weights and computes."""
    stored = jnp.dtype(model.param_dtype)
    return min(stored, jnp.dtype(model.dtype or stored), key=lambda d: jnp.finfo(d).bits)


def compare(
    model: Any, variables: Mapping, runner: Runner, seed: int = 0, size: tuple[int, int] = TWO_SIZES[0]
) -> Difference:
    """Runs both sides on random data, with a random h0 and lengths if the runner takes them."""
    given = data(model, variables, size, seed=seed, h0=runner.takes_h0, lengths=runner.takes_lengths)
    return difference(model, variables, given, runner.call(*given))


def difference(
    model: Any,
    variables: Mapping,
    given: tuple,
    theirs: Mapping,
    shown: Callable[[Mapping], Mapping] = lambda ours: ours,
) -> Difference:
    """Compares the other side's outputs for `given`, (x, h0, lengths), with those of the model, name by name.

    shown: selects and arranges the model's outputs as the other side shows them.

    If the weights are so large that rounding alone exceeds the tolerance table, the limit is `OWN_ERRORS` times the
    distance of grujax's outputs from those in float64.
    """
    dtype, ours = coarser(model).name, shown(computed(model, variables, *given))
    result = _difference(theirs, ours, dtype)
    if result.tolerances <= 1:
        return result
    with jax.enable_x64(True):
        weights, x, h0 = jax.tree.map(lambda a: np.asarray(a, np.float64), (variables, *given[:2]))
        exact = shown(computed(model.clone(dtype=jnp.float64, param_dtype=jnp.float64), weights, x, h0, given[2]))
    mine, other = (_difference({name: a[name] for name in theirs}, exact, dtype) for a in (ours, theirs))
    return result._replace(tolerances=other.tolerances / max(1.0, OWN_ERRORS * mine.tolerances))


def _difference(found: Mapping, expected: Mapping, dtype: str) -> Difference:
    largest = used = 0.0
    for name in found:
        pairs = zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True)
        for a, e in ((np.asarray(side).astype(np.float64) for side in pair) for pair in pairs):
            require_equal(a.shape, e.shape, name)
            # Python's max() would ignore a NaN
            largest = np.maximum(largest, np.abs(a - e).max(initial=0))
            used = np.maximum(used, tolerances_used(a, e, dtype).max(initial=0))
    return Difference(float(largest), float(used))


def require_agreement(model: nn.Module, variables: Mapping, runner: Runner, argument: str) -> Difference:
    """Compares both sides, logs the difference and returns it; raises `InputError` if it exceeds the tolerances."""
    return agreed([compare(model, variables, runner)], argument)


def agreed(differences: Sequence[Difference], argument: str) -> Difference:
    """Logs the worst of several differences and returns it; raises `InputError` if it exceeds the tolerances."""
    worst = max(differences, key=lambda d: (not d.tolerances <= 1, d.largest))  # a NaN is the worst
    log.info("%s: largest difference %.3g", argument, worst.largest)
    remedy = "The conversion does not compute the same: please report it."
    equal = worst.tolerances <= 1
    require(equal, argument, "the same outputs from both sides", f"a difference of {worst.largest:.3g}", remedy)
    return worst
