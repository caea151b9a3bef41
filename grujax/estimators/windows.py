"""Reads time series as tables of pandas, and cuts them into the windows that a GRU reads."""

from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grujax.data.tables import check_header
from grujax.errors import InputError, require, require_package

CALENDAR = {
    "month": 12,
    "quarter": 4,
    "week": 53,
    "dayofyear": 366,
    "day": 31,
    "dayofweek": 7,
    "hour": 24,
    "minute": 60,
}
"""Parts of a date by their names in pandas, with the period after which each restarts."""


def table(values: Any, name: str) -> Any:
    """Returns a DataFrame of finite numbers with a column per series and a regular index that has a frequency.

    values: a Series, a DataFrame, an array (T,) or (T, S), or the path of a CSV: see `read`.
    name: the name of the argument in errors.
    Raises InputError for gaps, missing values, and times without a clear frequency.
    """
    pandas = require_package("pandas", "forecast")
    values = read(values, name) if isinstance(values, (str, Path)) else values
    try:
        frame = values.to_frame() if isinstance(values, pandas.Series) else pandas.DataFrame(values)
    except ValueError as error:
        raise InputError(name, "a Series, a DataFrame, an array (T,) or (T, S), or a path", error) from error
    require(frame.size > 0, name, "at least one series and one step", f"shape {frame.shape}")
    require(frame.columns.is_unique, name, "distinct names of columns", list(frame.columns))
    kinds = [column for column, kind in frame.dtypes.items() if kind.kind not in "biuf"]
    found = f"{frame[kinds].dtypes.iloc[0]} in {kinds[0]!r}" if kinds else ""
    remedy = "Set times as index by y.set_index('ds'); for a table with a row per series and time, write y.pivot(...)."
    require(not kinds, name, "columns of numbers", found, remedy)
    frame = frame.astype(np.float64).set_axis(regular(frame.index, name))
    wrong = np.argwhere(~np.isfinite(frame.to_numpy()))
    if len(wrong):
        step, column = wrong[0]
        found = f"{frame.iat[step, column]} at {frame.index[step]} in {frame.columns[column]!r}"
        raise InputError(name, "finite numbers", found, "Fill in missing values, for example by y.interpolate().")
    return frame


def read(path: str | Path, name: str) -> Any:
    """Returns a CSV as a DataFrame. It has commas, a header, and in the first column ISO 8601 dates or step numbers."""
    pandas, expected = require_package("pandas", "forecast"), "a CSV whose first column is the time"
    require(Path(path).is_file(), name, expected, f"no file {path}")
    try:
        names = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
        dated = pandas.notna(pandas.to_datetime(names[0], format="ISO8601", errors="coerce"))
        frame = pandas.read_csv(path, index_col=0)
        dates = pandas.to_datetime(frame.index.astype(str), format="ISO8601", errors="coerce")
    except (OSError, ValueError) as error:  # the errors of pandas are ValueErrors
        raise InputError(name, expected, str(error).rstrip(".")) from error
    cells = [cell.strip() or "0" for cell in names[1:]] if dated else names  # after a date an empty cell is a value
    check_header(pandas, cells, name, "Insert a first line date,y.")
    require(frame.shape[1] > 0, name, expected, f"one column only, {frame.index.name!r}", "Is the separator a comma?")
    if frame.index.dtype.kind in "iu" and frame.index.max() < 10**7:  # steps or years, not dates such as 20100131
        return frame
    if dates.hasnans:
        remedy = "Write ISO dates, or read the file with pandas and pass a Series."
        raise InputError(name, "dates like 2010-01-31", frame.index[dates.isna()][0], remedy)
    return frame.set_axis(dates)


def regular(index: Any, name: str) -> Any:
    """Returns the index with its frequency. Raises InputError for missing or unsorted times or no frequency."""
    pandas = require_package("pandas", "forecast")
    if isinstance(index, pandas.RangeIndex):
        return index
    if index.dtype.kind in "iu" and len(index) > 1 and index[1] > index[0]:
        step = int(index[1] - index[0])
        whole = pandas.RangeIndex(int(index[0]), int(index[-1]) + step, step)
    elif isinstance(index, pandas.PeriodIndex):
        whole = pandas.period_range(index[0], index[-1], freq=index.freq)
    elif isinstance(index, pandas.DatetimeIndex):
        sorts = index.is_monotonic_increasing and index.is_unique
        require(sorts, name, "times that increase", "others", "Write y.sort_index(), and drop duplicate times.")
        parts = (index[start : start + 3] for start in range(len(index) - 2))  # between gaps, one part is regular
        whole = [index] if len(index) > 2 else []
        freq = index.freq or next(filter(None, map(pandas.infer_freq, chain(whole, parts))), None)
        remedy = "Set it, for example by y.asfreq('MS')."
        require(freq is not None, name, "an index with one frequency", "none that pandas infers", remedy)
        whole = pandas.date_range(index[0], index[-1], freq=freq)
    else:
        remedy = "Convert it by pandas.to_datetime, or count steps by y.reset_index(drop=True)."
        raise InputError(name, "an index of dates, periods or steps", type(index).__name__, remedy)
    gaps, odd = whole.difference(index), index.difference(whole)
    if len(gaps) or len(odd) or len(whole) != len(index):
        found = f"none at {gaps[0]}" if len(gaps) else f"{odd[0]}" if len(odd) else "duplicate or unsorted times"
        every = getattr(whole, "freqstr", f"{index[1] - index[0]} steps")
        raise InputError(name, f"a row every {every}", found, "Fill gaps, for example by y.asfreq(...).interpolate().")
    return whole


