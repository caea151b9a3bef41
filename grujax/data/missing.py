"""Represents missing values by channels: the last observed value, a mask, and the time since the last observation."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grujax.data.checks import UnitWarning, real
from grujax.errors import require

FACTOR, GAPS = 5, 20
"""Median gaps, of at least GAPS gaps, that differ by this factor may have different units of time."""


def masked(
    x: np.ndarray, lengths: np.ndarray, times: np.ndarray, fill: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N, T, 3C) float32 and fill (C,) float32 for x (N, T, C) float32, which is NaN where a value is missing.

    The channels are: C values, the last observed ones, and `fill` before the first observation; C channels of the mask
    m, 1 where a value was observed and 0 elsewhere; and C gaps, the time since the previous observation, or since the
    first step if there is none, in the units of `times` s (N, T):

        gap_0 = 0        gap_t = s_t - s_{t-1} + (0 if m_{t-1} else gap_{t-1})

    fill: (C,), as a trained model has it. None: the mean of each channel's observations, 0 if it has none.

    Source: Che et al. 2018, arXiv 1606.01865, equations of the mask and the time interval.
    """
    valid = (np.arange(x.shape[1]) < lengths[:, None])[..., None]
    observed = valid & ~np.isnan(x)
    with np.errstate(invalid="ignore"):  # infinite values are refused later, with their row
        sums, counts = np.where(observed, x, 0).sum((0, 1), dtype=np.float64), observed.sum((0, 1))
    before_first = (sums / np.maximum(counts, 1)).astype(np.float32) if fill is None else fill
    step = np.arange(x.shape[1])[:, None]
    last = np.maximum.accumulate(np.where(observed, step, -1), axis=1)  # (N, T, C): -1 before the first
    values = np.where(last < 0, before_first, np.take_along_axis(x, np.maximum(last, 0), 1))
    before = np.maximum(np.concatenate([np.zeros_like(last[:, :1]), last[:, :-1]], 1), 0)
    gaps = times[..., None] - np.take_along_axis(times[..., None], before, 1)
    return np.where(valid, np.concatenate([values, observed, gaps], -1), 0).astype(np.float32), before_first


def median_gap(times: np.ndarray, lengths: np.ndarray) -> float | None:
    """The median time from one step to the next in `times` (N, T); None if it is 0 or there are fewer than GAPS."""
    valid = np.arange(1, times.shape[1]) < lengths[:, None]
    return (float(np.median(np.diff(times)[valid])) or None) if valid.sum() >= GAPS else None


def compare_gaps(found: float | None, known: float | None, source: str) -> None:
    """Warns if two median gaps differ so much that their units of time may differ: files do not store the unit."""
    if found and known and not 1 / FACTOR < found / known < FACTOR:
        gaps = f"a median gap of {found:g} in {source}, and of {known:g} in training"
        warnings.warn(f"time: {gaps}. Do both have the same unit?", UnitWarning, stacklevel=3)


def checked_fill(fill: ArrayLike, channels: int, source: str) -> np.ndarray:
    """Returns `fill` as (C,) float32. Raises InputError unless it has a finite number for each channel."""
    array = real(fill, "(C)", "fill", source).astype(np.float32)
    require(len(array) == channels, "fill", f"{channels} values, one for each channel of {source}", len(array))
    require(bool(np.isfinite(array).all()), "fill", "finite numbers", array.tolist())
    return array


def checked_times(times: Any, lengths: np.ndarray, width: int, source: str) -> np.ndarray:
    """Returns `times`, N rows of a time for each step, as (N, T) float64; None means 0, 1, ... `width` is T.

    Raises InputError for times that decrease or are not finite, and for rows of another length.
    """
    padded = np.zeros((len(lengths), width)) + np.arange(width)
    if times is None:
        return padded
    rows = list(times)
    require(len(rows) == len(lengths), "times", f"a row for each of {len(lengths)} sequences", len(rows))
    for index, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        array = real(row, "(T)", f"times[{index}]", source)
        require(len(array) in (length, width), f"times[{index}]", f"one time for each of {length} steps", len(array))
        kept = array[:length].astype(np.float64)
        span = np.finfo(np.float32).max  # a longer gap would be infinite in float32
        fits = bool(np.isfinite(kept).all() and (np.diff(kept) >= 0).all() and kept[-1] - kept[0] <= span)
        require(fits, f"times[{index}]", "finite numbers that do not decrease", f"others in {source}")
        padded[index, :length] = kept
    return padded
