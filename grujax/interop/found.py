"""GRUs in larger models: what `grujax.interop.find` gives of each, and those in arrays by their paths.

Cells of torch, Flax Linen, NNX and Haiku are told by a tensor of theirs.
"""

import re
from collections.abc import Callable, Mapping
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
from grujax.interop.trees import CELL


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

    folder: what is written is a folder, by a library that writes it whole or not at all.
    """

    grus: list[FoundGRU]
    write: Callable[[Path], object] | None
    folder: bool = False


def record(name: str, where: str, model: Any, variables: Mapping, take: Callable, put: Callable) -> FoundGRU:
    """What `find` gives of a model that was read."""
    of = sizes(model, variables)
    layers, both = getattr(model, "num_layers", 1), getattr(model, "bidirectional", False)
    return FoundGRU(name, of.input_size, of.hidden_size, layers, both, model.reset_after, where, take, put)


def putting(
    write: Callable[[nn.Module, Mapping], Mapping[str, NDArray]],
    there: Mapping[str, NDArray],
    back: Callable[[str, NDArray], None],
) -> Callable[[nn.Module, Mapping], None]:
    """What puts a model's tensors back by their keys, once they have the form of those that are there."""

    def put(model: nn.Module, variables: Mapping) -> None:
        for key, new in write(model, variables).items():
            if key not in there:
                remedy = "Weights that something computes stay there."
                raise InputError(key, "this key in the source", "no such key", remedy)
            require_equal(f"{new.dtype} {new.shape}", f"{there[key].dtype} {there[key].shape}", key)
            back(key, new)

    return put


class Tree(NamedTuple):
    """Cells in trees of arrays. sign: a tensor that tells one. of: the module of `grujax.interop` that reads them.
    theirs, tree: of the tree what `of` reads, and back."""

    sign: str
    of: Any
    theirs: Callable[[dict], Any]
    tree: Callable[[Any], Mapping]


TREES = (
    Tree(flax.SIGN, flax, lambda tree: (None, tree), lambda made: made[1]["params"]),
    Tree(of_nnx.SIGN, of_nnx, nnx.State, lambda made: nnx.to_pure_dict(nnx.state(made, nnx.Param))),
    Tree("w_i", haiku, lambda tree: {"gru": tree}, lambda made: made["gru"]),
)


def grus_in(flat: dict[str, NDArray], back: Callable[[str, NDArray], None]) -> list[FoundGRU]:
    """Those under torch's keys; cells of the others, and the layers that they make where those can be read as one.

    back: takes what is put, by its path.
    """

    def gru(base: str, where: str, read: Callable[[], tuple], tree: Callable[..., Mapping]) -> FoundGRU:
        def write(model: nn.Module, variables: Mapping) -> dict[str, NDArray]:
            found: dict[Any, NDArray] = flatten_dict(dict(tree(model, variables)))
            return {f"{base}{'/'.join(map(str, path))}": a for path, a in found.items()}

        return record(base.rstrip("./"), where, *read(), read, putting(write, flat, back))

    grus, plain = [], effective(flat)
    for prefix in dict.fromkeys(m["prefix"] for key in plain if (m := KEY.fullmatch(key))):
        try:
            grus.append(gru(prefix, "state dict", partial(from_arrays, gru_at(plain, prefix)), to_arrays))
        except InputError:  # an LSTM, or a part of one
            continue
    for tree in TREES:
        waiting = _stacks(flat, tree.sign)
        while waiting:
            base, cells = waiting.pop(0)
            own = {key.removeprefix(base): flat[key] for key in flat if key.startswith(tuple(cells))}
            of = tree.of.FRAMEWORK
            try:
                read = partial(of.read, tree.theirs(unflatten_dict(own, sep="/")))
                grus.append(
                    gru(base, tree.of.PLACE.framework, read, lambda *new, t=tree, of=of: t.tree(of.build(*new)))
                )
            except InputError:
                waiting = [(cell, [cell]) for cell in cells if len(cells) > 1] + waiting
    return grus


def _stacks(keys: Mapping[str, Any], sign: str) -> list[tuple[str, list[str]]]:
    """The cells of each layer or stack by its base; of a stack in which something stands between layer by layer."""
    bases: dict[str, dict[str, list[str]]] = {}
    for match in filter(None, (re.fullmatch(f"{CELL}{sign}", key) for key in keys)):
        cells = bases.setdefault(match["base"], {}).setdefault(match["layer"], [])
        cells.append(match.string.removesuffix(sign))
    found = []
    for base, layers in bases.items():
        if sorted(int(re.sub(r"\D", "", layer) or 0) for layer in layers) == list(range(len(layers))):
            found.append((base, [cell for cells in layers.values() for cell in cells]))
        else:
            found += [(f"{base}{layer}", cells) for layer, cells in layers.items()]
    return found
