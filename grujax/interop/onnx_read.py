"""What a graph that somebody else exported computes, followed through it by the number of every value.

Each value of an input, and each that a GRU or a head puts out, gets a number; operators that only move values move the
numbers. So a node reads x, the last layer's output or its last state where its numbers say so, however they got there.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require
from grujax.interop.model_parts import Dense, put_together
from grujax.interop.onnx_moves import ARITHMETIC, MOVES, SMALL, bound
from grujax.interop.onnx_node import attributes_of, cells_of, name_of
from grujax.interop.onnx_tensors import array, line
from grujax.interop.onnx_write import module
from grujax.interop.weight_layouts import Cell

if TYPE_CHECKING:
    import onnx


IN_ALL = 2**28
"""The most values of all arrays together while a graph is followed."""


class OtherLayout(InputError):
    """The GRU does not read x as the layout that is being tried has it."""


class Value(NamedTuple):
    """A constant; or where `of` is not 0, the numbers of values whose ONNX dtype is `of`."""

    a: NDArray
    of: int = 0


class Found(NamedTuple):
    """What a graph computes. The numbers of what a model gives, by the names of `Runner`, and of each graph output."""

    model: nn.Module
    variables: dict
    x: str  # the name of the input
    h0: str | None
    lengths: str | None
    batch_first: bool
    sizes: tuple[int, int]  # B and T that it was followed with
    how_many: int  # numbers there are
    numbers: dict[str, NDArray]
    outputs: dict[str, NDArray]


def follow(proto: "onnx.ModelProto", batch: int = 3, time: int = 5) -> Found:
    """The model of a graph, found for inputs of `batch` rows and `time` steps, or what the graph fixes them to.

    Raises:
      InputError: naming the node that is more than a stack of GRU nodes, one dense head, and what moves values.
    """
    try:
        return Trace(proto, True, batch, time).found()
    except InputError as first:
        try:
            return Trace(proto, False, batch, time).found()
        except InputError as second:
            raise (second if isinstance(first, OtherLayout) else first) from None


class Trace:
    """One walk through a graph."""

    def __init__(self, proto: "onnx.ModelProto", batch_first: bool, batch: int, time: int) -> None:
        self.proto, self.batch_first, self.onnx = proto, batch_first, module()
        self.values: dict[str, Value] = {}
        self.count = self.total = 0
        self.fields: dict[str, Any] = {}
        self.cells: dict[str, Cell] = {}
        self.initial: list[Value | None] = []
        self.states: list[NDArray] = []
        self.dense: tuple[str, NDArray, NDArray | None] | None = None
        require(not proto.functions, "source", "operators of ONNX alone", f"a function {_first(proto.functions)!r}")
        require(not proto.graph.sparse_initializer, "source", "dense weights", "a sparse initializer")
        for tensor in proto.graph.initializer:
            self.values[tensor.name] = Value(array(tensor.name, tensor))
        self._inputs(batch, time)

    def found(self) -> Found:
        for node in self.proto.graph.node:
            self._run(node)
        h0, h_last, output = self._initial(), np.concatenate(self.states), self.output.transpose(1, 0, 2)
        fields, outputs = dict(self.fields), {}
        for of in self.proto.graph.output:
            require(of.name in self.values, of.name, "an output of a node", "none of that name")
            outputs[of.name] = self.values[of.name]
        numbers, forms, head = {"h_last": h_last}, [h_last, *h_last, *self.states, self.last], None
        if self.dense is None:
            numbers["output"] = output
            forms += [output, self.output, self.hs]
        else:
            name, kernel, bias = self.dense
            remedy = "The head of GRUModel has a bias: give the Linear one of zeros."
            if bias is None:
                raise InputError(name, "an Add of the bias behind it", "none", remedy)
            head = name, Dense(kernel, bias)
            last, steps = self._answers(self.last), self._answers(output)
            answers = {"last": [last], None: [steps, steps.swapaxes(0, 1)]}
            found = [key for key, of in answers.items() if any(_shown(v.a, of) for v in outputs.values())]
            one = "an output of the head, on the last state of each direction or on every step"
            remedy = "The reverse direction has read one step only at the last." if fields["bidirectional"] else ""
            require(bool(found), name, one, "none such", remedy)
            fields["pooling"] = found[0]
            numbers["y"] = answers[found[0]][0]
            forms += answers[found[0]]
        for name, value in outputs.items():
            known = value.of > 0 and _shown(value.a, forms)
            require(known, name, f"one of {sorted(numbers)}", "something else", "grujax's model would not give it.")
        bidirectional = fields.pop("bidirectional")
        model, variables = put_together(self.cells, head, bidirectional=bidirectional, **fields)
        numbers_of = {name: value.a for name, value in outputs.items()}
        return Found(
            model, variables, self.x, h0, self.lengths, self.batch_first, self.sizes, self.count, numbers, numbers_of
        )

    # -- inputs --------------------------------------------------------------------------------------------------------

    def _inputs(self, batch: int, time: int) -> None:
        """Numbers for x, h0 and lengths, told apart by which of them the first GRU node reads as what."""
        graph = self.proto.graph
        self.given = {of.name: of for of in graph.input if of.name not in self.values}
        producers = {out: node for node in graph.node for out in node.output if out}
        grus = [node for node in graph.node if node.op_type == "GRU"]
        others, remedy = sorted({node.op_type for node in graph.node}), "Exporters write nn.GRUCell in single steps."
        require(bool(grus), "source", "a GRU node", f"none, but {others}", remedy)

        def source(k: int) -> str | None:
            name = grus[0].input[k] if len(grus[0].input) > k else ""
            for _ in graph.node:
                if name not in producers or not producers[name].input:
                    break
                name = producers[name].input[0]
            return name if name in self.given else None

        x = source(0)
        h0, self.lengths = (None if name == x else name for name in (source(5), source(4)))  # x's shape at most
        if x is None:
            raise InputError(name_of(grus[0]), "x, an input of the graph", repr(grus[0].input[0]))
        self.x = x
        for name in self.given:
            known = name in (x, h0, self.lengths)
            require(known, name, "inputs x, h0 and lengths alone", "an input besides", "Make it a constant.")
        (first, second, features), lengths_of = self._dims(x, 3), self._dims(self.lengths, 1) if self.lengths else [0]
        n_states, rows, hidden_size = self._dims(h0, 3) if h0 else (0, 0, 0)
        b, t = (first, second) if self.batch_first else (second, first)
        for name, n_rows in ((h0, rows), (self.lengths, lengths_of[0])):
            if b and n_rows and b != n_rows:
                raise OtherLayout(name or "", f"{b} rows, as {x}", n_rows)
        b, t = b or rows or lengths_of[0] or batch, t or time
        w, r = (self.values.get(grus[0].input[k]) for k in (1, 2))
        features = features or (w.a.shape[-1] if w is not None and w.a.ndim else 0)
        require(features > 0, x, "a fixed number of features on its last axis", "an open one")
        hidden_size = hidden_size or (r.a.shape[-1] if r is not None and r.a.ndim else 0)
        n_states = n_states or sum(2 if b"bidirectional" in attributes_of(node).values() else 1 for node in grus)
        self.sizes = b, t
        self._give(x, (b, t, features) if self.batch_first else (t, b, features))
        if h0:
            self._give(h0, (n_states, b, hidden_size))
        if self.lengths:
            self._give(self.lengths, (b,))
        self.h0 = h0
        self.reads = self.values[x].a.swapaxes(0, 1) if self.batch_first else self.values[x].a

    def _dims(self, name: str, n_axes: int) -> list[int]:
        """The sizes that the graph fixes, 0 where it leaves them open."""
        tensor = self.given[name].type.tensor_type
        if not tensor.HasField("shape"):
            return [0] * n_axes
        dims = [dim.dim_value for dim in tensor.shape.dim]
        require(len(dims) == n_axes, name, f"{n_axes} axes", f"{len(dims)}")
        return dims

    def _give(self, name: str, shape: tuple[int, ...]) -> None:
        self.values[name] = Value(self._fresh(name, shape), self.given[name].type.tensor_type.elem_type)

    def _fresh(self, name: str, shape: tuple[int, ...]) -> NDArray:
        """Numbers that no value has yet."""
        bound(name, self.count + math.prod(shape))
        ids = np.arange(self.count, self.count + math.prod(shape)).reshape(shape)
        self.count += ids.size
        return ids

    def _initial(self) -> str | None:
        """The input that holds h0, None where all layers start from zeros."""
        if self.h0 is None:
            return None
        given = [value.a for value in self.initial if value is not None]
        whole = len(given) == len(self.initial) and np.array_equal(np.concatenate(given), self.values[self.h0].a)
        require(whole, self.h0, "the states of all layers, in their order", "another order, or a part of them")
        return self.h0

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _run(self, node: "onnx.NodeProto") -> None:
        name = name_of(node)
        require(node.domain in ("", "ai.onnx"), name, "operators of ONNX alone", f"{node.op_type} of {node.domain!r}")
        given = [self.values.get(key) if key else None for key in node.input]
        try:
            if node.op_type == "GRU":
                results = self._gru(node, name, [*given, *[None] * 6][:6])
            elif node.op_type in ("Gemm", "MatMul") or (node.op_type == "Add" and any(v and v.of for v in given)):
                results = [self._head(node, name, given)]
            else:
                results = self._moved(node, name, given)
        except InputError:
            raise
        except Exception as error:  # shapes that do not fit, in whichever way NumPy says so
            raise InputError(name, f"a {node.op_type} that fits its inputs", line(error)) from error
        self.total += sum(result.a.size for result in results)
        require(self.total <= IN_ALL, name, f"at most {IN_ALL} values in all", self.total)
        self.values |= dict(zip(node.output, results, strict=False))

    def _gru(self, node: "onnx.NodeProto", name: str, given: list[Value | None]) -> list[Value]:
        x, w, r, b, lengths, h0 = given
        for key, value in zip(node.input[1:4], (w, r, b), strict=False):
            fixed = value is None or not value.of
            require(fixed, key, "weights, an initializer or a constant", "a value computed from the inputs")
        if x is None or w is None or r is None:
            raise InputError(name, "x, W and R", "none")
        fields, cells = cells_of(node, [w.a, r.a, None if b is None else b.a])
        self.fields = self.fields or fields
        for key, value in fields.items():
            require(value == self.fields[key], name, f"{key}={self.fields[key]}, as the GRU before it", value)
        mine = bool(x.of) and np.array_equal(x.a, self.reads)
        if not mine and not self.cells:
            raise OtherLayout(name, "x (T, B, I) of the input", f"another reading of {self.x!r}")
        remedy = "GRUs in a row are read, each on the whole output of the one before."
        require(mine, name, "the output of the GRU before it, (T, B, D*H)", "something else", remedy)
        has = lengths is not None
        fits = not has or (self.lengths is not None and np.array_equal(lengths.a, self.values[self.lengths].a))
        require(fits, name, "sequence_lens, an input of the graph", "something else", "Leave full lengths out.")
        require(has == bool(self.lengths), name, "sequence_lens for every GRU or none", "otherwise")
        (batch, time), directions, hidden_size = self.sizes, len(cells), r.a.shape[-1]
        state = (directions, batch, hidden_size)
        if h0 is not None and not h0.of:
            zeros = h0.a.shape == state and not h0.a.any()
            remedy = "It is no part of the weights here; make it an input of the graph."
            require(zeros, node.input[5], f"zeros {state}, or an input of the graph", "a constant", remedy)
        self.initial.append(h0 if h0 is not None and h0.of else None)
        if h0 is not None and h0.of:
            require(h0.a.shape == state, name, f"initial_h {state}", h0.a.shape)
        self.hs = hs = self._fresh(name, (time, directions, batch, hidden_size))
        # Without lengths the last state is the output of the last step read: the same numbers.
        last = self._fresh(name, state) if has else np.stack([hs[-1, 0], hs[0, -1]][:directions])
        self.states.append(last)
        self.output = self.reads = hs.transpose(0, 2, 1, 3).reshape(time, batch, directions * hidden_size)
        self.last = last.transpose(1, 0, 2).reshape(batch, directions * hidden_size)
        self.cells |= {f"{name}: {key}": cell for key, cell in cells.items()}
        return [Value(hs, x.of), Value(last, x.of)]

    def _head(self, node: "onnx.NodeProto", name: str, given: list[Value | None]) -> Value:
        """Gemm, MatMul, or Add of a bias: new numbers, a block for each vector of features."""
        kind, attributes = node.op_type, attributes_of(node)
        if kind == "Add":
            product, bias = sorted((v for v in given if v is not None), key=lambda v: not v.of)
            follows = not bias.of and self.dense is not None and self.dense[2] is None
            follows = follows and bool(((product.a >= self.products) & (product.a < self.answers)).all())
            require(follows, name, "an Add of the bias of the one dense head", "another Add")
            assert self.dense is not None
            head, kernel, _ = self.dense
            self.dense = head, kernel, _vector(name, bias.a, kernel.shape[1])
            return Value(product.a + (self.answers - self.products), product.of)
        a, w = given[:2]
        bias = given[2] if len(given) > 2 else None
        ours = a is not None and w is not None and a.of and not w.of and w.a.ndim == 2
        if not (ours and a and w):
            raise InputError(name, "values of the GRU times a constant matrix", "something else")
        plain = attributes.get("alpha", 1.0) == 1 and attributes.get("beta", 1.0) == 1 and not attributes.get("transA")
        require(plain, name, "alpha 1, beta 1 and transA 0", attributes)
        require(bool(self.cells) and self.dense is None, name, "one dense head behind the last GRU", "one besides")
        kernel = w.a.T if attributes.get("transB") else w.a
        features = np.concatenate([self.last, self.output.reshape(-1, self.output.shape[-1])])
        self.index = {row.tobytes(): i for i, row in reversed(list(enumerate(features)))}
        n_answers = len(features) * kernel.shape[1]
        self.products = int(self._fresh(name, (n_answers,))[0]) if n_answers else self.count
        self.answers = int(self._fresh(name, (n_answers,))[0]) if n_answers else self.count
        reads = all(row.tobytes() in self.index for row in a.a.reshape(-1, a.a.shape[-1]))
        require(reads, name, "the last GRU's output or last state, all features of it", "something else")
        require(kernel.shape[0] == features.shape[1], name, f"{features.shape[1]} input features", kernel.shape[0])
        known = bias is None or not bias.of
        require(known, name, "a constant bias", "a value computed from the inputs")
        self.dense = name, kernel, None if bias is None else _vector(name, bias.a, kernel.shape[1])
        numbers = self._answers(a.a)
        return Value(numbers if bias is not None else numbers - (self.answers - self.products), a.of)

    def _answers(self, features: NDArray) -> NDArray:
        """The numbers of the head's outputs for vectors of features on the last axis."""
        assert self.dense is not None
        width = self.dense[1].shape[1]
        rows = [self.index[row.tobytes()] for row in np.ascontiguousarray(features).reshape(-1, features.shape[-1])]
        numbers = self.answers + np.array(rows, int)[:, None] * width + np.arange(width)
        return numbers.reshape(*features.shape[:-1], width)

    def _moved(self, node: "onnx.NodeProto", name: str, given: list[Value | None]) -> list[Value]:
        """What operators give that move values, and on constants alone the arithmetic on shapes."""
        op, attributes = node.op_type, attributes_of(node)
        traced = [i for i, value in enumerate(given) if value is not None and value.of]
        arrays = [None if value is None else value.a for value in given]
        if op == "Constant":
            return [Value(self._constant(name, attributes))]
        if op in ARITHMETIC and not traced:
            small = all(a is not None and a.size <= SMALL and a.dtype.kind in "ib" for a in arrays)
            require(small, name, "arithmetic on shapes alone", op)
            return [Value(np.asarray(ARITHMETIC[op](*arrays)))]
        if op == "Shape":
            assert arrays[0] is not None
            return [Value(np.array(arrays[0].shape[attributes.get("start", 0) : attributes.get("end")], np.int64))]
        if op == "ConstantOfShape":
            assert arrays[0] is not None
            shape = [int(n) for n in arrays[0]]
            bound(name, math.prod(shape))
            fill = array(name, attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
            return [Value(np.broadcast_to(fill.reshape(()), shape))]
        served = "GRU nodes, one dense head, and operators that only move values"
        require(op in MOVES, name, served, f"a node {op}")
        only = traced == (list(range(len(given))) if op == "Concat" else [0]) or not traced
        require(only, name, "values of the inputs on the first input alone", f"a {op} that mixes them with constants")
        of = given[traced[0]].of if traced else 0  # pyright: ignore[reportOptionalMemberAccess], traced are there
        if op == "Cast":
            to = attributes["to"]
            integers = (self.onnx.TensorProto.INT32, self.onnx.TensorProto.INT64)
            stays = not of or to == of or {to, of} <= set(integers)
            require(stays, name, "a Cast that changes nothing", f"one to dtype {to}")
            if of:
                return [Value(arrays[0], to)]  # pyright: ignore[reportArgumentType], it is there
            return [Value(arrays[0].astype(self.onnx.helper.tensor_dtype_to_np_dtype(to)))]  # pyright: ignore[reportOptionalMemberAccess]
        results = MOVES[op](name, attributes | {"outputs": len(node.output)}, *arrays)
        return [Value(a, of) for a in (results if isinstance(results, list) else [results])]

    def _constant(self, name: str, attributes: Mapping) -> NDArray:
        ((key, value),) = attributes.items()
        if key == "value":
            return array(name, value)
        dtypes = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
        require(key in dtypes, name, f"a constant of {['value', *dtypes]}", key)
        return np.array(value, dtypes[key])


def _vector(name: str, bias: NDArray, width: int) -> NDArray:
    require(bias.shape in ((width,), (1, width)), name, f"a bias of shape ({width},)", bias.shape)
    return bias.reshape(width)


def _shown(found: NDArray, forms: list[NDArray]) -> bool:
    """Whether an array is one of several, axes of one aside."""
    return any(np.array_equal(found.squeeze(), form.squeeze()) for form in forms)


def _first(protos: Any) -> str:
    return protos[0].name if protos else ""
