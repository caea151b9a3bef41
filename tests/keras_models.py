"""Keras models for the tests: builds them with random weights, runs and saves them."""

import functools
import os
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grujax import GRU, GRUCell, GRUModel
from grujax.interop.keras import FRAMEWORK, from_keras
from grujax.interop.keras_weights import WEIGHTS
from grujax.types import LeakyRelu, Softplus

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="keras is not installed")
h5py = pytest.importorskip("h5py", reason="h5py is not installed")
L = keras.layers
I, H, T, B = 3, 4, 5, 2
ZEROS = {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}  # `drawn` replaces all weights
Gru = functools.partial(L.GRU, H, **ZEROS)
Steps = functools.partial(Gru, return_sequences=True)
FRAMEWORKS = {"keras": FRAMEWORK, "keras-weights": WEIGHTS}


def plain(call, *args, **options):
    """Calls Keras under the JAX settings that it expects. The code under test must set these itself."""
    lifted = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.enable_x64(False)
    with lifted[0], lifted[1], lifted[2], warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # from Keras' variables
        return call(*args, **options)


def run(layer, *given, **options):
    """The outputs of a Keras layer, as a list of NumPy arrays."""
    return [np.asarray(a) for a in jax.tree.leaves(plain(jax.jit(lambda *a: layer(*a, **options)), *given))]


def Both(merge="concat", **options):
    return L.Bidirectional(Gru(**options), merge_mode=merge)


def drawn(layer, seed=0):
    """Builds the layer if needed, and sets all its weights, biases included, to random values."""
    rng = np.random.default_rng(seed)
    if not layer.built:
        plain(layer.build, (B, I) if isinstance(layer, L.GRUCell) else (B, T, I))
    plain(layer.set_weights, [rng.normal(size=v.shape, scale=0.6).astype(v.dtype) for v in layer.weights])
    return layer


def chain(*layers, seed=0):
    return drawn(plain(keras.Sequential, [keras.Input((None, I)), *layers]), seed)


def functional(*layers):
    x = start = keras.Input((None, I))
    for layer in layers:
        x = plain(layer, x)
    return drawn(plain(keras.Model, start, x))


def weights_of(layer):
    return [np.asarray(v.value) for v in layer.weights]


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


CASES = {
    "after": (lambda: drawn(Steps(return_state=True)), GRU(H)),
    "before": (lambda: drawn(Steps(return_state=True, reset_after=False)), GRU(H, reset_after=False)),
    "no bias": (lambda: drawn(Gru(use_bias=False)), GRU(H, bias=False)),
    "before, no bias": (
        lambda: drawn(Steps(use_bias=False, reset_after=False)),
        GRU(H, bias=False, reset_after=False),
    ),
    "cell": (lambda: drawn(L.GRUCell(H, **ZEROS)), GRUCell(H)),
    "cell before": (lambda: drawn(L.GRUCell(H, reset_after=False, **ZEROS)), GRUCell(H, reset_after=False)),
    "both ways": (lambda: drawn(Both(return_sequences=True)), GRU(H, bidirectional=True)),
    "apart": (lambda: drawn(Both(None, return_sequences=True)), GRU(H, bidirectional=True, merge=None)),
    "two layers": (
        lambda: chain(*[Both("sum", return_sequences=True) for _ in range(2)]),
        GRU(H, num_layers=2, bidirectional=True, merge="sum"),
    ),
    "last": (
        lambda: chain(Steps(), L.Dropout(0.2), Gru(), L.Dropout(0.2), L.Dense(2)),
        GRUModel(H, 2, num_layers=2, dropout=0.2),
    ),
    "last of both": (lambda: chain(Both("mul"), L.Dense(2)), GRUModel(H, 2, bidirectional=True, merge="mul")),
    "mean": (
        lambda: functional(Both(return_sequences=True), L.GlobalAveragePooling1D(), L.Dense(2)),
        GRUModel(H, 2, bidirectional=True, pooling="mean"),
    ),
    "max": (
        lambda: chain(Steps(activation="relu", dropout=0.1), L.GlobalMaxPooling1D(), L.Dense(2)),
        GRUModel(H, 2, activation="relu", input_dropout=0.1, pooling="max"),
    ),
    "probabilities": (
        lambda: chain(Gru(recurrent_activation="softplus", activation="leaky_relu"), L.Dense(2, activation="softmax")),
        GRUModel(H, 2, gate_activation=Softplus(), activation=LeakyRelu(0.2), output_activation="softmax"),
    ),
    "every step": (
        lambda: chain(Both("ave", return_sequences=True), L.Dense(2)),
        GRUModel(H, 2, bidirectional=True, merge="mean", pooling=None),
    ),
}


PROVED = {"no bias", "cell", "apart", "last", "mean", "probabilities", "every step"}
"""Cases that `from_keras` also verifies: each kind of source and of output. A test compares the outputs of all."""


@functools.cache
def case(name):
    """The Keras source, the expected model, the inputs, the outputs of the source, and its conversion. Cached."""
    make, expected = CASES[name]
    source = make()
    x = np.random.default_rng(1).normal(size=(B, T, I)).astype("float32")
    h = np.random.default_rng(2).normal(size=(2, B, H)).astype("float32")
    given = (x[:, 0], [h[0]]) if isinstance(source, L.GRUCell) else (x,)
    converted = from_keras(source, verify=None if name in PROVED else False)
    return source, expected, given, run(source, *given), converted  # run last: jit leaves a tracer in dropout's seed


def ours(model, variables, given):
    """The outputs of a grujax model as a list, in the order in which Keras returns them."""
    if isinstance(model, GRUCell):
        given = (given[1][0], given[0])
    found = jax.tree.leaves(jax.jit(model.apply)(variables, *given))
    if getattr(model, "merge", "concat") is None:
        found = [*found[0], *found[1:]]
    return found if len(found) == 1 or isinstance(model, GRUCell) else [*found[:-1], *found[-1]]


def random_variables(model, seed=0):
    x = jnp.zeros((1, 2, I), model.param_dtype)
    args = (jnp.zeros((1, H), model.param_dtype), x[:, 0]) if isinstance(model, GRUCell) else (x,)
    tree, rng = jax.eval_shape(model.init, jax.random.key(0), *args), np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape, scale=0.6)).astype(a.dtype), tree)


@functools.cache
def whole(ending):
    """The bytes of a file that Keras wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{ending}"
        model = chain(Gru(name="gru"), L.Dense(2))
        plain(model.save if ending == ".keras" else model.save_weights, path)
        return path.read_bytes()


def saved(folder, ending):
    path = folder / f"model{ending}"
    path.write_bytes(whole(ending))
    return path
