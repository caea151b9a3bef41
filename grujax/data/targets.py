"""What a model's heads learn, by their names; a single head, the plain case, is the one under the name ""."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Target(NamedTuple):
    """The labels or targets of N sequences for one head."""

    y: np.ndarray  # as `Sequences.y` of a single head
    labels: tuple[str, ...] | None  # class names; None for regression

    @property
    def per_step(self) -> bool:
        """Whether y has a label or target for each step, and not for each sequence."""
        return self.y.ndim == (3 if self.labels is None else 2)

    @property
    def labelled(self) -> np.ndarray:
        """(N, T) bool: the steps that have a label or target of their own. Of a target with one a step."""
        assert self.per_step
        return self.y >= 0 if self.labels is not None else np.isfinite(self.y[..., 0])

    @property
    def each(self) -> str:
        """How many values there are, in words: "(2,) a row"."""
        return f"{self.y.shape[1 + self.per_step :]} a {'step' if self.per_step else 'row'}"

    def of_rows(self, rows: np.ndarray, steps: int) -> np.ndarray:
        """y of the rows (...,), where -1 is filler: 0, or no label; with one a step padded to so many steps."""
        if not self.per_step:
            found, none = self.y[rows], 0
        else:
            none = -1 if self.labels is not None else np.nan
            found = padded(self.y[rows, :steps], rows.ndim, steps, none)
        found[rows < 0] = none
        return found


def padded(array: np.ndarray, axis: int, length: int, value: float) -> np.ndarray:
    """The array with that value up to so many entries along an axis."""
    missing = (*array.shape[:axis], length - array.shape[axis], *array.shape[axis + 1 :])
    return np.concatenate([array, np.full(missing, value, array.dtype)], axis) if missing[axis] else array


def named(of: Any) -> dict[str, Any]:
    """What several heads have, by their names; of a single one under the name "".

    >>> named({"label": 3, "value": 1}), named(3)
    ({'label': 3, 'value': 1}, {'': 3})
    """
    return dict(of) if isinstance(of, Mapping) else {"": of}


def unnamed(of: Mapping[str, Any]) -> Any:
    """The reverse of `named`.

    >>> unnamed({"label": 3, "value": 1}), unnamed({"": 3})
    ({'label': 3, 'value': 1}, 3)
    """
    return of[""] if set(of) == {""} else dict(of)
