"""What a model adds to its encoder: statistics before it; dropout, dense heads and statistics after it."""

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
    """How the statistics of a head begin, whose name is "" where it is the only one: `output_mean`, `output_NAME_mean`.

    >>> output_of(""), output_of("value")
    ('output', 'output_value')
    """
    return f"output_{name}" if name else "output"


def statistics_of(model: Any) -> tuple[str, ...]:
    """The names of the statistics that a module may have: a model, none other."""
    if not isinstance(model, ModelConfig):
        return ()
    outputs = [output_of(name) for name in model.heads if name]
    return (*STATISTICS, *(f"{of}_{s}" for of in outputs for s in ("mean", "std")))


def of_head(statistics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The statistics of the outputs of a head, as a model with that head alone has them."""
    found = {f"output_{s}": f"{output_of(name)}_{s}" for s in ("mean", "std")}
    return {key: statistics[own] for key, own in found.items() if own in statistics}


def standardised(model: ModelConfig, x: Array, statistics: Mapping[str, Array]) -> Array:
    """(x − input_mean) / input_std; x without these statistics."""
    alone = "output_mean" not in statistics or not isinstance(model.output_size, Mapping)
    rule = "output_mean and output_std need a single head"
    require(alone, "statistics/output_mean", "none", "one", "Name those of a head output_NAME_mean.", rule=rule)
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
