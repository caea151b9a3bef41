"""The cell, the layer and the models for Flax Linen."""

from typing import TypeAlias

from grujax.errors import InputError
from grujax.linen.cell import GRUCell
from grujax.linen.layer import GRU
from grujax.linen.model import GRUEncoder, GRUModel

Module: TypeAlias = GRU | GRUCell | GRUEncoder | GRUModel
"""One of the four."""
MODELS: dict[str, type[Module]] = {cls.__name__: cls for cls in (GRU, GRUCell, GRUEncoder, GRUModel)}
"""The modules by the names that model files and `grujax.nnx` have for them."""


def require_own(model: object, remedy: str = "") -> Module:
    """`model`, one of `MODELS` itself; `InputError` for another class, a subclass too."""
    found = type(model).__name__
    if MODELS.get(found) is not type(model) or not isinstance(model, Module):
        raise InputError("model", f"one of {sorted(MODELS)} of grujax", f"{type(model).__module__}.{found}", remedy)
    return model


__all__ = ["GRU", "MODELS", "GRUCell", "GRUEncoder", "GRUModel", "Module", "require_own"]
