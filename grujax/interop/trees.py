"""Code shared by the converters of JAX frameworks: reads and writes cells by the paths of their tensors, and runs them.

Linen and NNX put a `GRUCell` into an `RNN`, two of these into a `Bidirectional`, several of either into a `Sequential`.
Classes, fields and parameter names agree except for the cell's own tensors, so the same code serves both. `of` is the
module with the classes, `flax.linen` or `flax.nnx`. The path of a tensor is `layers_1/forward_rnn/cell/` and its name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import Dialect, read, require_floats
from grujax.errors import require, require_equal
from grujax.interop.parts import Place, put_together, take_apart
from grujax.interop.prove import FIND, Runner
from grujax.kernels.step import ACTIVATIONS
from grujax.linen import GRU, GRUCell

KEY = re.compile(r"(?:layers_(?P<layer>\d{1,6})/)?(?P<way>(?:forward|backward)_rnn/)?(?P<rnn>cell/)?.*")


class Layout(NamedTuple):
    """The places of a GRU's cells in a tree.

    cells: prefix of the tensors -> the cell's module, or None if only tensors are known; index `layer * D + direction`.
    single: whether it is a cell without a layer. fields: of the grujax model, as far as the modules determine them.
    """

    cells: Mapping[str, Any]
    bidirectional: bool = False
    single: bool = False
    fields: Mapping[str, Any] = {}


def array(value: Any, name: str) -> NDArray:
    """Returns an array of floats as NumPy; raises `InputError` for anything else."""
    require(isinstance(value, np.ndarray | jax.Array), name, "an array", type(value).__name__)
    require_floats(name, value.dtype)
    return np.asarray(value)


def flattened(tree: Mapping, argument: str) -> dict[str, NDArray]:
    """The arrays of nested mappings by path, `a/b/c`; raises `InputError` for other leaves and bad keys."""
    flat, waiting = {}, [("", tree)]
    while waiting:
        prefix, node = waiting.pop()
        require(len(prefix) < 200, argument, "keys of a GRU", f"{prefix[:80]}...")
        for key, value in node.items():
            named = re.fullmatch(r"\w{1,80}", str(key)) is not None
            require(named, argument, "keys that are names", repr(key)[:80])
            if isinstance(value, nn.meta.AxisMetadata):  # a partitioned parameter in a box that says how it is sharded
                value = value.unbox()
            if isinstance(value, Mapping):
                waiting.append((f"{prefix}{key}/", value))
            else:
                flat[f"{prefix}{key}"] = array(value, f"{prefix}{key}")
    return flat


def read_tree(
    flat: Mapping[str, NDArray], layout: Layout, dialect: Dialect, update: str = "keep", **fields: Any
) -> tuple[nn.Module, dict]:
    """The model and variables of the cells in `flat`, which may contain no other tensors."""
    tensors, cells = dialect.tensors, {}
    if not dialect.always_biased and not any(key.endswith(tensors[2:]) for key in flat):
        tensors = tensors[:2]
    expected = dict.fromkeys(f"{prefix}{tensor}" for prefix in layout.cells for tensor in tensors)
    served = f"only {', '.join(tensors)} in {', '.join(prefix or 'the tree' for prefix in layout.cells)}"
    for key in flat:
        require(key in expected, key, served, "this extra key", f"It would be lost. {FIND}")
    for key in expected:
        require(key in flat, key, "this key", "no such key", "The tree is incomplete.")
    for prefix, module in layout.cells.items():
        cell = cells[prefix] = read({f"{prefix}{name}": flat[f"{prefix}{name}"] for name in tensors}, dialect, update)
        width, features = cell.w_ih.shape[0], getattr(module, "features", cell.hidden_size)
        remedy = f"Its module has {features} features."
        require_equal((width, cell.hidden_size), (width, features), f"{prefix}{tensors[0]}", remedy)
    kinds = {"bidirectional": layout.bidirectional, "single": layout.single}
    return put_together(cells, **kinds, **layout.fields, **fields)


def written_tree(
    model: nn.Module, variables: Mapping, place: Place, dialect: Dialect, prefixes: Sequence[str]
) -> list[dict[str, NDArray]]:
    """The tensors of each cell of the model, with its prefix before their names."""
    cells = take_apart(model, variables, place, dialect).cells
    return [{f"{prefix}{name}": a for name, a in cell.items()} for prefix, cell in zip(prefixes, cells, strict=False)]


def layout_of_keys(keys: Sequence[str]) -> Layout:
    """The layout that paths imply, with all cells between the first and the last that they name.

    >>> list(layout_of_keys(["layers_0/cell/ir/kernel"]).cells)
    ['layers_0/cell/']
    """
    matches = [m for key in keys if (m := KEY.fullmatch(key)) and m["rnn"]]
    if not matches:
        return Layout({"": None}, single=True)
    bidirectional = any(m["way"] for m in matches)
    numbers = [int(m["layer"]) for m in matches if m["layer"]]
    # At most one layer more than there are keys: enough to find the first missing key.
    num_layers = min(max(numbers, default=0), len(matches)) + 1
    return Layout(dict.fromkeys(_prefixes(num_layers, bidirectional, bool(numbers))), bidirectional)


def layout_of_model(model: nn.Module) -> Layout:
    """The layout of a grujax model in Flax."""
    if not isinstance(model, GRU):
        return Layout({"": None}, single=True)
    prefixes = _prefixes(model.num_layers, model.bidirectional, model.num_layers > 1)
    return Layout(dict.fromkeys(prefixes), model.bidirectional)


def layout_of_module(module: Any, of: Any) -> Layout:
    """The layout of a GRUCell, RNN, Bidirectional or Sequential; raises `InputError` if grujax computes otherwise."""
    if type(module) is of.GRUCell:
        return Layout({"": module}, single=True, fields=_cell_fields(module, "module"))
    stacked = type(module) is of.Sequential
    layers = list(module.layers) if stacked else [module]
    require(bool(layers), "layers", "at least one", "none")
    first, cells, fields = type(layers[0]), [], []
    bidirectional = first is of.Bidirectional
    for k, layer in enumerate(layers):
        kind, name = type(layer), f"layers_{k}" if stacked else "module"
        served = "an RNN or a Bidirectional of GRUCells" + ("" if stacked else ", a GRUCell, or a Sequential of these")
        require(kind in (of.RNN, of.Bidirectional), name, served, kind.__name__)
        remedy = "Convert the layers one by one."
        require(kind is first, name, f"{first.__name__}, as layers_0", kind.__name__, remedy)
        if bidirectional:
            concatenates = layer.merge_fn is of.Bidirectional.merge_fn
            remedy = "Leave merge_fn out, and merge the two halves of the output yourself."
            require(concatenates, f"{name}.merge_fn", "the default, concatenation", repr(layer.merge_fn), remedy)
        else:  # a Bidirectional overrides the options of its RNNs
            remedy = "Reverse the input, and convert the RNN with reverse=False."
            require_equal(layer.reverse, False, f"{name}.reverse", remedy)
        for rnn in (layer.forward_rnn, layer.backward_rnn) if bidirectional else (layer,):
            require(type(rnn) is of.RNN, name, "RNNs", type(rnn).__name__)
            require(type(rnn.cell) is of.GRUCell, name, "GRUCells", type(rnn.cell).__name__)
            cells.append(rnn.cell)
            fields.append(_cell_fields(rnn.cell, name) | ({"time_major": True} if layer.time_major else {}))
            require_equal(fields[-1], fields[0], name, "All layers of a GRU must have the same options.")
    return Layout(
        dict(zip(_prefixes(len(layers), bidirectional, stacked), cells, strict=True)), bidirectional, fields=fields[0]
    )


def cell_options(model: Any) -> dict[str, Any]:
    """The options of Flax's GRUCell with which it computes the same as the model."""
    functions = {"gate_fn": model.gate_activation, "activation_fn": model.activation}
    functions = {key: ACTIVATIONS[f] if isinstance(f, str) else f for key, f in functions.items()}
    return {**functions, "dtype": model.dtype, "param_dtype": model.param_dtype}


