"""One step of the GRU as a Flax Linen cell."""

from typing import Any, Never

import flax.linen as nn
import jax.numpy as jnp
from flax.core import meta
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from grujax.core.cell import check_step, run_cell, weights_of
from grujax.core.config import CellConfig
from grujax.core.keywords import explained, refuse_others
from grujax.errors import require_equal
from grujax.types import Array, GRUWeights


@explained
class GRUCell(CellConfig, nn.RNNCellBase):
    """One step: `carry, y = cell(carry, x)`, both the new state h'.

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    The equations of `torch.nn.GRUCell`; the switches to others are the attributes of `CellConfig`. It works
    wherever a Linen cell does: `nn.RNN`, `nn.Bidirectional`, `nn.scan`, `nn.vmap`, `nn.remat`.

    Parameters: `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, columns r | z | n; with `layer_norm` also
    `scale_ih (3H,)` and `scale_hh (3H,)`; with `blocks=K` `w_hh (K, H/K, 3H/K)`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> x = jnp.ones((3, 7, 10))
    >>> rnn = nn.RNN(GRUCell(20))
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (3, 7, 20)
    """

    @nn.compact
    def weights(self, input_size: int) -> GRUWeights:
        """Declares the parameters and returns them, w_hh (H, 3H) whatever `blocks`."""
        table = self.parameters(input_size)
        return weights_of(self, {name: declared(self, name, *of, self.param_dtype) for name, of in table.items()})

    def __call__(
        self,
        carry: Array,
        x: Array,
        *,
        weights: GRUWeights | None = None,
        state_mask: Array | None = None,
        **others: Never,
    ) -> tuple[Array, Array]:
        """One step.

        Args:
          carry: the state h (..., H), of any floating dtype.
          x: the input (..., I).
          weights: replace the cell's own (weight dropout).
          state_mask: (..., H), multiplies the state where the products read it (recurrent dropout).

        Returns:
          h' (..., H) twice: the new carry, in the dtype of the carry that was given, so that a scan may carry it; and
          the output, in the compute dtype. Both are computed in float32 at least.

        Raises:
          InputError: a shape or dtype that does not fit. Integers are refused, where Flax's cells promote them.
          TypeError: a keyword of another framework.
        """
        refuse_others(self, others)
        carry, x = check_step(self, carry, x, known_features(self))
        return run_cell(self, carry, x, self.weights(x.shape[-1]) if weights is None else weights, state_mask)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The zero state for inputs of shape (..., I): (..., H). `rng` is not used."""
        del rng
        return jnp.zeros((*input_shape[:-1], self.hidden_size), self.carry_dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1


def declared(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Flax's `param`, which traces the initialiser again at each call: half the time of a step outside jit."""
    if not module.has_variable("params", name):
        return module.param(name, init, shape, dtype)
    stored: Any = meta.unbox(module.get_variable("params", name))
    path = "/".join(("params", *module.path, name))
    require_equal(jnp.shape(stored), shape, path, "Use variables that this model's init made.")
    return stored


def params_at(module: nn.Module, *path: str) -> Any:
    """The parameters at `path` below `module`, as a dict; an empty one where there are none."""
    params: Any = {} if module.scope is None else module.variables.get("params", {})
    for name in path:
        params = params.get(name, {})
    return params


def known_features(module: nn.Module, *path: str) -> int | None:
    """I, as the parameters of the cell at `path` have it; None before `init`."""
    params = params_at(module, *path)
    return jnp.shape(meta.unbox(params["w_ih"]))[0] if "w_ih" in params else None
