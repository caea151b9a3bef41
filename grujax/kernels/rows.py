"""The recurrence with one product of the input and one of the state a step, rows of the batch as rows of the products.

Nothing is made of the weights beforehand, nor of all steps at once; and the input is read, and the states are written,
where the caller's arrays lie, time-major or batch-major, so that neither is turned round in memory.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from grujax.kernels.scan import make_step, scan, unrolled
from grujax.types import Array, Emitted, GRUSpec, Ran, Recurrence, State, States

Carry: TypeAlias = tuple[list[State], States]
"""The states of each share of the rows, and the array that they are written into."""
WIDE = 256
"""From so many hidden units on `halves` is faster with four steps a trip than with two."""


def joint(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False, time_axis: int = 0) -> list[Ran]:
    """As `scan`, one loop after the other.

    time_axis: 1 where `x` is a batch-major array with its axes swapped, and `hs` will be: swapped once more, nothing is
    left to do.
    """
    whole = [slice(None)]
    return [ran for recurrence in recurrences for ran in _loop([recurrence], whole, spec, emit, time_axis, unroll=1)]


def halves(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False, time_axis: int = 0) -> list[Ran]:
    """As `joint`, all in one loop; one that is alone goes round as two, of half the rows each.

    Products that do not wait for each other run side by side: XLA on CPU gives one core to a product of this size.
    """
    n_rows, hidden_size = recurrences[0].h0.shape
    middle = n_rows // 2
    shares = [slice(middle), slice(middle, None)] if len(recurrences) == 1 else [slice(None)]
    unroll = unrolled(recurrences, 4 if hidden_size >= WIDE else 2)
    return _loop(recurrences, shares, spec, emit, time_axis, unroll)


def _loop(
    recurrences: Sequence[Recurrence], shares: Sequence[slice], spec: GRUSpec, emit: bool, time_axis: int, unroll: int
) -> list[Ran]:
    """All in one loop, each in `shares` of its rows."""
    n_steps = recurrences[0].projection.x.shape[0]
    if n_steps == 0:
        return scan(recurrences, spec, emit, joint=True)
    bodies = [_body(recurrence, shares, spec, emit, time_axis) for recurrence in recurrences]

    def body(carries: list[Carry], inputs: tuple) -> tuple[list[Carry], list[Emitted | None]]:
        t, controls = inputs
        ran = [run(carry, t, control) for run, carry, control in zip(bodies, carries, controls, strict=True)]
        return [carry for carry, _ in ran], [emitted for _, emitted in ran]

    starts = [_start(recurrence, shares, n_steps, time_axis) for recurrence in recurrences]
    controls = [(r.control.valid, r.control.reset, r.control.hold) for r in recurrences]
    last, emitted = lax.scan(body, starts, (jnp.arange(n_steps), controls), unroll=unroll)
    return [
        Ran(hs.swapaxes(0, time_axis), jnp.concatenate(h_last), of_one)
        for (h_last, hs), of_one in zip(last, emitted, strict=True)
    ]


def _start(recurrence: Recurrence, shares: Sequence[slice], n_steps: int, time_axis: int) -> tuple[list[State], States]:
    """The states before the first step, and the array that all later ones are written into."""
    h0 = recurrence.h0
    shape = list(h0.shape)
    shape.insert(time_axis, n_steps)
    return [h0[rows] for rows in shares], jnp.broadcast_to(jnp.expand_dims(jnp.zeros_like(h0), time_axis), shape)


def _body(
    recurrence: Recurrence, shares: Sequence[slice], spec: GRUSpec, emit: bool, time_axis: int
) -> Callable[[Carry, Array, tuple], tuple[Carry, Emitted | None]]:
    """One step of a recurrence."""
    x = recurrence.projection.x.swapaxes(0, time_axis)
    steps = [_step_of_rows(recurrence, rows, spec, emit) for rows in shares]

    def body(carry: Carry, t: Array, control: tuple) -> tuple[Carry, Emitted | None]:
        states, hs = carry
        inputs = (lax.dynamic_index_in_dim(x, t, time_axis, keepdims=False), *control)
        ran = [step(h, inputs) for step, h in zip(steps, states, strict=True)]
        h, emitted = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(out for _, out in ran))
        return ([h for h, _ in ran], lax.dynamic_update_index_in_dim(hs, h, t, time_axis)), emitted

    return body


def _step_of_rows(
    recurrence: Recurrence, rows: slice, spec: GRUSpec, emit: bool
) -> Callable[[State, tuple], tuple[State, tuple]]:
    """The step of some of the rows, which takes its own out of what all are given."""
    h0, control = recurrence.h0, recurrence.control
    state_mask = None if control.state_mask is None else control.state_mask[rows]
    own = recurrence._replace(h0=h0[rows], control=control._replace(state_mask=state_mask))
    step = make_step(own, spec, emit, joint=True)
    return lambda h, inputs: step(h, jax.tree.map(lambda a: a[rows], inputs))
