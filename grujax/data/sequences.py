"""Sequences in memory: checked, padded with zeros, cast to float32."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grujax.data.checks import (
    SWAPPED,
    AxesWarning,
    argument,
    check_names,
    checked_lengths,
    checked_target,
    in_words,
    real,
    shown,
)
from grujax.data.missing import checked_fill, checked_times, compare_gaps, masked, median_gap
from grujax.data.targets import Target, named, unnamed
from grujax.errors import InputError, require, require_one_of, require_package


@dataclass(frozen=True, eq=False)
class Sequences:
    """N sequences, padded at the end to T steps of C channels. Made by `sequences`, which checks them."""

    x: np.ndarray  # (N, T, C) float32, exactly zero past each length
    lengths: np.ndarray  # (N,) int32, 1..T
    y: Any
    """(N,) int32 class indices where there are labels, else (N,) or (N, K) float32 targets. With one a step (N, T)
    int32, -1 where a step has none, or (N, T, K) float32, NaN where it has none. None: unknown. Of several heads a dict
    of such arrays by name."""
    labels: Any
    """Class names, a tuple; None for regression or where y is unknown. Of several heads a dict by name, as y."""
    weight: np.ndarray | None = None  # (N,) float32: what each row counts in the loss; None: all alike
    fill: np.ndarray | None = None
    """(C/3,) float32: of `missing="mask"`, what stands before the first observation of a channel. None: no mask."""
    gap: float | None = None
    """Of `missing="mask"`: the median time from a step to the next, which tells another unit. None: too few steps."""

    def __len__(self) -> int:
        return len(self.x)

    @property
    def channels(self) -> int:
        """C, the number of values a step holds."""
        return self.x.shape[2]

    @property
    def targets(self) -> dict[str, Target]:
        """y and labels of each head by its name, of a single one under ""; empty where y is unknown."""
        labels = named(self.labels)
        return {} if self.y is None else {name: Target(y, labels.get(name)) for name, y in named(self.y).items()}

    @property
    def per_step(self) -> bool:
        """Whether y has a label or target for each step, and not for each sequence; alike for all heads."""
        return any(target.per_step for target in self.targets.values())

    @property
    def labelled(self) -> Any:
        """(N, T) bool: the steps that have a label or target of their own. Of data with one a step. By name, as y."""
        return unnamed({name: target.labelled for name, target in self.targets.items()})

    def of_head(self, name: str) -> "Sequences":
        """The same sequences with the y of that head alone."""
        require_one_of(name, self.targets, "name")
        return replace(self, **self.targets[name]._asdict())

    def take(self, indices: ArrayLike) -> "Sequences":
        """The rows `indices` (M,) in that order, T trimmed to the longest. Raises InputError for no such row."""
        rows = np.asarray(indices)
        valid = rows.ndim == 1 and rows.size > 0 and rows.dtype.kind in "iu"
        require(valid, "indices", "one row number or more", f"{rows.dtype} of shape {rows.shape}")
        least, most = rows.min(), rows.max()
        require(least >= 0 and most < len(self), "indices", f"0 to {len(self) - 1}", f"{least} to {most}")
        lengths = self.lengths[rows]
        y = {name: target.of_rows(rows, lengths.max()) for name, target in self.targets.items()}
        y = unnamed(y) if y else None
        weight = None if self.weight is None else self.weight[rows]
        return replace(self, x=self.x[rows, : lengths.max()], lengths=lengths, y=y, weight=weight)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training split of a task and, unless None, a test split of the same. Raises InputError where the two do not
    belong together."""

    name: str
    train: Sequences
    test: Sequences | None = None

    def __post_init__(self) -> None:
        train, test = self.train, self.test
        require_sequences(train, "train")
        _check_weight(train)
        require(bool(train.targets), "y", "labels or targets in the training split", "none")
        if test is not None:
            require_sequences(test, "test")
            require_alike(train, test, "the test split")


def require_sequences(value: object, argument: str) -> None:
    """Raises InputError for anything but `Sequences`."""
    of_dataset, of_arrays = "Pass its `train` or its `test`.", "grujax.data.sequences(x, y) makes them."
    remedy = of_dataset if isinstance(value, Dataset) else of_arrays
    require(isinstance(value, Sequences), argument, "`Sequences`", type(value).__name__, remedy)


def _check_weight(data: Sequences) -> None:
    weight = data.weight
    if weight is not None:
        fits = weight.shape == (len(data),) and bool(((weight > 0) & (weight < np.inf)).all())
        found, remedy = f"{weight.shape}, {weight}", "Leave out rows of weight 0, with take."
        require(fits, "weight", f"{len(data)} positive numbers", found, remedy)


