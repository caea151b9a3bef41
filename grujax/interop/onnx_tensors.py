"""An `.onnx` file and its tensors as NumPy arrays. Every size that a file claims is checked before memory is taken."""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from numpy.typing import NDArray

from grujax.errors import InputError, require
from grujax.interop.onnx_graph import LIMIT, Body, Model, Tensor, graphs_in, module

TYPES = ["BFLOAT16", "BOOL", "DOUBLE", "FLOAT", "FLOAT16", "INT32", "INT64", "INT8", "UINT8"]
REMEDY = "onnx.checker.check_model says more; the exporter that wrote it may be asked again."


def load(path: Path) -> Model:
    """The model in a file, its external data read into it from beside the file and from nowhere else.

    Raises:
      InputError: no whole ONNX model; external data that leaves the folder, or that is not as long as its tensor.
    """
    onnx, path = module(), Path(path)
    require(path.is_file(), "path", "an .onnx file", f"no file at {path}")
    size = path.stat().st_size
    require(0 < size <= LIMIT, "path", f"1 to {LIMIT} bytes, as protobuf has them", f"{size} bytes in {path.name}")
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's error is another class in each of its implementations
        raise InputError("path", "an ONNX model", f"{path.name}: {line(error)}") from error
    total = 0
    for where, tensor in tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            total += _count(where, tensor)[1]
            require(total <= LIMIT, where, f"at most {LIMIT} bytes of external data in all", f"{total} bytes")
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
    try:
        if not all(of.type.tensor_type.HasField("shape") for of in proto.graph.output):
            proto = onnx.shape_inference.infer_shapes(proto)
        onnx.checker.check_model(proto)
    except Exception as error:  # its own error, and what protobuf raises on text that is not UTF-8
        raise InputError("source", "a model that ONNX's checker accepts", line(error), REMEDY) from error
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
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, n_bytes = entries.get("location", ""), _count(where, tensor)[1]
    relative = PurePosixPath(location)
    inside = location and "\\" not in location and "\0" not in location and ":" not in location
    inside = inside and not relative.is_absolute() and ".." not in relative.parts
    remedy = "Keep external data beside the .onnx file."
    require(bool(inside), where, "external data inside the model's folder", repr(location), remedy)
    path = folder / location
    real = path.resolve() == (folder.resolve() / location)
    require(real, where, "external data inside the model's folder", f"a symbolic link at {location!r}", remedy)
    require(path.is_file(), where, f"the file {location!r} beside the model", "no such file", remedy)
    offset, length = (_number(where, key, entries.get(key)) for key in ("offset", "length"))
    offset = offset or 0
    length = n_bytes if length is None else length
    require(length == n_bytes, where, f"{n_bytes} bytes, for dims {list(tensor.dims)}", f"length {length}")
    size = path.stat().st_size
    require(offset + length <= size, where, f"bytes {offset} to {offset + length} of {location!r}", f"{size} bytes")
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.data_location = module().TensorProto.DEFAULT
    del tensor.external_data[:]


def _number(where: str, key: str, value: str | None) -> int | None:
    if value is None:
        return None
    require(value.isascii() and value.isdigit() and len(value) < 19, where, f"{key}, a number", repr(value[:40]))
    return int(value)


def line(error: Exception) -> str:
    """What an error of another package says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('.')}"
