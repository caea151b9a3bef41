"""Weights from Keras 3 and back: `GRU`, `GRUCell`, `Bidirectional`, and chains of them with pooling and a `Dense`.

Keras orders its gates z, r, n. With reset_after=True its bias (2, 3H) is both of ours and nothing is lost; with False
it has their sum alone. Any backend of Keras serves; it is imported where Keras itself is built or run.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from grujax.errors import require
from grujax.interop import keras_files, keras_live
from grujax.interop.framework import Framework, is_one_of
from grujax.interop.keras_layers import Layer
from grujax.interop.keras_model import TRAINING, from_layers, to_layers
from grujax.interop.parts import ConversionWarning
from grujax.interop.prove import coarser
from grujax.linen.cell import GRUCell

if TYPE_CHECKING:
    import keras

DEFAULTS = {"bias": True, "activation": "tanh", "gate_activation": "sigmoid", "merge": "concat"}
DEFAULTS |= {"output_activation": None}
"""What a file of weights does not tell."""


def from_keras(source: "keras.Layer | Sequence[Layer]", *, verify: bool | None = None) -> tuple[nn.Module, dict]:
    """The model and variables of a built layer or model of Keras, or of what `load` read. See `grujax.interop`.

    - `GRUCell` -> `grujax.GRUCell`;
    - `GRU`, `Bidirectional` of one, and a `Sequential` or functional chain of them -> `grujax.GRU`, which gives both
      the output of every step and h_last, whichever of them Keras returned;
    - the same with a `Dense` behind -> `grujax.GRUModel`. It reads the last state (return_sequences=False), what
      `GlobalAveragePooling1D` or `GlobalMaxPooling1D` made of all steps, or every step (`TimeDistributed` or not).

    Dropout carries over where it is the same here: `Dropout` of one rate between all layers and before the Dense, and
    a GRU's `dropout` in one direction.

    >>> import numpy as np
    >>> shapes = {"gru/kernel": (3, 12), "gru/recurrent_kernel": (4, 12), "gru/bias": (2, 12)}
    >>> cell = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    >>> config = {"units": 4, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True, "dropout": 0.0}
    >>> config |= {"reset_after": True, "recurrent_dropout": 0.0, "return_sequences": True}
    >>> model, variables = from_keras([Layer("GRU", "gru", config, weights=(cell,))])
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (4, (3, 12))
    """
    model, variables = FRAMEWORK.ours(source, bool(verify))
    if verify is not False and not isinstance(source, list) and coarser(model) == jnp.float32:
        keras_live.require_same(source, model, variables)
    return model, variables


def to_keras(
    model: nn.Module, variables: Mapping, *, verify: bool = False
) -> "keras.Sequential | keras.layers.GRUCell":
    """Of a `GRUCell` a `keras.layers.GRUCell`; of a `GRU` or `GRUModel` a `keras.Sequential` for inputs (B, T, I).

    It is built, of any T, and its weights are set, bit for bit. A `GRU` gives its output at every step.

    >>> import jax, os
    >>> os.environ["KERAS_BACKEND"] = "jax"
    >>> from grujax import GRUModel
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> made = to_keras(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> [type(layer).__name__ for layer in made.layers], from_keras(made)[0] == model
    (['GRU', 'Dense'], True)
    """
    return FRAMEWORK.theirs(model, variables, verify)


def _build(model: nn.Module, variables: Mapping) -> Any:
    keras, layers = keras_live.package(), to_layers(model, variables)
    policy = f"mixed_{layers[0].compute}" if layers[0].compute else layers[0].dtype
    with keras_live.numerics(layers[0].dtype):
        built = [keras_live.build(keras, layer, policy) for layer in layers]
        if isinstance(model, GRUCell):
            return built[0]
        return keras.Sequential([keras.Input((None, layers[0].input_size), dtype=layers[0].dtype), *built])


def _build_weights(model: Any, variables: Mapping) -> Any:
    """Of a model that its weights alone tell: what else it is would be lost in a `.weights.h5` file."""
    for field, default in DEFAULTS.items():
        found = getattr(model, field, default)
        require(found == default, field, repr(default), repr(found), "Weights do not tell it: write a .keras file.")
    for field in ("dropout", "input_dropout"):
        if getattr(model, field, 0):
            warnings.warn(f"Keras' weights: {field} is not told, {TRAINING}", ConversionWarning, stacklevel=2)
    return _build(model, variables)


FRAMEWORK = Framework(
    "keras",
    lambda source: from_layers(keras_live.layers_of(source)),
    _build,
    keras_live.runner,
    recognise=is_one_of("keras"),
    load=keras_files.load,
    write=lambda path, made: keras_live.store(made, path, ".keras", lambda model: model.save),
    endings=(".keras",),
    reads=(".h5",),
)
WEIGHTS = FRAMEWORK._replace(
    name="keras-weights",
    build=_build_weights,
    write=lambda path, made: keras_live.store(made, path, ".weights.h5", lambda model: model.save_weights),
    endings=(".weights.h5",),
    reads=(),
    assumes=True,
)
