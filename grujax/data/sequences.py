"""Sequences in memory: checked, padded with zeros, cast to float32."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from grujax.data.checks import checked_lengths, checked_y, real, shown
from grujax.errors import InputError, require, require_package


@dataclass(frozen=True, eq=False)
class Sequences:
    """N sequences, padded at the end to T steps of C channels. Made by `sequences`, which checks them."""

    x: np.ndarray  # (N, T, C) float32, exactly zero past each length
    lengths: np.ndarray  # (N,) int32, 1..T
    y: (
        np.ndarray | None
    )  # (N,) int32 class indices where there are labels, else (N,) or (N, K) float32 targets, or None
    labels: tuple[str, ...] | None  # class names; None for regression or where y is unknown
    weight: np.ndarray | None = None  # (N,) float32: what each row counts in the loss; None: all alike

    def __len__(self) -> int:
        return len(self.x)

    @property
    def channels(self) -> int:
        """C, the number of values a step holds."""
        return self.x.shape[2]

    def take(self, indices: ArrayLike) -> "Sequences":
        """The rows `indices` (M,) in that order, T trimmed to the longest. Raises InputError for no such row."""
        rows = np.asarray(indices)
        valid = rows.ndim == 1 and rows.size > 0 and rows.dtype.kind in "iu"
        require(valid, "indices", "one row number or more", f"{rows.dtype} of shape {rows.shape}")
        require(
            rows.min() >= 0 and rows.max() < len(self),
            "indices",
            f"0 to {len(self) - 1}",
            f"{rows.min()} to {rows.max()}",
        )
        lengths = self.lengths[rows]
        y = None if self.y is None else self.y[rows]
        weight = None if self.weight is None else self.weight[rows]
        return Sequences(self.x[rows, : lengths.max()], lengths, y, self.labels, weight)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training split of a task and, unless None, a test split of the same. Raises InputError where the two do not
    belong together."""

    name: str
    train: Sequences
    test: Sequences | None = None

    def __post_init__(self) -> None:
        train, test = self.train, self.test
        known = train.y is not None and (test is None or test.y is not None)
        require(known, "y", "labels or targets in each split", "none")
        if test is None:
            return
        same = train.channels == test.channels
        require(same, "channels", f"{train.channels} as in training", f"{test.channels} in the test split")
        targets = [f"{array.shape[1:]}" for array in (train.y, test.y) if array is not None]
        require(targets[0] == targets[-1], "y", f"targets {targets[0]} a row as in training", targets[-1])
        same = train.labels == test.labels
        require(same, "labels", f"{shown(train.labels)} as in training", f"{shown(test.labels)} in the test split")


def sequences(
    x: ArrayLike,
    y: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    *,
    labels: Iterable[str] | None = None,
    source: str = "data",
) -> Sequences:
    """Checks, casts and pads.

    x: real (N, T, C), or a list of (T_i, C). Padding may hold anything, NaN too; it becomes zero.
    y: (N,) strings, integers or booleans are classes, floats are regression targets, (N, K) where there are several.
    lengths: (N,) integers, 1..T; None is T everywhere. A list has its own.
    labels: the class names that a model knows, in its order; None takes those in y, sorted, '2' before '10'.
    source: the name of the data in errors.

    Raises InputError for anything else, naming the row: missing, infinite or too large values, wrong sizes, types or
    lengths, labels outside `labels`.

    >>> data = sequences([[[1.0], [2.0]], [[3.0]]], ["walk", "run"])
    >>> data.x[:, :, 0].tolist(), data.lengths.tolist(), data.y.tolist(), data.labels
    ([[1.0, 2.0], [3.0, 0.0]], [2, 1], [1, 0], ('run', 'walk'))
    """
    with np.errstate(over="ignore"):  # what overflows float32 is found below, by its row
        if isinstance(x, (list, tuple)):
            rule = "lengths cannot be given with a list, whose arrays have their own"
            require(lengths is None, "lengths", None, "some", rule=rule)
            rows = [real(row, "(T, C)", f"x[{index}]", source) for index, row in enumerate(x)]
            channels = [row.shape[1] for row in rows]
            odd = next((index for index, count in enumerate(channels) if count != channels[0]), None)
            if odd is not None:
                raise InputError(
                    "x", f"{channels[0]} channels as in row 0", f"{channels[odd]} in row {odd} of {source}"
                )
            lengths = [len(row) for row in rows]
            values = np.zeros((len(rows), max(lengths, default=0), max(channels, default=0)), np.float32)
            for padded, row in zip(values, rows, strict=True):
                padded[: len(row)] = row
        else:
            rows = real(x, "(N, T, C)", "x", source)
            values = rows.astype(np.float32)
    require(values.size > 0, "x", "at least one sequence, step and channel", f"shape {values.shape} in {source}")

    steps = checked_lengths(lengths, values.shape, source)
    for row, length in zip(values, steps.tolist(), strict=True):  # in place: a mask would be as large as x of bools
        row[length:] = 0
    if not np.isfinite([values.min(), values.max()]).all():
        row, step, channel = np.argwhere(~np.isfinite(values))[0].tolist()
        found = f"{rows[row][step, channel]} at row {row}, step {step}, channel {channel} of {source}"
        raise InputError(
            "x",
            "finite float32 values",
            found,
            "Fill in or drop what is missing or too large; padding needs lengths (N,).",
        )
    if y is None:
        return Sequences(values, steps, None, None)
    return Sequences(values, steps, *checked_y(y, len(values), labels, source))


