"""ONNX Runtime, forward only."""

from grujax.bench.cases import Arrays
from grujax.bench.peers.in_onnx import batch_major, graph
from grujax.bench.peers.peer import Runs


def session(a: Arrays, threads: int) -> Runs:
    import onnxruntime

    model, feed = graph(a)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Runs(lambda: session.run(None, feed)[0], batch_major)
