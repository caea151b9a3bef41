"""Checks of the arrays that a caller passes, by the name of the argument, before JAX sees them."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from grujax.errors import InputError, require


def as_array(value: Any, argument: str) -> Any:
    """A JAX array as it is; anything else as the NumPy array of numbers that NumPy makes of it.

    Tensors of PyTorch are refused: the caller decides whether its gradient and device may be lost.

    >>> as_array([1.0, 2.0], "x").dtype
    dtype('float64')
    """
    if isinstance(value, jax.Array) and _is_number(value.dtype):
        return value
    array, kind = value, f"a {type(value).__name__}"
    if not isinstance(value, jax.Array):
        torch = any(cls.__module__.partition(".")[0] == "torch" for cls in type(value).__mro__)
        remedy = f"Pass {argument}.detach().numpy()."
        require(not torch, argument, "an array of JAX or NumPy", "a tensor of PyTorch", remedy)
        try:
            array = jnp.asarray(value) if hasattr(value, "__jax_array__") else np.asarray(value)
        except jax.errors.TracerArrayConversionError:  # a list of traced numbers
            array = jnp.asarray(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(argument, "an array of numbers", f"{kind}: {error}") from error
    dtype = array.dtype
    found = f"dtype {dtype}" if array.ndim or isinstance(value, (np.ndarray, jax.Array)) else kind
    require(_is_number(dtype), argument, "an array of numbers that JAX knows", found)
    remedy = f'Pass {argument}.astype({argument}.dtype.newbyteorder("=")).'
    require(dtype.isnative, argument, "numbers in the byte order of this machine", f"dtype {dtype.str}", remedy)
    return array


def require_floating_dtype(dtype: Any, argument: str) -> None:
    """Raises `InputError` unless `dtype` is a floating one, or None.

    >>> require_floating_dtype("bfloat16", "dtype")
    """
    try:
        floating = dtype is None or _is_floating(jnp.dtype(dtype))
    except TypeError:
        floating = False
    require(floating, argument, "a floating dtype or None", repr(dtype) if isinstance(dtype, str) else dtype)


def require_floating(a: Any, argument: str) -> None:
    """Raises `InputError` unless the dtype of `a` is a floating one."""
    if not _is_floating(a.dtype):
        remedy = f"Convert it, {argument}.astype(jnp.float32), if that is what it means."
        raise InputError(argument, "a floating dtype", f"dtype {a.dtype}", remedy)


def whole(a: Any) -> Any:
    """The array on every device along Explicit axes of a mesh that split it; else as it is."""
    if isinstance(a, np.ndarray):
        return a
    sharding = jax.typeof(a).sharding
    split = any(name is not None for name in sharding.spec)
    return jax.reshard(a, NamedSharding(sharding.mesh, PartitionSpec())) if split else a


def numpy_of(a: Any) -> Any:
    """`jax.numpy` or `numpy`, whichever made the array: what is written once for both."""
    return jnp if isinstance(a, jax.Array) else np


# The questions below are asked of every array of every call; JAX answers slowly.


@cache
def _is_number(dtype: Any) -> bool:
    """Whether JAX knows the numbers of this dtype: it has no long double."""
    return dtype == jnp.bool_ or (jnp.issubdtype(dtype, np.number) and dtype.char not in "gG")


@cache
def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)
