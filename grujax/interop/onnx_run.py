"""ONNX Runtime on a stranger's graph: in a process of its own, which it may crash, with limits on time and memory.

And the inputs of such a graph: which of them is x, h0 and lengths, what sizes it fixes, and how they are fed.
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
"""Of processor time, and bytes of memory beside the graph's own."""
DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
DTYPES |= {"tensor(int32)": "int32", "tensor(int64)": "int64"}
"""What inputs are cast to."""

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
dtypes, said = {DTYPES!r}, []
try:
    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
except Exception as error:
    said = type(error).__name__ + ": " + str(error)
else:
    with np.load("given.npz") as given:
        for k in range(int(sys.argv[2])):
            try:
                feed = {{i.name: given[f"{{k}}/{{i.name}}"].astype(dtypes.get(i.type)) for i in session.get_inputs()}}
                found = session.run(None, feed)
                np.savez(f"{{k}}.npz", *found)
                said.append("")
            except Exception as error:
                said.append(type(error).__name__ + ": " + str(error))
with open("said.json", "w") as file:
    json.dump(said, file)
"""


def run_apart(proto: Model, feeds: Sequence[Mapping[str, NDArray]]) -> list[list[NDArray] | InputError]:
    """All outputs of a graph for each of several feeds, or why there are none.

    Raises:
      InputError: the graph cannot be loaded, ends the process, or needs more time or memory than it gets.
    """
    require_package("onnxruntime", "onnx")
    content = proto.SerializeToString()
    given: dict[str, Any] = {f"{k}/{key}": a for k, feed in enumerate(feeds) for key, a in feed.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(content)
        np.savez(folder / "given.npz", **given)
        command = [sys.executable, "-c", CHILD, str(ROOM + 8 * len(content)), str(len(feeds))]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=20 * SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _refused("more time than it gets") from error
        if not (folder / "said.json").is_file():
            raise _refused(f"the end of its process, {done.returncode}")
        said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
        if isinstance(said, str):
            raise _refused(said)
        outputs: list[list[NDArray] | InputError] = list(map(_refused, said))
        for k in (k for k, one in enumerate(said) if not one):
            with np.load(folder / f"{k}.npz") as found:
                outputs[k] = [found[f"arr_{n}"] for n in range(len(found))]
        return outputs


def _refused(found: str) -> InputError:
    remedy = "grujax.interop.find reads the GRU nodes in it without running the rest."
    return InputError("source", "a graph that ONNX Runtime runs", " ".join(found.split())[:300], remedy)


class Inputs(NamedTuple):
    """The names of a graph's inputs, and the sizes that it fixes, 0 where it leaves them open."""

    x: str
    h0: str | None
    lengths: str | None
    dims: dict[str, list[int]]
    rows_first: bool = False  # h0 is (B, L*D, H)


def inputs_of(proto: Model, grus: list[Any], n_states: int) -> Inputs:
    """x, h0 and lengths, told apart by which of them the first GRU node reads as what."""
    initial = {tensor.name for tensor in proto.graph.initializer}
    given = {of.name: of for of in proto.graph.input if of.name not in initial}
    read = [origin(proto, name) for name in [*grus[0].input, "", "", ""]]
    x, lengths, h0 = (name if name in given else None for name in (read[0], read[4], read[5]))
    h0, lengths = (None if name == x else name for name in (h0, lengths))  # x's shape at most
    if x is None:
        raise InputError(name_of(grus[0]), "x, an input of the graph", repr(grus[0].input[0]), FIND)
    for name in given:
        known = name in (x, h0, lengths)
        require(known, name, "inputs x, h0 and lengths alone", "an input besides", f"Make it a constant. {FIND}")
    dims = {}
    for name, n_axes in ((x, 3), (h0, 3), (lengths, 1)):
        if name:
            tensor = given[name].type.tensor_type
            dims[name] = [d.dim_value for d in tensor.shape.dim] if tensor.HasField("shape") else [0] * n_axes
            require(len(dims[name]) == n_axes, name, f"{n_axes} axes", len(dims[name]), FIND)
            require(min(dims[name]) >= 0, name, "sizes, not negative", dims[name])
            bound(name, math.prod(n or 64 for n in dims[name]))  # 64: more than an axis of free size gets in the proof
    first, second, _ = dims.get(h0 or "", (0, 0, 0))
    return Inputs(x, h0, lengths, dims, second == n_states != first)


def origin(proto: Model, name: str, known: Container[str] = ()) -> str:
    """The value that a value is made of, by the first inputs of the nodes that make it; the first known one."""
    producers = {out: node for node in proto.graph.node for out in node.output if out}
    for _ in producers:
        if name in known or name not in producers or not producers[name].input:
            break
        name = producers[name].input[0]
    return name


def feed(inputs: Inputs, batch_first: bool, given: tuple) -> dict[str, NDArray]:
    x, h0, lengths = given
    found = {inputs.x: x if batch_first else x.swapaxes(0, 1), inputs.h0: h0, inputs.lengths: lengths}
    if h0 is not None and inputs.rows_first:
        found[inputs.h0] = h0.swapaxes(0, 1)
    return {name: np.ascontiguousarray(a) for name, a in found.items() if name is not None}


def fixed(inputs: Inputs, batch_first: bool, size: tuple[int, int]) -> tuple[int, int]:
    """B and T, those that the graph fixes in the place of the ones that are asked for."""
    first, second, _ = inputs.dims[inputs.x]
    b, t = (first, second) if batch_first else (second, first)
    rows = [b, *(inputs.dims[name][k] for name, k in ((inputs.h0, 1 - inputs.rows_first), (inputs.lengths, 0)) if name)]
    return next((n for n in rows if n), size[0]), t or size[1]


def time_first(proto: Model) -> Model:
    """The same graph with `layout=0` in all GRU nodes, Transposes around those that had 1: the runtime has no other."""
    if not any(attributes_of(node).get("layout") for node in nodes_in(proto.graph) if node.op_type == "GRU"):
        return proto
    made, nodes, turn = copied(proto), [], module().helper.make_node
    for node in map(copied, made.graph.node):
        nodes.append(node)
        if node.op_type != "GRU" or not attributes_of(node).get("layout"):
            continue
        name, layout = name_of(node), attributes_of(node)["layout"]
        require(layout == 1, name, "layout 0 or 1", layout)
        del node.attribute[[a.name for a in node.attribute].index("layout")]
        for k in (k for k in (0, 5) if k < len(node.input) and node.input[k]):
            nodes.insert(-1, turn("Transpose", [node.input[k]], [f"{name}/input_{k}"], perm=[1, 0, 2]))
            node.input[k] = f"{name}/input_{k}"
        for k, perm in zip(range(len(node.output)), ([2, 0, 1, 3], [1, 0, 2]), strict=False):
            if node.output[k]:
                nodes.append(turn("Transpose", [f"{name}/output_{k}"], [node.output[k]], perm=perm))
                node.output[k] = f"{name}/output_{k}"
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made
