"""grujax: the gated recurrent unit for JAX, exactly as torch.nn.GRU computes it.

Submodules are imported where they are first used: `grujax.nnx`, `grujax.interop`, `grujax.training` and the others.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from grujax import kernels
from grujax.core.sequence import gru
from grujax.errors import InputError
from grujax.linen.cell import GRUCell
from grujax.linen.layer import GRU
from grujax.linen.model import GRUEncoder, GRUModel
from grujax.saving import load, save
from grujax.types import GRUSpec, GRUWeights

if TYPE_CHECKING:
    from grujax import bench as bench
    from grujax import data as data
    from grujax import equations as equations
    from grujax import inspect as inspect
    from grujax import interop as interop
    from grujax import linen as linen
    from grujax import nnx as nnx
    from grujax import saving as saving
    from grujax import testing as testing
    from grujax import training as training

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

if not TYPE_CHECKING:  # a checker that sees this function takes every name for a submodule

    def __getattr__(name: str) -> ModuleType:
        if name in _SUBMODULES:
            return importlib.import_module(f"grujax.{name}")
        raise AttributeError(f"module 'grujax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES, "__version__"})
