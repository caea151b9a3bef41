"""The GRUs in nested mappings of arrays, those of Flax Linen, NNX and Haiku, by a tensor that tells a cell of each."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from grujax.errors import InputError, require
from grujax.interop.flax import from_flax, to_flax
from grujax.interop.found import FoundGRU, record, set_array
from grujax.interop.haiku import from_haiku, to_haiku
from grujax.interop.nnx import from_nnx, to_nnx

TREES: dict[str, tuple[str, str, Callable, Callable]] = {
    "ir/kernel": (
        "flax.linen.GRUCell",
        r"(?:layers_\d+/)?(?:(?:forward|backward)_rnn/)?(?:cell/)?",
        lambda tree: from_flax(tree),
        lambda model, variables: to_flax(model, variables)[1]["params"],
    ),
    "dense_i/kernel": (
        "flax.nnx.GRUCell",
        r"(?:layers/\d+/)?(?:(?:forward|backward)_rnn/)?(?:cell/)?",
        lambda tree: from_nnx(nnx.State(tree)),
        lambda model, variables: nnx.to_pure_dict(nnx.state(to_nnx(model, variables), nnx.Param)),
    ),
    "w_i": (
        "hk.GRU",
        "",
        lambda tree: from_haiku({"gru": tree}),
        lambda model, variables: to_haiku(model, variables)["gru"],
    ),
}
"""By a tensor that tells a cell of each framework: what it is, what stands between a layer's name and it, and back."""


def in_tree(tree: Mapping) -> list[FoundGRU]:
    """In nested mappings of arrays: cells, and the layers that they make where those can be read as one."""
    leaves: dict[Any, Any] = flatten_dict(_plain(tree))
    flat = {"/".join(map(str, path)): path for path, a in leaves.items() if isinstance(a, np.ndarray | jax.Array)}
    grus: list[FoundGRU] = []
    for sign, (where, between, read, write) in TREES.items():
        starts = [key.removesuffix(sign) for key in flat if key.endswith(sign) and key[: -len(sign)][-1:] in ("", "/")]
        for names in _layers(starts, between):
            grus += list(_tree_gru(tree, flat, leaves, *names, where, read, write))
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


def _tree_gru(
    tree: Any, flat: dict, leaves: dict, base: str, cells: list[str], where: str, read: Callable, write: Callable
) -> Iterator[FoundGRU]:
    own = [key for key in flat if key.startswith(tuple(cells))]

    def taken() -> tuple[nn.Module, dict]:
        return read(unflatten_dict({key.removeprefix(base): leaves[flat[key]] for key in own}, sep="/"))

    def put(model: nn.Module, variables: Mapping) -> None:
        found = {f"{base}{key}": a for key, a in flatten_dict(dict(write(model, variables)), sep="/").items()}
        require(found.keys() == set(own), base, str(sorted(own))[:300], str(sorted(found))[:300])
        for key, a in found.items():
            set_array({key: np.asarray(leaves[flat[key]])}, key, np.asarray(a))
            *owners, last = flat[key]
            node = tree
            for owner in owners:
                node = node[owner]
            node[last] = np.asarray(a)

    try:
        yield record(base.rstrip("/"), where, *taken(), taken, put)
    except InputError:
        if len(cells) > 1:
            for cell in cells:
                yield from _tree_gru(tree, flat, leaves, cell, [cell], where, read, write)


def _plain(tree: Any) -> Any:
    """Mappings as dicts, whatever class they have."""
    return {key: _plain(a) for key, a in tree.items()} if isinstance(tree, Mapping) else tree
