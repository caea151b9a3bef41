"""A model taken apart into what every framework has, cells and a head, in NumPy; and put together again."""

import warnings
from collections.abc import Collection, Mapping
from types import EllipsisType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from grujax.core.cell import weights_of
from grujax.core.config import Pooling, input_size_of, own_fields
from grujax.core.dialects import Cell, Dialect, lost, require_floats, write
from grujax.errors import InputError, require, require_equal, require_one_of
from grujax.interop.prove import FIND, log
from grujax.linen import GRU, GRUCell, GRUModel
from grujax.saving.model_file import declared
from grujax.types import Affine, HardSigmoid

SIZES = ("hidden_size", "output_size", "num_layers", "bidirectional", "bias", "param_dtype", "update", "blocks")
FREE = ("parent", "name", "initializer", "update_bias", "implementation", "dtype", "precision", "time_major")
TRAINING = ("dropout", "input_dropout", "recurrent_dropout", "weight_dropout")
"""Fields that every conversion carries over; that say nothing of what is computed; that say nothing of it once
trained. All others must be at their default, or at a value that the framework serves."""

REMEDIES = {
    "reset_after": "r before and after the product are two functions; they cannot be converted into each other.",
    "bidirectional": "It does not tell directions; convert a GRU of each direction.",
    "pooling": "It takes the last state or every step and has no other pooling. Or export to StableHLO.",
    "output_activation": "model.clone(output_activation=None) gives what stands before it.",
    "reverse": "convert the model with reverse=False, and flip the valid steps of x and of the output there.",
}
PARTS = {"GRUEncoder": "['gru']", "GRUModel": "['encoder']['gru']"}
"""Where the GRU of a model stands in its parameters."""


class ConversionWarning(UserWarning):
    """Something that the other side has no place for, and without which the outputs are the same."""


class Dense(NamedTuple):
    """The head: features W + b."""

    kernel: NDArray  # (F, O)
    bias: NDArray | None  # (O,)


class Parts(NamedTuple):
    """What a model is made of: the tensors of each layer and direction in a dialect, by their names there, index
    `layer * D + direction`; the head; the input size and the dtype of all; a learned initial state (L*D, H)."""

    cells: list[dict[str, NDArray]]
    head: Dense | None
    input_size: int
    dtype: np.dtype
    h0: NDArray | None = None


class Place(NamedTuple):
    """What a framework has a place for.

    framework: as errors call it. fields: of the model's fields that are not in `SIZES` and `FREE`, the values besides
    the default that it has too; None for any. models: the classes that it has a form for. only: the one value of a
    field that it has.
    """

    framework: str
    fields: Mapping[str, Collection | None] = {}
    models: tuple[type[nn.Module], ...] = (GRU, GRUCell, GRUModel)
    only: Mapping[str, Any] = {}


def take_apart(model: Any, variables: Mapping, place: Place, dialect: Dialect) -> Parts:
    """The parts of a model that `place` and `dialect` can hold; a `ConversionWarning` for each thing left behind.

    Raises:
      InputError: a model or variables of which something would be lost that its outputs depend on.
    """
    _check_model(model, variables, place)
    gate, known = model.gate_activation, "sigmoid, hard_sigmoid, or HardSigmoid or Affine of beta 0.5"
    mirrored = gate in ("sigmoid", "hard_sigmoid") or (isinstance(gate, HardSigmoid | Affine) and gate.beta == 0.5)
    rule = f"update={model.update!r} needs a gate with 1 - f(a) = f(-a): {place.framework} has z weigh the other term"
    require(mirrored or model.update == dialect.update, "gate_activation", known, repr(gate), rule=rule)
    params = {path: np.asarray(a) for path, a in flatten_dict(dict(variables["params"])).items()}
    paths = _cell_paths(model)
    first = (*paths[0], "w_ih")
    w_ih = params.get(first)
    if w_ih is None or w_ih.ndim != 2:
        raise InputError("/".join(first), "(I, 3H)", "none" if w_ih is None else w_ih.shape)
    expected = {path[1:]: a.shape for path, a in declared(model, input_size_of(model, w_ih.shape[0])).items()}
    for path, shape in expected.items():
        require(path in params, "/".join(path), f"shape {shape}", "no such parameter")
        require_equal(params[path].shape, shape, "/".join(path))
    for path, a in params.items():
        known = path in expected
        require(known, "/".join(path), f"only the parameters of {type(model).__name__}", "this one besides")
        require_floats("variables", a.dtype)
        require(a.dtype == w_ih.dtype, "variables", f"one dtype, {w_ih.dtype}", f"{a.dtype} besides")
    named = [{k[-1]: a for k, a in params.items() if k[:-1] == path} for path in paths]
    whole: list[Any] = [weights_of(model, of)[:4] for of in named]
    cells = [Cell(*of) for of in whole]
    head = Dense(params["head", "kernel"], params["head", "bias"]) if isinstance(model, GRUModel) else None
    trains = [name for name in TRAINING if getattr(model, name, 0) and name not in place.fields]
    left = [sentence for cell in cells for sentence in lost(cell, dialect)]
    dense = "w_hh is written whole, with zeros around its blocks, which training would move"
    left += [f"blocks={model.blocks}: {dense}"] * (model.blocks > 1)
    left += [f"{name}={getattr(model, name)}: it acts in training alone" for name in trains]
    for sentence in dict.fromkeys(left):
        warnings.warn(f"{place.framework}: {sentence}", ConversionWarning, stacklevel=3)
    written = [write(cell, dialect, model.update) for cell in cells]
    return Parts(written, head, w_ih.shape[0], w_ih.dtype, params.get((*paths[0][:-1], "h0")))


