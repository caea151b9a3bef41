"""Keras' `.weights.h5` files, which contain only the weights of a model and not its options."""

import warnings
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import flax.linen as nn

from grujax.core.config import Pooling
from grujax.errors import require, require_one_of
from grujax.interop import keras_live
from grujax.interop.keras import FRAMEWORK, TRAINING, build, from_layers
from grujax.interop.keras_layers import HEADS, POOLINGS, Layer
from grujax.interop.parts import ConversionWarning, assumed_pooling
from grujax.interop.prove import Runner

DEFAULTS = {"bias": True, "activation": "tanh", "gate_activation": "sigmoid", "merge": "concat"}
DEFAULTS |= {"output_activation": None}
"""Fields of a model that a file of weights does not contain, and the values that are assumed."""


def _build(model: Any, variables: Mapping) -> Any:
    """Builds a model for a `.weights.h5` file; raises `InputError` if an option would be lost in it."""
    for field, default in DEFAULTS.items():
        found, remedy = getattr(model, field, default), "A .weights.h5 file cannot store it: write a .keras file."
        require(found == default, field, repr(default), repr(found), remedy)
    for field in ("dropout", "input_dropout"):
        if getattr(model, field, 0):
            warnings.warn(f"Keras' weights: {field} is not stored, {TRAINING}", ConversionWarning, stacklevel=2)
    return build(model, variables)


def _read(layers: list[Layer], pooling: Pooling | EllipsisType = ...) -> tuple[nn.Module, dict]:
    """The model and variables of a file of weights. pooling: what a Dense after a GRU reads, if no layer shows it."""
    kind = _pooling_kind(layers)
    remedy = f"The file has a {kind}, which determines the pooling: leave it out."
    require(not kind or pooling is ..., "pooling", "none", repr(pooling), remedy)
    model, variables = from_layers(layers)
    assumed = {} if kind else assumed_pooling(pooling, layers[-1].kind in HEADS)
    return model.clone(**assumed), variables


def _run(layers: list[Layer], model: Any) -> Runner:
    if layers[-1].kind in HEADS and not _pooling_kind(layers):
        require_one_of(model.pooling, ("last", *POOLINGS.values(), None), "pooling", "Others cannot be run.")
        *grus, last, head = layers
        last = last._replace(config=last.config | {"return_sequences": model.pooling != "last"})
        pooling = [Layer(kind, kind, {}) for kind, ours in POOLINGS.items() if ours == model.pooling]
        layers = [*grus, last, *pooling, head]
    return keras_live.runner(layers, model)


def _pooling_kind(layers: list[Layer]) -> str:
    """The kind of the layer that determines what the head reads; "" if there is none."""
    return next((layer.kind for layer in layers if layer.kind in (*POOLINGS, "TimeDistributed")), "")


WEIGHTS = FRAMEWORK._replace(
    name="keras-weights",
    read=_read,
    run=_run,
    build=_build,
    write=lambda path, target: keras_live.store(target, path, "model.weights.h5"),
    endings=(".weights.h5",),
    reads=(),
    assumes=True,
)
