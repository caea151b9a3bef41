"""The ONNX graph that runtimes get: a GRU node a layer, fixed sizes; weights and h0 are constants, packed beforehand.

It is time-major, since ONNX Runtime knows no other, which saves the transposes that the others pay for.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.core.dialects import DIALECTS, arranged

DTYPES = {"float32": ("FLOAT", 14), "bfloat16": ("BFLOAT16", 22)}
"""What ONNX calls a dtype, and the opset: GRU takes bfloat16 from 22 on."""


def graph(a: Arrays) -> tuple[bytes, dict[str, NDArray]]:
    """The serialised model, in the dtype of the case, and its inputs by name: X (T, B, I), and lengths where there are.

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
        here = slice(k * D, (k + 1) * D)
        stored = zip(*(arranged(weights, DIALECTS["onnx"]) for weights in a.weights[here]), strict=True)
        values = {f"{name}{k}": np.stack(of) for name, of in zip(DIALECTS["onnx"].tensors, stored, strict=True)}
        values |= {f"h{k}": np.broadcast_to(a.h0[here], (D, B, H))}
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
    given = [helper.make_tensor_value_info("X", floating, [T, B, I])]
    if a.lengths is not None:
        feed["lengths"] = a.lengths
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [B]))
    output = helper.make_tensor_value_info(reads, floating, [T, D, B, H])
    made = helper.make_graph(nodes, "gru", given, [output], constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString(), feed


def batch_major(hs: NDArray) -> NDArray:
    """(T, D, B, H) -> (B, T, D*H)."""
    T, D, B, H = hs.shape
    return hs.transpose(2, 0, 1, 3).reshape(B, T, D * H)
