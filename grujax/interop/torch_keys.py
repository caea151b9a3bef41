"""Torch's state dict in NumPy, as the `.pt` and the safetensors file hold it.

`weight_ih_l{k}[_reverse]` (3H, I), `weight_hh` (3H, H), `bias_ih`, `bias_hh` (3H,), rows r | z | n; and `weight`
(O, D*H), `bias` (O,) of an `nn.Linear` behind them.
"""

import re
from collections.abc import Mapping
from types import EllipsisType
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import Pooling
from grujax.core.weight_layouts import DIALECTS
from grujax.errors import InputError, require
from grujax.interop.parts import Dense, Place, put_together, take_apart
from grujax.interop.prove import FIND, log
from grujax.interop.weight_layouts import DTYPES, FLOATS, Cell, read, write
from grujax.linen.cell import GRUCell
from grujax.linen.model import GRUModel

KEY = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<what>weight|bias)_(?P<of>ih|hh)(?:_l(?P<layer>\d+)(?P<reverse>_reverse)?)?")
PLACE = Place("torch.nn.GRU", {"dropout": None, "pooling": (None,)})
KINDS = DIALECTS["torch"].tensors
WRAPPERS = ("state_dict", "model_state_dict", "model", "params", "module", "net", "network")
"""Where checkpoints keep a state dict, beside an optimizer and an epoch."""
NORMED = re.compile(r"(.*?)(?:(weight[^.]*)_|parametrizations\.(.*)\.original)(g|v|orig|mask|0|1)")
"""What `weight_norm`, old and new, and pruning keep in a weight's place."""


class Names(NamedTuple):
    """What the keys tell before a tensor is looked at."""

    gru: str  # the prefix of the nn.GRU's keys
    head: str | None  # of the nn.Linear's
    suffixes: list[str]  # a layer and direction each: _l0, _l0_reverse, ...; "" alone in an nn.GRUCell
    bias: bool
    head_bias: bool = True
    starts: tuple[str, ...] = ()  # the prefix of each cell, where they are nn.GRUCells one over the other

    @property
    def bidirectional(self) -> bool:
        return any(suffix.endswith("_reverse") for suffix in self.suffixes)

    @property
    def keys(self) -> list[list[str]]:
        """Those of each cell."""
        kinds = KINDS[: 4 if self.bias else 2]
        starts = self.starts or [self.gru] * len(self.suffixes)
        ends = zip(starts, self.suffixes, strict=True)
        return [[f"{start}{kind}{suffix}" for kind in kinds] for start, suffix in ends]


def unwrapped(state: Mapping, argument: str = "state dict") -> Mapping:
    """The state dict in a checkpoint.

    >>> list(unwrapped({"epoch": 3, "model": {"gru.weight_hh_l0": 1}}))
    ['gru.weight_hh_l0']
    """
    for _ in range(4):
        if any(isinstance(key, str) and KEY.fullmatch(key) for key in state):
            break
        inner = next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = state[inner]
    for key in state:
        require(isinstance(key, str), argument, "keys that are text", repr(key))
    return state