def stratified_split(data: Sequences, fraction: float, seed: int) -> tuple[Sequences, Sequences]:
    """Splits the rows into (rest, held out), the classes in proportion, at random without classes.

    Args:
      data: N rows; of each class two or more.
      fraction: share of the rows to hold out, rounded to at least one row. It is never exceeded: where the held-out
        rows are fewer than the classes, each has another class. Every class keeps a row in the rest.
      seed: from 0 to 2**32 - 1; the same seed gives the same split.

    Raises:
      InputError: too few rows, or a fraction or seed out of range.

    >>> data = sequences([[[1.0]]] * 20, [*"aabbccddeeffgghhiijj"])
    >>> [len(part) for part in stratified_split(data, 0.1, seed=0)]
    [18, 2]
    """
    train_test_split = require_package("sklearn.model_selection", "data").train_test_split
    require(0 < fraction < 1, "fraction", "a number between 0 and 1", fraction)
    require(0 <= seed < 2**32, "seed", "an integer from 0 to 2**32 - 1", seed)
    classes = data.y if data.labels is not None else None
    present, counts = np.unique([0] if classes is None else classes, return_counts=True)
    if data.labels is not None and counts.min() < 2:
        label = data.labels[present[counts.argmin()]]
        raise InputError("y", "two sequences or more of each class", f"one of {label!r}", "Give a test file.")
    held_size = max(1, round(fraction * len(data)))
    enough = len(data) - held_size >= len(present)
    found = f"{len(data)} with {held_size} of them held out"
    require(enough, "data", f"{len(present)} sequences or more left to train on", found, "Give a test file.")
    if classes is not None and held_size < len(present):
        order = np.random.default_rng(seed).permutation(len(data))
        firsts = np.unique(classes[order], return_index=True)[1]  # of each class, its first row in that order
        held = np.sort(order[np.sort(firsts)[:held_size]])
        rest = np.setdiff1d(order, held)
    else:
        rest, held = train_test_split(np.arange(len(data)), test_size=held_size, random_state=seed, stratify=classes)
    if classes is not None and len(np.unique(classes[rest])) < len(present):
        raise InputError("fraction", "a share that leaves every class in training", fraction, "Hold out less.")
    return data.take(rest), data.take(held)


def statistics(data: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """mean (C,) and std (C,) float32 over the valid steps, computed in float64. A constant channel has std 1.

    >>> mean, std = statistics(sequences([[[1.0, 7.0], [3.0, 7.0]]]))
    >>> mean.tolist(), std.tolist()
    ([2.0, 7.0], [1.0, 1.0])
    """
    steps = data.x[np.arange(data.x.shape[1]) < data.lengths[:, None]]
    mean, std = steps.mean(0, dtype=np.float64), steps.std(0, dtype=np.float64).astype(np.float32)
    # float64 sums float32 constants exactly, so their std is 0 and no rounding error
    return mean.astype(np.float32), np.where(std == 0, np.float32(1), std)
