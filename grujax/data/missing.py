"""Missing values as channels: the last observed value, whether there is one, and how long ago it was."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grujax.data.checks import UnitWarning, real
from grujax.errors import require

FACTOR, GAPS = 5, 20
"""Median gaps, of so many at least, that differ by this factor may have another unit of time."""


def masked(
    x: np.ndarray, lengths: np.ndarray, times: np.ndarray, fill: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """x (N, T, C) float32, NaN where missing -> (N, T, 3C) float32 and fill (C,) float32.

    The channels are C values, the last observed ones and `fill` before the first; C of the mask m, 1 where a value was
    observed and else 0; and C gaps: the time since the observation before this step, or since the first step where
    there is none, in units of `times` (N, T):

        gap_0 = 0        gap_t = s_t - s_{t-1} + (0 if m_{t-1} else gap_{t-1})

    `fill` is the mean of what was observed, 0 of a channel without an observation; that of a trained model where given.

    Source: Che et al. 2018, arXiv 1606.01865, equations of the mask and the time interval.
    """
    valid = (np.arange(x.shape[1]) < lengths[:, None])[..., None]
    observed = valid & ~np.isnan(x)
    with np.errstate(invalid="ignore"):  # what is infinite is refused later, by its row
        sums, counts = np.where(observed, x, 0).sum((0, 1), dtype=np.float64), observed.sum((0, 1))
    before_first = (sums / np.maximum(counts, 1)).astype(np.float32) if fill is None else fill
    step = np.arange(x.shape[1])[:, None]
    last = np.maximum.accumulate(np.where(observed, step, -1), axis=1)  # (N, T, C): -1 before the first
    values = np.where(last < 0, before_first, np.take_along_axis(x, np.maximum(last, 0), 1))
    before = np.maximum(np.concatenate([np.zeros_like(last[:, :1]), last[:, :-1]], 1), 0)
    gaps = times[..., None] - np.take_along_axis(times[..., None], before, 1)
    return np.where(valid, np.concatenate([values, observed, gaps], -1), 0).astype(np.float32), before_first


def median_gap(times: np.ndarray, lengths: np.ndarray) -> float | None:
    """The median time from a step to the next, of `times` (N, T); None of too few to tell, or 0."""
    there = np.arange(1, times.shape[1]) < lengths[:, None]
    return (float(np.median(np.diff(times)[there])) or None) if there.sum() >= GAPS else None


def compare_gaps(found: float | None, known: float | None, source: str) -> None:
    """Warns where median gaps differ so much that their times may have another unit, which no file tells."""
    if found and known and not 1 / FACTOR < found / known < FACTOR:
        told = f"time: a median gap of {found:g} in {source}, and of {known:g} in training. Have they the same unit?"
        warnings.warn(told, UnitWarning, stacklevel=3)


def checked_fill(fill: ArrayLike, channels: int, source: str) -> np.ndarray:
    """`fill` as (C,) float32."""
    array = real(fill, "(C)", "fill", source).astype(np.float32)
    require(len(array) == channels, "fill", f"{channels} values, one for each channel of {source}", len(array))
    require(bool(np.isfinite(array).all()), "fill", "finite numbers", array.tolist())
    return array


def checked_times(times: Any, lengths: np.ndarray, width: int, source: str) -> np.ndarray:
    """`times`, N rows of a time for each step, as (N, T) float64, not falling; None is 0, 1, ... `width` is T."""
    padded = np.zeros((len(lengths), width)) + np.arange(width)
    if times is None:
        return padded
    rows = list(times)
    require(len(rows) == len(lengths), "times", f"a row for each of {len(lengths)} sequences", len(rows))
    for index, (row, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        array = real(row, "(T)", f"times[{index}]", source)
        require(len(array) in (length, width), f"times[{index}]", f"one for each of {length} steps", len(array))
        kept = array[:length].astype(np.float64)
        span = np.finfo(np.float32).max  # else a gap would be infinite
        rises = bool(np.isfinite(kept).all() and (np.diff(kept) >= 0).all() and kept[-1] - kept[0] <= span)
        require(rises, f"times[{index}]", "finite numbers that do not fall", f"others in {source}")
        padded[index, :length] = kept
    return padded
