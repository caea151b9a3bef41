"""The flat list of arrays that kernels take which run all steps in one call, and their shapes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from grujax.types import Array, Control, GRUSpec, GRUWeights, Recurrence, state_dtype


class Call(NamedTuple):
    """What is fixed when a call is compiled."""

    spec: GRUSpec
    reverse: tuple[bool, ...]  # for each direction, whether it reads backwards
    time_major: bool
    saved: bool  # the gates are returned
    kernel: str  # a key of `grujax.kernels.calls.primitives.HANDLERS`
    dx: bool = True  # the gradient of x is needed; if not, the transpose may return zeros for it
    chunk: int | None = None  # steps that the derivative processes at a time; None: all

    @property
    def outputs(self) -> int:
        """The number of arrays that the forward primitive returns for each direction."""
        return 3 if self.saved else 2


class Given(NamedTuple):
    """The arrays of one direction, in the order of `Input` in native/arguments.h. An absent one has shape (0,)."""

    x: Any
    h0: Any
    w_ih: Any
    w_hh: Any
    b_ih: Any
    b_hh: Any
    h_reset: Any
    valid: Any
    reset: Any
    state_mask: Any
    hold: Any


MOVED = 7
"""The number of fields of `Given` that have a derivative: the first ones."""
N = len(Given._fields)


def given(recurrence: Recurrence, call: Call) -> Given:
    """Returns the arrays of a recurrence in the dtypes that the kernels take."""
    x, weights, h0, (valid, reset, h_reset, state_mask, hold) = recurrence
    dtype = state_dtype(weights.w_hh.dtype)
    if h0 is None:
        h0 = jnp.zeros((x.shape[1 if call.time_major else 0], weights.w_hh.shape[0]), dtype)
    state_mask, hold = (None if a is None else lax.stop_gradient(a) for a in (state_mask, hold))
    x, w_ih, w_hh = (a.astype(weights.w_hh.dtype) for a in (x, weights.w_ih, weights.w_hh))
    reals = (h0, weights.b_ih, weights.b_hh, h_reset, state_mask, hold)
    h0, b_ih, b_hh, h_reset, state_mask, hold = (or_empty(a, dtype) for a in reals)
    return Given(x, h0, w_ih, w_hh, b_ih, b_hh, h_reset, or_empty(valid, bool), or_empty(reset, bool), state_mask, hold)


def or_empty(a: Array | None, dtype: Any) -> Array:
    return jnp.zeros(0, dtype) if a is None else a.astype(dtype)


def recurrence_of(arrays: Sequence[Any]) -> Recurrence:
    """The inverse of `given`."""
    every: list[Any] = [None if a.shape == (0,) else a for a in arrays]
    x, h0, w_ih, w_hh, b_ih, b_hh, h_reset, valid, reset, state_mask, hold = every
    return Recurrence(x, GRUWeights(w_ih, w_hh, b_ih, b_hh), h0, Control(valid, reset, h_reset, state_mask, hold))


def by_direction(arrays: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """Splits a flat list into groups of `n` arrays, one group for each direction."""
    return [arrays[i : i + n] for i in range(0, len(arrays), n)]


def rows_at(time_major: bool) -> Given:
    """The batch axis of each array; None for an array without one."""
    return Given(1 if time_major else 0, 0, None, None, None, None, None, 1, 1, 0, 1)


def time_at(time_major: bool) -> Given:
    """The time axis of each array; None for an array without one."""
    return Given(0 if time_major else 1, None, None, None, None, None, None, 0, 0, None, 0)


def forward_shapes(arrays: Sequence[Any], call: Call) -> list[tuple[tuple[int, ...], Any]]:
    """The (shape, dtype) of hs and h_last, and of the saved gates where `call.saved`, for each direction."""
    shapes = []
    for x, h0, *_ in by_direction(arrays, N):
        n_steps, n_rows = x.shape[:2] if call.time_major else (x.shape[1], x.shape[0])
        shapes += [((*x.shape[:2], h0.shape[1]), h0.dtype), (h0.shape, h0.dtype)]
        shapes += [((n_steps, n_rows, 4 * h0.shape[1]), h0.dtype)] if call.saved else []
    return shapes
