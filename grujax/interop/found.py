"""GRUs in larger models: what `grujax.interop.find` gives of each, and those in arrays by their paths.

Cells of torch, Flax Linen, NNX and Haiku are told by a tensor of theirs.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS
from grujax.errors import InputError, require_equal
from grujax.interop import flax, haiku
from grujax.interop import nnx as of_nnx
from grujax.interop.prove import inputs_of
from grujax.interop.torch_keys import KEY, effective, from_arrays, gru_at, to_arrays
from grujax.interop.trees import CELL, read_tree, written_tree


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
    layers, both = getattr(model, "num_layers", 1), getattr(model, "bidirectional", False)
    sizes = (inputs_of(model, variables), model.hidden_size, layers, both)
    return FoundGRU(name, *sizes, model.reset_after, where, take, put)


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


TREES = {
    flax.SIGN: ("flax", flax.PLACE, {}),
    of_nnx.SIGN: ("nnx", of_nnx.PLACE, {}),
    haiku.SIGN: ("haiku", haiku.PLACE, haiku.FIELDS),
}
"""Cells in trees of arrays by a tensor that tells one: the dialect, the place, and fields of the model."""


def grus_in(flat: dict[str, NDArray], back: Callable[[str, NDArray], None]) -> list[FoundGRU]:
    """Those under torch's keys; cells of the others, and the layers that they make where those can be read as one.

    back: takes what is put, by its path.
    """
    grus, plain = [], effective(flat)
    for prefix in dict.fromkeys(m["prefix"] for key in plain if (m := KEY.fullmatch(key))):

        def state(model: nn.Module, variables: Mapping, prefix: str = prefix) -> dict[str, NDArray]:
            return {f"{prefix}{key}": a for key, a in to_arrays(model, variables).items()}

        with suppress(InputError):  # an LSTM, or a part of one
            read = partial(from_arrays, gru_at(plain, prefix))
            grus.append(record(prefix.rstrip("."), "state dict", *read(), read, putting(state, flat, back)))
    for sign, (kind, place, fields) in TREES.items():
        waiting = _stacks(flat, sign)
        while waiting:
            base, cells = waiting.pop(0)
            own = {key: a for key, a in flat.items() if key.startswith(tuple(cells))}
            dialect = DIALECTS["nnx with hn_bias" if any(key.endswith("hn_bias") for key in own) else kind]
            write = partial(written_tree, place=place, dialect=dialect, prefixes=cells)
            try:
                read = partial(read_tree, own, cells, dialect, **fields)
                grus.append(record(base.rstrip("/"), place.framework, *read(), read, putting(write, flat, back)))
            except InputError:
                waiting = [(cell, [cell]) for cell in cells if len(cells) > 1] + waiting
    return grus


def _stacks(keys: Mapping[str, Any], sign: str) -> list[tuple[str, list[str]]]:
    """The cells of each layer or stack by its base; of a stack in which something stands between layer by layer."""
    bases: dict[str, dict[str, list[str]]] = {}
    for match in filter(None, (re.fullmatch(f"{CELL}{sign}", key) for key in keys)):
        cells = bases.setdefault(match["base"], {}).setdefault(match["layer"], [])
        cells.append(match.string.removesuffix(sign))
        cells.sort(key=lambda cell: "backward_rnn/" in cell)
    found = []
    for base, layers in bases.items():
        numbered = {int(re.sub(r"\D", "", layer) or 0): cells for layer, cells in layers.items()}
        ways = {tuple("backward_rnn/" in cell for cell in cells) for cells in layers.values()}
        if sorted(numbered) == list(range(len(layers))) and len(ways) == 1:
            found.append((base, [cell for _, cells in sorted(numbered.items()) for cell in cells]))
        else:
            found += [(f"{base}{layer}", cells) for layer, cells in layers.items()]
    return found
