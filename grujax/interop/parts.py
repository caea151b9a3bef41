"""Takes a model apart into cells and a head, NumPy arrays that every framework has, and builds models from them."""

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
"""Every conversion carries over the fields in SIZES. Those in FREE do not change the function that is computed, those
in TRAINING do not change it in inference. All others must have their default, or a value that the framework supports.
"""

REMEDIES = {
    "reset_after": "r before and r after the product are two functions, which cannot be converted into each other.",
    "bidirectional": "it has no bidirectional GRU; convert a GRU of each direction.",
    "pooling": "it has no other pooling; StableHLO supports all.",
    "output_activation": "model.clone(output_activation=None) returns the values before the activation.",
    "reverse": "convert the model with reverse=False, and flip the valid steps of x and of the output yourself.",
}
PARTS = {"GRUEncoder": "['gru']", "GRUModel": "['encoder']['gru']"}
"""The path of the GRU in the parameters of a model, by the model's class."""


class ConversionWarning(UserWarning):
    """The target cannot store something that the outputs do not depend on, such as a rate of dropout."""


class Dense(NamedTuple):
    """A dense head: features @ kernel + bias."""

    kernel: NDArray  # (F, O)
    bias: NDArray | None  # (O,)


class Parts(NamedTuple):
    """The arrays of a model, all of one dtype. cells: the tensors of each layer and direction, under their names in a
    dialect; index `layer * D + direction`. h0: a learned initial state (L*D, H)."""

    cells: list[dict[str, NDArray]]
    head: Dense | None
    input_size: int
    dtype: np.dtype
    h0: NDArray | None = None


class Place(NamedTuple):
    """The models that a framework can store.

    framework: its name in errors. fields: the values that it supports besides the default, for fields that are not in
    `SIZES` or `FREE`; None means any. models: the classes that it supports. only: fields of which it has one value.
    """

    framework: str
    fields: Mapping[str, Collection | None] = {}
    models: tuple[type[nn.Module], ...] = (GRU, GRUCell, GRUModel)
    only: Mapping[str, Any] = {}


def take_apart(model: Any, variables: Mapping, place: Place, dialect: Dialect) -> Parts:
    """The parts of a model in `dialect`, with a `ConversionWarning` for each thing that `place` cannot store.

    Raises:
      InputError: something that the outputs depend on would be lost.
    """
    _check_model(model, variables, place)
    gate, expected = model.gate_activation, "sigmoid, hard_sigmoid, or a HardSigmoid or Affine with beta 0.5"
    mirrored = gate in ("sigmoid", "hard_sigmoid") or (isinstance(gate, HardSigmoid | Affine) and gate.beta == 0.5)
    rule = f"update={model.update!r} needs a gate with 1 - f(a) = f(-a): in {place.framework} z weighs the other term"
    require(mirrored or model.update == dialect.update, "gate_activation", expected, repr(gate), rule=rule)
    params = {path: np.asarray(a) for path, a in flatten_dict(dict(variables["params"])).items()}
    paths = _cell_paths(model)
    first = (*paths[0], "w_ih")
    w_ih = params.get(first)
    if w_ih is None or w_ih.ndim != 2:
        raise InputError("/".join(first), "(I, 3H)", "none" if w_ih is None else w_ih.shape)
    expected = {path[1:]: a.shape for path, a in declared(model, input_size_of(model, w_ih.shape[0])).items()}
    for path, shape in expected.items():
        require(path in params, "/".join(path), f"a parameter of shape {shape}", "none")
        require_equal(params[path].shape, shape, "/".join(path))
    for path, a in params.items():
        known = path in expected
        require(known, "/".join(path), f"only the parameters of {type(model).__name__}", "this extra parameter")
        require_floats("variables", a.dtype)
        require(a.dtype == w_ih.dtype, "variables", "parameters of one dtype", f"{w_ih.dtype} and {a.dtype}")
    named = [{k[-1]: a for k, a in params.items() if k[:-1] == path} for path in paths]
    weights: list[Any] = [weights_of(model, tensors)[:4] for tensors in named]
    cells = [Cell(*w) for w in weights]
    head = Dense(params["head", "kernel"], params["head", "bias"]) if isinstance(model, GRUModel) else None
    trains = [name for name in TRAINING if getattr(model, name, 0) and name not in place.fields]
    left = [sentence for cell in cells for sentence in lost(cell, dialect)]
    dense = "w_hh is written as a dense matrix, with zeros around its blocks, which training would change"
    left += [f"blocks={model.blocks}: {dense}"] * (model.blocks > 1)
    left += [f"{name}={getattr(model, name)}: it only acts in training" for name in trains]
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
    """Builds a model and its variables.

    Args:
      cells: under the framework's names, which errors show; index `layer * D + direction`.
      head: its name and weights. The model is a `GRUModel` if it is given, else a `GRU`.
      single: the model is a `GRUCell`. h0: a learned initial state (L*D, H).
      fields: other fields of the model. Its sizes are those of the weights.

    Raises:
      InputError: a cell does not fit the first one or the layer before it; or JAX would narrow float64 weights.
    """
    directions = 1 + bidirectional
    (first, first_cell), *_ = cells.items()
    hidden_size, dtype, bias = first_cell.hidden_size, first_cell.w_hh.dtype, first_cell.b_ih is not None
    features = hidden_size * (directions if fields.get("merge", "concat") == "concat" else 1)
    for index, (name, cell) in enumerate(cells.items()):
        reads = features if index >= directions else first_cell.w_ih.shape[0]
        require(cell.hidden_size == hidden_size, name, f"{hidden_size} hidden units, as {first}", cell.hidden_size)
        require(cell.w_ih.shape[0] == reads, name, f"{reads} input features", cell.w_ih.shape[0])
        found = f"{'no ' if bias else ''}biases, unlike {first}"
        require((cell.b_ih is not None) == bias, name, "biases in all layers or in none", found)
        require(cell.w_hh.dtype == dtype, name, f"dtype {dtype}, as {first}", f"dtype {cell.w_hh.dtype}")
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
            head_bias, what = np.zeros(kernel.shape[1:], dtype), "zeros are stored, which training would change"
            warnings.warn(f"{name}: the head has no bias; {what}", ConversionWarning, stacklevel=3)
        require_equal(head_bias.shape, kernel.shape[1:], f"the bias beside {name}")
        dtypes = {kernel.dtype, head_bias.dtype}
        require(dtypes == {dtype}, name, f"dtype {dtype}, as {first}", sorted(map(str, dtypes)))
        params = {("head", "kernel"): kernel, ("head", "bias"): head_bias}
        model = GRUModel(output_size=kernel.shape[1], **sizes, **fields)
    else:
        model = GRUCell(**sizes, **fields) if single else GRU(**sizes, **fields)
    for path, cell in zip(_cell_paths(model), cells.values(), strict=True):
        params |= {(*path, key): a for key, a in cell._asdict().items() if a is not None}
    if h0 is not None:
        params[*_cell_paths(model)[0][:-1], "h0"] = h0
    tree = unflatten_dict({path: to_jax(np.ascontiguousarray(a), first) for path, a in params.items()})
    return model, {"params": tree}