def put_together(
    cells: Mapping[str, Cell],
    head: tuple[str, Dense] | None = None,
    *,
    bidirectional: bool = False,
    single: bool = False,
    h0: NDArray | None = None,
    **fields: Any,
) -> tuple[GRU | GRUCell | GRUModel, dict]:
    """The model and its variables.

    Args:
      cells: each by the framework's name for it, for errors, index `layer * D + direction`.
      head: its name and weights: a `GRUModel` then, else a `GRU`.
      single: a `GRUCell`. h0: a learned initial state (L*D, H).
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
    fields |= {} if h0 is None else {"initial_state": "learned"}
    params: dict[tuple[str, ...], NDArray] = {}
    if head is not None:
        name, (kernel, head_bias) = head
        require(kernel.ndim == 2 and kernel.size > 0, name, "a matrix of weights", f"shape {kernel.shape}")
        require(kernel.shape[0] == features, name, f"{features} input features", kernel.shape[0], FIND)
        if head_bias is None:
            head_bias, what = np.zeros(kernel.shape[1:], dtype), "zeros are stored, which training would move"
            warnings.warn(f"{name}: the head has no bias; {what}", ConversionWarning, stacklevel=3)
        require_equal(head_bias.shape, kernel.shape[1:], f"{name}, the bias of")
        found = {kernel.dtype, head_bias.dtype}
        require(found == {dtype}, name, f"dtype {dtype}, that of {first}", sorted(map(str, found)))
        params = {("head", "kernel"): kernel, ("head", "bias"): head_bias}
        model = GRUModel(output_size=kernel.shape[1], **sizes, **fields)
    else:
        model = GRUCell(**sizes, **fields) if single else GRU(**sizes, **fields)
    for path, one in zip(_cell_paths(model), cells.values(), strict=True):
        params |= {(*path, key): a for key, a in one._asdict().items() if a is not None}
    if h0 is not None:
        params[*_cell_paths(model)[0][:-1], "h0"] = h0
    tree = unflatten_dict({path: to_jax(np.ascontiguousarray(a), first) for path, a in params.items()})
    return model, {"params": tree}


def assumed_pooling(pooling: Pooling | EllipsisType, has_head: bool) -> dict[str, Any]:
    """Of a source that does not tell what its head reads: that, as given, or the last state, which is announced."""
    if not has_head:
        require(pooling is ..., "pooling", "none, as there is no Linear that reads it", repr(pooling), "Leave it out.")
        return {}
    if pooling is ...:
        log.warning("read as: Linear on the last state of each direction; pooling= says otherwise")
        return {"pooling": "last"}
    if not callable(pooling):
        require_one_of(pooling, ("last", "mean", "max", None), "pooling", "Or pass a function.")
    return {"pooling": pooling}


def require_alone(prefix: str | None, pooling: Pooling | EllipsisType) -> None:
    rule, remedy = "prefix takes out a GRU, which has no pooling", "Leave one of them out."
    require(prefix is None or pooling is ..., "pooling", "none", repr(pooling), remedy, rule=rule)


def to_jax(a: NDArray, name: str) -> jax.Array:
    """A copy in the same dtype; `InputError` where JAX would narrow it."""
    kept = jax.dtypes.canonicalize_dtype(a.dtype) == a.dtype
    remedy = 'Run jax.config.update("jax_enable_x64", True) first, or cast the weights to float32.'
    require(kept, name, "a dtype that JAX keeps as it is", f"{a.dtype} while 64-bit values are off", remedy)
    return jax.device_put(a, may_alias=False)


def _cell_paths(model: nn.Module) -> list[tuple[str, ...]]:
    """The path of each cell's parameters."""
    if isinstance(model, GRUCell):
        return [()]
    assert isinstance(model, (GRU, GRUModel))
    root = ("encoder", "gru") if isinstance(model, GRUModel) else ()
    return [(*root, name) for names in model.cell_names for name in names]


def _check_model(model: nn.Module, variables: Mapping, place: Place) -> None:
    names, kind = ", ".join(sorted(f"grujax.{of.__name__}" for of in place.models)), type(model).__name__
    remedy = f"Its GRU is under variables['params']{PARTS[kind]}: pass that with a grujax.GRU." if kind in PARTS else ""
    require(isinstance(model, place.models), "model", names, kind, remedy)
    for name, value in place.only.items():
        found = getattr(model, name, value)
        require(found == value, name, repr(value), repr(found), f"{place.framework}: {REMEDIES[name]}")
    for field in own_fields(type(model)):
        if field.name in (*SIZES, *FREE, *TRAINING, *place.only):
            continue
        found, served = getattr(model, field.name), place.fields.get(field.name, ())
        serves = served is None or found == field.default or found in served or type(found) in served
        remedy = REMEDIES.get(field.name, f"{place.framework} has no such thing.")
        expected = " or ".join(map(repr, (field.default, *(served or ()))))
        require(serves, field.name, expected, repr(found), f"{place.framework}: {remedy}")
    if isinstance(model, GRUModel):
        several = isinstance(model.output_size, Mapping)
        remedy = f"{place.framework} has one. StableHLO has several."
        require(not several, "output_size", "one head", repr(model.output_size), remedy)
    require(isinstance(variables, Mapping), "variables", 'a mapping with "params"', type(variables).__name__)
    for collection in variables:
        what = "grujax.interop.fold_statistics puts what standardises the inputs into the weights."
        remedy = f"It would be lost. {what if collection == 'statistics' else ''}".strip()
        require(collection == "params", collection, 'variables of "params" alone', "this collection besides", remedy)
    require("params" in variables, "variables", 'a collection "params"', f"keys {sorted(variables)}")