def effective(state: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The weights that `weight_norm` and pruning stand for: g v / |v|, and weight times mask."""
    parts: dict[str, dict[str, NDArray]] = {}
    found = dict(state)
    for key, a in state.items():
        match = NORMED.fullmatch(key)
        if match is not None and isinstance(a, np.ndarray) and a.dtype.name in DTYPES:
            name, part = match[1] + (match[2] or match[3]), {"0": "g", "1": "v"}.get(match[4], match[4])
            parts.setdefault(name, {})[part] = a
            found.pop(key)
    for name, of in parts.items():
        if of.keys() == {"g", "v"}:
            g, v = (of[part].astype(np.float64) for part in "gv")
            axes = tuple(i for i in range(v.ndim) if not g.ndim or g.shape[i] == 1)
            found[name] = (v * (g / np.sqrt((v**2).sum(axes, keepdims=True)))).astype(of["v"].dtype)
        elif of.keys() == {"orig", "mask"}:
            found[name] = of["orig"] * of["mask"].astype(of["orig"].dtype)
        else:
            expected = "the parts of weight_norm or pruning"
            raise InputError(name, expected, sorted(of), "Pass the live module: its effective weights are taken.")
    return found


def from_arrays(
    state: Mapping[str, NDArray], pooling: Pooling | EllipsisType = ..., prefix: str | None = None, **fields: Any
) -> tuple[nn.Module, dict]:
    """The model and variables of a state dict; `fields` are what its arrays do not tell.

    Args:
      pooling: what the Linear reads, which no state dict tells. Where it is not given: the last state, announced.
      prefix: of the GRU that is taken, all else left; "" for keys without one.

    Raises:
      InputError: naming the key, what was expected and what was found; nothing is skipped, guessed or cast.
    """
    state = effective(state)
    if prefix is not None:
        start = f"{prefix}." if prefix else ""
        state = {key: a for key, a in state.items() if (m := KEY.fullmatch(key)) and m["prefix"] == start}
        require(bool(state), "prefix", "the name of a GRU", repr(prefix), FIND)
    names = read_names(state)
    cells = cells_of(state, names)
    head, known = None, [key for keys in names.keys for key in keys]
    if names.head is not None:
        key = f"{names.head}weight"
        known += [key, *([f"{names.head}bias"] if names.head_bias else [])]
        head = key, dense(state, names)
        fields["pooling"] = "last" if pooling is ... else pooling
        if pooling is ...:
            log.warning("read as: Linear on the last state of each direction; pooling= says otherwise")
    for key in state:
        require(key in known, key, f"only the keys {known}", "this key besides", f"It would be lost. {FIND}")
    single = names.suffixes == [""]
    return put_together(cells, head, bidirectional=names.bidirectional, single=single, **fields)


def cells_of(state: Mapping[str, NDArray], names: Names) -> dict[str, Cell]:
    """The cells by the name of their first tensor."""
    cells: dict[str, Cell] = {}
    for keys in names.keys:
        for key in keys:
            require(key in state, key, "this key", "no such key", "The state dict is not whole.")
        cells[keys[0]] = read({key: state[key] for key in keys}, DIALECTS["torch"])
    return cells


def dense(state: Mapping[str, NDArray], names: Names) -> Dense:
    weight, bias = state[f"{names.head}weight"], state.get(f"{names.head}bias")
    for key, a in ((f"{names.head}weight", weight), (f"{names.head}bias", bias)):
        require(a is None or a.dtype.name in DTYPES, key, FLOATS, f"dtype {getattr(a, 'dtype', None)}")
    return Dense(weight.T, bias)


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
        assert parts.head.bias is not None
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
    require(bool(matches), "state dict", "the weights of one nn.GRU or nn.GRUCell", f"keys {sorted(state)}", FIND)
    prefixes = sorted({m["prefix"] for m in matches.values()})
    require(len(prefixes) == 1, "state dict", "one nn.GRU", f"{len(prefixes)}, at {prefixes}", FIND)
    others, gru = [key for key in state if key not in matches], prefixes[0]
    bias = any(m["what"] == "bias" for m in matches.values())
    single = any(m["layer"] is None for m in matches.values())
    if single and (not gru or not others):
        return Names(gru, None, [""], bias)
    remedy = f"A cell is one step of a loop that no state dict tells. {FIND}"
    require(not single, "state dict", "an nn.GRU, or an nn.GRUCell alone", f"an nn.GRUCell at {gru!r}", remedy)
    directions = 1 + any(m["reverse"] for m in matches.values())
    num_layers = 1 + max(int(m["layer"] or 0) for m in matches.values())
    # No more layers than there are keys, and one: enough to find the first key that is missing.
    suffixes = [layer_suffix(index, directions) for index in range(min(num_layers, len(matches) + 1) * directions)]
    head = head_of(others)
    return Names(gru, head, suffixes, bias, f"{head}bias" in others)


def head_of(keys: list[str]) -> str | None:
    """The prefix of the nn.Linear's keys; None where there is none."""
    prefixes = sorted({key.removesuffix("weight") for key in keys if key.endswith(".weight")})
    found = f"{len(prefixes)}, {prefixes}"
    require(len(prefixes) < 2, "state dict", "one nn.Linear beside the nn.GRU", found, FIND)
    return prefixes[0] if prefixes else None