def assumed_pooling(pooling: Pooling | EllipsisType, has_head: bool) -> dict[str, Any]:
    """The `pooling` of a model whose source does not contain it: the argument, or "last" with a logged warning."""
    if not has_head:
        require(pooling is ..., "pooling", "none, because there is no Linear", repr(pooling), "Leave it out.")
        return {}
    if pooling is ...:
        log.warning("read as: Linear on the last state of each direction; if that is wrong, pass pooling=")
        return {"pooling": "last"}
    if not callable(pooling):
        require_one_of(pooling, ("last", "mean", "max", None), "pooling", "Or pass a function.")
    return {"pooling": pooling}


def require_alone(prefix: str | None, pooling: Pooling | EllipsisType) -> None:
    """Raises `InputError` if both arguments are passed."""
    rule, remedy = "prefix takes out a GRU, which has no pooling", "Leave one of them out."
    require(prefix is None or pooling is ..., "pooling", "none", repr(pooling), remedy, rule=rule)


def to_jax(a: NDArray, name: str) -> jax.Array:
    """Copies an array into JAX in its own dtype; raises `InputError` where JAX would narrow it."""
    kept = jax.dtypes.canonicalize_dtype(a.dtype) == a.dtype
    remedy = 'Run jax.config.update("jax_enable_x64", True) first, or cast the weights to float32.'
    require(kept, name, "a dtype that JAX keeps", f"{a.dtype} while 64-bit values are off", remedy)
    return jax.device_put(a, may_alias=False)


def _cell_paths(model: nn.Module) -> list[tuple[str, ...]]:
    """The path of each cell's parameters."""
    if isinstance(model, GRUCell):
        return [()]
    assert isinstance(model, (GRU, GRUModel))
    root = ("encoder", "gru") if isinstance(model, GRUModel) else ()
    return [(*root, name) for names in model.cell_names for name in names]


def _check_model(model: nn.Module, variables: Mapping, place: Place) -> None:
    names, kind = ", ".join(sorted(f"grujax.{cls.__name__}" for cls in place.models)), type(model).__name__
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
        remedy = REMEDIES.get(field.name, "it has no such option.")
        expected = " or ".join(map(repr, (field.default, *(served or ()))))
        require(serves, field.name, expected, repr(found), f"{place.framework}: {remedy}")
    if isinstance(model, GRUModel):
        several = isinstance(model.output_size, Mapping)
        remedy = f"{place.framework} models have one head. StableHLO has several."
        require(not several, "output_size", "one head", repr(model.output_size), remedy)
    require(isinstance(variables, Mapping), "variables", 'a mapping with "params"', type(variables).__name__)
    for collection in variables:
        fold = "grujax.interop.fold_statistics moves the statistics into the weights."
        remedy = f"It would be lost. {fold if collection == 'statistics' else ''}".strip()
        require(collection == "params", collection, 'variables with only "params"', "this extra collection", remedy)
    require("params" in variables, "variables", 'a collection "params"', f"keys {sorted(variables)}")
