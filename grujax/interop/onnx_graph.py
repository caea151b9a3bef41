"""The words of ONNX: its functions by their names here, a GRU node, and a graph as it is written, node by node."""

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
"""The messages of onnx, a package that is imported where it is needed."""
LIMIT = 2**31 - 1
"""The bytes of one file: protobuf has no longer ones."""

PLAIN = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "softsign": "Softsign"}
NAMED = {"hard_sigmoid": HardSigmoid(1 / 6, 0.5), "elu": Elu(1.0), "identity": Affine(1.0, 0.0)}
"""The functions that have a name here, as ONNX calls them; there is none for `hard_tanh`. Those with parameters have
ONNX's own names here."""
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
"""Fields that the metadata hold beside the class and `clip`, and what they may be: a graph does not tell them."""


def module() -> Any:
    return require_package("onnx", "onnx")


def copied(message: Any) -> Any:
    """A message of onnx, alone."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def function(activation: Any) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """ONNX's name of an activation, its alpha and its beta.

    >>> function("relu"), function(PARAMETRIC["LeakyRelu"](0.2))
    (('Relu', (), ()), ('LeakyRelu', (0.2,), ()))
    """
    if activation in PLAIN:
        return PLAIN[activation], (), ()
    of = NAMED.get(activation, activation)
    alpha, beta = ((getattr(of, key),) if hasattr(of, key) else () for key in ("alpha", "beta"))
    return type(of).__name__, alpha, beta


class Graph:
    """Nodes in the order in which they run, and constants; every value by its name."""

    def __init__(self, dtype: np.dtype) -> None:
        self.onnx, self.dtype = module(), dtype
        self.nodes: list[Node] = []
        self.constants: dict[str, NDArray] = {}

    def constant(self, name: str, a: Any) -> str:
        self.constants[name] = np.ascontiguousarray(a)
        return name

    def axes(self, *of: int) -> str:
        """Axes or a shape, as operators take them: int64 (n,)."""
        return self.constant("_".join(["axes", *map(str, of)]), np.array(of, np.int64))

    def scalar(self, name: str, a: float, dtype: Any = None) -> str:
        return self.constant(name, np.array(a, dtype or self.dtype))

    def add(self, op: str, inputs: list[str], out: str | list[str] = "", **attributes: Any) -> str:
        """A node; the name of its first output, by default `{op}_{number}`."""
        name = f"{op}_{len(self.nodes)}"
        outputs = [out or name] if isinstance(out, str) else out
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def cast(self, value: str, dtype: Any) -> str:
        to = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.add("Cast", [value], to=to)

    def at_full_size(self, name: str, a: NDArray) -> str:
        """A constant kept in its own dtype, read in the graph's."""
        constant = self.constant(name, a)
        return constant if a.dtype == self.dtype else self.cast(constant, self.dtype)


def graphs_in(node: Node) -> list[Body]:
    """The bodies of an `If` or `Loop`."""
    return [inner for a in node.attribute for inner in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def nodes_in(graph: Body) -> Iterator[Node]:
    """All nodes, those of graphs inside nodes too."""
    for node in graph.node:
        yield node
        for inner in graphs_in(node):
            yield from nodes_in(inner)


def cells_of(node: Node, given: list[NDArray | None], update: str = "keep") -> tuple[dict, dict[str, Cell]]:
    """A GRU node's fields of the model, and its cells, forward and backward, by the names of their tensors.

    given: W (D, 3H, I), R (D, 3H, H) and B (D, 6H) or None. `InputError` for what is no GRU that grujax has.
    """
    name, attributes = name_of(node), attributes_of(node)
    for key in sorted(attributes.keys() - KNOWN):
        raise InputError(name, "the attributes of a GRU", repr(key))
    require(attributes.get("layout", 0) in (0, 1), name, "layout 0 or 1", attributes.get("layout"))
    direction = attributes.get("direction", b"forward")
    direction = direction.decode("utf-8", "replace")
    require_one_of(direction, ("forward", "reverse", "bidirectional"), f"{name}, direction")
    two = direction == "bidirectional"
    (w, r, b), keys, directions = given, [*node.input[1:4], "", ""], 1 + two
    assert w is not None and r is not None
    for key, a in zip(keys, (w, r), strict=False):
        expected = f"three axes, the first {directions} as direction {direction} has"
        require(a.ndim == 3 and a.shape[0] == directions, key, expected, f"shape {a.shape}")
    hidden_size, clip = r.shape[-1], attributes.get("clip")
    stated = attributes.get("hidden_size", hidden_size)
    require(stated == hidden_size, name, f"hidden_size {hidden_size}, that of {keys[1]}", stated)
    if b is not None:
        require_equal(b.shape, (directions, 6 * hidden_size), keys[2])
    cells = {}
    for d in range(directions):
        names = [f"{key}[{d}]" if two else key for key in keys]
        tensors = {key: a[d] for key, a in zip(names, given, strict=False) if a is not None}
        cells[names[0]] = read(tensors, DIALECTS["onnx"], update)
    require(clip is None or clip > 0, name, "a clip above 0", clip)
    gate_activation, activation = _activations(name, attributes, directions)
    fields = {"bidirectional": two, "reset_after": bool(attributes.get("linear_before_reset", 0))}
    fields |= {"reverse": True} if direction == "reverse" else {}
    fields |= {"gate_activation": gate_activation, "activation": activation, "clip": clip and _written(clip)}
    return fields, cells


def _activations(name: str, attributes: Mapping, directions: int) -> tuple[Activation, Activation]:
    """The functions of the gates and of the candidate."""
    given = [f.decode("utf-8", "replace") for f in attributes.get("activations", [b"Sigmoid", b"Tanh"] * directions)]
    left = {key: list(attributes.get(f"activation_{key}", ())) for key in ("alpha", "beta")}
    require(len(given) == 2 * directions, name, f"{2 * directions} activations", given)
    plain = {theirs.lower(): ours for ours, theirs in PLAIN.items()}
    parametric, found = {theirs.lower(): of for theirs, of in PARAMETRIC.items()}, []
    for key in map(str.lower, given):
        require_one_of(key, sorted(plain | parametric), f"{name}, activations")
        if key in plain:
            found.append(plain[key])
            continue
        fields = [f.name for f in dataclasses.fields(parametric[key])]
        of = parametric[key](**{f: _written(left[f].pop(0)) for f in fields if left[f]})  # ONNX's defaults are ours
        named = (
            ours for ours, one in NAMED.items() if type(one) is type(of) and np.array_equal(_numbers(one), _numbers(of))
        )
        found.append(next(named, of))
    require(not any(left.values()), name, "an alpha and beta for each activation", "more of them")
    require(found[:2] * directions == found, name, "the same activations in both directions", given)
    return found[0], found[1]


def _written(number: float) -> float:
    """A number of 32 bits as it was written: 0.2 and not 0.20000000298."""
    return float(str(np.float32(number)))


def _numbers(activation: Any) -> NDArray:
    return np.array(dataclasses.astuple(activation), np.float32)


def name_of(node: Node) -> str:
    """What errors call a node."""
    return node.name or next((out for out in node.output if out), node.op_type)


def attributes_of(node: Node) -> dict[str, Any]:
    get = module().helper.get_attribute_value
    return {attribute.name: get(attribute) for attribute in node.attribute}
