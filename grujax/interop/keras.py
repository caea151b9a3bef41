"""Weights from Keras 3 and back: `GRU`, `GRUCell`, `Bidirectional`, and chains of them with pooling and a `Dense`.

Keras orders its gates z, r, n. With reset_after=True its bias (2, 3H) is both of ours and nothing is lost; with False
it has their sum alone. Any backend of Keras serves; it is imported where Keras itself is built or run.
"""

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.weight_layouts import DIALECTS, Dialect
from grujax.errors import require
from grujax.interop.adapters import Adapter, require_agreement
from grujax.interop.keras_files import load_keras, load_weights
from grujax.interop.keras_layers import ACTIVATIONS, COMPUTES, HEADS, MERGES, POOLINGS, RECURRENT, Layer
from grujax.interop.keras_live import build, layers_of, numerics, package, runner
from grujax.interop.model_parts import ConversionWarning, Dense, Place, put_together, take_apart
from grujax.interop.weight_layouts import Cell, read, write
from grujax.linen.cell import GRUCell

if TYPE_CHECKING:
    import keras

KERAS_ACTIVATIONS = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
KERAS_MERGES = {ours: theirs for theirs, ours in MERGES.items()}
DEFAULTS = {"bias": True, "activation": "tanh", "gate_activation": "sigmoid", "merge": "concat"}
"""What a file of weights does not tell."""
FIELDS = {
    "reset_after": (False,),
    "activation": [name for name in KERAS_ACTIVATIONS if name != "tanh"],
    "gate_activation": [name for name in KERAS_ACTIVATIONS if name != "sigmoid"],
    "merge": [merge for merge in KERAS_MERGES if merge != "concat"],
    "pooling": [*POOLINGS.values(), None],
    "dropout": None,
}
"""What Keras has a place for, besides the defaults."""


def from_keras(source: "keras.Layer | Sequence[Layer]", *, verify: bool = False) -> tuple[nn.Module, dict]:
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
        past the tolerance table raises.

    Raises:
      InputError: naming the layer, what was expected and what was found; nothing is skipped, guessed or cast.

    Warns:
      ConversionWarning: what acts in training alone and has no place here.

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
    dialect = _dialect(first.config["reset_after"])
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
            cells[name] = read(dict(_biases_apart(weights)), dialect)
    dropout, more = _dropout(layers, recurrent)
    kinds = {"single": first.kind == "GRUCell", "bidirectional": first.kind == "Bidirectional"}
    model, variables = put_together(cells, _head(layers), **kinds, **_fields(layers, recurrent), **dropout)
    for sentence in dict.fromkeys([*left, *more]):
        warnings.warn(f"grujax: {sentence}", ConversionWarning, stacklevel=2)
    if verify:
        require_agreement(model, variables, runner(layers, model), "source")
    return model, variables


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
    parts = take_apart(model, variables, Place("Keras", FIELDS | locked), _dialect(reset_after))
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
        weights = tuple(_weights(cell, reset_after, model.update) for cell in cells)
        layers += [*(dropout if k else ()), Layer(kind, f"gru_{k}", options | steps, weights=weights, compute=mixed)]
    if head is not None:
        layers += [Layer(kind, kind, {}) for kind, pooling in POOLINGS.items() if pooling == model.pooling]
        kind = "Dense" if model.pooling is not None else "TimeDistributed"
        layers += [*dropout, Layer(kind, "dense", {"units": model.output_size}, weights=(head._asdict(),))]
    return layers


def _weights(cell: Cell, reset_after: bool, update: str) -> dict[str, NDArray]:
    written = write(cell, _dialect(reset_after), update)
    biases = [np.stack(written.biases) if reset_after else written.biases[0]] if written.biases else []
    return dict(zip(("kernel", "recurrent_kernel", "bias"), (written.w_ih, written.w_hh, *biases), strict=False))


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


ADAPTER = Adapter("keras", (".keras",), load_keras, from_keras, to_keras, store, runner)
WEIGHTS_ADAPTER = Adapter(
    "keras-weights", (".weights.h5",), load_weights, from_keras, to_keras_weights, store_weights, runner
)


def _dialect(reset_after: bool) -> Dialect:
    return DIALECTS["keras" if reset_after else "keras, reset before"]


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
        fields["pooling"] = next((POOLINGS[layer.kind] for layer in layers if layer.kind in POOLINGS), unpooled)
    if first.compute:
        fields["dtype"] = getattr(jnp, first.compute)
    return fields


def _head(layers: list[Layer]) -> tuple[str, Dense] | None:
    for layer in layers:
        if layer.kind in HEADS:
            (key, kernel), (_, bias) = layer.weights[0].items()
            return key, Dense(kernel, bias)
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
