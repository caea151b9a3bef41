"""One GRU node of a graph: its fields and its cells."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grujax.core.weight_layouts import DIALECTS
from grujax.errors import InputError, require
from grujax.interop.onnx_write import ACTIVATIONS, module
from grujax.interop.weight_layouts import Cell, read

if TYPE_CHECKING:
    import onnx


def cells_of(node: "onnx.NodeProto", given: list[NDArray | None], update: str = "keep") -> tuple[dict, dict[str, Cell]]:
    """A GRU node's fields of the model, and its cells, forward and backward, by the names of their tensors.

    Args:
      given: W (D, 3H, I), R (D, 3H, H) and B (D, 6H) or None.

    Raises:
      InputError: naming the node or tensor that is not that of a GRU which grujax has.
    """
    name, attributes = name_of(node), attributes_of(node)
    known = {"hidden_size", "linear_before_reset", "direction", "activations", "activation_alpha", "activation_beta"}
    for key in sorted(attributes.keys() - known - {"clip", "layout"}):
        raise InputError(name, "the attributes of a GRU", repr(key))
    remedy = "ONNX Runtime has no such GRU: give it x (T, B, I) through a Transpose."
    require(attributes.get("layout", 0) == 0, name, "layout 0", attributes.get("layout"), remedy)
    direction = attributes.get("direction", b"forward")
    two = {b"forward": False, b"bidirectional": True}
    require(direction in two, name, '"forward" or "bidirectional"', f"direction {direction!r}")
    directions = 1 + two[direction]
    (w, r, b), keys = given, [*node.input[1:4], "", ""]
    assert w is not None and r is not None
    for key, a in ((keys[0], w), (keys[1], r)):
        fits = a.ndim == 3 and a.shape[0] == directions
        require(
            fits, key, f"three axes, the first {directions} as direction {direction.decode()} has", f"shape {a.shape}"
        )
    hidden_size = r.shape[-1]
    stated = attributes.get("hidden_size", hidden_size)
    require(stated == hidden_size, name, f"hidden_size {hidden_size}, that of {keys[1]}", stated)
    if b is not None:
        require(b.shape == (directions, 6 * hidden_size), keys[2], f"shape {(directions, 6 * hidden_size)}", b.shape)
    cells = {}
    for d in range(directions):
        at = f"[{d}]" if directions > 1 else ""
        tensors = {f"{keys[0]}{at}": w[d], f"{keys[1]}{at}": r[d]}
        if b is not None:
            parts = np.split(b[d], 2)
            tensors |= {f"{keys[2]}{at}[{part}]": a for part, a in zip((":3H", "3H:"), parts, strict=True)}
        cells[f"{keys[0]}{at}"] = read(tensors, DIALECTS["onnx"], update)
    clip = attributes.get("clip")
    require(clip is None or clip > 0, name, "a clip above 0", clip)
    gate_activation, activation = _activations(name, attributes, directions)
    return {
        "bidirectional": two[direction],
        "reset_after": bool(attributes.get("linear_before_reset", 0)),
        "gate_activation": gate_activation,
        "activation": activation,
        "clip": clip,
    }, cells


def _activations(name: str, attributes: Mapping, directions: int) -> tuple[str, str]:
    """The names here of the functions of the gates and of the candidate."""
    given = [f.decode() for f in attributes.get("activations", [b"Sigmoid", b"Tanh"] * directions)]
    alphas, betas = list(attributes.get("activation_alpha", ())), list(attributes.get("activation_beta", ()))
    require(len(given) == 2 * directions, name, f"{2 * directions} activations", given)
    found = []
    for function in given:
        ours = {onnx.lower(): (key, len(alpha), len(beta)) for key, (onnx, alpha, beta) in ACTIVATIONS.items()}
        served = sorted(onnx for onnx, *_ in ACTIVATIONS.values())
        require(function.lower() in ours, name, f"activations of {served}", repr(function))
        key, n_alpha, n_beta = ours[function.lower()]
        _, alpha, beta = ACTIVATIONS[key]
        default = {"elu": (1.0,), "hard_sigmoid": (0.2,)}.get(key, alpha)  # where a node gives none
        a = tuple(alphas[:n_alpha]) or default
        b = tuple(betas[:n_beta]) or beta
        same = np.array_equal(np.array([*a, *b], np.float32), np.array([*alpha, *beta], np.float32))
        require(same, name, f"{function} with alpha {alpha} and beta {beta}", f"alpha {a} and beta {b}")
        alphas, betas = alphas[n_alpha:], betas[n_beta:]
        found.append(key)
    require(not alphas and not betas, name, "an alpha and beta for each activation", "more of them")
    require(found[:2] * directions == found, name, "the same activations in both directions", given)
    return found[0], found[1]


def name_of(node: "onnx.NodeProto") -> str:
    """What errors call a node."""
    return node.name or next((out for out in node.output if out), node.op_type)


def attributes_of(node: "onnx.NodeProto") -> dict[str, Any]:
    get = module().helper.get_attribute_value
    return {attribute.name: get(attribute) for attribute in node.attribute}
