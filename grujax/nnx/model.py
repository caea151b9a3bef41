"""The models as Flax NNX modules: a GRU with pooling, without and with heads."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, Literal, Never, Required, Unpack, overload

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike

from grujax.core.config import EncoderConfig, ModelConfig, OutputSize, warn_of_idle_dropout
from grujax.core.heads import apply_heads, standardised, statistics_of
from grujax.core.inputs import CallOptions, Steps, check_inputs, framed
from grujax.core.keywords import explained, refuse_others
from grujax.core.pooling import Segments, check_segments, pooled
from grujax.nnx.cell import Rngs, Sized
from grujax.nnx.layer import GRU, Regularised, linear
from grujax.types import Array, Inputs


class Statistic(nnx.Variable):
    """A measured value of a `GRUModel`, not a parameter.

    Its names are `input_mean`, `input_std`, `output_mean` and `output_std`; with several heads, `output_NAME_mean` and
    `output_NAME_std` for each head.
    """


class Options(CallOptions, total=False):
    """Keyword arguments of a call that returns no state."""

    deterministic: bool | None
    rngs: Rngs | None
    return_state: Literal[False]


class WithState(CallOptions, total=False):
    """Keyword arguments of a call that also returns the state."""

    deterministic: bool | None
    rngs: Rngs | None
    return_state: Required[Literal[True]]


@explained
@dataclasses.dataclass(eq=False, repr=False)
class GRUEncoder(EncoderConfig, Regularised, Sized):
    """A GRU that turns each sequence into one vector: `GRUEncoder(input_size, hidden_size, *, ..., rngs)`.

    It runs `GRU`, then pools over the valid steps. Attributes and parameters are those of `grujax.GRUEncoder`.

    >>> from flax import nnx
    >>> encoder = GRUEncoder(10, 20, bidirectional=True, pooling="mean", rngs=nnx.Rngs(0))
    >>> encoder(jnp.ones((3, 7, 10))).shape
    (3, 40)
    """

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        self.check()
        self.gru = GRU(**self.fields_of(GRU), rngs=rngs)
        if self.pooling == "attention":
            self.attention = linear(self, self.width, self.width, rngs)
            self.attention_score = linear(self, self.width, 1, rngs, use_bias=False)

    @overload
    def __call__(self, x: Inputs, h0: Array | None = None, **options: Unpack[Options]) -> Array: ...
    @overload
    def __call__(self, x: Inputs, h0: Array | None = None, **options: Unpack[WithState]) -> tuple[Array, Array]: ...
    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        num_segments: int | None = None,
        return_state: bool = False,
        deterministic: bool | None = None,
        rngs: Rngs | None = None,
        **others: Never,
    ) -> Array | tuple[Array, Array]:
        """Runs the encoder over whole sequences.

        Arguments: see `grujax.GRUEncoder`, and `GRU` for `deterministic` and `rngs`.

        Returns:
          (B, F), or (N, F) with `segments`, or (B, T, F) with `pooling=None`. F is D*H with merge="concat", otherwise
          H. With return_state=True it returns a pair, with h_last (L*D, B, H). Dtypes and errors are those of
          `grujax.GRUEncoder`.
        """
        refuse_others(self, others)
        self.check()
        steps = check_inputs(x, self.input_size, lengths, mask, resets, self.time_major)
        warn_of_idle_dropout(self, self._is_deterministic(deterministic))
        checked = check_segments(self.pooling, steps, segments, num_segments)
        features, h_last = self._run(steps, h0, checked, deterministic, rngs)
        return (features, h_last) if return_state else features

    def _run(
        self,
        steps: Steps,
        h0: Array | None,
        segments: Segments | None,
        deterministic: bool | None,
        rngs: Rngs | None,
    ) -> tuple[Array, Array]:
        """`__call__` with return_state=True, on checked steps."""
        run = self.gru._run(steps, h0, deterministic, rngs)
        return pooled(self, run, segments, self._dense), run.states

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Rngs | None = None, carry_init: Initializer | None = None
    ) -> Array:
        """Returns the initial state h0 of a rollout, (L*D, *batch, H); see `GRU.initialize_carry`."""
        return self.gru.initialize_carry(input_shape, rngs, carry_init)


@explained
@dataclasses.dataclass(eq=False, repr=False)
class GRUModel(ModelConfig[OutputSize], Regularised, Sized, Generic[OutputSize]):
    """A GRU encoder with a dense head: `GRUModel(input_size, hidden_size, output_size, *, ..., rngs)`.

        y = W pool(GRU(x)) + b

    Attributes and parameters are those of `grujax.GRUModel`. In place of Linen's collection "statistics", a model may
    have the attributes `input_mean`, `input_std`, `output_mean` and `output_std` of type `Statistic`; it then takes raw
    inputs and returns raw targets.

    >>> from flax import nnx
    >>> model = GRUModel(10, 20, 5, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((3, 7, 10))).shape
    (3, 5)
    """

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        if isinstance(self.output_size, Mapping):
            heads: Any = FrozenDict(self.output_size)
            self.output_size = heads  # static attributes must be hashable
        self.head_hidden = tuple(self.head_hidden)
        self.check()
        size = self.input_size * self.steps_per_frame
        self.encoder = GRUEncoder(**dict(self.fields_of(GRUEncoder), input_size=size), rngs=rngs)
        for layers in self.heads.values():
            size = self._features()
            for name, width in layers:
                setattr(self, name, linear(self, size, width, rngs))
                size = width
        self._draws(rngs, self.dropout)

    @overload
    def __call__(self: "GRUModel[int]", x: Inputs, h0: Array | None = None, **options: Unpack[Options]) -> Array: ...
    @overload
    def __call__(
        self: "GRUModel[int]", x: Inputs, h0: Array | None = None, **options: Unpack[WithState]
    ) -> tuple[Array, Array]: ...
    @overload
    def __call__(
        self: "GRUModel[Mapping[str, int]]", x: Inputs, h0: Array | None = None, **options: Unpack[Options]
    ) -> dict[str, Array]: ...
    @overload
    def __call__(
        self: "GRUModel[Mapping[str, int]]", x: Inputs, h0: Array | None = None, **options: Unpack[WithState]
    ) -> tuple[dict[str, Array], Array]: ...
    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        num_segments: int | None = None,
        return_state: bool = False,
        deterministic: bool | None = None,
        rngs: Rngs | None = None,
        **others: Never,
    ) -> Array | dict[str, Array] | tuple[Array | dict[str, Array], Array]:
        """Runs the model over whole sequences.

        Arguments: see `grujax.GRUModel`, and `GRU` for `deterministic` and `rngs`.

        Returns:
          (B, output_size), or (N, output_size) with `segments`, or with `pooling=None` (B, T, output_size), 0 at steps
          that are not valid. With several heads it is a dict of such arrays. With return_state=True it returns a pair,
          with h_last (L*D, B, H). Dtypes and errors are those of `grujax.GRUModel`.
        """
        refuse_others(self, others)
        self.check()
        steps = check_inputs(x, self.input_size, lengths, mask, resets, self.time_major)
        statistics = {name: getattr(self, name)[...] for name in statistics_of(self) if hasattr(self, name)}
        checked = check_segments(self.pooling, steps, segments, num_segments, self.steps_per_frame)
        steps = framed(steps._replace(x=standardised(self, steps.x, statistics)), self.steps_per_frame)
        features, h_last = self.encoder._run(steps, h0, checked, deterministic, rngs)
        y = apply_heads(self, features, steps.valid, statistics, self._dense, self._noise(deterministic, rngs))
        return (y, h_last) if return_state else y

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Rngs | None = None, carry_init: Initializer | None = None
    ) -> Array:
        """Returns the initial state h0 of a rollout, (L*D, *batch, H); see `GRU.initialize_carry`."""
        return self.encoder.initialize_carry(input_shape, rngs, carry_init)

    def _features(self) -> int:
        """Returns the number of features that the head reads, after pooling."""
        if not callable(self.pooling):
            return self.width
        dtype = jnp.dtype(self.dtype or self.param_dtype)
        output, valid = jax.ShapeDtypeStruct((1, 1, self.width), dtype), jax.ShapeDtypeStruct((1, 1), jnp.bool_)
        return jax.eval_shape(self.pooling, output, valid).shape[-1]
