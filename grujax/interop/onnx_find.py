"""The GRU nodes of an ONNX graph, in bodies of `If` and `Loop` too, each to be taken out and put back alone."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS
from grujax.errors import InputError, require
from grujax.interop.found import Opened, record
from grujax.interop.onnx_graph import (
    PLACE,
    Model,
    attributes_of,
    cells_of,
    copied,
    graphs_in,
    module,
    name_of,
    nodes_in,
)
from grujax.interop.onnx_tensors import Constants, checked, load
from grujax.interop.parts import put_together, take_apart


def in_object(proto: Model) -> Opened:
    """Every GRU node whose weights are constants."""
    made, grus, counts = copied(proto), [], Counter()
    checked(made, nested=True)
    for constants, graph, node in _grus(made, made.graph, {}):
        name = name_of(node)
        counts[name] += 1
        number = f"#{counts[name] - 1}" if counts[name] > 1 else ""
        try:
            fields, cells = cells_of(node, constants.weights(node))
            given = put_together(cells, **fields)
        except InputError:  # weights from elsewhere, functions that grujax has not
            continue
        take, put = partial(_proved, made, node, constants), partial(_put, made, graph, node)
        grus.append(record(f"{name}{number}", "ONNX GRU node", *given, take, put))
    return Opened(grus, lambda path: path.write_bytes(made.SerializeToString()))


def in_file(path: Path) -> Opened:
    return in_object(load(path))


def _grus(proto: Any, graph: Any, outer: dict[str, NDArray]) -> Any:
    """The GRU nodes with the constants that they see and the graph that they stand in."""
    alone = module().helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
    constants = Constants(alone, outer)
    for node in graph.node:
        if node.op_type == "GRU":
            yield constants, graph, node
        for inner in graphs_in(node):
            yield from _grus(proto, inner, constants.values)


def _proved(proto: Any, node: Any, constants: Constants) -> tuple[nn.Module, dict]:
    """The model of a node, run beside a graph of that node alone."""
    from grujax.interop.onnx import from_onnx

    onnx, alone = module(), copied(node)
    initial = {key: a for key, a in zip("WRB", constants.weights(node), strict=True) if a is not None}
    del alone.input[:], alone.output[:]
    alone.input.extend(["x", *initial])
    alone.output.extend(["Y"])
    kind, n_inputs = onnx.helper.np_dtype_to_tensor_dtype(initial["W"].dtype), initial["W"].shape[-1]
    info, axes = onnx.helper.make_tensor_value_info, ["b", "t"] if attributes_of(node).get("layout") else ["t", "b"]
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in initial.items()]
    given, found = [info("x", kind, [*axes, n_inputs])], [info("Y", kind, [None] * 4)]
    graph = onnx.helper.make_graph([alone], "alone", given, found, tensors)
    return from_onnx(onnx.helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version))


def _put(proto: Any, graph: Any, node: Any, model: Any, variables: Mapping) -> None:
    """The weights into the tensors that the node reads; into tensors of their own where others read those too."""
    onnx, parts = module(), take_apart(model, variables, PLACE, DIALECTS["onnx"])
    arrays = [np.stack([cell[name] for cell in parts.cells]) for name in parts.cells[0]]
    readers = [key for of in nodes_in(proto.graph) for key in of.input]
    for k, a in enumerate(arrays, start=1):
        key, tensor = node.input[k], onnx.numpy_helper.from_array(np.ascontiguousarray(a))
        own = [of for of in (*graph.initializer, *proto.graph.initializer) if of.name == key]
        constants = [of for of in nodes_in(proto.graph) if of.op_type == "Constant" and key in of.output]
        found = own[:1] or [i.t for of in constants for i in of.attribute if i.name == "value"]
        if found and readers.count(key) == 1:
            same = list(found[0].dims) == list(tensor.dims) and found[0].data_type == tensor.data_type
            require(same, key, f"dims {list(found[0].dims)}", list(tensor.dims))
            tensor.name, tensor.doc_string = found[0].name, found[0].doc_string
            found[0].CopyFrom(tensor)
        else:
            tensor.name = f"{name_of(node)}/{'WRB'[k - 1]}"
            graph.initializer.append(tensor)
            node.input[k] = tensor.name
