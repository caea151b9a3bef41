"""A table in long form, a row a step: which sequence it is of, its time, its label, and the values of its channels."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from grujax.data.checks import shown
from grujax.errors import require, require_package

SEQUENCE, TIME, Y, Y_STEP = "sequence", "time", "y", "y_step"
"""Columns by name, all but the first optional: y is of a sequence, y_step of a step. All others are channels."""
MISSING = ["", "nan", "NaN", "NA"]


def read_csv(path: Path) -> tuple[list[np.ndarray], np.ndarray | list[np.ndarray] | None]:
    """The sequences (T_i, C), float64, in the order in which they begin, NaN where a value is missing; and y (N,), or
    with a column y_step its N rows.

    Steps are sorted by time; without that column they stay as they stand. y is numbers where all are such, else
    strings.
    """
    pandas = require_package("pandas", "data")
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    require(len(set(names)) == len(names), str(path), "distinct names of columns", shown(names))
    require(SEQUENCE in names, str(path), f"a first line of names, {SEQUENCE!r} among them", shown(names))
    channels = [name for name in names if name not in (SEQUENCE, TIME, Y, Y_STEP)]
    require(bool(channels), str(path), f"a channel besides {SEQUENCE}, {TIME}, {Y} and {Y_STEP}", shown(names))
    require(not {Y, Y_STEP} <= {*names}, str(path), f"one of {Y} and {Y_STEP}", "both")
    table = pandas.read_csv(
        path,
        encoding="utf-8-sig",
        dtype={SEQUENCE: str, Y: str, Y_STEP: str, **dict.fromkeys([TIME, *channels], np.float64)},
        keep_default_na=False,
        na_values=dict.fromkeys([TIME, *channels], MISSING),
    )
    plain = isinstance(table.index, pandas.RangeIndex)  # else pandas took the first column for names of the rows
    require(plain, str(path), f"{len(names)} values in each line, as in the first", "more")
    require(len(table) > 0, str(path), "a line for each step", "none")
    row, ids = pandas.factorize(table[SEQUENCE])
    time = table[TIME].to_numpy() if TIME in names else np.zeros(len(table))
    require(bool(np.isfinite(time).all()), TIME, "finite numbers", f"a missing one in {path.name}")
    order = np.lexsort((time, row))
    row, time = row[order], time[order]
    again = np.flatnonzero((np.diff(row) == 0) & (np.diff(time) == 0)) if TIME in names else []
    twice = [] if not len(again) else [f"{time[again[0]]:g} twice in sequence {ids[row[again[0]]]!r} of {path.name}"]
    require(not twice, TIME, "each time of a sequence once", "".join(twice))
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    x = np.split(table[channels].to_numpy(np.float64)[order], starts[1:])
    if Y_STEP in names:
        return x, np.split(_steps(pandas, table[Y_STEP].to_numpy()[order]), starts[1:])
    return x, _labels(pandas, table[Y].to_numpy()[order], row, starts, ids, path) if Y in names else None


def _labels(pandas: Any, y: np.ndarray, row: np.ndarray, starts: np.ndarray, ids: Any, path: Path) -> np.ndarray:
    """The one y of each sequence."""
    first = y[starts]
    other = np.flatnonzero(y != first[row])
    found = (
        f"{first[row[other[0]]]!r} and {y[other[0]]!r} in {ids[row[other[0]]]!r} of {path.name}" if len(other) else ""
    )
    require(
        not len(other), Y, "one value for all steps of a sequence", found, f"Name it {Y_STEP} where each has its own."
    )
    missing = np.flatnonzero(np.isin(first, MISSING))
    found = f"none in sequence {ids[missing[0]]!r} of {path.name}" if len(missing) else ""
    require(not len(missing), Y, "a label or target for each sequence", found)
    return _numbers(pandas, first)


def _steps(pandas: Any, y: np.ndarray) -> np.ndarray:
    """The y of each step: targets (steps, 1), NaN where it is missing, or labels (steps,), None where it is missing."""
    there = ~np.isin(y, MISSING)
    known = _numbers(pandas, y[there])
    if known.dtype.kind == "f":
        values = np.full((len(y), 1), np.nan)
        values[there, 0] = known
    else:
        values = np.full(len(y), None)
        values[there] = known
    return values


def _numbers(pandas: Any, values: np.ndarray) -> np.ndarray:
    """Numbers where all of these strings are such, else the strings."""
    numbers = pandas.to_numeric(pandas.Series(values), errors="coerce")
    return np.asarray(numbers) if numbers.notna().all() else np.asarray(values, str)
