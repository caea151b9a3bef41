"""The checks of `sequences`. Each raises InputError that names the first wrong row."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grujax.data.targets import Target, named
from grujax.errors import InputError, require


class DataWarning(UserWarning):
    """The data are used as given, but look like a mistake."""


class AxesWarning(DataWarning):
    """The axes of x do not seem to be (N, T, C)."""


class UnitWarning(DataWarning):
    """The times seem to have another unit than those of the training split."""


FIELDS = ("hidden", "activation")
"""Names that no head may have: `head_hidden` and `head_activation` are fields of a model."""
SWAPPED = "x has the axes (N, T, C). For an array (N, C, T), as in aeon, pass x.swapaxes(1, 2)."


def shown(names: Iterable[str] | None) -> str:
    """Returns names as an error prints them: the first ten, and how many there are if they are more."""
    names = list(names or ())
    more = f", ... ({len(names)} in all)" if len(names) > 10 else ""
    return (", ".join(map(repr, names[:10])) + more) or "none"


def unmasked(value: Any) -> Any:
    """Returns a masked array of NumPy with NaN, or None, in its masked entries; any other value unchanged."""
    if not isinstance(value, np.ma.MaskedArray) or not np.ma.is_masked(value):
        return value
    dtype, fill = (np.result_type(value, np.float32), np.nan) if value.dtype.kind in "biuf" else (object, None)
    return np.ma.filled(value.astype(dtype), fill)


def array_of(value: ArrayLike | Sequence[ArrayLike], argument: str, source: str) -> np.ndarray:
    """Returns `value` as an array, with NaN or None where NumPy masks it."""
    try:
        return np.asarray(unmasked(value))
    except ValueError as error:
        raise InputError(argument, "an array", f"rows of unequal sizes in {source}") from error


def real(value: ArrayLike, axes: str, argument: str, source: str) -> np.ndarray:
    """Returns `value` as an array of real numbers, of its own dtype, with as many axes as `axes` names."""
    array = array_of(value, argument, source)
    fits = array.ndim == axes.count(",") + 1 and array.dtype.kind in "biuf"
    require(fits, argument, f"real numbers {axes}", f"{array.dtype} of shape {array.shape} in {source}")
    return array


def checked_lengths(lengths: ArrayLike | None, shape: tuple[int, ...], source: str) -> np.ndarray:
    """Returns `lengths` as (N,) int32 for x of `shape` (N, T, C); None means that all are T."""
    if lengths is None:
        return np.full(shape[0], shape[1], np.int32)
    steps = array_of(lengths, "lengths", source)
    fits = steps.shape == shape[:1] and steps.dtype.kind in "iuf"
    require(fits, "lengths", f"{shape[0]} integers", f"{steps.dtype} of shape {steps.shape} in {source}")
    wrong = np.flatnonzero(~((steps >= 1) & (steps <= shape[1]) & (steps % 1 == 0)))
    if len(wrong):
        found = f"{steps[wrong[0]]} in row {wrong[0]} of {source}"
        swapped = shape[1] < steps.max() <= shape[2]
        raise InputError("lengths", f"integers from 1 to T = {shape[1]}", found, SWAPPED if swapped else "")
    require(steps.dtype.kind != "f", "lengths", "an integer dtype", f"{steps.dtype} in {source}")
    return steps.astype(np.int32)


def argument(parameter: str, head: str) -> str:
    """Returns the name by which an error calls the y or the labels of a head.

    >>> argument("y", "label"), argument("y", "")
    ("y['label']", 'y')
    """
    return f"{parameter}[{head!r}]" if head else parameter


def in_words(heads: Iterable[str]) -> str:
    """Returns the names of heads as an error prints them.

    >>> in_words(["label", "value"]), in_words([""])
    ("the heads 'label', 'value'", 'a single head')
    """
    return "a single head" if {*heads} == {""} else f"the heads {shown(heads)}"


def check_names(y: Any, labels: Any) -> None:
    """Checks the names of the heads in y, if there are several, and that `labels`, if given, has the same heads."""
    plain = not isinstance(y, Mapping) or all(isinstance(name, str) and name and "/" not in name for name in y)
    found = shown(named(y))
    require(plain and len(named(y)) > 0, "y", "heads named by strings, not empty and without a slash", found)
    taken = [name for name in named(y) if name in FIELDS]
    require(not taken, "y", "heads not named as a field of a model, head_NAME", shown(taken), "Rename it.")
    same = labels is None or named(labels).keys() == named(y).keys()
    require(same, "labels", f"class names, or None, for each head of y: {found}", shown(named(labels)))


def checked_target(
    y: Any, name: str, lengths: np.ndarray, width: int, labels: Iterable[str] | None, source: str
) -> Target:
    """Checks the y of a head, one value per step or one per sequence, and returns it as a `Target`. `width` is T."""
    try:
        if is_per_step(y):
            return Target(*checked_steps_y(y, lengths, width, labels, source))
        return Target(*checked_y(y, len(lengths), labels, source))
    except InputError as error:
        if not name:
            raise
        of_head = argument("y", name) + error.argument.removeprefix("y")
        raise InputError(of_head, error.expected, error.found, error.remedy, error.rule) from error


def checked_y(
    y: ArrayLike | Sequence[ArrayLike], count: int, labels: Iterable[str] | None, source: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Returns y as (N,) int32 class indices, and the class names; or as (N,) or (N, K) float32 targets, and None."""
    values = array_of(y, "y", source)
    several = values.ndim == 2 and values.dtype.kind == "f" and labels is None and values.shape[1] > 0
    fits = values.shape[:1] == (count,) and (values.ndim == 1 or several)
    expected = f"one value, or several floats, for each of the {count} sequences"
    require(fits, "y", expected, f"{values.dtype} of shape {values.shape} in {source}")
    if values.dtype == object and all(isinstance(value, str) for value in values):  # strings of pandas
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
    return _classes(values, labels, source, "row {}".format)


