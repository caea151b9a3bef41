"""The constants of a graph: initializers, and all that `onnx.reference` makes of them before any input is known."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require
from grujax.interop.onnx_graph import Model, Node, module, name_of
from grujax.interop.onnx_tensors import array, line

LARGEST, IN_ALL = 2**26, 2**28
"""The most values of any array that is computed, and of all of them together."""
FOLDED = "Add Sub Mul Div Equal Less Where Identity Cast Transpose Reshape Flatten Squeeze Unsqueeze Slice Gather Split"
FOLDED = {*FOLDED.split(), *["Concat", "Expand", "Shape", "Constant", "ConstantOfShape", "DequantizeLinear", "Range"]}


class Constants:
    """values: by their names. kinds: the ONNX dtype of every value that shape inference knows."""

    def __init__(self, proto: Model, outer: dict[str, NDArray] | None = None) -> None:
        onnx = module()
        self.values: dict[str, NDArray] = dict(outer or {})
        self.opsets = {of.domain: of.version for of in proto.opset_import}
        for tensor in proto.graph.initializer:
            self.values[tensor.name] = array(tensor.name, tensor)
        self.kinds: dict[str, int] = {}
        self.total = 0
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=False).graph
        except Exception:  # shapes that do not fit: the runtime will say which
            inferred = proto.graph
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            self.kinds[value.name] = value.type.tensor_type.elem_type
        for node in proto.graph.node:
            self._fold(node)

    def folds(self, node: Node) -> bool:
        return any(out in self.values for out in node.output)

    def integer(self, key: str) -> bool:
        """Whether a value is an integer or a truth: arithmetic on shapes."""
        onnx = module()
        kinds = {getattr(onnx.TensorProto, name) for name in ("INT32", "INT64", "BOOL")}
        return self.values[key].dtype.kind in "ib" if key in self.values else self.kinds.get(key) in kinds

    def weights(self, node: Node) -> list[NDArray | None]:
        """W, R and B of a GRU node; `InputError` where they are no constants."""
        keys = [*node.input[1:4], ""][:3]
        for key in keys:
            fixed = not key or key in self.values
            expected = "weights, an initializer or a constant"
            require(fixed, key, expected, "a value computed from the inputs, or an input of the graph")
        return [self.values.get(key) for key in keys]

    def _fold(self, node: Node) -> None:
        if node.op_type not in FOLDED or node.domain not in ("", "ai.onnx"):
            return
        if not all(not key or key in self.values for key in node.input):
            return
        given, name = [self.values.get(key) for key in node.input], name_of(node)
        try:
            bound(name, _size(node.op_type, [a for a in given if a is not None]))
            found = self._evaluated(node, given)
        except InputError:
            raise
        except Exception as error:  # shapes that do not fit, in whichever way NumPy says so
            raise InputError(name, f"a {node.op_type} that fits its inputs", line(error)) from error
        for key, a in zip(node.output, found, strict=False):
            require(isinstance(a, np.ndarray | np.generic), name, "arrays", type(a).__name__)
            self.values[key] = np.asarray(a)
            self.total += self.values[key].size
            require(self.total <= IN_ALL, name, f"at most {IN_ALL} values in all", self.total)

    def _evaluated(self, node: Node, given: list[NDArray | None]) -> list[Any]:
        onnx = module()
        from onnx.reference import ReferenceEvaluator

        info = onnx.helper.make_tensor_value_info
        kind = onnx.helper.np_dtype_to_tensor_dtype
        named = {key: a for key, a in zip(node.input, given, strict=True) if a is not None}
        inputs = [info(key, kind(a.dtype), None) for key, a in named.items()]
        outputs = [info(key, 0, None) for key in node.output if key]
        graph = onnx.helper.make_graph([node], "constants", inputs, outputs)
        return list(ReferenceEvaluator(graph, opsets=self.opsets).run(None, named))


def _size(op: str, given: list[NDArray]) -> int:
    """How many values an operator makes, as far as it makes more than it is given."""
    if op == "ConstantOfShape":
        return math.prod(int(n) for n in given[-1])
    if op == "Expand":
        return math.prod(np.broadcast_shapes(given[0].shape, tuple(int(n) for n in given[-1])))
    if op == "Gather":
        return given[0].size * max(given[1].size, 1)
    if op == "Range":
        return abs(int(given[1]) - int(given[0])) // max(abs(int(given[2])), 1)
    if op in ("Add", "Sub", "Mul", "Div", "Where", "Equal", "Less"):
        return math.prod(np.broadcast_shapes(*(a.shape for a in given)))
    return sum(a.size for a in given)


def bound(name: str, count: int) -> None:
    require(0 <= count <= LARGEST, name, f"at most {LARGEST} values", count)
