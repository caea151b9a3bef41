"""ONNX Runtime on a stranger's graph: in a process of its own, which it may crash, with limits on time and memory.

And the inputs of such a graph: which of them is x, h0 and lengths, what sizes it fixes, and how they are fed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require, require_package
from grujax.interop.framework import told
from grujax.interop.onnx_graph import Model, copied, module, name_of
from grujax.interop.prove import FIND

SECONDS, ROOM = 120, 4 << 30
"""Of processor time, and bytes of memory beside the graph's own."""
DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
DTYPES |= {"tensor(int32)": "int32", "tensor(int64)": "int64"}
"""What inputs are cast to."""

CHILD = f"""
import sys
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
dtypes, found, k = {DTYPES!r}, {{}}, "all"
try:
    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    with np.load("given.npz") as given:
        for k in range(int(sys.argv[2])):
            try:
                feed = {{i.name: given[f"{{k}}/{{i.name}}"].astype(dtypes.get(i.type)) for i in session.get_inputs()}}
                found |= {{f"{{k}}/{{n}}": np.asarray(a) for n, a in enumerate(session.run(None, feed))}}
            except Exception as error:
                found[f"{{k}}/error"] = type(error).__name__ + ": " + str(error)
except Exception as error:
    found["error"] = type(error).__name__ + ": " + str(error)
np.savez("found.npz", **found)
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
        if not (folder / "found.npz").is_file():
            raise _refused(f"the end of its process, {done.returncode}")
        with told("source", "a graph that gives arrays of numbers"), np.load(folder / "found.npz") as file:
            found = dict(file)
    if "error" in found:
        raise _refused(str(found["error"]))
    refused = {k: _refused(str(found[f"{k}/error"])) for k in range(len(feeds)) if f"{k}/error" in found}
    shown = [[a for key, a in found.items() if key.startswith(f"{k}/")] for k in range(len(feeds))]
    return [refused.get(k, arrays) for k, arrays in enumerate(shown)]


def _refused(found: str) -> InputError:
    remedy = "grujax.interop.find reads the GRU nodes in it without running the rest."
    return InputError("source", "a graph that ONNX Runtime runs", " ".join(found.split())[:300], remedy)


class Inputs(NamedTuple):
    """The names of a graph's inputs, and the sizes that it fixes, 0 where it leaves them open."""

    x: str
    h0: str | None
    lengths: str | None
    dims: dict[str, list[int]]
    rows_first: bool  # h0 is (B, L*D, H)

    def size(self, batch_first: bool, size: tuple[int, int]) -> tuple[int, int]:
        """B and T, those that the graph fixes in the place of the ones that are asked for."""
        rows, steps = (0, 1) if batch_first else (1, 0)
        axes = ((self.x, rows), (self.h0, 1 - self.rows_first), (self.lengths, 0))
        fixed = (self.dims[name][axis] for name, axis in axes if name)
        return next(filter(None, fixed), size[0]), self.dims[self.x][steps] or size[1]

    def feed(self, batch_first: bool, given: tuple) -> dict[str, NDArray]:
        x, h0, lengths = given
        h0 = h0.swapaxes(0, 1) if h0 is not None and self.rows_first else h0
        found = {self.x: x if batch_first else x.swapaxes(0, 1), self.h0: h0, self.lengths: lengths}
        return {name: np.ascontiguousarray(a) for name, a in found.items() if name is not None}


def inputs_of(proto: Model, grus: list[Any], n_states: int) -> Inputs:
    """x, h0 and lengths, told apart by which of them the first GRU node reads as what."""
    initial = {tensor.name for tensor in proto.graph.initializer}
    given = {of.name: of.type.tensor_type for of in proto.graph.input if of.name not in initial}
    read = [origin(proto, name) for name in [*grus[0].input, "", "", ""]]
    x, lengths, h0 = (name if name in given else None for name in (read[0], read[4], read[5]))
    if x is None:
        raise InputError(name_of(grus[0]), "x, an input of the graph", repr(grus[0].input[0]), FIND)
    n_axes = {x: 3} | {name: n for name, n in ((h0, 3), (lengths, 1)) if name not in (x, None)}  # x's shape at most
    dims = {}
    for name, of in given.items():
        remedy = f"Make it a constant. {FIND}"
        require(name in n_axes, name, "inputs x, h0 and lengths alone", "an input besides", remedy)
        dims[name] = [d.dim_value for d in of.shape.dim] if of.HasField("shape") else [0] * n_axes[name]
        require(len(dims[name]) == n_axes[name], name, f"{n_axes[name]} axes", len(dims[name]))
    h0, lengths = (name if name in n_axes and name != x else None for name in (h0, lengths))
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


def time_first(proto: Model) -> Model:
    """The same graph with `layout=0` in all GRU nodes, Transposes around those that had 1: the runtime has no other."""
    made, turn = copied(proto), module().helper.make_node
    nodes: list[Any] = []
    for node in map(copied, made.graph.node):
        layout = next((a for a in node.attribute if node.op_type == "GRU" and a.name == "layout"), None)
        turned = layout is not None and bool(layout.i)
        if layout is not None:
            node.attribute.remove(layout)
        nodes.append(node)
        for k in (k for k in (0, 5) if turned and k < len(node.input) and node.input[k]):
            before, node.input[k] = node.input[k], f"{name_of(node)}/input_{k}"
            nodes.insert(-1, turn("Transpose", [before], [node.input[k]], perm=[1, 0, 2]))
        for k, perm in enumerate(([2, 0, 1, 3], [1, 0, 2])[: len(node.output) if turned else 0]):
            if node.output[k]:
                after, node.output[k] = node.output[k], f"{name_of(node)}/output_{k}"
                nodes.append(turn("Transpose", [node.output[k]], [after], perm=perm))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made
