"""Layers and models without a counterpart in the other framework are refused by name."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from keras_models import ZEROS, B, Both, Gru, H, I, L, Steps, T, chain, drawn, keras, plain, random_variables
from refusals import refused

from grujax import GRU, GRUEncoder, GRUModel, save
from grujax.errors import MissingPackage
from grujax.interop import keras_live
from grujax.interop.keras import from_keras, to_keras
from grujax.interop.keras_weights import WEIGHTS
from grujax.types import HardSigmoid


def tanh(a):
    """Not Keras' tanh; but Keras serialises a user's function by its name alone."""
    return a


class OwnGRU(L.GRU):
    pass


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.gru = L.GRU(H, **ZEROS)

    def call(self, x):
        return self.gru(x)


def subclassed():
    model = Subclassed()
    plain(model, np.ones((B, T, I), "float32"))
    return model


def shared():
    x, gru = keras.Input((None, H)), L.GRU(H, return_sequences=True, **ZEROS)
    return plain(lambda: keras.Model(x, gru(gru(x))))


def branched():
    x = keras.Input((None, I))
    return plain(lambda: keras.Model(x, L.Add()([Steps()(x), Steps()(x)])))


def stated():
    x = keras.Input((None, I))
    return plain(lambda: keras.Model(x, Gru()(x, initial_state=Gru()(x))))


def two_outputs():
    x = keras.Input((None, I))
    return plain(lambda: keras.Model(x, [h := Steps()(x), Gru()(h)]))


FROM = {
    "lstm": (lambda: drawn(L.LSTM(H, **ZEROS)), ["lstm", "GRU", "found LSTM"]),
    "simple rnn": (lambda: drawn(L.SimpleRNN(H, **ZEROS)), ["simple_rnn", "found SimpleRNN"]),
    "rnn of a cell": (lambda: drawn(L.RNN(L.GRUCell(H, **ZEROS))), ["found RNN", "keras.layers.GRU"]),
    "lstm inside": (lambda: drawn(L.Bidirectional(L.LSTM(H, **ZEROS))), ["lstm", "found LSTM"]),
    "own class": (lambda: drawn(OwnGRU(H, **ZEROS)), ["own_gru", "found OwnGRU"]),
    "subclassed": (subclassed, ["Subclassed: ", "GlobalAveragePooling1D"]),
    "own function": (lambda: drawn(Gru(activation=tanh)), ["activation", "Keras' own tanh", "by its name"]),
    "other function": (lambda: drawn(Gru(recurrent_activation="gelu")), ["recurrent_activation", "'gelu'"]),
    "backwards": (lambda: drawn(Gru(go_backwards=True)), ["go_backwards", "found True", "Reverse"]),
    "stateful": (lambda: drawn(Gru(stateful=True)), ["stateful", "found True"]),
    "not built": (lambda: Gru(), ["gru", "a built layer", "Call it on data"]),
    "masking": (lambda: chain(L.Masking(-1.0), Gru()), ["masking", "mask=(x != mask_value).any(-1)"]),
    "embedding": (lambda: drawn(L.Embedding(9, I)), ["embedding", "found Embedding"]),
    "activation of the head": (
        lambda: chain(Gru(), L.Dense(2, activation="relu")),
        ["dense", "activation", "'relu'", "linear"],
    ),
    "softmax layer": (lambda: chain(Gru(), L.Dense(2), L.Softmax()), ["softmax", "found Softmax"]),
    "two heads": (lambda: chain(Gru(), L.Dense(2), L.Dense(2)), ["dense", "one Dense", "a Dense here"]),
    "dense first": (lambda: chain(L.Dense(H), Gru()), ["gru", "one Dense", "a GRU here"]),
    "pooling alone": (lambda: chain(Steps(), L.GlobalMaxPooling1D()), ["a Dense after the pooling", "GRUEncoder"]),
    "kept axis": (
        lambda: chain(Steps(), L.GlobalMaxPooling1D(keepdims=True), L.Dense(2)),
        ["keepdims", "found True"],
    ),
    "one way, both ways": (lambda: chain(Steps(), Both()), ["bidirectional", "expected GRU", "one by one"]),
    "merges that differ": (
        lambda: chain(Both("sum", return_sequences=True), Both("mul")),
        ["merge_mode", "'sum'", "'mul'"],
    ),
    "resets that differ": (lambda: chain(Steps(), Gru(reset_after=False)), ["reset_after", "True", "False"]),
    "dtypes that differ": (
        lambda: chain(Gru(dtype="mixed_bfloat16"), L.Dense(2, dtype="float32")),
        ["dense", "dtype", "expected bfloat16, as gru", "one policy"],
    ),
    "a pooling in another dtype": (
        lambda: chain(Steps(), L.GlobalAveragePooling1D(dtype="mixed_bfloat16"), L.Dense(2)),
        ["global_average_pooling1d", "dtype", "found bfloat16"],
    ),
    "sizes that differ": (lambda: chain(Steps(), L.GRU(5, **ZEROS)), ["4 hidden units", "found 5"]),
    "directions that differ": (
        lambda: drawn(L.Bidirectional(Gru(), backward_layer=Gru(activation="relu", go_backwards=True))),
        ["the same options in both directions", "relu"],
    ),
    "no gru": (lambda: chain(L.Dense(2)), ["source", "a GRU"]),
    "nested": (lambda: chain(chain(Steps()), L.Dense(2)), ["sequential", "Put its layers into one"]),
    "branches": (branched, ["add", "found Add"]),
    "shared layer": (shared, ["gru", "as its inputs"]),
    "initial state": (stated, ["chains of layers"]),
    "two outputs": (two_outputs, ["output_layers", "only"]),
    "neither": (lambda: 3, ["source", "a Keras layer or model", "int"]),
    "a list": (lambda: [3], ["source", "layers that `load` read"]),
}


@pytest.mark.parametrize("name", FROM)
def test_what_is_no_gru_is_refused_by_name(name):
    make, parts = FROM[name]
    source = make()
    with refused(*parts):
        from_keras(source)


TO = {
    "function": (GRU(H, activation=tanh), ["activation", "tanh", "Keras"]),
    "hard_sigmoid of Keras 2": (GRU(H, gate_activation=HardSigmoid()), ["gate_activation", "HardSigmoid(alpha=0.2"]),
    "clip": (GRU(H, clip=1.0), ["clip", "Keras: it has no such option"]),
    "residual": (GRU(H, num_layers=2, connection="residual"), ["connection", "'residual'"]),
    "learned": (GRU(H, initial_state="learned"), ["initial_state", "'learned'"]),
    "zoneout": (GRU(H, zoneout=0.1), ["zoneout", "0.1"]),
    "attention": (GRUModel(H, 2, pooling="attention"), ["pooling", "'attention'", "'mean'"]),
    "heads": (GRUModel(H, {"a": 2, "b": 3}), ["output_size", "one head"]),
    "encoder": (GRUEncoder(H), ["model", "GRUEncoder"]),
}


@pytest.mark.parametrize("name", TO)
def test_what_keras_has_no_place_for_is_refused(name):
    model, parts = TO[name]
    with refused(*parts):
        to_keras(model, random_variables(model))


UNTOLD = {
    "activation": GRU(H, activation="relu"),
    "gate_activation": GRU(H, gate_activation="hard_sigmoid"),
    "merge": GRU(H, bidirectional=True, merge="sum"),
    "bias": GRU(H, bias=False),
}


@pytest.mark.parametrize("field", UNTOLD)
def test_what_weights_do_not_tell_is_refused_a_file_of_weights(field):
    with refused(field, "write a .keras file"):
        WEIGHTS.build(UNTOLD[field], random_variables(UNTOLD[field]))


def test_without_keras_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with refused("keras", "pip install 'grujax[keras]'"):
        from_keras(object())
    with refused("keras", "pip install 'grujax[keras]'"):
        to_keras(GRU(H), random_variables(GRU(H)))


def test_a_backend_that_is_not_installed_is_named(monkeypatch):
    def no_backend(module, extra):
        raise MissingPackage("keras", "", "No module named 'tensorflow'", "pip") from ModuleNotFoundError(
            name="tensorflow"
        )

    monkeypatch.setattr(keras_live, "require_package", no_backend)
    with refused("tensorflow, the backend that keras is set to, is required: set KERAS_BACKEND=jax before keras"):
        keras_live.package()


@pytest.mark.slow
def test_a_command_exports_to_keras_without_tensorflow(tmp_path):
    if find_spec("tensorflow"):
        pytest.skip("tensorflow is installed: Keras would run on it")
    model = GRUModel(4, 2, pooling="last")
    save(tmp_path / "m.safetensors", model, random_variables(model))
    env = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    python = f"from grujax.interop import convert; convert({str(tmp_path / 'm.safetensors')!r}, 'b.keras')"
    for arguments, code in ((["-m", "grujax.cli", "export", "m.safetensors", "--to", "keras"], 0), (["-c", python], 1)):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert code == 0 or "set KERAS_BACKEND=jax before keras is imported" in done.stderr
    assert (tmp_path / "model.keras").exists() and not (tmp_path / "b.keras").exists()
