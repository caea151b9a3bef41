"""Writes a model as an ONNX graph with batch-major inputs and outputs: GRU nodes, pooling, head and statistics."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import input_size_of
from grujax.core.dialects import DIALECTS
from grujax.errors import require
from grujax.interop import onnx_graph
from grujax.interop.onnx_graph import Model
from grujax.interop.parts import Parts, take_apart
from grujax.interop.statistics import checked_statistics
from grujax.linen import GRUCell, GRUModel

OPSET, IR_VERSION = 18, 8


def written(model: nn.Module, variables: Mapping, lengths: bool, state: bool) -> Model:
    """The graph of `to_onnx`."""
    onnx_graph.module()
    variables = dict(variables)
    stored = variables.pop("statistics", {})
    parts = take_apart(model, variables, onnx_graph.PLACE, DIALECTS["onnx"])
    statistics = checked_statistics(model, stored, input_size_of(model, parts.input_size))
    remedy = "ONNX Runtime has no GRU of this dtype on the CPU: cast the parameters to float32."
    known, expected = parts.dtype.name in onnx_graph.DTYPES, " or ".join(onnx_graph.DTYPES)
    require(known, "variables", expected, f"dtype {parts.dtype}", remedy)
    return Writer(model, parts, statistics, lengths, state).write()


class Writer:
    """Writes one model. `counts` and `steps` are the lengths and inputs that the GRU reads, which may be frames."""

    def __init__(self, model: Any, parts: Parts, statistics: Mapping[str, NDArray], lengths: bool, state: bool) -> None:
        self.model, self.parts, self.statistics = model, parts, statistics
        self.single = isinstance(model, GRUCell)
        self.directions = getattr(model, "num_directions", 1)
        self.merge = getattr(model, "merge", "concat")
        self.lengths, self.state = lengths and not self.single, state
        self.graph = onnx_graph.Graph(parts.dtype)
        self.counts, self.steps = "lengths", "x"
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, tuple[Any, ...]] = {}

    def write(self) -> Model:
        g, features = self.graph, input_size_of(self.model, self.parts.input_size)
        rows = ("batch",) if self.single else ("batch", "time")
        self.inputs["x"] = (*rows, features)
        if self.lengths:
            self.inputs["lengths"] = ("batch",)
        x = self._framed(self._scaled("input", "x", "Sub", "Div", ("mean", "std")))
        if not self.single:
            self._layers(g.add("Transpose", [x], perm=[1, 0, 2]))
            return self._proto()
        row, h0 = ("batch", self.model.hidden_size), ""
        if self.state:
            self.inputs["h0"] = row
            h0 = g.add("Unsqueeze", ["h0", g.axes(0)])
        self._node(0, g.add("Unsqueeze", [x, g.axes(0)]), h0, ["", "h_last0"])
        self.outputs["h"] = row
        g.add("Squeeze", ["h_last0", g.axes(0)], "h")
        return self._proto()

    def _layers(self, x: str) -> None:
        """Writes all layers, the pooling and the head; x (T, B, I)."""
        g, model, n_layers = self.graph, self.model, self.model.num_layers
        has_head = isinstance(model, GRUModel)
        pools_last = has_head and model.pooling == "last"
        states, h0s = (n_layers * self.directions, "batch", model.hidden_size), [""] * n_layers
        if self.lengths:
            g.add("Unsqueeze", [self.counts, g.axes(1)], "of_rows")  # (B, 1)
        h0 = "h0" if self.state else ""
        if self.parts.h0 is not None:
            h0 = self._learned(self.parts.h0)
        if self.state:
            self.inputs["h0"] = states
        if h0:
            h0s = [f"h0_{k}" for k in range(n_layers)]
            g.add("Split", [h0, g.axes(*[self.directions] * n_layers)], h0s, axis=0)
        lasts, hs, h_last = [], "", ""
        for k, h0 in enumerate(h0s):
            top = k == n_layers - 1
            hs, h_last = f"hs{k}", f"h_last{k}"
            has_hs, has_last = not (top and pools_last), self.state or (top and pools_last)
            self._node(k, x, h0, [hs if has_hs else "", h_last if has_last else ""])
            if h0 and has_last and self.lengths:  # for a row without steps, ONNX Runtime returns 0 instead of h0
                h_last = g.add("Where", [self._empty(), h0, h_last])
            lasts.append(h_last)
            if not top:
                x = self._merged(hs, 1)
        if has_head:
            self._head(self._pooled(h_last, hs))
        else:
            self.outputs["output"] = ("batch", "time", self._width)
            self._merged(hs, 1, "output", batch_major=True)
        if self.state:
            self.outputs["h_last"] = states
            g.add("Concat", lasts, "h_last", axis=0)

    def _learned(self, states: NDArray) -> str:
        """The learned states (L*D, H) in every row; as "h0", an input of this name may override them."""
        g, (n_states, hidden_size) = self.graph, states.shape
        learned, n_rows = g.constant("h0", states[:, None]), g.add("Shape", [self.steps], start=0, end=1)
        shape = g.add("Concat", [g.axes(n_states), n_rows, g.axes(hidden_size)], axis=0)
        return g.add("Expand", [learned, shape])

    @property
    def _width(self) -> int:
        return self.model.hidden_size * (self.directions if self.merge == "concat" else 1)

    def _node(self, k: int, x: str, h0: str, outputs: list[str]) -> None:
        """Adds the GRU node of layer k: x (T, B, I), h0 (D, B, H) -> hs (T, D, B, H), h_last (D, B, H)."""
        g, model = self.graph, self.model
        cells = self.parts.cells[k * self.directions : (k + 1) * self.directions]
        stored = {name: [cell[name] for cell in cells] for name in cells[0]}
        w, r, b = (g.constant(f"{name}{k}", stored[name]) if name in stored else "" for name in "WRB")
        functions = [onnx_graph.function(f) for f in (model.gate_activation, model.activation)] * len(cells)
        names, alphas, betas = zip(*functions, strict=True)
        options = {"activation_alpha": sum(alphas, ()), "activation_beta": sum(betas, ()), "clip": model.clip}
        inputs = [x, w, r, b, self.counts if self.lengths else "", h0]
        while not inputs[-1]:
            inputs.pop()
        way = "bidirectional" if self.directions == 2 else "reverse" if getattr(model, "reverse", False) else "forward"
        options = {name: value for name, value in options.items() if value} | {"activations": list(names)}
        options |= {"hidden_size": model.hidden_size, "linear_before_reset": int(model.reset_after), "direction": way}
        g.add("GRU", inputs, outputs if outputs[1] else outputs[:1], **options)

    def _merged(self, hs: str, axis: int, out: str = "", batch_major: bool = False) -> str:
        """Merges both directions: removes the axis D of (T, D, B, H), `axis` 1, or of (D, B, H), `axis` 0."""
        g, perm = self.graph, [1, 0, 2] if axis == 0 else [0, 2, 1, 3]
        if self.merge == "concat":
            beside = g.add("Transpose", [hs], perm=[2, 0, 1, 3] if batch_major else perm)
            return g.add("Reshape", [beside, g.axes(*[0] * (axis + 1), self._width)], out)
        reduced = g.add(onnx_graph.REDUCTIONS[self.merge], [hs, g.axes(axis)], "" if batch_major else out, keepdims=0)
        return g.add("Transpose", [reduced], out, perm=[1, 0, 2]) if batch_major else reduced

    def _pooled(self, h_last: str, hs: str) -> str:
        """The features for the head: (B, F), or (B, T, F) with `pooling=None`."""
        g, pooling = self.graph, self.model.pooling
        if pooling == "last":
            return self._merged(h_last, 0)
        output = self._merged(hs, 1, batch_major=True)
        if pooling is None:
            return output
        if pooling == "mean":
            count = "of_rows" if self.lengths else g.cast(self._n_steps(), np.int32)
            at_least_one = g.add("Max", [count, g.scalar("one_step", 1, np.int32)])
            return g.add("Div", [g.add("ReduceSum", [output, g.axes(1)], keepdims=0), g.cast(at_least_one, g.dtype)])
        if self.lengths:
            output = g.add("Where", [self._valid(), output, g.scalar("lowest", -np.inf)])
        largest = g.add("ReduceMax", [output, g.axes(1)], keepdims=0)
        return g.add("Where", [self._empty(), g.scalar("zero", 0), largest]) if self.lengths else largest

    def _head(self, features: str) -> None:
        g, head = self.graph, self.parts.head
        assert head is not None
        kernel, bias = g.constant("head_kernel", head.kernel), g.constant("head_bias", head.bias)
        a_step = self.model.pooling is None
        self.outputs["y"] = ("batch", *["time"] * a_step, self.model.output_size)
        masked = a_step and self.lengths
        scaled, activation = "output_mean" in self.statistics, self.model.output_activation
        out = "" if masked else "y"
        if a_step:
            product = g.add("MatMul", [features, kernel])
            y = g.add("Add", [product, bias], "" if scaled or activation else out)
        else:
            y = g.add("Gemm", [features, kernel, bias], "" if scaled or activation else out)
        if activation is not None:
            op, options = onnx_graph.OUTPUTS[activation]
            y = g.add(op, [y], "" if scaled else out, **options)
        y = self._scaled("output", y, "Mul", "Add", ("std", "mean"), out)
        if masked:
            g.add("Where", [self._valid(), y, g.scalar("zero", 0)], "y")

    def _scaled(self, which: str, a: str, first: str, second: str, by: tuple[str, str], out: str = "") -> str:
        """Applies two operators with the statistics of `which` to a, if there are any."""
        g, names = self.graph, [f"{which}_{statistic}" for statistic in by]
        if names[0] not in self.statistics:
            return a
        b, c = (g.at_full_size(name, self.statistics[name]) for name in names)
        return g.add(second, [g.add(first, [a, b]), c], out)

    def _n_steps(self) -> str:
        """T: int64 (1,)."""
        return self.graph.add("Shape", [self.steps], start=1, end=2)

    def _empty(self) -> str:
        """Rows without a step: bool (B, 1)."""
        return self.graph.add("Equal", ["of_rows", self.graph.scalar("no_step", 0, np.int32)])

    def _framed(self, x: str) -> str:
        """Groups x (B, T, I) into frames (B, ceil(T / n), n I), and sets `counts` to the number of frames per row."""
        g, size = self.graph, getattr(self.model, "steps_per_frame", 1)
        if size == 1:
            return x
        if self.lengths:
            of_steps = g.add("Unsqueeze", ["lengths", g.axes(1)])
            x = g.add("Where", [self._valid(of_steps), x, g.scalar("zero", 0)])
            n = g.scalar("frame", size, np.int32)
            longer = g.add("Add", ["lengths", g.scalar("frame_less_one", size - 1, np.int32)])
            self.counts = g.add("Div", [longer, n])
        n_steps, size_of = self._n_steps(), g.axes(size)
        lacking = g.add("Mod", [g.add("Sub", [size_of, g.add("Mod", [n_steps, size_of])]), size_of])
        padded = g.add("Pad", [x, g.add("Concat", [g.axes(0), lacking], axis=0), "", g.axes(1)])
        n_frames = g.add("Div", [g.add("Add", [n_steps, lacking]), size_of])
        shape = g.add("Concat", [g.axes(0), n_frames, g.axes(self.parts.input_size)], axis=0)
        self.steps = g.add("Reshape", [padded, shape])
        return self.steps

    def _valid(self, of_rows: str = "of_rows") -> str:
        """The valid steps, bool (B, T, 1); of_rows: the number of steps of each row, (B, 1)."""
        g = self.graph
        n_steps = g.add("Squeeze", [g.cast(self._n_steps(), np.int32), g.axes(0)])
        steps = g.add("Range", [g.scalar("no_step", 0, np.int32), n_steps, g.scalar("one_step", 1, np.int32)])
        return g.add("Unsqueeze", [g.add("Less", [steps, of_rows]), g.axes(2)])

    def _proto(self) -> Model:
        g, helper = self.graph, self.graph.onnx.helper
        total = sum(a.nbytes for a in g.constants.values())
        most = f"less than {onnx_graph.LIMIT} bytes, the most that one ONNX file holds"
        require(total < onnx_graph.LIMIT, "variables", most, total)
        kind = helper.np_dtype_to_tensor_dtype(g.dtype)
        int32 = helper.np_dtype_to_tensor_dtype(np.dtype(np.int32))

        def value(name: str, shape: tuple) -> Any:
            return helper.make_tensor_value_info(name, int32 if name == "lengths" else kind, shape)

        inputs, outputs = ([value(*pair) for pair in values.items()] for values in (self.inputs, self.outputs))
        constants = [g.onnx.numpy_helper.from_array(a, name) for name, a in g.constants.items()]
        graph = helper.make_graph(g.nodes, type(self.model).__name__, inputs, outputs, constants)
        versions = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
        proto = helper.make_model(graph, **versions, producer_name="grujax", producer_version=version("grujax"))
        hints = {name: getattr(self.model, name) for name in (*onnx_graph.HINTS, "clip") if hasattr(self.model, name)}
        text = json.dumps({"class": type(self.model).__name__, **hints}, sort_keys=True)
        helper.set_model_props(proto, {onnx_graph.METADATA: text})
        g.onnx.checker.check_model(proto, full_check=True)
        return proto
