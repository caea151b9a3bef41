"""The models: a GRU with pooling (a vector a sequence), and that with one or several dense heads."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import ArrayLike

from grujax.errors import require, require_count
from grujax.initializers import preset
from grujax.inputs import check_inputs, from_rows
from grujax.layer import GRU, MERGES, LayerRun, LayerSettings, dropout, merged
from grujax.pooling import POOLINGS, Pooling, check_segments, last_of_segments, pool, pool_segments
from grujax.step import activate, check_activation
from grujax.types import Activation, Array, Inputs


def dense(module: LayerSettings, x: Array, width: int, name: str, bias: bool = True) -> Array:
    """W x + b in the scope of `module`: its dtypes, its precision, its initialiser."""
    init = preset(module.initializer, module.hidden_size, x.shape[-1])
    layer = nn.Dense(
        width,
        bias,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        precision=module.precision,
        kernel_init=init.head_kernel,
        bias_init=init.head_bias,
        name=name,
    )
    return layer(x)


class EncoderSettings(LayerSettings):
    """What an encoder and a model have in common, beside the attributes of `LayerSettings` and `CellSettings`.

    Attributes:
      pooling: how all steps become one vector. "last": the true last state of each direction of the top layer, not
        `output[:, -1]`, which is wrong for padded rows and for the reverse direction; length 0 gives h0. "mean" and
        "max" over the valid steps, "attention" their mean weighed by softmax(u · tanh(W output + b)) (Yang et al.
        2016, Hierarchical Attention Networks); length 0 gives 0. A function `f(output (..., T, F), valid (..., T))`
        of the output, 0 where not valid. None: an output a step.
    """

    _: dataclasses.KW_ONLY
    pooling: Pooling = "last"


class GRUEncoder(EncoderSettings):
    """A vector a sequence: `GRU`, then pooling over the valid steps. Attributes: see `EncoderSettings`.

    >>> import jax, jax.numpy as jnp
    >>> encoder = GRUEncoder(20, bidirectional=True, pooling="mean")
    >>> x = jnp.ones((3, 7, 10))
    >>> encoder.apply(encoder.init(jax.random.key(0), x), x).shape
    (3, 40)
    """

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
    ) -> Any:
        """Runs over whole sequences.

        Args:
          x, h0, lengths, mask, resets, deterministic: see `GRU`.
          segments: integers (B, T), which of the `num_segments` sequences a step belongs to, −1 for none: pooling
            gives a vector a sequence. `grujax.data.pack_sequences` makes them.
          num_segments: N, fixed when compiled.
          return_state: also return h_last (L*D, B, H).

        Returns:
          (B, F), with `segments` (N, F), with `pooling=None` (B, T, F); F is D*H, or H for a merge but "concat".
        """
        _check(self)
        steps = check_inputs(x, None, lengths, mask, resets, self.time_major)
        ids = check_segments(self.pooling, steps, segments, num_segments)
        layer = GRU(**self.settings(GRU), name="gru")
        run = layer.run(steps.x, h0, mask=steps.valid, resets=steps.resets, deterministic=deterministic)
        if ids is not None:
            ids = ids if self.time_major else jnp.moveaxis(ids, -1, 0)
            features = self._pool(run, ids.reshape(run.output.shape[:2]), num_segments)
        else:
            features = self._pool(run, None, None)
            if self.pooling is not None and not callable(self.pooling):
                features = features.reshape(*run.batch, features.shape[-1])
        return (features, run.states) if return_state else features

    def _pool(self, run: LayerRun, ids: Array | None, count: int | None) -> Array:
        output, pooling = run.output, self.pooling
        if pooling is None:
            return from_rows(output, run.batch, self.time_major)
        valid = jnp.broadcast_to(True, output.shape[:2]) if run.valid is None else run.valid
        if callable(pooling):
            return pooling(from_rows(output, run.batch, False), from_rows(valid[..., None], run.batch, False)[..., 0])
        if ids is not None:
            assert count is not None
            ids = jnp.where(valid & (ids >= 0) & (ids < count), ids, count)
        if pooling == "last":
            states = [*run.h_last[-self.num_directions :]]
            last = states if ids is None or count is None else last_of_segments(run, ids, count)
            return merged(self, last).astype(output.dtype)
        scores = self._scores(output) if pooling == "attention" else None
        if ids is None or count is None:
            return pool(output, valid, pooling, scores)
        return pool_segments(output, ids, count, pooling, scores)

    def _scores(self, output: Array) -> Array:
        """u · tanh(W output + b): (T, B)."""
        inside = dense(self, output, output.shape[-1], "attention")
        return dense(self, jnp.tanh(inside), 1, "attention_score", bias=False)[..., 0]


class GRUModel(EncoderSettings):
    """A GRU encoder with a dense head: in PyTorch `nn.GRU`, the last time step, `nn.Linear`.

        y = W pool(GRU(x)) + b

    Attributes: those of `EncoderSettings`, and
      output_size: width of the head; or several heads, a dict of widths by name, whose outputs are a dict too.
      head_hidden: widths of hidden layers in each head, W f(... f(W pool + b)) + b; none by default.
      head_activation: f, a name of `grujax.step.ACTIVATIONS` or a function.
      dropout: between the layers, as torch has it, and before the head; rng stream "dropout".

    Where `variables` has a collection "statistics" (a model trained by `grujax.training.fit` has), raw inputs go in
    and raw targets come out: x is standardised by its `input_mean` and `input_std` (I,), and y is multiplied by
    `output_std` and moved by `output_mean` (output_size,), the latter in regression with a single head alone.

    >>> import jax, jax.numpy as jnp
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> x = jnp.ones((3, 7, 10))
    >>> model.apply(model.init(jax.random.key(0), x), x).shape
    (3, 5)
    """

    output_size: int | Mapping[str, int]
    _: dataclasses.KW_ONLY
    head_hidden: tuple[int, ...] = ()
    head_activation: Activation = "relu"

    def __post_init__(self) -> None:
        """Hashable whatever it was given, so that a model may be a static argument of `jax.jit`."""
        if isinstance(self.output_size, Mapping):
            self.output_size = FrozenDict(self.output_size)
        self.head_hidden = tuple(self.head_hidden)
        super().__post_init__()

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
    ) -> Any:
        """Runs the model over whole sequences.

        Args:
          x: (B, T, I), or any other number of batch axes, none included.
          h0: (L*D, B, H), the initial state where None.
          lengths, mask, resets: which steps are valid, where sequences begin; see `GRU`.
          segments, num_segments: which sequence a step belongs to; see `GRUEncoder`.
          return_state: also return h_last (L*D, B, H), to go on from: streaming, truncated backpropagation.
          deterministic: True switches dropout off.

        Returns:
          (B, output_size), (N, output_size) with `segments`, or (B, T, output_size) with `pooling=None`, 0 at steps
          that are not valid; a dict of such arrays where there are several heads.
        """
        heads = _heads(self)
        steps = check_inputs(x, None, lengths, mask, resets, self.time_major)
        x = self._statistic("input", lambda x, mean, std: (x - mean) / std, steps.x)
        encoder = GRUEncoder(**self.settings(GRUEncoder), name="encoder")
        features, h_last = encoder(
            x,
            h0,
            mask=steps.valid,
            resets=steps.resets,
            segments=segments,
            num_segments=num_segments,
            return_state=True,
            deterministic=deterministic,
        )
        features = dropout(features, self.dropout, deterministic)
        outputs = {name: self._head(layer, size, features) for name, (layer, size) in heads.items()}
        if self.pooling is None and steps.valid is not None:
            valid = steps.valid
            if self.include_initial:  # the initial state is no step, and always there
                time = 0 if self.time_major else valid.ndim - 1
                front = [(int(axis == time), 0) for axis in range(valid.ndim)]
                valid = jnp.pad(valid, front, constant_values=True)
            outputs = {name: jnp.where(valid[..., None], y, 0) for name, y in outputs.items()}
        y = outputs if isinstance(self.output_size, Mapping) else outputs[""]
        return (y, h_last) if return_state else y

    def _head(self, name: str, size: int, features: Array) -> Array:
        for i, width in enumerate(self.head_hidden):
            features = activate(self.head_activation)(dense(self, features, width, f"{name}_hidden{i}"))
        features = dense(self, features, size, name)
        return self._statistic("output", lambda y, mean, std: y * std + mean, features)

    def _statistic(self, which: str, use, a: Array) -> Array:
        if not self.has_variable("statistics", f"{which}_mean"):
            return a
        mean, std = (self.get_variable("statistics", f"{which}_{s}") for s in ("mean", "std"))
        require(
            mean.shape == a.shape[-1:], f"statistics/{which}_mean", f"shape {a.shape[-1:]}, one a feature", mean.shape
        )
        shape = (1,) * (a.ndim - 1) + a.shape[-1:]
        return use(a, mean.reshape(shape).astype(a.dtype), std.reshape(shape).astype(a.dtype))


def _heads(model: GRUModel) -> dict[str, tuple[str, int]]:
    """Of each head by its name, the name of its last layer and its width."""
    several = isinstance(model.output_size, Mapping)
    sizes = model.output_size if isinstance(model.output_size, Mapping) else {"": model.output_size}
    require(bool(sizes), "output_size", "at least one head", model.output_size)
    for name, size in sizes.items():
        require_count(size, f"output_size[{name!r}]" if several else "output_size")
    for i, width in enumerate(model.head_hidden):
        require_count(width, f"head_hidden[{i}]")
    check_activation(model.head_activation, "head_activation")
    if several:
        statistics = model.has_variable("statistics", "output_mean")
        require(not statistics, "statistics/output_mean", "none where there are several heads", "one")
    return {name: (f"head_{name}" if several else "head", size) for name, size in sizes.items()}


def _check(encoder: EncoderSettings) -> None:
    named = callable(encoder.pooling) or encoder.pooling in (*POOLINGS, None)
    require(named, "pooling", f"one of {list(POOLINGS)}, a function or None", repr(encoder.pooling))
    one = encoder.merge is not None or not encoder.bidirectional
    require(one, "merge", f"one of {list(MERGES)}", None, "GRU alone returns the directions apart.")
    initial = encoder.pooling is not None and encoder.include_initial
    require(not initial, "include_initial", "False beside pooling", True, "Pooling goes over the steps of x.")
