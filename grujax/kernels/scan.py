"""The recurrence as `lax.scan`, differentiated by JAX itself: always right, always there."""

import jax.numpy as jnp
from jax import lax

from grujax.step import split, split_gates, step
from grujax.types import Control, Gates, GRUSpec, Recurrent, State, States


def scan(gates_x: Gates, h0: State, recurrent: Recurrent, control: Control, spec: GRUSpec) -> tuple[States, State]:
    """As `gru_sequence`, arguments checked and in their final dtypes."""
    weights = split(recurrent)
    h_start = jnp.zeros_like(h0) if control.h_reset is None else control.h_reset[None] + jnp.zeros_like(h0)

    def body(h: State, inputs: tuple) -> tuple[State, State]:
        gates_x, valid, reset, hold = inputs
        if reset is not None:
            h = jnp.where(reset[:, None], h_start, h)
        if valid is not None:  # gates of a step that is not valid may be NaN: kept from the derivative too
            gates_x = [jnp.where(valid[:, None], g, 0) for g in gates_x]
        h_new = step(gates_x, h, weights, spec, control.state_mask)
        if hold is not None:
            h_new = hold * h + (1 - hold) * h_new
        if valid is not None:
            h_new = jnp.where(valid[:, None], h_new, h)
        return h_new, h_new

    h_last, hs = lax.scan(body, h0, (split_gates(gates_x), control.valid, control.reset, control.hold))
    return hs, h_last
