"""The ONNX graph for ONNX Runtime and OpenVINO: one GRU node per layer, fixed sizes, weights and h0 as constants.

It is time-major, the only layout that ONNX Runtime supports. This saves the transposes that the other peers pay for.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.core.dialects import DIALECTS, arranged

DTYPES = {"float32": ("FLOAT", 14), "bfloat16": ("BFLOAT16", 22)}
"""ONNX's name for each dtype, and the opset. GRU supports bfloat16 since opset 22."""


def graph(a: Arrays) -> tuple[bytes, dict[str, NDArray]]:
    """Returns the serialised model in the dtype of the case, and its inputs by name: X (T, B, I), and lengths, if any.

    Its one output is (T, D, B, H); `batch_major` reads it.
    """
    from onnx import TensorProto, helper

    def constant(name: str, v: NDArray, kind: int) -> Any:
        return helper.make_tensor(name, kind, v.shape, np.ascontiguousarray(v).tobytes(), raw=True)

    (B, T, I), H, D = a.x.shape, a.hidden_size, a.num_directions
    name, opset = DTYPES[a.x.dtype.name]
    floating = TensorProto.DataType.Value(name)
    constants, nodes, reads = [], [], "X"
    for k in range(a.num_layers):
        layer = slice(k * D, (k + 1) * D)
        stored = zip(*(arranged(weights, DIALECTS["onnx"]) for weights in a.weights[layer]), strict=True)
        values = {f"{name}{k}": np.stack(w) for name, w in zip(DIALECTS["onnx"].tensors, stored, strict=True)}
        values |= {f"h{k}": np.broadcast_to(a.h0[layer], (D, B, H))}
        constants += [constant(name, v, floating) for name, v in values.items()]
        if k:  # (T, D, B, H) -> (T, B, D*H)
            constants.append(constant(f"joined{k}", np.array([T, B, D * H]), TensorProto.INT64))
            nodes.append(helper.make_node("Transpose", [reads], [f"beside{k}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"beside{k}", f"joined{k}"], [f"X{k}"]))
            reads = f"X{k}"
        inputs = [reads, f"W{k}", f"R{k}", f"B{k}", "" if a.lengths is None else "lengths", f"h{k}"]
        attributes = {"hidden_size": H, "linear_before_reset": 1, "direction": "bidirectional" if D == 2 else "forward"}
        reads = f"Y{k}"
        nodes.append(helper.make_node("GRU", inputs, [reads], **attributes))
    feed = {"X": np.ascontiguousarray(a.x.swapaxes(0, 1))}
    inputs = [helper.make_tensor_value_info("X", floating, [T, B, I])]
    if a.lengths is not None:
        feed["lengths"] = a.lengths
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [B]))
    output = helper.make_tensor_value_info(reads, floating, [T, D, B, H])
    gru = helper.make_graph(nodes, "gru", inputs, [output], constants)
    model = helper.make_model(gru, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString(), feed


def batch_major(hs: NDArray) -> NDArray:
    """Converts hs (T, D, B, H) to (B, T, D*H)."""
    T, D, B, H = hs.shape
    return hs.transpose(2, 0, 1, 3).reshape(B, T, D * H)
