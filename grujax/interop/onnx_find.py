"""The GRU nodes of an ONNX graph, in bodies of `If` and `Loop` too, each to be taken out and put back alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS
from grujax.errors import InputError, require
from grujax.interop.found import Opened, record
from grujax.interop.onnx_fold import Constants
from grujax.interop.onnx_graph import PLACE, Model, attributes_of, cells_of, graphs_in, module, name_of, nodes_in
from grujax.interop.onnx_tensors import checked, load
from grujax.interop.parts import put_together, take_apart


def in_object(proto: Model) -> Opened:
    """Every GRU node whose weights are constants."""
    made = module().ModelProto.FromString(proto.SerializeToString())
    checked(made, nested=True)
    grus, names = [], set()
    for constants, graph, node in _grus(made, made.graph, {}):
        name = name_of(node)
        number = sum(other == name or other.startswith(f"{name}#") for other in names)
        names.add(name := f"{name}#{number}" if number else name)
        try:
            model, variables = _read(node, constants)
        except InputError:  # weights from elsewhere, functions that grujax has not
            continue

        def take(node: Any = node, constants: Any = constants) -> tuple[nn.Module, dict]:
            return _proved(made, node, constants)

        def put(model: nn.Module, variables: Mapping, node: Any = node, graph: Any = graph) -> None:
            _put(made, graph, node, model, variables)

        grus.append(record(name, "ONNX GRU node", model, variables, take, put))

    def store(path: Path) -> None:
        path.write_bytes(made.SerializeToString())

    return Opened(grus, store)


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


def _read(node: Any, constants: Constants) -> tuple[Any, dict]:
    fields, cells = cells_of(node, constants.weights(node))
    return put_together(cells, **fields)


def _proved(proto: Any, node: Any, constants: Constants) -> tuple[nn.Module, dict]:
    """The model of a node, run beside a graph of that node alone."""
    from grujax.interop.onnx import from_onnx

    onnx, copy = module(), module().NodeProto.FromString(node.SerializeToString())
    w, r, b = constants.weights(node)
    assert w is not None and r is not None
    first = bool(attributes_of(node).get("layout"))
    del copy.input[:]
    copy.input.extend(["x", "W", "R", *(["B"] if b is not None else [])])
    del copy.output[:]
    copy.output.extend(["Y"])
    kind = onnx.helper.np_dtype_to_tensor_dtype(w.dtype)
    info, axes = onnx.helper.make_tensor_value_info, ["b", "t"] if first else ["t", "b"]
    initial = {"W": w, "R": r} | ({} if b is None else {"B": b})
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in initial.items()]
    given, found = [info("x", kind, [*axes, w.shape[-1]])], [info("Y", kind, [None] * 4)]
    graph = onnx.helper.make_graph([copy], "alone", given, found, tensors)
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
