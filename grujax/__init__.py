"""grujax: the gated recurrent unit for JAX, exactly as torch.nn.GRU computes it."""

from grujax import kernels
from grujax.cell import GRUCell
from grujax.errors import InputError
from grujax.functional import gru
from grujax.layer import GRU
from grujax.model import GRUEncoder, GRUModel
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
