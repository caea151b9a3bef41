"""Tables: long, a line a step, with its sequence, time and channels; or wide, a line a sequence, a column a step."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grujax.data.checks import shown
from grujax.errors import require, require_package

SEQUENCE, TIME, Y, Y_STEP = "sequence", "time", "y", "y_step"
"""Columns of a long table by name, all but the first optional: y is of a sequence, y_step of a step. All others are
channels. A wide table has y alone of these."""
TEXT = (SEQUENCE, Y, Y_STEP)
STEP = re.compile(r"(?:(.+)_)?(\d+)")
"""A column of a wide table: channel and step; the step alone where there is one channel, and in a CSV a column y."""
MISSING = ["", "nan", "NaN", "NA"]


class Raw(NamedTuple):
    """The arguments of `sequences`, unchecked."""

    x: np.ndarray | list[np.ndarray]
    y: np.ndarray | list[np.ndarray] | dict[str, np.ndarray] | None
    lengths: np.ndarray | None = None
    times: np.ndarray | list[np.ndarray] | None = None


HEADER = "Name them x_0, x_1, ...: pandas.read_csv(path, header=None).add_prefix('x_')."


def check_size(path: Path, needed: int, max_bytes: int) -> None:
    """Refuses a file that holds, or declares, more bytes than the caller allows."""
    require(needed <= max_bytes, str(path), f"at most max_bytes={max_bytes}", needed, "Give a larger max_bytes.")


def read_csv(path: Path, max_bytes: int) -> Raw:
    """The sequences of a long or wide table; see `_long` and `_wide`."""
    check_size(path, path.stat().st_size, max_bytes)
    pandas = require_package("pandas", "data")
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    check_header(pandas, names, str(path), HEADER)
    wide = _is_wide(names, path)
    numbers = [name for name in names if name not in TEXT]
    table = pandas.read_csv(
        path,
        encoding="utf-8-sig",
        dtype={**dict.fromkeys(TEXT, str), **dict.fromkeys(numbers, np.float64)},
        keep_default_na=False,
        na_values=dict.fromkeys(numbers, MISSING),
    )
    plain = isinstance(table.index, pandas.RangeIndex)  # else pandas took the first column for names of the rows
    require(plain, str(path), f"{len(names)} values in each line, as in the first", "more")
    columns = {name: table[name].to_numpy() for name in names}
    return (_wide if wide else _long)(pandas, columns, path)


def check_header(pandas: Any, names: list[str], source: str, remedy: str) -> None:
    """Refuses a first line of numbers alone: a file without a header, whose first row would be lost as names."""
    numbers = len(names) > 0 and bool(pandas.to_numeric(pandas.Series(names), errors="coerce").notna().all())
    require(not numbers, source, "names of columns in the first line", f"numbers alone, {shown(names)}", remedy)


def read_parquet(path: Path, max_bytes: int) -> Raw:
    """As `read_csv`. Refuses a file that declares more than `max_bytes`, at least 8 a value, before it is read."""
    pandas, parquet = require_package("pandas", "data"), require_package("pyarrow.parquet", "parquet")
    arrow = require_package("pyarrow", "parquet")
    with parquet.ParquetFile(path) as file:
        about, schema = file.metadata, file.schema_arrow
    groups = [about.row_group(index) for index in range(about.num_row_groups)]
    parts = [group.column(index) for group in groups for index in range(group.num_columns)]
    needed = sum(max(part.total_uncompressed_size, 8 * part.num_values) for part in parts)
    check_size(path, needed, max_bytes)
    wide = _is_wide(schema.names, path)
    is_word = (arrow.types.is_string, arrow.types.is_large_string)
    words = [field.name for field in schema if any(of(field.type) for of in is_word)]  # coded: a small file can hold
    table = parquet.read_table(path, read_dictionary=words, partitioning=None)  # one long word a million times
    columns = {}
    for name in schema.names:
        column = table[name]
        if name in TEXT:
            coded = column.unify_dictionaries().combine_chunks()
            coded = coded if arrow.types.is_dictionary(coded.type) else coded.dictionary_encode()
            values = [repr(word) if isinstance(word, float) else str(word) for word in coded.dictionary.to_pylist()]
            codes = coded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
            columns[name] = np.array([*values, ""], object)[codes]
        else:
            found, number = column.type, arrow.types
            real = any(of(found) for of in (number.is_integer, number.is_floating, number.is_boolean, number.is_null))
            require(real, f"{name} in {path.name}", "numbers", found, "Cast it; a time may be in seconds.")
            columns[name] = column.cast(arrow.float64()).to_numpy()
    return (_wide if wide else _long)(pandas, columns, path)


def _is_wide(names: list[str], path: Path) -> bool:
    """Whether the table is wide, by its columns; `InputError` where it is neither."""
    require(len(set(names)) == len(names), str(path), "distinct names of columns", shown(names))
    if SEQUENCE not in names:
        steps = [name for name in names if name != Y]
        expected = (
            f"columns {SEQUENCE!r}, optionally {TIME!r}, and channels (a line a step), or columns 0, 1, ... or "
            "a_0, a_1, b_0, ... of channels a and b (a line a sequence)"
        )
        require(bool(steps) and all(map(STEP.fullmatch, steps)), str(path), expected, shown(names))
        return True
    channels = [name for name in names if name not in (SEQUENCE, TIME, Y, Y_STEP)]
    require(bool(channels), str(path), f"a channel besides {SEQUENCE}, {TIME}, {Y} and {Y_STEP}", shown(names))
    require(not {Y, Y_STEP} <= {*names}, str(path), f"one of {Y} and {Y_STEP}", "both")
    return False


def _long(pandas: Any, columns: Mapping[str, np.ndarray], path: Path) -> Raw:
    """The sequences (T_i, C), float64, in the order in which they begin, NaN where a value is missing.

    Steps are sorted by time; without that column they stay as they stand. y is numbers where all are such, else
    strings.
    """
    require(len(columns[SEQUENCE]) > 0, str(path), "a line for each step", "none")
    row, ids = pandas.factorize(columns[SEQUENCE])
    timed = TIME in columns
    time = columns[TIME] if timed else np.zeros(len(row))
    require(bool(np.isfinite(time).all()), TIME, "finite numbers", f"a missing one in {path.name}")
    order = np.lexsort((time, row))
    row, time = row[order], time[order]
    again = np.flatnonzero((np.diff(row) == 0) & (np.diff(time) == 0)) if timed else []
    twice = [] if not len(again) else [f"{time[again[0]]:g} twice in sequence {ids[row[again[0]]]!r} of {path.name}"]
    require(not twice, TIME, "each time of a sequence once", "".join(twice))
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    channels = [name for name in columns if name not in (SEQUENCE, TIME, Y, Y_STEP)]
    x = np.split(np.stack([columns[name][order] for name in channels], 1), starts[1:])
    y = None
    if Y_STEP in columns:
        y = np.split(_steps(pandas, columns[Y_STEP][order]), starts[1:])
    elif Y in columns:
        y = _labels(pandas, columns[Y][order], row, starts, ids, path)
    return Raw(x, y, None, np.split(time, starts[1:]) if timed else None)


def _wide(pandas: Any, columns: Mapping[str, np.ndarray], path: Path) -> Raw:
    """The sequences (N, T, C), steps in the order of their numbers; each ends with its last value."""
    names = {(found[1], int(found[2])): name for name in columns if (found := STEP.fullmatch(name))}
    require(len(names) == len(columns) - (Y in columns), str(path), "each step of a channel once", shown(columns))
    channels, steps = [*dict.fromkeys(channel for channel, _ in names)], sorted({step for _, step in names})
    whole = len(names) == len(channels) * len(steps)
    found = f"{len(names)} columns for {len(channels)} channels and {len(steps)} steps"
    require(whole, str(path), "a column for each step of each channel", found, "Leave cells empty.")
    count = len(next(iter(columns.values())))
    require(count > 0, str(path), "a line for each sequence", "none")
    x = np.stack([columns[names[c, s]] for s in steps for c in channels], 1).reshape(count, len(steps), -1)
    there = np.logical_or.reduce(~np.isnan(x), axis=2)
    lengths = np.where(there.any(1), len(steps) - there[:, ::-1].argmax(1), 0)
    y = None
    if Y in columns:
        rows = np.arange(count)
        y = _labels(pandas, columns[Y], rows, rows, range(count), path)
    return Raw(x, y, lengths, np.broadcast_to(np.array(steps, np.float64), x.shape[:2]))


def _labels(pandas: Any, y: np.ndarray, row: np.ndarray, starts: np.ndarray, ids: Any, path: Path) -> np.ndarray:
    """The one y of each sequence."""
    first = y[starts]
    other = np.flatnonzero(y != first[row])
    found = (
        f"{first[row[other[0]]]!r} and {y[other[0]]!r} in {ids[row[other[0]]]!r} of {path.name}" if len(other) else ""
    )
    remedy = f"Name it {Y_STEP} where each has its own."
    require(not len(other), Y, "one value for all steps of a sequence", found, remedy)
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
