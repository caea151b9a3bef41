"""The GRU layer as a Flax NNX module: layers, directions, sequences and regularisation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Never

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike

from grujax.core.config import RATES, LayerConfig, warn_of_idle_dropout
from grujax.core.initializers import HIGHWAY, initial_states, preset
from grujax.core.inputs import Steps, check_inputs
from grujax.core.keywords import explained, refuse_others
from grujax.core.stack import Hooks, LayerRun, Noise, returned, run_layers
from grujax.nnx.cell import GRUCell, Rngs, Sized, stream_of
from grujax.types import Array, Inputs


@dataclasses.dataclass(eq=False, repr=False)
class Regularised(nnx.Module):
    """The base of every module with dropout.

    Attributes:
      deterministic: True switches the regularisation off. `module.eval()` sets it to True, `module.train()` to False.
    """

    _: dataclasses.KW_ONLY
    deterministic: bool = False

    def set_view(self, deterministic: bool | None = None) -> None:
        """For `nnx.view`.

        Args:
          deterministic: True switches the regularisation off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _draws(self, rngs: nnx.Rngs, *rates: float) -> None:
        """Stores a separate random stream for the module, if one of the rates is not 0."""
        self.stream = stream_of(rngs, "dropout").fork() if any(rates) else nnx.data(None)

    def _is_deterministic(self, deterministic: bool | None) -> bool:
        return self.deterministic if deterministic is None else deterministic

    def _noise(self, deterministic: bool | None, rngs: Rngs | None) -> Noise | None:
        """Returns the random draws of a call, from `rngs` or the module's stream; None in evaluation."""
        if self._is_deterministic(deterministic):
            return None
        stream = self.stream if rngs is None else rngs
        return Noise(
            lambda x, rate: nnx.Dropout(rate, deterministic=False)(x, rngs=stream_of(stream, "dropout")),
            lambda: stream_of(stream, "dropout")(),
        )

    def _dense(self, name: str, x: Array, *_: Any, **__: Any) -> Array:
        """Computes W x + b with the parameters `name`, whose width and bias the constructor has fixed."""
        return getattr(self, name)(x)


@explained
@dataclasses.dataclass(eq=False, repr=False)
class GRU(LayerConfig, Regularised, Sized):
    """`torch.nn.GRU` with batch_first=True: `GRU(input_size, hidden_size, *, ..., rngs)`.

    `GRUCell` has the equations of one step; attributes and parameters are those of `grujax.GRU`.

    >>> from flax import nnx
    >>> layer = GRU(10, 20, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    >>> output, h_last = layer(jnp.ones((3, 7, 10)), lengths=jnp.array([7, 4, 2]))
    >>> output.shape, h_last.shape
    ((3, 7, 40), (4, 3, 20))
    >>> layer.l0.w_ih.shape
    (10, 60)

    Source: torch.nn.GRU.
    """

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        self.check()
        if self.initial_state == "learned":
            self.h0 = nnx.Param(jnp.zeros((self.num_states, self.hidden_size), self.param_dtype))
        for k in range(self.num_layers):
            size = self.input_size if k == 0 else self.width
            for name in self.cell_names[k]:
                setattr(self, name, GRUCell(**dict(self.fields_of(GRUCell), input_size=size), rngs=rngs))
            if k > 0 and self.connection == "highway":
                setattr(self, f"l{k}_highway", linear(self, size, size, rngs, **HIGHWAY))
        self._draws(rngs, *(getattr(self, rate) for rate in RATES))

    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | None = None,
        **others: Never,
    ) -> tuple[Array, Array]:
        """Runs the layer over whole sequences.

        Args:
          x, h0, lengths, mask, resets: see `grujax.GRU`.
          deterministic: True switches the regularisation off; None uses the attribute.
          rngs: dropout draws from its stream "dropout"; None uses the module's own stream.

        Returns:
          output (B, T, D*H), exactly 0 at steps that are not valid, and h_last (L*D, B, H), which is `h_last[0]` for a
          single layer in one direction. Dtypes and errors are those of `grujax.GRU`.
        """
        refuse_others(self, others)
        self.check()
        steps = check_inputs(x, self.input_size, lengths, mask, resets, self.time_major)
        warn_of_idle_dropout(self, self._is_deterministic(deterministic))
        return returned(self, self._run(steps, h0, deterministic, rngs))

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Rngs | None = None, carry_init: Initializer | None = None
    ) -> Array:
        """Returns the initial state h0 of a rollout, (L*D, *batch, H), in the dtype in which the state is carried.

        Args:
          input_shape: the shape of one step's input, (*batch, I).
          rngs: `carry_init` draws from its stream "carry".
          carry_init: draws the state; None: zeros, or the learned state with initial_state="learned".

        Raises:
          InputError: `carry_init` is given, but `rngs` has no stream "carry" and no default.
        """
        shape = (self.num_states, *input_shape[:-1], self.hidden_size)
        if carry_init is not None:
            return carry_init(stream_of(rngs, "carry")(), shape, self.carry_dtype)
        return initial_states(self.h0[...] if self.initial_state == "learned" else None, shape, self.carry_dtype)

    def _run(
        self, steps: Steps, h0: Array | None = None, deterministic: bool | None = None, rngs: Rngs | None = None
    ) -> LayerRun:
        """`__call__` on checked steps. The result has one batch axis, and also what pooling needs.

        It is private because `nnx.tabulate` compiles each public method, which only works with arrays, not records.
        """
        hooks = Hooks(
            cell=lambda name: getattr(self, name),
            highway=self._dense,
            scan=_scan,
            initial=self.h0[...] if self.initial_state == "learned" else None,
            noise=self._noise(deterministic, rngs),
        )
        return run_layers(self, steps, h0, hooks)


def linear(module: LayerConfig, inputs: int, width: int, rngs: nnx.Rngs, **options: Any) -> nnx.Linear:
    """Creates the layer W x + b with the dtypes, the precision and the initialisers of `module`."""
    init = preset(module.initializer, module.hidden_size, inputs)
    options = {"kernel_init": init.head_kernel, "bias_init": init.head_bias} | options
    dtypes = {"dtype": module.dtype, "param_dtype": module.param_dtype}
    return nnx.Linear(inputs, width, **dtypes, precision=module.precision, **options, rngs=rngs)


def _scan(one_step: Callable, reverse: bool) -> Callable:
    return nnx.scan(one_step, in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0), reverse=reverse)
