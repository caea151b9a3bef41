"""What a peer is: how its timed calls are made, and what it cannot do."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.bench.oracle import Gradients

Thunk = Callable[[], Any]


class Unavailable(Exception):
    """Why a library that is installed cannot run here."""


class Runs(NamedTuple):
    """The timed calls, which return when their result is there, and how to read what they return."""

    forward: Thunk
    read_hs: Callable[[Any], NDArray]  # -> (B, T, D*H), anything at steps that are not valid
    gradients: Thunk | None = None
    read_gradients: Callable[[Any], Gradients] | None = None


class Peer(NamedTuple):
    """One GRU that is measured.

    Attributes:
      build: (arrays, number of threads) -> the calls that are timed.
      modules: the packages that must be installed.
      reset_after: which of the two GRUs it computes.
      lacks: by trait of a case (`Case.traits`, or "gpu"), the reason why this peer has no time for it.
    """

    build: Callable[[Arrays, int], Runs]
    modules: tuple[str, ...] = ()
    reset_after: bool = True
    lacks: dict[str, str] = {}  # noqa: RUF012, nobody writes to it

    def missing(self) -> str | None:
        """Names the packages that are not installed; None where all are."""
        absent = [name for name in self.modules if find_spec(name) is None]
        return f"not installed ({', '.join(absent)})" if absent else None

    def refuses(self, traits: tuple[str, ...]) -> str | None:
        """Why it cannot run a case of these traits; None where it can."""
        return next((self.lacks[trait] for trait in traits if trait in self.lacks), None)
