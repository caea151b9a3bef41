"""The models: a GRU with pooling (a vector a sequence), and that with one or several dense heads."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.core import Tracer
from jax.typing import ArrayLike

from grujax.errors import require, require_count
from grujax.functional import Steps, check_inputs, from_rows
from grujax.initializers import preset
from grujax.layer import GRU, MERGES, LayerRun, LayerSettings, dropout, merged
from grujax.step import ACTIVATIONS
from grujax.types import Activation, Array, Inputs, state_dtype

Pooling: TypeAlias = str | Callable[[Array, Array], Array] | None
POOLINGS = ("last", "mean", "max", "attention")


def pool(output: Array, valid: Array, pooling: str, scores: Array | None = None) -> Array:
    """output (T, B, F), zero at steps that are not valid (T, B) -> (B, F); over no step at all 0.

    "mean" and "max" go over the valid steps; "attention" is their mean weighed by softmax(scores (T, B)).
    """
    wide, any_valid = state_dtype(output.dtype), valid.any(0)
    if pooling == "mean":
        counts = jnp.maximum(valid.sum(0), 1)[:, None].astype(wide)
        return (output.sum(0, dtype=wide) / counts).astype(output.dtype)
    if pooling == "max":
        largest = jnp.where(valid[..., None], output, -jnp.inf).max(0, initial=-jnp.inf)
        return jnp.where(any_valid[:, None], largest, 0)
    assert pooling == "attention" and scores is not None
    # a row without a valid step: scores of 0 keep softmax and its gradient finite, and its output is 0 already
    scores = jnp.where(valid, scores.astype(wide), jnp.where(any_valid, -jnp.inf, 0)[None])
    weights = jax.nn.softmax(scores, axis=0)
    return (weights[..., None] * output.astype(wide)).sum(0).astype(output.dtype)


def pool_segments(output: Array, ids: Array, count: int, pooling: str, scores: Array | None = None) -> Array:
    """As `pool`, a vector a segment: output (T, B, F), ids (T, B) 0..count, the last none at all -> (count, F)."""
    flat, ids = output.reshape(-1, output.shape[-1]), ids.reshape(-1)
    wide = state_dtype(output.dtype)

    def total(a: Array) -> Array:
        return jax.ops.segment_sum(a, ids, count + 1)

    there = (total(jnp.ones_like(ids)) > 0)[:, None]
    if pooling == "max":
        result = jnp.where(there, jax.ops.segment_max(flat, ids, count + 1), 0)
    else:
        weights = jnp.ones(ids.shape, wide)
        if scores is not None:
            scores = scores.reshape(-1).astype(wide)
            largest = jax.ops.segment_max(jax.lax.stop_gradient(scores), ids, count + 1)
            weights = jnp.exp(scores - largest[ids])
        mass = jnp.where(there, total(weights)[:, None], 1)
        result = total(weights[:, None] * flat.astype(wide)) / mass
    return result[:count].astype(output.dtype)


def last_of_segments(run: LayerRun, ids: Array, count: int) -> list[Array]:
    """The last state of each segment in each direction, (count, H): at its last step, in reverse at its first.

    A segment without a step has the initial state.
    """
    ids, found = ids.reshape(-1), []
    at = jnp.arange(ids.size)
    there = jax.ops.segment_sum(jnp.ones_like(ids), ids, count + 1)[:count] > 0
    of_direction = zip(run.directions, (jax.ops.segment_max, jax.ops.segment_min), strict=False)
    for direction, (hs, last_read) in enumerate(of_direction):
        start = jnp.zeros(hs.shape[-1], hs.dtype)
        if run.initial is not None:
            start = run.initial[direction - len(run.directions)].astype(hs.dtype)
        states = jnp.concatenate([hs.reshape(ids.size, hs.shape[-1]), start[None]])
        found.append(states[jnp.where(there, last_read(at, ids, count + 1)[:count], ids.size)])
    return found


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
        ids = _check_segments(self, steps, segments, num_segments)
        layer = GRU(**self.settings(GRU), name="gru")
        run = layer.run(steps.x, h0, mask=steps.valid, resets=steps.resets, deterministic=deterministic)
        if ids is not None:
            ids = ids if self.time_major else jnp.moveaxis(ids, -1, 0)
            features = self._pool(run, ids.reshape(run.output.shape[:2]), num_segments)
        else:
            features = self._pool(run, None, None)
            if self.pooling is not None and not callable(self.pooling):
                features = features.reshape(*run.batch, features.shape[-1])
        return (
            (features, run.h_last.reshape(run.h_last.shape[0], *run.batch, self.hidden_size))
            if return_state
            else features
        )

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
        init = preset(self.initializer, self.hidden_size, output.shape[-1])
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype, "precision": self.precision}
        inside = nn.Dense(
            output.shape[-1], **options, kernel_init=init.head_kernel, bias_init=init.head_bias, name="attention"
        )(output)
        kernel = init.head_kernel
        return nn.Dense(1, use_bias=False, **options, kernel_init=kernel, name="attention_score")(jnp.tanh(inside))[
            ..., 0
        ]


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
        activation = (
            ACTIVATIONS[self.head_activation] if isinstance(self.head_activation, str) else self.head_activation
        )
        widths = {f"{name}_hidden{i}": width for i, width in enumerate(self.head_hidden)} | {name: size}
        for layer, width in widths.items():
            init = preset(self.initializer, self.hidden_size, features.shape[-1])
            features = nn.Dense(
                width,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                precision=self.precision,
                kernel_init=init.head_kernel,
                bias_init=init.head_bias,
                name=layer,
            )(features)
            if layer != name:
                features = activation(features)
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
    known = callable(model.head_activation) or model.head_activation in ACTIVATIONS
    names = f"one of {sorted(ACTIVATIONS)} or an elementwise function"
    require(known, "head_activation", names, repr(model.head_activation))
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


def _check_segments(
    encoder: EncoderSettings, steps: Steps, segments: ArrayLike | None, num_segments: int | None
) -> Array | None:
    if segments is None:
        require(num_segments is None, "num_segments", "None without segments", num_segments)
        unclear = steps.resets is not None and encoder.pooling is not None
        remedy = "Rows hold several sequences: pass segments and num_segments, or pool nothing."
        require(not unclear, "pooling", "None beside resets without segments", repr(encoder.pooling), remedy)
        return None
    pooled = isinstance(encoder.pooling, str)
    found = "None" if encoder.pooling is None else "a function"
    names = f"one of {list(POOLINGS)} beside segments"
    require(pooled, "pooling", names, found, "Use unpack_sequences on the output of every step.")
    if num_segments is None or isinstance(num_segments, Tracer):
        found = "None" if num_segments is None else "a traced value"
        require(False, "num_segments", "an integer beside segments", found, "It is the shape of the result.")
    assert num_segments is not None
    require(num_segments >= 0, "num_segments", "0 or more", num_segments)
    dtype, shape = jnp.result_type(segments), steps.x.shape[:-1]
    require(jnp.issubdtype(dtype, jnp.integer), "segments", "integers", f"dtype {dtype}")
    require(jnp.shape(segments) == shape, "segments", f"shape {shape}, one a step", f"shape {jnp.shape(segments)}")
    if not isinstance(segments, Tracer) and np.size(segments):
        values = np.asarray(segments)  # NumPy's own: under jit the minimum of a constant jax.Array would be traced
        low, high = int(values.min()), int(values.max())
        fits = low >= -1 and high < num_segments
        require(fits, "segments", f"-1 to num_segments - 1 = {num_segments - 1}", f"{low} to {high}")
    return jnp.asarray(segments)
