"""Reads `.onnx` files, their tensors as NumPy arrays, and the values in a graph that do not depend on its inputs.

Every size in a file is checked before memory is allocated.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require
from grujax.interop.onnx_graph import LIMIT, Body, Model, Node, Tensor, graphs_in, module, name_of

TYPES = ["BFLOAT16", "BOOL", "DOUBLE", "FLOAT", "FLOAT16", "INT32", "INT64", "INT8", "UINT8"]
LARGEST, IN_ALL = 2**26, 2**28
"""The most values of one computed array, and of all of them together."""
FOLDED = "Add Sub Mul Div Equal Less Where Identity Cast Transpose Reshape Flatten Squeeze Unsqueeze Slice Gather Split"
FOLDED = {*FOLDED.split(), *["Concat", "Expand", "Shape", "Constant", "ConstantOfShape", "DequantizeLinear", "Range"]}
REMEDY = "onnx.checker.check_model says more. Try to export it again."


def load(path: Path) -> Model:
    """Reads a model, with external data from files inside its folder only."""
    onnx, path, total = module(), Path(path), 0
    require(path.is_file(), "path", "an .onnx file", f"no file at {path}")
    size = path.stat().st_size
    require(0 < size <= LIMIT, "path", f"1 to {LIMIT} bytes, a limit of protobuf", f"{size} bytes in {path.name}")
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # the class of protobuf's error depends on its implementation
        raise InputError("path", "an ONNX model", f"{path.name}: {line(error)}") from error
    for where, tensor in tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            total += _count(where, tensor)[1]
            require(total <= LIMIT, where, f"at most {LIMIT} bytes of external data in all", f"{total} bytes")
            _inline(where, tensor, path.parent)
    return checked(proto, nested=True)


def checked(proto: Model, nested: bool = False) -> Model:
    """The model, with shapes inferred if its outputs have none; raises `InputError` if it breaks ONNX's own rules.

    nested: allow graphs inside nodes.
    """
    onnx = module()
    require(isinstance(proto, onnx.ModelProto), "source", "an onnx.ModelProto", type(proto).__name__)
    require(bool(proto.graph.node), "source", "a graph of nodes", "none", "Is it an ONNX file?")
    for where, tensor in tensors(proto.graph):
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        remedy = "Read the file with grujax.interop.onnx.load(path)."
        require(not external, where, "values", "a reference to another file", remedy)
        _check(where, tensor)
    for node in proto.graph.node:
        remedy = "Export it without control flow; grujax.interop.find lists the GRUs in it."
        bodies = [a.name for a in node.attribute if a.HasField("g") or a.graphs]
        require(nested or not bodies, ", ".join(bodies), "nodes without graphs", "a graph inside a node", remedy)
    try:
        if not all(value.type.tensor_type.HasField("shape") for value in proto.graph.output):
            proto = onnx.shape_inference.infer_shapes(proto)
        onnx.checker.check_model(proto)
    except Exception as error:  # the checker's error, or protobuf's on text that is not UTF-8
        raise InputError("source", "a model that ONNX's checker accepts", line(error), REMEDY) from error
    return proto


def tensors(graph: Body) -> Iterator[tuple[str, Tensor]]:
    """(name for errors, tensor) for all tensors of a graph and of the graphs inside its nodes."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                yield node.output[0] if node.output else node.name, tensor
        for inner in graphs_in(node):
            yield from tensors(inner)


def _check(where: str, tensor: Tensor) -> None:
    """Raises `InputError` unless the number of a tensor's values agrees with its dims."""
    count, n_bytes = _count(where, tensor)
    if tensor.HasField("raw_data"):
        found, expected, what = len(tensor.raw_data), n_bytes, "bytes"
    else:
        field = module().helper.tensor_dtype_to_field(tensor.data_type)
        found, expected, what = len(getattr(tensor, field)), count, "values"
    require(found == expected, where, f"{expected} {what}, for dims {list(tensor.dims)}", f"{found}", REMEDY)


def _count(where: str, tensor: Tensor) -> tuple[int, int]:
    """The numbers of values and of bytes that the dims imply."""
    onnx = module()
    require(not tensor.HasField("segment"), where, "a whole tensor", "a segment of one")
    require(all(n >= 0 for n in tensor.dims), where, "dims of 0 or more", list(tensor.dims))
    known = tensor.data_type in [onnx.TensorProto.DataType.Value(name) for name in TYPES]
    require(known, where, f"a dtype of {TYPES}", f"the dtype with number {tensor.data_type}")
    count = math.prod(tensor.dims)
    return count, count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _inline(where: str, tensor: Tensor, folder: Path) -> None:
    """Reads the external data of a tensor, from a file inside `folder`, into the tensor."""
    entries, n_bytes = {entry.key: entry.value for entry in tensor.external_data}, _count(where, tensor)[1]
    location = entries.get("location", "")
    try:
        path = (folder / location).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
        expected, remedy = "external data in a file inside the model's folder", "Keep it beside the .onnx file."
        require(inside, where, expected, repr(location), remedy)
        length = int(entries.get("length", n_bytes))
        require(length == n_bytes, where, f"{n_bytes} bytes, for dims {list(tensor.dims)}", length)
        if "length" not in entries:
            tensor.external_data.add(key="length", value=str(n_bytes))
        module().external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    except InputError:
        raise
    except Exception as error:  # malformed numbers and names raise various errors
        raise InputError(where, "external data in ONNX's form", line(error)) from error
    tensor.data_location = module().TensorProto.DEFAULT
    del tensor.external_data[:]


