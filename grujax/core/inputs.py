"""Checks of the inputs, and the layout in which kernels read them."""

import math
from typing import NamedTuple, TypedDict

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from grujax.arrays import as_array, require_floating
from grujax.errors import require, require_equal
from grujax.types import Array, Inputs


class CallOptions(TypedDict, total=False):
    """Keyword arguments that a call of an encoder or model takes, for its overloads."""

    lengths: ArrayLike | None
    mask: ArrayLike | None
    resets: ArrayLike | None
    segments: ArrayLike | None
    num_segments: int | None


class Steps(NamedTuple):
    """Checked inputs: x (*batch, T, I), valid and resets bool (*batch, T) or None.

    T is the first axis where time_major.
    """

    x: Array
    valid: Array | None
    resets: Array | None
    time_major: bool

    @property
    def batch(self) -> tuple[int, ...]:
        return self.x.shape[1:-1] if self.time_major else self.x.shape[:-2]


def to_rows(steps: Steps) -> tuple[Array, Array | None, Array | None]:
    """x with one batch axis, (T, B, I) where it is time-major, else (B, T, I); valid and resets (T, B)."""
    n_rows, time = math.prod(steps.batch), 0 if steps.time_major else len(steps.batch)
    n_steps = steps.x.shape[time]
    x = steps.x
    if len(steps.batch) != 1:
        x = x.reshape(*((n_steps, n_rows) if steps.time_major else (n_rows, n_steps)), x.shape[-1])

    def flags(a: Array | None) -> Array | None:
        return None if a is None else jnp.moveaxis(a, time, 0).reshape(n_steps, n_rows)

    return x, flags(steps.valid), flags(steps.resets)


def from_rows(a: Array, batch: tuple[int, ...], time_major: bool) -> Array:
    """(T, B, F) -> (T, *batch, F) where `time_major`, else (B, T, F) -> (*batch, T, F)."""
    if len(batch) == 1:
        return a
    n_steps, n_features = a.shape[0 if time_major else 1], a.shape[2]
    return a.reshape((n_steps, *batch, n_features) if time_major else (*batch, n_steps, n_features))


def check_inputs(
    x: Inputs,
    input_size: int | None,
    lengths: ArrayLike | None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    time_major: bool = False,
) -> Steps:
    """Arrays that fit each other, or `InputError`; `input_size` None accepts any number of features."""
    x = jnp.asarray(as_array(x, "x"))
    axes = "(T, ..., I)" if time_major else "(..., T, I)"
    require(x.ndim >= 2, "x", f"{axes}, at least two axes", f"shape {x.shape}")
    remedy = "Axes are (time, batch, features)." if time_major else "Axes are (batch, time, features)."
    check_features(x, input_size, remedy)
    twice = lengths is not None and mask is not None
    rule = "lengths and mask cannot both be given"
    require(not twice, "mask", "None", "an array", "Either says which steps are valid.", rule=rule)
    steps = Steps(x, None, check_flags(resets, "resets", x.shape[:-1]), time_major)
    if mask is not None:
        return steps._replace(valid=check_flags(mask, "mask", x.shape[:-1]))
    if lengths is None:
        return steps
    n_steps = x.shape[0] if time_major else x.shape[-2]
    lengths = check_integers(lengths, "lengths", steps.batch, "sequence", (0, n_steps), f"0 to T = {n_steps}")
    valid = valid_steps(n_steps, lengths)
    return steps._replace(valid=jnp.moveaxis(valid, -1, 0) if time_major else valid)


def framed(steps: Steps, size: int) -> Steps:
    """Frames of `size` steps in the place of steps: x (*batch, ceil(T / size), size * I).

    Steps that are not valid, or that the last frame lacks, are 0. A frame is valid where one of its steps is.
    """
    if size == 1:
        return steps
    assert steps.resets is None  # with pooling they need segments, which frames refuse
    time = 0 if steps.time_major else steps.x.ndim - 2
    n_frames = -(-steps.x.shape[time] // size)

    def split(a: Array) -> Array:
        """T as two axes, ceil(T / size) and size."""
        widths = [(0, 0)] * a.ndim
        widths[time] = (0, n_frames * size - a.shape[time])
        return jnp.pad(a, widths).reshape(*a.shape[:time], n_frames, size, *a.shape[time + 1 :])

    valid = steps.valid
    x = steps.x if valid is None else jnp.where(valid[..., None], steps.x, 0)
    x = jnp.moveaxis(split(x), time + 1, -2)
    x = x.reshape(*x.shape[:-2], size * x.shape[-1])
    return steps._replace(x=x, valid=None if valid is None else split(valid).any(time + 1))


def with_states_axis(h0: ArrayLike | None, shape: tuple[int, ...]) -> ArrayLike | None:
    """(*batch, H) as (1, *batch, H), the state of a single layer in one direction; all else as it is."""
    if h0 is None:
        return None
    array = as_array(h0, "h0")
    return array[None] if shape[0] == 1 and array.shape == shape[1:] else array


def check_features(x: Array, input_size: int | None, remedy: str = "") -> None:
    """Raises `InputError` unless the last axis of x (..., I) holds features, floats, as many as `input_size`."""
    require_floating(x, "x")
    wanted = "one input feature or more" if input_size is None else f"{input_size} input features"
    fits = x.shape[-1] != 0 if input_size is None else x.shape[-1] == input_size
    require(fits, "x", f"{wanted} on the last axis", f"shape {x.shape}", remedy)


def check_state(state: ArrayLike | None, name: str, shape: tuple[int, ...], remedy: str = "") -> Array | None:
    """A state as an array of `shape`, or None."""
    return None if state is None else as_state(state, name, shape, remedy)


def as_state(state: ArrayLike, name: str, shape: tuple[int, ...], remedy: str = "") -> Array:
    """A state as an array of `shape`."""
    state = jnp.asarray(as_array(state, name))
    require_equal(state.shape, shape, name, remedy)
    require_floating(state, name)
    return state


def check_integers(
    values: ArrayLike, name: str, shape: tuple[int, ...], of: str, bounds: tuple[int, int], bounded: str
) -> Array:
    """Integers as an array of `shape`, one for each step or sequence (`of`); within `bounds` unless traced."""
    array = as_array(values, name)
    require(jnp.issubdtype(array.dtype, jnp.integer), name, "integers", f"dtype {array.dtype}")
    require_equal(array.shape, shape, name, f"One value for each {of}.")
    if not isinstance(array, Tracer) and array.size:
        known = np.asarray(array)  # NumPy's own: under jit the minimum of a constant jax.Array would be traced
        low, high = int(known.min()), int(known.max())
        require(bounds[0] <= low and high <= bounds[1], name, bounded, f"{low} to {high}")
    return jnp.asarray(array)


def check_flags(flags: ArrayLike | None, name: str, shape: tuple[int, ...]) -> Array | None:
    """A bool for each step, as an array of `shape`."""
    if flags is None:
        return None
    array = as_array(flags, name)
    remedy = f"Compare it, {name} != 0 or {name} > 0.5, if that is meant."
    require(array.dtype == jnp.bool_, name, "dtype bool", f"dtype {array.dtype}", remedy)
    require_equal(array.shape, shape, name, "One value for each step.")
    return jnp.asarray(array)


def valid_steps(n_steps: int, lengths: Array) -> Array:
    """lengths (...) -> (..., T) bool: whether the step belongs to the sequence."""
    return lax.broadcasted_iota(lengths.dtype, (*lengths.shape, n_steps), lengths.ndim) < lengths[..., None]
