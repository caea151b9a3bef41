"""Reads ONNX graphs from other exporters, and finds single GRU nodes in larger graphs.

The weights of the GRU nodes and of the head are read, but the operators between them are not interpreted. Instead the
graph is run, in a process of its own, on data of several sizes, and compared with all models that its weights may
belong to: time or batch first, with each pooling. The model that agrees is returned. Only operators are allowed for
which agreement on random data implies that the functions are the same.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS
from grujax.errors import InputError, require, require_equal
from grujax.interop.found import Opened, record
from grujax.interop.hypotheses import Seen, read_by_running
from grujax.interop.onnx_graph import (
    PLACE,
    Model,
    Node,
    attributes_of,
    cells_of,
    copied,
    graphs_in,
    module,
    name_of,
    nodes_in,
)
from grujax.interop.onnx_run import feed, fixed, inputs_of, origin, run_apart, time_first
from grujax.interop.onnx_tensors import Constants, bound, checked, load
from grujax.interop.parts import Dense, put_together, take_apart
from grujax.interop.prove import FIND, TWO_SIZES, data, proof_sizes

MOVES = {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Concat"}
MOVES |= {"Expand", "Shape", "Constant", "ConstantOfShape", "Cast"}
REDUCES = {"ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "Softmax", "Sigmoid"}
OPEN, LARGEST_CUT = 2**31 - 1, 1024
"""The bound of a Slice that means "to the end"; and the largest other bound, since the data must be longer."""
ON_INTEGERS = {"Add", "Sub", "Mul", "Div", "Equal", "Less", "Where", "Range"}
"""Arithmetic that is allowed on shapes; on floats, only the Add of the head's bias is."""


def read_graph(proto: Model) -> tuple[nn.Module, dict]:
    """The model and variables that compute the same as a graph in ONNX Runtime.

    Raises:
      InputError: names a node other than GRU nodes in a row, one dense head and operators that move values; or, if
        there is none, says how far each model is from the graph.
    """
    require(not proto.functions, "source", "only operators of ONNX", f"a function {_first(proto.functions)!r}")
    require(not proto.graph.sparse_initializer, "source", "dense weights", "a sparse initializer")
    proto = time_first(proto)
    constants = Constants(proto)
    left = [node for node in proto.graph.node if not any(out in constants.values for out in node.output)]
    grus = [node for node in left if node.op_type == "GRU"]
    others = sorted({node.op_type for node in proto.graph.node})
    remedy = "Export an nn.GRU: exporters unroll an nn.GRUCell into its operations."
    require(bool(grus), "source", "a GRU node", f"none, but {others}", remedy)
    for node in left:
        _check(node, constants)
    fields, cells = _cells(grus, constants)
    head = _head(left, constants)
    try:
        model, variables = put_together(cells, head, **fields, h0=_initial(proto, grus, constants, cells))
    except InputError as error:  # the GRUs are not layers of one model
        raise InputError(error.argument, error.expected, error.found, error.remedy or FIND) from error
    inputs = inputs_of(proto, grus, model.num_states)
    kinds = {"h0": inputs.h0 is not None, "lengths": inputs.lengths is not None}
    sizes = [*proof_sizes(model, variables), *_beyond(left, constants)]
    layouts = [[fixed(inputs, first, size) for size in sizes] for first in (True, False)]
    all_data = [data(model, variables, size, grows=True, **kinds) for layout in layouts for size in layout]
    feeds = [feed(inputs, k < len(sizes), arrays) for k, arrays in enumerate(all_data)]
    seen = list(map(Seen, all_data, run_apart(proto, feeds)))
    name = head[0] if head else _first(proto.graph.output)
    return read_by_running(name, model, variables, [seen[: len(sizes)], seen[len(sizes) :]])[1], variables