def require_alike(train: Sequences, other: Sequences, where: str) -> None:
    """Raises InputError where `other` does not belong to the task of the training split."""
    _check_weight(other)
    require(bool(other.targets), "y", f"labels or targets in {where}", "none")
    same = train.channels == other.channels
    require(same, "channels", f"{train.channels} as in training", f"{other.channels} in {where}")
    heads, found = (in_words(s.targets) for s in (train, other))
    require(train.targets.keys() == other.targets.keys(), "y", f"{heads}, as in training", f"{found} in {where}")
    for name, target in train.targets.items():
        of = other.targets[name]
        expected, found = f"targets {target.each} as in training", f"{of.each} in {where}"
        require(target.each == of.each, argument("y", name), expected, found)
        expected, found = f"{shown(target.labels)} as in training", f"{shown(of.labels)} in {where}"
        require(target.labels == of.labels, argument("labels", name), expected, found)
    same = np.array_equal(train.fill if train.fill is not None else [], other.fill if other.fill is not None else [])
    require(same, "fill", "that of the training split", f"another in {where}", "Pass fill=train.fill.")
    compare_gaps(other.gap, train.gap, where)


def sequences(
    x: ArrayLike,
    y: ArrayLike | Sequence[ArrayLike] | Mapping[str, Any] | None = None,
    lengths: ArrayLike | None = None,
    *,
    labels: Iterable[str] | Mapping[str, Iterable[str] | None] | None = None,
    missing: str = "refuse",
    times: ArrayLike | Sequence[ArrayLike] | None = None,
    fill: ArrayLike | None = None,
    source: str = "data",
) -> Sequences:
    """Checks, casts and pads.

    x: real (N, T, C), or a list of (T_i, C). Padding may hold anything, NaN too; it becomes zero.
    y: (N,) strings, integers or booleans are classes, floats are regression targets, (N, K) where there are several.
      One a step: labels (N, T), or targets (N, T, K) with K = 1 for one, or a list of such rows (T_i,) or (T_i, K).
      A step that has none, and is left out of loss and figures, has the label None, "" or -1, or targets NaN.
      For a model with several heads a mapping from their names to any of these, one a step for all of them or for none.
    lengths: (N,) integers, 1..T; None is T everywhere. A list has its own.
    labels: the class names that a model knows, in its order; None takes those in y, sorted, '2' before '10'.
    missing: "mask" takes NaN in x, and what NumPy masks, for a missing value. x then has 3C channels: the last observed
      value, a mask, which is 1 where a value was observed, and the time since the observation before (Che et al. 2018,
      arXiv 1606.01865).
    times: real (N, T), or a list of (T_i,): when each step was, for that time; None is 0, 1, ... With "mask" alone.
    fill: (C,), what stands before a channel's first observation: `fill` of the training split. None: the means of x.
    source: the name of the data in errors.

    Warns (`AxesWarning`) of an array with ten channels or more for each step, which may be one (N, C, T). Raises
    InputError for anything else, naming the row: missing, infinite or too large values, wrong sizes, types or
    lengths, labels outside `labels`.

    >>> data = sequences([[[1.0], [2.0]], [[3.0]]], ["walk", "run"])
    >>> data.x[:, :, 0].tolist(), data.lengths.tolist(), data.y.tolist(), data.labels
    ([[1.0, 2.0], [3.0, 0.0]], [2, 1], [1, 0], ('run', 'walk'))
    >>> sequences([[[1.0], [2.0]], [[3.0]]], [["walk", None], ["run"]]).y.tolist()  # a label a step
    [[1, -1], [0, -1]]
    >>> sequences([[[1.0]], [[2.0]]], {"gait": ["walk", "run"], "speed": [1.5, 3.0]}).labels  # two heads
    {'gait': ('run', 'walk'), 'speed': None}
    """
    with np.errstate(over="ignore"):  # what overflows float32 is found below, by its row
        if isinstance(x, (list, tuple)):
            rule = "lengths cannot be given with a list, whose arrays have their own"
            require(lengths is None, "lengths", None, "some", rule=rule)
            rows = [real(row, "(T, C)", f"x[{index}]", source) for index, row in enumerate(x)]
            channels = [row.shape[1] for row in rows]
            odd = next((index for index, count in enumerate(channels) if count != channels[0]), None)
            if odd is not None:
                turned = len({len(row) for row in rows}) == 1
                remedy = "A row is (T, C): of rows (C, T), as aeon has them, pass row.T." if turned else ""
                found = f"{channels[odd]} in row {odd} of {source}"
                raise InputError("x", f"{channels[0]} channels as in row 0", found, remedy)
            lengths = [len(row) for row in rows]
            values = np.zeros((len(rows), max(lengths, default=0), max(channels, default=0)), np.float32)
            for padded, row in zip(values, rows, strict=True):
                padded[: len(row)] = row
        else:
            rows = real(x, "(N, T, C)", "x", source)
            values = rows.astype(np.float32)
            if lengths is None and rows.shape[2] >= 10 * rows.shape[1] > 0:
                read = f"{source}: read as {rows.shape[1]} steps of {rows.shape[2]} channels"
                warnings.warn(f"{read}. {SWAPPED}", AxesWarning, stacklevel=2)
    require(values.size > 0, "x", "at least one sequence, step and channel", f"shape {values.shape} in {source}")

    steps = checked_lengths(lengths, values.shape, source)
    for row, length in zip(values, steps.tolist(), strict=True):  # in place: a mask would be as large as x of bools
        row[length:] = 0
    require_one_of(missing, ("refuse", "mask"), "missing")
    least, most, fits = np.minimum, np.maximum, np.isfinite
    if missing == "mask":
        least, most, fits = np.fmin, np.fmax, lambda values: ~np.isinf(values)
    if not fits([least.reduce(values, axis=None), most.reduce(values, axis=None)]).all():
        row, step, channel = np.argwhere(~fits(values))[0].tolist()
        found = f"{rows[row][step, channel]} at row {row}, step {step}, channel {channel} of {source}"
        remedy = "Fill in or drop what is missing or too large, or take missing='mask'; padding needs lengths (N,)."
        raise InputError("x", "finite float32 values", found, remedy)
    if missing == "mask":
        given = None if fill is None else checked_fill(fill, values.shape[2], source)
        at = checked_times(times, steps, values.shape[1], source)
        gap = median_gap(at, steps)
        values, fill = masked(values, steps, at, given)
    else:
        for name, value in {"times": times, "fill": fill}.items():
            require(value is None, name, None, "some", rule=f"{name} needs missing='mask'")
        fill = gap = None
    if y is None:
        return Sequences(values, steps, None, None, fill=fill, gap=gap)
    check_names(y, labels)
    known = named(labels)
    targets = {
        name: checked_target(of, name, steps, values.shape[1], known.get(name), source) for name, of in named(y).items()
    }
    a_step = [name for name, target in targets.items() if target.per_step]
    found = f"a step for {shown(a_step)} alone"
    require(len(a_step) in (0, len(targets)), "y", "a label or target a step for all heads or for none", found)
    y, labels = (unnamed({name: getattr(t, of) for name, t in targets.items()}) for of in ("y", "labels"))
    return Sequences(values, steps, y, labels, fill=fill, gap=gap)


