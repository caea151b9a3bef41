"""Torch's state dict in NumPy, as the `.pt` and the safetensors file hold it.

`weight_ih_l{k}[_reverse]` (3H, I), `weight_hh` (3H, H), `bias_ih`, `bias_hh` (3H,), rows r | z | n; and `weight`
(O, D*H), `bias` (O,) of an `nn.Linear` behind them.
"""

import re
from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import Pooling
from grujax.core.dialects import DIALECTS, FLOATS, Cell, read, require_floats
from grujax.errors import InputError, require
from grujax.interop.parts import Dense, Place, assumed_pooling, put_together, take_apart
from grujax.interop.prove import FIND
from grujax.linen import GRUCell, GRUModel

KEY = re.compile(
    r"(?P<prefix>(?:.*[./])?)(?P<what>weight|bias)_(?P<of>ih|hh)(?:_l(?P<layer>\d+)(?P<reverse>_reverse)?)?"
)
PLACE = Place("torch.nn.GRU", {"dropout": None, "pooling": (None,)})
KINDS = DIALECTS["torch"].tensors
WRAPPERS = ("state_dict", "model_state_dict", "model", "params", "module", "net", "network")
"""Where checkpoints keep a state dict, beside an optimizer and an epoch."""
COMPUTED = re.compile(r"(.*?)(?:(weight[^.]*)_(g|v|u|orig|mask)|parametrizations\.([^.]*)\.(original[01]?|0\._[uv]))")
PARTS = {"original0": "g", "original1": "v", "original": "orig", "0._u": "u", "0._v": "v"}
"""What `weight_norm` and `spectral_norm`, old and new, and pruning keep in a weight's place."""


class State(NamedTuple):
    """A state dict taken apart: the cells by the name of their first tensor, the Linear, and what kind of GRU it is."""

    cells: dict[str, Cell]
    head: tuple[str, Dense] | None
    bidirectional: bool
    single: bool


def has_gru(state: Mapping) -> bool:
    return any(isinstance(key, str) and KEY.fullmatch(key) for key in state)


def unwrapped(state: Mapping, argument: str = "state dict") -> Mapping:
    """The one state dict of a GRU in a checkpoint.

    >>> list(unwrapped({"epoch": 3, "model": {"gru.weight_hh_l0": 1}}))
    ['gru.weight_hh_l0']
    """
    levels: list[dict[str, Mapping]] = [{"": state}]
    while len(levels) < 5 and levels[-1] and not any(map(has_gru, levels[-1].values())):
        inside = [(f"{at}{key}/", of.get(key)) for at, of in levels[-1].items() for key in WRAPPERS]
        levels.append({at: of for at, of in inside if isinstance(of, Mapping)})
    found = {at: of for at, of in levels[-1].items() if has_gru(of)}
    require(
        len(found) < 2, argument, "one state dict", f"{len(found)}, at {[*found]}", "Pass or save one of them alone."
    )
    state = next(iter((found or levels[-1] or levels[-2]).values()))
    for key in state:
        require(isinstance(key, str), argument, "keys that are text", repr(key))
    return state


def effective(state: Mapping[str, NDArray], beside: bool = False) -> dict[str, NDArray]:
    """The weights that are computed: g v / |v| of weight_norm, w / (u w v) of spectral_norm, w mask of pruning.

    beside: the weights of GRUs alone, all else left; what is no such thing is missing then, and no error.
    """
    parts: dict[str, dict[str, NDArray]] = {}
    found = dict(state)
    for key, a in state.items():
        match = COMPUTED.fullmatch(key)
        if match is not None and isinstance(a, np.ndarray) and a.dtype.name in FLOATS:
            name, part = match[1] + (match[2] or match[4]), match[3] or PARTS[match[5]]
            parts.setdefault(name, {})[part] = a
            found.pop(key)
    for name, of in parts.items():
        if beside and KEY.fullmatch(name) is None:
            continue
        try:
            w = COMPUTES[frozenset(of)](**{part: a.astype(np.float64) for part, a in of.items()})
        except (KeyError, ValueError, IndexError) as error:  # other parts, and shapes that do not go together
            if beside:
                continue
            shapes = {part: of[part].shape for part in sorted(of)}
            expected = "the parts of weight_norm, spectral_norm or pruning"
            remedy = "Pass the live module: its effective weights are taken."
            raise InputError(name, expected, shapes, remedy) from error
        found[name] = w.astype(next(iter(of.values())).dtype)
    return found


def _normed(g: NDArray, v: NDArray) -> NDArray:
    axes = tuple(i for i in range(v.ndim) if not g.ndim or g.shape[i] == 1)
    return v * (g / np.sqrt((v**2).sum(axes, keepdims=True)))


COMPUTES: dict[frozenset[str], Callable[..., NDArray]] = {
    frozenset({"g", "v"}): _normed,
    frozenset({"orig", "mask"}): lambda orig, mask: orig * mask,
    frozenset({"orig", "u", "v"}): lambda orig, u, v: orig / (u @ orig @ v),
}


