"""The cell, the layer and the models for Flax Linen."""

from flax import linen as nn

from grujax.linen.cell import GRUCell
from grujax.linen.layer import GRU
from grujax.linen.model import GRUEncoder, GRUModel

MODELS: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (GRU, GRUCell, GRUEncoder, GRUModel)}
"""The modules by the names that model files and `grujax.nnx` have for them."""

__all__ = ["GRU", "MODELS", "GRUCell", "GRUEncoder", "GRUModel"]
