"""`Sequences`, checked and padded data in memory, the function `sequences` that makes them, and splits of them."""

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
from grujax.errors import InputError, counted, require, require_one_of, require_package


@dataclass(frozen=True, eq=False)
class Sequences:
    """N sequences, padded at the end to T steps of C channels. `sequences` makes and checks them."""

    x: np.ndarray  # (N, T, C) float32, exactly zero past each length
    lengths: np.ndarray  # (N,) int32, 1..T
    y: Any
    """With labels (N,) int32 class indices, otherwise (N,) or (N, K) float32 targets. With a label or target for each
    step (N, T) int32, -1 at steps without one, or (N, T, K) float32, NaN at steps without one. None: unknown. With
    several heads a dict of such arrays by name."""
    labels: Any
    """Class names, a tuple; None for a regression or if y is unknown. With several heads a dict by name, as y."""
    weight: np.ndarray | None = None  # (N,) float32: the weight of each row in the loss; None: all 1
    fill: np.ndarray | None = None
    """With missing="mask", the value of each channel before its first observation, (C/3,) float32; otherwise None."""
    gap: float | None = None
    """With missing="mask", the median time from one step to the next, by which another unit of time is noticed. None:
    too few steps, or a median of 0."""

    def __len__(self) -> int:
        return len(self.x)

    @property
    def channels(self) -> int:
        """C, the number of values of a step."""
        return self.x.shape[2]

    @property
    def targets(self) -> dict[str, Target]:
        """y and labels of each head by name; a single head has the name "". Empty if y is unknown."""
        labels = named(self.labels)
        return {} if self.y is None else {name: Target(y, labels.get(name)) for name, y in named(self.y).items()}

    @property
    def per_step(self) -> bool:
        """Whether y has a label or target for each step, rather than for each sequence. All heads are alike in this."""
        return any(target.per_step for target in self.targets.values())

    @property
    def labelled(self) -> Any:
        """The steps that have a label or target, (N, T) bool; with several heads by name. Needs `per_step`."""
        return unnamed({name: target.labelled for name, target in self.targets.items()})

    def of_head(self, name: str) -> "Sequences":
        """Returns the same sequences with the y of that head alone. Raises InputError if there is no such head."""
        require_one_of(name, self.targets, "name")
        return replace(self, **self.targets[name]._asdict())

    def take(self, indices: ArrayLike) -> "Sequences":
        """Returns the rows `indices` (M,) in that order, with T reduced to the longest of them.

        Raises InputError unless `indices` are one or more numbers of rows.
        """
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
    """The training split of a task and, unless None, its test split.

    Raises InputError if the training split has no labels or targets, or if the test split does not match it.
    """

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
    """Raises InputError unless `value` is `Sequences`."""
    for_dataset, for_arrays = "Pass its `train` or its `test`.", "grujax.data.sequences(x, y) makes them."
    remedy = for_dataset if isinstance(value, Dataset) else for_arrays
    require(isinstance(value, Sequences), argument, "`Sequences`", type(value).__name__, remedy)


def _check_weight(data: Sequences) -> None:
    """Raises InputError unless the weights of the rows are positive numbers."""
    weight = data.weight
    if weight is not None:
        fits = weight.shape == (len(data),) and bool(((weight > 0) & (weight < np.inf)).all())
        found, remedy = f"shape {weight.shape}, {weight}", "Leave out rows of weight 0, with `take`."
        require(fits, "weight", f"{len(data)} positive numbers", found, remedy)


