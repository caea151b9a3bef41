"""Weights from Flax Linen and back: `nn.GRUCell`, `nn.RNN` and `nn.Bidirectional` of it, and `nn.Sequential` of these.

A Linen cell has a kernel for each gate, ir, iz, in (I, H) and hr, hz, hn (H, H), and biases of ir, iz, in and hn: those
of hr and hz stand in sums alone, which ir and iz hold. The outputs are the same; b_hh's r and z parts are in the sums.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax.serialization import msgpack_restore, to_bytes
from flax.traverse_util import unflatten_dict
from numpy.typing import NDArray

from grujax.core.weight_layouts import DIALECTS, by_gate
from grujax.errors import InputError, require
from grujax.interop.framework import Framework
from grujax.interop.layers import (
    Layout,
    cell_options,
    cell_runner,
    flattened,
    in_layers,
    layers_runner,
    layout_of_keys,
    layout_of_model,
    layout_of_module,
    recurrent,
    require_tensors,
    to_jax,
    written,
)
from grujax.interop.parts import Place, put_together, take_apart
from grujax.interop.prove import Runner, require_agreement, wanted
from grujax.interop.weight_layouts import Cell, read
from grujax.linen.cell import GRUCell
from grujax.linen.layer import GRU

PLACE = Place("flax.linen.GRUCell", {"activation": None, "gate_activation": None}, (GRU, GRUCell))
KERNELS = tuple(f"{side}{gate}/kernel" for side in "ih" for gate in "rzn")
BIASES = ("ir/bias", "iz/bias", "in/bias", "hn/bias")
OWN = re.compile(r"layers_\d+|forward_rnn|backward_rnn|cell|i[rzn]|h[rzn]")
"""Names that a GRU of Flax has itself."""
TENSORS = DIALECTS["flax"].tensors
"""A cell's tensors; and the first of each group that stands in one array elsewhere."""


def from_flax(
    source: nn.Module | Mapping,
    variables: Mapping | None = None,
    *,
    verify: bool | None = None,
) -> tuple[nn.Module, dict]:
    """The model and variables that compute what a Linen module computes.

    - `nn.GRUCell` -> `grujax.GRUCell`;
    - `nn.RNN(nn.GRUCell)`, `nn.Bidirectional(nn.RNN, nn.RNN)`, and `nn.Sequential` of one of them -> `grujax.GRU`, with
      their `time_major`, `dtype` and activations. It returns the outputs and the last states, whatever
      `return_carry`; with lengths its outputs are 0 in the padding, where Flax leaves what the cell makes of it.

    Args:
      source: the module; or its parameters alone, {"params": tree} or the tree, whose keys tell the structure. They
        tell neither options nor what is between layers and has no parameters: the defaults, and nothing, are taken.
      variables: of the module.
      verify: run both sides on random data; the largest difference is logged (logger "grujax.interop", INFO), and one
        past the tolerance table raises. None does so with a module of 32 bits or more.

    Raises:
      InputError: naming the key, module or field that no grujax model stands for; nothing is skipped, guessed or cast.

    >>> import jax, jax.numpy as jnp
    >>> rnn = nn.RNN(nn.GRUCell(20))
    >>> model, variables = from_flax(rnn, rnn.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (20, (10, 60))
    """
    given = source if variables is None else variables
    remedy = "from_flax(module, variables) takes a Linen module."
    if not isinstance(given, Mapping):
        raise InputError("variables", '{"params": tree}', type(given).__name__, remedy)
    for collection in given if "params" in given else ():
        remedy = "Its weights are in params."
        require(collection == "params", "variables", '"params" alone', f"{str(collection)[:80]!r} besides", remedy)
    tree = given.get("params", given)
    require(isinstance(tree, Mapping), "params", "a tree of arrays", type(tree).__name__)
    flat = flattened(_inner(tree), "variables")
    if variables is None:
        layout, module = layout_of_keys(list(flat)), None
    else:
        layout, module = layout_of_module(source, nn), source
    require_tensors(flat, layout, (*KERNELS, *BIASES))
    cells = {prefix: _read(flat, prefix, cell) for prefix, cell in layout.cells.items()}
    model, converted = put_together(cells, **layout.model)
    if wanted(verify, module is not None, model):
        require_agreement(
            model, converted, runner(tree, model) if module is None else _runner(module, tree), "variables"
        )
    return model, converted


