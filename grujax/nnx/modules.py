"""The modules: how parameters are made and held, and what training draws. What they compute is Linen's too."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jax.nn.initializers import Initializer, constant, lecun_normal
from jax.typing import ArrayLike

from grujax.errors import InputError, require, require_count
from grujax.heads import STATISTICS, answer, standardised
from grujax.initializers import preset
from grujax.inputs import Steps, check_inputs
from grujax.pooling import check_segments, pooled
from grujax.settings import RATES, CellSettings, EncoderSettings, LayerSettings, ModelSettings
from grujax.stack import LayerRun, Noise, Parts, returned, run_layers
from grujax.types import Array, GRUWeights, Inputs, state_dtype

Rngs = nnx.Rngs | nnx.RngStream


class Statistic(nnx.Variable):
    """What is no parameter but measured: `input_mean`, `input_std`, `output_mean`, `output_std` of a `GRUModel`."""


@dataclasses.dataclass(eq=False, repr=False)
class Sized:
    """What comes first in every module here: I, before what it shares with Linen, and `rngs`.

    Parameters are drawn from the stream "params" of `rngs`, what training drops from "dropout".
    """

    input_size: int
    _: dataclasses.KW_ONLY
    rngs: dataclasses.InitVar[nnx.Rngs]


@dataclasses.dataclass(eq=False, repr=False)
class GRUCell(CellSettings, Sized, nnx.RNNCellBase):
    """One step: `carry, y = cell(carry, x)`, both the new state h'. `GRUCell(input_size, hidden_size, *, ..., rngs)`.

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    The equations of `torch.nn.GRUCell`, b_hn included, which `flax.nnx.GRUCell` lacks; attributes and parameters are
    those of `grujax.GRUCell`. It works wherever an NNX cell does: `nnx.RNN`, `nnx.Bidirectional`, `nnx.scan`.

    >>> from flax import nnx
    >>> rnn = nnx.RNN(GRUCell(10, 20, rngs=nnx.Rngs(0)))
    >>> rnn(jnp.ones((3, 7, 10))).shape
    (3, 7, 20)
    """

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        require_count(self.input_size, "input_size")
        for name, (init, shape) in self.parameters(self.input_size).items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape, self.param_dtype)))

    def weights(self, input_size: int) -> GRUWeights:
        """The parameters, for an input of that many features."""
        require(input_size == self.input_size, "x", f"{self.input_size} input features on the last axis", input_size)
        return GRUWeights(**{name: getattr(self, name)[...] for name in GRUWeights._fields if hasattr(self, name)})

    def __call__(
        self, carry: Array, x: Array, *, weights: GRUWeights | None = None, state_mask: Array | None = None
    ) -> tuple[Array, Array]:
        """carry (..., H), x (..., I) -> the new state twice: in float32 at least, and in the compute dtype.

        `weights` stand in for the cell's own (weight dropout); `state_mask` (..., H) multiplies the state where the
        products read it (recurrent dropout).
        """
        return self.step(carry, x, self.weights(x.shape[-1]) if weights is None else weights, state_mask)

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Rngs | None = None, carry_init: Initializer | None = None
    ) -> Array:
        """The state to begin with for inputs of shape (..., I): (..., H), zeros or what `carry_init` draws."""
        shape, dtype = (*input_shape[:-1], self.hidden_size), state_dtype(self.dtype or self.param_dtype)
        if carry_init is None:
            return jnp.zeros(shape, dtype)
        return carry_init(_stream(rngs, "carry")(), shape, dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1


@dataclasses.dataclass(eq=False, repr=False)
class Regularised(Sized, nnx.Module):
    """What a layer and the models have in common.

    Attributes:
      deterministic: True switches the regularisation off; `module.eval()` and `module.train()` set it.
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
        """Keeps a stream of its own, where anything is drawn."""
        self.stream = _stream(rngs, "dropout").fork() if any(rates) else nnx.data(None)

    def _noise(self, deterministic: bool | None, rngs: Rngs | None) -> Noise | None:
        if self.deterministic if deterministic is None else deterministic:
            return None
        stream = self.stream if rngs is None else rngs
        return Noise(
            lambda x, rate: nnx.Dropout(rate, deterministic=False)(x, rngs=_stream(stream, "dropout")),
            lambda: _stream(stream, "dropout")(),
        )

    def _dense(self, name: str, x: Array, *_: Any, **__: Any) -> Array:
        """W x + b of that name; how wide it is and whether it has a bias was said when it was made."""
        return getattr(self, name)(x)


