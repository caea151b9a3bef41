"""Keras itself: layers and models taken apart into plain layers, built from them, and run."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require, require_package
from grujax.interop.keras_layers import HEADS, OF_KERAS_2, RECURRENT, Layer, described
from grujax.interop.prove import Runner
from grujax.types import state_dtype


def package() -> Any:
    """Keras 3, imported; `MissingPackage` where there is none."""
    keras = require_package("keras", "keras")
    require(hasattr(keras, "ops"), "keras", "Keras 3", f"Keras {keras.__version__}", "pip install 'grujax[keras]'")
    return keras


@contextmanager
def numerics(dtype: str) -> Iterator[None]:
    """Keras on JAX relies on JAX's own defaults; with 64-bit values on, a GRU of 32 bits without biases fails in it."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.enable_x64(dtype == "float64"):
        yield


def layers_of(source: Any) -> list[Layer]:
    """Of a built layer or model; of itself what is layers already."""
    if isinstance(source, list):
        require(all(isinstance(layer, Layer) for layer in source), "source", "layers that `load` read", "other items")
        return source
    keras = package()
    served = "a layer or model of Keras, or what `load` gives"
    if not isinstance(source, keras.layers.Layer):
        raise InputError("source", served, type(source).__name__)
    require(source.built, source.name, "a built layer", "one without weights", "Call it on data, or build it, first.")
    try:
        with warnings.catch_warnings():  # a compiled model's variables become arrays in the manner of NumPy 1
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            layers = described(keras.saving.serialize_keras_object(source))
    except InputError:
        raise
    except Exception as error:  # whatever a class of the user's raises in get_config
        raise InputError(source.name, "layers that Keras can serialise", f"{type(error).__name__}") from error
    own = source.layers if isinstance(source, keras.Model) else [source]
    own = [layer for layer in own if not isinstance(layer, keras.layers.InputLayer)]
    return [_with_weights(keras, *pair) for pair in zip(layers, own, strict=True)]


def _with_weights(keras: Any, layer: Layer, own: Any) -> Layer:
    tensors = []
    for part in _weighted(layer.kind, own):
        for key in ("activation", "recurrent_activation"):
            name = layer.config.get(key, "linear" if key == "activation" else None)
            function = getattr(part, key, None)  # a function of the user's may have the name of one of Keras'
            same = name is None or function is keras.activations.get(name)
            require(same, f"{layer.name}.{key}", f"Keras' own {name}", repr(function)[:80], "Pass it by its name.")
        number = len(layer.shapes)
        remedy = "Quantised layers and adapters have no place here: merge them first."
        require(len(part.weights) == number, layer.name, f"{number} weights", len(part.weights), remedy)
        arrays = {v.path: keras.ops.convert_to_numpy(v.value) for v in part.weights}
        dtypes = [jnp.dtype(v.dtype) for v in part.weights]  # torch gives bfloat16 as float32
        tensors.append({key: np.array(a, dtype) for (key, a), dtype in zip(arrays.items(), dtypes, strict=True)})
    return layer._replace(weights=tuple(tensors))


def _weighted(kind: str, layer: Any) -> list[Any]:
    """What of a layer of Keras has weights, and functions."""
    parts: dict[str, Callable[[], list[Any]]] = {
        "GRUCell": lambda: [layer],
        "GRU": lambda: [layer.cell],
        "Bidirectional": lambda: [layer.forward_layer.cell, layer.backward_layer.cell],
        "Dense": lambda: [layer],
        "TimeDistributed": lambda: [layer.layer],
    }
    return parts[kind]() if kind in parts else []


def build(keras: Any, layer: Layer, dtype: str, return_state: bool = False) -> Any:
    """The layer of Keras with its weights."""
    of, config = keras.layers, {key: value for key, value in layer.config.items() if key != "merge_mode"}
    zeros = {"kernel_initializer": "zeros", "dtype": dtype}
    for key in config.keys() & {"activation", "recurrent_activation"}:
        if config[key] == OF_KERAS_2:
            config[key] = lambda a: keras.ops.clip(0.2 * a + 0.5, 0, 1)
    if layer.kind in HEADS:
        made = of.Dense(**config, **zeros)
        made = of.TimeDistributed(made, dtype=dtype) if layer.kind == "TimeDistributed" else made
    elif layer.kind in RECURRENT:
        states = {} if layer.kind == "GRUCell" else {"return_state": return_state}
        made = getattr(of, "GRUCell" if states == {} else "GRU")(
            **config, **zeros, **states, recurrent_initializer="zeros"
        )
        if layer.kind == "Bidirectional":
            made = of.Bidirectional(made, merge_mode=layer.config["merge_mode"], dtype=dtype)
    else:
        return getattr(of, layer.kind)(**config, dtype=dtype)
    tensors = [a for weights in layer.weights for a in weights.values()]
    made.build((None, tensors[0].shape[0]) if layer.kind == "GRUCell" else (None, None, tensors[0].shape[0]))
    made.set_weights(tensors)
    for part in _weighted(layer.kind, made):  # zeros at first: orthogonal matrices are slow, and none in bfloat16
        part.kernel_initializer = keras.initializers.get("glorot_uniform")
        if layer.kind in RECURRENT:
            part.recurrent_initializer = keras.initializers.get("orthogonal")
        if return_state and dtype == "float64" and layer.kind in RECURRENT:
            _exact(keras, part)
    return made


