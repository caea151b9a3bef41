"""What users have as X, as `Sequences`."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from grujax.data import Sequences, sequences
from grujax.errors import require_one_of

Channels = Literal["last", "first"]


def is_table(X: Any) -> bool:
    """Whether X is (N, T), or lists of numbers of one length. Other lists, and arrays of dtype object, hold series."""
    if isinstance(X, (list, tuple)):
        numbers = all(isinstance(row, (list, tuple)) and np.ndim(row[:1]) == 1 for row in X)
        return numbers and len({len(row) for row in X}) == 1
    X = X if hasattr(X, "shape") else np.asarray(X)  # a sparse matrix has a shape; scikit-learn refuses it
    return len(X.shape) == 2 or (len(X.shape) < 2 and X.dtype != object)


def as_sequences(X: Any, lengths: ArrayLike | None, channels: Channels | None) -> Sequences:
    """X as `Sequences`, checked, with y unknown.

    Args:
      X: (N, T, C); (N, T), one channel; or a list (or an array of dtype object) of (T_i, C) or (T_i,).
      lengths: (N,) integers, for padded arrays.
      channels: "first" where X is (N, C, T), or a list of (C, T_i); "last" or None else.
    """
    require_one_of(channels, ("last", "first", None), "channels")
    if not isinstance(X, (list, tuple)):
        X = np.asarray(X)
        X = list(X) if X.dtype == object and X.ndim == 1 else X
    if isinstance(X, (list, tuple)):
        X = [_channels_last(np.asarray(row), 2, channels) for row in X]
    else:
        X = _channels_last(X, 3, channels)
    return sequences(X, None, lengths, source="X")


def _channels_last(array: np.ndarray, ndim: int, channels: Channels | None) -> np.ndarray:
    """With `ndim` axes, the last one that of the channels; an array of one axis less has one channel."""
    if array.ndim == ndim - 1:
        return array[..., None]
    return array.swapaxes(-1, -2) if channels == "first" and array.ndim == ndim else array
