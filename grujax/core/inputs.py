"""Checks of the inputs of a call, and conversion to and from the layout of the kernels."""

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
    """The keyword arguments of a call of an encoder or model, for its overloads."""

    lengths: ArrayLike | None
    mask: ArrayLike | None
    resets: ArrayLike | None
    segments: ArrayLike | None
    num_segments: int | None


class Steps(NamedTuple):
    """Checked inputs: x (*batch, T, I); valid and resets are bool (*batch, T) or None.

    With time_major=True, T is the first axis.
    """

    x: Array
    valid: Array | None
    resets: Array | None
    time_major: bool

    @property
    def batch(self) -> tuple[int, ...]:
        return self.x.shape[1:-1] if self.time_major else self.x.shape[:-2]


def to_rows(steps: Steps) -> tuple[Array, Array | None, Array | None]:
    """Merges the batch axes: x becomes (T, B, I) if it is time-major, else (B, T, I); valid and resets (T, B)."""
    n_rows, time = math.prod(steps.batch), 0 if steps.time_major else len(steps.batch)
    n_steps = steps.x.shape[time]
    x = steps.x
    if len(steps.batch) != 1:
        x = x.reshape(*((n_steps, n_rows) if steps.time_major else (n_rows, n_steps)), x.shape[-1])

    def flags(a: Array | None) -> Array | None:
        return None if a is None else jnp.moveaxis(a, time, 0).reshape(n_steps, n_rows)

    return x, flags(steps.valid), flags(steps.resets)


def from_rows(a: Array, batch: tuple[int, ...], time_major: bool) -> Array:
    """Splits the batch axis: (T, B, F) -> (T, *batch, F) if `time_major`, else (B, T, F) -> (*batch, T, F)."""
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
    """Returns the inputs as arrays that fit each other; `InputError` if they do not.

    `input_size` is the expected number of features; None accepts any.
    """
    x = jnp.asarray(as_array(x, "x"))
    axes = "(T, ..., I)" if time_major else "(..., T, I)"
    require(x.ndim >= 2, "x", f"{axes}, at least two axes", f"shape {x.shape}")
    remedy = "Axes are (time, batch, features)." if time_major else "Axes are (batch, time, features)."
    check_features(x, input_size, remedy)
    both = lengths is not None and mask is not None
    rule = "lengths and mask cannot both be given"
    require(not both, "mask", "None", "an array", "Pass only one of them to mark the valid steps.", rule=rule)
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
    """Stacks each `size` steps into a frame: x becomes (*batch, ceil(T / size), size * I).

    Steps that are not valid, or that are missing in the last frame, are 0. A frame is valid if any of its steps is.
    """
    if size == 1:
        return steps
    assert steps.resets is None  # frames need pooling; with pooling, resets need segments, which frames do not support
    time = 0 if steps.time_major else steps.x.ndim - 2
    n_frames = -(-steps.x.shape[time] // size)

    def split(a: Array) -> Array:
        """Splits the time axis into two, ceil(T / size) and size."""
        widths = [(0, 0)] * a.ndim
        widths[time] = (0, n_frames * size - a.shape[time])
        return jnp.pad(a, widths).reshape(*a.shape[:time], n_frames, size, *a.shape[time + 1 :])

    valid = steps.valid
    x = steps.x if valid is None else jnp.where(valid[..., None], steps.x, 0)
    x = jnp.moveaxis(split(x), time + 1, -2)
    x = x.reshape(*x.shape[:-2], size * x.shape[-1])
    return steps._replace(x=x, valid=None if valid is None else split(valid).any(time + 1))


def with_states_axis(h0: ArrayLike | None, shape: tuple[int, ...]) -> ArrayLike | None:
    """Adds the states axis to the state (*batch, H) of a single layer in one direction; returns others unchanged."""
    if h0 is None:
        return None
    array = as_array(h0, "h0")
    return array[None] if shape[0] == 1 and array.shape == shape[1:] else array


def check_features(x: Array, input_size: int | None, remedy: str = "") -> None:
    """Raises `InputError` unless x (..., I) is floating and has `input_size` features, or any number if it is None."""
    require_floating(x, "x")
    expected = "one input feature or more" if input_size is None else f"{input_size} input features"
    fits = x.shape[-1] != 0 if input_size is None else x.shape[-1] == input_size
    require(fits, "x", f"{expected} on the last axis", f"shape {x.shape}", remedy)


def check_state(state: ArrayLike | None, name: str, shape: tuple[int, ...], remedy: str = "") -> Array | None:
    """Returns a state as an array, or None; `InputError` unless it is floating and has the given shape."""
    return None if state is None else as_state(state, name, shape, remedy)


def as_state(state: ArrayLike, name: str, shape: tuple[int, ...], remedy: str = "") -> Array:
    """Returns a state as an array; `InputError` unless it is floating and has the given shape."""
    state = jnp.asarray(as_array(state, name))
    require_equal(state.shape, shape, name, remedy)
    require_floating(state, name)
    return state


def check_integers(
    values: ArrayLike, name: str, shape: tuple[int, ...], of: str, bounds: tuple[int, int], bounded: str
) -> Array:
    """Returns integers as an array; `InputError` for another dtype or shape, or for values outside `bounds`.

    The values of traced arrays are not checked. `of` and `bounded` are words for the error: one value for each `of`,
    and the bounds in words.
    """
    array = as_array(values, name)
    require(jnp.issubdtype(array.dtype, jnp.integer), name, "integers", f"dtype {array.dtype}")
    require_equal(array.shape, shape, name, f"One value for each {of}.")
    if not isinstance(array, Tracer) and array.size:
        known = np.asarray(array)  # NumPy, because under jit the minimum of a constant jax.Array would be traced
        low, high = int(known.min()), int(known.max())
        require(bounds[0] <= low and high <= bounds[1], name, bounded, f"{low} to {high}")
    return jnp.asarray(array)


def check_flags(flags: ArrayLike | None, name: str, shape: tuple[int, ...]) -> Array | None:
    """Returns flags as a bool array, or None; `InputError` for another dtype or shape."""
    if flags is None:
        return None
    array = as_array(flags, name)
    remedy = f"Compare it, {name} != 0 or {name} > 0.5, if that is meant."
    require(array.dtype == jnp.bool_, name, "dtype bool", f"dtype {array.dtype}", remedy)
    require_equal(array.shape, shape, name, "One value for each step.")
    return jnp.asarray(array)


def valid_steps(n_steps: int, lengths: Array) -> Array:
    """Returns bool (..., T) for lengths (...): whether each step belongs to the sequence."""
    return lax.broadcasted_iota(lengths.dtype, (*lengths.shape, n_steps), lengths.ndim) < lengths[..., None]
