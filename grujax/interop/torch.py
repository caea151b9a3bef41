"""Weights from PyTorch and back, bit for bit: `nn.GRU`, `nn.GRUCell`, and `nn.GRU` with an `nn.Linear` behind it.

Torch keeps `weight_ih_l{k}[_reverse]` (3H, I), `weight_hh` (3H, H), `bias_ih` and `bias_hh` (3H,), rows r | z | n, and
`weight` (O, D*H) of a Linear. Here matrices stand transposed, `w_ih` (I, 3H); both biases are kept and nothing is lost.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from grujax.cell import GRUCell
from grujax.errors import InputError, require
from grujax.layer import GRU
from grujax.model import GRUModel

if TYPE_CHECKING:
    import torch

KEY = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<what>weight|bias)_(?P<of>ih|hh)(?:_l(?P<layer>\d+)(?P<reverse>_reverse)?)?")
DTYPES = ("float16", "bfloat16", "float32", "float64")
FLOATS = "float16, bfloat16, float32 or float64"
GATES = {4: "4H rows are an LSTM's, which no GRU can stand for.", 1: "H rows are a plain RNN's, which has no gates."}


CONVERTED = ("hidden_size", "output_size", "num_layers", "bidirectional", "bias", "dropout", "param_dtype")
FREE = ("initializer", "update_bias", "implementation", "dtype", "precision", "time_major")
"""Fields that torch has too, and fields that say nothing of what is computed; all others must be at their default."""
REMEDIES = {
    "reset_after": "torch.nn.GRU multiplies r into the finished product; the two cannot be converted into each other.",
    "pooling": "The torch class takes the last state and has no other pooling.",
}


class Tensor(NamedTuple):
    """One parameter: where it stands here, and its shape in torch."""

    path: tuple[str, ...]
    shape: tuple[int, ...]


class Names(NamedTuple):
    """What the keys of a state dict tell before a tensor is looked at."""

    keys: list[str]  # the GRU's and the head's
    gru: str  # prefixes of the two
    head: str | None
    first: str  # the suffix of the first layer's keys; none in an nn.GRUCell
    sizes: dict[str, Any]  # fields of the model: bias, num_layers, bidirectional


def from_torch(module_or_state_dict: "torch.nn.Module | Mapping[str, torch.Tensor]") -> tuple[nn.Module, dict]:
    """The model and variables that compute what a torch module computes, sizes and dtype read off its tensors.

    - `nn.GRU` -> `grujax.GRU` (with its dropout; a state dict does not hold dropout, nor batch_first: x is (B, T, I));
    - `nn.GRUCell` -> `grujax.GRUCell`;
    - a module of one `nn.GRU` and one `nn.Linear`, by whatever names -> `grujax.GRUModel(pooling="last", dropout=0)`.
      Its `forward` is not read: this is the module that applies the Linear to the last state of each direction. For one
      direction and no padding that is `output[:, -1]`; for two it is not, whose reverse part has read one step only.

    A state dict serves as well as a module. The arrays are copies.

    Raises:
      InputError: naming the key, what was expected and what was found; nothing is skipped, guessed or cast.

    >>> import jax, torch
    >>> model, variables = from_torch(torch.nn.GRU(10, 20, num_layers=2))
    >>> jax.tree.map(jax.numpy.shape, variables["params"]["l1"]["w_ih"])
    (20, 60)
    """
    state, dropout = _state(module_or_state_dict)
    names = _names(state)
    dtype = _check_tensors(state, names.keys)
    model, input_size = _model(state, names, dtype, dropout)
    tensors = dict(_tensors(model, input_size, names.gru, names.head or ""))
    _check_shapes(state, tensors, model.hidden_size)
    return model, unflatten_dict({("params", *t.path): _to_jax(state[key], dtype) for key, t in tensors.items()})


def to_torch(model: nn.Module, variables: Mapping, gru: str = "gru", head: str = "output_layer") -> dict:
    """The state dict of the torch module that computes what `model` computes: the inverse of `from_torch`, bit for bit.

    Args:
      model: a `GRU`, `GRUCell` or `GRUModel`.
      variables: its variables, `{"params": ...}` alone.
      gru, head: the attributes that the torch class of a `GRUModel` keeps its `nn.GRU` and `nn.Linear` under.

    Returns:
      dict of key -> contiguous tensor of its own, for `module.load_state_dict`.

    Raises:
      InputError: what torch has no place for: `reset_after=False`, a pooling other than "last", statistics.

    >>> import jax, jax.numpy as jnp
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> state = to_torch(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> state["gru.weight_ih_l0"].shape, state["output_layer.weight"].shape
    (torch.Size([60, 10]), torch.Size([5, 20]))
    """
    torch = _torch()
    if not isinstance(model, (GRU, GRUCell, GRUModel)):
        encoder = "Its GRU is under variables['params']['gru']: pass that with a grujax.GRU."
        remedy = encoder if type(model).__name__ == "GRUEncoder" else ""
        raise InputError("model", "a grujax.GRU, GRUCell or GRUModel", type(model).__name__, remedy)
    for field in dataclasses.fields(model):
        if field.name in ("parent", "name", *FREE, *CONVERTED) or field.default is dataclasses.MISSING:
            continue
        found, remedy = getattr(model, field.name), REMEDIES.get(field.name, "torch.nn.GRU has no such thing.")
        require(found == field.default, field.name, repr(field.default), repr(found), remedy)
    if isinstance(model, GRUModel):
        one_head = "The torch class has one nn.Linear."
        several = isinstance(model.output_size, Mapping)
        require(not several, "output_size", "one head", repr(model.output_size), one_head)
    for collection in variables:
        what = "The torch module would get raw inputs where this model standardises them: fold them into your data."
        remedy = f"It would be lost. {what if collection == 'statistics' else ''}".strip()
        require(collection == "params", collection, 'variables of "params" alone', "this collection besides", remedy)
    require("params" in variables, "variables", 'a collection "params"', f"keys {sorted(variables)}")
    params = flatten_dict({"params": variables["params"]})
    params = {path[1:]: np.asarray(array) for path, array in params.items()}

    prefix = {GRUModel: ("encoder", "gru", "l0"), GRU: ("l0",), GRUCell: ()}[_kind(model)]
    w_ih = params.get((*prefix, "w_ih"))
    require(
        w_ih is not None and w_ih.ndim == 2,
        "/".join((*prefix, "w_ih")),
        "(I, 3H)",
        "none" if w_ih is None else w_ih.shape,
    )
    assert w_ih is not None
    gru, head = (f"{name}." if name and isinstance(model, GRUModel) else "" for name in (gru, head))
    tensors, dtypes = dict(_tensors(model, w_ih.shape[0], gru, head)), {a.dtype.name for a in params.values()}
    for tensor in tensors.values():
        name, shape = "/".join(tensor.path), tensor.shape[::-1]
        require(tensor.path in params, name, f"shape {shape}", "no such parameter")
        require(params[tensor.path].shape == shape, name, f"shape {shape}", params[tensor.path].shape)
    for path in params:
        known = path in {tensor.path for tensor in tensors.values()}
        require(known, "/".join(path), f"only the parameters of {type(model).__name__}", "this one besides")
    require(len(dtypes) == 1 and dtypes <= set(DTYPES), "variables", f"one dtype, {FLOATS}", sorted(dtypes))

    def tensor_of(array: np.ndarray) -> "torch.Tensor":
        own = np.array(array.T, order="C", copy=True)
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16) if "bfloat16" in dtypes else torch.tensor(own)

    return {key: tensor_of(params[tensor.path]) for key, tensor in tensors.items()}


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        raise InputError("torch", "PyTorch", "no module of that name", "pip install 'grujax[torch]'") from e
    return torch


def _kind(model: GRU | GRUCell | GRUModel) -> type:
    return next(kind for kind in (GRU, GRUCell, GRUModel) if isinstance(model, kind))


def _tensors(model: GRU | GRUCell | GRUModel, input_size: int, gru: str, head: str) -> Iterator[tuple[str, Tensor]]:
    """Torch's key of every parameter of `model`, with prefixes `gru` and `head`, in torch's order."""
    rows, root, cells = 3 * model.hidden_size, (), [("", (), input_size)]
    if not isinstance(model, GRUCell):
        root = ("encoder", "gru") if isinstance(model, GRUModel) else ()
        directions = ("", "_reverse")[: 1 + model.bidirectional]
        joined = len(directions) * model.hidden_size
        names = [(k, f"l{k}{d}") for k in range(model.num_layers) for d in directions]
        cells = [(f"_{name}", (*root, name), joined if k else input_size) for k, name in names]
    for suffix, path, n_inputs in cells:
        yield f"{gru}weight_ih{suffix}", Tensor((*path, "w_ih"), (rows, n_inputs))
        yield f"{gru}weight_hh{suffix}", Tensor((*path, "w_hh"), (rows, model.hidden_size))
        if model.bias:
            yield f"{gru}bias_ih{suffix}", Tensor((*path, "b_ih"), (rows,))
            yield f"{gru}bias_hh{suffix}", Tensor((*path, "b_hh"), (rows,))
    if isinstance(model, GRUModel):
        n_features = (1 + model.bidirectional) * model.hidden_size
        assert not isinstance(model.output_size, Mapping)
        yield f"{head}weight", Tensor(("head", "kernel"), (model.output_size, n_features))
        yield f"{head}bias", Tensor(("head", "bias"), (model.output_size,))


def _state(source: Any) -> tuple[Mapping, float]:
    """The state dict, and the dropout between layers, which only an `nn.GRU` itself tells."""
    nn = _torch().nn
    if not isinstance(source, nn.Module):
        require(
            isinstance(source, Mapping), "module_or_state_dict", "a torch.nn.Module or its state dict", type(source)
        )
        return source, 0.0
    if isinstance(source, (nn.GRU, nn.GRUCell)):
        return source.state_dict(), getattr(source, "dropout", 0.0)
    served = "nn.GRU, nn.GRUCell, or a module made of one nn.GRU, one nn.Linear, nn.Dropout and nn.Identity"
    for name, layer in source.named_modules():
        if not next(layer.children(), None) and not isinstance(layer, (nn.GRU, nn.Linear, nn.Dropout, nn.Identity)):
            raise InputError(name or "module_or_state_dict", served, f"nn.{type(layer).__name__}")
    return source.state_dict(), 0.0


def _names(state: Mapping) -> Names:
    """What the keys alone tell."""
    matches = {key: m for key in state if (m := KEY.fullmatch(key))}
    for key in state:
        require("weight_hr" not in key, key, "the keys of a GRU", "a projection", "Only an LSTM has proj_size.")
    require(bool(matches), "module_or_state_dict", "the weights of one nn.GRU or nn.GRUCell", f"keys {sorted(state)}")
    prefixes = sorted({m["prefix"] for m in matches.values()})
    require(len(prefixes) == 1, "module_or_state_dict", "one nn.GRU", f"{len(prefixes)}, at {prefixes}")
    others, gru = [key for key in state if key not in matches], prefixes[0]
    is_cell = not gru and any(m["layer"] is None for m in matches.values())
    head = None if is_cell else _head(others, gru)
    first = "" if is_cell else "_l0"
    for key in (f"{gru}weight_ih{first}", f"{gru}weight_hh{first}"):
        require(
            key in state, key, "this key", "none of that name", f"The state dict begins with {next(iter(matches))!r}."
        )
    sizes: dict[str, Any] = {"bias": any(m["what"] == "bias" for m in matches.values())}
    if not is_cell:
        sizes["num_layers"] = 1 + max(int(m["layer"] or 0) for m in matches.values())
        sizes["bidirectional"] = any(m["reverse"] for m in matches.values())
    of_head = [key for key in others if head is not None and key.startswith(head)]
    return Names([*matches, *of_head], gru, head, first, sizes)


def _head(keys: list[str], gru: str) -> str | None:
    """The prefix of the nn.Linear's keys; None for a bare nn.GRU."""
    prefixes = sorted({key.removesuffix("weight") for key in keys if key.endswith(".weight")})
    if not prefixes and not gru:
        return None
    remedy = "For a GRU without a head pass the nn.GRU itself." if not prefixes else ""
    found = f"{len(prefixes)}, {prefixes}"
    require(len(prefixes) == 1, "module_or_state_dict", "one nn.Linear beside the nn.GRU", found, remedy)
    head, remedy = prefixes[0], "The head of GRUModel has a bias: give the Linear one of zeros."
    require(f"{head}bias" in keys, f"{head}bias", "the bias of the nn.Linear", "a Linear with bias=False", remedy)
    return head


def _check_tensors(state: Mapping, keys: list[str]) -> Any:
    """The one dtype of the tensors, as JAX names it."""
    torch, first = _torch(), str(state[keys[0]].dtype).removeprefix("torch.") if keys else ""
    for key in keys:
        require(isinstance(state[key], torch.Tensor), key, "a torch.Tensor", type(state[key]).__name__)
        require(not state[key].is_meta, key, "values", "a tensor on the meta device")
        name = str(state[key].dtype).removeprefix("torch.")
        require(name in DTYPES, key, FLOATS, f"dtype {name}")
        require(
            name == first, key, f"dtype {first}, that of {keys[0]}", f"dtype {name}", "Cast the module to one dtype."
        )
    x64 = 'Run jax.config.update("jax_enable_x64", True) first, or pass module.float().'
    narrow = first == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64
    require(not narrow, keys[0], "a dtype that JAX keeps as it is", "float64 while 64-bit values are off", x64)
    return getattr(jnp, first)


def _model(state: Mapping, names: Names, dtype: Any, dropout: float) -> tuple[GRU | GRUCell | GRUModel, int]:
    """The model with the sizes of the tensors, and its input size."""
    w_ih, w_hh = (f"{names.gru}weight_{of}{names.first}" for of in ("ih", "hh"))
    for key in (w_ih, w_hh, *([] if names.head is None else [f"{names.head}weight"])):
        require(state[key].ndim == 2, key, "two axes", f"shape {tuple(state[key].shape)}")
    sizes = {"hidden_size": state[w_hh].shape[1], "param_dtype": dtype, **names.sizes}
    if names.head is not None:
        model = GRUModel(output_size=state[f"{names.head}weight"].shape[0], **sizes)
    else:
        model = GRU(dropout=dropout, **sizes) if names.first else GRUCell(**sizes)
    return model, state[w_ih].shape[1]


def _check_shapes(state: Mapping, tensors: Mapping[str, Tensor], hidden_size: int) -> None:
    for key, tensor in tensors.items():
        require(key in state, key, f"shape {tensor.shape}", "no such key", "The state dict is not whole.")
    of_hh_first = sorted(tensors, key=lambda key: "weight_hh" not in key)  # what H was read off
    for key in of_hh_first:
        found, expected = tuple(state[key].shape), tensors[key].shape
        gates = found[0] / hidden_size if found and hidden_size and "weight_hh" in key else 3
        require(found == expected, key, f"shape {expected}", found, GATES.get(gates, ""))
    for key in state:
        require(key in tensors, key, f"only the keys {list(tensors)}", "this key besides", "It would be lost.")


def _to_jax(tensor: "torch.Tensor", dtype: Any) -> jax.Array:
    tensor = tensor.detach().cpu().contiguous()
    bfloat16 = dtype == jnp.bfloat16  # NumPy's is not known to torch: its bits travel as integers
    array = tensor.view(_torch().int16).numpy().view(jnp.bfloat16) if bfloat16 else tensor.numpy()
    return jnp.array(np.array(array.T, order="C", copy=True))  # jnp.array copies: a torch optimizer works in place
