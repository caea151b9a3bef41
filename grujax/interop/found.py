"""A GRU in a larger model, as `grujax.interop.find` gives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
from numpy.typing import NDArray

from grujax.errors import require
from grujax.interop.prove import sizes


@dataclass(frozen=True)
class FoundGRU:
    """A GRU where it stands. `take()` gives it as (model, variables); the rest of the source is left out of account.

    name: of it, for `prefix=` and `replace`. where: what it is there, a layer of Keras or a node of ONNX for instance.
    """

    name: str
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    reset_after: bool
    where: str
    take: Callable[[], tuple[nn.Module, dict]] = field(repr=False, compare=False)
    put: Callable[[nn.Module, Mapping], None] = field(repr=False, compare=False)


class Opened(NamedTuple):
    """A source: the GRUs in it, and how it is written once something was put into it; None where that cannot be.

    folder: what is written is a folder, by a library that writes it whole or not at all.
    """

    grus: list[FoundGRU]
    write: Callable[[Path], None] | None
    folder: bool = False


def record(name: str, where: str, model: Any, variables: Mapping, take: Callable, put: Callable) -> FoundGRU:
    """What `find` gives of a model that was read."""
    of = sizes(model, variables)
    layers, both = getattr(model, "num_layers", 1), getattr(model, "bidirectional", False)
    return FoundGRU(name, of.input_size, of.hidden_size, layers, both, model.reset_after, where, take, put)


def require_same(key: str, old: NDArray | None, new: NDArray) -> None:
    """Raises `InputError` unless weights that are put back have the form of those that were there."""
    if old is None:
        require(False, key, "this key in the source", "no such key", "Weights that something computes stay there.")
    else:
        same = (old.shape, old.dtype) == (new.shape, new.dtype)
        require(same, key, f"{old.dtype} {old.shape}", f"{new.dtype} {new.shape}")
