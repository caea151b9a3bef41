"""ONNX and back: a `GRU` node a layer, both directions in one, and the dense head. Nothing is lost.

Written graphs are batch-major, as everything here is. Read are these, and graphs of GRU nodes that others exported.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.heads import STATISTICS
from grujax.errors import InputError, require, require_package
from grujax.interop.adapters import Adapter, Runner, log, outputs, require_agreement, sizes
from grujax.interop.model_parts import Dense, put_together
from grujax.interop.onnx_node import cells_of
from grujax.interop.onnx_read import Found, follow
from grujax.interop.onnx_tensors import array, checked, line, load
from grujax.interop.onnx_write import HINTS, METADATA, written
from grujax.testing.tolerances import tolerances_used
from grujax.types import state_dtype

if TYPE_CHECKING:
    import onnx


def to_onnx(
    model: nn.Module, variables: Mapping, *, lengths: bool = True, state: bool = True, verify: bool = False
) -> "onnx.ModelProto":
    """The ONNX model that computes what `model` computes; the same model gives the same bytes.

    - `GRU`: x (B, T, I), h0 (L*D, B, H), lengths (B,) int32 -> output (B, T, D*H), h_last (L*D, B, H);
    - `GRUModel`: the same -> y (B, output_size), with `pooling=None` (B, T, output_size), and h_last. Its statistics
      are in the graph: raw inputs go in, raw targets come out;
    - `GRUCell`: x (B, I), h0 (B, H) -> h (B, H).

    B and T stay open. What stands at steps past the length, NaN included, reaches no output; outputs there are 0.
    ONNX has no resets, nor a place for `dropout`, which acts in training alone. ONNX Runtime (1.32) cannot run B = 0.

    Args:
      model: a `GRU`, `GRUCell` or `GRUModel`, float32 or float16.
      variables: its variables, "params" and, of a trained `GRUModel`, "statistics".
      lengths: False leaves the input lengths out, all steps are valid then. A cell has none.
      state: False leaves h0, which is 0 then, and h_last out.
      verify: run both sides on random data; the largest difference is logged (logger "grujax.interop", INFO), and one
        past the tolerance table raises.

    Raises:
      InputError: what ONNX has no place for, by the field's name; bfloat16 and float64, which ONNX Runtime cannot run.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRUModel
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> proto = to_onnx(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> [value.name for value in (*proto.graph.input, *proto.graph.output)]
    ['x', 'lengths', 'h0', 'y', 'h_last']
    """
    proto = written(model, variables, lengths, state)
    if verify:
        require_agreement(model, variables, runner(proto, model), "model")
    return proto


def from_onnx(source: "onnx.ModelProto", *, verify: bool = False) -> tuple[nn.Module, dict]:
    """The model and variables that compute what an ONNX model computes: exactly, or an error.

    - What `to_onnx` wrote comes back as it was, bit for bit.
    - Of other exporters: GRU nodes in a row, one dense head (Gemm, or MatMul and Add) or none, and between them
      operators that only move values. What was read is run in ONNX Runtime beside the graph, and must give the same.

    x may be time-major in the graph; the model is batch-major all the same. Of a row of length 0 h_last is h0 here, and
    what the runtime likes in a graph that others wrote.

    Args:
      verify: run what `to_onnx` wrote in ONNX Runtime too; see `to_onnx`.

    Raises:
      InputError: naming the node, tensor, input or output that is none of this; onnxruntime missing for a graph that
        others wrote.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRU
    >>> model = GRU(20, num_layers=2, bidirectional=True)
    >>> proto = to_onnx(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> from_onnx(proto)[0] == model
    True
    """
    checked(source)
    ours = _own(source)
    if ours is not None:
        model, variables = ours
        if verify:
            require_agreement(model, variables, runner(source, model), "source")
        return ours
    found, other = follow(source), follow(source, 4, 8)  # what is right at one size by chance is not at both
    require(found.model == other.model, "source", "the same model for every B and T", "two")
    _prove(_session(source), found)  # the runtime meets no graph that was not followed to its end
    return found.model, found.variables


def runner(proto: "onnx.ModelProto", model: nn.Module) -> Runner:
    """ONNX Runtime on the CPU, h0 and lengths where the graph has them."""
    del model  # the graph tells
    session = _session(proto)
    names = [of.name for of in session.get_inputs()]
    if _own(proto) is not None:

        def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
            found = _run(session, {"x": x, "h0": h0, "lengths": lengths})
            return {"h_last" if name == "h" else name: a for name, a in found.items()}

        return Runner(call, "h0" in names, "lengths" in names)

    def by_numbers(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        found = follow(proto, *x.shape[:2])
        fixed, remedy = f"B, T = {found.sizes}, which the graph fixes", "Reading has proved it there; or open its axes."
        require(found.sizes == x.shape[:2], found.x, fixed, x.shape[:2], remedy)
        values = np.full(found.how_many, np.nan)
        for name, a in _run(session, _feed(found, x, h0, lengths)).items():
            values[found.outputs[name]] = a
        there = np.concatenate([ids.ravel() for ids in found.outputs.values()])
        return {name: values[ids] for name, ids in found.numbers.items() if np.isin(ids, there).all()}

    found = follow(proto)
    return Runner(by_numbers, found.h0 is not None, found.lengths is not None)


def store(path: Path, proto: "onnx.ModelProto") -> None:
    path.write_bytes(proto.SerializeToString(deterministic=True))


ADAPTER = Adapter("onnx", (".onnx",), load, from_onnx, to_onnx, store, runner, keeps_statistics=True)


def _own(proto: "onnx.ModelProto") -> tuple[nn.Module, dict] | None:
    """What `to_onnx` wrote, which it must write again from what was read; None for any other graph."""
    try:
        hints = json.loads(next(prop.value for prop in proto.metadata_props if prop.key == METADATA))
        cls, update = hints.pop("class"), hints["update"]
        known = all(value in HINTS[key] for key, value in hints.items() if key in HINTS)
    except (StopIteration, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not known or not hints.keys() <= {*HINTS, "clip"}:
        return None
    arrays = {tensor.name: array(tensor.name, tensor) for tensor in proto.graph.initializer}
    head = None
    if {"head_kernel", "head_bias"} <= arrays.keys():
        head = "head_kernel", Dense(arrays["head_kernel"], arrays["head_bias"])
    nodes = [node for node in proto.graph.node if node.op_type == "GRU"]
    if not nodes or not all({*node.input[1:4]} <= {*arrays, ""} for node in nodes) or (cls == "GRUModel") != bool(head):
        return None
    fields, cells = {}, {}
    for node in nodes:
        fields, of_layer = cells_of(node, [arrays.get(name) for name in [*node.input[1:4], ""][:3]], update)
        cells |= of_layer
    bidirectional = fields.pop("bidirectional")
    single = cls == "GRUCell"
    model, variables = put_together(cells, head, bidirectional=bidirectional, single=single, **fields | hints)
    statistics = {name: jnp.asarray(arrays[name]) for name in STATISTICS if name in arrays}
    variables |= {"statistics": statistics} if statistics else {}
    inputs = {of.name for of in proto.graph.input}
    again = written(model, variables, "lengths" in inputs, "h0" in inputs)
    same = again.graph.SerializeToString(deterministic=True) == proto.graph.SerializeToString(deterministic=True)
    return (model, variables) if same else None


def _session(proto: "onnx.ModelProto") -> Any:
    onnxruntime = require_package("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; the log would say it once more
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        raise InputError("source", "a model that ONNX Runtime accepts", line(error)) from error


def _run(session: Any, given: Mapping[str, NDArray | None]) -> dict[str, NDArray]:
    """All outputs by their names; inputs are cast to what the session takes."""
    dtypes = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
    dtypes |= {"tensor(int32)": "int32", "tensor(int64)": "int64"}
    feed = {of.name: np.ascontiguousarray(given[of.name], dtypes.get(of.type)) for of in session.get_inputs()}
    names = [of.name for of in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:
        raise InputError("source", "a model that ONNX Runtime can run", line(error)) from error


def _feed(found: Found, x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray | None]:
    given = {found.x: x if found.batch_first else x.swapaxes(0, 1)}
    return given | {name: a for name, a in ((found.h0, h0), (found.lengths, lengths)) if name is not None}


def _prove(session: Any, found: Found) -> None:
    """Every output of a graph on random data against what the model gives; `InputError` where they are not equal."""
    rng, (batch, time) = np.random.default_rng(0), found.sizes
    features, hidden_size, n_states = sizes(found.model, found.variables)
    x = rng.normal(size=(batch, time, features)).astype(found.model.param_dtype)
    h0 = rng.normal(size=(n_states, batch, hidden_size)).astype(state_dtype(x.dtype)) if found.h0 else None
    lengths = (np.arange(time, time - batch, -1) % time + 1).astype(np.int32) if found.lengths else None
    values = np.full(found.how_many, np.nan)
    for name, a in outputs(found.model, found.variables, x, h0, lengths).items():
        if name in found.numbers:
            values[found.numbers[name]] = np.asarray(a)
    for name, theirs in _run(session, _feed(found, x, h0, lengths)).items():
        ours = values[found.outputs[name]]
        require(theirs.shape == ours.shape, name, f"shape {ours.shape}", theirs.shape)
        largest = np.abs(theirs.astype(np.float64) - ours).max(initial=0)
        log.info("%s: largest difference %.3g", name, largest)
        equal = bool(tolerances_used(theirs, ours, x.dtype.name).max(initial=0) <= 1)  # a NaN is not
        one, remedy = "what ONNX Runtime gives equal to the model's", "The graph was not understood: please report it."
        require(equal, name, one, f"a difference of {largest:.3g}", remedy)
