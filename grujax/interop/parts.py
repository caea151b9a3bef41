"""A model taken apart into what every framework has, cells and a head, in NumPy; and put together again."""

import dataclasses
import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from grujax.core.config import input_size_of
from grujax.core.weight_layouts import Dialect
from grujax.errors import InputError, require
from grujax.interop.weight_layouts import DTYPES, FLOATS, Cell, lost
from grujax.linen.cell import GRUCell
from grujax.linen.layer import GRU
from grujax.linen.model import GRUModel
from grujax.saving.model_file import declared

SIZES = ("hidden_size", "output_size", "num_layers", "bidirectional", "bias", "param_dtype", "update")
FREE = ("parent", "name", "initializer", "update_bias", "implementation", "dtype", "precision", "time_major")
TRAINING = ("dropout", "input_dropout", "recurrent_dropout", "weight_dropout")
"""Fields that every conversion carries over; that say nothing of what is computed; that say nothing of it once
trained. All others must be at their default, or at a value that the framework serves."""

REMEDIES = {
    "reset_after": "r before and after the product are two functions; they cannot be converted into each other.",
    "pooling": "It takes the last state or every step and has no other pooling. Or export to StableHLO.",
    "output_activation": "model.clone(output_activation=None) gives what stands before it.",
    "reverse": "convert the model with reverse=False, and flip the valid steps of x and of the output there.",
}


class ConversionWarning(UserWarning):
    """Something that the other side has no place for, and without which the outputs are the same."""


class Dense(NamedTuple):
    """The head: features W + b."""

    kernel: NDArray  # (F, O)
    bias: NDArray | None  # (O,)


class Parts(NamedTuple):
    """What a model is made of: a cell a layer and direction, index `layer * D + direction`, and the head."""

    cells: list[Cell]
    head: Dense | None

    @property
    def input_size(self) -> int:
        return self.cells[0].w_ih.shape[0]


class Place(NamedTuple):
    """What a framework has a place for.

    framework: as errors call it. fields: of the model's fields that are not in `SIZES` and `FREE`, the values besides
    the default that it has too; None for any. models: the classes that it has a form for.
    """

    framework: str
    fields: Mapping[str, Collection | None] = {}
    models: tuple[type[nn.Module], ...] = (GRU, GRUCell, GRUModel)


def take_apart(model: nn.Module, variables: Mapping, place: Place, dialect: Dialect) -> Parts:
    """The parts of a model that `place` and `dialect` can hold; a `ConversionWarning` for each thing left behind.

    Raises:
      InputError: a model or variables of which something would be lost that its outputs depend on.
    """
    _check_model(model, variables, place)
    params = {path: np.asarray(a) for path, a in flatten_dict(dict(variables["params"])).items()}
    first = (*_cell_paths(model)[0], "w_ih")
    w_ih = params.get(first)
    if w_ih is None or w_ih.ndim != 2:
        raise InputError("/".join(first), "(I, 3H)", "none" if w_ih is None else w_ih.shape)
    expected = {path[1:]: a.shape for path, a in declared(model, input_size_of(model, w_ih.shape[0])).items()}
    for path, shape in expected.items():
        require(path in params, "/".join(path), f"shape {shape}", "no such parameter")
        require(params[path].shape == shape, "/".join(path), f"shape {shape}", params[path].shape)
    for path in params:
        known = path in expected
        require(known, "/".join(path), f"only the parameters of {type(model).__name__}", "this one besides")
    dtypes = {a.dtype.name for a in params.values()}
    require(len(dtypes) == 1 and dtypes <= set(DTYPES), "variables", f"one dtype, {FLOATS}", sorted(dtypes))
    cells = [Cell(**{k[-1]: a for k, a in params.items() if k[:-1] == path}) for path in _cell_paths(model)]
    head = Dense(params["head", "kernel"], params["head", "bias"]) if isinstance(model, GRUModel) else None
    left = [sentence for cell in cells for sentence in lost(cell, dialect)]
    left += [
        f"{name}={getattr(model, name)}: it acts in training alone"
        for name in TRAINING
        if getattr(model, name, 0) and name not in place.fields
    ]
    for sentence in dict.fromkeys(left):
        warnings.warn(f"{place.framework}: {sentence}", ConversionWarning, stacklevel=3)
    return Parts(cells, head)


