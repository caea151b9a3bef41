"""The order in which a direction reads its steps: from the arrays of the caller to those of a loop, and back.

A loop reads time-major arrays from the first step to the last. Backwards in time the padding of a sequence comes first,
where the state is held at h0: no gather is needed to reverse a sequence.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from grujax.types import Array, Control, Recurrence, Result, Valid, state_dtype


def as_read(recurrence: Recurrence, reverse: bool, time_major: bool) -> Recurrence:
    """The recurrence as a loop takes it: x 0 and no reset at steps that are not valid, h0 given, state dtypes."""
    x, weights, h0, (valid, reset, h_reset, state_mask, hold) = recurrence
    dtype = state_dtype(weights.w_hh.dtype)
    x = x if time_major else x.swapaxes(0, 1)

    def flip(a: Any) -> Any:
        return a if a is None or not reverse else jnp.flip(a, 0)

    def cast(a: Any) -> Any:
        return None if a is None else a.astype(dtype)

    if reset is not None:
        reset = resets_in_reverse(reset, valid) if reverse else reset
        reset = reset if valid is None else reset & valid
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

    hs, gates = ordered(result.hs), result.gates
    gates = None if gates is None else type(gates)(*map(ordered, gates))
    return Result(hs if time_major else hs.swapaxes(0, 1), result.h_last, gates)


def resets_in_reverse(reset: Valid, valid: Valid | None) -> Valid:
    """Where the state is reset when time runs backwards: (T, B) in time order.

    The state that enters valid step t comes from the next valid step; it is the initial one where a sequence begins
    there. The next valid step is the one of greatest T − t' among all later: a running maximum, no gather.
    """
    if valid is None:
        return jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])
    n_steps = reset.shape[0]
    to_go = n_steps - lax.broadcasted_iota(jnp.int32, reset.shape, 0)
    code = jnp.where(valid, 2 * to_go + reset.astype(jnp.int32), 0)
    later = jnp.concatenate([code[1:], jnp.zeros_like(code[:1])])
    return lax.cummax(later, axis=0, reverse=True) % 2 == 1
