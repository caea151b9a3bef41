"""Reads tables of sequences: long ones with a line per step, and wide ones with a line per sequence."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grujax.data.checks import shown
from grujax.errors import require, require_package

SEQUENCE, TIME, Y, Y_STEP = "sequence", "time", "y", "y_step"
"""Names of the columns of a long table; all but the first are optional, and further columns are channels. y belongs to
a sequence, y_step to a step. A wide table has only y of these."""
TEXT = (SEQUENCE, Y, Y_STEP)
STEP = re.compile(r"(?:(.+)_)?(\d+)")
"""The name of a column in a wide table: channel and step; or the step alone if there is one channel without a name."""
MISSING = ["", "nan", "NaN", "NA"]


class Raw(NamedTuple):
    """The arguments of `sequences`, unchecked."""

    x: np.ndarray | list[np.ndarray]
    y: np.ndarray | list[np.ndarray] | dict[str, np.ndarray] | None
    lengths: np.ndarray | None = None
    times: np.ndarray | list[np.ndarray] | None = None


HEADER = "Name them x_0, x_1, ...: pandas.read_csv(path, header=None).add_prefix('x_')."


def check_size(path: Path, needed: int, max_bytes: int) -> None:
    """Refuses a file that has, or declares, more than `max_bytes`."""
    require(needed <= max_bytes, str(path), f"at most max_bytes={max_bytes}", needed, "Pass a larger max_bytes.")


def read_csv(path: Path, max_bytes: int) -> Raw:
    """Returns the sequences of a long or wide table; see `_long` and `_wide`."""
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
    plain = isinstance(table.index, pandas.RangeIndex)  # otherwise pandas read the first column as names of the rows
    require(plain, str(path), f"{len(names)} values in each line, as in the first", "more")
    columns = {name: table[name].to_numpy() for name in names}
    return (_wide if wide else _long)(pandas, columns, path)


def check_header(pandas: Any, names: list[str], source: str, remedy: str) -> None:
    """Refuses a first line that has only numbers: without a header the first row of data would be read as names."""
    numbers = len(names) > 0 and bool(pandas.to_numeric(pandas.Series(names), errors="coerce").notna().all())
    require(not numbers, source, "names of columns in the first line", f"numbers alone, {shown(names)}", remedy)


def read_parquet(path: Path, max_bytes: int) -> Raw:
    """Like `read_csv`. Refuses a file that declares more than `max_bytes`, at least 8 per value, before reading it."""
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
    # strings are read as codes: a small file can contain one long string a million times
    words = [field.name for field in schema if any(matches(field.type) for matches in is_word)]
    table = parquet.read_table(path, read_dictionary=words, partitioning=None)
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
            kind, types = column.type, arrow.types
            tests = types.is_integer, types.is_floating, types.is_boolean, types.is_null
            real = any(matches(kind) for matches in tests)
            require(real, f"{name} in {path.name}", "numbers", kind, "Cast the column; times may be in seconds.")
            columns[name] = column.cast(arrow.float64()).to_numpy()
    return (_wide if wide else _long)(pandas, columns, path)


def _is_wide(names: list[str], path: Path) -> bool:
    """Whether the table with these columns is wide rather than long. Raises InputError if it is neither."""
    require(len(set(names)) == len(names), str(path), "distinct names of columns", shown(names))
    if SEQUENCE not in names:
        steps = [name for name in names if name != Y]
        expected = (
            f"columns {SEQUENCE!r}, optionally {TIME!r}, and channels (a line per step), or columns 0, 1, ... or "
            "a_0, a_1, b_0, ... of channels a and b (a line per sequence)"
        )
        require(bool(steps) and all(map(STEP.fullmatch, steps)), str(path), expected, shown(names))
        return True
    channels = [name for name in names if name not in (SEQUENCE, TIME, Y, Y_STEP)]
    expected = f"a column besides {SEQUENCE}, {TIME}, {Y} and {Y_STEP}, as a channel"
    require(bool(channels), str(path), expected, shown(names))
    require(not {Y, Y_STEP} <= {*names}, str(path), f"only one of {Y} and {Y_STEP}", "both")
    return False


def _long(pandas: Any, columns: Mapping[str, np.ndarray], path: Path) -> Raw:
    """Returns the sequences (T_i, C), float64, in the order of their first lines, with NaN for missing values.

    Steps are sorted by time; without that column they stay in the order of the file. y is numeric if all its values are
    numbers; otherwise it has strings.
    """
    require(len(columns[SEQUENCE]) > 0, str(path), "a line for each step", "none")
    row, ids = pandas.factorize(columns[SEQUENCE])
    timed = TIME in columns
    time = columns[TIME] if timed else np.zeros(len(row))
    require(bool(np.isfinite(time).all()), TIME, "finite numbers", f"a missing one in {path.name}")
    order = np.lexsort((time, row))
    row, time = row[order], time[order]
    twice = np.flatnonzero((np.diff(row) == 0) & (np.diff(time) == 0)) if timed else []
    found = f"{time[twice[0]]:g} twice in sequence {ids[row[twice[0]]]!r} of {path.name}" if len(twice) else ""
    require(not found, TIME, "each time once in a sequence", found)
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
    """Returns the sequences (N, T, C), steps in the order of their numbers. A sequence ends with its last value."""
    names = {(match[1], int(match[2])): name for name in columns if (match := STEP.fullmatch(name))}
    require(len(names) == len(columns) - (Y in columns), str(path), "each step of a channel once", shown(columns))
    channels, steps = [*dict.fromkeys(channel for channel, _ in names)], sorted({step for _, step in names})
    whole = len(names) == len(channels) * len(steps)
    found = f"{len(names)} columns for {len(channels)} channels and {len(steps)} steps"
    remedy = "Add the columns, and leave cells without a value empty."
    require(whole, str(path), "a column for each step of each channel", found, remedy)
    count = len(next(iter(columns.values())))
    require(count > 0, str(path), "a line for each sequence", "none")
    x = np.stack([columns[names[c, s]] for s in steps for c in channels], 1).reshape(count, len(steps), -1)
    observed = np.logical_or.reduce(~np.isnan(x), axis=2)
    lengths = np.where(observed.any(1), len(steps) - observed[:, ::-1].argmax(1), 0)
    y = None
    if Y in columns:
        rows = np.arange(count)
        y = _labels(pandas, columns[Y], rows, rows, range(count), path)
    return Raw(x, y, lengths, np.broadcast_to(np.array(steps, np.float64), x.shape[:2]))


def _labels(pandas: Any, y: np.ndarray, row: np.ndarray, starts: np.ndarray, ids: Any, path: Path) -> np.ndarray:
    """Returns the y of each sequence. Raises InputError if its steps have different values, or none."""
    first = y[starts]
    other = np.flatnonzero(y != first[row])
    found = (
        f"{first[row[other[0]]]!r} and {y[other[0]]!r} in {ids[row[other[0]]]!r} of {path.name}" if len(other) else ""
    )
    remedy = f"Name the column {Y_STEP} if each step has its own value."
    require(not len(other), Y, "one value for all steps of a sequence", found, remedy)
    missing = np.flatnonzero(np.isin(first, MISSING))
    found = f"none in sequence {ids[missing[0]]!r} of {path.name}" if len(missing) else ""
    require(not len(missing), Y, "a label or target for each sequence", found)
    return _numbers(pandas, first)


def _steps(pandas: Any, y: np.ndarray) -> np.ndarray:
    """Returns the y of each step: targets (steps, 1), NaN where missing, or labels (steps,), None where missing."""
    present = ~np.isin(y, MISSING)
    known = _numbers(pandas, y[present])
    if known.dtype.kind == "f":
        values = np.full((len(y), 1), np.nan)
        values[present, 0] = known
    else:
        values = np.full(len(y), None)
        values[present] = known
    return values


def _numbers(pandas: Any, values: np.ndarray) -> np.ndarray:
    """Returns the strings as numbers if all of them are numbers; otherwise the strings."""
    numbers = pandas.to_numeric(pandas.Series(values), errors="coerce")
    return np.asarray(numbers) if numbers.notna().all() else np.asarray(values, str)