def _beyond(left: list[Any], constants: Constants) -> list[tuple[int, int]]:
    """Sizes (B, T) larger than every number at which a graph may cut them or take another branch."""
    bounds = [0]
    for node in left:
        if node.op_type == "Slice" or node.op_type in ON_INTEGERS:
            arrays = [constants.values[key] for key in node.input[node.op_type == "Slice" :] if key in constants.values]
            arrays += [np.array(a) for key, a in attributes_of(node).items() if key in ("starts", "ends")]
            numbers = [abs(int(n)) for a in arrays if a.dtype.kind == "i" for n in a.reshape(-1)]
            bounds += (cuts := [n for n in numbers if n < OPEN])
            most = max(cuts, default=0)
            require(most <= LARGEST_CUT, name_of(node), f"numbers up to {LARGEST_CUT}", most, FIND)
    beyond, (few, short) = max(bounds) + 2, TWO_SIZES[1]
    return [(beyond, short), (few, beyond)] if beyond > 3 else []


def _cells(grus: list[Any], constants: Constants) -> tuple[dict, dict]:
    fields: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for node in grus:
        fields_of_layer, cells_of_layer = cells_of(node, constants.weights(node))
        fields = fields or fields_of_layer
        for key in fields.keys() | fields_of_layer.keys():
            expected, found = f"{key}={fields.get(key, False)}, as the GRU before it", fields_of_layer.get(key)
            require(found == fields.get(key), name_of(node), expected, found, FIND)
        cells |= {f"{name_of(node)}: {key}": cell for key, cell in cells_of_layer.items()}
    return fields, cells


def _initial(proto: Model, grus: list[Any], constants: Constants, cells: Mapping) -> NDArray | None:
    """The initial states (L*D, H) if they are constants, else None. That all rows share them is checked by the run."""
    initial, hidden_size = {}, next(iter(cells.values())).hidden_size
    for node in grus:
        name = origin(proto, node.input[5] if len(node.input) > 5 else "", constants.values)
        a = constants.values.get(name)
        if a is None or a.dtype.kind != "f" or a.shape[-1:] != (hidden_size,) or not a.any():
            return None
        initial[name] = a.reshape(-1, a.shape[-2] if a.ndim > 2 else 1, hidden_size)[:, 0]
    states = np.concatenate([*initial.values()])
    return states if len(states) == len(cells) else None


def _check(node: Node, constants: Constants) -> None:
    """Raises `InputError` for an operator for which agreement on random data does not imply the same function."""
    name, op = name_of(node), node.op_type
    require(node.domain in ("", "ai.onnx"), name, "only operators of ONNX", f"{op} of {node.domain!r}", FIND)
    served = "GRU nodes, one dense head, and operators that move values"
    if op in ("Expand", "ConstantOfShape") and node.input[-1] in constants.values:  # before the runtime allocates it
        bound(name, abs(math.prod(int(n) for n in constants.values[node.input[-1]])))
    if op in ON_INTEGERS and all(constants.integer(key) for key in node.input):
        return
    is_bias = op == "Add" and any(key in constants.values for key in node.input)
    require(op != "Add" or is_bias, name, "only an Add of the head's bias", "another Add", FIND)
    known = op in {"GRU", "Gemm", "MatMul", *MOVES, *REDUCES} or is_bias
    require(known, name, served, f"a node {op}", FIND)
    if op == "Cast":
        kind, to = constants.kinds.get(node.input[0]), attributes_of(node)["to"]
        integers = (module().TensorProto.INT32, module().TensorProto.INT64)
        stays = to == kind or {to, kind} <= set(integers)
        require(stays, name, "a Cast that changes nothing", f"one to dtype {to}", FIND)


def _head(left: list[Any], constants: Constants) -> tuple[str, Dense] | None:
    """The one product with a constant matrix, and the bias that is added to it."""
    products = [node for node in left if node.op_type in ("Gemm", "MatMul")]
    if not products:
        return None
    for node in products[1:]:
        raise InputError(name_of(node), "one dense head after the last GRU", "another one", FIND)
    node, name, attributes = products[0], name_of(products[0]), attributes_of(products[0])
    plain = attributes.get("alpha", 1.0) == 1 and attributes.get("beta", 1.0) == 1 and not attributes.get("transA")
    require(plain, name, "alpha 1, beta 1 and transA 0", attributes)
    kernel = constants.values.get(node.input[1])
    if kernel is None or node.input[0] in constants.values:
        raise InputError(name, "the product of the GRU's values and a constant matrix", "another product", FIND)
    require(kernel.ndim == 2, name, "a matrix", f"shape {kernel.shape}")
    kernel = kernel.T if attributes.get("transB") else kernel
    bias = constants.values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "MatMul":
        adds = [add for add in left if add.op_type == "Add" and node.output[0] in add.input]
        keys = [key for add in adds for key in add.input if key in constants.values]
        bias = constants.values[keys[0]] if len(keys) == 1 else None
    width = kernel.shape[1]
    if bias is not None:
        require(bias.shape in ((width,), (1, width)), name, f"a bias of shape ({width},)", bias.shape)
        bias = bias.reshape(width)
    return name, Dense(kernel, bias)


