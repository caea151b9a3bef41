"""Runs a graph from another exporter in ONNX Runtime, in a process of its own with limits on time and memory.

It also finds out which inputs of such a graph are x, h0 and lengths, and which sizes the graph fixes.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require, require_package
from grujax.interop.onnx_graph import Model, attributes_of, copied, module, name_of, nodes_in
from grujax.interop.onnx_tensors import bound
from grujax.interop.prove import FIND

SECONDS, ROOM = 120, 4 << 30
"""Limits: processor time, and bytes of memory in addition to 8 times the size of the graph."""
DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
DTYPES |= {"tensor(int32)": "int32", "tensor(int64)": "int64"}
"""The NumPy dtype for each type of ONNX Runtime."""

CHILD = f"""
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
except (ImportError, ValueError, OSError):
    pass
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads, options.inter_op_num_threads = 4, 1, 1
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
dtypes, errors = {DTYPES!r}, []
try:
    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
except Exception as error:
    errors = type(error).__name__ + ": " + str(error)
else:
    with np.load("feeds.npz") as feeds:
        for k in range(int(sys.argv[2])):
            try:
                feed = {{i.name: feeds[f"{{k}}/{{i.name}}"].astype(dtypes.get(i.type)) for i in session.get_inputs()}}
                np.savez(f"{{k}}.npz", *session.run(None, feed))
                errors.append("")
            except Exception as error:
                errors.append(type(error).__name__ + ": " + str(error))
with open("errors.json", "w") as file:
    json.dump(errors, file)
"""


def run_apart(proto: Model, feeds: Sequence[Mapping[str, NDArray]]) -> list[list[NDArray] | InputError]:
    """All outputs of a graph for each feed, or the error of that run.

    Raises:
      InputError: the graph cannot be loaded, ends the process, or exceeds the limits on time or memory.
    """
    require_package("onnxruntime", "onnx")
    content = proto.SerializeToString()
    arrays: dict[str, Any] = {f"{k}/{key}": a for k, feed in enumerate(feeds) for key, a in feed.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(content)
        np.savez(folder / "feeds.npz", **arrays)
        command = [sys.executable, "-c", CHILD, str(ROOM + 8 * len(content)), str(len(feeds))]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=20 * SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _refused(f"a run of more than {20 * SECONDS} seconds") from error
        if not (folder / "errors.json").is_file():
            raise _refused(f"the end of its process with code {done.returncode}")
        errors = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
        if isinstance(errors, str):
            raise _refused(errors)
        outputs: list[list[NDArray] | InputError] = list(map(_refused, errors))
        for k in (k for k, error in enumerate(errors) if not error):
            with np.load(folder / f"{k}.npz") as file:
                outputs[k] = [file[f"arr_{n}"] for n in range(len(file))]
        return outputs


def _refused(found: str) -> InputError:
    remedy = "grujax.interop.find reads the GRU nodes in it without running the rest."
    return InputError("source", "a graph that ONNX Runtime runs", " ".join(found.split())[:300], remedy)


class Inputs(NamedTuple):
    """The names of a graph's inputs, and their sizes, 0 for a symbolic one."""

    x: str
    h0: str | None
    lengths: str | None
    dims: dict[str, list[int]]
    rows_first: bool = False  # h0 is (B, L*D, H)


def inputs_of(proto: Model, grus: list[Any], n_states: int) -> Inputs:
    """Identifies x, h0 and lengths by the inputs of the first GRU node that they lead to."""
    initial = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name: value for value in proto.graph.input if value.name not in initial}
    origins = [origin(proto, name) for name in [*grus[0].input, "", "", ""]]
    x, lengths, h0 = (name if name in inputs else None for name in (origins[0], origins[4], origins[5]))
    h0, lengths = (None if name == x else name for name in (h0, lengths))  # computed from x, such as from its shape
    if x is None:
        raise InputError(name_of(grus[0]), "x, an input of the graph", repr(grus[0].input[0]), FIND)
    for name in inputs:
        known = name in (x, h0, lengths)
        require(known, name, "only the inputs x, h0 and lengths", "another input", f"Make it a constant. {FIND}")
    dims = {}
    for name, n_axes in ((x, 3), (h0, 3), (lengths, 1)):
        if name:
            tensor = inputs[name].type.tensor_type
            dims[name] = [d.dim_value for d in tensor.shape.dim] if tensor.HasField("shape") else [0] * n_axes
            require(len(dims[name]) == n_axes, name, f"{n_axes} axes", len(dims[name]), FIND)
            require(min(dims[name]) >= 0, name, "sizes that are not negative", dims[name])
            bound(name, math.prod(n or 64 for n in dims[name]))  # a symbolic axis counts as 64
    first, second, _ = dims.get(h0 or "", (0, 0, 0))
    return Inputs(x, h0, lengths, dims, second == n_states != first)


def origin(proto: Model, name: str, known: Container[str] = ()) -> str:
    """Follows a value back through the first input of each producer, to a known value or one that no node produces."""
    producers = {out: node for node in proto.graph.node for out in node.output if out}
    for _ in producers:
        if name in known or name not in producers or not producers[name].input:
            break
        name = producers[name].input[0]
    return name


def feed(inputs: Inputs, batch_first: bool, arrays: tuple) -> dict[str, NDArray]:
    """The arrays (x, h0, lengths) by the names of a graph's inputs, in its layout."""
    x, h0, lengths = arrays
    result = {inputs.x: x if batch_first else x.swapaxes(0, 1), inputs.h0: h0, inputs.lengths: lengths}
    if h0 is not None and inputs.rows_first:
        result[inputs.h0] = h0.swapaxes(0, 1)
    return {name: np.ascontiguousarray(a) for name, a in result.items() if name is not None}


def fixed(inputs: Inputs, batch_first: bool, size: tuple[int, int]) -> tuple[int, int]:
    """(B, T): the sizes that the graph fixes, and `size` where they are symbolic."""
    first, second, _ = inputs.dims[inputs.x]
    b, t = (first, second) if batch_first else (second, first)
    rows = [b, *(inputs.dims[name][k] for name, k in ((inputs.h0, 1 - inputs.rows_first), (inputs.lengths, 0)) if name)]
    return next((n for n in rows if n), size[0]), t or size[1]


def time_first(proto: Model) -> Model:
    """The same graph with `layout=0` in all GRU nodes, as the runtime requires; Transposes replace `layout=1`."""
    if not any(attributes_of(node).get("layout") for node in nodes_in(proto.graph) if node.op_type == "GRU"):
        return proto
    copy, nodes, make_node = copied(proto), [], module().helper.make_node
    for node in map(copied, copy.graph.node):
        nodes.append(node)
        if node.op_type != "GRU" or not attributes_of(node).get("layout"):
            continue
        name, layout = name_of(node), attributes_of(node)["layout"]
        require(layout == 1, name, "layout 0 or 1", layout)
        del node.attribute[[a.name for a in node.attribute].index("layout")]
        for k in (k for k in (0, 5) if k < len(node.input) and node.input[k]):
            nodes.insert(-1, make_node("Transpose", [node.input[k]], [f"{name}/input_{k}"], perm=[1, 0, 2]))
            node.input[k] = f"{name}/input_{k}"
        for k, perm in zip(range(len(node.output)), ([2, 0, 1, 3], [1, 0, 2]), strict=False):
            if node.output[k]:
                nodes.append(make_node("Transpose", [f"{name}/output_{k}"], [node.output[k]], perm=perm))
                node.output[k] = f"{name}/output_{k}"
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