def _exact(keras: Any, cell: Any) -> None:
    """Keras on JAX rounds float64 to float32 in its tanh: 2 σ(2a) − 1 is the same function."""
    for key in ("activation", "recurrent_activation"):
        if getattr(cell, key) is keras.activations.tanh:
            setattr(cell, key, lambda a: 2 * keras.activations.sigmoid(2 * a) - 1)


def _widened(layer: Layer) -> Layer:
    weights = ({key: a.astype(state_dtype(a.dtype)) for key, a in one.items()} for one in layer.weights)
    return layer._replace(weights=tuple(weights))


def run_itself(source: Any) -> Callable[[NDArray, NDArray | None], list[NDArray]]:
    """The layer or model of Keras as it is: all that it gives for x and, of a cell, a state."""
    keras = package()

    def run(x: NDArray, h0: NDArray | None) -> list[NDArray]:
        with numerics("float32"):
            given = (x,) if h0 is None else (x, [keras.ops.convert_to_tensor(h0)])
            try:
                found = jax.tree.leaves(source(*given))
            except Exception as error:  # whatever a call of the user's raises
                remedy = "verify=False takes what its config says."
                raise InputError(source.name, "a layer that runs on x", type(error).__name__, remedy) from error
            return [np.asarray(keras.ops.convert_to_numpy(a)) for a in found]

    return run


def runner(source: Any, model: nn.Module) -> Runner:
    """Keras itself, on layers built anew with the weights of the source. Steps that are masked give 0, as here.

    In float32 at least, as grujax carries its state: in bfloat16 Keras rounds the state at every step.
    """
    layers, keras = [_widened(layer) for layer in layers_of(source)], package()
    recurrent = [layer for layer in layers if layer.kind in RECURRENT]
    dtype, single = recurrent[0].dtype, recurrent[0].kind == "GRUCell"
    with numerics(dtype):
        built = [build(keras, layer, dtype, return_state=True) for layer in layers]

    def array(t: Any) -> NDArray:
        return np.asarray(keras.ops.convert_to_numpy(t))

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, Any]:
        with numerics(dtype):
            a, mask = keras.ops.cast(x, dtype), None
            states = None if h0 is None else [keras.ops.cast(h, dtype) for h in (h0[None] if single else h0)]
            if single:
                return {"h_last": array(built[0](a, states or built[0].get_initial_state(len(x)))[0])}
            valid = np.ones(x.shape[:2], bool) if lengths is None else np.arange(x.shape[1]) < lengths[:, None]
            if lengths is not None:
                mask = keras.ops.convert_to_tensor(valid)
            last: list[NDArray] = []
            output: tuple[Any, ...] = ()
            for layer, made in zip(layers, built, strict=True):
                if layer.kind in RECURRENT:
                    k, number = len(last), len(layer.weights)
                    given = None if states is None else states[k : k + number]
                    found = made(a, initial_state=given, mask=mask)
                    output, a = tuple(found[:-number]), found[0]
                    last += map(array, found[-number:])
                elif layer.kind != "Dropout":
                    a = made(a)  # the mask goes with a
                    output = (a,)
        given = {"h_last": np.stack(last)}
        if layers[-1].kind not in HEADS and not recurrent[-1].config["return_sequences"]:
            return given  # the output is the last state itself
        shown = [array(a) * valid[..., None] if a.ndim == 3 else array(a) for a in output]
        name = "y" if layers[-1].kind in HEADS else "output"
        return given | {name: tuple(shown) if len(shown) > 1 else shown[0]}

    masks = not single and all(layer.kind != "GlobalMaxPooling1D" for layer in layers)  # which has none in Keras
    return Runner(call, takes_lengths=masks)