@dataclasses.dataclass(eq=False, repr=False)
class GRU(LayerSettings, Regularised):
    """`torch.nn.GRU` with batch_first=True: `GRU(input_size, hidden_size, num_layers=1, *, ..., rngs)`.

    The equations of one step are those of `GRUCell`; attributes and parameters those of `grujax.GRU`.

    >>> from flax import nnx
    >>> layer = GRU(10, 20, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    >>> output, h_last = layer(jnp.ones((3, 7, 10)), lengths=jnp.array([7, 4, 2]))
    >>> output.shape, h_last.shape
    ((3, 7, 40), (4, 3, 20))
    >>> layer.l0.w_ih.shape
    (10, 60)

    Source: torch.nn.GRU.
    """

    num_layers: int = 1

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        self.check()
        if self.initial_state == "learned":
            self.h0 = nnx.Param(jnp.zeros((self.num_states, self.hidden_size), self.param_dtype))
        for k in range(self.num_layers):
            size = self.input_size if k == 0 else self.width
            for way in ("", "_reverse")[: self.num_directions]:
                setattr(self, f"l{k}{way}", GRUCell(**dict(self.settings(GRUCell), input_size=size), rngs=rngs))
            if k > 0 and self.connection == "highway":
                inits = {"kernel_init": lecun_normal(), "bias_init": constant(-1.0)}
                setattr(self, f"l{k}_highway", _linear(self, size, size, rngs, **inits))
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
    ) -> tuple[Array, Array] | tuple[tuple[Array, Array], Array]:
        """Runs over whole sequences.

        Args:
          x, h0, lengths, mask, resets: see `grujax.GRU`.
          deterministic: True switches the regularisation off; the attribute where None.
          rngs: what is dropped is drawn from its stream "dropout"; from the module's own where None.

        Returns:
          output (B, T, D*H), exactly 0 at steps that are not valid, and h_last (L*D, B, H); see `grujax.GRU`.
        """
        self.check()
        steps = check_inputs(x, self.input_size, lengths, mask, resets, self.time_major)
        return returned(self, self.run(steps, h0, deterministic, rngs))

    def run(
        self, steps: Steps, h0: Array | None = None, deterministic: bool | None = None, rngs: Rngs | None = None
    ) -> LayerRun:
        """As `__call__`, on checked steps; time-major with one batch axis, and what pooling needs besides."""
        parts = Parts(
            cell=lambda name: getattr(self, name),
            highway=self._dense,
            scan=_scan,
            initial=self.h0[...] if self.initial_state == "learned" else None,
            noise=self._noise(deterministic, rngs),
        )
        return run_layers(self, steps, h0, parts)


@dataclasses.dataclass(eq=False, repr=False)
class GRUEncoder(EncoderSettings, Regularised):
    """A vector a sequence: `GRU`, then pooling: `GRUEncoder(input_size, hidden_size, *, ..., rngs)`.

    Attributes and parameters are those of `grujax.GRUEncoder`.

    >>> from flax import nnx
    >>> encoder = GRUEncoder(10, 20, bidirectional=True, pooling="mean", rngs=nnx.Rngs(0))
    >>> encoder(jnp.ones((3, 7, 10))).shape
    (3, 40)
    """

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        self.check()
        self.gru = GRU(**self.settings(GRU), rngs=rngs)
        if self.pooling == "attention":
            self.attention = _linear(self, self.width, self.width, rngs)
            self.attention_score = _linear(self, self.width, 1, rngs, use_bias=False)

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
    ) -> Any:
        """Runs over whole sequences. Arguments: see `grujax.GRUEncoder`, and `GRU` for `deterministic` and `rngs`.

        Returns:
          (B, F), with `segments` (N, F), with `pooling=None` (B, T, F); F is D*H, or H for a merge but "concat".
        """
        self.check()
        steps = check_inputs(x, self.input_size, lengths, mask, resets, self.time_major)
        kept = check_segments(self.pooling, steps, segments, num_segments)
        run = self.gru.run(steps, h0, deterministic, rngs)
        features = pooled(self, run, kept, self._dense)
        return (features, run.states) if return_state else features


