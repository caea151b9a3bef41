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

    def padded(self, rows: np.ndarray, count: int, steps: int) -> np.ndarray:
        """y of the rows, then filler up to `count` rows; with one a step of so many steps. Filler is 0, or no label."""
        if not self.per_step:
            found = np.zeros((count, *self.y.shape[1:]), self.y.dtype)
            found[: len(rows)] = self.y[rows]
            return found
        none, held = -1 if self.labels is not None else np.nan, min(steps, self.y.shape[1])
        found = np.full((count, steps, *self.y.shape[2:]), none, self.y.dtype)
        found[: len(rows), :held] = self.y[rows, :held]
        return found


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