def nested(cells: Sequence[Any], of: Any, layout: Layout, time_major: bool) -> Any:
    """The module that contains the cells; index `layer * D + direction`."""
    if layout.single:
        return cells[0]
    layers = [of.RNN(cell, time_major=time_major) for cell in cells]
    if layout.bidirectional:
        pairs = zip(layers[::2], layers[1::2], strict=True)
        layers = [of.Bidirectional(*pair, time_major=time_major) for pair in pairs]
    if not any(prefix.startswith("layers_") for prefix in layout.cells):
        return layers[0]
    return of.Sequential(layers) if of is nn else of.Sequential(*layers)


Layer = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(x (B, T, I), h0 (D, B, H)) -> (output (B, T, D*H), last states (D, B, H))."""


def recurrent(call: Callable[..., Any], bidirectional: bool) -> Layer:
    """Wraps an RNN or Bidirectional of Linen or NNX as a `Layer`."""

    def layer(x: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = tuple(h0) if bidirectional else h0[0]
        last, output = call(x, initial_carry=start, return_carry=True, time_major=False)
        return output, jnp.stack(last) if bidirectional else last[None]

    return layer


def jax_runner(model: nn.Module, cell: Callable[..., Any], layers: Sequence[Layer]) -> Runner:
    """Runs `cell`, (x (B, I), h (B, H)) -> new state, if the model is a cell, else the layers one after another."""

    @jax.jit
    def run(x: jax.Array, h0: jax.Array) -> dict[str, jax.Array]:
        if isinstance(model, GRUCell):
            return {"h_last": cell(x, h0)}
        output, h_last = x, []
        for layer, start in zip(layers, jnp.split(h0, len(layers)), strict=True):
            output, last = layer(output, start)
            h_last.append(last)
        return {"output": output, "h_last": jnp.concatenate(h_last)}

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        assert h0 is not None and lengths is None
        with jax.numpy_dtype_promotion("standard"):  # these frameworks mix states with narrower weights
            return jax.device_get(run(x, h0))

    return Runner(call)


def _prefixes(num_layers: int, bidirectional: bool, stacked: bool) -> list[str]:
    ways = ("forward_rnn/", "backward_rnn/") if bidirectional else ("",)
    return [f"{f'layers_{k}/' if stacked else ''}{way}cell/" for k in range(num_layers) for way in ways]


def _cell_fields(cell: Any, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for argument, field in (("gate_fn", "gate_activation"), ("activation_fn", "activation")):
        found = getattr(cell, argument)
        known = next((key for key, f in ACTIVATIONS.items() if f is found), None)
        remedy = f"Convert only the weights, then call model.clone({field}=...), if the function is elementwise."
        require(known is not None, f"{name}.{argument}", f"one of {sorted(ACTIVATIONS)}", repr(found), remedy)
        fields[field] = known
    if cell.carry_init is not None:
        start = np.asarray(cell.carry_init(jax.random.key(0), (1, 1), jnp.float32))
        remedy = "Convert a cell without carry_init, and pass the initial state to grujax as h0."
        require(not start.any(), f"{name}.carry_init", "zeros", "other values", remedy)
    return fields if cell.dtype is None else fields | {"dtype": cell.dtype}
