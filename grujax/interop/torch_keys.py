"""torch's state dict in NumPy, as `.pt` and safetensors files store it.

`weight_ih_l{k}[_reverse]` (3H, I), `weight_hh` (3H, H), `bias_ih`, `bias_hh` (3H,), rows r | z | n; then `weight`
(O, D*H) and `bias` (O,) of an `nn.Linear`.
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
"""Keys under which checkpoints store a state dict, beside an optimizer and an epoch."""
COMPUTED = re.compile(r"(.*?)(?:(weight[^.]*)_(g|v|u|orig|mask)|parametrizations\.([^.]*)\.(original[01]?|0\._[uv]))")
PARTS = {"original0": "g", "original1": "v", "original": "orig", "0._u": "u", "0._v": "v"}
"""The tensors that `weight_norm`, `spectral_norm` (old and new form of both) and pruning store in place of a weight."""


class State(NamedTuple):
    """The contents of a state dict: the cells by the name of their first tensor, the Linear, and the kind of GRU."""

    cells: dict[str, Cell]
    head: tuple[str, Dense] | None
    bidirectional: bool
    single: bool


def has_gru(state: Mapping) -> bool:
    return any(isinstance(key, str) and KEY.fullmatch(key) for key in state)


def unwrapped(state: Mapping, argument: str = "state dict") -> Mapping:
    """Returns the one state dict of a GRU in a checkpoint.

    >>> list(unwrapped({"epoch": 3, "model": {"gru.weight_hh_l0": 1}}))
    ['gru.weight_hh_l0']
    """
    levels: list[dict[str, Mapping]] = [{"": state}]
    while len(levels) < 5 and levels[-1] and not any(map(has_gru, levels[-1].values())):
        inside = [(f"{at}{key}/", outer.get(key)) for at, outer in levels[-1].items() for key in WRAPPERS]
        levels.append({at: inner for at, inner in inside if isinstance(inner, Mapping)})
    dicts = {at: inner for at, inner in levels[-1].items() if has_gru(inner)}
    remedy = "Pass or save one of them alone."
    require(len(dicts) < 2, argument, "one state dict", f"{len(dicts)}, at {[*dicts]}", remedy)
    state = next(iter((dicts or levels[-1] or levels[-2]).values()))
    for key in state:
        require(isinstance(key, str), argument, "keys that are text", repr(key))
    return state


def effective(state: Mapping[str, NDArray], beside: bool = False) -> dict[str, NDArray]:
    """Replaces the parts of computed weights by the weights: weight_norm's g v / |v|, spectral_norm's w / (u w v),
    pruning's w mask.

    beside: only compute the weights of GRUs, and leave out what cannot be computed instead of raising an error.
    """
    parts: dict[str, dict[str, NDArray]] = {}
    result = dict(state)
    for key, a in state.items():
        match = COMPUTED.fullmatch(key)
        if match is not None and isinstance(a, np.ndarray) and a.dtype.name in FLOATS:
            name, part = match[1] + (match[2] or match[4]), match[3] or PARTS[match[5]]
            parts.setdefault(name, {})[part] = a
            result.pop(key)
    for name, tensors in parts.items():
        if beside and KEY.fullmatch(name) is None:
            continue
        try:
            w = COMPUTES[frozenset(tensors)](**{part: a.astype(np.float64) for part, a in tensors.items()})
        except (KeyError, ValueError, IndexError) as error:  # unknown parts, or shapes that do not fit
            if beside:
                continue
            shapes = {part: tensors[part].shape for part in sorted(tensors)}
            expected = "the parts of weight_norm, spectral_norm or pruning"
            remedy = "Pass the live module, whose effective weights can be read."
            raise InputError(name, expected, shapes, remedy) from error
        result[name] = w.astype(next(iter(tensors.values())).dtype)
    return result


def _normed(g: NDArray, v: NDArray) -> NDArray:
    axes = tuple(i for i in range(v.ndim) if not g.ndim or g.shape[i] == 1)
    return v * (g / np.sqrt((v**2).sum(axes, keepdims=True)))


COMPUTES: dict[frozenset[str], Callable[..., NDArray]] = {
    frozenset({"g", "v"}): _normed,
    frozenset({"orig", "mask"}): lambda orig, mask: orig * mask,
    frozenset({"orig", "u", "v"}): lambda orig, u, v: orig / (u @ orig @ v),
}


def gru_at(state: Mapping[str, NDArray], start: str) -> dict[str, NDArray]:
    """The weights of the one GRU whose keys have the prefix `start`."""
    weights = {key: a for key, a in state.items() if (m := KEY.fullmatch(key)) and m["prefix"] == start}
    require(bool(weights), "prefix", "the name of a GRU", repr(start.removesuffix(".")), FIND)
    return weights


def from_arrays(state: Mapping[str, NDArray], pooling: Pooling | EllipsisType = ...) -> tuple[nn.Module, dict]:
    """The model and variables of a state dict. pooling: what the Linear reads; by default the last state is assumed."""
    parts = read_state(effective(state))
    if parts.head is not None and pooling is ...:
        name, (kernel, bias) = parts.head
        in_front = bias is None and kernel.shape[:1] == next(iter(parts.cells.values())).w_ih.shape[:1]
        remedy = "If it is a Linear, pass pooling=; to take only the GRU, pass prefix=."
        found = "a matrix that could be an nn.Embedding in front of the GRU"
        require(not in_front, name, "a Linear with a bias", found, remedy)
    fields = assumed_pooling(pooling, parts.head is not None)
    return put_together(*parts[:2], bidirectional=parts.bidirectional, single=parts.single, **fields)


def read_state(state: Mapping[str, NDArray], stacked: bool = False) -> State:
    """The contents of a state dict; an extra key is an error. stacked: several `nn.GRUCell`s are layers, in order."""
    matches = {key: m for key in state if (m := KEY.fullmatch(key))}
    for key in state:
        require("weight_hr" not in key, key, "only keys of a GRU", "a projection", "Only an LSTM has proj_size.")
    require(bool(matches), "state dict", "the weights of one nn.GRU or nn.GRUCell", f"keys {sorted(state)}", FIND)
    starts = list(dict.fromkeys(m["prefix"] for m in matches.values()))
    alone = any(m["layer"] is None for m in matches.values())
    others = [key for key in state if key not in matches]
    directions = 1 + any(m["reverse"] for m in matches.values())
    if alone and stacked:
        ends = [(start, "") for start in starts]
    else:
        require(len(starts) == 1, "state dict", "one nn.GRU", f"{len(starts)}, at {sorted(starts)}", FIND)
        remedy = f"A cell is called in a loop, and a state dict does not contain the loop. {FIND}"
        expected, single = "an nn.GRU, or an nn.GRUCell alone", not starts[0] or not others
        require(single or not alone, "state dict", expected, f"an nn.GRUCell at {starts[0]!r}", remedy)
        # At most one layer more than there are keys: enough to find the first missing key.
        num_layers = min(1 + max(int(m["layer"] or 0) for m in matches.values()), len(matches) + 1)
        suffixes = [""] if alone else [layer_suffix(index, directions) for index in range(num_layers * directions)]
        ends = [(starts[0], suffix) for suffix in suffixes]
    kinds = KINDS[: 4 if any(m["what"] == "bias" for m in matches.values()) else 2]
    cells, known = {}, set()
    for start, suffix in ends:
        keys = [f"{start}{kind}{suffix}" for kind in kinds]
        for key in keys:
            require(key in state, key, "this key", "no such key", "The state dict is incomplete.")
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
        require(key in known, key, f"only the keys {sorted(known)}", "this extra key", f"It would be lost. {FIND}")
    return State(cells, head, directions == 2, alone and not stacked)


def to_arrays(model: Any, variables: Mapping, gru: str = "gru", head: str = "output_layer") -> dict[str, NDArray]:
    """The state dict of the torch module that computes what `model` computes, in torch's order."""
    parts = take_apart(model, variables, PLACE, DIALECTS["torch"])
    for argument, name, default in (("gru", gru, "gru"), ("head", head, "output_layer")):
        named, remedy = isinstance(model, GRUModel) or name == default, "Leave it out: its keys have no prefix."
        require(named, argument, "none for a model without a head", repr(name), remedy)
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
    """The suffix of the keys of a cell; index `layer * D + direction`."""
    return f"_l{index // directions}{'_reverse' if index % directions else ''}"
