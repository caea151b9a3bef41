"""Loads data sets from disk: the sets that aeon contains, and files. Nothing is ever downloaded."""

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grujax.data.checks import DataWarning, argument, in_words, shown
from grujax.data.files import ENDINGS, MAX_BYTES, read
from grujax.data.missing import compare_gaps
from grujax.data.sequences import Dataset, Sequences, sequences, stratified_split
from grujax.data.targets import named, unnamed
from grujax.errors import require, require_package


def load(
    source: str | Path,
    *,
    test: str | Path | None = None,
    seed: int = 0,
    fraction: float = 0.2,
    missing: str = "refuse",
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """Loads a data set as a training and a test split.

    Args:
      source: the name of a set in aeon's data folder, or the path of a file: `.ts`; `.npz` with X (N, T, C), y (N,) and
        optionally lengths (N,), or with an array y_NAME for each of several heads in place of y; `.csv` or `.parquet`,
        either with a line per step and the columns `sequence`, `y`, optionally `time`, and the channels, or with a line
        per sequence, the column `y`, and a column per step: `0`, `1`, ..., or `a_0`, `a_1`, ... for a channel a. With a
        label or target for each step, y is (N, T) or (N, T, K), or the column is `y_step`: see `sequences`. A `.csv`
        whose first line has only numbers is refused, as the names of its columns seem to be missing. (`load_sequences`
        also reads `.npy` files, which hold X alone.)
      test: the test file. None: the file beside `source` whose name ends in `_TEST`; without one, a stratified
        `fraction` of the training rows is held out (`stratified_split`).
      seed: seed of that split.
      fraction: share of the rows to hold out if there is no test file.
      missing: "mask" accepts missing values; see `sequences`. The test split is filled with the means of the training
        split; rows held out of `source` are filled with the means of all of its rows.
      max_bytes: the limit for each file; see `load_sequences`.

    Raises:
      InputError: a name or file that does not exist, a damaged file, values that `sequences` refuses, data with a
        single class or target value, or test labels that the training split does not have.

    Warns:
      DataWarning: the test file is the training file.

    >>> load("BasicMotions").train.labels
    ('badminton', 'running', 'standing', 'walking')
    """
    path, test_path = _files(source)
    raw = read(path, max_bytes)
    require(raw.y is not None, "y", "labels or targets", f"none in {path.name}", "Add them as an array or column y.")
    times = raw.times if missing == "mask" else None
    train = sequences(raw.x, raw.y, raw.lengths, missing=missing, times=times, source=path.name)
    for head, (y, labels) in train.targets.items():
        found = f"only {shown(labels)} in {path.name}"
        require(labels is None or len(labels) > 1, argument("y", head), "at least two classes", found)
        known = y[np.isfinite(y)]
        found = f"{known.flat[0]} alone in {path.name}"
        require(known.min() < known.max(), argument("y", head), "targets that differ", found)
    name = path.stem.removesuffix("_TRAIN")
    if test is None and not test_path.is_file():
        return Dataset(name, *stratified_split(train, fraction, seed))
    if test is not None and os.path.exists(test) and os.path.exists(path) and os.path.samefile(test, path):
        warnings.warn(f"the test file {path.name} is the one that is trained on", DataWarning, stacklevel=2)
    path = test_path if test is None else Path(test)
    return Dataset(name, train, load_sequences(path, labels=train.labels, fill=train.fill, max_bytes=max_bytes))


def load_sequences(
    source: str | Path,
    *,
    labels: Iterable[str] | Mapping[str, Iterable[str] | None] | None = None,
    channels: int | None = None,
    fill: ArrayLike | None = None,
    gap: float | None = None,
    need_labels: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Sequences:
    """Loads sequences for a trained model: the test split of a named set, or a single file.

    Args:
      source: the name of a set in aeon's data folder, or the path of a file, as in `load`; also a `.npy` file of X.
      labels: the model's class names; None for a regression; with several heads a dict by name.
      channels: the model's number of channels C; None accepts any.
      fill: `fill` of the training split, for a model that was trained with missing="mask"; x is then read in the same
        way. See `sequences`.
      gap: `gap` of that training split.
      need_labels: False ignores y.
      max_bytes: a file that declares more bytes than this is refused before it is read, as a small `.npz` can unpack to
        any amount. Each value counts as at least 4 bytes. Loading takes about twice as much memory, for the values of
        the file and for their float32 copies.

    Raises:
      InputError: as `load` does, and for labels or channels that the model does not have.

    Warns:
      UnitWarning: the median gap between steps is at least five times `gap`, or at most a fifth of it.

    >>> len(load_sequences("BasicMotions", channels=6, need_labels=False))
    40
    """
    path, test_path = _files(source)
    path = path if _is_path(source) else test_path
    raw = read(path, max_bytes)
    options: dict[str, Any] = {} if fill is None else {"missing": "mask", "times": raw.times, "fill": fill}
    y = None
    if need_labels:
        require(raw.y is not None, "y", "labels or targets", f"none in {path.name}")
        y, known = named(raw.y), named(labels)
        expected, found = f"{in_words(known)}, as in training", f"{in_words(y)} in {path.name}"
        require(y.keys() == known.keys(), "y", expected, found)
        for name, values in y.items():
            if known[name] is None:  # a regression head: integers are targets, not classes
                steps = isinstance(values, list)
                y[name] = [_targets(row, path) for row in values] if steps else _targets(values, path)
        y, options["labels"] = unnamed({name: y[name] for name in known}), labels
    data = sequences(raw.x, y, raw.lengths, source=path.name, **options)
    compare_gaps(data.gap, gap, path.name)
    if channels is not None:
        require(data.channels == channels, "channels", str(channels), f"{data.channels} in {path.name}")
    return data


def _targets(y: np.ndarray, path: Path) -> np.ndarray:
    """Returns y as float64 targets; the y of a table's steps, an array of objects with None, as (T, 1)."""
    of_steps = y.dtype == object and all(value is None or isinstance(value, (int, float)) for value in y)
    require(of_steps or y.dtype.kind in "iuf", "y", "real targets, as in training", f"{y.dtype} in {path.name}")
    return y.astype(np.float64).reshape(-1, 1) if of_steps else y.astype(np.float64)


def _is_path(source: str | Path) -> bool:
    return isinstance(source, Path) or os.sep in source or "/" in source or Path(source).suffix != ""


def _files(source: str | Path) -> tuple[Path, Path]:
    """Returns the path of the file that `source` names, and the path that its test file would have."""
    if _is_path(source):
        path = Path(source)
        return path, path.parent / f"{path.stem.removesuffix('_TRAIN')}_TEST{path.suffix}"
    folder, name = Path(require_package("aeon.datasets", "data").__file__).parent / "data", str(source)
    splits = ("TRAIN", "TEST")
    names = sorted(
        entry.name for entry in folder.iterdir() if all((entry / f"{entry.name}_{s}.ts").is_file() for s in splits)
    )
    near = difflib.get_close_matches(name, names, cutoff=0.4) or names
    expected = f"{ENDINGS}, or the name of a set that comes with aeon"
    require(name in names, "source", expected, repr(name), f"Nearest: {', '.join(near)}.")
    return folder / name / f"{name}_TRAIN.ts", folder / name / f"{name}_TEST.ts"