def put_together(
    cells: Mapping[str, Cell],
    head: tuple[str, Dense] | None = None,
    *,
    bidirectional: bool = False,
    single: bool = False,
    **fields: Any,
) -> tuple[GRU | GRUCell | GRUModel, dict]:
    """The model and its variables.

    Args:
      cells: each by the framework's name for it, for errors, index `layer * D + direction`.
      head: its name and weights: a `GRUModel` then, else a `GRU`.
      single: a `GRUCell`.
      fields: of the model, beside the sizes, which are read off the weights.

    Raises:
      InputError: naming the cell that does not fit the one before it; float64 where JAX would narrow it.
    """
    directions = 1 + bidirectional
    (first, cell), *_ = cells.items()
    hidden_size, dtype, bias = cell.hidden_size, cell.w_hh.dtype, cell.b_ih is not None
    features = hidden_size * (directions if fields.get("merge", "concat") == "concat" else 1)
    for index, (name, one) in enumerate(cells.items()):
        reads = features if index >= directions else cell.w_ih.shape[0]
        require(one.hidden_size == hidden_size, name, f"{hidden_size} hidden units, as {first}", one.hidden_size)
        require(one.w_ih.shape[0] == reads, name, f"{reads} input features", one.w_ih.shape[0])
        require((one.b_ih is not None) == bias, name, "biases in all layers or none", f"otherwise than {first}")
        require(one.w_hh.dtype == dtype, name, f"dtype {dtype}, that of {first}", f"dtype {one.w_hh.dtype}")
    sizes: dict[str, Any] = {"hidden_size": hidden_size, "bias": bias, "param_dtype": getattr(jnp, dtype.name)}
    if not single:
        sizes |= {"num_layers": len(cells) // directions, "bidirectional": bidirectional}
    params: dict[tuple[str, ...], NDArray] = {}
    if head is not None:
        name, (kernel, head_bias) = head
        require(kernel.ndim == 2, name, "a matrix", f"shape {kernel.shape}")
        require(kernel.shape[0] == features, name, f"{features} input features", kernel.shape[0])
        if head_bias is None:
            head_bias = np.zeros(kernel.shape[1:], dtype)
            warnings.warn(
                f"{name}: the head has no bias; zeros are stored, which training would move", ConversionWarning, 3
            )
        require(head_bias.shape == kernel.shape[1:], name, f"a bias of shape {kernel.shape[1:]}", head_bias.shape)
        found = {kernel.dtype, head_bias.dtype}
        require(found == {dtype}, name, f"dtype {dtype}, that of {first}", sorted(map(str, found)))
        params = {("head", "kernel"): kernel, ("head", "bias"): head_bias}
        model = GRUModel(output_size=kernel.shape[1], **sizes, **fields)
    else:
        model = GRUCell(**sizes, **fields) if single else GRU(**sizes, **fields)
    narrow = dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64
    x64 = 'Run jax.config.update("jax_enable_x64", True) first, or cast the weights to float32.'
    require(not narrow, first, "a dtype that JAX keeps as it is", "float64 while 64-bit values are off", x64)
    for path, one in zip(_cell_paths(model), cells.values(), strict=True):
        params |= {(*path, key): a for key, a in one._asdict().items() if a is not None}
    return model, {"params": unflatten_dict({path: jnp.array(np.ascontiguousarray(a)) for path, a in params.items()})}


def _cell_paths(model: nn.Module) -> list[tuple[str, ...]]:
    """The path of each cell's parameters."""
    if isinstance(model, GRUCell):
        return [()]
    assert isinstance(model, (GRU, GRUModel))
    root = ("encoder", "gru") if isinstance(model, GRUModel) else ()
    return [(*root, name) for names in model.cell_names for name in names]


def _check_model(model: nn.Module, variables: Mapping, place: Place) -> None:
    names = ", ".join(sorted(f"grujax.{of.__name__}" for of in place.models))
    encoder = "Its GRU is under variables['params']['gru']: pass that with a grujax.GRU."
    remedy = encoder if type(model).__name__ == "GRUEncoder" else ""
    if isinstance(model, GRUModel) and GRUModel not in place.models:
        remedy = "Its GRU is under variables['params']['encoder']['gru']: pass that with a grujax.GRU."
    require(isinstance(model, place.models), "model", names, type(model).__name__, remedy)
    for field in dataclasses.fields(model):  # pyright: ignore[reportArgumentType], Linen modules are dataclasses
        if field.name in (*SIZES, *FREE, *TRAINING) or field.default is dataclasses.MISSING:
            continue
        found, served = getattr(model, field.name), place.fields.get(field.name, ())
        serves = served is None or found == field.default or found in served or type(found) in served
        remedy = REMEDIES.get(field.name, f"{place.framework} has no such thing.")
        expected = " or ".join(map(repr, (field.default, *(served or ()))))
        require(serves, field.name, expected, repr(found), f"{place.framework}: {remedy}")
    if isinstance(model, GRUModel):
        several = isinstance(model.output_size, Mapping)
        require(not several, "output_size", "one head", repr(model.output_size), f"{place.framework} has one.")
    for collection in variables:
        what = "grujax.interop.fold_statistics puts what standardises the inputs into the weights."
        remedy = f"It would be lost. {what if collection == 'statistics' else ''}".strip()
        require(collection == "params", collection, 'variables of "params" alone', "this collection besides", remedy)
    require("params" in variables, "variables", 'a collection "params"', f"keys {sorted(variables)}")
