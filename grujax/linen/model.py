"""The models as Flax Linen modules: a GRU with pooling, without and with heads."""

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
    """Keyword arguments of a call that returns no state."""

    deterministic: bool
    return_state: Literal[False]


class WithState(CallOptions, total=False):
    """Keyword arguments of a call that also returns the state."""

    deterministic: bool
    return_state: Required[Literal[True]]


@explained
class GRUEncoder(EncoderConfig, nn.Module):
    """A GRU that turns each sequence into one vector: `GRU`, then pooling over the valid steps.

    Attributes: those of `EncoderConfig`, `LayerConfig` and `CellConfig`.

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
        """Runs the encoder over whole sequences.

        Args:
          x, h0, lengths, mask, resets, deterministic: see `GRU`.
          segments: integers (B, T), the sequence to which each step belongs, 0 to `num_segments` − 1, or −1 for none.
            Pooling then returns one vector for each sequence. `grujax.data.pack_sequences` makes them.
          num_segments: the number of sequences N, a Python integer, because it is a dimension of the result.
          return_state: whether to return h_last too.

        Returns:
          (B, F), or (N, F) with `segments`, or (B, T, F) with `pooling=None`, in the compute dtype. F is D*H with
          merge="concat", otherwise H. With return_state=True it returns a pair, with h_last (L*D, B, H); see `GRU`.

        Raises:
          InputError: a field, shape, dtype, length or combination of arguments is not supported.
          TypeError: a keyword is unknown; the message says what to write instead.
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
        """`__call__` with return_state=True, on checked steps."""
        run = GRU(**self.fields_of(GRU), name="gru").run(steps, h0, deterministic)
        return pooled(self, run, segments, partial(dense, self)), run.states

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """Returns the initial state h0 of a rollout, (L*D, *batch, H); see `GRU.initialize_carry`."""
        del rng
        return carry_of(self, input_shape, "gru")


@explained
class GRUModel(ModelConfig[OutputSize], nn.Module, Generic[OutputSize]):
    """A GRU encoder with a dense head: in PyTorch `nn.GRU`, the last time step and `nn.Linear`.

        y = W pool(GRU(x)) + b

    Attributes: those of `ModelConfig`, `EncoderConfig`, `LayerConfig` and `CellConfig`.

    `variables` may have a collection "statistics", which `grujax.training.fit` adds. The model then takes raw inputs
    and returns raw targets: it standardises x by `input_mean` and `input_std` (I,), and in regression it multiplies y
    by `output_std` and adds `output_mean` (output_size,). With several heads these are called, for a head `value`,
    `output_value_std` and `output_value_mean`.

    >>> import jax, jax.numpy as jnp
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> x = jnp.ones((3, 7, 10))
    >>> model.apply(model.init(jax.random.key(0), x), x).shape
    (3, 5)
    """

    def __post_init__(self) -> None:
        """Makes the fields hashable, so that a model can be a static argument of `jax.jit`."""
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
          x: the input (B, T, I). There may be any number of batch axes, including none.
          h0: the initial state (L*D, B, H); None: zeros or the learned state; see `GRU`.
          lengths, mask, resets: which steps are valid, and where sequences begin; see `GRU`.
          segments, num_segments: the sequence to which each step belongs, and their number; see `GRUEncoder`.
          return_state: whether to return h_last too, as the h0 of the next call: streaming, truncated backpropagation.
          deterministic: True switches the regularisation off.

        Returns:
          The outputs in the compute dtype: (B, output_size), or (N, output_size) with `segments`, or with
          `pooling=None` (B, T, output_size), 0 at steps that are not valid. With several heads it is a dict of such
          arrays. With return_state=True it returns a pair, with h_last (L*D, B, H); see `GRU`.

        Raises:
          InputError: a field, shape, dtype, length or combination of arguments is not supported.
          TypeError: a keyword is unknown; the message says what to write instead.
        """
        refuse_others(self, others)
        self.check()
        features = known_features(self, "encoder", "gru", "l0")
        features = features and input_size_of(self, features)
        steps = check_inputs(x, features, lengths, mask, resets, self.time_major)
        names = [name for name in statistics_of(self) if self.has_variable("statistics", name)]
        statistics = {name: self.get_variable("statistics", name) for name in names}
        checked = check_segments(self.pooling, steps, segments, num_segments, self.steps_per_frame)
        steps = framed(steps._replace(x=standardised(self, steps.x, statistics)), self.steps_per_frame)
        encoder = GRUEncoder(**self.fields_of(GRUEncoder), name="encoder")
        features, h_last = encoder.run(steps, h0, checked, deterministic)
        y = apply_heads(self, features, steps.valid, statistics, partial(dense, self), noise(self, deterministic))
        return (y, h_last) if return_state else y

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """Returns the initial state h0 of a rollout, (L*D, *batch, H); see `GRU.initialize_carry`."""
        del rng
        return carry_of(self, input_shape, "encoder", "gru")