def to_flax(model: nn.Module, variables: Mapping, *, verify: bool = False) -> tuple[nn.Module, dict]:
    """The Linen module that computes what `model` computes, and its variables: the inverse of `from_flax`.

    A `GRUCell` gives an `nn.GRUCell`; a `GRU` an `nn.RNN` or `nn.Bidirectional`, of several layers an `nn.Sequential`.

    Args:
      model: a `GRU` or `GRUCell`.
      variables: its variables, `{"params": ...}` alone.
      verify: see `from_flax`.

    Warns:
      ConversionWarning: b_hh is not 0 in r and z: its sum with b_ih is stored. With bias=False zeros are.

    Raises:
      InputError: what Flax has no place for: `reset_after=False`, a merge other than "concat", a head.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRU
    >>> model = GRU(20, bidirectional=True, initializer="flax")
    >>> module, variables = to_flax(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> module.apply(variables, jnp.ones((3, 7, 10))).shape
    (3, 7, 40)
    """
    parts = take_apart(model, variables, PLACE, DIALECTS["flax"])
    params, layout = {}, layout_of_model(model)
    for prefix, of in zip(layout.cells, written(model, parts, DIALECTS["flax"]), strict=True):
        params |= {f"{prefix}{name}": to_jax(a, f"{prefix}{name}") for name, a in by_gate(*of.values()).items()}
    module, tree = _module(model, layout), unflatten_dict(params, sep="/")
    if verify:
        require_agreement(model, variables, _runner(module, tree), "model")
    return module, {"params": tree}


def _inner(tree: Mapping) -> Mapping:
    """The tree of the GRU where it stands alone under names of others, as a module's that holds nothing else."""
    for _ in range(8):
        name, inner = next(iter(tree.items()), ("cell", None))
        named = re.fullmatch(r"\w{1,80}", str(name)) is not None and OWN.fullmatch(str(name)) is None
        if len(tree) != 1 or not named or not isinstance(inner, Mapping):
            break
        tree = inner
    return tree


def runner(variables: Mapping, model: nn.Module) -> Runner:
    """Flax itself, on the module that `to_flax` makes of `model`."""
    tree = _inner(variables.get("params", variables))
    return _runner(_module(model, layout_of_keys(list(flattened(tree, "variables")))), tree)


def load(path: Path) -> dict[str, Any]:
    """The parameters in a `.msgpack` file that `flax.serialization.to_bytes` made, {"params": tree} or the tree.

    msgpack holds data alone: nothing of it is run.
    """
    remedy = 'Write flax.serialization.to_bytes({"params": params}).'
    try:
        tree = msgpack_restore(path.read_bytes())
    except Exception as error:  # whatever msgpack, NumPy and Flax raise for bytes that are no tree of arrays
        found = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        raise InputError("path", "a whole msgpack file of Flax", found[:200], remedy) from error
    if not isinstance(tree, dict):
        raise InputError("path", "a tree of parameters", type(tree).__name__, remedy)
    return tree


def store(path: Path, variables: Mapping) -> None:
    path.write_bytes(to_bytes(variables))


def _theirs(model: nn.Module, variables: Mapping) -> dict:
    return to_flax(model, variables)[1]


FRAMEWORK = Framework("flax", (".msgpack",), load, from_flax, _theirs, store, runner)


def _read(flat: Mapping[str, NDArray], prefix: str, module: nn.Module | None) -> Cell:
    """The cell of which the tensors have this prefix; the width of its module, where there is one."""
    first = flat[f"{prefix}ir/kernel"]
    require(first.ndim == 2, f"{prefix}ir/kernel", "two axes", f"shape {first.shape}")
    n_inputs, width = first.shape if module is None else (first.shape[0], module.features)
    shapes = {name: (n_inputs if name.startswith("i") else width, width) for name in KERNELS}
    for name, shape in (shapes | dict.fromkeys(BIASES, (width,))).items():
        key, a = f"{prefix}{name}", flat[f"{prefix}{name}"]
        require(a.shape == shape, key, f"shape {shape}", a.shape)
        require(a.dtype == first.dtype, key, f"dtype {first.dtype}, that of {prefix}ir/kernel", f"dtype {a.dtype}")

    names = (KERNELS[:3], KERNELS[3:], BIASES[:3], BIASES[3:])
    joined = [np.concatenate([flat[f"{prefix}{name}"] for name in group], axis=-1) for group in names]
    return read({f"{prefix}{name}": a for name, a in zip(TENSORS, joined, strict=True)}, DIALECTS["flax"])


def _module(model: Any, layout: Layout) -> nn.Module:
    cells = [nn.GRUCell(model.hidden_size, **cell_options(model)) for _ in layout.cells]
    if layout.single:
        return cells[0]
    layers = in_layers(cells, nn, layout.bidirectional, model.time_major)
    return nn.Sequential(layers) if layout.stacked else layers[0]


def _runner(module: Any, tree: Mapping) -> Runner:
    """Flax itself. The layers of an `nn.Sequential` run one by one: as a whole it takes no states and gives none."""
    if isinstance(module, nn.GRUCell):
        return cell_runner(lambda x, h: module.apply({"params": tree}, h, x)[0])
    stacked = isinstance(module, nn.Sequential)
    layers: list[Any] = list(module.layers) if stacked else [module]
    trees = [tree[f"layers_{k}"] for k in range(len(layers))] if stacked else [tree]
    two = isinstance(layers[0], nn.Bidirectional)
    calls = [partial(layer.apply, {"params": of}) for layer, of in zip(layers, trees, strict=True)]
    return layers_runner([recurrent(call, two) for call in calls], two)
