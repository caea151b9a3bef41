"""Converts the arrays of the caller to the order in which a loop reads its steps, and results back.

A loop reads time-major arrays from the first step to the last. A reversed sequence begins with its padding, where the
state stays at h0, so flipping the time axis is enough: no gather is needed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from grujax.types import Array, Control, Recurrence, Result, State, States, Valid, state_dtype


def as_read(recurrence: Recurrence, reverse: bool, time_major: bool) -> Recurrence:
    """Returns the recurrence as a loop reads it: time-major, flipped in reverse, with h0, states in the state dtype.

    At steps that are not valid, x is 0 and nothing resets.
    """
    x, weights, h0, (valid, reset, h_reset, state_mask, hold) = recurrence
    dtype = state_dtype(weights.w_hh.dtype)
    x = x if time_major else x.swapaxes(0, 1)

    def flip(a: Any) -> Any:
        return a if a is None or not reverse else jnp.flip(a, 0)

    def cast(a: Any) -> Any:
        return None if a is None else a.astype(dtype)

    reset = resets_read(reset, valid, reverse)
    if valid is not None:
        x = jnp.where(valid[..., None], x, 0)
    x = flip(x)
    h0 = jnp.zeros((x.shape[1], weights.w_hh.shape[0]), dtype) if h0 is None else h0.astype(dtype)
    # shard_map and explicit sharding require that a carry varies over the same mesh axes as the inputs.
    h0 = h0 + jnp.zeros_like(x.sum((0, 2)), dtype)[:, None]
    state_mask, hold = (None if a is None else lax.stop_gradient(cast(a)) for a in (state_mask, hold))
    return Recurrence(x, weights, h0, Control(flip(valid), flip(reset), cast(h_reset), state_mask, flip(hold)))


def in_time(result: Result, valid: Valid | None, reverse: bool, time_major: bool) -> Result:
    """Returns the result in time order, with hs and gates 0 where `valid`, in the order of the loop, is False."""

    def ordered(a: Array) -> Array:
        a = a if valid is None else jnp.where(valid[..., None], a, 0)
        return jnp.flip(a, 0) if reverse else a

    hs, gates, m = jax.tree.map(ordered, (result.hs, result.gates, result.m))
    return Result(hs if time_major else hs.swapaxes(0, 1), result.h_last, gates, m)


def held(hs: States, h0: State, valid: Valid | None) -> States:
    """Returns hs (T, B, H), in the order of a loop, with the last valid state, or h0, at steps that are not valid."""
    if valid is None:
        return hs
    steps = lax.broadcasted_iota(jnp.int32, valid.shape, 0) + 1
    last = lax.cummax(jnp.where(valid, steps, 0), axis=0)
    return jnp.take_along_axis(jnp.concatenate([h0[None], hs]), last[..., None], axis=0)


def resets_read(reset: Valid | None, valid: Valid | None, reverse: bool) -> Valid | None:
    """Where the state is reset before a step is read, (T, B) in time order: never at a step that is not valid.

    In reverse, the state that enters valid step t comes from the next valid step; it is the initial state if `reset` is
    set there. The next valid step has the greatest T − t' of all later ones: a running maximum finds it, not a gather.
    """
    if reset is None:
        return None
    if valid is None:
        return jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])]) if reverse else reset
    if reverse:
        to_go = reset.shape[0] - lax.broadcasted_iota(jnp.int32, reset.shape, 0)
        code = jnp.where(valid, 2 * to_go + reset.astype(jnp.int32), 0)
        later = jnp.concatenate([code[1:], jnp.zeros_like(code[:1])])
        reset = lax.cummax(later, axis=0, reverse=True) % 2 == 1
    return reset & valid
