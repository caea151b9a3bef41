"""OpenVINO, forward only: the graph compiled for fixed sizes. Neither the input nor the output is copied."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.bench.peers.in_onnx import batch_major, graph
from grujax.bench.peers.peer import Runs, Unavailable
from grujax.errors import require_package


def package() -> Any:
    """Imports OpenVINO without its telemetry, which at each import would fork this multithreaded process and send a
    message."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # treated as not installed
    return require_package("openvino", "bench")


def compiled(a: Arrays, threads: int) -> Runs:
    """Also computes the padding: with lengths, OpenVINO runs a loop of single steps instead of its GRU."""
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
    # OpenVINO does not know NumPy's bfloat16: pass the bits and their type
    request.set_input_tensor(openvino.Tensor(x.view(f"u{x.itemsize}"), x.shape, precision))

    def forward(held: NDArray = x) -> NDArray:  # the request does not keep the memory of x alive
        return request.infer(share_outputs=True)[0]

    return Runs(forward, lambda hs: batch_major(hs.view(dtype)))