def require_alike(train: Sequences, other: Sequences, where: str) -> None:
    """Raises InputError if `other` does not match the training split: channels, heads, targets, labels and `fill`.

    Warns (`UnitWarning`) if the median gaps of both differ much. where: the name of `other` in messages.
    """
    _check_weight(other)
    require(bool(other.targets), "y", f"labels or targets in {where}", "none")
    same = train.channels == other.channels
    require(same, "channels", f"{train.channels} as in training", f"{other.channels} in {where}")
    heads, found = (in_words(s.targets) for s in (train, other))
    require(train.targets.keys() == other.targets.keys(), "y", f"{heads}, as in training", f"{found} in {where}")
    for name, target in train.targets.items():
        others = other.targets[name]
        expected, found = f"targets {target.each} as in training", f"{others.each} in {where}"
        require(target.each == others.each, argument("y", name), expected, found)
        expected, found = f"{shown(target.labels)} as in training", f"{shown(others.labels)} in {where}"
        require(target.labels == others.labels, argument("labels", name), expected, found)
    same = np.array_equal(train.fill if train.fill is not None else [], other.fill if other.fill is not None else [])
    require(same, "fill", "the values of the training split", f"others in {where}", "Pass fill=train.fill.")
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
    """Makes `Sequences` from arrays or lists: checks them, casts them to float32 and pads them with zeros.

    Args:
      x: real (N, T, C), or a list of (T_i, C). Padding becomes zero; it may have any values, even NaN.
      y: one per sequence: (N,) strings, integers or booleans are class labels, (N,) floats regression targets, and
        (N, K) floats K targets. One per step: labels (N, T) or targets (N, T, K), with K = 1 for a single target, or a
        list of rows (T_i,) or (T_i, K). A step without one has the label None, "" or -1, or targets NaN, and is left
        out of the loss and the figures. For a model with several heads: a mapping from their names to any of these,
        one per step for all heads or for none.
      lengths: (N,) integers from 1 to T; None: all are T. A list x has its own lengths.
      labels: the class names of a trained model, in its order. None: the labels in y, sorted, '2' before '10'.
      missing: "mask" reads NaN in x, and entries that NumPy masks, as missing values. x then has 3C channels: the last
        observed value, a mask that is 1 where a value was observed, and the time since the previous observation (Che
        et al. 2018, arXiv 1606.01865).
      times: real (N, T), or a list of (T_i,): the time of each step, only with missing="mask". None: 0, 1, ...
      fill: (C,), the value of each channel before its first observation: `fill` of the training split, only with
        missing="mask". None: the means of x.
      source: the name of the data in messages.

    Raises:
      InputError: missing, infinite or too large values, wrong sizes, types or lengths, or labels that are not in
        `labels`. The message names the row.

    Warns:
      AxesWarning: an array has at least ten times as many channels as steps, and may have the axes (N, C, T).

    >>> data = sequences([[[1.0], [2.0]], [[3.0]]], ["walk", "run"])
    >>> data.x[:, :, 0].tolist(), data.lengths.tolist(), data.y.tolist(), data.labels
    ([[1.0, 2.0], [3.0, 0.0]], [2, 1], [1, 0], ('run', 'walk'))
    >>> sequences([[[1.0], [2.0]], [[3.0]]], [["walk", None], ["run"]]).y.tolist()  # a label for each step
    [[1, -1], [0, -1]]
    >>> sequences([[[1.0]], [[2.0]]], {"gait": ["walk", "run"], "speed": [1.5, 3.0]}).labels  # two heads
    {'gait': ('run', 'walk'), 'speed': None}
    """
    with np.errstate(over="ignore"):  # values too large for float32 become infinite and are refused below
        if isinstance(x, (list, tuple)):
            rule = "lengths cannot be given with a list, whose arrays have their own"
            require(lengths is None, "lengths", None, "some", rule=rule)
            rows = [real(row, "(T, C)", f"x[{index}]", source) for index, row in enumerate(x)]
            channels = [row.shape[1] for row in rows]
            odd = next((index for index, count in enumerate(channels) if count != channels[0]), None)
            if odd is not None:
                swapped = len({len(row) for row in rows}) == 1
                remedy = "A row has the axes (T, C). For rows (C, T), as in aeon, pass row.T." if swapped else ""
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
                read = f"{source}: read as {counted(rows.shape[1], 'step')} of {rows.shape[2]} channels"
                warnings.warn(f"{read}. {SWAPPED}", AxesWarning, stacklevel=2)
    require(values.size > 0, "x", "at least one sequence, step and channel", f"shape {values.shape} in {source}")

    steps = checked_lengths(lengths, values.shape, source)
    for row, length in zip(values, steps.tolist(), strict=True):  # row by row: a boolean mask would take much memory
        row[length:] = 0
    require_one_of(missing, ("refuse", "mask"), "missing")
    least, most, fits = np.minimum, np.maximum, np.isfinite
    if missing == "mask":
        least, most, fits = np.fmin, np.fmax, lambda values: ~np.isinf(values)
    if not fits([least.reduce(values, axis=None), most.reduce(values, axis=None)]).all():
        row, step, channel = np.argwhere(~fits(values))[0].tolist()
        found = f"{rows[row][step, channel]} at row {row}, step {step}, channel {channel} of {source}"
        remedy = "Replace or drop missing or too large values, or pass missing='mask'. Padding needs lengths (N,)."
        raise InputError("x", "finite float32 values", found, remedy)
    if missing == "mask":
        before_first = None if fill is None else checked_fill(fill, values.shape[2], source)
        step_times = checked_times(times, steps, values.shape[1], source)
        gap = median_gap(step_times, steps)
        values, fill = masked(values, steps, step_times, before_first)
    else:
        for name, value in {"times": times, "fill": fill}.items():
            require(value is None, name, None, "some", rule=f"{name} needs missing='mask'")
        fill = gap = None
    if y is None:
        return Sequences(values, steps, None, None, fill=fill, gap=gap)
    check_names(y, labels)
    known = named(labels)
    targets = {
        name: checked_target(head, name, steps, values.shape[1], known.get(name), source)
        for name, head in named(y).items()
    }
    per_step = [name for name, target in targets.items() if target.per_step]
    found = f"one for each step of {shown(per_step)} alone"
    require(len(per_step) in (0, len(targets)), "y", "a label or target per step for all heads or for none", found)
    y, labels = (unnamed({name: getattr(t, field) for name, t in targets.items()}) for field in ("y", "labels"))
    return Sequences(values, steps, y, labels, fill=fill, gap=gap)


