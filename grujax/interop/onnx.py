"""Models to ONNX and back: one `GRU` node per layer, for both directions, and the dense head. Nothing is lost.

The graphs are batch-major, like grujax. Graphs of GRU nodes from other exporters are read too.
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
from grujax.interop.onnx_graph import HINTS, METADATA, cells_of, module
from grujax.interop.onnx_read import read_graph
from grujax.interop.onnx_run import DTYPES
from grujax.interop.onnx_tensors import checked, load
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
    """Returns the ONNX model that computes the same as `model`; equal models and variables give equal bytes.

    - `GRU`: x (B, T, I), h0 (L*D, B, H), lengths (B,) int32 -> output (B, T, D*H), h_last (L*D, B, H);
    - `GRUModel`: the same -> y (B, output_size), or (B, T, output_size) with `pooling=None`, and h_last. The graph
      contains its statistics: it takes raw inputs and returns raw targets;
    - `GRUCell`: x (B, I), h0 (B, H) -> h (B, H).

    B and T are symbolic. Steps beyond `lengths` do not affect any output, even if they contain NaN, and outputs there
    are 0. ONNX has no resets, and ONNX Runtime (1.32) cannot run B = 0. See `grujax.interop` for the rest.

    Args:
      model: float32 or float16, the dtypes of GRUs in ONNX Runtime.
      lengths: False leaves the input lengths out, and all steps are valid. A cell has none.
      state: False leaves out h0, which is then 0, and h_last. A learned initial state is stored in the graph and used
        if the runtime gets no h0.
      labels: names of the outputs of the head, stored as JSON in the graph's metadata under "labels". To get
        probabilities, export `model.clone(output_activation="softmax")`, or "sigmoid".

    Raises:
      InputError: ONNX cannot represent something that the outputs depend on.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRUModel
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> proto = to_onnx(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> [value.name for value in (*proto.graph.input, *proto.graph.output)]
    ['x', 'lengths', 'h0', 'y', 'h_last']
    """
    return FRAMEWORK.exported(model, variables, verify, lengths=lengths, state=state, labels=labels)


def from_onnx(source: "onnx.ModelProto", *, prefix: str | None = None, verify: bool = False) -> tuple[nn.Module, dict]:
    """Returns the model and variables of an ONNX model; a graph that is not exactly such a model is refused.

    - A graph of `to_onnx` gives the same model and variables, bit for bit.
    - A graph from another exporter may contain GRU nodes in a row, a dense head, pooling, a sigmoid or softmax, and
      operators between them that only move values. It is run in ONNX Runtime, in a process of its own, on data of
      several sizes, and compared with all models that its weights may belong to; the model that agrees is returned.

    x may be time-major in the graph; the model is batch-major in any case. For a row of length 0 the model's h_last is
    h0, while that of a graph from another exporter depends on the runtime.

    Args:
      prefix: the name of the one GRU node to take; the rest is ignored. `grujax.interop.find` lists the names.

    Raises:
      InputError: the graph contains something else; the error names the node. See `grujax.interop` for `verify`.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRU
    >>> model = GRU(20, num_layers=2, bidirectional=True)
    >>> proto = to_onnx(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> from_onnx(proto)[0] == model
    True
    """
    if prefix is not None:
        from grujax.interop.find import take

        return take(checked(source, nested=True), prefix)
    return FRAMEWORK.imported(source, verify)


def _read(proto: "onnx.ModelProto") -> tuple[nn.Module, dict]:
    proto = checked(proto)
    return _own(proto) or read_graph(proto)


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
        size, names = getattr(model, "output_size", 0), list(map(str, labels))
        require(len(names) == size, "labels", f"{size} names, one per output", names)
        proto.metadata_props.add(key="labels", value=json.dumps(names))
    return proto


def _run(proto: "onnx.ModelProto", model: nn.Module) -> Runner:
    """Runs a graph of `to_onnx` in ONNX Runtime on the CPU."""
    onnxruntime = require_package("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; the log would only repeat them
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = (*session.get_inputs(), *session.get_overridable_initializers())  # the latter: a learned h0
    inputs = {value.name: DTYPES[value.type] for value in values}
    outputs = ["h_last" if value.name == "h" else value.name for value in session.get_outputs()]

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        arrays: dict[str, Any] = {"x": x, "h0": h0, "lengths": lengths}
        feed = {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in inputs.items()}
        return dict(zip(outputs, session.run(None, feed), strict=True))

    return Runner(call, "h0" in inputs, "lengths" in inputs)


def _own(proto: "onnx.ModelProto") -> tuple[nn.Module, dict] | None:
    """The model and variables of a graph that `to_onnx` wrote, and would write again from these; None for any other."""
    try:
        hints = json.loads(next(prop.value for prop in proto.metadata_props if prop.key == METADATA))
        cls, update = hints.pop("class"), hints["update"]
        known = all(value in HINTS[key] for key, value in hints.items() if key in HINTS)
    except (StopIteration, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not known or not hints.keys() <= {*HINTS, "clip"}:
        return None
    arrays = {tensor.name: module().numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
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
    inputs = {value.name for value in proto.graph.input}
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
    proved=lambda proto: _own(proto) is None,  # reading a graph from another exporter has already run it
)
