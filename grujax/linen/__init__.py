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
"""One of the four."""
MODELS: dict[str, type[Module]] = {cls.__name__: cls for cls in (GRU, GRUCell, GRUEncoder, GRUModel)}
"""The modules by the names that model files and `grujax.nnx` have for them."""

INSTEAD = {
    "grujax.linen.ensemble": "Of an ensemble take ensemble.model and ensemble.member(variables, 0); save them first.",
    "grujax.nnx": "Of a module of grujax.nnx write *grujax.nnx.to_linen(module).",
    "grujax.seq2seq.nnx": "Of a Seq2Seq of Flax NNX write *grujax.seq2seq.nnx.to_linen(module).",
    "grujax.seq2seq.linen": "Its only other form is that of grujax.seq2seq.nnx.from_linen.",
    "grujax.equinox": 'Write grujax.GRU of the same fields, with {"params": layer.params}.',
}
"""What to pass in the place of a model of our own packages that is none of `MODELS`."""

Own = TypeVar("Own", bound=nn.Module)


def require_own(model: object, models: Mapping[str, type[Own]] = MODELS) -> Own:
    """`model`, one of `models` itself; `InputError` for another class, a subclass too."""
    found, package = type(model).__name__, type(model).__module__
    of = models.get(found)
    if of is None or type(model) is not of:
        raise InputError("model", f"one of {sorted(models)} of grujax", f"{package}.{found}", instead_of(model))
    return model


def instead_of(model: object) -> str:
    """What to pass in the place of this model, by `INSTEAD`; empty for a model of another package."""
    return next((INSTEAD[name] for name in INSTEAD if type(model).__module__.startswith(name)), "")


__all__ = ["GRU", "MODELS", "GRUCell", "GRUEncoder", "GRUEnsemble", "GRUModel", "Module", "instead_of", "require_own"]
