"""The order in which a direction reads its steps: from the arrays of the caller to those of a loop, and back.

A loop reads time-major arrays from the first step to the last. Backwards in time the padding of a sequence comes first,
where the state is held at h0: no gather is needed to reverse a sequence.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from grujax.types import Array, Control, Recurrence, Result, State, States, Valid, state_dtype


def as_read(recurrence: Recurrence, reverse: bool, time_major: bool) -> Recurrence:
    """The recurrence as a loop takes it: x 0 and no reset at steps that are not valid, h0 given, state dtypes."""
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
    # A carry must vary over the mesh axes that the inputs vary over: shard_map and explicit sharding ask for it.
    h0 = h0 + jnp.zeros_like(x.sum((0, 2)), dtype)[:, None]
    state_mask, hold = (None if a is None else lax.stop_gradient(cast(a)) for a in (state_mask, hold))
    return Recurrence(x, weights, h0, Control(flip(valid), flip(reset), cast(h_reset), state_mask, flip(hold)))


def in_time(result: Result, valid: Valid | None, reverse: bool, time_major: bool) -> Result:
    """The result in time order; hs and gates are 0 where `valid`, in the order of the loop, is False."""

    def ordered(a: Array) -> Array:
        a = a if valid is None else jnp.where(valid[..., None], a, 0)
        return jnp.flip(a, 0) if reverse else a

    hs, gates, m = jax.tree.map(ordered, (result.hs, result.gates, result.m))
    return Result(hs if time_major else hs.swapaxes(0, 1), result.h_last, gates, m)


def held(hs: States, h0: State, valid: Valid | None) -> States:
    """hs (T, B, H) in the order of a loop, the state before where a step is not valid."""
    if valid is None:
        return hs
    steps = lax.broadcasted_iota(jnp.int32, valid.shape, 0) + 1
    last = lax.cummax(jnp.where(valid, steps, 0), axis=0)
    return jnp.take_along_axis(jnp.concatenate([h0[None], hs]), last[..., None], axis=0)


def resets_read(reset: Valid | None, valid: Valid | None, reverse: bool) -> Valid | None:
    """Where the state is reset before a step is read, (T, B) in time order: never where a step is not valid.

    In reverse the state that enters valid step t comes from the next valid step; it is the initial one where a sequence
    begins there. The next valid step is the one of greatest T − t' among all later: a running maximum, no gather.
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
