"""The recurrence as `lax.scan`, rows of the batch as rows of the products: always right, always there."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax

from grujax.step import add_bias, dot, gate_values, mix, project, split, steered
from grujax.types import Emitted, GRUSpec, Projection, Ran, Recurrence, State


def scan(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False, joint: bool = False) -> list[Ran]:
    """As `gru_sequences`, one loop after the other.

    joint: r, z and n from one product of the state and one of the input, which is then projected inside the loop,
    unless it is the gates already: nothing is made of the weights beforehand, nor of all steps at once.
    """

    def run(recurrence: Recurrence) -> Ran:
        projection, h0, _, control = recurrence
        x = projection.x if joint else project(projection, spec, with_bias=False)
        inputs = (x, control.valid, control.reset, control.hold)
        h_last, (hs, emitted) = lax.scan(make_step(recurrence, spec, emit, joint), h0, inputs)
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


def make_step(recurrence: Recurrence, spec: GRUSpec, emit: bool, joint: bool) -> Callable[[State, tuple], tuple]:
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


def unrolled(recurrences: Sequence[Recurrence], steps: int) -> int:
    """Steps of one trip: the projection of a later one need not wait for the state after the first.

    JAX unrolls loops of known length alone.
    """
    return steps if isinstance(recurrences[0].projection.x.shape[0], int) else 1
