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
    """One step of the GRU: `carry, y = cell(carry, x)`, where both results are the new state h'.

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    These are the equations of `torch.nn.GRUCell`; the attributes of `CellConfig` select variants. The cell works
    wherever a Linen cell does: `nn.RNN`, `nn.Bidirectional`, `nn.scan`, `nn.vmap`, `nn.remat`.

    Parameters: `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, with columns r | z | n; with `layer_norm`
    also `scale_ih (3H,)` and `scale_hh (3H,)`. With `blocks=K`, `w_hh` is (K, H/K, 3H/K).

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> x = jnp.ones((3, 7, 10))
    >>> rnn = nn.RNN(GRUCell(20))
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (3, 7, 20)
    """

    @nn.compact
    def weights(self, input_size: int) -> GRUWeights:
        """Declares the parameters and returns them, with w_hh as (H, 3H) for any number of blocks."""
        table = self.parameters(input_size)
        return weights_of(self, {name: declared(self, name, *row, self.param_dtype) for name, row in table.items()})

    def __call__(
        self,
        carry: Array,
        x: Array,
        *,
        weights: GRUWeights | None = None,
        state_mask: Array | None = None,
        **others: Never,
    ) -> tuple[Array, Array]:
        """Computes one step.

        Args:
          carry: the state h (..., H), of any floating dtype.
          x: the input (..., I).
          weights: weights to use in place of the cell's parameters (weight dropout).
          state_mask: a factor (..., H) for the state in the products with w_hh (recurrent dropout).

        Returns:
          The new state h' (..., H) twice: as the new carry, in the dtype of `carry`, so that it fits a scan; and as the
          output, in the compute dtype. Both are computed in float32 at least.

        Raises:
          InputError: a shape or dtype does not fit. Integers are refused, although Flax's cells promote them.
          TypeError: a keyword is unknown; the message says what to write instead.
        """
        refuse_others(self, others)
        carry, x = check_step(self, carry, x, known_features(self))
        return run_cell(self, carry, x, self.weights(x.shape[-1]) if weights is None else weights, state_mask)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """Returns the zero state (..., H) for inputs of shape (..., I). `rng` is not used."""
        del rng
        return jnp.zeros((*input_shape[:-1], self.hidden_size), self.carry_dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1


def declared(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Declares and returns a parameter, like `module.param`.

    An existing parameter is read directly, because `module.param` traces the initialiser again at each call, which
    takes half the time of a step outside jit.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, dtype)
    stored: Any = meta.unbox(module.get_variable("params", name))
    path = "/".join(("params", *module.path, name))
    require_equal(jnp.shape(stored), shape, path, "Use variables made by this model's init.")
    return stored


def params_at(module: nn.Module, *path: str) -> Any:
    """Returns the parameters at `path` below `module` as a dict, which is empty if there are none."""
    params: Any = {} if module.scope is None else module.variables.get("params", {})
    for name in path:
        params = params.get(name, {})
    return params


def known_features(module: nn.Module, *path: str) -> int | None:
    """Returns the input size I of the cell at `path`, read from its parameters; None before `init`."""
    params = params_at(module, *path)
    return jnp.shape(meta.unbox(params["w_ih"]))[0] if "w_ih" in params else None
