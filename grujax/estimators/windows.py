"""Series over time as tables of pandas, and the windows of them that a GRU reads."""

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
"""Parts of a date by pandas' name, with the steps after which each begins anew."""


def table(values: Any, name: str) -> Any:
    """A DataFrame of finite numbers, a column a series, with a regular index that knows its frequency.

    values: a Series, a DataFrame, an array (T,) or (T, S), or the path of a CSV: see `read`.
    Raises InputError, beginning with `name`, for gaps, missing values, and times whose frequency is not clear.
    """
    pandas = require_package("pandas", "forecast")
    values = read(values, name) if isinstance(values, (str, Path)) else values
    try:
        frame = values.to_frame() if isinstance(values, pandas.Series) else pandas.DataFrame(values)
    except ValueError as error:
        raise InputError(name, "a Series, a DataFrame, an array (T,) or (T, S), or a path", error) from error
    require(frame.size > 0, name, "at least one series and one step", f"shape {frame.shape}")
    require(frame.columns.is_unique, name, "columns with names of their own", list(frame.columns))
    kinds = [column for column, kind in frame.dtypes.items() if kind.kind not in "biuf"]
    found = f"{frame[kinds].dtypes.iloc[0]} in {kinds[0]!r}" if kinds else ""
    remedy = "Set times as index by y.set_index('ds'); of a table with a row a series and time, write y.pivot(...)."
    require(not kinds, name, "columns of numbers", found, remedy)
    frame = frame.astype(np.float64).set_axis(regular(frame.index, name))
    wrong = np.argwhere(~np.isfinite(frame.to_numpy()))
    if len(wrong):
        step, column = wrong[0]
        found = f"{frame.iat[step, column]} at {frame.index[step]} in {frame.columns[column]!r}"
        raise InputError(name, "finite numbers", found, "Fill in what is missing, as with y.interpolate().")
    return frame


def read(path: str | Path, name: str) -> Any:
    """The CSV as a DataFrame: commas, a header, and in the first column dates of ISO 8601 or the numbers of steps."""
    pandas, expected = require_package("pandas", "forecast"), "a CSV whose first column is the time"
    require(Path(path).is_file(), name, expected, f"no file {path}")
    try:
        names = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
        dated = pandas.notna(pandas.to_datetime(names[0], format="ISO8601", errors="coerce"))
        frame = pandas.read_csv(path, index_col=0)
        dates = pandas.to_datetime(frame.index.astype(str), format="ISO8601", errors="coerce")
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(name, expected, str(error).rstrip(".")) from error
    read = [cell.strip() or "0" for cell in names[1:]] if dated else names  # after a date an empty cell is a value
    check_header(pandas, read, name, "Write a line date,y before it.")
    require(frame.shape[1] > 0, name, expected, f"one column only, {frame.index.name!r}", "Is the separator a comma?")
    if frame.index.dtype.kind in "iu" and frame.index.max() < 10**7:  # steps or years, and no 20100131
        return frame
    if dates.hasnans:
        remedy = "Write ISO dates, or read the file by pandas and pass a Series."
        raise InputError(name, "dates as 2010-01-31", frame.index[dates.isna()][0], remedy)
    return frame.set_axis(dates)


def regular(index: Any, name: str) -> Any:
    """The index with its frequency; InputError where times are missing, unsorted or without one frequency."""
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
        require(sorts, name, "times that rise", "others", "Write y.sort_index(), and drop what is there twice.")
        parts = (index[start : start + 3] for start in range(len(index) - 2))  # between gaps, one has a frequency
        whole = [index] if len(index) > 2 else []
        freq = index.freq or next(filter(None, map(pandas.infer_freq, chain(whole, parts))), None)
        remedy = "Set it, as with y.asfreq('MS')."
        require(freq is not None, name, "an index with one frequency", "none that pandas infers", remedy)
        whole = pandas.date_range(index[0], index[-1], freq=freq)
    else:
        remedy = "Write pandas.to_datetime; or y.reset_index(drop=True), which counts steps."
        raise InputError(name, "an index of dates, periods or steps", type(index).__name__, remedy)
    gaps, odd = whole.difference(index), index.difference(whole)
    if len(gaps) or len(odd) or len(whole) != len(index):
        found = f"none at {gaps[0]}" if len(gaps) else f"{odd[0]}" if len(odd) else "times twice or unsorted"
        every = getattr(whole, "freqstr", f"{index[1] - index[0]} steps")
        raise InputError(name, f"a row every {every}", found, "Fill gaps, as with y.asfreq(...).interpolate().")
    return whole


