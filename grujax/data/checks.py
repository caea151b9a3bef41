"""The checks behind `sequences`. Each raises InputError with the first row that is wrong."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from grujax.errors import InputError, require


def shown(names: Iterable[str] | None) -> str:
    """Class names as an error prints them: the first ten."""
    names = list(names or ())
    more = f", ... ({len(names)} in all)" if len(names) > 10 else ""
    return (", ".join(map(repr, names[:10])) + more) or "none"


def _array(value: ArrayLike, argument: str, source: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(argument, "an array", f"rows of unequal sizes in {source}") from error


def real(value: ArrayLike, axes: str, argument: str, source: str) -> np.ndarray:
    """`value` as an array of real numbers with as many axes as `axes` names, its dtype kept."""
    array = _array(value, argument, source)
    fits = array.ndim == axes.count(",") + 1 and array.dtype.kind in "biuf"
    require(fits, argument, f"real numbers {axes}", f"{array.dtype} of shape {array.shape} in {source}")
    return array


def checked_lengths(lengths: ArrayLike | None, shape: tuple[int, ...], source: str) -> np.ndarray:
    """`lengths` as (N,) int32 for x of `shape` (N, T, C); None is T everywhere."""
    if lengths is None:
        return np.full(shape[0], shape[1], np.int32)
    steps = _array(lengths, "lengths", source)
    fits = steps.shape == shape[:1] and steps.dtype.kind in "iuf"
    require(fits, "lengths", f"{shape[0]} integers", f"{steps.dtype} of shape {steps.shape} in {source}")
    wrong = np.flatnonzero(~((steps >= 1) & (steps <= shape[1]) & (steps % 1 == 0)))
    if len(wrong):
        found = f"{steps[wrong[0]]} in row {wrong[0]} of {source}"
        raise InputError("lengths", f"integers from 1 to T = {shape[1]}", found)
    require(steps.dtype.kind != "f", "lengths", "an integer dtype", f"{steps.dtype} in {source}")
    return steps.astype(np.int32)


def checked_y(
    y: ArrayLike, count: int, labels: Iterable[str] | None, source: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """y as (N,) int32 indices into the class names, and these; or as (N,) or (N, K) float32 targets, and None."""
    values = _array(y, "y", source)
    several = values.ndim == 2 and values.dtype.kind == "f" and labels is None and values.shape[1] > 0
    fits = values.shape[:1] == (count,) and (values.ndim == 1 or several)
    expected = f"one value, or several floats, for each of {count} sequences"
    require(fits, "y", expected, f"{values.dtype} of shape {values.shape} in {source}")
    if values.dtype == object and all(isinstance(value, str) for value in values):  # as pandas holds strings
        values = values.astype(str)
    if values.dtype.kind == "f" and labels is None:
        with np.errstate(over="ignore"):
            targets = values.astype(np.float32)
        wrong = np.flatnonzero(~np.isfinite(targets).reshape(count, -1).all(1))
        if len(wrong):
            raise InputError("y", "finite float32 targets", f"{values[wrong[0]]} in row {wrong[0]} of {source}")
        return targets, None
    expected = "class labels (strings or integers)" + (" or real targets" if labels is None else "")
    require(values.dtype.kind in "UTbiu", "y", expected, f"{values.dtype} in {source}")
    distinct, first, number = np.unique(values, return_index=True, return_inverse=True)
    names = [str(name) for name in distinct.tolist()]
    known = tuple(sorted(names, key=_order) if labels is None else labels)
    index = {name: place for place, name in enumerate(known)}
    unseen = [(row, name) for row, name in zip(first.tolist(), names, strict=True) if name not in index]
    if unseen:
        row, name = min(unseen)
        raise InputError("y", f"one of the known labels {shown(known)}", f"{name!r} in row {row} of {source}")
    return np.array([index[name] for name in names], np.int32)[number], known


def _order(label: str) -> tuple[float, str]:
    """Sorts numbers by value, before every other name."""
    try:
        number = float(label)
    except ValueError:
        number = math.inf
    return (math.inf if math.isnan(number) else number, label)
