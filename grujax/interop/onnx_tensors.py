"""An `.onnx` file, its tensors as NumPy arrays, and the constants that it makes of them before any input is known.

Every size that a file claims is checked before memory is taken.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.errors import require
from grujax.interop.framework import told
from grujax.interop.onnx_graph import Body, Model, Node, Tensor, graphs_in, module, name_of

LIMIT = 2**31 - 1
"""The bytes of one file: protobuf has no longer ones."""
TYPES = ["BFLOAT16", "BOOL", "DOUBLE", "FLOAT", "FLOAT16", "INT32", "INT64", "INT8", "UINT8"]
LARGEST, IN_ALL = 2**26, 2**28
"""The most values of any array that is computed, and of all of them together."""
BROADCAST = {"Add", "Sub", "Mul", "Div", "Equal", "Less", "Where"}
FOLDED = "Identity Cast Transpose Reshape Flatten Squeeze Unsqueeze Slice Gather Split Concat Expand Shape Constant"
FOLDED = {*FOLDED.split(), *BROADCAST, "ConstantOfShape", "DequantizeLinear", "Range"}
REMEDY = "onnx.checker.check_model says more; the exporter that wrote it may be asked again."


def load(path: Path) -> Model:
    """The model in a file, its external data read into it from beside the file and from nowhere else."""
    onnx, path, total = module(), Path(path), 0
    require(path.is_file(), "path", "an .onnx file", f"no file at {path}")
    size = path.stat().st_size
    require(0 < size <= LIMIT, "path", f"1 to {LIMIT} bytes, as protobuf has them", f"{size} bytes in {path.name}")
    with told("path", "an ONNX model", where=f"{path.name}: "):
        proto = onnx.load_model_from_string(path.read_bytes())
    for where, tensor in tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            total += _count(where, tensor)[1]
            require(total <= LIMIT, where, f"at most {LIMIT} bytes of external data in all", f"{total} bytes")
            with told(where, "external data as ONNX has it"):
                _inline(where, tensor, path.parent)
    return checked(proto, nested=True)


def checked(proto: Model, nested: bool = False) -> Model:
    """The model, shapes of its outputs inferred where it has none; `InputError` unless it is one by ONNX's own rules.

    nested: graphs inside nodes may be.
    """
    onnx = module()
    require(isinstance(proto, onnx.ModelProto), "source", "an onnx.ModelProto", type(proto).__name__)
    require(bool(proto.graph.node), "source", "a graph of nodes", "none", "Is it an ONNX file?")
    for where, tensor in tensors(proto.graph):
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        require(not external, where, "values", "a name of another file", "Read it with grujax.interop.onnx.load(path).")
        _check(where, tensor)
    for node in proto.graph.node:
        remedy = "Export it without control flow; grujax.interop.find lists the GRUs in it."
        bodies = [a.name for a in node.attribute if a.HasField("g") or a.graphs]
        require(nested or not bodies, ", ".join(bodies), "nodes alone", "a graph inside a node", remedy)
    with told("source", "a model that ONNX's checker accepts", REMEDY):
        if not all(of.type.tensor_type.HasField("shape") for of in proto.graph.output):
            proto = onnx.shape_inference.infer_shapes(proto)
        onnx.checker.check_model(proto)
    return proto


def tensors(graph: Body) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a graph, and of graphs inside its nodes, each with the name that errors call it by."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                yield node.output[0] if node.output else node.name, tensor
        for inner in graphs_in(node):
            yield from tensors(inner)


def array(where: str, tensor: Tensor) -> NDArray:
    """The values of a tensor; `InputError` where they are not as many as its dims say."""
    _check(where, tensor)
    return module().numpy_helper.to_array(tensor)


def _check(where: str, tensor: Tensor) -> None:
    count, n_bytes = _count(where, tensor)
    if tensor.HasField("raw_data"):
        found, expected, what = len(tensor.raw_data), n_bytes, "bytes"
    else:
        field = module().helper.tensor_dtype_to_field(tensor.data_type)
        found, expected, what = len(getattr(tensor, field)), count, "values"
    require(found == expected, where, f"{expected} {what}, for dims {list(tensor.dims)}", f"{found}", REMEDY)


def _count(where: str, tensor: Tensor) -> tuple[int, int]:
    """How many values and how many bytes the dims ask for."""
    onnx = module()
    require(not tensor.HasField("segment"), where, "a whole tensor", "a segment of one")
    require(all(n >= 0 for n in tensor.dims), where, "dims of 0 or more", list(tensor.dims))
    known = tensor.data_type in [onnx.TensorProto.DataType.Value(name) for name in TYPES]
    require(known, where, f"a dtype of {TYPES}", f"number {tensor.data_type}")
    count = math.prod(tensor.dims)
    return count, count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _inline(where: str, tensor: Tensor, folder: Path) -> None:
    """Puts the bytes that a tensor has in another file of the folder into the tensor."""
    entries, n_bytes = {entry.key: entry.value for entry in tensor.external_data}, _count(where, tensor)[1]
    location = entries.get("location", "")
    path = (folder / location).resolve()
    inside = path.is_relative_to(folder.resolve()) and path.is_file()
    expected, remedy = "external data in a file inside the model's folder", "Keep it beside the .onnx file."
    require(inside, where, expected, repr(location), remedy)
    length = int(entries.get("length", n_bytes))
    require(length == n_bytes, where, f"{n_bytes} bytes, for dims {list(tensor.dims)}", length)
    if "length" not in entries:
        tensor.external_data.add(key="length", value=str(n_bytes))
    module().external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    tensor.data_location = module().TensorProto.DEFAULT
    del tensor.external_data[:]


def constants(graph: Body, opsets: Any, outer: Mapping[str, NDArray] | None = None) -> dict[str, NDArray]:
    """The constants of a graph by their names, computed ones too. outer: those of the graph that it stands in."""
    values, total = dict(outer or {}) | {tensor.name: array(tensor.name, tensor) for tensor in graph.initializer}, 0
    for node in graph.node:
        known = all(not key or key in values for key in node.input)
        if known and node.op_type in FOLDED and node.domain in ("", "ai.onnx"):
            found = _folded(node, values, opsets)
            total += sum(a.size for a in found.values())
            require(total <= IN_ALL, name_of(node), f"at most {IN_ALL} values in all", total)
            values |= found
    return values


def _folded(node: Node, values: Mapping[str, NDArray], opsets: Any) -> dict[str, NDArray]:
    """What a node makes of constants."""
    from onnx.reference import ReferenceEvaluator

    name, given = name_of(node), {key: values[key] for key in node.input if key}
    outputs = [key for key in node.output if key]
    with told(name, f"a {node.op_type} that fits its inputs"):
        bound(name, _size(node.op_type, [values[key] for key in node.input if key]))
        alone = module().helper.make_function("grujax", "constants", [*given], outputs, [node], opsets)
        found: Any = ReferenceEvaluator(alone).run(None, given, attributes={})
    for a in found:
        require(isinstance(a, np.ndarray | np.generic), name, "arrays", type(a).__name__)
    return dict(zip(outputs, map(np.asarray, found), strict=False))


def weights_of(node: Node, values: Mapping[str, NDArray]) -> list[NDArray | None]:
    """W, R and B of a GRU node; `InputError` where they are no constants."""
    keys = [*node.input[1:4], ""][:3]
    for key in filter(None, keys):
        found = "a value computed from the inputs, or an input of the graph"
        require(key in values, key, "weights, an initializer or a constant", found)
    return [values.get(key) for key in keys]


def kinds_of(proto: Model, values: Mapping[str, NDArray]) -> dict[str, int]:
    """The ONNX dtype of every constant, and of every value that shape inference knows."""
    onnx = module()
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=False).graph
    except Exception:  # shapes that do not fit: the runtime will say which
        graph = proto.graph
    kinds = {of.name: of.type.tensor_type.elem_type for of in (*graph.input, *graph.value_info, *graph.output)}
    return kinds | {key: onnx.helper.np_dtype_to_tensor_dtype(a.dtype) for key, a in values.items()}


def _size(op: str, given: list[NDArray]) -> int:
    """How many values an operator makes, as far as it makes more than it is given."""
    if op == "ConstantOfShape":
        return math.prod(int(n) for n in given[-1])
    if op == "Expand":
        return math.prod(np.broadcast_shapes(given[0].shape, tuple(int(n) for n in given[-1])))
    if op == "Gather":
        return given[0].size * max(given[1].size, 1)
    if op == "Range":
        start, limit, delta = (float(n) for n in given)
        return max(math.ceil((limit - start) / delta), 0)
    return math.prod(np.broadcast_shapes(*(a.shape for a in given))) if op in BROADCAST else sum(a.size for a in given)


def bound(name: str, count: int) -> None:
    require(0 <= count <= LARGEST, name, f"at most {LARGEST} values", count)
