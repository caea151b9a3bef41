"""The models: a GRU with pooling (a vector a sequence), and that with a dense head."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import PrecisionLike
from jax.typing import ArrayLike, DTypeLike

from grujax.errors import require
from grujax.functional import check_inputs, valid_steps
from grujax.initializers import preset
from grujax.layer import GRU
from grujax.types import Array, Inputs

Pooling = Literal["last", "mean", "max"]


def pool(output: Array, h_last: Array, num_directions: int, lengths: Array | None, pooling: str | None) -> Array:
    """output (..., T, D*H) and h_last (L*D, ..., H) -> (..., D*H); (..., T, D*H) for None.

    "last" is the true last state of each direction of the top layer, not `output[:, -1]`, which is wrong for padded
    rows and for the reverse direction. "mean" and "max" go over the valid steps; over no step at all they are 0.
    """
    if pooling is None:
        return output
    if pooling == "last":
        top = jnp.moveaxis(h_last[-num_directions:], 0, -2)
        return top.reshape(*top.shape[:-2], -1).astype(output.dtype)
    n_steps = output.shape[-2]
    counts = jnp.full(output.shape[:-2], n_steps) if lengths is None else lengths
    valid = valid_steps(n_steps, counts)
    if pooling == "mean":  # steps that are not valid are 0 already
        total = output.sum(-2, dtype=h_last.dtype)
        return (total / jnp.maximum(counts, 1)[..., None].astype(total.dtype)).astype(output.dtype)
    require(pooling == "max", "pooling", '"last", "mean", "max" or None', repr(pooling))
    largest = jnp.where(valid[..., None], output, -jnp.inf).max(-2, initial=-jnp.inf)
    return jnp.where((counts > 0)[..., None], largest, 0)


class GRUEncoder(nn.Module):
    """A vector a sequence: `GRU`, then pooling over the valid steps.

    `__call__(x, h0=None, *, lengths=None, return_state=False, deterministic=True)` maps x (B, T, I) to (B, D*H), or
    (B, T, D*H) with `pooling=None`, with `h_last (L*D, B, H)` beside it where `return_state`. Attributes are those
    of `GRU`, and `pooling`: "last", "mean", "max" or None; see `pool`.

    >>> import jax, jax.numpy as jnp
    >>> encoder = GRUEncoder(20, bidirectional=True, pooling="mean")
    >>> x = jnp.ones((3, 7, 10))
    >>> encoder.apply(encoder.init(jax.random.key(0), x), x).shape
    (3, 40)
    """

    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    pooling: str | None = "last"
    bias: bool = True
    reset_after: bool = True
    initializer: str = "torch"
    implementation: str | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = None

    @nn.compact
    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        return_state: bool = False,
        deterministic: bool = True,
    ) -> Array | tuple[Array, Array]:
        layer = GRU(
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.bias,
            self.dropout,
            self.reset_after,
            self.initializer,
            self.implementation,
            self.dtype,
            self.param_dtype,
            self.precision,
            name="gru",
        )
        x, lengths = check_inputs(x, None, lengths)
        output, h_last = layer(x, h0, lengths=lengths, deterministic=deterministic)
        features = pool(output, h_last, layer.num_directions, lengths, self.pooling)
        return (features, h_last) if return_state else features


class GRUModel(nn.Module):
    """A GRU encoder with a dense head: in PyTorch `nn.GRU`, the last time step, `nn.Linear`.

        y = W pool(GRU(x)) + b

    Attributes are those of `GRU`, and
      output_size: width of the head.
      pooling: "last", "mean", "max", or None for an output a step.
      dropout: between the layers, as torch has it, and before the head; rng stream "dropout".

    Where `variables` has a collection "statistics" (a model trained by `grujax.training.fit` has), raw inputs go in
    and raw targets come out: x is standardised by its `input_mean` and `input_std` (I,), and y is multiplied by
    `output_std` and moved by `output_mean` (output_size,), the latter in regression alone.

    >>> import jax, jax.numpy as jnp
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> x = jnp.ones((3, 7, 10))
    >>> model.apply(model.init(jax.random.key(0), x), x).shape
    (3, 5)
    """

    hidden_size: int
    output_size: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    pooling: str | None = "last"
    bias: bool = True
    reset_after: bool = True
    initializer: str = "torch"
    implementation: str | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = None

    @nn.compact
    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        return_state: bool = False,
        deterministic: bool = True,
    ) -> Array | tuple[Array, Array]:
        """Runs the model over whole sequences.

        Args:
          x: (B, T, I), or any other number of batch axes, none included.
          h0: (L*D, B, H), zeros where None.
          lengths: integers (B,), how many steps of each sequence are valid; all where None.
          return_state: also return h_last (L*D, B, H), to go on from: streaming, truncated backpropagation.
          deterministic: True switches dropout off.

        Returns:
          (B, output_size), or (B, T, output_size) with `pooling=None`, 0 at steps that are not valid.
        """
        require(self.output_size > 0, "output_size", "a positive integer", self.output_size)
        x, lengths = check_inputs(x, None, lengths)
        x = self._statistic("input", lambda x, mean, std: (x - mean) / std, x)
        encoder = GRUEncoder(
            self.hidden_size,
            self.num_layers,
            self.bidirectional,
            self.dropout,
            self.pooling,
            self.bias,
            self.reset_after,
            self.initializer,
            self.implementation,
            self.dtype,
            self.param_dtype,
            self.precision,
            name="encoder",
        )
        features, h_last = encoder(x, h0, lengths=lengths, return_state=True, deterministic=deterministic)
        features = nn.Dropout(self.dropout, deterministic=deterministic)(features)
        init = preset(self.initializer, self.hidden_size, features.shape[-1])
        y = nn.Dense(
            self.output_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=init.head_kernel,
            bias_init=init.head_bias,
            name="head",
        )(features)
        y = self._statistic("output", lambda y, mean, std: y * std + mean, y)
        if self.pooling is None and lengths is not None:
            y = jnp.where(valid_steps(x.shape[-2], lengths)[..., None], y, 0)
        return (y, h_last) if return_state else y

    def _statistic(self, which: str, use, a: Array) -> Array:
        if not self.has_variable("statistics", f"{which}_mean"):
            return a
        mean, std = (self.get_variable("statistics", f"{which}_{s}") for s in ("mean", "std"))
        require(
            mean.shape == a.shape[-1:], f"statistics/{which}_mean", f"shape {a.shape[-1:]}, one a feature", mean.shape
        )
        shape = (1,) * (a.ndim - 1) + a.shape[-1:]
        return use(a, mean.reshape(shape).astype(a.dtype), std.reshape(shape).astype(a.dtype))
