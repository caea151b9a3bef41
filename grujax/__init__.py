"""grujax: the gated recurrent unit for JAX, exactly as torch.nn.GRU computes it.

Submodules, JAX and Flax are imported on first use.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grujax import bench as bench
    from grujax import data as data
    from grujax import equations as equations
    from grujax import equinox as equinox
    from grujax import estimators as estimators
    from grujax import inspect as inspect
    from grujax import interop as interop
    from grujax import kernels as kernels
    from grujax import linen as linen
    from grujax import nnx as nnx
    from grujax import saving as saving
    from grujax import seq2seq as seq2seq
    from grujax import testing as testing
    from grujax import training as training
    from grujax.core.sequence import gru
    from grujax.errors import InputError
    from grujax.linen import GRU, GRUCell, GRUEncoder, GRUModel
    from grujax.saving import load, save
    from grujax.types import GRUSpec, GRUWeights

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "GRUCell",
    "GRUEncoder",
    "GRUModel",
    "GRUSpec",
    "GRUWeights",
    "InputError",
    "gru",
    "kernels",
    "load",
    "save",
]
_SUBMODULES = {module.name for module in pkgutil.iter_modules(__path__)}
_PLACES = {
    "linen": ("GRU", "GRUCell", "GRUEncoder", "GRUModel"),
    "types": ("GRUSpec", "GRUWeights"),
    "errors": ("InputError",),
    "core.sequence": ("gru",),
    "saving": ("load", "save"),
}

if not TYPE_CHECKING:  # with this function, a type checker would accept every name as an attribute

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f"grujax.{name}")
        for module, names in _PLACES.items():
            if name in names:
                globals()[name] = getattr(importlib.import_module(f"grujax.{module}"), name)
                return globals()[name]
        raise AttributeError(f"module 'grujax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES, "__version__"})