def following(index: Any, steps: int) -> Any:
    """Returns the index of the `steps` after the end of `index`."""
    pandas = require_package("pandas", "forecast")
    if isinstance(index, pandas.RangeIndex):
        return pandas.RangeIndex(index.stop, index.stop + steps * index.step, index.step)
    make = pandas.date_range if isinstance(index, pandas.DatetimeIndex) else pandas.period_range
    return make(index[-1], periods=steps + 1, freq=index.freq)[1:]


def calendar(index: Any, parts: tuple[str, ...]) -> np.ndarray:
    """Returns sine and cosine of each part of the date as an angle, (T, 2 * parts); `CALENDAR` has the parts."""
    columns = []
    for part in parts:
        require(hasattr(index, "month"), "calendar", "no parts of the date, as the index has no dates", repr(part))
        value = index.isocalendar().week if part == "week" and hasattr(index, "isocalendar") else getattr(index, part)
        angle = 2 * np.pi * np.asarray(value, np.float64) / CALENDAR[part]
        columns += [np.sin(angle), np.cos(angle)]
    return np.stack(columns, -1) if columns else np.zeros((len(index), 0))


class Windows(NamedTuple):
    """Cuts windows out of series: `lags` steps that are read, and the `block` of steps after them.

    With a season s, and the smallest multiple m of s that is not below `block`, each value is replaced by its
    difference to the mean of `seasons` earlier values, all of which are known when the block is forecast:

        d[t] = y[t] - mean(y[t - m], y[t - m - s], ..., y[t - m - (seasons - 1) s])

    From each window and its block the level is subtracted: the mean of the window's differences with the weights of
    exponential smoothing, which decrease with each step back by the factor (level - 1) / (level + 1).
    """

    lags: int
    block: int
    season: int | None
    seasons: int
    level: int

    @property
    def back(self) -> list[int]:
        """The distances, in steps, from a value back to the values whose mean is subtracted from it."""
        if self.season is None:
            return []
        nearest = -(-self.block // self.season) * self.season
        return [nearest + k * self.season for k in range(self.seasons)]

    @property
    def shortest(self) -> int:
        """The number of steps of the shortest series that has windows to train on."""
        return self.lost + self.lags + self.block + 1

    @property
    def lost(self) -> int:
        """The number of steps at the beginning that have no difference."""
        return max(self.back, default=0)

    def before(self, y: np.ndarray, steps: int = 0) -> np.ndarray:
        """Returns the means that are subtracted from y (..., T): for all steps after the first `lost`, and for `steps`
        more after the end."""
        total = y.shape[-1] + steps
        past = [y[..., self.lost - back : total - back] for back in self.back]
        return np.mean(past, 0) if past else np.zeros((*y.shape[:-1], total))

    def difference(self, y: np.ndarray) -> np.ndarray:
        """Returns d (..., T - lost) for y (..., T)."""
        return y[..., self.lost :] - self.before(y)

    def levels(self, d: np.ndarray) -> np.ndarray:
        """Returns the level of windows d (..., lags), (..., 1); 0 with level=0."""
        if not self.level:
            return np.zeros((*d.shape[:-1], 1))
        weights = ((self.level - 1) / (self.level + 1)) ** np.arange(self.lags)[::-1]
        return np.average(d, -1, weights, keepdims=True)

    def cut(self, d: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns all windows of d (S, T) and of the known values (T, C): x (S * N, lags, 1 + C) and y (S * N, block).

        Step t of x holds d[t] and known[t + block].
        """
        whole = np.lib.stride_tricks.sliding_window_view(d, self.lags + self.block, -1)  # (S, N, lags + block)
        past, future = np.split(whole, [self.lags], -1)
        level = self.levels(past)
        known_later = np.lib.stride_tricks.sliding_window_view(known[self.block :], self.lags, 0)  # (N, C, lags)
        x = self.joined(past - level, known_later[: whole.shape[1]].swapaxes(1, 2))
        return x.reshape(-1, *x.shape[2:]), (future - level).reshape(-1, self.block)

    def joined(self, d: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Joins d (S, ..., lags) and known (..., lags, C), which all series share, to (S, ..., lags, 1 + C)."""
        return np.concatenate([d[..., None], np.broadcast_to(known, (*d.shape, known.shape[-1]))], -1)
