"""grujax: the gated recurrent unit for JAX, exactly as torch.nn.GRU computes it."""

from grujax import kernels
from grujax.core.sequence import gru
from grujax.errors import InputError
from grujax.linen.cell import GRUCell
from grujax.linen.layer import GRU
from grujax.linen.model import GRUEncoder, GRUModel
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