def stratified_split(data: Sequences, fraction: float, seed: int) -> tuple[Sequences, Sequences]:
    """Splits the rows into (rest, held out) with the classes in proportion.

    A regression, and data with a label or target for each step, are split at random. With several heads the classes are
    those of the first head that has classes.

    Args:
      data: N rows, at least two of each class.
      fraction: share of the rows to hold out, rounded, at least one row. It is never exceeded: if there are fewer
        held-out rows than classes, each is of a different class. Every class keeps a row in the rest.
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
        raise InputError("y", "at least two sequences of each class", f"one of {label!r}", "Give a test file.")
    held_size = max(1, round(fraction * len(data)))
    enough = len(data) - held_size >= len(present)
    expected = f"at least {len(present)} sequences left to train on"
    found = f"{len(data)} with {held_size} of them held out"
    require(enough, "data", expected, found, "Hold out less, or give a test file.")
    if classes is not None and held_size < len(present):
        order = np.random.default_rng(seed).permutation(len(data))
        firsts = np.unique(classes[order], return_index=True)[1]  # the first row of each class in that order
        held = np.sort(order[np.sort(firsts)[:held_size]])
        rest = np.setdiff1d(order, held)
    else:
        rest, held = train_test_split(np.arange(len(data)), test_size=held_size, random_state=seed, stratify=classes)
    if classes is not None and len(np.unique(classes[rest])) < len(present):
        raise InputError("fraction", "a share that leaves every class in training", fraction, "Hold out less.")
    parts = data.take(rest), data.take(held)
    known = not data.per_step or all(t.labelled.any() for part in parts for t in part.targets.values())
    expected = "steps with a label or target among the rows held out and among the rest"
    require(known, "y", expected, "none in one of the two", "Give a test file; for `fit`, set validation=0.")
    return parts


def statistics(data: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean (C,) and std (C,), float32, over the valid steps, computed in float64. A constant channel has std 1.

    >>> mean, std = statistics(sequences([[[1.0, 7.0], [3.0, 7.0]]]))
    >>> mean.tolist(), std.tolist()
    ([2.0, 7.0], [1.0, 1.0])
    """
    require_sequences(data, "data")
    steps = data.x[np.arange(data.x.shape[1]) < data.lengths[:, None]]
    mean, std = steps.mean(0, dtype=np.float64), steps.std(0, dtype=np.float64).astype(np.float32)
    # float64 sums a constant float32 channel exactly, so its std is 0 rather than a rounding error
    return mean.astype(np.float32), np.where(std == 0, np.float32(1), std)
