"""ONNX and back: a `GRU` node a layer, both directions in one, and the dense head. Nothing is lost.

Written graphs are batch-major, as everything here is. Read are these, and graphs of GRU nodes that others exported.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.heads import STATISTICS
from grujax.errors import require, require_package
from grujax.interop.framework import Framework
from grujax.interop.onnx_graph import HINTS, METADATA, cells_of
from grujax.interop.onnx_read import read_graph
from grujax.interop.onnx_run import DTYPES
from grujax.interop.onnx_tensors import array, checked, load
from grujax.interop.onnx_write import written
from grujax.interop.parts import Dense, put_together
from grujax.interop.prove import Runner

if TYPE_CHECKING:
    import onnx


def to_onnx(
    model: nn.Module,
    variables: Mapping,
    *,
    lengths: bool = True,
    state: bool = True,
    labels: Sequence[str] | None = None,
    verify: bool = False,
) -> "onnx.ModelProto":
    """The ONNX model that computes what `model` computes; the same model gives the same bytes.

    - `GRU`: x (B, T, I), h0 (L*D, B, H), lengths (B,) int32 -> output (B, T, D*H), h_last (L*D, B, H);
    - `GRUModel`: the same -> y (B, output_size), with `pooling=None` (B, T, output_size), and h_last. Its statistics
      are in the graph: raw inputs go in, raw targets come out;
    - `GRUCell`: x (B, I), h0 (B, H) -> h (B, H).

    B and T stay open. What stands at steps past the length, NaN included, reaches no output; outputs there are 0.
    ONNX has no resets, and ONNX Runtime (1.32) cannot run B = 0. See `grujax.interop` for the rest.

    Args:
      model: float32 or float16, the dtypes of GRUs in ONNX Runtime.
      lengths: False leaves the input lengths out, all steps are valid then. A cell has none.
      state: False leaves h0, which is 0 then, and h_last out. A learned initial state is in the graph: what h0 is
        where none is given to the runtime.
      labels: names of the outputs of the head, kept as JSON in the graph's metadata under "labels". For probabilities
        export `model.clone(output_activation="softmax")`, or "sigmoid".

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRUModel
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> proto = to_onnx(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> [value.name for value in (*proto.graph.input, *proto.graph.output)]
    ['x', 'lengths', 'h0', 'y', 'h_last']
    """
    return FRAMEWORK.theirs(model, variables, verify, lengths=lengths, state=state, labels=labels)


def from_onnx(source: "onnx.ModelProto", *, prefix: str | None = None, verify: bool = False) -> tuple[nn.Module, dict]:
    """The model and variables of an ONNX model: exactly, or an error. See `grujax.interop`.

    - What `to_onnx` wrote comes back as it was, bit for bit.
    - Of other exporters: GRU nodes in a row, one dense head or none, pooling, a sigmoid or softmax, and between them
      operators that only move values. The graph is run in ONNX Runtime, in a process of its own, and of all models that
      its weights can be that is taken which gives the same at two sizes.

    x may be time-major in the graph; the model is batch-major all the same. Of a row of length 0 h_last is h0 here, and
    what the runtime likes in a graph that others wrote.

    Args:
      prefix: the name of the GRU node that is taken, all else left; `grujax.interop.find` lists them.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRU
    >>> model = GRU(20, num_layers=2, bidirectional=True)
    >>> proto = to_onnx(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> from_onnx(proto)[0] == model
    True
    """
    source = checked(source, nested=prefix is not None)
    if prefix is not None:
        from grujax.interop.find import take

        return take(source, prefix)
    return FRAMEWORK.ours(source, verify)


def _read(proto: "onnx.ModelProto") -> tuple[nn.Module, dict]:
    own = _own(checked(proto))
    return own or read_graph(checked(proto))


def _build(
    model: nn.Module,
    variables: Mapping,
    *,
    lengths: bool = True,
    state: bool = True,
    labels: Sequence[str] | None = None,
) -> "onnx.ModelProto":
    proto = written(model, variables, lengths, state)
    if labels is not None:
        size, found = getattr(model, "output_size", 0), list(map(str, labels))
        require(len(found) == size, "labels", f"{size} names, one an output", found)
        proto.metadata_props.add(key="labels", value=json.dumps(found))
    return proto


def _run(proto: "onnx.ModelProto", model: nn.Module) -> Runner:
    """ONNX Runtime on the CPU on a graph of `to_onnx`, h0 and lengths where it has them."""
    onnxruntime = require_package("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; the log would say it once more
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = (*session.get_inputs(), *session.get_overridable_initializers())  # h0 where the model has learned it
    inputs = {of.name: DTYPES[of.type] for of in given}
    outputs = ["h_last" if of.name == "h" else of.name for of in session.get_outputs()]

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        given: dict[str, Any] = {"x": x, "h0": h0, "lengths": lengths}
        feed = {name: np.ascontiguousarray(given[name], dtype) for name, dtype in inputs.items()}
        return dict(zip(outputs, session.run(None, feed), strict=True))

    return Runner(call, "h0" in inputs, "lengths" in inputs)


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
    h0 = arrays.get("h0")
    h0 = h0[:, 0] if h0 is not None and h0.shape[1:2] == (1,) and cls != "GRUCell" else None
    model, variables = put_together(cells, head, single=cls == "GRUCell", h0=h0, **fields | hints)
    statistics = {name: jnp.asarray(arrays[name]) for name in STATISTICS if name in arrays}
    variables |= {"statistics": statistics} if statistics else {}
    inputs = {of.name for of in proto.graph.input}
    again = written(model, variables, "lengths" in inputs, "h0" in inputs)
    same = again.graph.SerializeToString(deterministic=True) == proto.graph.SerializeToString(deterministic=True)
    return (model, variables) if same else None


FRAMEWORK = Framework(
    "onnx",
    _read,
    _build,
    _run,
    classes="onnx.ModelProto",
    load=load,
    write=lambda path, proto: path.write_bytes(proto.SerializeToString(deterministic=True)),
    endings=(".onnx",),
    keeps_statistics=True,
    proved=lambda proto: _own(proto) is None,  # a stranger's graph is run as it is read
)
