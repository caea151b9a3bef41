"""The parts that a model adds to its encoder: input statistics, dropout, dense heads and output statistics."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from grujax.core.config import OUTPUT_ACTIVATIONS, ModelConfig
from grujax.core.stack import Noise, dropped
from grujax.errors import require, require_equal
from grujax.kernels.step import activate
from grujax.types import Array, Valid

STATISTICS = ("input_mean", "input_std", "output_mean", "output_std")


def output_of(name: str) -> str:
    """Returns the prefix of the names of a head's statistics. A single head has the name "".

    >>> output_of(""), output_of("value")
    ('output', 'output_value')
    """
    return f"output_{name}" if name else "output"


def statistics_of(model: Any) -> tuple[str, ...]:
    """Returns the names of the statistics that a module may have; empty unless it is a model with heads."""
    if not isinstance(model, ModelConfig):
        return ()
    outputs = [output_of(name) for name in model.heads if name]
    return (*STATISTICS, *(f"{output}_{s}" for output in outputs for s in ("mean", "std")))


def of_head(statistics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the output statistics of one head, under the names that a model with this single head uses."""
    names = {f"output_{s}": f"{output_of(name)}_{s}" for s in ("mean", "std")}
    return {key: statistics[stored] for key, stored in names.items() if stored in statistics}


def standardised(model: ModelConfig, x: Array, statistics: Mapping[str, Array]) -> Array:
    """Returns (x − input_mean) / input_std, or x if the model has no such statistics."""
    fits = "output_mean" not in statistics or not isinstance(model.output_size, Mapping)
    rule = "output_mean and output_std need a single head"
    remedy = "With several heads, name the statistics output_NAME_mean and output_NAME_std."
    require(fits, "statistics/output_mean", "no such statistic", "one", remedy, rule=rule)
    return _with_statistics(statistics, "input", lambda x, mean, std: (x - mean) / std, x)


def apply_heads(
    model: ModelConfig,
    features: Array,
    valid: Valid | None,
    statistics: Mapping[str, Array],
    dense: Callable[..., Array],
    noise: Noise | None,
) -> Array | dict[str, Array]:
    """Computes the outputs of the heads from pooled features.

    With `pooling=None` they are 0 where `valid` (*batch, T) is False. `dense(name, x, width)` computes W x + b with the
    parameters `name`.
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
        outputs[name] = _with_statistics(statistics, output_of(name), lambda y, mean, std: y * std + mean, y)
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
