"""Models as layers of Keras, and the files that Keras writes of them."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS, Cell, write
from grujax.errors import require
from grujax.interop.keras_layers import ACTIVATIONS, COMPUTES, MERGES, OF_KERAS_2, OUTPUTS, POOLINGS, Layer, dialect_of
from grujax.interop.keras_live import build, numerics, package, runner
from grujax.interop.parts import ConversionWarning, Place, take_apart
from grujax.interop.prove import require_agreement
from grujax.linen.cell import GRUCell

if TYPE_CHECKING:
    import keras

KERAS_ACTIVATIONS = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != OF_KERAS_2}
KERAS_MERGES = {ours: theirs for theirs, ours in MERGES.items()}
DEFAULTS = {"bias": True, "activation": "tanh", "gate_activation": "sigmoid", "merge": "concat"}
DEFAULTS |= {"output_activation": None}
"""What a file of weights does not tell."""
FIELDS = {
    "reset_after": (False,),
    "activation": [name for name in KERAS_ACTIVATIONS if name != "tanh"],
    "gate_activation": [name for name in KERAS_ACTIVATIONS if name != "sigmoid"],
    "merge": [merge for merge in KERAS_MERGES if merge != "concat"],
    "pooling": [*POOLINGS.values(), None],
    "output_activation": [name for name in OUTPUTS.values() if name is not None],
    "dropout": None,
}
"""What Keras has a place for, besides the defaults."""


def to_keras(
    model: nn.Module, variables: Mapping, *, verify: bool = False
) -> "keras.Sequential | keras.layers.GRUCell":
    """What computes in Keras what `model` computes: the inverse of `from_keras`, bit for bit.

    Args:
      model: a `GRUCell`, which becomes a `keras.layers.GRUCell`; a `GRU` or `GRUModel`, which becomes a
        `keras.Sequential` for inputs (B, T, I), of any T: a `GRU` that of its output at every step.
      variables: its variables, `{"params": ...}` alone.
      verify: see `from_keras`.

    Returns:
      the layer or model, built, its weights set, as new layers of Keras start otherwise.

    Raises:
      InputError: what Keras has no place for: attention, statistics, functions that it does not have by name.

    Warns:
      ConversionWarning: the split of the biases with reset_after=False, and what acts in training alone.

    >>> import jax, os
    >>> os.environ["KERAS_BACKEND"] = "jax"
    >>> from grujax import GRUModel
    >>> from grujax.interop.keras import from_keras
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> made = to_keras(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> [type(layer).__name__ for layer in made.layers], from_keras(made)[0] == model
    (['GRU', 'Dense'], True)
    """
    layers, keras = to_layers(model, variables), package()
    policy = f"mixed_{layers[0].compute}" if layers[0].compute else layers[0].dtype
    with numerics(layers[0].dtype):
        built = [build(keras, layer, policy) for layer in layers]
        made = built[0]
        if not isinstance(model, GRUCell):
            made = keras.Sequential([keras.Input((None, layers[0].input_size), dtype=layers[0].dtype), *built])
    if verify:
        require_agreement(model, variables, runner(made, model), "model")
    return made


def to_layers(model: Any, variables: Mapping) -> list[Layer]:
    """The layers of Keras as plain data; see `to_keras`, which builds them."""
    single, directions = isinstance(model, GRUCell), getattr(model, "num_directions", 1)
    locked = {} if single or directions == 2 else {"input_dropout": None}  # in Keras each direction draws its own mask
    reset_after = getattr(model, "reset_after", True)
    parts = take_apart(model, variables, Place("Keras", FIELDS | locked), dialect_of(reset_after))
    options = {"units": model.hidden_size, "use_bias": model.bias, "reset_after": reset_after}
    options |= {"activation": KERAS_ACTIVATIONS[model.activation], "recurrent_dropout": 0.0}
    options |= {"recurrent_activation": KERAS_ACTIVATIONS[model.gate_activation]}
    options |= {"dropout": model.input_dropout if locked else 0.0}
    options |= {"merge_mode": KERAS_MERGES[model.merge]} if directions == 2 else {}
    kind = "GRUCell" if single else "Bidirectional" if directions == 2 else "GRU"
    compute = jnp.dtype(model.dtype or model.param_dtype).name
    mixed = compute if model.param_dtype == jnp.float32 and compute in COMPUTES else ""
    layers: list[Layer] = []
    num_layers, head = len(parts.cells) // directions, parts.head
    dropout = [Layer("Dropout", "dropout", {"rate": model.dropout})] if getattr(model, "dropout", 0) else []
    for k in range(num_layers):
        steps = {} if single else {"return_sequences": k < num_layers - 1 or head is None or model.pooling != "last"}
        cells = parts.cells[k * directions : (k + 1) * directions]
        weights = tuple(cells)
        layers += [*(dropout if k else ()), Layer(kind, f"gru_{k}", options | steps, weights=weights, compute=mixed)]
    if head is not None:
        layers += [Layer(kind, kind, {}) for kind, pooling in POOLINGS.items() if pooling == model.pooling]
        kind = "Dense" if model.pooling is not None else "TimeDistributed"
        activation = next(theirs for theirs, ours in OUTPUTS.items() if ours == model.output_activation)
        dense = {"units": model.output_size, "activation": activation, "use_bias": True}
        layers += [*dropout, Layer(kind, "dense", dense, weights=(head._asdict(),))]
    return layers


def _weights(cell: Cell, reset_after: bool, update: str) -> dict[str, NDArray]:
    written = write(cell, dialect_of(reset_after), update)
    biases = [np.stack(written.biases) if reset_after else written.biases[0]] if written.biases else []
    return dict(zip(DIALECTS["keras"].tensors, (written.w_ih, written.w_hh, *biases), strict=False))


def to_keras_weights(model: Any, variables: Mapping) -> "keras.Sequential":
    """As `to_keras`, of a model that its weights alone tell: what else it is would be lost in a `.weights.h5` file."""
    for field, default in DEFAULTS.items():
        found = getattr(model, field, default)
        require(found == default, field, repr(default), repr(found), "Weights do not tell it: write a .keras file.")
    for field in ("dropout", "input_dropout"):
        if getattr(model, field, 0):
            warnings.warn(
                f"Keras' weights: {field} is not told, and acts in training alone", ConversionWarning, stacklevel=2
            )
    return to_keras(model, variables)


def store(path: Path, made: Any) -> None:
    _store(path, made, "model.keras", "save")


def store_weights(path: Path, made: Any) -> None:
    _store(path, made, "model.weights.h5", "save_weights")


def _store(path: Path, made: Any, name: str, method: str) -> None:
    """Keras goes by the ending: the file gets the right one first."""
    remedy = "Keras has files of models alone: take a grujax.GRU of one layer."
    require(hasattr(made, method), "model", "a GRU or GRUModel", type(made).__name__, remedy)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with warnings.catch_warnings():  # Keras' variables become arrays in the manner of NumPy 1
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            getattr(made, method)(Path(folder) / name)
        (Path(folder) / name).replace(path)
