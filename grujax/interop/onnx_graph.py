"""ONNX's names of activations, the reading of a GRU node, and `Graph`, to which nodes are added one by one."""

import dataclasses
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS, Cell, read
from grujax.errors import InputError, require, require_equal, require_one_of, require_package
from grujax.interop.parts import Place
from grujax.types import PARAMETRIC, Activation, Affine, Elu, HardSigmoid

Model = Node = Body = Tensor = Any
"""Protobuf messages of the package onnx, which is imported only when it is needed."""
LIMIT = 2**31 - 1
"""The most bytes of one file, a limit of protobuf."""

PLAIN = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "softsign": "Softsign"}
NAMED = {"hard_sigmoid": HardSigmoid(1 / 6, 0.5), "elu": Elu(1.0), "identity": Affine(1.0, 0.0)}
"""grujax's named activations in ONNX, which has no `hard_tanh`. Those with parameters have the same class names."""
ACTIVATIONS = (*PLAIN, *NAMED, *PARAMETRIC.values())
OUTPUTS = {"sigmoid": ("Sigmoid", {}), "softmax": ("Softmax", {"axis": -1})}
DTYPES = ("float16", "float32")
REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "mul": "ReduceProd"}
PLACE = Place(
    "ONNX",
    {
        "reset_after": (False,),
        "activation": ACTIVATIONS,
        "gate_activation": ACTIVATIONS,
        "reverse": (True,),
        "output_activation": tuple(OUTPUTS),
        "clip": None,
        "initial_state": ("learned",),
        "merge": tuple(REDUCTIONS),
        "pooling": ("mean", "max", None),
        "steps_per_frame": None,
    },
)
KNOWN = {"hidden_size", "linear_before_reset", "direction", "activations", "activation_alpha", "activation_beta"}
KNOWN |= {"clip", "layout"}
"""The attributes of a GRU node."""
METADATA = "grujax"
HINTS: dict[str, Container] = {
    "merge": ("concat", *REDUCTIONS),
    "pooling": ("last", "mean", "max", None),
    "update": ("keep", "take"),
    "output_activation": (None, *OUTPUTS),
    "steps_per_frame": range(1, 2**31),
}
"""Fields that the metadata store besides the class and `clip`, because the graph does not, and their allowed values."""


def module() -> Any:
    return require_package("onnx", "onnx")


