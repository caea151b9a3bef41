"""The types of a peer: how its timed calls are built, and which features it lacks."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.bench.oracle import Gradients

Thunk = Callable[[], Any]


class Unavailable(Exception):
    """Raised with the reason why an installed library cannot run on this machine."""


class Runs(NamedTuple):
    """The timed calls, which return after their result is complete, and functions that read the results."""

    forward: Thunk
    read_hs: Callable[[Any], NDArray]  # -> (B, T, D*H), any values at invalid steps
    gradients: Thunk | None = None
    read_gradients: Callable[[Any], Gradients] | None = None


class Peer(NamedTuple):
    """One GRU to measure.

    Attributes:
      build: (arrays, number of threads) -> the calls to time.
      modules: the packages that must be installed.
      reset_after: which of the two GRUs it computes.
      lacks: for each trait of a case (`Case.traits`, or "gpu") that it lacks, the reason to print instead of a time.
    """

    build: Callable[[Arrays, int], Runs]
    modules: tuple[str, ...] = ()
    reset_after: bool = True
    lacks: dict[str, str] = {}  # noqa: RUF012, never written

    def missing(self) -> str | None:
        """Names the packages that are not installed; None if all are."""
        absent = [name for name in self.modules if find_spec(name) is None]
        return f"not installed ({', '.join(absent)})" if absent else None

    def refuses(self, traits: tuple[str, ...]) -> str | None:
        """Returns why it cannot run a case with these traits; None if it can."""
        return next((self.lacks[trait] for trait in traits if trait in self.lacks), None)
