"""The same cell, layer and models for Flax NNX. Parameters are made with the module; all else is shared with Linen.

As with `nnx.Dropout`, a new module is in training: `module.eval()` and `module.train()` switch, or `deterministic` in a
call. `nnx.state(module, nnx.Param)` has the paths of Linen's parameters (`encoder/gru/l0/w_ih`, `head/kernel`), their
shapes and dtypes; the same seed gives other values of the same distributions. Files and converters speak Linen:

    grujax.save(path, *to_linen(module))            module = from_linen(*grujax.load(path), rngs=nnx.Rngs(0))
"""

from grujax.nnx.bridge import from_linen, to_linen
from grujax.nnx.cell import GRUCell
from grujax.nnx.layer import GRU
from grujax.nnx.model import GRUEncoder, GRUModel, Statistic

__all__ = ["GRU", "GRUCell", "GRUEncoder", "GRUModel", "Statistic", "from_linen", "to_linen"]