def _first(protos: Any) -> str:
    return protos[0].name if protos else ""


def in_object(proto: Model) -> Opened:
    """Opens a graph: every GRU node whose weights are constants."""
    copy, grus = copied(proto), []
    checked(copy, nested=True)
    for constants, graph, node in _grus(copy, copy.graph, {}):
        try:
            fields, cells = cells_of(node, constants.weights(node))
            model = put_together(cells, **fields)
        except InputError:  # weights that are not constants, or functions that grujax does not have
            continue
        take, put = partial(_proved, copy, node, constants), partial(_put, copy, graph, node)
        grus.append(record(name_of(node), "ONNX GRU node", *model, take, put))
    return Opened(grus, lambda path: path.write_bytes(copy.SerializeToString()), endings=(".onnx",))


def in_file(path: Path) -> Opened:
    return in_object(load(path))


def _grus(proto: Any, graph: Any, outer: dict[str, NDArray]) -> Any:
    """(visible constants, graph, node) for each GRU node, also in graphs inside nodes."""
    constants = Constants(_model_of(proto, graph), outer)
    for node in graph.node:
        if node.op_type == "GRU":
            yield constants, graph, node
        for inner in graphs_in(node):
            yield from _grus(proto, inner, constants.values)


def _model_of(proto: Any, graph: Any) -> Any:
    """A model of another graph, with the versions of `proto`."""
    return module().helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)


def _proved(proto: Any, node: Any, constants: Constants) -> tuple[nn.Module, dict]:
    """The model of a node, verified against a graph that contains only that node."""
    onnx, alone = module(), copied(node)
    initial = {key: a for key, a in zip("WRB", constants.weights(node), strict=True) if a is not None}
    del alone.input[:], alone.output[:]
    alone.input.extend(["x", *initial])
    alone.output.extend(["Y"])
    kind, n_inputs = onnx.helper.np_dtype_to_tensor_dtype(initial["W"].dtype), initial["W"].shape[-1]
    info, axes = onnx.helper.make_tensor_value_info, ["b", "t"] if attributes_of(node).get("layout") else ["t", "b"]
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in initial.items()]
    inputs, outputs = [info("x", kind, [*axes, n_inputs])], [info("Y", kind, [None] * 4)]
    return read_graph(_model_of(proto, onnx.helper.make_graph([alone], "alone", inputs, outputs, tensors)))


def _put(proto: Any, graph: Any, node: Any, model: Any, variables: Mapping) -> None:
    """Puts the weights into the tensors that the node reads, or into new ones if other nodes read the same tensors."""
    onnx, parts = module(), take_apart(model, variables, PLACE, DIALECTS["onnx"])
    arrays = [np.stack([cell[name] for cell in parts.cells]) for name in parts.cells[0]]
    readers = [key for other in nodes_in(proto.graph) for key in other.input]
    for k, a in enumerate(arrays, start=1):
        key, tensor = node.input[k], onnx.numpy_helper.from_array(np.ascontiguousarray(a))
        initializers = [t for t in (*graph.initializer, *proto.graph.initializer) if t.name == key]
        constants = [n for n in nodes_in(proto.graph) if n.op_type == "Constant" and key in n.output]
        stored = initializers[:1] or [i.t for n in constants for i in n.attribute if i.name == "value"]
        if stored and readers.count(key) == 1:
            old, new = ((t.data_type, *t.dims) for t in (stored[0], tensor))
            require_equal(new, old, key, "These are ONNX's number of its dtype, and its dims.")
            tensor.name, tensor.doc_string = stored[0].name, stored[0].doc_string
            stored[0].CopyFrom(tensor)
        else:
            tensor.name = f"{name_of(node)}/{'WRB'[k - 1]}"
            graph.initializer.append(tensor)
            node.input[k] = tensor.name
