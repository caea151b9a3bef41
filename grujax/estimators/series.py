"""Converts the X of an estimator to `Sequences`."""

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from grujax.data import AxesWarning, Sequences, sequences
from grujax.data.checks import array_of
from grujax.errors import require, require_one_of

Channels = Literal["last", "first"]


def is_table(X: Any) -> bool:
    """Whether X is (N, T), or lists of numbers of one length. Other lists, and object arrays, contain series."""
    if isinstance(X, (list, tuple)):
        numbers = all(isinstance(row, (list, tuple)) and np.ndim(row[:1]) == 1 for row in X)
        return numbers and len({len(row) for row in X}) == 1
    X = X if hasattr(X, "shape") else np.asarray(X)  # a sparse matrix has a shape; scikit-learn refuses it
    return len(X.shape) == 2 or (len(X.shape) < 2 and X.dtype != object)


def as_sequences(
    X: Any, lengths: ArrayLike | None, channels: Channels | None, known: int | None = None, **missing: Any
) -> Sequences:
    """Returns X as checked `Sequences` without y.

    Args:
      X: (N, T, C); (N, T), one channel; or a list (or an array of dtype object) of (T_i, C) or (T_i,).
      lengths: (N,) integers, for padded arrays.
      channels: "first" if X is (N, C, T) or a list of (C, T_i); otherwise "last" or None.
      known: the number of channels in `fit`; None accepts any number.
      missing: `missing` and `fill` of `grujax.data.sequences`.
    """
    require_one_of(channels, ("last", "first", None), "channels")
    remedy = "channels='first' reads (N, C, T), channels='last' (N, T, C)."
    if not isinstance(X, (list, tuple)):
        X = array_of(X, "X", "X")
        X = list(X) if X.dtype == object and X.ndim == 1 else X
    if isinstance(X, (list, tuple)):
        X = [_channels_last(array_of(row, f"x[{index}]", "X"), 2, channels) for index, row in enumerate(X)]
    else:
        remedy = "An array (N, T) is N series of one channel; one series (T, C) is X[None]." if X.ndim == 2 else remedy
        X = _channels_last(X, 3, channels)
    if known is not None and np.size(X[0] if isinstance(X, list) and X else X):
        found = (X[0] if isinstance(X, list) else X).shape[-1:] or (known,)  # a scalar is refused below
        require(found == (known,), "X", f"{known} channels, as in fit", found[0], remedy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AxesWarning)  # an estimator has a warning of its own, unless `channels` is set
        return sequences(X, None, lengths, source="X", **missing)


def _channels_last(array: np.ndarray, ndim: int, channels: Channels | None) -> np.ndarray:
    """Returns the array with `ndim` axes, the channels last; an array with one axis less has one channel."""
    if array.ndim == ndim - 1:
        return array[..., None]
    return array.swapaxes(-1, -2) if channels == "first" and array.ndim == ndim else array
