"""The cell, the layer and the models for Flax Linen."""

from typing import TypeAlias

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
    "grujax.linen.ensemble": "Of an ensemble pass a member: ensemble.model and ensemble.member(variables, 0).",
    "grujax.nnx": "Of a module of grujax.nnx write *grujax.nnx.to_linen(module).",
    "grujax.seq2seq": "Write the parameters of a Seq2Seq with orbax or safetensors (docs/seq2seq.md).",
    "grujax.equinox": 'Write grujax.GRU of the same fields, with {"params": layer.params}.',
}
"""What to pass in the place of a model of our own packages that is none of `MODELS`."""


def require_own(model: object) -> Module:
    """`model`, one of `MODELS` itself; `InputError` for another class, a subclass too."""
    found, package = type(model).__name__, type(model).__module__
    if MODELS.get(found) is not type(model) or not isinstance(model, Module):
        remedy = next((INSTEAD[name] for name in INSTEAD if package.startswith(name)), "")
        raise InputError("model", f"one of {sorted(MODELS)} of grujax", f"{package}.{found}", remedy)
    return model


__all__ = ["GRU", "MODELS", "GRUCell", "GRUEncoder", "GRUEnsemble", "GRUModel", "Module", "require_own"]
