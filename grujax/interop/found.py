"""`FoundGRU`, a GRU in a larger model, and the search for GRUs in trees of arrays.

Cells of torch, Flax Linen, NNX and Haiku are recognised by the name of one of their tensors.
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
from grujax.interop import nnx as interop_nnx
from grujax.interop.prove import sizes
from grujax.interop.torch_keys import KEY, effective, from_arrays, gru_at, to_arrays


@dataclass(frozen=True)
class FoundGRU:
    """A GRU in a larger model. `take()` returns it as (model, variables), without looking at the rest of the source.

    name: for `prefix=` and `replace`.
    where: what kind of object it is in the source, for instance a Keras layer or an ONNX node.
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
    """The GRUs in a source, and a function that writes the source with new weights; None if it cannot be written.

    folder: `write` makes a folder, with a library that writes it whole or not at all. endings: allowed for its name.
    """

    grus: list[FoundGRU]
    write: Callable[[Path], object] | None
    folder: bool = False
    endings: tuple[str, ...] = ()


def record(name: str, where: str, model: Any, variables: Mapping, take: Callable, put: Callable) -> FoundGRU:
    """The `FoundGRU` of a model that was read."""
    input_size, hidden_size, _ = sizes(model, variables)
    layers, both = getattr(model, "num_layers", 1), getattr(model, "bidirectional", False)
    return FoundGRU(name, input_size, hidden_size, layers, both, model.reset_after, where, take, put)


def require_same(key: str, old: NDArray | None, new: NDArray) -> None:
    """Raises `InputError` unless new weights have the shape and dtype of the old ones."""
    if old is None:
        raise InputError(key, "this key in the source", "no such key", "Weights that are computed cannot be replaced.")
    require_equal(f"{new.dtype} {new.shape}", f"{old.dtype} {old.shape}", key)


class Tree(NamedTuple):
    """The cells of a framework in trees of arrays.

    sign: a tensor that only such a cell has. framework: the module of `grujax.interop` that reads them. between: the
    path from a layer to a cell, a pattern. source: turns a tree into what `framework` reads; `tree` is the inverse.
    """

    sign: str
    framework: Any
    between: str
    source: Callable[[dict], Any]
    tree: Callable[[Any], Mapping]

    def write(self, model: nn.Module, variables: Mapping) -> Mapping:
        return self.tree(self.framework.FRAMEWORK.build(model, variables))


def _arrays(module: nnx.Module) -> Mapping:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


WAY = r"(?:(?:forward|backward)_rnn/)?(?:cell/)?"
TREES = (
    Tree("ir/kernel", flax, rf"(?:layers_\d+/)?{WAY}", lambda tree: (None, tree), lambda made: made[1]["params"]),
    Tree("dense_i/kernel", interop_nnx, rf"(?:layers/\d+/)?{WAY}", nnx.State, _arrays),
    Tree("w_i", haiku, "", lambda tree: {"gru": tree}, lambda made: made["gru"]),
)


def grus_in(flat: dict[str, NDArray], put: Callable[[str, NDArray], None]) -> list[FoundGRU]:
    """The GRUs in a flat tree. Cells become one GRU of several layers or directions if they can be read as one.

    put: stores a new array at a path.
    """

    def gru(base: str, where: str, read: Callable[[], tuple], write: Callable[..., Mapping]) -> FoundGRU:
        def replace(model: nn.Module, variables: Mapping) -> None:
            new: dict[Any, Any] = flatten_dict(dict(write(model, variables)))
            for path, a in new.items():
                key = f"{base}{'/'.join(map(str, path))}"
                require_same(key, flat.get(key), a)
                put(key, a)

        model, variables = read()
        return record(base.rstrip("./"), where, model, variables, read, replace)

    grus, plain = [], effective(flat, beside=True)
    for prefix in dict.fromkeys(m["prefix"] for key in plain if (m := KEY.fullmatch(key))):
        try:
            grus.append(gru(prefix, "state dict", partial(from_arrays, gru_at(plain, prefix)), to_arrays))
        except InputError:  # an LSTM, or an incomplete GRU
            continue
    for tree in TREES:
        starts = [key.removesuffix(tree.sign) for key in flat if f"/{key}".endswith(f"/{tree.sign}")]
        waiting = list(_layers(starts, tree.between))
        while waiting:
            base, cells = waiting.pop(0)
            within = {key.removeprefix(base): flat[key] for key in flat if key.startswith(tuple(cells))}
            try:
                read = partial(tree.framework.FRAMEWORK.read, tree.source(unflatten_dict(within, sep="/")))
                grus.append(gru(base, tree.framework.PLACE.framework, read, tree.write))
            except InputError:
                waiting = [(cell, [cell]) for cell in cells if len(cells) > 1] + waiting
    return grus


def _layers(starts: list[str], between: str) -> Iterator[tuple[str, list[str]]]:
    """The path of each layer or stack of layers, and the paths of its cells. A stack whose numbers have gaps, because
    there is something between its layers, comes out layer by layer."""
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
