"""A grujax model of Keras' layers as plain data, and such layers of a model."""

import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from grujax.core.dialects import Cell, read
from grujax.errors import require
from grujax.interop.keras_layers import (
    ACTIVATIONS,
    COMPUTES,
    HEADS,
    MERGES,
    OF_KERAS_2,
    OUTPUTS,
    POOLINGS,
    RECURRENT,
    Layer,
    dialect_of,
)
from grujax.interop.parts import ConversionWarning, Dense, Place, put_together, take_apart
from grujax.linen.cell import GRUCell

TRAINING = "it acts in training alone"
ACTIVATIONS_THERE = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != OF_KERAS_2}
MERGES_THERE = {ours: theirs for theirs, ours in MERGES.items()}
FIELDS = {"reset_after": (False,), "pooling": [*POOLINGS.values(), None], "dropout": None}
FIELDS |= {key: [*ACTIVATIONS_THERE] for key in ("activation", "gate_activation")}
FIELDS |= {"merge": [*MERGES_THERE], "output_activation": [*OUTPUTS.values()]}
"""What Keras has a place for, besides the defaults."""


def from_layers(layers: list[Layer]) -> tuple[nn.Module, dict]:
    """The model and variables that compute what a chain of layers does; see `grujax.interop.keras.from_keras`."""
    recurrent = [layer for layer in layers if layer.kind in RECURRENT]
    require(bool(recurrent), "source", "a GRU", f"layers {[layer.kind for layer in layers]}")
    _check_order(layers)
    first, last, head = recurrent[0], recurrent[-1], layers[-1] if layers[-1].kind in HEADS else None
    cells: dict[str, Cell] = {}
    for layer in recurrent:
        remedy = "A GRU of several layers has this once: convert the layers one by one."
        require(layer.kind == first.kind, layer.name, f"{first.kind}, as {first.name}", layer.kind, remedy)
        own, firsts = layer.config | {"dtype": layer.compute}, first.config | {"dtype": first.compute}
        for key in ("activation", "recurrent_activation", "use_bias", "reset_after", "merge_mode", "dtype"):
            found, expected = own.get(key), firsts.get(key)
            require(found == expected, f"{layer.name}.{key}", f"{expected!r}, as {first.name}", repr(found), remedy)
        for weights in layer.weights:
            name = next(iter(weights), layer.name).rsplit("/", 1)[0]
            cells[name] = read(weights, dialect_of(first.config["reset_after"]))
    fields: dict[str, Any] = {"reset_after": first.config["reset_after"]}
    fields |= {"activation": ACTIVATIONS[first.config["activation"]]}
    fields |= {"gate_activation": ACTIVATIONS[first.config["recurrent_activation"]]}
    fields |= {"merge": MERGES[first.config["merge_mode"]]} if first.kind == "Bidirectional" else {}
    fields |= {"dtype": getattr(jnp, first.compute)} if first.compute else {}
    dense = None
    if head is not None:
        (key, kernel), *bias = head.weights[0].items()
        dense = key, Dense(kernel, bias[0][1] if bias else None)
        unpooled = None if last.config["return_sequences"] else "last"
        fields["pooling"] = next((POOLINGS[layer.kind] for layer in layers if layer.kind in POOLINGS), unpooled)
        fields["output_activation"] = OUTPUTS[head.config["activation"]]
    dropout, left = _dropout(layers, recurrent)
    kinds = {"single": first.kind == "GRUCell", "bidirectional": first.kind == "Bidirectional"}
    found = put_together(cells, dense, **kinds, **fields, **dropout)
    for sentence in dict.fromkeys([*(sentence for layer in layers for sentence in layer.left), *left]):
        warnings.warn(f"grujax: {sentence}", ConversionWarning, stacklevel=2)
    return found


