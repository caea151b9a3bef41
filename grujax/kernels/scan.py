"""The recurrence as `lax.scan`, rows of the batch as rows of the products: always right, always there."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from grujax.step import add_bias, gate_values, mix, project, split, steered
from grujax.types import Emitted, GRUSpec, Ran, Recurrence, State


def scan(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False, joint: bool = False) -> list[Ran]:
    """As `gru_sequences`, one loop after the other.

    joint: r, z and n from one product of the state and one of the input, which is then projected inside the loop:
    nothing is made of the weights beforehand, nor of all steps at once.
    """
    return [_scan(recurrence, spec, emit, joint) for recurrence in recurrences]


def _scan(recurrence: Recurrence, spec: GRUSpec, emit: bool, joint: bool) -> Ran:
    """The input's bias is added inside the loop, where it costs nothing: outside it is a pass over memory a gate."""
    projection, h0, recurrent, control = recurrence
    weights = split(recurrent, joint)
    h_start = jnp.zeros_like(h0) if control.h_reset is None else control.h_reset[None] + jnp.zeros_like(h0)

    def body(h: State, inputs: tuple) -> tuple[State, tuple]:
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

    xs = (
        projection.x if joint else project(projection, spec, with_bias=False),
        control.valid,
        control.reset,
        control.hold,
    )
    h_last, (hs, emitted) = lax.scan(body, h0, xs)
    return Ran(hs, h_last, emitted)
