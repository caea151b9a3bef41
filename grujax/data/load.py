"""Data sets from disk: those that come with aeon, and files. Nothing is ever downloaded."""

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
    """A training and a test split.

    source: the name of a set in aeon's own data folder, or a file: `.ts`; `.npz` with X (N, T, C), y (N,) and
    optionally lengths (N,), in the place of y for several heads a y_NAME of each; `.csv` or `.parquet` with a line a
    step and columns `sequence`, `y`, optionally `time`, and the channels, or with a line a sequence, `y`, and a column
    a step: `0`, `1`, ..., or `a_0`, ... of a channel a.
    A `.csv` whose first line is numbers alone is refused, as it seems to have no names of columns.
    With a label or target a step y is (N, T) or (N, T, K), or the column `y_step`: see `sequences`.
    (`load_sequences` takes `.npy` too, X alone.)
    test: the test file. None takes the file beside `source` that ends in `_TEST`, or else holds out `fraction` of the
    training rows, chosen by `seed`, the classes in proportion (`stratified_split`).
    missing: "mask" takes missing values; see `sequences`. The test split is filled as the training split; rows that are
    held out of `source` are filled by the mean of all of its rows.
    max_bytes: what each file may hold; see `load_sequences`.

    Raises InputError for a name or file that is not there, a damaged file, values that `sequences` refuses, a single
    class or target, and test labels that are unknown in training. A test file that is trained on is a `DataWarning`.

    >>> load("BasicMotions").train.labels
    ('badminton', 'running', 'standing', 'walking')
    """
    path, beside = _files(source)
    raw = read(path, max_bytes)
    require(raw.y is not None, "y", "labels or targets", f"none in {path.name}", "Add them as an array or column y.")
    times = raw.times if missing == "mask" else None
    train = sequences(raw.x, raw.y, raw.lengths, missing=missing, times=times, source=path.name)
    for head, (y, labels) in train.targets.items():
        found = f"only {shown(labels)} in {path.name}"
        require(labels is None or len(labels) > 1, argument("y", head), "two classes or more", found)
        known = y[np.isfinite(y)]
        found = f"{known.flat[0]} alone in {path.name}"
        require(known.min() < known.max(), argument("y", head), "targets that differ", found)
    name = path.stem.removesuffix("_TRAIN")
    if test is None and not beside.is_file():
        return Dataset(name, *stratified_split(train, fraction, seed))
    if test is not None and os.path.exists(test) and os.path.exists(path) and os.path.samefile(test, path):
        warnings.warn(f"the test file {path.name} is the one that is trained on", DataWarning, stacklevel=2)
    path = beside if test is None else Path(test)
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
    """Sequences for a trained model: the test split of a named set, or a single file.

    labels: the model's class names; None for regression; of several heads a dict by name. channels: the model's C.
    need_labels: False ignores y.
    fill, gap: those of the training split of a model trained with `missing="mask"`, which is then how x is read; see
    `sequences`. A median gap five times as long as `gap`, or as short, is a `UnitWarning`.
    max_bytes: a file that declares more, each value counted as 4 bytes at least, is refused before it is read: a small
    `.npz` can unpack to any amount. Loading takes about twice as much memory: the file's values and those in float32.
    Raises InputError as `load` does, and where the labels or channels are not the model's.

    >>> len(load_sequences("BasicMotions", channels=6, need_labels=False))
    40
    """
    path, beside = _files(source)
    path = path if _is_path(source) else beside
    raw = read(path, max_bytes)
    options: dict[str, Any] = {} if fill is None else {"missing": "mask", "times": raw.times, "fill": fill}
    y = None
    if need_labels:
        require(raw.y is not None, "y", "labels or targets", f"none in {path.name}")
        y, known = named(raw.y), named(labels)
        expected, found = f"{in_words(known)}, as in training", f"{in_words(y)} in {path.name}"
        require(y.keys() == known.keys(), "y", expected, found)
        for name, of in y.items():
            if known[name] is None:  # integers are targets here, not classes
                y[name] = [_targets(row, path) for row in of] if isinstance(of, list) else _targets(of, path)
        y, options["labels"] = unnamed({name: y[name] for name in known}), labels
    data = sequences(raw.x, y, raw.lengths, source=path.name, **options)
    compare_gaps(data.gap, gap, path.name)
    if channels is not None:
        require(data.channels == channels, "channels", str(channels), f"{data.channels} in {path.name}")
    return data


def _targets(y: np.ndarray, path: Path) -> np.ndarray:
    """y as numbers; of a table's steps (T, 1)."""
    none = y.dtype == object and all(value is None or isinstance(value, (int, float)) for value in y)
    require(none or y.dtype.kind in "iuf", "y", "real targets, as in training", f"{y.dtype} in {path.name}")
    return y.astype(np.float64).reshape(-1, 1) if none else y.astype(np.float64)


def _is_path(source: str | Path) -> bool:
    return isinstance(source, Path) or os.sep in source or "/" in source or Path(source).suffix != ""


def _files(source: str | Path) -> tuple[Path, Path]:
    """The file that `source` means, and where its test file would be."""
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