def _check_order(layers: list[Layer]) -> None:
    """GRUs, then pooling, then a Dense; each reads what the one before gives. Raises `InputError` otherwise."""
    layers = [layer for layer in layers if layer.kind != "Dropout"]
    stages = [2 if layer.kind in HEADS else 1 if layer.kind in POOLINGS else 0 for layer in layers]
    for k, layer in enumerate(layers):
        first = k == 0 or stages[k] > stages[k - 1] or stages[k] == 0 == stages[k - 1]
        require(first, layer.name, "GRUs, then one pooling layer, then one Dense", f"a {layer.kind} here")
        before, steps = layers[k - 1] if k else None, layer.kind != "Dense"
        if before is not None and before.kind in RECURRENT:
            given = before.config.get("return_sequences", False)
            require(given or not steps, f"{before.name}.return_sequences", f"True before {layer.name}", given)
            apart = before.config.get("merge_mode", "concat") is None
            require(not apart, f"{before.name}.merge_mode", f"directions merged before {layer.name}", None)
        else:
            require(layer.kind != "TimeDistributed", layer.name, "every step, without pooling", "a pooling layer")
    remedy = "Convert the model without it, and pool the output of every step; grujax.GRUEncoder does both."
    require(stages[-1] != 1, layers[-1].name, "a Dense behind pooling", "none", remedy)


def _dropout(layers: list[Layer], recurrent: list[Layer]) -> tuple[dict[str, Any], list[str]]:
    """The fields of the model that drop as Keras does; and what else Keras drops, in words."""
    fields, left = {}, []
    dropouts = [layer for layer in layers if layer.kind == "Dropout" and layer.config["rate"]]
    before = [layers[k - 1] for k, layer in enumerate(layers) if layer.kind in (*RECURRENT, *HEADS)]
    if dropouts and dropouts == before[1:] and len({layer.config["rate"] for layer in dropouts}) == 1:
        fields["dropout"] = dropouts[0].config["rate"]
    else:
        left += [f"{layer.name}: {TRAINING}, and at another place than dropout here" for layer in dropouts]
    rates = {layer.config["dropout"] for layer in recurrent}
    gates_apart = [layer for layer in recurrent if layer.config["recurrent_dropout"]]  # then Keras draws a mask a gate
    if 0 < max(rates) < 1:  # Keras drops nothing at 1
        if len(rates) == 1 and not gates_apart and recurrent[0].kind == "GRU":
            fields["input_dropout"] = rates.pop()
        else:
            left += [f"{layer.name}.dropout: {TRAINING}" for layer in recurrent if layer.config["dropout"]]
    left += [f"{layer.name}.recurrent_dropout: {TRAINING}, and draws a mask a gate" for layer in gates_apart]
    return fields, left


def to_layers(model: Any, variables: Mapping) -> list[Layer]:
    """The layers of Keras as plain data; see `to_keras`, which builds them."""
    single, directions = isinstance(model, GRUCell), getattr(model, "num_directions", 1)
    locked = {} if single or directions == 2 else {"input_dropout": None}  # in Keras each direction draws its own mask
    reset_after = model.reset_after
    parts = take_apart(model, variables, Place("Keras", FIELDS | locked), dialect_of(reset_after))
    options = {"units": model.hidden_size, "use_bias": model.bias, "reset_after": reset_after}
    options |= {"activation": ACTIVATIONS_THERE[model.activation], "recurrent_dropout": 0.0}
    options |= {"recurrent_activation": ACTIVATIONS_THERE[model.gate_activation]}
    options |= {"dropout": model.input_dropout if locked else 0.0}
    options |= {"merge_mode": MERGES_THERE[model.merge]} if directions == 2 else {}
    kind = "GRUCell" if single else "Bidirectional" if directions == 2 else "GRU"
    compute = jnp.dtype(model.dtype or model.param_dtype).name
    mixed = compute if model.param_dtype == jnp.float32 and compute in COMPUTES else ""
    layers: list[Layer] = []
    num_layers, head = len(parts.cells) // directions, parts.head
    dropout = [Layer("Dropout", "dropout", {"rate": model.dropout})] if getattr(model, "dropout", 0) else []
    for k in range(num_layers):
        steps = {} if single else {"return_sequences": k < num_layers - 1 or head is None or model.pooling != "last"}
        cells = tuple(parts.cells[k * directions : (k + 1) * directions])
        layers += [*(dropout if k else ()), Layer(kind, f"gru_{k}", options | steps, weights=cells, compute=mixed)]
    if head is not None:
        layers += [Layer(kind, kind, {}) for kind, pooling in POOLINGS.items() if pooling == model.pooling]
        kind = "Dense" if model.pooling is not None else "TimeDistributed"
        activation = next(theirs for theirs, ours in OUTPUTS.items() if ours == model.output_activation)
        dense = {"units": model.output_size, "activation": activation, "use_bias": True}
        layers += [*dropout, Layer(kind, "dense", dense, weights=(head._asdict(),))]
    return layers