@dataclasses.dataclass(eq=False, repr=False)
class GRUModel(ModelSettings, Regularised):
    """A GRU encoder with a dense head: `GRUModel(input_size, hidden_size, output_size, *, ..., rngs)`.

        y = W pool(GRU(x)) + b

    Attributes and parameters are those of `grujax.GRUModel`. Its collection "statistics" are here the attributes
    `input_mean`, `input_std`, `output_mean`, `output_std`, of type `Statistic`, each where it is known: raw inputs go
    in and raw targets come out.

    >>> from flax import nnx
    >>> model = GRUModel(10, 20, 5, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((3, 7, 10))).shape
    (3, 5)
    """

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        if isinstance(self.output_size, Mapping):
            self.output_size = FrozenDict(self.output_size)  # hashable, as what is static must be
        self.head_hidden = tuple(self.head_hidden)
        self.check()
        self.encoder = GRUEncoder(**self.settings(GRUEncoder), rngs=rngs)
        for layers in self.heads.values():
            size = self._features()
            for name, width in layers:
                setattr(self, name, _linear(self, size, width, rngs))
                size = width
        self._draws(rngs, self.dropout)

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
    ) -> Any:
        """Runs the model over whole sequences. Arguments: see `grujax.GRUModel`, and `GRU` for the last two.

        Returns:
          (B, output_size), (N, output_size) with `segments`, or (B, T, output_size) with `pooling=None`, 0 at steps
          that are not valid; a dict of such arrays where there are several heads.
        """
        self.check()
        steps = check_inputs(x, self.input_size, lengths, mask, resets, self.time_major)
        statistics = {name: getattr(self, name)[...] for name in STATISTICS if hasattr(self, name)}
        features, h_last = self.encoder(
            standardised(self, steps.x, statistics),
            h0,
            mask=steps.valid,
            resets=steps.resets,
            segments=segments,
            num_segments=num_segments,
            return_state=True,
            deterministic=deterministic,
            rngs=rngs,
        )
        y = answer(self, features, steps.valid, statistics, self._dense, self._noise(deterministic, rngs))
        return (y, h_last) if return_state else y

    def _features(self) -> int:
        """How many the head reads: what the pooling leaves."""
        if not callable(self.pooling):
            return self.width
        dtype = jnp.dtype(self.dtype or self.param_dtype)
        output, valid = jax.ShapeDtypeStruct((1, 1, self.width), dtype), jax.ShapeDtypeStruct((1, 1), jnp.bool_)
        return jax.eval_shape(self.pooling, output, valid).shape[-1]


def _linear(module: LayerSettings, inputs: int, width: int, rngs: nnx.Rngs, **options: Any) -> nnx.Linear:
    """W x + b: the dtypes, the precision and the initialiser of `module`."""
    init = preset(module.initializer, module.hidden_size, inputs)
    options = {"kernel_init": init.head_kernel, "bias_init": init.head_bias} | options
    dtypes = {"dtype": module.dtype, "param_dtype": module.param_dtype}
    return nnx.Linear(inputs, width, **dtypes, precision=module.precision, **options, rngs=rngs)


def _stream(rngs: Rngs | None, name: str) -> nnx.RngStream:
    if isinstance(rngs, nnx.RngStream):
        return rngs
    if not isinstance(rngs, nnx.Rngs) or not {name, "default"} & {*rngs}:
        found = f"streams {[*rngs]}" if isinstance(rngs, nnx.Rngs) else repr(rngs)
        raise InputError("rngs", f'an nnx.Rngs with a stream "{name}"', found, f"nnx.Rngs(0, {name}=1) has one.")
    return rngs[name]


def _scan(one_step, reverse: bool):
    return nnx.scan(one_step, in_axes=(None, nnx.Carry, 0, None), out_axes=(nnx.Carry, 0), reverse=reverse)