def is_per_step(y: ArrayLike | Sequence[ArrayLike]) -> bool:
    """Whether y has a value for each step: labels (N, T) or targets (N, T, K), or a list of such rows."""
    try:
        array = np.asarray(y)
    except ValueError:  # rows of unequal sizes
        return True
    return array.ndim == 3 or (array.ndim == 2 and array.dtype.kind != "f")


def checked_steps_y(
    y: Any, lengths: np.ndarray, width: int, labels: Iterable[str] | None, source: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Returns the N rows of y as (N, T) int32 class indices, -1 at steps without a label, and the class names; or as
    (N, T, K) float32 targets, NaN at steps without targets, and None. `width` is T."""
    rows = [array_of(row, f"y[{index}]", source) for index, row in enumerate(y)]
    require(len(rows) == len(lengths), "y", f"a row for each of {len(lengths)} sequences", len(rows))
    axes = rows[0].shape[1:]
    for index, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        fits = row.ndim in (1, 2) and len(row) in (length, width) and row.shape[1:] == axes
        expected = f"one label, or one list of targets, for each of {length} steps"
        require(fits, f"y[{index}]", expected, f"shape {row.shape} in {source}")
    values = np.concatenate([row[:length] for row, length in zip(rows, lengths, strict=True)])
    valid = np.arange(width) < lengths[:, None]  # (N, T): `values` belong to these steps, in order

    def place(index: int) -> str:
        row, step = np.argwhere(valid)[index].tolist()
        return f"row {row}, step {step}"

    if axes:
        expected = "a class label (string or integer) for each step"
        require(labels is None, "y", expected, f"targets {axes} for each step in {source}")
        with np.errstate(over="ignore"):
            targets = real(values, "(step, K)", "y", source).astype(np.float32)
        missing = np.isnan(targets).all(1)
        wrong = np.flatnonzero(~(np.isfinite(targets).all(1) | missing))
        if len(wrong):
            expected = "finite float32 targets, or NaN for all targets of a step"
            raise InputError("y", expected, f"{values[wrong[0]]} at {place(wrong[0])} of {source}")
        names, flat, filler = None, targets, np.float32(np.nan)
    else:
        remedy = "Single targets of the steps are (T_i, 1). A step without a label has None, '' or -1."
        unlabelled = [value is None or value != value or value in (-1, "") for value in values.tolist()]
        missing = np.array(unlabelled, bool)
        known = np.array(values[~missing].tolist())
        require(known.dtype.kind in "Ubiu" or not len(known), "y", "labels (T_i,)", f"{known.dtype}", remedy)
        where = np.flatnonzero(~missing)
        filler, flat = np.int32(-1), np.full(len(values), -1, np.int32)
        flat[where], names = _classes(known, labels, source, lambda index: place(where[index]))
    require(not missing.all(), "y", "a label or target for at least one step", f"none in {source}")
    padded = np.full((*valid.shape, *axes), filler)
    padded[valid] = flat
    return padded, names


def _classes(
    values: np.ndarray, labels: Iterable[str] | None, source: str, place: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns values (N,) as int32 class indices, and the class names. `place` names the place of a value in errors."""
    distinct, first, number = np.unique(values, return_index=True, return_inverse=True)
    names = [str(name) for name in distinct.tolist()]
    known = tuple(sorted(names, key=_order) if labels is None else labels)
    index = {name: place for place, name in enumerate(known)}
    unseen = [(row, name) for row, name in zip(first.tolist(), names, strict=True) if name not in index]
    if unseen:
        row, name = min(unseen)
        raise InputError("y", f"one of the known labels {shown(known)}", f"{name!r} in {place(row)} of {source}")
    return np.array([index[name] for name in names], np.int32)[number], known


def _order(label: str) -> tuple[float, str]:
    """A key that sorts numbers by value, before all other names."""
    try:
        number = float(label)
    except ValueError:
        number = math.inf
    return (math.inf if math.isnan(number) else number, label)
