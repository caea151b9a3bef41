"""The arrays of a call, flat, in one order for every kernel that runs all steps in one call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from grujax.types import Array, Control, GRUSpec, GRUWeights, Recurrence, state_dtype


class Call(NamedTuple):
    """What is fixed when a call is compiled."""

    spec: GRUSpec
    reverse: tuple[bool, ...]  # of each direction
    time_major: bool
    saved: bool  # the gates are returned
    kernel: str  # a name of `grujax.kernels.calls.primitives.HANDLERS`
    dx: bool = True  # the gradient of x is asked for; else the transpose may return zeros
    chunk: int | None = None  # the derivative takes so many steps at a time; None: all

    @property
    def outputs(self) -> int:
        """How many arrays the forward primitive returns for a direction."""
        return 3 if self.saved else 2


class Given(NamedTuple):
    """The arrays of one direction, in the order in which native/ffi.cpp reads them; () for one that is not given."""

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
"""The first so many of `Given` have a derivative."""
N = len(Given._fields)


def given(recurrence: Recurrence, call: Call) -> Given:
    """The arrays of a recurrence in the dtypes of the kernel."""
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
    return [arrays[i : i + n] for i in range(0, len(arrays), n)]


def rows_at(time_major: bool) -> Given:
    """The axis of the rows of the batch in each array; None where there is none."""
    return Given(1 if time_major else 0, 0, None, None, None, None, None, 1, 1, 0, 1)


def time_at(time_major: bool) -> Given:
    """The axis of the steps in each array; None where there is none."""
    return Given(0 if time_major else 1, None, None, None, None, None, None, 0, 0, None, 0)


def forward_shapes(arrays: Sequence[Any], call: Call) -> list[tuple[tuple[int, ...], Any]]:
    """hs, h_last and, where asked, what is saved, of each direction."""
    shapes = []
    for x, h0, *_ in by_direction(arrays, N):
        n_steps, n_rows = x.shape[:2] if call.time_major else (x.shape[1], x.shape[0])
        shapes += [((*x.shape[:2], h0.shape[1]), h0.dtype), (h0.shape, h0.dtype)]
        shapes += [((n_steps, n_rows, 4 * h0.shape[1]), h0.dtype)] if call.saved else []
    return shapes
