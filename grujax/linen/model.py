"""The models as Flax Linen modules: a GRU with pooling, and the same with one or several heads."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Generic, Literal, Never, Required, Unpack, overload

import flax.linen as nn
from flax.core import FrozenDict
from jax.typing import ArrayLike

from grujax.core.config import EncoderConfig, ModelConfig, OutputSize, input_size_of, warn_of_idle_dropout
from grujax.core.heads import apply_heads, standardised, statistics_of
from grujax.core.inputs import CallOptions, Steps, check_inputs, framed
from grujax.core.keywords import explained, refuse_others
from grujax.core.pooling import Segments, check_segments, pooled
from grujax.linen.cell import known_features
from grujax.linen.layer import GRU, carry_of, dense, noise
from grujax.types import Array, Inputs


class Options(CallOptions, total=False):
    """Of a call that returns no state."""

    deterministic: bool
    return_state: Literal[False]


class WithState(CallOptions, total=False):
    """Of a call that returns its state too."""

    deterministic: bool
    return_state: Required[Literal[True]]


@explained
class GRUEncoder(EncoderConfig, nn.Module):
    """One vector for each sequence: `GRU`, then pooling over the valid steps. Attributes: see `EncoderConfig`.

    >>> import jax, jax.numpy as jnp
    >>> encoder = GRUEncoder(20, bidirectional=True, pooling="mean")
    >>> x = jnp.ones((3, 7, 10))
    >>> encoder.apply(encoder.init(jax.random.key(0), x), x).shape
    (3, 40)
    """

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
        deterministic: bool = True,
        **others: Never,
    ) -> Array | tuple[Array, Array]:
        """Runs over whole sequences.

        Args:
          x, h0, lengths, mask, resets, deterministic: see `GRU`.
          segments: integers (B, T), which of the `num_segments` sequences a step belongs to, −1 for none: pooling
            gives a vector for each. `grujax.data.pack_sequences` makes them.
          num_segments: N, a Python integer: the shape of the result depends on it.
          return_state: also return h_last.

        Returns:
          (B, F), with `segments` (N, F), with `pooling=None` (B, T, F), in the compute dtype; F is D*H, or H for
          another merge than "concat". With return_state=True also h_last (L*D, B, H); see `GRU`.

        Raises:
          InputError: a field, shape, dtype, length or combination that cannot be served.
          TypeError: a keyword of another framework; it names ours.
        """
        refuse_others(self, others)
        self.check()
        steps = check_inputs(x, known_features(self, "gru", "l0"), lengths, mask, resets, self.time_major)
        warn_of_idle_dropout(self, deterministic)
        features, h_last = self.run(
            steps, h0, check_segments(self.pooling, steps, segments, num_segments), deterministic
        )
        return (features, h_last) if return_state else features

    @nn.compact
    def run(
        self, steps: Steps, h0: Array | None, segments: Segments | None, deterministic: bool
    ) -> tuple[Array, Array]:
        """As `__call__` with return_state=True, on checked steps."""
        run = GRU(**self.fields_of(GRU), name="gru").run(steps, h0, deterministic)
        return pooled(self, run, segments, partial(dense, self)), run.states

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The state h0 that a rollout begins with, (L*D, *batch, H); see `GRU.initialize_carry`."""
        del rng
        return carry_of(self, input_shape, "gru")


@explained
class GRUModel(ModelConfig[OutputSize], nn.Module, Generic[OutputSize]):
    """A GRU encoder with a dense head: in PyTorch `nn.GRU`, the last time step, `nn.Linear`.

        y = W pool(GRU(x)) + b

    Attributes: those of `ModelConfig`, `EncoderConfig`, `LayerConfig` and `CellConfig`.

    Where `variables` has a collection "statistics" (a model trained by `grujax.training.fit` has), raw inputs go in
    and raw targets come out: x is standardised by its `input_mean` and `input_std` (I,), and y is multiplied by
    `output_std` and `output_mean` (output_size,) is added, the latter two only in regression; of a head `value` among
    several they are `output_value_std` and `output_value_mean`.

    >>> import jax, jax.numpy as jnp
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> x = jnp.ones((3, 7, 10))
    >>> model.apply(model.init(jax.random.key(0), x), x).shape
    (3, 5)
    """

    def __post_init__(self) -> None:
        """Makes the fields hashable, so that a model may be a static argument of `jax.jit`."""
        if isinstance(self.output_size, Mapping):
            heads: Any = FrozenDict(self.output_size)
            self.output_size = heads
        self.head_hidden = tuple(self.head_hidden)
        super().__post_init__()

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
    @nn.compact
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
        deterministic: bool = True,
        **others: Never,
    ) -> Array | dict[str, Array] | tuple[Array | dict[str, Array], Array]:
        """Runs the model over whole sequences.

        Args:
          x: (B, T, I), or any other number of batch axes, none included.
          h0: (L*D, B, H), the initial state where None; see `GRU`.
          lengths, mask, resets: which steps are valid, where sequences begin; see `GRU`.
          segments, num_segments: which sequence a step belongs to; see `GRUEncoder`.
          return_state: also return h_last, to go on from: streaming, truncated backpropagation.
          deterministic: True switches dropout off.

        Returns:
          (B, output_size), (N, output_size) with `segments`, or (B, T, output_size) with `pooling=None`, 0 at steps
          that are not valid; a dict of such arrays where there are several heads. In the compute dtype.
          With return_state=True also h_last (L*D, B, H); see `GRU`.

        Raises:
          InputError: a field, shape, dtype, length or combination that cannot be served.
          TypeError: a keyword of another framework; it names ours.
        """
        refuse_others(self, others)
        self.check()
        features = known_features(self, "encoder", "gru", "l0")
        features = features and input_size_of(self, features)
        steps = check_inputs(x, features, lengths, mask, resets, self.time_major)
        has = [name for name in statistics_of(self) if self.has_variable("statistics", name)]
        statistics = {name: self.get_variable("statistics", name) for name in has}
        kept = check_segments(self.pooling, steps, segments, num_segments, self.steps_per_frame)
        steps = framed(steps._replace(x=standardised(self, steps.x, statistics)), self.steps_per_frame)
        encoder = GRUEncoder(**self.fields_of(GRUEncoder), name="encoder")
        features, h_last = encoder.run(steps, h0, kept, deterministic)
        y = apply_heads(self, features, steps.valid, statistics, partial(dense, self), noise(self, deterministic))
        return (y, h_last) if return_state else y

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The state h0 that a rollout begins with, (L*D, *batch, H); see `GRU.initialize_carry`."""
        del rng
        return carry_of(self, input_shape, "encoder", "gru")
