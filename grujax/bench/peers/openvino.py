"""OpenVINO, forward only: the graph compiled for its sizes. It reads x where it lies, and its output is not copied."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.bench.peers.in_onnx import batch_major, graph
from grujax.bench.peers.peer import Runs, Unavailable
from grujax.errors import require_package


def package() -> Any:
    """OpenVINO. Its telemetry would fork this process, which has threads, and send a message at each import."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # as if it were not installed
    return require_package("openvino", "bench")


def compiled(a: Arrays, threads: int) -> Runs:
    """Ragged rows are computed to their end: with lengths, OpenVINO takes a loop of single steps instead of its GRU."""
    openvino = package()
    core, dtype = openvino.Core(), a.x.dtype
    precision = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[dtype.name]
    if dtype != np.float32 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable(f"no {dtype} on this processor")
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    model, feed = graph(a._replace(lengths=None))
    request = core.compile_model(core.read_model(model), "CPU", hints).create_infer_request()
    x = feed["X"]
    # NumPy's bfloat16 is unknown to it: bits, and their type beside them
    request.set_input_tensor(openvino.Tensor(x.view(f"u{x.itemsize}"), x.shape, precision))

    def forward(held: NDArray = x) -> NDArray:  # the request does not keep the memory of x alive
        return request.infer(share_outputs=True)[0]

    return Runs(forward, lambda hs: batch_major(hs.view(dtype)))
