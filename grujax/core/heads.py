"""What a model adds to its encoder: statistics before it; dropout, dense heads and statistics after it."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from grujax.core.config import OUTPUT_ACTIVATIONS, ModelConfig
from grujax.core.stack import Noise, dropped
from grujax.errors import require, require_equal
from grujax.kernels.step import activate
from grujax.types import Array, Valid

STATISTICS = ("input_mean", "input_std", "output_mean", "output_std")


def standardised(model: ModelConfig, x: Array, statistics: Mapping[str, Array]) -> Array:
    """(x − input_mean) / input_std; x without these statistics."""
    alone = "output_mean" not in statistics or not isinstance(model.output_size, Mapping)
    rule = "statistics of the output need a single head"
    require(alone, "statistics/output_mean", "none", "one", "Scale the targets of each head by hand.", rule=rule)
    return _with_statistics(statistics, "input", lambda x, mean, std: (x - mean) / std, x)


def apply_heads(
    model: ModelConfig,
    features: Array,
    valid: Valid | None,
    statistics: Mapping[str, Array],
    dense: Callable[..., Array],
    noise: Noise | None,
) -> Array | dict[str, Array]:
    """The outputs of the heads for pooled features; with `pooling=None` 0 at steps that are not valid (*batch, T).

    `dense(name, x, width)` is W x + b with the parameters of that name.
    """
    features = dropped(features, model.dropout, noise)
    outputs = {}
    for name, layers in model.heads.items():
        y = features
        *hidden, (last, size) = layers
        for layer, width in hidden:
            y = activate(model.head_activation)(dense(layer, y, width))
        y = dense(last, y, size)
        if model.output_activation is not None:
            y = OUTPUT_ACTIVATIONS[model.output_activation](y)
        outputs[name] = _with_statistics(statistics, "output", lambda y, mean, std: y * std + mean, y)
    if model.pooling is None and valid is not None:
        outputs = {name: jnp.where(valid[..., None], y, 0) for name, y in outputs.items()}
    return outputs if isinstance(model.output_size, Mapping) else outputs[""]


def _with_statistics(statistics: Mapping[str, Array], which: str, use: Callable[..., Array], a: Array) -> Array:
    if f"{which}_mean" not in statistics:
        return a
    mean, std = (statistics[f"{which}_{s}"] for s in ("mean", "std"))
    require_equal(mean.shape, a.shape[-1:], f"statistics/{which}_mean", "One value for each feature.")
    shape = (1,) * (a.ndim - 1) + a.shape[-1:]
    return use(a, mean.reshape(shape).astype(a.dtype), std.reshape(shape).astype(a.dtype))
