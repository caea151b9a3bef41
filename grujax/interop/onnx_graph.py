"""The words of ONNX: its functions by their names here, and a graph as it is written, node by node."""

import dataclasses
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grujax.errors import require_package
from grujax.interop.parts import Place
from grujax.types import PARAMETRIC

if TYPE_CHECKING:
    import onnx

LIMIT = 2**31 - 1
"""The bytes of one file: protobuf has no longer ones."""

ACTIVATIONS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    "tanh": ("Tanh", (), ()),
    "sigmoid": ("Sigmoid", (), ()),
    "relu": ("Relu", (), ()),
    "hard_sigmoid": ("HardSigmoid", (1 / 6,), (0.5,)),
    "softsign": ("Softsign", (), ()),
    "elu": ("Elu", (1.0,), ()),
    "identity": ("Affine", (1.0,), (0.0,)),
}
"""ONNX's name of the same function, its alpha and its beta; there is none for `hard_tanh`. Those with parameters have
ONNX's own names here."""

OUTPUTS = {"sigmoid": ("Sigmoid", {}), "softmax": ("Softmax", {"axis": -1})}
DTYPES = ("float16", "float32")
REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "mul": "ReduceProd"}
PLACE = Place(
    "ONNX",
    {
        "reset_after": (False,),
        "activation": (*ACTIVATIONS, *PARAMETRIC.values()),
        "gate_activation": (*ACTIVATIONS, *PARAMETRIC.values()),
        "reverse": (True,),
        "output_activation": tuple(OUTPUTS),
        "clip": None,
        "merge": tuple(REDUCTIONS),
        "pooling": ("mean", "max", None),
        "steps_per_frame": None,
    },
)
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


def function(activation: Any) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """ONNX's name of an activation, its alpha and its beta.

    >>> function("relu"), function(PARAMETRIC["LeakyRelu"](0.2))
    (('Relu', (), ()), ('LeakyRelu', (0.2,), ()))
    """
    if isinstance(activation, str):
        return ACTIVATIONS[activation]
    fields = dataclasses.asdict(activation)
    alpha, beta = ((fields[key],) if key in fields else () for key in ("alpha", "beta"))
    return type(activation).__name__, alpha, beta


class Graph:
    """Nodes in the order in which they run, and constants; every value by its name."""

    def __init__(self, dtype: np.dtype) -> None:
        self.onnx, self.dtype = module(), dtype
        self.nodes: list[onnx.NodeProto] = []
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
