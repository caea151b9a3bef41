"""Keras itself: layers and models taken apart into plain layers, built from them, run, and saved."""

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
"""Those that are packages beside JAX; without KERAS_BACKEND Keras takes the first."""


def package() -> Any:
    """Keras 3, imported; `MissingPackage` where there is none, or none of the backend that it is set to."""
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
    """Keras on JAX relies on JAX's own defaults; with 64-bit values on, a GRU of 32 bits without biases fails in it.

    And its variables become arrays in the manner of NumPy 1, of which NumPy warns.
    """
    ranks, dtypes = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with ranks, dtypes, jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        yield


def layers_of(source: Any) -> list[Layer]:
    """Of a built layer or model; of itself what is layers already."""
    if isinstance(source, list):
        require(all(isinstance(layer, Layer) for layer in source), "source", "layers that `load` read", "other items")
        return source
    keras = package()
    if not isinstance(source, keras.layers.Layer):
        raise InputError("source", "a layer or model of Keras, or what `load` gives", type(source).__name__)
    require(source.built, source.name, "a built layer", "one without weights", "Call it on data, or build it, first.")
    try:
        with numerics("float32"):
            layers = described(keras.saving.serialize_keras_object(source))
    except InputError:
        raise
    except Exception as error:  # whatever a class of the user's raises in get_config
        raise InputError(source.name, "layers that Keras can serialise", f"{type(error).__name__}") from error
    own = source.layers if isinstance(source, keras.Model) else [source]
    own = [layer for layer in own if not isinstance(layer, keras.layers.InputLayer)]
    return [_with_weights(keras, *pair) for pair in zip(layers, own, strict=True)]


def _parts(kind: str, layer: Any) -> list[Any]:
    return [attrgetter(part)(layer) if part else layer for part in WEIGHTED.get(kind, ())]


def _with_weights(keras: Any, layer: Layer, own: Any) -> Layer:
    tensors = []
    for part in _parts(layer.kind, own):
        for key in ("activation", "recurrent_activation"):
            name = layer.config.get(key, "linear" if key == "activation" else None)
            function = getattr(part, key, None)  # a function of the user's may have the name of one of Keras'
            same = name is None or function is keras.activations.get(name)
            require(same, f"{layer.name}.{key}", f"Keras' own {name}", repr(function)[:80], "Pass it by its name.")
        number = len(layer.shapes)
        remedy = "Quantised layers and adapters have no place here: merge them first."
        require(len(part.weights) == number, layer.name, f"{number} weights", len(part.weights), remedy)
        given = {v.path: (keras.ops.convert_to_numpy(v.value), jnp.dtype(v.dtype)) for v in part.weights}
        tensors.append({key: np.array(*of) for key, of in given.items()})  # torch gives bfloat16 as float32
    return layer._replace(weights=tuple(tensors))


def build(keras: Any, layer: Layer, dtype: str, return_state: bool = False) -> Any:
    """The layer of Keras with its weights."""
    of, config = keras.layers, {key: value for key, value in layer.config.items() if key != "merge_mode"}
    for key in config.keys() & {"activation", "recurrent_activation"}:
        if config[key] == OF_KERAS_2:
            config[key] = lambda a: keras.ops.clip(0.2 * a + 0.5, 0, 1)
    if layer.kind not in WEIGHTED:
        return getattr(of, layer.kind)(**config, dtype=dtype)
    # Zeros at first: orthogonal matrices are slow, and none in bfloat16.
    initial = {"kernel_initializer": "glorot_uniform", "recurrent_initializer": "orthogonal"}
    initial = {key: name for key, name in initial.items() if layer.kind in RECURRENT or key == "kernel_initializer"}
    options: dict[str, Any] = dict.fromkeys(initial, "zeros") | {"dtype": dtype} | config
    options |= {"return_state": return_state} if layer.kind in ("GRU", "Bidirectional") else {}
    inner = {"Bidirectional": "GRU", "TimeDistributed": "Dense"}.get(layer.kind)
    made = getattr(of, inner or layer.kind)(**options)
    if inner is not None:
        merge = {"merge_mode": layer.config["merge_mode"]} if "merge_mode" in layer.config else {}
        made = getattr(of, layer.kind)(made, dtype=dtype, **merge)
    tensors = [a for weights in layer.weights for a in weights.values()]
    made.build((None, layer.input_size) if layer.kind == "GRUCell" else (None, None, layer.input_size))
    made.set_weights(tensors)
    for part in _parts(layer.kind, made):
        for key, name in initial.items():
            setattr(part, key, keras.initializers.get(name))
        for key in ("activation", "recurrent_activation"):
            exact = return_state and dtype == "float64" and layer.kind in RECURRENT
            if exact and getattr(part, key) is keras.activations.tanh:
                # Keras on JAX rounds float64 to float32 in its tanh: this is the same function.
                setattr(part, key, lambda a: 2 * keras.activations.sigmoid(2 * a) - 1)
    return made


