"""Weights from Flax NNX and back: `nnx.GRUCell`, `nnx.RNN` and `nnx.Bidirectional` of it, `nnx.Sequential` of these.

The cell is `dense_i` with kernel (I, 3H) and bias (3H,) and `dense_h` with kernel (H, 3H) alone, columns r | z | n. It
lacks b_hn, the bias that r multiplies (google/flax#5594). A Flax whose cell has it, as `hn_bias` (H,)
(google/flax#5595), is served as well.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import nnx
from flax.traverse_util import unflatten_dict
from numpy.typing import NDArray

from grujax.core.weight_layouts import DIALECTS
from grujax.errors import require
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
from grujax.interop.weight_layouts import read
from grujax.linen.cell import GRUCell
from grujax.linen.layer import GRU

PLACE = Place("flax.nnx.GRUCell", {"activation": None, "gate_activation": None}, (GRU, GRUCell))


def from_nnx(source: nnx.Module | nnx.State, *, verify: bool | None = None) -> tuple[nn.Module, dict]:
    """The model and variables that compute what an NNX module computes.

    - `nnx.GRUCell` -> `grujax.GRUCell`;
    - `nnx.RNN(nnx.GRUCell)`, `nnx.Bidirectional(nnx.RNN, nnx.RNN)`, and `nnx.Sequential` of one of them ->
      `grujax.GRU`, with their `time_major`, `dtype` and activations. It returns the outputs and the last states,
      whatever `return_carry`; with lengths its outputs are 0 in the padding.

    Args:
      source: the module; or its `nnx.State`, whose keys tell the structure. They tell neither options nor what is
        between layers and has no parameters: the defaults, and nothing, are taken.
      verify: run both sides on random data; the largest difference is logged (logger "grujax.interop", INFO), and one
        past the tolerance table raises. None does so with a module of 32 bits or more.

    Raises:
      InputError: naming the key, module or field that no grujax model stands for; nothing is skipped, guessed or cast.

    >>> model, variables = from_nnx(nnx.RNN(nnx.GRUCell(10, 20, rngs=nnx.Rngs(0))))
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (20, (10, 60))
    """
    served = isinstance(source, nnx.Module | nnx.State)
    require(served, "source", "a flax.nnx.Module or its nnx.State", type(source).__name__)
    of_module = None if isinstance(source, nnx.State) else layout_of_module(source, nnx)
    flat = _tensors(nnx.state(source) if isinstance(source, nnx.Module) else source)
    layout = of_module or layout_of_keys(list(flat))
    dialect = "nnx with hn_bias" if any(key.endswith("hn_bias") for key in flat) else "nnx"
    require_tensors(flat, layout, DIALECTS[dialect].tensors)
    cells = {
        prefix: read(
            {f"{prefix}{name}": flat[f"{prefix}{name}"] for name in DIALECTS[dialect].tensors}, DIALECTS[dialect]
        )
        for prefix in layout.cells
    }
    model, variables = put_together(cells, **layout.model)
    if wanted(verify, of_module is not None, model):
        module = source if isinstance(source, nnx.Module) else _module(model, layout, flat)
        require_agreement(model, variables, runner(module, model), "source")
    return model, variables


def to_nnx(model: nn.Module, variables: Mapping, *, verify: bool = False) -> nnx.Module:
    """The NNX module that computes what `model` computes: the inverse of `from_nnx`.

    A `GRUCell` gives an `nnx.GRUCell`; a `GRU` an `nnx.RNN` or `nnx.Bidirectional`, of several layers an
    `nnx.Sequential`.

    Args:
      model: a `GRU` or `GRUCell`.
      variables: its variables, `{"params": ...}` alone.
      verify: see `from_nnx`.

    Warns:
      ConversionWarning: b_hh is not 0 in r and z: its sum with b_ih is stored. With bias=False zeros are.

    Raises:
      InputError: what NNX has no place for: b_hn, where the cell of the installed Flax has no `hn_bias`;
        `reset_after=False`, a merge other than "concat", a head.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRU
    >>> model = GRU(20, bidirectional=True, initializer="flax")
    >>> to_nnx(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))(jnp.ones((3, 7, 10))).shape
    (3, 7, 40)
    """
    dialect = "nnx with hn_bias" if hasattr(_cell(1, 1), "hn_bias") else "nnx"
    parts = take_apart(model, variables, PLACE, DIALECTS[dialect])
    flat, layout = {}, layout_of_model(model)
    for prefix, of in zip(layout.cells, written(model, parts, DIALECTS[dialect]), strict=True):
        flat |= {f"{prefix}{name}": a for name, a in of.items()}
    module = _module(model, layout, flat)
    if verify:
        require_agreement(model, variables, runner(module, model), "model")
    return module


def runner(module: Any, model: nn.Module) -> Runner:
    """NNX itself. The layers of an `nnx.Sequential` run one by one: as a whole it takes no states and gives none."""
    if isinstance(model, GRUCell):
        return cell_runner(lambda x, h: module(h, x)[0])
    layers = module.layers if isinstance(module, nnx.Sequential) else [module]
    two = isinstance(layers[0], nnx.Bidirectional)
    return layers_runner([recurrent(layer, two) for layer in layers], two)


def _tensors(state: nnx.State) -> dict[str, NDArray]:
    """The arrays by their paths; the random states that RNNs keep for the cells' first carry are no part of them."""
    kept: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        if not isinstance(variable, nnx.RngState):
            # The paths of Linen, whose layers are one name.
            name = "/".join(map(str, path)).replace("layers/", "layers_")
            kept[name] = variable.get_value() if isinstance(variable, nnx.Variable) else variable
    return flattened(unflatten_dict(kept, sep="/"), "source")


def _cell(input_size: int, hidden_size: int, **options: Any) -> Any:
    """A cell of zeros."""
    zeros = nn.initializers.zeros
    return nnx.GRUCell(
        input_size, hidden_size, kernel_init=zeros, recurrent_kernel_init=zeros, rngs=nnx.Rngs(0), **options
    )


def _module(model: Any, layout: Layout, flat: Mapping[str, NDArray]) -> Any:
    """The NNX module of a layout that holds these tensors."""
    cells = []
    for prefix in layout.cells:
        of = {key.removeprefix(prefix): a for key, a in flat.items() if key.startswith(prefix)}
        cell = _cell(of["dense_i/kernel"].shape[0], model.hidden_size, **cell_options(model))
        for name, a in of.items():
            owner, *path = cell, *name.split("/")
            for attribute in path:
                owner = getattr(owner, attribute)
            owner.set_value(to_jax(a, f"{prefix}{name}"))
        cells.append(cell)
    if layout.single:
        return cells[0]
    layers = in_layers(cells, nnx, layout.bidirectional, model.time_major)
    return nnx.Sequential(*layers) if layout.stacked else layers[0]
