"""Live Keras objects: turns layers and models into plain `Layer`s, builds them from these, runs and saves them."""

import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, MissingPackage, require, require_package
from grujax.interop.hypotheses import Seen, require_shown
from grujax.interop.keras_layers import HEADS, OF_KERAS_2, RECURRENT, WEIGHTED, Layer, described
from grujax.interop.prove import Runner, data, proof_sizes
from grujax.linen.cell import GRUCell
from grujax.types import state_dtype

BACKENDS = ("tensorflow", "torch", "openvino")
"""The backends besides JAX; without KERAS_BACKEND Keras uses the first."""


def package() -> Any:
    """Imports Keras 3; raises `MissingPackage` if it or the backend that it is set to is not installed."""
    try:
        keras = require_package("keras", "keras")
    except MissingPackage as error:
        backend = getattr(error.__cause__, "name", None)
        if backend not in BACKENDS:
            raise
        name, remedy = f"{backend}, the backend that keras is set to,", "set KERAS_BACKEND=jax before keras is imported"
        raise MissingPackage(name, "an installed package", error.found, remedy) from error
    require(hasattr(keras, "ops"), "keras", "Keras 3", f"Keras {keras.__version__}", "pip install 'grujax[keras]'")
    return keras


@contextmanager
def numerics(dtype: str) -> Iterator[None]:
    """Sets what Keras needs: JAX's defaults, and 64-bit values only for float64, because with them a GRU of 32 bits
    without biases fails in Keras. Also hides NumPy's warning that Keras' variables use NumPy 1's array protocol."""
    ranks, dtypes = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with ranks, dtypes, jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        yield


def layers_of(source: Any) -> list[Layer]:
    """The layers of a built layer or model, with their weights; a list of layers is returned as it is."""
    if isinstance(source, list):
        require(all(isinstance(layer, Layer) for layer in source), "source", "layers that `load` read", "other items")
        return source
    keras = package()
    if not isinstance(source, keras.layers.Layer):
        raise InputError("source", "a Keras layer or model, or layers that `load` read", type(source).__name__)
    require(source.built, source.name, "a built layer", "one without weights", "Call it on data or build it first.")
    try:
        with numerics("float32"):
            layers = described(keras.saving.serialize_keras_object(source))
    except InputError:
        raise
    except Exception as error:  # get_config of a user's class may raise anything
        raise InputError(source.name, "layers that Keras can serialise", f"{type(error).__name__}") from error
    live = source.layers if isinstance(source, keras.Model) else [source]
    live = [layer for layer in live if not isinstance(layer, keras.layers.InputLayer)]
    return [_with_weights(keras, *pair) for pair in zip(layers, live, strict=True)]


def _parts(kind: str, layer: Any) -> list[Any]:
    return [attrgetter(part)(layer) if part else layer for part in WEIGHTED.get(kind, ())]


def _with_weights(keras: Any, layer: Layer, live: Any) -> Layer:
    tensors = []
    for part in _parts(layer.kind, live):
        for key in ("activation", "recurrent_activation"):
            name = layer.config.get(key, "linear" if key == "activation" else None)
            function = getattr(part, key, None)  # a user's function may have the name of one of Keras
            same = name is None or function is keras.activations.get(name)
            require(same, f"{layer.name}.{key}", f"Keras' own {name}", repr(function)[:80], "Pass it by its name.")
        number = len(layer.shapes)
        remedy = "Quantised layers and adapters cannot be converted: merge them first."
        require(len(part.weights) == number, layer.name, f"{number} weights", len(part.weights), remedy)
        # With an explicit dtype, because the torch backend converts bfloat16 to float32.
        arrays = {v.path: np.array(keras.ops.convert_to_numpy(v.value), jnp.dtype(v.dtype)) for v in part.weights}
        tensors.append(arrays)
    return layer._replace(weights=tuple(tensors))


def build(keras: Any, layer: Layer, dtype: str, return_state: bool = False) -> Any:
    """Builds the Keras layer and sets its weights."""
    classes, config = keras.layers, {key: value for key, value in layer.config.items() if key != "merge_mode"}
    for key in config.keys() & {"activation", "recurrent_activation"}:
        if config[key] == OF_KERAS_2:
            config[key] = lambda a: keras.ops.clip(0.2 * a + 0.5, 0, 1)
    if layer.kind not in WEIGHTED:
        return getattr(classes, layer.kind)(**config, dtype=dtype)
    # Built with zeros: orthogonal matrices are slow, and do not exist in bfloat16. Keras' initialisers are set below.
    initial = {"kernel_initializer": "glorot_uniform", "recurrent_initializer": "orthogonal"}
    initial = {key: name for key, name in initial.items() if layer.kind in RECURRENT or key == "kernel_initializer"}
    options: dict[str, Any] = dict.fromkeys(initial, "zeros") | {"dtype": dtype} | config
    options |= {"return_state": return_state} if layer.kind in ("GRU", "Bidirectional") else {}
    inner = {"Bidirectional": "GRU", "TimeDistributed": "Dense"}.get(layer.kind)
    made = getattr(classes, inner or layer.kind)(**options)
    if inner is not None:
        merge = {"merge_mode": layer.config["merge_mode"]} if "merge_mode" in layer.config else {}
        made = getattr(classes, layer.kind)(made, dtype=dtype, **merge)
    tensors = [a for weights in layer.weights for a in weights.values()]
    made.build((None, layer.input_size) if layer.kind == "GRUCell" else (None, None, layer.input_size))
    made.set_weights(tensors)
    for part in _parts(layer.kind, made):
        for key, name in initial.items():
            setattr(part, key, keras.initializers.get(name))
        for key in ("activation", "recurrent_activation"):
            exact = return_state and dtype == "float64" and layer.kind in RECURRENT
            if exact and getattr(part, key) is keras.activations.tanh:
                # The same function: Keras on JAX rounds float64 to float32 in its tanh.
                setattr(part, key, lambda a: 2 * keras.activations.sigmoid(2 * a) - 1)
    return made


