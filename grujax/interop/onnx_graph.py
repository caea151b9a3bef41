"""The words of ONNX: its functions by their names here, what it has a place for, and what a GRU node says."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS, Cell, read
from grujax.errors import InputError, require, require_equal, require_one_of, require_package
from grujax.interop.parts import Place
from grujax.types import PARAMETRIC, Activation, Affine, Elu, HardSigmoid

Model = Node = Body = Tensor = Any
"""The messages of onnx, a package that is imported where it is needed."""

PLAIN = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "softsign": "Softsign"}
NAMED = {"hard_sigmoid": HardSigmoid(1 / 6, 0.5), "elu": Elu(1.0), "identity": Affine(1.0, 0.0)}
"""The functions that have a name here, as ONNX calls them; there is none for `hard_tanh`. Those with parameters have
ONNX's own names here."""
ACTIVATIONS = (*PLAIN, *NAMED, *PARAMETRIC.values())
OUTPUTS = {"sigmoid": ("Sigmoid", {}), "softmax": ("Softmax", {"axis": -1})}
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
DIRECTIONS = ("forward", "reverse", "bidirectional")
DEFAULTS = {"direction": b"forward", "linear_before_reset": 0, "layout": 0, "clip": None, "hidden_size": None}
DEFAULTS |= {"activations": (), "activation_alpha": (), "activation_beta": ()}
"""Of the attributes of a GRU node."""


def module() -> Any:
    return require_package("onnx", "onnx")


def copied(message: Any) -> Any:
    """A message of onnx, alone."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def graphs_in(node: Node) -> list[Body]:
    """The bodies of an `If` or `Loop`."""
    return [inner for a in node.attribute for inner in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def nodes_in(graph: Body) -> Iterator[Node]:
    """All nodes, those of graphs inside nodes too."""
    for node in graph.node:
        yield node
        for inner in graphs_in(node):
            yield from nodes_in(inner)


def name_of(node: Node) -> str:
    """What errors call a node."""
    return node.name or next((out for out in node.output if out), node.op_type)


def attributes_of(node: Node) -> dict[str, Any]:
    get = module().helper.get_attribute_value
    return {attribute.name: get(attribute) for attribute in node.attribute}


def functions_of(activations: list[Any]) -> dict[str, Any]:
    """Activations as the attributes of a GRU node.

    >>> functions_of(["relu", PARAMETRIC["LeakyRelu"](0.2)])
    {'activations': ['Relu', 'LeakyRelu'], 'activation_alpha': [0.2], 'activation_beta': []}
    """
    of = [NAMED.get(one, one) for one in activations]
    names = [PLAIN[one] if one in PLAIN else type(one).__name__ for one in of]
    numbers = ([getattr(one, key) for one in of if hasattr(one, key)] for key in ("alpha", "beta"))
    return dict(zip(("activations", "activation_alpha", "activation_beta"), (names, *numbers), strict=True))


def cells_of(node: Node, given: list[NDArray | None], update: str = "keep") -> tuple[dict, dict[str, Cell]]:
    """A GRU node's fields of the model, and its cells, forward and backward, by the names of their tensors.

    given: W (D, 3H, I), R (D, 3H, H) and B (D, 6H) or None. `InputError` for what is no GRU that grujax has.
    """
    name, stated = name_of(node), attributes_of(node)
    for key in sorted(stated.keys() - DEFAULTS):
        raise InputError(name, "the attributes of a GRU", repr(key))
    of = DEFAULTS | stated
    require(of["layout"] in (0, 1), name, "layout 0 or 1", of["layout"])
    direction = of["direction"].decode("utf-8", "replace")
    require_one_of(direction, DIRECTIONS, f"{name}, direction")
    directions = 2 if direction == "bidirectional" else 1
    (w, r, b), keys = given, [*node.input[1:4], "", ""]
    assert w is not None and r is not None
    for key, a in zip(keys, (w, r), strict=False):
        expected = f"three axes, the first {directions} as direction {direction} has"
        require(a.ndim == 3 and a.shape[0] == directions, key, expected, f"shape {a.shape}")
    hidden_size, clip = r.shape[-1], of["clip"]
    same = of["hidden_size"] in (None, hidden_size)
    require(same, name, f"hidden_size {hidden_size}, that of {keys[1]}", of["hidden_size"])
    if b is not None:
        require_equal(b.shape, (directions, 6 * hidden_size), keys[2])
    require(clip is None or clip > 0, name, "a clip above 0", clip)
    cells = {}
    for d in range(directions):
        names = [f"{key}[{d}]" if directions == 2 else key for key in keys]
        tensors = {key: a[d] for key, a in zip(names, given, strict=False) if a is not None}
        cells[names[0]] = read(tensors, DIALECTS["onnx"], update)
    gate_activation, activation = _activations(name, of, directions)
    fields = {"bidirectional": directions == 2, "reset_after": bool(of["linear_before_reset"])}
    fields |= {"reverse": True} if direction == "reverse" else {}
    return fields | {
        "gate_activation": gate_activation,
        "activation": activation,
        "clip": clip and _number(clip),
    }, cells


def _activations(name: str, of: Mapping, directions: int) -> list[Activation]:
    """The functions of the gates and of the candidate."""
    given = [f.decode("utf-8", "replace") for f in of["activations"] or [b"Sigmoid", b"Tanh"] * directions]
    require(len(given) == 2 * directions, name, f"{2 * directions} activations", given)
    left = {key: list(of[f"activation_{key}"]) for key in ("alpha", "beta")}
    known: dict[str, Any] = {theirs.lower(): ours for ours, theirs in PLAIN.items()}
    known |= {theirs.lower(): cls for theirs, cls in PARAMETRIC.items()}
    found: list[Activation] = []
    for key in map(str.lower, given):
        require_one_of(key, sorted(known), f"{name}, activations")
        one = known[key]
        if isinstance(one, type):  # ONNX's defaults are ours
            numbers = {f.name: _number(left[f.name].pop(0)) for f in dataclasses.fields(one) if left[f.name]}
            one = one(**numbers)
            one = next((ours for ours, theirs in NAMED.items() if _rounded(theirs) == _rounded(one)), one)
        found.append(one)
    require(not any(left.values()), name, "an alpha and beta for each activation", "more of them")
    require(found[:2] * directions == found, name, "the same activations in both directions", given)
    return found[:2]


def _number(stored: float) -> float:
    """A number of 32 bits as it was written: 0.2 and not 0.20000000298."""
    return float(str(np.float32(stored)))


def _rounded(activation: Any) -> tuple:
    return (type(activation), *map(np.float32, dataclasses.astuple(activation)))
