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
    """`torch.nn.GRU` with batch_first=True, as a Flax module: one or several layers, one or both directions.

    The equations of one step are those of `GRUCell`; the attributes those of `LayerConfig` and `CellConfig`. The
    parameter tree is `l{k}` and `l{k}_reverse`, each as `GRUCell` has it, whatever the implementation; beside them
    `h0` where the initial state is learned and `l{k}_highway`.

    >>> import jax, jax.numpy as jnp
    >>> layer = GRU(20, num_layers=2, bidirectional=True)
    >>> x = jnp.ones((3, 7, 10))
    >>> output, h_last = layer.apply(layer.init(jax.random.key(0), x), x)
    >>> output.shape, h_last.shape
    ((3, 7, 40), (4, 3, 20))

    With `mutable=["intermediates"]` the gates of every step are sown: `l{k}[_reverse]_gates`, r, z and n (T, B, H).

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
        """Runs over whole sequences.

        Args:
          x: (B, T, I), or any other number of batch axes, none included.
          h0: (L*D, B, H), index `layer * D + direction`; where L*D = 1 also (B, H). None: the initial state, zeros or
            learned.
          lengths: integers (B,), how many steps of each sequence are valid; all where None.
          mask: bool (B, T) instead of `lengths`, which steps are valid; the state is held over the others.
          resets: bool (B, T), True at the first step of a new sequence: no state passes from one sequence to the next,
            in either direction.
          deterministic: True switches the regularisation off.

        Returns:
          output: (B, T, D*H), exactly 0 at steps that are not valid; with `merge=None` (2, B, T, H), the forward
            direction first. Its dtype is the compute dtype.
          h_last: (L*D, B, H), the state after the last valid step of each direction, h0 for length 0; with resets
            that of the last sequence, of a backward direction that of the first. Its dtype is that of h0; where h0 is
            None, float32 at least.
            `h_last[layer * D + direction]` is one of them: `h_last[0]` of a single layer in one direction,
            `h_last[-1]` the backward direction of the top layer with bidirectional=True.

        Raises:
          InputError: a field, shape, dtype, length or combination that cannot be served.
          TypeError: a keyword of another framework; it names ours.
        """
        refuse_others(self, others)
        self.check()
        steps = check_inputs(x, known_features(self, "l0"), lengths, mask, resets, self.time_major)
        warn_of_idle_dropout(self, deterministic)
        return returned(self, self.run(steps, h0, deterministic))

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The state h0 that a rollout begins with: (L*D, *batch, H), in the dtype that the state is carried in.

        Zeros; with initial_state="learned" the learned state, where the layer is bound to variables:

        >>> import jax, jax.numpy as jnp
        >>> layer, key = GRU(20, num_layers=2, initial_state="learned"), jax.random.key(0)
        >>> variables = layer.init(key, jnp.ones((3, 7, 10)))
        >>> layer.apply(variables, key, (3, 10), method="initialize_carry").shape
        (2, 3, 20)

        Args:
          rng: not used; Flax's cells take one.
          input_shape: (*batch, I), that of one step.
        """
        del rng
        return carry_of(self, input_shape)

    @nn.compact
    def run(self, steps: Steps, h0: Array | None = None, deterministic: bool = True) -> LayerRun:
        """As `__call__`, on checked steps; with one batch axis, and what pooling needs besides."""
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
    """W x + b in the scope of `module`: its dtypes, its precision, its initialiser unless `inits` has others."""
    init = preset(module.initializer, module.hidden_size, x.shape[-1])
    inits = {"kernel_init": init.head_kernel, "bias_init": init.head_bias} | inits
    dtypes = {"dtype": module.dtype, "param_dtype": module.param_dtype}
    return nn.Dense(width, bias, **dtypes, precision=module.precision, **inits, name=name)(x)


def carry_of(module: nn.Module, input_shape: tuple[int, ...], *path: str) -> Array:
    """What `initialize_carry` returns of a layer or model whose layer is at `path` below it."""
    shape = (module.num_states, *input_shape[:-1], module.hidden_size)
    return initial_states(meta.unbox(params_at(module, *path).get("h0")), shape, module.carry_dtype)


def noise(module: nn.Module, deterministic: bool) -> Noise | None:
    """What `module` draws from its rng stream "dropout" while its compact method runs."""
    if deterministic:
        return None

    def dropout(x: Array, rate: float) -> Array:
        require_stream(module, "dropout")
        return nn.Dropout(rate, deterministic=False)(x)

    return Noise(dropout, lambda: key_of(module, "dropout"))


def key_of(module: nn.Module, stream: str) -> Array:
    """The next key of an rng stream."""
    require_stream(module, stream)
    return module.make_rng(stream)


def require_stream(module: nn.Module, stream: str) -> None:
    """Raises `InputError` where the call was given no key for an rng stream."""
    there = module.has_rng(stream) or module.has_rng("params")  # the one that Flax takes in its place
    remedy = f'Write model.apply(variables, ..., rngs={{"{stream}": key}}).'
    require(there, "rngs", f'a key "{stream}"', "none", remedy)


def _scan(one_step: Callable, reverse: bool) -> Callable:
    return nn.scan(one_step, variable_broadcast="params", split_rngs={"params": False}, reverse=reverse)
