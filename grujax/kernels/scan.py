"""The recurrence as `lax.scan`, differentiated by JAX itself: always right, always there."""

import jax.numpy as jnp
from jax import lax

from grujax.step import split_gates, step
from grujax.types import Array, Gates, GRUSpec, State, States, Valid


def scan(
    gates_x: Gates,
    h0: State,
    w_hh: Array,
    b_hn: Array,
    valid: Valid | None,
    reset: Valid | None,
    h_reset: Array | None,
    spec: GRUSpec,
) -> tuple[States, State]:
    """As `gru_sequence`, arguments checked and in their final dtypes."""
    weights = split_gates(w_hh)
    h_start = jnp.zeros_like(h0) if h_reset is None else h_reset[None] + jnp.zeros_like(h0)

    def body(h: State, inputs: tuple) -> tuple[State, State]:
        gates_x, valid, reset = inputs
        if reset is not None:
            h = jnp.where(reset[:, None], h_start, h)
        if valid is None:
            h_new = step(gates_x, h, weights, b_hn, spec)
        else:  # gates of a step that is not valid may be NaN: kept from the derivative too, so chosen before use
            gates_x = [jnp.where(valid[:, None], g, 0) for g in gates_x]
            h_new = jnp.where(valid[:, None], step(gates_x, h, weights, b_hn, spec), h)
        return h_new, h_new

    h_last, hs = lax.scan(body, h0, (split_gates(gates_x), valid, reset))
    return hs, h_last