def copied(message: Any) -> Any:
    """A copy of a message of onnx."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def function(activation: Any) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """(ONNX's name of an activation, its alpha, its beta); the latter two are empty if it has none.

    >>> function("relu"), function(PARAMETRIC["LeakyRelu"](0.2))
    (('Relu', (), ()), ('LeakyRelu', (0.2,), ()))
    """
    if activation in PLAIN:
        return PLAIN[activation], (), ()
    parametric = NAMED.get(activation, activation)
    alpha, beta = ((getattr(parametric, key),) if hasattr(parametric, key) else () for key in ("alpha", "beta"))
    return type(parametric).__name__, alpha, beta


class Graph:
    """The nodes of a graph in the order in which they run, and its constants. Values are referred to by name."""

    def __init__(self, dtype: np.dtype) -> None:
        self.onnx, self.dtype = module(), dtype
        self.nodes: list[Node] = []
        self.constants: dict[str, NDArray] = {}

    def constant(self, name: str, a: Any) -> str:
        self.constants[name] = np.ascontiguousarray(a)
        return name

    def axes(self, *numbers: int) -> str:
        """Adds axes or a shape as a constant, int64 (n,)."""
        return self.constant("_".join(["axes", *map(str, numbers)]), np.array(numbers, np.int64))

    def scalar(self, name: str, a: float, dtype: Any = None) -> str:
        return self.constant(name, np.array(a, dtype or self.dtype))

    def add(self, op: str, inputs: list[str], out: str | list[str] = "", **attributes: Any) -> str:
        """Adds a node; returns the name of its first output, by default `{op}_{number}`."""
        name = f"{op}_{len(self.nodes)}"
        outputs = [out or name] if isinstance(out, str) else out
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def cast(self, value: str, dtype: Any) -> str:
        to = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.add("Cast", [value], to=to)

    def at_full_size(self, name: str, a: NDArray) -> str:
        """Adds a constant in its own dtype, and a cast to the graph's if that differs."""
        constant = self.constant(name, a)
        return constant if a.dtype == self.dtype else self.cast(constant, self.dtype)


def graphs_in(node: Node) -> list[Body]:
    """The bodies of an `If` or `Loop`."""
    return [inner for a in node.attribute for inner in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def nodes_in(graph: Body) -> Iterator[Node]:
    """All nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for inner in graphs_in(node):
            yield from nodes_in(inner)


def cells_of(node: Node, weights: list[NDArray | None], update: str = "keep") -> tuple[dict, dict[str, Cell]]:
    """Reads a GRU node: fields of the model, and the forward and backward cells by the names of their tensors.

    weights: W (D, 3H, I), R (D, 3H, H) and B (D, 6H) or None.

    Raises:
      InputError: grujax does not have this GRU.
    """
    name, attributes = name_of(node), attributes_of(node)
    for key in sorted(attributes.keys() - KNOWN):
        raise InputError(name, f"only the attributes {sorted(KNOWN)}", repr(key))
    require(attributes.get("layout", 0) in (0, 1), name, "layout 0 or 1", attributes.get("layout"))
    direction = attributes.get("direction", b"forward")
    direction = direction.decode("utf-8", "replace")
    require_one_of(direction, ("forward", "reverse", "bidirectional"), f"{name}, direction")
    two = direction == "bidirectional"
    (w, r, b), keys, directions = weights, [*node.input[1:4], "", ""], 1 + two
    assert w is not None and r is not None
    for key, a in zip(keys, (w, r), strict=False):
        expected = f"three axes, the first of size {directions} for direction {direction}"
        require(a.ndim == 3 and a.shape[0] == directions, key, expected, f"shape {a.shape}")
    hidden_size, clip = r.shape[-1], attributes.get("clip")
    stated = attributes.get("hidden_size", hidden_size)
    require(stated == hidden_size, name, f"hidden_size {hidden_size}, as in {keys[1]}", stated)
    if b is not None:
        require_equal(b.shape, (directions, 6 * hidden_size), keys[2])
    cells = {}
    for d in range(directions):
        names = [f"{key}[{d}]" if two else key for key in keys]
        tensors = {key: a[d] for key, a in zip(names, weights, strict=False) if a is not None}
        cells[names[0]] = read(tensors, DIALECTS["onnx"], update)
    require(clip is None or clip > 0, name, "a clip above 0", clip)
    gate_activation, activation = _activations(name, attributes, directions)
    fields = {"bidirectional": two, "reset_after": bool(attributes.get("linear_before_reset", 0))}
    fields |= {"reverse": True} if direction == "reverse" else {}
    fields |= {"gate_activation": gate_activation, "activation": activation, "clip": clip and _written(clip)}
    return fields, cells


def _activations(name: str, attributes: Mapping, directions: int) -> tuple[Activation, Activation]:
    """The activations of the gates and of the candidate."""
    stated = [f.decode("utf-8", "replace") for f in attributes.get("activations", [b"Sigmoid", b"Tanh"] * directions)]
    left = {key: list(attributes.get(f"activation_{key}", ())) for key in ("alpha", "beta")}
    require(len(stated) == 2 * directions, name, f"{2 * directions} activations", stated)
    plain = {theirs.lower(): ours for ours, theirs in PLAIN.items()}
    parametric, result = {theirs.lower(): cls for theirs, cls in PARAMETRIC.items()}, []
    for key in map(str.lower, stated):
        require_one_of(key, sorted(plain | parametric), f"{name}, activations")
        if key in plain:
            result.append(plain[key])
            continue
        fields = [f.name for f in dataclasses.fields(parametric[key])]
        f = parametric[key](**{field: _written(left[field].pop(0)) for field in fields if left[field]})  # else defaults
        named = (n for n, g in NAMED.items() if type(f) is type(g) and np.array_equal(_numbers(f), _numbers(g)))
        result.append(next(named, f))
    require(not any(left.values()), name, "at most one alpha and one beta per activation", "more of them")
    require(result[:2] * directions == result, name, "the same activations in both directions", stated)
    return result[0], result[1]


def _written(number: float) -> float:
    """The shortest decimal of a float32: 0.2 and not 0.20000000298."""
    return float(str(np.float32(number)))


def _numbers(activation: Any) -> NDArray:
    return np.array(dataclasses.astuple(activation), np.float32)


def name_of(node: Node) -> str:
    """The name of a node in errors."""
    return node.name or next((out for out in node.output if out), node.op_type)


def attributes_of(node: Node) -> dict[str, Any]:
    get = module().helper.get_attribute_value
    return {attribute.name: get(attribute) for attribute in node.attribute}