def stratified_split(data: Sequences, fraction: float, seed: int) -> tuple[Sequences, Sequences]:
    """Splits the rows into (rest, held out), the classes in proportion, at random without classes or with one a step.

    Of several heads the classes are those of the first that has classes.

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
    require_sequences(data, "data")
    train_test_split = require_package("sklearn.model_selection", "data").train_test_split
    require(0 < fraction < 1, "fraction", "a number between 0 and 1", fraction)
    require(0 <= seed < 2**32, "seed", "an integer from 0 to 2**32 - 1", seed)
    of_classes = [] if data.per_step else [t for t in data.targets.values() if t.labels is not None]
    classes, labels = of_classes[0] if of_classes else (None, None)
    present, counts = np.unique([0] if classes is None else classes, return_counts=True)
    if labels is not None and counts.min() < 2:
        label = labels[present[counts.argmin()]]
        raise InputError("y", "two sequences or more of each class", f"one of {label!r}", "Give a test file.")
    held_size = max(1, round(fraction * len(data)))
    enough = len(data) - held_size >= len(present)
    expected = f"{len(present)} sequences or more left to train on"
    found = f"{len(data)} with {held_size} of them held out"
    require(enough, "data", expected, found, "Hold out less, or give a test file.")
    if classes is not None and held_size < len(present):
        order = np.random.default_rng(seed).permutation(len(data))
        firsts = np.unique(classes[order], return_index=True)[1]  # of each class, its first row in that order
        held = np.sort(order[np.sort(firsts)[:held_size]])
        rest = np.setdiff1d(order, held)
    else:
        rest, held = train_test_split(np.arange(len(data)), test_size=held_size, random_state=seed, stratify=classes)
    if classes is not None and len(np.unique(classes[rest])) < len(present):
        raise InputError("fraction", "a share that leaves every class in training", fraction, "Hold out less.")
    parts = data.take(rest), data.take(held)
    known = not data.per_step or all(t.labelled.any() for part in parts for t in part.targets.values())
    expected = "steps with a label or target among the rows held out and the rest"
    require(known, "y", expected, "none in one", "Give a test file; in fit, validation=0.")
    return parts


def statistics(data: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """mean (C,) and std (C,) float32 over the valid steps, computed in float64. A constant channel has std 1.

    >>> mean, std = statistics(sequences([[[1.0, 7.0], [3.0, 7.0]]]))
    >>> mean.tolist(), std.tolist()
    ([2.0, 7.0], [1.0, 1.0])
    """
    require_sequences(data, "data")
    steps = data.x[np.arange(data.x.shape[1]) < data.lengths[:, None]]
    mean, std = steps.mean(0, dtype=np.float64), steps.std(0, dtype=np.float64).astype(np.float32)
    # float64 sums float32 constants exactly, so their std is 0 and no rounding error
    return mean.astype(np.float32), np.where(std == 0, np.float32(1), std)
