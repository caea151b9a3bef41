"""A model as an ONNX graph: a GRU node a layer, batch-major at its door, and what pooling, head and statistics add."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.core.config import input_size_of
from grujax.core.dialects import DIALECTS
from grujax.errors import require
from grujax.interop.onnx_graph import OUTPUTS, PLACE, REDUCTIONS, Model, Node, functions_of, module
from grujax.interop.parts import take_apart
from grujax.interop.statistics import checked_statistics
from grujax.linen import GRUCell, GRUModel

OPSET, IR_VERSION = 18, 8
DTYPES = ("float16", "float32")
LIMIT = 2**31 - 1
"""The bytes of one file: protobuf has no longer ones."""


class Writer:
    """The graph of one model: nodes in the order in which they run, and constants; every value by its name."""

    def __init__(self, model: Any, variables: Mapping, lengths: bool, state: bool) -> None:
        self.onnx, self.model = module(), model
        params = {name: of for name, of in variables.items() if name != "statistics"}
        self.parts = parts = take_apart(model, params, PLACE, DIALECTS["onnx"])
        n_inputs = input_size_of(model, parts.input_size)
        self.statistics = checked_statistics(model, variables.get("statistics", {}), n_inputs)
        remedy = "ONNX Runtime has no GRU of it on the CPU: cast the parameters to float32."
        require(parts.dtype.name in DTYPES, "variables", " or ".join(DTYPES), f"dtype {parts.dtype}", remedy)
        self.single = isinstance(model, GRUCell)
        self.directions, self.merge = getattr(model, "num_directions", 1), getattr(model, "merge", "concat")
        self.width = model.hidden_size * (self.directions if self.merge == "concat" else 1)
        self.lengths, self.state = lengths and not self.single, state
        self.counts, self.steps = "lengths", "x"  # of the steps, or frames, that the GRU reads
        self.nodes: list[Node] = []
        self.constants: dict[str, NDArray] = {}
        self.inputs: dict[str, tuple] = {}
        self.outputs: dict[str, tuple] = {}

    def constant(self, name: str, a: Any, dtype: Any = None) -> str:
        self.constants[name] = np.ascontiguousarray(a, dtype)
        return name

    def scalar(self, name: str, a: float, dtype: Any = None) -> str:
        return self.constant(name, np.array(a), dtype or self.parts.dtype)

    def axes(self, *of: int) -> str:
        """Axes or a shape, as operators take them: int64 (n,)."""
        return self.constant("_".join(["axes", *map(str, of)]), of, np.int64)

    def add(self, op: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes: Any) -> str:
        """A node; the name of its first output, by default `{op}_{number}`."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs or (name,), name=name, **attributes))
        return self.nodes[-1].output[0]

    def cast(self, value: str, dtype: Any) -> str:
        return self.add("Cast", value, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def gives(self, name: str, *shape: Any) -> None:
        """Makes what the last node gives an output of the graph."""
        self.nodes[-1].output[0], self.outputs[name] = name, shape

    def write(self) -> Model:
        rows = ("batch",) if self.single else ("batch", "time")
        self.inputs["x"] = (*rows, input_size_of(self.model, self.parts.input_size))
        if self.lengths:
            self.inputs["lengths"] = ("batch",)
        x = self._framed(self._moved("input", "x", "Sub", "Div", ("mean", "std")))
        if not self.single:
            self._layers(self.add("Transpose", x, perm=[1, 0, 2]))
            return self._proto()
        row, h0 = ("batch", self.model.hidden_size), ""
        if self.state:
            self.inputs["h0"] = row
            h0 = self.add("Unsqueeze", "h0", self.axes(0))
        self._node(0, self.add("Unsqueeze", x, self.axes(0)), h0, "", "h_last0")
        self.add("Squeeze", "h_last0", self.axes(0))
        self.gives("h", *row)
        return self._proto()

    def _layers(self, x: str) -> None:
        """x (T, B, I)."""
        model, n_layers, has_head = self.model, self.model.num_layers, isinstance(self.model, GRUModel)
        pools_last = has_head and model.pooling == "last"
        states, h0s = (n_layers * self.directions, "batch", model.hidden_size), ("",) * n_layers
        if self.lengths:
            self.add("Unsqueeze", self.counts, self.axes(1), outputs=("of_rows",))  # (B, 1)
        if self.state:
            self.inputs["h0"] = states
        h0 = "h0" if self.state else ""
        if self.parts.h0 is not None:
            h0 = self._learned(self.parts.h0)
        if h0:
            h0s = tuple(f"h0_{k}" for k in range(n_layers))
            self.add("Split", h0, self.axes(*[self.directions] * n_layers), outputs=h0s, axis=0)
        lasts, hs, h_last = [], "", ""
        for k, h0 in enumerate(h0s):
            top = k == n_layers - 1
            hs, h_last = f"hs{k}", f"h_last{k}"
            has_hs, has_last = not (top and pools_last), self.state or (top and pools_last)
            self._node(k, x, h0, hs if has_hs else "", h_last if has_last else "")
            if h0 and has_last and self.lengths:  # of a row without a step ONNX Runtime gives 0
                h_last = self.add("Where", self._empty(), h0, h_last)
            lasts.append(h_last)
            if not top:
                x = self._merged(hs)
        if has_head:
            self._head(self._pooled(h_last, hs))
        else:
            self._merged(hs, batch_major=True)
            self.gives("output", "batch", "time", self.width)
        if self.state:
            self.add("Concat", *lasts, axis=0)
            self.gives("h_last", *states)

    def _learned(self, states: NDArray) -> str:
        """The learned state (L*D, H) in every row: what h0 is, as an input too, where none is given."""
        n_states, hidden_size = states.shape
        learned, n_rows = self.constant("h0", states[:, None]), self.add("Shape", self.steps, start=0, end=1)
        shape = self.add("Concat", self.axes(n_states), n_rows, self.axes(hidden_size), axis=0)
        return self.add("Expand", learned, shape)

    def _node(self, k: int, x: str, h0: str, hs: str, h_last: str) -> None:
        """The GRU node of layer k: x (T, B, I), h0 (D, B, H) -> hs (T, D, B, H), h_last (D, B, H)."""
        model, cells = self.model, self.parts.cells[k * self.directions : (k + 1) * self.directions]
        stored = {name: [of[name] for of in cells] for name in cells[0]}
        weights = [self.constant(f"{name}{k}", stored[name]) if name in stored else "" for name in "WRB"]
        inputs = [x, *weights, self.counts if self.lengths else "", h0]
        while not inputs[-1]:
            inputs.pop()
        way = "bidirectional" if self.directions == 2 else "reverse" if getattr(model, "reverse", False) else "forward"
        of = functions_of([model.gate_activation, model.activation] * len(cells)) | {"clip": model.clip}
        of = {name: value for name, value in of.items() if value}
        of |= {"hidden_size": model.hidden_size, "linear_before_reset": int(model.reset_after), "direction": way}
        self.add("GRU", *inputs, outputs=(hs, h_last) if h_last else (hs,), **of)

    def _merged(self, hs: str, batch_major: bool = False, axis: int = 1) -> str:
        """Both directions as one, where they lie on `axis`: (T, D, B, H), axis 1, or (D, B, H), axis 0, without D."""
        if self.merge == "concat":
            perm = [1, 0, 2] if axis == 0 else [2, 0, 1, 3] if batch_major else [0, 2, 1, 3]
            beside = self.add("Transpose", hs, perm=perm)
            return self.add("Reshape", beside, self.axes(*[0] * (axis + 1), self.width))
        reduced = self.add(REDUCTIONS[self.merge], hs, self.axes(axis), keepdims=0)
        return self.add("Transpose", reduced, perm=[1, 0, 2]) if batch_major else reduced

    def _pooled(self, h_last: str, hs: str) -> str:
        """What the head reads: (B, F), with `pooling=None` (B, T, F)."""
        pooling = self.model.pooling
        if pooling == "last":
            return self._merged(h_last, axis=0)
        output = self._merged(hs, batch_major=True)
        if pooling is None:
            return output
        if pooling == "mean":
            count = "of_rows" if self.lengths else self.cast(self._n_steps(), np.int32)
            at_least_one = self.add("Max", count, self.scalar("one_step", 1, np.int32))
            total = self.add("ReduceSum", output, self.axes(1), keepdims=0)
            return self.add("Div", total, self.cast(at_least_one, self.parts.dtype))
        if self.lengths:
            output = self.add("Where", self._valid(), output, self.scalar("lowest", -np.inf))
        largest = self.add("ReduceMax", output, self.axes(1), keepdims=0)
        return self.add("Where", self._empty(), self.scalar("zero", 0), largest) if self.lengths else largest

    def _head(self, features: str) -> None:
        assert self.parts.head is not None
        kernel, bias = (self.constant(f"head_{name}", a) for name, a in self.parts.head._asdict().items())
        a_step, behind = self.model.pooling is None, self.model.output_activation
        if a_step:
            y = self.add("Add", self.add("MatMul", features, kernel), bias)
        else:
            y = self.add("Gemm", features, kernel, bias)
        if behind is not None:
            op, options = OUTPUTS[behind]
            y = self.add(op, y, **options)
        y = self._moved("output", y, "Mul", "Add", ("std", "mean"))
        if a_step and self.lengths:
            self.add("Where", self._valid(), y, self.scalar("zero", 0))
        self.gives("y", "batch", *["time"] * a_step, self.model.output_size)

    def _moved(self, which: str, a: str, first: str, second: str, by: tuple[str, str]) -> str:
        """a through two operators by the statistics of `which`, in the graph's dtype, where there are such."""
        for op, of in zip((first, second), by, strict=True):
            name = f"{which}_{of}"
            if name in self.statistics:
                given = self.constant(name, self.statistics[name])
                other = self.statistics[name].dtype != self.parts.dtype
                a = self.add(op, a, self.cast(given, self.parts.dtype) if other else given)
        return a

    def _n_steps(self) -> str:
        """T: int64 (1,)."""
        return self.add("Shape", self.steps, start=1, end=2)

    def _empty(self) -> str:
        """Rows without a step: bool (B, 1)."""
        return self.add("Equal", "of_rows", self.scalar("no_step", 0, np.int32))

    def _framed(self, x: str) -> str:
        """x (B, T, I) as frames (B, ceil(T / n), n I), and how many each row has."""
        size = getattr(self.model, "steps_per_frame", 1)
        if size == 1:
            return x
        if self.lengths:
            of_steps = self.add("Unsqueeze", "lengths", self.axes(1))
            x = self.add("Where", self._valid(of_steps), x, self.scalar("zero", 0))
            longer = self.add("Add", "lengths", self.scalar("frame_less_one", size - 1, np.int32))
            self.counts = self.add("Div", longer, self.scalar("frame", size, np.int32))
        n_steps, size_of = self._n_steps(), self.axes(size)
        lacking = self.add("Mod", self.add("Sub", size_of, self.add("Mod", n_steps, size_of)), size_of)
        padded = self.add("Pad", x, self.add("Concat", self.axes(0), lacking, axis=0), "", self.axes(1))
        n_frames = self.add("Div", self.add("Add", n_steps, lacking), size_of)
        shape = self.add("Concat", self.axes(0), n_frames, self.axes(self.parts.input_size), axis=0)
        self.steps = self.add("Reshape", padded, shape)
        return self.steps

    def _valid(self, of_rows: str = "of_rows") -> str:
        """Steps that belong to their row, by its number of them (B, 1): bool (B, T, 1)."""
        n_steps = self.add("Squeeze", self.cast(self._n_steps(), np.int32), self.axes(0))
        steps = (self.scalar("no_step", 0, np.int32), n_steps, self.scalar("one_step", 1, np.int32))
        return self.add("Unsqueeze", self.add("Less", self.add("Range", *steps), of_rows), self.axes(2))

    def _proto(self) -> Model:
        onnx, helper = self.onnx, self.onnx.helper
        total = sum(a.nbytes for a in self.constants.values())
        most = f"less than {LIMIT} bytes, the most that one ONNX file holds"
        require(total < LIMIT, "variables", most, total)
        kinds = {"lengths": helper.np_dtype_to_tensor_dtype(np.dtype(np.int32))}
        kind = helper.np_dtype_to_tensor_dtype(self.parts.dtype)
        inputs, outputs = (
            [helper.make_tensor_value_info(name, kinds.get(name, kind), shape) for name, shape in some.items()]
            for some in (self.inputs, self.outputs)
        )
        constants = [onnx.numpy_helper.from_array(a, name) for name, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, type(self.model).__name__, inputs, outputs, constants)
        versions = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
        proto = helper.make_model(graph, **versions, producer_name="grujax", producer_version=version("grujax"))
        onnx.checker.check_model(proto, full_check=True)
        return proto
