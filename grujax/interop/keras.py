"""Weights from Keras 3 and back: `GRU`, `GRUCell`, `Bidirectional`, and chains of them with pooling and a `Dense`.

Keras orders its gates z, r, n. With reset_after=True its bias (2, 3H) is b_ih and b_hh, so nothing is lost; with
reset_after=False it is only their sum. Any backend of Keras works. Keras is only imported to build or run its layers.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from grujax.core.dialects import Cell, read
from grujax.errors import require
from grujax.interop import keras_files, keras_layers, keras_live
from grujax.interop.framework import Framework
from grujax.interop.keras_layers import ACTIVATIONS, HEADS, MERGES, OUTPUTS, POOLINGS, RECURRENT, Layer, dialect_of
from grujax.interop.parts import ConversionWarning, Dense, Place, put_together, take_apart
from grujax.interop.prove import coarser
from grujax.linen import require_own
from grujax.linen.cell import GRUCell

if TYPE_CHECKING:
    import keras

TRAINING = "it only acts in training"
KERAS_ACTIVATIONS = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != keras_layers.OF_KERAS_2}
KERAS_MERGES = {ours: theirs for theirs, ours in MERGES.items()}
FIELDS = {"reset_after": (False,), "pooling": [*POOLINGS.values(), None], "dropout": None}
FIELDS |= {key: [*KERAS_ACTIVATIONS] for key in ("activation", "gate_activation")}
FIELDS |= {"merge": [*KERAS_MERGES], "output_activation": [*OUTPUTS.values()]}
"""The values that Keras supports besides the defaults, by field of the model."""


def from_keras(source: "keras.Layer | Sequence[Layer]", *, verify: bool | None = None) -> tuple[nn.Module, dict]:
    """Returns the model and variables of a built Keras layer or model. See `grujax.interop`.

    - `GRUCell` -> `grujax.GRUCell`;
    - `GRU`, `Bidirectional` of a GRU, and a `Sequential` or functional chain of them -> `grujax.GRU`. It returns the
      output of every step and h_last, whichever of them Keras returned;
    - the same followed by a `Dense` -> `grujax.GRUModel`. The Dense may read the last state (return_sequences=False), a
      `GlobalAveragePooling1D` or `GlobalMaxPooling1D`, or every step (in a `TimeDistributed` or not).

    Dropout carries over if grujax drops the same values: `Dropout` layers of one rate between all layers and before the
    Dense, and `dropout` of a GRU with one direction.

    Args:
      source: the layer or model, or the list of layers that `keras_files.load` reads from a file.

    Raises:
      InputError: grujax has no such layer, option or chain of layers.

    >>> import numpy as np
    >>> shapes = {"gru/kernel": (3, 12), "gru/recurrent_kernel": (4, 12), "gru/bias": (2, 12)}
    >>> cell = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    >>> config = {"units": 4, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True, "dropout": 0.0}
    >>> config |= {"reset_after": True, "recurrent_dropout": 0.0, "return_sequences": True}
    >>> model, variables = from_keras([Layer("GRU", "gru", config, weights=(cell,))])
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (4, (3, 12))
    """
    model, variables = FRAMEWORK.imported(source, bool(verify))
    if verify is not False and not isinstance(source, list) and coarser(model) == jnp.float32:
        keras_live.require_same(source, model, variables)
    return model, variables


def to_keras(
    model: nn.Module, variables: Mapping, *, verify: bool = False
) -> "keras.Sequential | keras.layers.GRUCell":
    """A `GRUCell` becomes a `keras.layers.GRUCell`, a `GRU` or `GRUModel` a `keras.Sequential` for inputs (B, T, I).

    The result is built for any T and has the same weights, bit for bit. A `GRU` returns the output of every step.

    Raises:
      InputError: Keras cannot represent something that the outputs depend on.

    >>> import jax, os
    >>> os.environ["KERAS_BACKEND"] = "jax"
    >>> from grujax import GRUModel
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> made = to_keras(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> [type(layer).__name__ for layer in made.layers], from_keras(made)[0] == model
    (['GRU', 'Dense'], True)
    """
    return FRAMEWORK.exported(model, variables, verify)


def build(model: nn.Module, variables: Mapping) -> Any:
    keras, layers = keras_live.package(), to_layers(model, variables)
    policy = f"mixed_{layers[0].compute}" if layers[0].compute else layers[0].dtype
    with keras_live.numerics(layers[0].dtype):
        built = [keras_live.build(keras, layer, policy) for layer in layers]
        if isinstance(model, GRUCell):
            return built[0]
        return keras.Sequential([keras.Input((None, layers[0].input_size), dtype=layers[0].dtype), *built])


def from_layers(layers: list[Layer]) -> tuple[nn.Module, dict]:
    """The model and variables that compute the same as a chain of layers."""
    recurrent = [layer for layer in layers if layer.kind in RECURRENT]
    require(bool(recurrent), "source", "a GRU", f"layers {[layer.kind for layer in layers]}")
    _check_order(layers)
    first, last, head = recurrent[0], recurrent[-1], layers[-1] if layers[-1].kind in HEADS else None
    cells: dict[str, Cell] = {}
    for layer in layers:  # a Dropout does not change the dtype
        found, expected = (some.compute or "the dtype of its weights" for some in (layer, first))
        remedy = "A model computes in one dtype: use one policy for all layers."
        same = layer.kind == "Dropout" or found == expected
        require(same, f"{layer.name}.dtype", f"{expected}, as {first.name}", found, remedy)
    for layer in recurrent:
        remedy = "All layers of a GRU share this option: convert the layers one by one."
        require(layer.kind == first.kind, layer.name, f"{first.kind}, as {first.name}", layer.kind, remedy)
        for key in ("activation", "recurrent_activation", "use_bias", "reset_after", "merge_mode"):
            found, expected = layer.config.get(key), first.config.get(key)
            require(found == expected, f"{layer.name}.{key}", f"{expected!r}, as {first.name}", repr(found), remedy)
        for way, weights in enumerate(layer.weights):
            name = next(iter(weights), layer.name).rsplit("/", 1)[0]
            cells[f"{name} of {layer.name}, {way}" if name in cells else name] = read(
                weights, dialect_of(first.config["reset_after"])
            )
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
    result = put_together(cells, dense, **kinds, **fields, **dropout)
    for sentence in dict.fromkeys([*(sentence for layer in layers for sentence in layer.left), *left]):
        warnings.warn(f"grujax: {sentence}", ConversionWarning, stacklevel=2)
    return result


def _check_order(layers: list[Layer]) -> None:
    """Raises `InputError` unless the layers are GRUs, then pooling, then a Dense, each able to read the one before."""
    layers = [layer for layer in layers if layer.kind != "Dropout"]
    stages = [2 if layer.kind in HEADS else 1 if layer.kind in POOLINGS else 0 for layer in layers]
    for k, layer in enumerate(layers):
        first = k == 0 or stages[k] > stages[k - 1] or stages[k] == 0 == stages[k - 1]
        require(first, layer.name, "GRUs, then one pooling layer, then one Dense", f"a {layer.kind} here")
        before, steps = layers[k - 1] if k else None, layer.kind != "Dense"
        if before is not None and before.kind in RECURRENT:
            sequences = before.config.get("return_sequences", False)
            require(sequences or not steps, f"{before.name}.return_sequences", f"True before {layer.name}", sequences)
            apart = before.config.get("merge_mode", "concat") is None
            require(not apart, f"{before.name}.merge_mode", f"merged directions before {layer.name}", None)
        else:
            require(
                layer.kind != "TimeDistributed", layer.name, "the output of every step", "a pooling layer before it"
            )
    remedy = "Convert the model without it, and pool the output of every step; grujax.GRUEncoder does both."
    require(stages[-1] != 1, layers[-1].name, "a Dense after the pooling", "none", remedy)


def _dropout(layers: list[Layer], recurrent: list[Layer]) -> tuple[dict[str, Any], list[str]]:
    """The fields with which the model drops the same as Keras; and sentences on the dropout that is left behind."""
    fields, left = {}, []
    dropouts = [layer for layer in layers if layer.kind == "Dropout" and layer.config["rate"]]
    before = [layers[k - 1] for k, layer in enumerate(layers) if layer.kind in (*RECURRENT, *HEADS)]
    if dropouts and dropouts == before[1:] and len({layer.config["rate"] for layer in dropouts}) == 1:
        fields["dropout"] = dropouts[0].config["rate"]
    else:
        left += [f"{layer.name}: {TRAINING}, and grujax has no dropout at this place" for layer in dropouts]
    rates = {layer.config["dropout"] for layer in recurrent}
    gates_apart = [layer for layer in recurrent if layer.config["recurrent_dropout"]]  # Keras draws a mask per gate
    if 0 < max(rates) < 1:  # Keras drops nothing at 1
        if len(rates) == 1 and not gates_apart and recurrent[0].kind == "GRU":
            fields["input_dropout"] = rates.pop()
        else:
            left += [f"{layer.name}.dropout: {TRAINING}" for layer in recurrent if layer.config["dropout"]]
    left += [f"{layer.name}.recurrent_dropout: {TRAINING}, and draws a mask per gate" for layer in gates_apart]
    return fields, left


def to_layers(model: Any, variables: Mapping) -> list[Layer]:
    """The layers of Keras as plain data; `to_keras` builds them."""
    require_own(model)
    single, directions = isinstance(model, GRUCell), getattr(model, "num_directions", 1)
    locked = {} if single or directions == 2 else {"input_dropout": None}  # in Keras each direction draws its own mask
    reset_after = model.reset_after
    parts = take_apart(model, variables, Place("Keras", FIELDS | locked), dialect_of(reset_after))
    options = {"units": model.hidden_size, "use_bias": model.bias, "reset_after": reset_after}
    options |= {"activation": KERAS_ACTIVATIONS[model.activation], "recurrent_dropout": 0.0}
    options |= {"recurrent_activation": KERAS_ACTIVATIONS[model.gate_activation]}
    options |= {"dropout": model.input_dropout if locked else 0.0}
    options |= {"merge_mode": KERAS_MERGES[model.merge]} if directions == 2 else {}
    kind = "GRUCell" if single else "Bidirectional" if directions == 2 else "GRU"
    compute = jnp.dtype(model.dtype or model.param_dtype).name
    mixed = compute if model.param_dtype == jnp.float32 and compute in keras_layers.COMPUTES else ""
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


FRAMEWORK = Framework(
    "keras",
    lambda source: from_layers(keras_live.layers_of(source)),
    build,
    keras_live.runner,
    classes="keras",
    load=keras_files.load,
    write=lambda path, target: keras_live.store(target, path),
    endings=(".keras",),
    reads=(".h5",),
)
