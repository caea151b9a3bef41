"""The GRU layer as a Flax Linen module: layers, directions, sequences and regularisation."""

from collections.abc import Callable
from typing import Any, Never

import flax.linen as nn
from flax.core import meta
from jax.typing import ArrayLike

from grujax.core.config import LayerConfig, warn_of_idle_dropout
from grujax.core.initializers import HIGHWAY, initial_states, preset
from grujax.core.inputs import Steps, check_inputs
from grujax.core.keywords import explained, refuse_others
from grujax.core.stack import Hooks, LayerRun, Noise, returned, run_layers
from grujax.errors import require
from grujax.linen.cell import GRUCell, known_features, params_at
from grujax.types import Array, Inputs


@explained
class GRU(LayerConfig, nn.Module):
    """`torch.nn.GRU` with batch_first=True as a Flax module: one or several layers, in one or both directions.

    `GRUCell` has the equations of one step, `LayerConfig` and `CellConfig` describe the attributes.

    Parameters: `l{k}` and `l{k}_reverse`, each with the parameters of a `GRUCell`; `h0` with initial_state="learned";
    `l{k}_highway` with connection="highway". They do not depend on the implementation.

    >>> import jax, jax.numpy as jnp
    >>> layer = GRU(20, num_layers=2, bidirectional=True)
    >>> x = jnp.ones((3, 7, 10))
    >>> output, h_last = layer.apply(layer.init(jax.random.key(0), x), x)
    >>> output.shape, h_last.shape
    ((3, 7, 40), (4, 3, 20))

    With `mutable=["intermediates"]` the gates of every step are sown as `l{k}[_reverse]_gates`: r, z and n (T, B, H).

    Source: torch.nn.GRU.
    """

    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        deterministic: bool = True,
        **others: Never,
    ) -> tuple[Array, Array]:
        """Runs the layer over whole sequences.

        Args:
          x: the input (B, T, I). There may be any number of batch axes, including none.
          h0: the initial state (L*D, B, H), with index `layer * D + direction`; (B, H) is accepted too if L*D = 1.
            None: zeros, or the learned state with initial_state="learned".
          lengths: integers (B,), the number of valid steps of each sequence; None: all steps are valid.
          mask: bool (B, T), True at valid steps, in place of `lengths`. The state does not change over the other steps.
          resets: bool (B, T), True at the first step of a new sequence: no state passes from one sequence to the next,
            in either direction.
          deterministic: True switches the regularisation off.

        Returns:
          output: (B, T, D*H) in the compute dtype, exactly 0 at steps that are not valid. With `merge=None` it is
            (2, B, T, H), forward direction first.
          h_last: (L*D, B, H), the state of each direction after the last valid step that it reads; h0 for length 0.
            With resets it belongs to the last sequence of a row, or to the first in a backward direction. The index is
            `layer * D + direction`: `h_last[0]` for a single layer in one direction, `h_last[-1]` for the backward
            direction of the top layer with bidirectional=True. The dtype is that of h0, or float32 at least if h0 is
            None.

        Raises:
          InputError: a field, shape, dtype, length or combination of arguments is not supported.
          TypeError: a keyword is unknown; the message says what to write instead.
        """
        refuse_others(self, others)
        self.check()
        steps = check_inputs(x, known_features(self, "l0"), lengths, mask, resets, self.time_major)
        warn_of_idle_dropout(self, deterministic)
        return returned(self, self.run(steps, h0, deterministic))

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """Returns the initial state h0 of a rollout, (L*D, *batch, H), in the dtype in which the state is carried.

        It is zero, or with initial_state="learned" the learned state, if the layer is bound to variables:

        >>> import jax, jax.numpy as jnp
        >>> layer, key = GRU(20, num_layers=2, initial_state="learned"), jax.random.key(0)
        >>> variables = layer.init(key, jnp.ones((3, 7, 10)))
        >>> layer.apply(variables, key, (3, 10), method="initialize_carry").shape
        (2, 3, 20)

        Args:
          rng: not used; present because Flax's cells take one.
          input_shape: the shape of one step's input, (*batch, I).
        """
        del rng
        return carry_of(self, input_shape)

    @nn.compact
    def run(self, steps: Steps, h0: Array | None = None, deterministic: bool = True) -> LayerRun:
        """`__call__` on checked steps. The result has one batch axis, and also what pooling needs."""
        initial = None
        if self.initial_state == "learned":
            shape = (self.num_states, self.hidden_size)
            initial = self.param("h0", nn.initializers.zeros, shape, self.param_dtype)
        sown = self.is_mutable_collection("intermediates") and not self.is_initializing()
        hooks = Hooks(
            cell=lambda name: GRUCell(**self.fields_of(GRUCell), name=name),
            highway=lambda name, x: dense(self, name, x, x.shape[-1], **HIGHWAY),
            scan=_scan,
            initial=initial,
            noise=noise(self, deterministic),
            sow=(lambda name, gates: self.sow("intermediates", name, gates)) if sown else None,
        )
        return run_layers(self, steps, h0, hooks)


def dense(module: LayerConfig, name: str, x: Array, width: int, bias: bool = True, **inits: Any) -> Array:
    """Computes W x + b in the scope of `module`, with its dtypes and precision; `inits` override its initialisers."""
    init = preset(module.initializer, module.hidden_size, x.shape[-1])
    inits = {"kernel_init": init.head_kernel, "bias_init": init.head_bias} | inits
    dtypes = {"dtype": module.dtype, "param_dtype": module.param_dtype}
    return nn.Dense(width, bias, **dtypes, precision=module.precision, **inits, name=name)(x)


def carry_of(module: nn.Module, input_shape: tuple[int, ...], *path: str) -> Array:
    """Returns the initial state for `initialize_carry` of a module that contains its GRU layer at `path`."""
    shape = (module.num_states, *input_shape[:-1], module.hidden_size)
    return initial_states(meta.unbox(params_at(module, *path).get("h0")), shape, module.carry_dtype)


def noise(module: nn.Module, deterministic: bool) -> Noise | None:
    """Returns the random draws from the rng stream "dropout" of `module`; for use in its compact method."""
    if deterministic:
        return None

    def dropout(x: Array, rate: float) -> Array:
        require_stream(module, "dropout")
        return nn.Dropout(rate, deterministic=False)(x)

    return Noise(dropout, lambda: key_of(module, "dropout"))


def key_of(module: nn.Module, stream: str) -> Array:
    """Returns the next key of an rng stream; `InputError` if the call was given no key for it."""
    require_stream(module, stream)
    return module.make_rng(stream)


def require_stream(module: nn.Module, stream: str) -> None:
    """Raises `InputError` if the call was given no key for an rng stream."""
    available = module.has_rng(stream) or module.has_rng("params")  # Flax falls back to "params"
    remedy = f'Write model.apply(variables, ..., rngs={{"{stream}": key}}).'
    require(available, "rngs", f'a key "{stream}"', "none", remedy)


def _scan(one_step: Callable, reverse: bool) -> Callable:
    return nn.scan(one_step, variable_broadcast="params", split_rngs={"params": False}, reverse=reverse)
