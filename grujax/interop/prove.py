"""The proof of a conversion: both sides run on the same random data."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
"""How many times as far from the exact outputs as grujax the other side may be, where rounding is large."""
TWO_SIZES = ((3, 7), (2, 5))
"""B and T of the proof where what the other side computes was found by trying: one size may agree by chance."""
LONG = (2, 40)
"""A third, in which what reads the last ten steps alone, or clips its input, shows."""
STEADY = 1e-4
"""The most that rounding may come to in it: where weights are so large that it grows without bound, nothing shows."""
GROWTH = 0.2
"""By how much x grows with each step there."""
FIND = "grujax.interop.find lists the GRUs in it; prefix= takes one of them out."

log = logging.getLogger("grujax.interop")


class Runner(NamedTuple):
    """How the other side runs. `call(x, h0, lengths)` takes NumPy arrays, x (B, T, I), h0 (L*D, B, H), lengths (B,); of
    a cell x (B, I) and h0 (B, H). It gives what it can of "output", "h_last" and "y" (the head's).

    takes_h0, takes_lengths: False where it has no such argument, which is then None.
    """

    call: Callable[[NDArray, NDArray | None, NDArray | None], Mapping[str, Any]]
    takes_h0: bool = True
    takes_lengths: bool = False


class Difference(NamedTuple):
    """The largest |theirs − ours| of all outputs, and in units of what the tolerance table allows (1 is its limit)."""

    largest: float
    tolerances: float


class Sizes(NamedTuple):
    """What a model reads and keeps: I, H, and L*D, which is 1 for a cell."""

    input_size: int
    hidden_size: int
    n_states: int


def sizes(model: Any, variables: Mapping) -> Sizes:
    require(isinstance(model, Module), "model", f"one of {sorted(MODELS)} of grujax", type(model).__name__)
    params: dict[tuple[str, ...], Any] = flatten_dict(dict(variables["params"]))
    shapes = {path: a.shape for path, a in params.items()}
    n_states = 1 if isinstance(model, GRUCell) else model.num_states
    rows = shapes[min(path for path in shapes if path[-1] == "w_ih")][0]
    return Sizes(input_size_of(model, rows), model.hidden_size, n_states)


def outputs(model: Any, variables: Mapping, x: ArrayLike, h0: ArrayLike | None, lengths: ArrayLike | None) -> dict:
    """All that the model gives, by the names of `Runner` and, as its arrays are, batch-major."""
    model = model.clone(time_major=False) if getattr(model, "time_major", False) else model
    found = _outputs(model, variables, x, h0, lengths)
    return {name: found[name] for name in ("output", "y", "h_last") if name in found}  # jit sorts the names


@partial(jax.jit, static_argnums=0, inline=True)
def _outputs(model: Any, variables: Mapping, x: ArrayLike, h0: ArrayLike | None, lengths: ArrayLike | None) -> dict:
    """One program for each model and each size."""
    x, h0 = jnp.asarray(x), None if h0 is None else jnp.asarray(h0)
    if isinstance(model, GRUCell):
        carry = model.initialize_carry(jax.random.key(0), x.shape) if h0 is None else h0
        return {"h_last": model.apply(variables, carry, x)[0]}
    if isinstance(model, GRU):
        return dict(zip(("output", "h_last"), model.apply(variables, x, h0, lengths=lengths), strict=True))
    found = model.apply(variables, x, h0, lengths=lengths, return_state=True)
    return dict(zip(("y", "h_last"), found, strict=True))


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
    """Random x (B, T, I), h0 (L*D, B, H) and lengths (B,), the latter two None unless they are asked for.

    grows: from step to step by `GROWTH`, from a standard deviation of 1 at the first."""
    rng, stored = np.random.default_rng(seed), jnp.dtype(model.param_dtype)
    input_size, hidden_size, n_states = sizes(model, variables)
    x = rng.normal(size=(*size, input_size)) * (1 + GROWTH * grows * np.arange(size[1])[:, None])
    x = x.astype(coarser(model))
    if "input_mean" in variables.get("statistics", {}):  # raw inputs, as the model has met them
        mean, std = (np.asarray(variables["statistics"][f"input_{s}"]) for s in ("mean", "std"))
        x = (x * std + mean).astype(x.dtype)
    states = rng.normal(size=(n_states, size[0], hidden_size)).astype(state_dtype(model.dtype or stored))
    counts = np.maximum(size[1] - 3 * np.arange(size[0]), 1).astype(np.int32)
    x, states = (x[:, 0], states[0]) if isinstance(model, GRUCell) else (x, states)
    return x, states if h0 else None, counts if lengths else None


def proof_sizes(model: Any, variables: Mapping) -> list[tuple[int, int]]:
    """`TWO_SIZES`, and `LONG` where the model in 32 bits still gives there what it gives in 64."""
    given = data(model, variables, LONG, h0=isinstance(model, GRUCell), grows=True)
    with jax.enable_x64(True):
        found = []
        for dtype in (jnp.float32, jnp.float64):
            of, x, h0 = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), (variables, *given[:2]))  # noqa: B023
            h_last = outputs(model.clone(dtype=dtype, param_dtype=dtype), of, x, h0, None)["h_last"]
            found.append(np.asarray(h_last, np.float64))
    finite = all(np.isfinite(a).all() for a in found)
    steady = finite and bool(np.abs(found[0] - found[1]).max() < STEADY * max(1.0, np.abs(found[1]).max()))
    return [*TWO_SIZES, *[LONG] * steady]


def coarser(model: Any) -> jnp.dtype:
    """Of what weights are stored in and what is computed in."""
    stored = jnp.dtype(model.param_dtype)
    return min(stored, jnp.dtype(model.dtype or stored), key=lambda d: jnp.finfo(d).bits)


def compare(
    model: Any, variables: Mapping, runner: Runner, seed: int = 0, size: tuple[int, int] = TWO_SIZES[0]
) -> Difference:
    """Runs both sides on random data, with a random h0 and lengths where they take them."""
    given = data(model, variables, size, seed=seed, h0=runner.takes_h0, lengths=runner.takes_lengths)
    return difference(model, variables, given, runner.call(*given))


def difference(
    model: Any,
    variables: Mapping,
    given: tuple,
    theirs: Mapping,
    shown: Callable[[Mapping], Mapping] = lambda ours: ours,
) -> Difference:
    """Of what the other side gave for (x, h0, lengths) and what the model gives, or `shown` of it, name by name.

    Where weights are so large that rounding alone passes the table, the limit is `OWN_ERRORS` times grujax's own
    distance from its outputs in float64.
    """
    dtype, ours = coarser(model).name, shown(outputs(model, variables, *given))
    found = _difference(theirs, ours, dtype)
    if found.tolerances <= 1:
        return found
    with jax.enable_x64(True):
        wide, widened = jnp.float64, jax.tree.map(lambda a: np.asarray(a, np.float64), (variables, *given[:2]))
        weights, x, h0 = jax.tree.map(jnp.asarray, widened)
        exact = shown(outputs(model.clone(dtype=wide, param_dtype=wide), weights, x, h0, given[2]))
    mine, other = (_difference({name: a[name] for name in theirs}, exact, dtype) for a in (ours, theirs))
    return found._replace(tolerances=other.tolerances / max(1.0, OWN_ERRORS * mine.tolerances))


def _difference(found: Mapping, expected: Mapping, dtype: str) -> Difference:
    largest = used = 0.0
    for name in found:
        pairs = zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True)
        for a, e in ((np.asarray(one).astype(np.float64) for one in pair) for pair in pairs):
            require_equal(a.shape, e.shape, name)
            # max() of Python would pass over a NaN
            largest = np.maximum(largest, np.abs(a - e).max(initial=0))
            used = np.maximum(used, tolerances_used(a, e, dtype).max(initial=0))
    return Difference(float(largest), float(used))


def require_agreement(model: nn.Module, variables: Mapping, runner: Runner, argument: str) -> Difference:
    """As `compare`, logged; `InputError` where the two sides do not compute the same."""
    return agreed([compare(model, variables, runner)], argument)


def agreed(found: Sequence[Difference], argument: str) -> Difference:
    """The worst of several, logged; `InputError` where it passes the tolerance table."""
    worst = max(found, key=lambda one: (not one.tolerances <= 1, one.largest))  # a NaN is the worst
    log.info("%s: largest difference %.3g", argument, worst.largest)
    remedy = "The conversion does not compute the same: please report it."
    equal = worst.tolerances <= 1
    require(equal, argument, "the outputs of both sides equal", f"a difference of {worst.largest:.3g}", remedy)
    return worst
