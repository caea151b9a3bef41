"""What the frameworks of JAX share: cells by the paths of their tensors, modules that nest them, layers in turn.

Linen and NNX put a `GRUCell` into an `RNN`, two of these into a `Bidirectional`, several of either into a `Sequential`.
Classes, fields and parameter names agree but for the cell's own tensors, so one walk serves both: `of` is the module
that holds the classes, `flax.linen` or `flax.nnx`. A cell is told by the prefix of its tensors' paths, such as
`layers_1/forward_rnn/cell/`, "" where it stands alone; all of them, index `layer * D + direction`, tell the structure.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import Dialect
from grujax.errors import require, require_equal
from grujax.interop.parts import Place, put_together, read_cells, require_only, take_apart
from grujax.interop.prove import Runner
from grujax.kernels.step import ACTIVATIONS
from grujax.linen import GRU, GRUCell

CELL = r"(?P<base>(?:.*?/)??)(?P<layer>(?:layers[_/]\d{1,6}/)?)(?P<way>(?:forward|backward)_rnn/)?(?P<rnn>cell/)?"
"""The path of a cell: that of the layers that it is one of, which layer and direction, and what stands between."""


def flattened(tree: Mapping, argument: str) -> dict[str, Any]:
    """What stands in nested mappings by its path, `a/b/c`; `InputError` for what has no name."""
    flat, waiting = {}, [("", tree)]
    while waiting:
        prefix, node = waiting.pop()
        require(len(prefix) < 200, argument, "keys of a GRU", f"{prefix[:80]}...")
        for key, value in node.items():
            named = re.fullmatch(r"\w{1,80}", str(key)) is not None
            require(named, argument, "keys that are names", repr(key)[:80])
            if isinstance(value, nn.meta.AxisMetadata):  # a partitioned parameter: how it is sharded, around its value
                value = value.unbox()
            if isinstance(value, Mapping):
                waiting.append((f"{prefix}{key}/", value))
            else:
                flat[f"{prefix}{key}"] = value
    return flat


def read_tree(
    flat: Mapping[str, Any], prefixes: Sequence[str], dialect: Dialect, features: int | None = None, **fields: Any
) -> tuple[nn.Module, dict]:
    """The model and variables of cells whose tensors stand in `flat`, those and no others.

    features: H, where a module says it. fields: of the model; and `single`, a cell, where paths do not tell it.
    """
    tensors = dialect.tensors
    if not dialect.always_biased and not any(key.endswith(tensors[2:]) for key in flat):
        tensors = tensors[:2]
    expected = [[f"{prefix}{tensor}" for tensor in tensors] for prefix in prefixes]
    served = f"{', '.join(tensors)} in {', '.join(prefix or 'the tree' for prefix in prefixes)}"
    require_only(flat, {key for keys in expected for key in keys}, served)
    cells = read_cells(flat, expected, dialect, "tree", fields.get("update", "keep"))
    for key, cell in cells.items():
        said = (cell.w_ih.shape[0], features or cell.hidden_size)
        require_equal((cell.w_ih.shape[0], cell.hidden_size), said, key, "Its module has that.")
    kinds: dict[str, Any] = {
        "bidirectional": "backward_rnn/" in prefixes[-1],
        "single": not prefixes[0].endswith("cell/"),
    }
    return put_together(cells, **kinds | fields)


def written_tree(
    model: nn.Module, variables: Mapping, place: Place, dialect: Dialect, prefixes: Iterable[str]
) -> dict[str, NDArray]:
    """The tensors of the model's cells, each under its prefix."""
    cells = take_apart(model, variables, place, dialect).cells
    return {f"{prefix}{name}": a for prefix, of in zip(prefixes, cells, strict=False) for name, a in of.items()}


def alone(flat: Mapping[str, Any], sign: str) -> tuple[dict[str, Any], list[str]]:
    """The tensors of a GRU that stands alone, without the path that all of them have in common, and the prefixes that
    their paths tell, with room for every cell between the first and the last that they name. sign: a tensor of a cell.

    >>> alone({"net/layers_0/cell/ir/kernel": np.ones((2, 3))}, "ir/kernel")[1]
    ['layers_0/cell/']
    """
    matches = [m for key in flat if (m := re.fullmatch(f"{CELL}{sign}", key))]
    if not matches:
        return dict(flat), [""]
    base = matches[0]["base"] if all(key.startswith(matches[0]["base"]) for key in flat) else ""
    flat = {key.removeprefix(base): a for key, a in flat.items()}
    if not any(m["rnn"] for m in matches):
        return flat, [""]
    numbers = [int(re.sub(r"\D", "", m["layer"])) for m in matches if m["layer"]]
    # No more layers than there are keys, and one: enough to find the first key that is missing.
    num_layers = min(max(numbers, default=0), len(matches)) + 1
    return flat, _prefixes(num_layers, any(m["way"] for m in matches), bool(numbers))


def prefixes_of_model(model: nn.Module) -> list[str]:
    """Those of the module that a grujax model becomes."""
    return _prefixes(model.num_layers, model.bidirectional, model.num_layers > 1) if isinstance(model, GRU) else [""]


def _prefixes(num_layers: int, bidirectional: bool, stacked: bool) -> list[str]:
    ways = ("forward_rnn/", "backward_rnn/") if bidirectional else ("",)
    return [f"{f'layers_{k}/' if stacked else ''}{way}cell/" for k in range(num_layers) for way in ways]


