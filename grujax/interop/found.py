"""GRUs in larger models: what `grujax.interop.find` gives of each, and those in arrays by their paths.

Cells of torch, Flax Linen, NNX and Haiku are told by a tensor of theirs.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from grujax.errors import InputError, require_equal
from grujax.interop import flax, haiku
from grujax.interop import nnx as of_nnx
from grujax.interop.prove import sizes
from grujax.interop.torch_keys import KEY, effective, from_arrays, gru_at, to_arrays


@dataclass(frozen=True)
class FoundGRU:
    """A GRU where it stands. `take()` gives it as (model, variables); the rest of the source is left out of account.

    name: of it, for `prefix=` and `replace`.
    where: what it is there, a layer of Keras or a node of ONNX for instance.
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

    folder: what is written is a folder, by a library that writes it whole or not at all. endings: of a file's name.
    """

    grus: list[FoundGRU]
    write: Callable[[Path], object] | None
    folder: bool = False
    endings: tuple[str, ...] = ()


def record(name: str, where: str, model: Any, variables: Mapping, take: Callable, put: Callable) -> FoundGRU:
    """What `find` gives of a model that was read."""
    of = sizes(model, variables)
    layers, both = getattr(model, "num_layers", 1), getattr(model, "bidirectional", False)
    return FoundGRU(name, of.input_size, of.hidden_size, layers, both, model.reset_after, where, take, put)


def require_same(key: str, old: NDArray | None, new: NDArray) -> None:
    """Raises `InputError` unless weights that are put back have the form of those that were there."""
    if old is None:
        raise InputError(key, "this key in the source", "no such key", "Weights that something computes stay there.")
    require_equal(f"{new.dtype} {new.shape}", f"{old.dtype} {old.shape}", key)


class Tree(NamedTuple):
    """Cells in trees of arrays. sign: a tensor that tells one. of: the module of `grujax.interop` that reads them.
    between: what stands between a layer's name and a cell. theirs, tree: of the tree what `of` reads, and back."""

    sign: str
    of: Any
    between: str
    theirs: Callable[[dict], Any]
    tree: Callable[[Any], Mapping]

    def write(self, model: nn.Module, variables: Mapping) -> Mapping:
        return self.tree(self.of.FRAMEWORK.build(model, variables))


def _arrays(module: nnx.Module) -> Mapping:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


WAY = r"(?:(?:forward|backward)_rnn/)?(?:cell/)?"
TREES = (
    Tree("ir/kernel", flax, rf"(?:layers_\d+/)?{WAY}", lambda tree: (None, tree), lambda made: made[1]["params"]),
    Tree("dense_i/kernel", of_nnx, rf"(?:layers/\d+/)?{WAY}", nnx.State, _arrays),
    Tree("w_i", haiku, "", lambda tree: {"gru": tree}, lambda made: made["gru"]),
)


def grus_in(flat: dict[str, NDArray], back: Callable[[str, NDArray], None]) -> list[FoundGRU]:
    """Those under torch's keys; cells of the others, and the layers that they make where those can be read as one.

    back: takes what is put, by its path.
    """

    def gru(base: str, where: str, read: Callable[[], tuple], write: Callable[..., Mapping]) -> FoundGRU:
        def put(model: nn.Module, variables: Mapping) -> None:
            found: dict[Any, Any] = flatten_dict(dict(write(model, variables)))
            for path, a in found.items():
                key = f"{base}{'/'.join(map(str, path))}"
                require_same(key, flat.get(key), a)
                back(key, a)

        model, variables = read()
        return record(base.rstrip("./"), where, model, variables, read, put)

    grus, plain = [], effective(flat, beside=True)
    for prefix in dict.fromkeys(m["prefix"] for key in plain if (m := KEY.fullmatch(key))):
        try:
            grus.append(gru(prefix, "state dict", partial(from_arrays, gru_at(plain, prefix)), to_arrays))
        except InputError:  # an LSTM, or a part of one
            continue
    for tree in TREES:
        starts = [key.removesuffix(tree.sign) for key in flat if f"/{key}".endswith(f"/{tree.sign}")]
        waiting = list(_layers(starts, tree.between))
        while waiting:
            base, cells = waiting.pop(0)
            own = {key.removeprefix(base): flat[key] for key in flat if key.startswith(tuple(cells))}
            try:
                read = partial(tree.of.FRAMEWORK.read, tree.theirs(unflatten_dict(own, sep="/")))
                grus.append(gru(base, tree.of.PLACE.framework, read, tree.write))
            except InputError:
                waiting = [(cell, [cell]) for cell in cells if len(cells) > 1] + waiting
    return grus


def _layers(starts: list[str], between: str) -> Iterator[tuple[str, list[str]]]:
    """The cells of each layer or stack by its base; of a stack in which something stands between layer by layer."""
    bases: dict[str, dict[str, list[str]]] = {}
    for start in starts:
        base = re.sub(rf"{between}$", "", start)
        match = re.match(r"layers[_/]\d+/", start[len(base) :])
        bases.setdefault(base, {}).setdefault(match[0] if match else "", []).append(start)
    for base, layers in bases.items():
        numbers = sorted(int(re.sub(r"\D", "", layer) or 0) for layer in layers)
        if numbers == list(range(len(numbers))):
            yield base, [cell for cells in layers.values() for cell in cells]
        else:
            yield from ((f"{base}{layer}", cells) for layer, cells in layers.items())
