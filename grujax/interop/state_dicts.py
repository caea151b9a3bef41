"""Torch's state dict in NumPy, as the `.pt` and the safetensors file hold it.

`weight_ih_l{k}[_reverse]` (3H, I), `weight_hh` (3H, H), `bias_ih`, `bias_hh` (3H,), rows r | z | n; and `weight`
(O, D*H), `bias` (O,) of an `nn.Linear` behind them.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.core.weight_layouts import DIALECTS
from grujax.errors import require
from grujax.interop.model_parts import Dense, Place, put_together, take_apart
from grujax.interop.weight_layouts import DTYPES, FLOATS, Cell, read, write
from grujax.linen.cell import GRUCell
from grujax.linen.model import GRUModel

KEY = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<what>weight|bias)_(?P<of>ih|hh)(?:_l(?P<layer>\d+)(?P<reverse>_reverse)?)?")
PLACE = Place("torch.nn.GRU", {"dropout": None})
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Names(NamedTuple):
    """What the keys tell before a tensor is looked at."""

    gru: str  # the prefix of the nn.GRU's keys
    head: str | None  # of the nn.Linear's
    suffixes: list[str]  # a layer and direction each: _l0, _l0_reverse, ...; "" alone in an nn.GRUCell
    bias: bool

    @property
    def bidirectional(self) -> bool:
        return any(suffix.endswith("_reverse") for suffix in self.suffixes)


def from_arrays(state: Mapping[str, NDArray], **fields: Any) -> tuple[nn.Module, dict]:
    """The model and variables of a state dict; `fields` are what its arrays do not tell.

    Raises:
      InputError: naming the key, what was expected and what was found; nothing is skipped, guessed or cast.
    """
    names = read_names(state)
    cells: dict[str, Cell] = {}
    known: list[str] = []
    for suffix in names.suffixes:
        keys = [f"{names.gru}{kind}{suffix}" for kind in KINDS[: 4 if names.bias else 2]]
        known += keys
        for key in keys:
            require(key in state, key, "this key", "no such key", "The state dict is not whole.")
        cells[keys[0]] = read({key: state[key] for key in keys}, DIALECTS["torch"])
    head = None
    if names.head is not None:
        keys = [f"{names.head}weight", f"{names.head}bias"]
        known += keys
        for key in keys:
            require(state[key].dtype.name in DTYPES, key, FLOATS, f"dtype {state[key].dtype}")
        head = keys[0], Dense(state[keys[0]].T, state[keys[1]])
    for key in state:
        require(key in known, key, f"only the keys {known}", "this key besides", "It would be lost.")
    single = names.suffixes == [""]
    return put_together(cells, head, bidirectional=names.bidirectional, single=single, **fields)


def to_arrays(model: nn.Module, variables: Mapping, gru: str = "gru", head: str = "output_layer") -> dict[str, NDArray]:
    """The state dict of the torch module that computes what `model` computes, in torch's order."""
    parts = take_apart(model, variables, PLACE, DIALECTS["torch"])
    gru, head = (f"{name}." if name and isinstance(model, GRUModel) else "" for name in (gru, head))
    state: dict[str, NDArray] = {}
    directions = 2 if getattr(model, "bidirectional", False) else 1
    for index, cell in enumerate(parts.cells):
        suffix = "" if isinstance(model, GRUCell) else layer_suffix(index, directions)
        written = write(cell, DIALECTS["torch"], getattr(model, "update", "keep"))
        arrays = (written.w_ih, written.w_hh, *written.biases)
        state |= {f"{gru}{kind}{suffix}": a for kind, a in zip(KINDS, arrays, strict=False)}
    if parts.head is not None:
        state[f"{head}weight"] = np.array(parts.head.kernel.T, order="C", copy=True)
        state[f"{head}bias"] = parts.head.bias.copy()
    return state


def layer_suffix(index: int, directions: int) -> str:
    """Of the cell `layer * D + direction`."""
    return f"_l{index // directions}{'_reverse' if index % directions else ''}"


def read_names(state: Mapping) -> Names:
    """What the keys alone tell."""
    matches = {key: m for key in state if (m := KEY.fullmatch(key))}
    for key in state:
        require("weight_hr" not in key, key, "the keys of a GRU", "a projection", "Only an LSTM has proj_size.")
    require(bool(matches), "state dict", "the weights of one nn.GRU or nn.GRUCell", f"keys {sorted(state)}")
    prefixes = sorted({m["prefix"] for m in matches.values()})
    require(len(prefixes) == 1, "state dict", "one nn.GRU", f"{len(prefixes)}, at {prefixes}")
    others, gru = [key for key in state if key not in matches], prefixes[0]
    bias = any(m["what"] == "bias" for m in matches.values())
    if not gru and any(m["layer"] is None for m in matches.values()):
        return Names(gru, None, [""], bias)
    directions = 1 + any(m["reverse"] for m in matches.values())
    num_layers = 1 + max(int(m["layer"] or 0) for m in matches.values())
    # No more layers than there are keys, and one: enough to find the first key that is missing.
    suffixes = [layer_suffix(index, directions) for index in range(min(num_layers, len(matches) + 1) * directions)]
    return Names(gru, _head(others, gru), suffixes, bias)


def _head(keys: list[str], gru: str) -> str | None:
    """The prefix of the nn.Linear's keys; None for a bare nn.GRU."""
    prefixes = sorted({key.removesuffix("weight") for key in keys if key.endswith(".weight")})
    if not prefixes and not gru:
        return None
    remedy = "For a GRU without a head pass the nn.GRU itself." if not prefixes else ""
    found = f"{len(prefixes)}, {prefixes}"
    require(len(prefixes) == 1, "state dict", "one nn.Linear beside the nn.GRU", found, remedy)
    head, remedy = prefixes[0], "The head of GRUModel has a bias: give the Linear one of zeros."
    require(f"{head}bias" in keys, f"{head}bias", "the bias of the nn.Linear", "a Linear with bias=False", remedy)
    return head
