"""Weights from Keras 3 and back: `GRU`, `GRUCell`, `Bidirectional`, and chains of them with pooling and a `Dense`.

Keras orders its gates z, r, n. With reset_after=True its bias (2, 3H) is both of ours and nothing is lost; with False
it has their sum alone. Any backend of Keras serves; it is imported where Keras itself is built or run.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
from numpy.typing import NDArray

from grujax.core.dialects import Cell, read
from grujax.errors import require
from grujax.interop.framework import Framework
from grujax.interop.keras_files import load_keras, load_weights
from grujax.interop.keras_layers import ACTIVATIONS, HEADS, MERGES, OUTPUTS, POOLINGS, RECURRENT, Layer, dialect_of
from grujax.interop.keras_live import layers_of, run_itself, runner
from grujax.interop.keras_write import store, store_weights, to_keras, to_keras_weights
from grujax.interop.parts import ConversionWarning, Dense, put_together
from grujax.interop.prove import coarser, require_agreement, require_shown

if TYPE_CHECKING:
    import keras


def from_keras(source: "keras.Layer | Sequence[Layer]", *, verify: bool | None = None) -> tuple[nn.Module, dict]:
    """The model and variables that compute what Keras computes, sizes, options and dtype read off it.

    - `GRUCell` -> `grujax.GRUCell`;
    - `GRU`, `Bidirectional` of one, and a `Sequential` or functional chain of them -> `grujax.GRU`, which gives both
      the output of every step and h_last, whichever of them Keras returned;
    - the same with a `Dense` behind -> `grujax.GRUModel`. It reads the last state (return_sequences=False), what
      `GlobalAveragePooling1D` or `GlobalMaxPooling1D` made of all steps, or every step (`TimeDistributed` or not).

    Dropout carries over where it is the same here: `Dropout` of one rate between all layers and before the Dense, and
    a GRU's `dropout` in one direction. The arrays are copies.

    Args:
      source: built, or what `load` read from a file.
      verify: run both sides on random data; the largest difference is logged (logger "grujax.interop", INFO), and one
        past the tolerance table raises. None runs a float32 layer or model as it is, and nothing that `load` read.

    Raises:
      InputError: naming the layer, what was expected and what was found; nothing is skipped, guessed or cast.

    Warns:
      ConversionWarning: what acts in training alone and has no place here.

    >>> import numpy as np
    >>> shapes = {"gru/kernel": (3, 12), "gru/recurrent_kernel": (4, 12), "gru/bias": (2, 12)}
    >>> cell = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    >>> config = {"units": 4, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True, "dropout": 0.0}
    >>> config |= {"reset_after": True, "recurrent_dropout": 0.0, "return_sequences": True}
    >>> model, variables = from_keras([Layer("GRU", "gru", config, weights=(cell,))])
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (4, (3, 12))
    """
    layers = layers_of(source)
    recurrent = [layer for layer in layers if layer.kind in RECURRENT]
    require(bool(recurrent), "source", "a GRU", f"layers {[layer.kind for layer in layers]}")
    _check_order(layers)
    first, left = recurrent[0], [sentence for layer in layers for sentence in layer.left]
    dialect = dialect_of(first.config["reset_after"])
    cells: dict[str, Cell] = {}
    for layer in recurrent:
        same = layer.kind == first.kind
        require(same, layer.name, f"{first.kind}, as {first.name}", layer.kind, "Convert the layers one by one.")
        own, firsts = layer.config | {"dtype": layer.compute}, first.config | {"dtype": first.compute}
        for key in ("activation", "recurrent_activation", "use_bias", "reset_after", "merge_mode", "dtype"):
            found, expected = own.get(key), firsts.get(key)
            remedy = "A GRU of several layers has this once: convert the layers one by one."
            require(found == expected, f"{layer.name}.{key}", f"{expected!r}, as {first.name}", repr(found), remedy)
        for weights in layer.weights:
            name = next(iter(weights), layer.name).rsplit("/", 1)[0]
            cells[name] = read(weights, dialect)
    dropout, more = _dropout(layers, recurrent)
    kinds = {"single": first.kind == "GRUCell", "bidirectional": first.kind == "Bidirectional"}
    model, variables = put_together(cells, _head(layers), **kinds, **_fields(layers, recurrent), **dropout)
    for sentence in dict.fromkeys([*left, *more]):
        warnings.warn(f"grujax: {sentence}", ConversionWarning, stacklevel=2)
    live = not isinstance(source, list) and first.dtype == "float32"  # whose tanh Keras on JAX computes in 32 bits
    if live and verify is not False and jnp.finfo(coarser(model)).bits >= 32:
        require_shown(model, variables, run_itself(source), "source")
    if verify:
        require_agreement(model, variables, runner(layers, model), "source")
    return model, variables


FRAMEWORK = Framework(
    "keras", from_keras, to_keras, runner, load=load_keras, write=store, endings=(".keras",), reads=(".h5",)
)
WEIGHTS = FRAMEWORK._replace(
    name="keras-weights",
    build=to_keras_weights,
    load=load_weights,
    write=store_weights,
    endings=(".weights.h5",),
    reads=(),
    assumes=True,
)


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


def _biases_apart(weights: Mapping[str, NDArray]) -> Iterator[tuple[str, NDArray]]:
    """Both biases by themselves, where Keras has them as the rows of one array."""
    for k, (key, a) in enumerate(weights.items()):
        if k == 2 and a.ndim == 2:
            require(len(a) == 2, key, "two rows, one a bias", f"shape {a.shape}")
            yield from ((f"{key}[{row}]", a[row]) for row in range(2))
        else:
            yield key, a


def _fields(layers: list[Layer], recurrent: list[Layer]) -> dict[str, Any]:
    """Of the model, as far as configs tell them."""
    first, last = recurrent[0], recurrent[-1]
    fields: dict[str, Any] = {"reset_after": first.config["reset_after"]}
    fields |= {"activation": ACTIVATIONS[first.config["activation"]]}
    fields |= {"gate_activation": ACTIVATIONS[first.config["recurrent_activation"]]}
    if first.kind == "Bidirectional":
        fields["merge"] = MERGES[first.config["merge_mode"]]
    if any(layer.kind in HEADS for layer in layers):
        unpooled = None if last.config["return_sequences"] else "last"
        head = next(layer for layer in layers if layer.kind in HEADS)
        fields["output_activation"] = OUTPUTS[head.config["activation"]]
        fields["pooling"] = next((POOLINGS[layer.kind] for layer in layers if layer.kind in POOLINGS), unpooled)
    if first.compute:
        fields["dtype"] = getattr(jnp, first.compute)
    return fields


def _head(layers: list[Layer]) -> tuple[str, Dense] | None:
    for layer in layers:
        if layer.kind in HEADS:
            (key, kernel), *bias = layer.weights[0].items()
            return key, Dense(kernel, bias[0][1] if bias else None)
    return None


def _dropout(layers: list[Layer], recurrent: list[Layer]) -> tuple[dict[str, Any], list[str]]:
    """The fields of the model that drop as Keras does; and what else Keras drops, in words."""
    fields, left = {}, []
    readers = [k for k, layer in enumerate(layers) if layer.kind in (*RECURRENT, *HEADS)]
    readers = [k for k in readers if layers[k] is not recurrent[0]]
    dropouts = [layer for layer in layers if layer.kind == "Dropout" and layer.config["rate"]]
    before = [layers[k - 1] for k in readers]
    if dropouts and dropouts == before and len({layer.config["rate"] for layer in dropouts}) == 1:
        fields["dropout"] = dropouts[0].config["rate"]
    else:
        left += [
            f"{layer.name}: it acts in training alone, and at another place than dropout here" for layer in dropouts
        ]
    rates = {layer.config["dropout"] for layer in recurrent}
    gates_apart = any(layer.config["recurrent_dropout"] for layer in recurrent)  # then Keras draws a mask a gate
    if rates and max(rates) and max(rates) < 1:  # Keras drops nothing at 1
        if len(rates) == 1 and not gates_apart and recurrent[0].kind == "GRU":
            fields["input_dropout"] = rates.pop()
        else:
            left += [
                f"{layer.name}.dropout: it acts in training alone" for layer in recurrent if layer.config["dropout"]
            ]
    left += [
        f"{layer.name}.recurrent_dropout: it acts in training alone, and draws a mask a gate"
        for layer in recurrent
        if layer.config["recurrent_dropout"]
    ]
    return fields, left
