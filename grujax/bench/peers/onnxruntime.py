"""ONNX Runtime: a GRU node a layer, forward only.

Its CPU kernel takes time-major input alone and is given it, which saves it the transposes that the others pay for.
Weights and h0 are constants of the model, so that the runtime can pack them beforehand.
"""

import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.bench.peers.peer import Runs
from grujax.core.weight_layouts import DIALECTS, arranged
from grujax.types import GRUWeights


def session(a: Arrays, threads: int) -> Runs:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    (B, T, I), H, D = a.x.shape, a.hidden_size, a.num_directions
    constants: dict[str, NDArray] = {}
    nodes, reads = [], "X"
    for k in range(a.num_layers):
        here = slice(k * D, (k + 1) * D)
        stored = [arranged(GRUWeights(*weights), DIALECTS["onnx"]) for weights in a.weights[here]]  # pyright: ignore[reportArgumentType]
        constants[f"W{k}"], constants[f"R{k}"] = (np.stack([w[i] for w in stored]) for i in (0, 1))
        constants[f"B{k}"] = np.stack([np.concatenate(w[2:]) for w in stored])
        constants[f"h{k}"] = np.ascontiguousarray(np.broadcast_to(a.h0[here], (D, B, H)))
        if k:  # (T, D, B, H) -> (T, B, D*H)
            constants["joined"] = np.array([T, B, D * H])
            nodes.append(helper.make_node("Transpose", [reads], [f"beside{k}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"beside{k}", "joined"], [f"X{k}"]))
            reads = f"X{k}"
        inputs = [reads, f"W{k}", f"R{k}", f"B{k}", "" if a.lengths is None else "lengths", f"h{k}"]
        attributes = {"hidden_size": H, "linear_before_reset": 1, "direction": "bidirectional" if D == 2 else "forward"}
        reads = f"Y{k}"
        nodes.append(helper.make_node("GRU", inputs, [reads], **attributes))
    feed = {"X": np.ascontiguousarray(a.x.swapaxes(0, 1))}
    given = [helper.make_tensor_value_info("X", TensorProto.FLOAT, [T, B, I])]
    if a.lengths is not None:
        feed["lengths"] = a.lengths
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [B]))
    output = helper.make_tensor_value_info(reads, TensorProto.FLOAT, [T, D, B, H])
    graph = helper.make_graph(
        nodes, "gru", given, [output], [numpy_helper.from_array(v, name) for name, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Runs(lambda: made.run(None, feed)[0], lambda hs: hs.transpose(2, 0, 1, 3).reshape(B, T, D * H))