def line(error: Exception) -> str:
    """The message of an error from another package, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('.')}"


class Constants:
    """The values in a graph that do not depend on its inputs.

    values: arrays by name. kinds: the ONNX dtype of every value that shape inference knows.
    """

    def __init__(self, proto: Model, outer: dict[str, NDArray] | None = None) -> None:
        onnx = module()
        self.values: dict[str, NDArray] = dict(outer or {})
        self.opsets = {opset.domain: opset.version for opset in proto.opset_import}
        for tensor in proto.graph.initializer:
            self.values[tensor.name] = onnx.numpy_helper.to_array(tensor)
        self.kinds: dict[str, int] = {}
        self.total = 0
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=False).graph
        except Exception:  # shapes do not fit; the runtime's error will be clearer
            inferred = proto.graph
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            self.kinds[value.name] = value.type.tensor_type.elem_type
        for node in proto.graph.node:
            self._fold(node)

    def integer(self, key: str) -> bool:
        """Whether a value consists of integers or booleans, as in arithmetic on shapes."""
        onnx = module()
        kinds = {getattr(onnx.TensorProto, name) for name in ("INT32", "INT64", "BOOL")}
        return self.values[key].dtype.kind in "ib" if key in self.values else self.kinds.get(key) in kinds

    def weights(self, node: Node) -> list[NDArray | None]:
        """W, R and B of a GRU node; raises `InputError` unless they are constants."""
        keys = [*node.input[1:4], ""][:3]
        for key in keys:
            fixed, found = not key or key in self.values, "an input of the graph, or a value computed from one"
            require(fixed, key, "constant weights, such as an initializer", found)
        return [self.values.get(key) for key in keys]

    def _fold(self, node: Node) -> None:
        """Computes the outputs of a node whose inputs are all known."""
        if node.op_type not in FOLDED or node.domain not in ("", "ai.onnx"):
            return
        if not all(not key or key in self.values for key in node.input):
            return
        from onnx.reference import ReferenceEvaluator

        helper, name = module().helper, name_of(node)
        feed, outputs = {key: self.values[key] for key in node.input if key}, [key for key in node.output if key]
        try:
            bound(name, _size(node.op_type, [self.values[key] for key in node.input if key]))
            kinds = {key: helper.np_dtype_to_tensor_dtype(a.dtype) for key, a in feed.items()}
            inputs = [helper.make_tensor_value_info(key, kind, None) for key, kind in kinds.items()]
            untyped = [helper.make_tensor_value_info(key, 0, None) for key in outputs]
            graph = helper.make_graph([node], "constants", inputs, untyped)
            results = list(ReferenceEvaluator(graph, opsets=self.opsets).run(None, feed))
        except InputError:
            raise
        except Exception as error:  # shapes do not fit; NumPy has various errors for this
            raise InputError(name, f"a {node.op_type} that fits its inputs", line(error)) from error
        for key, a in zip(outputs, results, strict=False):
            require(isinstance(a, np.ndarray | np.generic), name, "arrays", type(a).__name__)
            self.values[key] = np.asarray(a)
            self.total += self.values[key].size
            require(self.total <= IN_ALL, name, f"at most {IN_ALL} computed values in all", self.total)


def _size(op: str, inputs: list[NDArray]) -> int:
    """An upper bound of the number of values that an operator computes."""
    if op == "ConstantOfShape":
        return math.prod(int(n) for n in inputs[-1])
    if op == "Expand":
        return math.prod(np.broadcast_shapes(inputs[0].shape, tuple(int(n) for n in inputs[-1])))
    if op == "Gather":
        return inputs[0].size * max(inputs[1].size, 1)
    if op == "Range":
        start, limit, delta = (float(n) for n in inputs)
        return max(math.ceil((limit - start) / delta), 0)
    if op in ("Add", "Sub", "Mul", "Div", "Where", "Equal", "Less"):
        return math.prod(np.broadcast_shapes(*(a.shape for a in inputs)))
    return sum(a.size for a in inputs)


def bound(name: str, count: int) -> None:
    """Raises `InputError` if a value has too many elements."""
    require(0 <= count <= LARGEST, name, f"at most {LARGEST} values", count)