def told_by_module(module: Any, of: Any) -> tuple[list[str], dict[str, Any]]:
    """The prefixes of a GRUCell, RNN, Bidirectional or Sequential of `of`, and the fields of the model that its options
    are; `InputError` for what computes otherwise."""
    if type(module) is of.GRUCell:
        return [""], _cell_fields(module, "module")
    stacked = type(module) is of.Sequential
    layers = list(module.layers) if stacked else [module]
    require(bool(layers), "layers", "at least one", "none")
    first, fields = type(layers[0]), []
    bidirectional = first is of.Bidirectional
    for k, layer in enumerate(layers):
        kind, name = type(layer), f"layers_{k}" if stacked else "module"
        served = "an RNN or a Bidirectional of GRUCells" + ("" if stacked else ", a GRUCell, or a Sequential of these")
        require(kind in (of.RNN, of.Bidirectional), name, served, kind.__name__)
        remedy = "Convert the layers one by one."
        require(kind is first, name, f"{first.__name__}, as layers_0", kind.__name__, remedy)
        if bidirectional:
            concatenates = layer.merge_fn is of.Bidirectional.merge_fn
            remedy = "Leave merge_fn out and merge the two halves of the output yourself."
            require(concatenates, f"{name}.merge_fn", "the default, concatenation", repr(layer.merge_fn), remedy)
        else:  # a Bidirectional overrides its RNNs' own options
            remedy = "Reverse the input and convert the RNN with reverse=False."
            require_equal(layer.reverse, False, f"{name}.reverse", remedy)
        for rnn in (layer.forward_rnn, layer.backward_rnn) if bidirectional else (layer,):
            require(type(rnn) is of.RNN, name, "RNNs", type(rnn).__name__)
            require(type(rnn.cell) is of.GRUCell, name, "GRUCells", type(rnn.cell).__name__)
            fields.append(_cell_fields(rnn.cell, name) | ({"time_major": True} if layer.time_major else {}))
            require_equal(fields[-1], fields[0], name, "All layers of a GRU have the same options.")
    return _prefixes(len(layers), bidirectional, stacked), fields[0]


def _cell_fields(cell: Any, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"features": getattr(cell, "features", None)}
    for argument, field in (("gate_fn", "gate_activation"), ("activation_fn", "activation")):
        found = getattr(cell, argument)
        fields[field] = next((key for key, f in ACTIVATIONS.items() if f is found), None)
        remedy = f"Convert the weights alone, then model.clone({field}=...), if it is elementwise."
        known = fields[field] is not None
        require(known, f"{name}.{argument}", f"one of {sorted(ACTIVATIONS)}", repr(found), remedy)
    if cell.carry_init is not None:
        start = np.asarray(cell.carry_init(jax.random.key(0), (1, 1), jnp.float32))
        remedy = "Pass grujax the initial state as h0, and convert a cell without carry_init."
        require(not start.any(), f"{name}.carry_init", "zeros", "other values", remedy)
    return fields if cell.dtype is None else fields | {"dtype": cell.dtype}


def cell_options(model: Any) -> dict[str, Any]:
    """The options of a GRUCell of Flax that computes what the model computes."""
    functions = {"gate_fn": model.gate_activation, "activation_fn": model.activation}
    functions = {key: ACTIVATIONS[f] if isinstance(f, str) else f for key, f in functions.items()}
    return {**functions, "dtype": model.dtype, "param_dtype": model.param_dtype}


def nested(cells: Mapping[str, Any], of: Any, model: Any) -> Any:
    """The module of cells by their prefixes."""
    layers, time_major = [*cells.values()], getattr(model, "time_major", False)
    if "" in cells:
        return layers[0]
    layers = [of.RNN(cell, time_major=time_major) for cell in layers]
    if any("_rnn/" in prefix for prefix in cells):
        pairs = zip(layers[::2], layers[1::2], strict=True)
        layers = [of.Bidirectional(*pair, time_major=time_major) for pair in pairs]
    if not next(iter(cells)).startswith("layers_"):
        return layers[0]
    return of.Sequential(layers) if of is nn else of.Sequential(*layers)


Layer = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""x (B, T, I) and h0 (D, B, H) to output (B, T, D*H) and last states (D, B, H)."""


def recurrent(call: Callable[..., Any], bidirectional: bool) -> Layer:
    """Flax's RNN or Bidirectional as a `Layer`, in either of its APIs."""

    def layer(x: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = tuple(h0) if bidirectional else h0[0]
        last, output = call(x, initial_carry=start, return_carry=True, time_major=False)
        return output, jnp.stack(last) if bidirectional else last[None]

    return layer


def cell_runner(model: nn.Module, cells: Sequence[Callable[[jax.Array, jax.Array], jax.Array]]) -> Runner:
    """Cells alone, each a layer over time by `lax.scan`: x (B, I) and h (B, H) to the new state."""

    def scanned(cell: Callable[..., Any]) -> Layer:
        def layer(x: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
            h_last, hs = jax.lax.scan(lambda h, x: (cell(x, h),) * 2, h0[0], x.swapaxes(0, 1))
            return hs.swapaxes(0, 1), h_last[None]

        return layer

    return jax_runner(model, cells[0], [scanned(cell) for cell in cells])


def jax_runner(
    model: nn.Module, cell: Callable[..., Any], layers: Sequence[Layer], bidirectional: bool = False
) -> Runner:
    """A cell alone, x (B, I) and h (B, H) to the new state; of any other model the layers one after another."""

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        assert h0 is not None and lengths is None
        output, h_last, directions = jnp.asarray(x), [], 1 + bidirectional
        with jax.numpy_dtype_promotion("standard"):  # as these frameworks are run: a state beside narrower weights
            if isinstance(model, GRUCell):
                return {"h_last": np.asarray(cell(output, jnp.asarray(h0)))}
            for k, layer in enumerate(layers):
                output, last = layer(output, jnp.asarray(h0[k * directions : (k + 1) * directions]))
                h_last.append(np.asarray(last))
        return {"output": np.asarray(output), "h_last": np.concatenate(h_last)}

    return Runner(call)
