"""A GRU in a larger model, as `grujax.interop.find` gives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
from numpy.typing import NDArray

from grujax.errors import require
from grujax.interop.prove import sizes

Put = Callable[[nn.Module, Mapping], None]


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
    put: Put = field(repr=False, compare=False)


def record(name: str, where: str, model: Any, variables: Mapping, take: Callable, put: Put) -> FoundGRU:
    """What `find` gives of a model that was read."""
    of = sizes(model, variables)
    layers, both = getattr(model, "num_layers", 1), getattr(model, "bidirectional", False)
    return FoundGRU(name, of.input_size, of.hidden_size, layers, both, model.reset_after, where, take, put)


def set_array(flat: dict[str, NDArray], key: str, a: NDArray) -> None:
    require(key in flat, key, "this key in the source", "no such key", "Weights that something computes stay there.")
    same = (flat[key].shape, flat[key].dtype) == (a.shape, a.dtype)
    require(same, key, f"{flat[key].dtype} {flat[key].shape}", f"{a.dtype} {a.shape}")
    flat[key] = a
