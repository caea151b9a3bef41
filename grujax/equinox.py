"""The GRU layer as an `equinox.Module` (extra `equinox`): a pytree of parameters that `grujax.core` runs."""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Never

import jax
from jax.typing import ArrayLike

from grujax.core.config import RATES, LayerConfig, warn_of_idle_dropout
from grujax.core.functional import drawn, layer_table, noise_of, run_on_arrays
from grujax.core.inputs import check_inputs
from grujax.core.keywords import explained, refuse_others
from grujax.core.stack import returned
from grujax.errors import require, require_count, require_package
from grujax.types import Array, Inputs

if TYPE_CHECKING:
    import equinox
else:
    equinox = require_package("equinox", "equinox")


@dataclasses.dataclass(unsafe_hash=True)
class Config(LayerConfig):
    """A `LayerConfig` that compares by value, so that modules with the same fields have the same tree structure."""


class GRU(equinox.Module):
    """`grujax.GRU` for Equinox: `GRU(input_size, hidden_size, *, key, **fields)`.

    The equations, fields, call arguments and parameters are those of `grujax.GRU`: `params` is the dict that Flax Linen
    stores under "params". Unlike the layers of Equinox, it accepts batch axes itself; `jax.vmap` works too.

    Attributes:
      params: a nested dict of arrays, for example `params["l0"]["w_ih"]`; `equinox.tree_at` replaces them.
      config: the static fields; see `grujax.GRU`.
      inference: True switches all regularisation off; `equinox.nn.inference_mode` sets it.

    >>> import jax, jax.numpy as jnp
    >>> layer = GRU(10, 20, num_layers=2, bidirectional=True, key=jax.random.key(0))
    >>> output, h_last = layer(jnp.ones((3, 7, 10)), lengths=jnp.array([7, 4, 2]))
    >>> output.shape, h_last.shape, layer.params["l0"]["w_ih"].shape
    ((3, 7, 40), (4, 3, 20), (10, 60))

    Source: torch.nn.GRU.
    """

    params: dict[str, Any]
    config: Config = equinox.field(static=True)
    inference: bool

    def __init__(
        self, input_size: int, hidden_size: int, *, key: Array, inference: bool = False, **fields: Any
    ) -> None:
        """Creates a layer with random parameters.

        Args:
          input_size: the number of input features, I.
          hidden_size: the number of hidden units, H.
          key: the random key for the parameters.
          inference: switches all regularisation off.
          fields: any field of `grujax.GRU`: `num_layers`, `bidirectional`, `reverse`, `merge`, `bias`, `reset_after`,
            `update`, `initializer`, `dropout`, `dtype`, `param_dtype`, ...

        Raises:
          InputError: a field has a value that is not supported.
          TypeError: a keyword is unknown, for example one of another framework; the message names ours.
        """
        require_count(input_size, "input_size")
        self.config, self.inference = Config(hidden_size, **fields), inference
        self.config.check()
        self.params = drawn(layer_table(self.config, input_size), key, self.config.param_dtype)

    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        key: Array | None = None,
        **others: Never,
    ) -> tuple[Array, Array]:
        """Runs the layer over whole sequences; returns output (B, T, D*H) and h_last (L*D, B, H).

        Args:
          x, h0, lengths, mask, resets: see `grujax.GRU`; x may also be (T, I), without batch axes.
          key: the random key for the regularisation; needed if there is any and `inference` is False.

        Raises:
          InputError: a shape, dtype, length or combination is not supported.
          TypeError: a keyword is unknown.
        """
        refuse_others(self, others)
        noisy = not self.inference and any(getattr(self.config, rate) for rate in RATES)
        remedy = "Or switch the regularisation off: equinox.nn.inference_mode(layer)."
        require(not noisy or key is not None, "key", "a key of jax.random", None, remedy)
        warn_of_idle_dropout(self.config, not noisy)
        count = itertools.count()
        noise = noise_of(lambda: jax.random.fold_in(key, next(count))) if noisy and key is not None else None
        input_size = self.params["l0"]["w_ih"].shape[0]
        steps = check_inputs(x, input_size, lengths, mask, resets, self.config.time_major)
        return returned(self.config, run_on_arrays(self.config, self.params, steps, h0, noise))


explained(GRU, Config)