def gru_at(state: Mapping[str, NDArray], start: str) -> dict[str, NDArray]:
    """The weights of the GRU whose keys start so, all else left."""
    found = {key: a for key, a in state.items() if (m := KEY.fullmatch(key)) and m["prefix"] == start}
    require(bool(found), "prefix", "the name of a GRU", repr(start.removesuffix(".")), FIND)
    return found


def from_arrays(state: Mapping[str, NDArray], pooling: Pooling | EllipsisType = ...) -> tuple[nn.Module, dict]:
    """The model and variables of a state dict. pooling: what the Linear reads; by default the last state, announced."""
    found = read_state(effective(state))
    if found.head is not None and pooling is ...:
        name, (kernel, bias) = found.head
        in_front = bias is None and kernel.shape[:1] == next(iter(found.cells.values())).w_ih.shape[:1]
        remedy = "pooling= says that it is a Linear; prefix= takes the GRU alone."
        require(not in_front, name, "a Linear with a bias", "a matrix that an nn.Embedding in front has too", remedy)
    fields = assumed_pooling(pooling, found.head is not None)
    return put_together(*found[:2], bidirectional=found.bidirectional, single=found.single, **fields)


def read_state(state: Mapping[str, NDArray], stacked: bool = False) -> State:
    """The parts of a state dict that holds nothing else. stacked: several `nn.GRUCell`s are layers, in their order."""
    matches = {key: m for key in state if (m := KEY.fullmatch(key))}
    for key in state:
        require("weight_hr" not in key, key, "the keys of a GRU", "a projection", "Only an LSTM has proj_size.")
    require(bool(matches), "state dict", "the weights of one nn.GRU or nn.GRUCell", f"keys {sorted(state)}", FIND)
    starts = list(dict.fromkeys(m["prefix"] for m in matches.values()))
    alone = any(m["layer"] is None for m in matches.values())
    others = [key for key in state if key not in matches]
    directions = 1 + any(m["reverse"] for m in matches.values())
    if alone and stacked:
        ends = [(start, "") for start in starts]
    else:
        require(len(starts) == 1, "state dict", "one nn.GRU", f"{len(starts)}, at {sorted(starts)}", FIND)
        remedy, single = f"A cell is one step of a loop that no state dict tells. {FIND}", not starts[0] or not others
        expected = "an nn.GRU, or an nn.GRUCell alone"
        require(single or not alone, "state dict", expected, f"an nn.GRUCell at {starts[0]!r}", remedy)
        # No more layers than there are keys, and one: enough to find the first key that is missing.
        num_layers = min(1 + max(int(m["layer"] or 0) for m in matches.values()), len(matches) + 1)
        suffixes = [""] if alone else [layer_suffix(index, directions) for index in range(num_layers * directions)]
        ends = [(starts[0], suffix) for suffix in suffixes]
    kinds = KINDS[: 4 if any(m["what"] == "bias" for m in matches.values()) else 2]
    cells, known = {}, set()
    for start, suffix in ends:
        keys = [f"{start}{kind}{suffix}" for kind in kinds]
        for key in keys:
            require(key in state, key, "this key", "no such key", "The state dict is not whole.")
        cells[keys[0]] = read({key: state[key] for key in keys}, DIALECTS["torch"])
        known |= {*keys}
    weights = [key for key in others if key.endswith(".weight") and (stacked or not alone)]
    heads = sorted({key.removesuffix("weight") for key in weights})
    require(len(heads) < 2, "state dict", "one nn.Linear beside the nn.GRU", f"{len(heads)}, {heads}", FIND)
    head = None
    if heads:
        weight, bias = f"{heads[0]}weight", f"{heads[0]}bias"
        known |= {weight, bias}
        for key in {weight, bias} & state.keys():
            require_floats(key, state[key].dtype)
        head = weight, Dense(state[weight].T, state.get(bias))
    for key in state:
        served = f"only the keys {sorted(known)}"
        require(key in known, key, served, "this key besides", f"It would be lost. {FIND}")
    return State(cells, head, directions == 2, alone and not stacked)


def to_arrays(model: Any, variables: Mapping, gru: str = "gru", head: str = "output_layer") -> dict[str, NDArray]:
    """The state dict of the torch module that computes what `model` computes, in torch's order."""
    parts = take_apart(model, variables, PLACE, DIALECTS["torch"])
    for argument, name, default in (("gru", gru, "gru"), ("head", head, "output_layer")):
        named = isinstance(model, GRUModel) or name == default
        require(
            named, argument, "none, of a model without a head", repr(name), "Its keys are those of the layer alone."
        )
    gru, head = (f"{name}." if name and isinstance(model, GRUModel) else "" for name in (gru, head))
    state: dict[str, NDArray] = {}
    for index, cell in enumerate(parts.cells):
        suffix = "" if isinstance(model, GRUCell) else layer_suffix(index, model.num_directions)
        state |= {f"{gru}{kind}{suffix}": a for kind, a in cell.items()}
    if parts.head is not None and parts.head.bias is not None:
        state[f"{head}weight"] = np.array(parts.head.kernel.T, order="C", copy=True)
        state[f"{head}bias"] = parts.head.bias.copy()
    return state


def layer_suffix(index: int, directions: int) -> str:
    """Of the cell `layer * D + direction`."""
    return f"_l{index // directions}{'_reverse' if index % directions else ''}"
