"""The cell, the layer and the models for Flax Linen."""

from collections.abc import Mapping
from typing import TypeAlias, TypeVar

import flax.linen as nn

from grujax.errors import InputError
from grujax.linen.cell import GRUCell
from grujax.linen.ensemble import GRUEnsemble
from grujax.linen.layer import GRU
from grujax.linen.model import GRUEncoder, GRUModel

Module: TypeAlias = GRU | GRUCell | GRUEncoder | GRUModel
"""Any of the four modules."""
MODELS: dict[str, type[Module]] = {cls.__name__: cls for cls in (GRU, GRUCell, GRUEncoder, GRUModel)}
"""The modules by name. Model files and `grujax.nnx` use the same names."""

INSTEAD = {
    "grujax.linen.ensemble": "Pass one member, ensemble.model and ensemble.member(variables, 0); save it first.",
    "grujax.nnx": "For a module of grujax.nnx, pass *grujax.nnx.to_linen(module).",
    "grujax.seq2seq.nnx": "For a Seq2Seq of Flax NNX, pass *grujax.seq2seq.nnx.to_linen(module).",
    "grujax.seq2seq.linen": "A Seq2Seq converts only to Flax NNX, by grujax.seq2seq.nnx.from_linen.",
    "grujax.equinox": 'Pass a grujax.GRU with the same fields, and {"params": layer.params}.',
}
"""By package, what to pass in place of a grujax model that is not one of `MODELS`."""

Own = TypeVar("Own", bound=nn.Module)


def require_own(model: object, models: Mapping[str, type[Own]] = MODELS) -> Own:
    """Returns `model` if its class is one of `models`; raises `InputError` for any other class, even a subclass."""
    name, package = type(model).__name__, type(model).__module__
    cls = models.get(name)
    if cls is None or type(model) is not cls:
        raise InputError("model", f"one of {sorted(models)} of grujax", f"{package}.{name}", instead_of(model))
    return model


def instead_of(model: object) -> str:
    """Returns the entry of `INSTEAD` for this model; an empty string for a model of another package."""
    return next((INSTEAD[name] for name in INSTEAD if type(model).__module__.startswith(name)), "")


__all__ = ["GRU", "MODELS", "GRUCell", "GRUEncoder", "GRUEnsemble", "GRUModel", "Module", "instead_of", "require_own"]
