"""The recurrence as `lax.scan`, rows of the batch as rows of the products: always right, always there.

`scan` and `merged` project the input of all steps beforehand; `joint` and `halves` inside the loop, where they read it,
and write the states, along `time_axis`: batch-major arrays need not be turned round in memory.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from grujax.kernels.step import add_bias, dot, gate_values, mix, project, split, steered, steps_a_trip
from grujax.types import Array, Emitted, GRUSpec, Projection, Ran, Recurrence, State, States

Carry: TypeAlias = tuple[list[State], States]
"""The states of each share of the rows, and the array that they are written into."""
WIDE = 256
"""From so many hidden units on `halves` is faster with four steps a trip than with two."""


def scan(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False, joint: bool = False) -> list[Ran]:
    """As `gru_sequences`, one loop after the other.

    joint: r, z and n from one product of the state and one of the input, which is then projected inside the loop,
    unless it is the gates already: nothing is made of the weights beforehand, nor of all steps at once.
    """

    def run(recurrence: Recurrence) -> Ran:
        projection, h0, _, control = recurrence
        x = projection.x if joint else project(projection, spec, with_bias=False)
        inputs = (x, control.valid, control.reset, control.hold)
        h_last, (hs, emitted) = lax.scan(_step(recurrence, spec, emit, joint), h0, inputs)
        return Ran(hs, h_last, emitted)

    return [run(recurrence) for recurrence in recurrences]


def merged(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False) -> list[Ran]:
    """As `scan`, r, z and n from one product of the state a step and, beforehand, one of the input at all steps.

    XLA for TPUs leaves three products apart, and XLA for GPUs joins the weights again at every call.
    """

    def projected(p: Projection) -> Projection:
        return p if p.w_ih is None else Projection(dot(p.x, p.w_ih, spec), None, p.bias)

    made = [recurrence._replace(projection=projected(recurrence.projection)) for recurrence in recurrences]
    return scan(made, spec, emit, joint=True)


def joint(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False, time_axis: int = 0) -> list[Ran]:
    """As `scan`, one loop after the other.

    time_axis: 1 where `x` is a batch-major array with its axes swapped, and `hs` will be: swapped once more, nothing is
    left to do.
    """
    apart = [_in_place([recurrence], [slice(None)], spec, emit, time_axis, unroll=1) for recurrence in recurrences]
    return [ran for (ran,) in apart]


def halves(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False, time_axis: int = 0) -> list[Ran]:
    """As `joint`, all in one loop; one that is alone goes round as two, of half the rows each.

    Products that do not wait for each other run side by side: XLA on CPU gives one core to a product of this size.
    """
    n_rows, hidden_size = recurrences[0].h0.shape
    middle = n_rows // 2
    shares = [slice(middle), slice(middle, None)] if len(recurrences) == 1 else [slice(None)]
    unroll = steps_a_trip(recurrences[0], 4 if hidden_size >= WIDE else 2)
    return _in_place(recurrences, shares, spec, emit, time_axis, unroll)


def _in_place(
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


def _start(recurrence: Recurrence, shares: Sequence[slice], n_steps: int, time_axis: int) -> Carry:
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
    step = _step(own, spec, emit, joint=True)
    return lambda h, inputs: step(h, jax.tree.map(lambda a: a[rows], inputs))


def _step(recurrence: Recurrence, spec: GRUSpec, emit: bool, joint: bool) -> Callable[[State, tuple], tuple]:
    """The input's bias is added inside the loop, where it costs nothing: outside it is a pass over memory a gate."""
    projection, h0, recurrent, control = recurrence
    weights = split(recurrent, joint)
    h_start = jnp.zeros_like(h0) if control.h_reset is None else control.h_reset[None] + jnp.zeros_like(h0)

    def step(h: State, inputs: tuple) -> tuple[State, tuple]:
        x, valid, reset, hold = inputs
        gates_x = project(projection._replace(x=x), spec, joint=True) if joint else add_bias(x, projection.bias)
        if valid is not None:  # gates of a step that is not valid may be NaN: kept from the derivative too
            gates_x = [jnp.where(valid[:, None], g, 0) for g in gates_x]

        def one_step(h: State) -> tuple[State, Emitted]:
            gates, m = gate_values(gates_x, h, weights, spec, control.state_mask)
            return mix(h, gates.z, gates.n, spec), Emitted(*gates, m)

        valid, reset = (None if mask is None else mask[:, None] for mask in (valid, reset))
        h, emitted = steered(one_step, h, h_start, valid, reset, hold)
        return h, (h, emitted if emit else None)

    return step
