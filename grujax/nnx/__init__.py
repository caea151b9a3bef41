"""The cell, the layer and the models for Flax NNX.

The constructor creates the parameters; everything else is shared with the Linen modules. As with `nnx.Dropout`, a new
module is in training mode: `module.eval()` and `module.train()` switch the mode, `deterministic` overrides it in a
call. `nnx.state(module, nnx.Param)` has the same paths (`encoder/gru/l0/w_ih`, `head/kernel`), shapes and dtypes as
Linen's parameters; the same seed gives different values from the same distributions. Model files and converters use
the Linen modules:

    grujax.save(path, *to_linen(module))            module = from_linen(*grujax.load(path), rngs=nnx.Rngs(0))
"""

from grujax.nnx.bridge import from_linen, to_linen
from grujax.nnx.cell import GRUCell
from grujax.nnx.layer import GRU
from grujax.nnx.model import GRUEncoder, GRUModel, Statistic

__all__ = ["GRU", "GRUCell", "GRUEncoder", "GRUModel", "Statistic", "from_linen", "to_linen"]
