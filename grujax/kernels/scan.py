"""The recurrence as `lax.scan`, rows of the batch as rows of the products: always right, always there.

Each recurrence in a loop of its own (`scan`); or all in one, where XLA runs their products side by side (`halves`).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from grujax.step import add_bias, dot, gate_values, mix, project, split, steered
from grujax.types import Emitted, GRUSpec, Projection, Ran, Recurrence, State

UNROLL = 2
"""Steps of one trip of `halves`: the projection of the second does not wait for the state after the first."""


def scan(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False, joint: bool = False) -> list[Ran]:
    """As `gru_sequences`, one loop after the other.

    joint: r, z and n from one product of the state and one of the input, which is then projected inside the loop,
    unless it is the gates already: nothing is made of the weights beforehand, nor of all steps at once.
    """

    def run(recurrence: Recurrence) -> Ran:
        x, *steered_by = _inputs(recurrence)
        gates_x = x if joint else project(recurrence.projection, spec, with_bias=False)
        h_last, (hs, emitted) = lax.scan(_step(recurrence, spec, emit, joint), recurrence.h0, (gates_x, *steered_by))
        return Ran(hs, h_last, emitted)

    return [run(recurrence) for recurrence in recurrences]


def merged(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False) -> list[Ran]:
    """As `scan`, r, z and n from one product of the state a step and, beforehand, one of the input at all steps.

    Where every operation is a launch of its own, as on GPUs, three products of a third of the width cost three times.
    """

    def projected(p: Projection) -> Projection:
        return p if p.w_ih is None else Projection(dot(p.x, p.w_ih, spec), None, p.bias)

    made = [recurrence._replace(projection=projected(recurrence.projection)) for recurrence in recurrences]
    return scan(made, spec, emit, joint=True)


def halves(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False) -> list[Ran]:
    """As `scan` with joint, all in one loop; one that is alone goes round as two, of half the rows each.

    Products that do not wait for each other run side by side: XLA on CPU gives one core to a product of this size.
    """
    middle = recurrences[0].h0.shape[0] // 2
    shares = [slice(middle), slice(middle, None)] if len(recurrences) == 1 else [slice(None)]
    steps = [[_step_of_rows(recurrence, rows, spec, emit) for rows in shares] for recurrence in recurrences]

    def body(states: list[list[State]], inputs: list[tuple]) -> tuple[list[list[State]], list]:
        ran = [
            [step(h, x) for step, h in zip(parts, hs, strict=True)]
            for parts, hs, x in zip(steps, states, inputs, strict=True)
        ]
        together = [jax.tree.map(lambda *a: jnp.concatenate(a), *(out for _, out in parts)) for parts in ran]
        return [[h for h, _ in parts] for parts in ran], together

    starts = [[recurrence.h0[rows] for rows in shares] for recurrence in recurrences]
    last, outputs = lax.scan(body, starts, [_inputs(recurrence) for recurrence in recurrences], unroll=UNROLL)
    return [Ran(hs, jnp.concatenate(h_last), emitted) for h_last, (hs, emitted) in zip(last, outputs, strict=True)]


def _inputs(recurrence: Recurrence) -> tuple:
    """What each step is given."""
    projection, _, _, control = recurrence
    return projection.x, control.valid, control.reset, control.hold


def _step_of_rows(
    recurrence: Recurrence, rows: slice, spec: GRUSpec, emit: bool
) -> Callable[[State, tuple], tuple[State, tuple]]:
    """The joint step of some of the rows, which takes its own out of what all are given."""
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