def require_same(source: Any, model: Any, variables: Any) -> None:
    """Runs a layer or model; raises `InputError` unless every array that it returns is an output of `model`."""
    keras, all_seen = package(), []
    shape = None if isinstance(source, keras.Sequential) else getattr(source, "input_shape", None)
    rows, steps = shape[:2] if isinstance(shape, tuple) and len(shape) == 3 else (None, None)  # None: not fixed
    for size in dict.fromkeys((rows or b, steps or t) for b, t in proof_sizes(model, variables)):
        x, h0, _ = given = data(model, variables, size, h0=isinstance(model, GRUCell), grows=True)
        try:
            with numerics("float32"):
                result = source(x) if h0 is None else source(x, [keras.ops.convert_to_tensor(h0)])
                arrays = [np.asarray(keras.ops.convert_to_numpy(a)) for a in jax.tree.leaves(result)]
        except Exception as error:  # a user's layer may raise anything
            remedy = "verify=False relies on its config."
            raise InputError(source.name, "a layer that runs on x", type(error).__name__, remedy) from error
        all_seen.append(Seen(given, arrays))
    require_shown("source", model, variables, all_seen)


def runner(source: Any, model: nn.Module) -> Runner:
    """Runs Keras on new layers with the weights of the source. Outputs of masked steps are set to 0, as in grujax.

    The layers have 32 bits at least, like grujax's state; in bfloat16 Keras would round the state at every step.
    """
    keras, layers = package(), []
    for layer in layers_of(source):
        weights = ({key: a.astype(state_dtype(a.dtype)) for key, a in cell.items()} for cell in layer.weights)
        layers.append(layer._replace(weights=tuple(weights)))
    recurrent = [layer for layer in layers if layer.kind in RECURRENT]
    dtype, single = recurrent[0].dtype, recurrent[0].kind == "GRUCell"
    with numerics(dtype):
        built = [build(keras, layer, dtype, return_state=True) for layer in layers]

    def array(t: Any) -> NDArray:
        return np.asarray(keras.ops.convert_to_numpy(t))

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, Any]:
        assert h0 is not None
        last, output, steps = [], (), np.full(len(x), x.shape[1]) if lengths is None else lengths
        with numerics(dtype):
            a, states = keras.ops.cast(x, dtype), [keras.ops.cast(h, dtype) for h in (h0[None] if single else h0)]
            if single:
                return {"h_last": array(built[0](a, states)[0])}
            valid = np.arange(x.shape[1]) < steps[:, None]
            mask = None if lengths is None else keras.ops.convert_to_tensor(valid)
            for layer, made in zip(layers, built, strict=True):
                if layer.kind in RECURRENT:
                    k, n = len(last), len(layer.weights)
                    results = made(a, initial_state=states[k : k + n], mask=mask)
                    a, output, last = results[0], results[:-n], [*last, *map(array, results[-n:])]
                elif layer.kind != "Dropout":
                    a = made(a)  # Keras attaches the mask to a
                    output = (a,)
        state, head = {"h_last": np.stack(last)}, layers[-1].kind in HEADS
        if not head and not recurrent[-1].config["return_sequences"]:
            return state  # the output is the last state
        shown = [array(a) * valid[..., None] if a.ndim == 3 else array(a) for a in output]
        return state | {"y" if head else "output": tuple(shown) if len(shown) > 1 else shown[0]}

    masks = not single and all(layer.kind != "GlobalMaxPooling1D" for layer in layers)  # Keras' ignores the mask
    return Runner(call, takes_lengths=masks)


def store(made: Any, path: Path, member: str | None = None) -> None:
    """Saves a model. Keras checks the ending, so it first writes a `.keras` file. member: keep only this part of it."""
    models = isinstance(made, package().Model)
    remedy = "Keras only saves models: use a grujax.GRU of one layer."
    require(models, "model", "a GRU or GRUModel", type(made).__name__, remedy)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, numerics("float32"):
        file = Path(folder) / "model.keras"
        made.save(file)
        if member is None:
            file.replace(path)
        else:  # Keras must not write it directly: if the disk is full, HDF5 ends the process
            with zipfile.ZipFile(file) as archive:
                path.write_bytes(archive.read(member))
