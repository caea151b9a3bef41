"""Labels or targets by the name of the head. A single head, the plain case, has the name ""."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Target(NamedTuple):
    """The labels or targets of N sequences for one head."""

    y: np.ndarray  # like `Sequences.y` with a single head
    labels: tuple[str, ...] | None  # class names; None for regression

    @property
    def per_step(self) -> bool:
        """Whether y has a label or target for each step, rather than for each sequence."""
        return self.y.ndim == (3 if self.labels is None else 2)

    @property
    def labelled(self) -> np.ndarray:
        """The steps that have a label or target, (N, T) bool. Needs `per_step`."""
        assert self.per_step
        return self.y >= 0 if self.labels is not None else np.isfinite(self.y[..., 0])

    @property
    def each(self) -> str:
        """The shape of y for one row or step, in words, such as "(2,) per row"."""
        return f"{self.y.shape[1 + self.per_step :]} per {'step' if self.per_step else 'row'}"

    def of_rows(self, rows: np.ndarray, steps: int) -> np.ndarray:
        """Returns the y of `rows` (...,), where -1 is filler.

        With a value for each step it is padded to `steps`, and filler and padding are -1 or NaN; else filler is 0.
        """
        if not self.per_step:
            y, filler = self.y[rows], 0
        else:
            filler = -1 if self.labels is not None else np.nan
            y = padded(self.y[rows, :steps], rows.ndim, steps, filler)
        y[rows < 0] = filler
        return y


def padded(array: np.ndarray, axis: int, length: int, value: float) -> np.ndarray:
    """Returns the array, filled up with `value` to `length` entries along `axis`."""
    missing = (*array.shape[:axis], length - array.shape[axis], *array.shape[axis + 1 :])
    return np.concatenate([array, np.full(missing, value, array.dtype)], axis) if missing[axis] else array


def named(value: Any) -> dict[str, Any]:
    """Returns the values of the heads by name: a mapping as a dict, any other value under the name "".

    >>> named({"label": 3, "value": 1}), named(3)
    ({'label': 3, 'value': 1}, {'': 3})
    """
    return dict(value) if isinstance(value, Mapping) else {"": value}


def unnamed(by_head: Mapping[str, Any]) -> Any:
    """The inverse of `named`: the value of a single head named "" by itself, any other mapping as a dict.

    >>> unnamed({"label": 3, "value": 1}), unnamed({"": 3})
    ({'label': 3, 'value': 1}, 3)
    """
    return by_head[""] if set(by_head) == {""} else dict(by_head)
