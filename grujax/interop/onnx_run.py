"""ONNX Runtime on a stranger's graph: in a process of its own, which it may crash, with limits on time and memory."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require_package
from grujax.interop.onnx_graph import Model

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
        return [_refused(one) if one else _outputs(folder / f"{k}.npz") for k, one in enumerate(said)]


def _refused(found: str) -> InputError:
    remedy = "grujax.interop.find reads the GRU nodes in it without running the rest."
    return InputError("source", "a graph that ONNX Runtime runs", " ".join(found.split())[:300], remedy)


def _outputs(path: Path) -> list[NDArray]:
    with np.load(path) as found:
        return [found[f"arr_{k}"] for k in range(len(found))]
