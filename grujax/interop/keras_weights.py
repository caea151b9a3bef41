"""Files of Keras that hold weights alone, `.weights.h5`: what else a model is, they do not tell."""

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
"""What a file of weights does not tell."""


def _build(model: Any, variables: Mapping) -> Any:
    """Of a model that its weights alone tell: what else it is would be lost in a `.weights.h5` file."""
    for field, default in DEFAULTS.items():
        found = getattr(model, field, default)
        require(found == default, field, repr(default), repr(found), "Weights do not tell it: write a .keras file.")
    for field in ("dropout", "input_dropout"):
        if getattr(model, field, 0):
            warnings.warn(f"Keras' weights: {field} is not told, {TRAINING}", ConversionWarning, stacklevel=2)
    return build(model, variables)


def _read(layers: list[Layer], pooling: Pooling | EllipsisType = ...) -> tuple[nn.Module, dict]:
    """Of a file of weights, which do not tell what a Dense behind a GRU reads."""
    told = _tells_pooling(layers)
    require(
        not told or pooling is ..., "pooling", "none", repr(pooling), f"A {told} in the file tells it: leave it out."
    )
    model, variables = from_layers(layers)
    assumed = {} if told else assumed_pooling(pooling, layers[-1].kind in HEADS)
    return model.clone(**assumed), variables


def _run(layers: list[Layer], model: Any) -> Runner:
    if layers[-1].kind in HEADS and not _tells_pooling(layers):
        require_one_of(model.pooling, ("last", *POOLINGS.values(), None), "pooling", "Others are not run.")
        *grus, last, head = layers
        last = last._replace(config=last.config | {"return_sequences": model.pooling != "last"})
        pooling = [Layer(kind, kind, {}) for kind, ours in POOLINGS.items() if ours == model.pooling]
        layers = [*grus, last, *pooling, head]
    return keras_live.runner(layers, model)


def _tells_pooling(layers: list[Layer]) -> str:
    """The kind of the layer that tells what the head reads."""
    return next((layer.kind for layer in layers if layer.kind in (*POOLINGS, "TimeDistributed")), "")


WEIGHTS = FRAMEWORK._replace(
    name="keras-weights",
    read=_read,
    run=_run,
    build=_build,
    write=lambda path, made: keras_live.store(made, path, "model.weights.h5"),
    endings=(".weights.h5",),
    reads=(),
    assumes=True,
)