def following(index: Any, steps: int) -> Any:
    """The index of the `steps` after the end of this one."""
    pandas = require_package("pandas", "forecast")
    if isinstance(index, pandas.RangeIndex):
        return pandas.RangeIndex(index.stop, index.stop + steps * index.step, index.step)
    make = pandas.date_range if isinstance(index, pandas.DatetimeIndex) else pandas.period_range
    return make(index[-1], periods=steps + 1, freq=index.freq)[1:]


def calendar(index: Any, parts: tuple[str, ...]) -> np.ndarray:
    """(T, 2 * parts): sine and cosine of each part of the date as an angle; `CALENDAR` has the parts."""
    columns = []
    for part in parts:
        require(hasattr(index, "month"), "calendar", "none, as the index has no dates", repr(part))
        value = index.isocalendar().week if part == "week" and hasattr(index, "isocalendar") else getattr(index, part)
        angle = 2 * np.pi * np.asarray(value, np.float64) / CALENDAR[part]
        columns += [np.sin(angle), np.cos(angle)]
    return np.stack(columns, -1) if columns else np.zeros((len(index), 0))


class Windows(NamedTuple):
    """How windows are cut out of series: `lags` steps that are read, and the `block` of steps after them.

    With a season s, and the smallest multiple m of s that is not below `block`, each value is read as its difference
    to the mean of `seasons` values before it, all known when the block is forecast:

        d[t] = y[t] - mean(y[t - m], y[t - m - s], ..., y[t - m - (seasons - 1) s])

    and from every window its level is subtracted, from the block too: the mean of its differences with the weights of
    exponential smoothing, which fall with each step back by the factor (level - 1) / (level + 1).
    """

    lags: int
    block: int
    season: int | None
    seasons: int
    level: int

    @property
    def back(self) -> list[int]:
        """How many steps before a value those lie that are subtracted from it."""
        if self.season is None:
            return []
        nearest = -(-self.block // self.season) * self.season
        return [nearest + k * self.season for k in range(self.seasons)]

    @property
    def shortest(self) -> int:
        """The steps of the shortest series that has windows to train on."""
        return self.lost + self.lags + self.block + 1

    @property
    def lost(self) -> int:
        """The steps at the beginning that have no difference."""
        return max(self.back, default=0)

    def before(self, y: np.ndarray, steps: int = 0) -> np.ndarray:
        """What is subtracted from y (..., T), for all steps but the first `lost`, and `steps` after the end."""
        total = y.shape[-1] + steps
        past = [y[..., self.lost - back : total - back] for back in self.back]
        return np.mean(past, 0) if past else np.zeros((*y.shape[:-1], total))

    def difference(self, y: np.ndarray) -> np.ndarray:
        """d (..., T - lost) of y (..., T)."""
        return y[..., self.lost :] - self.before(y)

    def levels(self, d: np.ndarray) -> np.ndarray:
        """(..., 1): the level of windows d (..., lags), 0 where there is none."""
        if not self.level:
            return np.zeros((*d.shape[:-1], 1))
        weights = ((self.level - 1) / (self.level + 1)) ** np.arange(self.lags)[::-1]
        return np.average(d, -1, weights, keepdims=True)

    def cut(self, d: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All windows of d (S, T), and of what is known of each step and of the block after it, (T, C).

        Returns x (S * N, lags, 1 + C) and y (S * N, block). Step t of x holds d[t] and known[t + block].
        """
        whole = np.lib.stride_tricks.sliding_window_view(d, self.lags + self.block, -1)  # (S, N, lags + block)
        past, future = np.split(whole, [self.lags], -1)
        level = self.levels(past)
        beside = np.lib.stride_tricks.sliding_window_view(known[self.block :], self.lags, 0)  # (N, C, lags)
        x = self.joined(past - level, beside[: whole.shape[1]].swapaxes(1, 2))
        return x.reshape(-1, *x.shape[2:]), (future - level).reshape(-1, self.block)

    def joined(self, d: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(S, ..., lags, 1 + C) of d (S, ..., lags) and known (..., lags, C), which all series share."""
        return np.concatenate([d[..., None], np.broadcast_to(known, (*d.shape, known.shape[-1]))], -1)