def require_same(source: Any, model: Any, variables: Any) -> None:
    """Raises `InputError` unless every array that a layer or model gives, run as it is, is an output of `model`."""
    keras, all_seen = package(), []
    shape = None if isinstance(source, keras.Sequential) else getattr(source, "input_shape", None)
    rows, steps = shape[:2] if isinstance(shape, tuple) and len(shape) == 3 else (None, None)  # what a model fixes
    for size in dict.fromkeys((rows or b, steps or t) for b, t in proof_sizes(model, variables)):
        x, h0, _ = given = data(model, variables, size, h0=isinstance(model, GRUCell), grows=True)
        try:
            with numerics("float32"):
                found = source(x) if h0 is None else source(x, [keras.ops.convert_to_tensor(h0)])
                arrays = [np.asarray(keras.ops.convert_to_numpy(a)) for a in jax.tree.leaves(found)]
        except Exception as error:  # whatever a call of the user's raises
            remedy = "verify=False takes what its config says."
            raise InputError(source.name, "a layer that runs on x", type(error).__name__, remedy) from error
        all_seen.append(Seen(given, arrays))
    require_shown("source", model, variables, all_seen)


def runner(source: Any, model: nn.Module) -> Runner:
    """Keras itself, on layers built anew with the weights of the source. Steps that are masked give 0, as here.

    In float32 at least, as grujax carries its state: in bfloat16 Keras rounds the state at every step.
    """
    keras, layers = package(), []
    for layer in layers_of(source):
        weights = ({key: a.astype(state_dtype(a.dtype)) for key, a in one.items()} for one in layer.weights)
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
                    found = made(a, initial_state=states[k : k + n], mask=mask)
                    a, output, last = found[0], found[:-n], [*last, *map(array, found[-n:])]
                elif layer.kind != "Dropout":
                    a = made(a)  # the mask goes with a
                    output = (a,)
        given, head = {"h_last": np.stack(last)}, layers[-1].kind in HEADS
        if not head and not recurrent[-1].config["return_sequences"]:
            return given  # the output is the last state itself
        shown = [array(a) * valid[..., None] if a.ndim == 3 else array(a) for a in output]
        return given | {"y" if head else "output": tuple(shown) if len(shown) > 1 else shown[0]}

    masks = not single and all(layer.kind != "GlobalMaxPooling1D" for layer in layers)  # which has none in Keras
    return Runner(call, takes_lengths=masks)


def store(made: Any, path: Path, member: str | None = None) -> None:
    """Keras goes by the ending: the file gets the right one first. member: what of the archive is the file instead."""
    models = isinstance(made, package().Model)
    remedy = "Keras has files of models alone: take a grujax.GRU of one layer."
    require(models, "model", "a GRU or GRUModel", type(made).__name__, remedy)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, numerics("float32"):
        file = Path(folder) / "model.keras"
        made.save(file)
        if member is None:
            file.replace(path)
        else:  # not by Keras itself: where the disk is full, HDF5 ends the process
            with zipfile.ZipFile(file) as archive:
                path.write_bytes(archive.read(member))
