"""The GRUs of Keras models are found under unique names, wherever they are nested and with any backend."""

import json
import os
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from keras_models import H, I, L, Steps, drawn, keras, plain
from refusals import refused

from grujax.interop import find, load, replace
from grujax.interop.torch_files import TORCH

X = keras.Input((None, I))


def inside(layer):
    return plain(keras.Sequential, [keras.Input((None, H)), layer])


def shared():
    gru, x = Steps(name="gru"), keras.Input((None, H))
    return keras.Model(x, gru(gru(x)))


MODELS = {
    "two of a name": (
        lambda: keras.Sequential([X, Steps(name="gru"), inside(Steps(name="gru"))]),
        ["gru", "gru#1"],
    ),
    "a cell in an RNN": (lambda: keras.Sequential([X, L.RNN(L.GRUCell(H, name="cell"))]), ["cell"]),
    "shared": (shared, ["gru"]),
}
WRAPPED = {
    "TimeDistributed": (lambda: L.TimeDistributed(L.GRU(H, name="gru")), ["gru"]),
    "cells": (lambda: L.RNN([L.GRUCell(H, name="one"), L.GRUCell(2, name="two")]), ["one", "two"]),
    "both": (lambda: L.Bidirectional(L.RNN(L.GRUCell(H, name="cell"))), ["cell", "cell#1"]),
    "both of a kind": (
        lambda: L.Bidirectional(L.GRU(H, name="gru"), backward_layer=L.GRU(H, activation="relu", go_backwards=True)),
        ["forward_gru"],  # the other has go_backwards=True, which is not supported alone
    ),
    "another": (lambda: L.Bidirectional(L.LSTM(H)), []),
}


@pytest.mark.parametrize("case", MODELS)
def test_each_gru_of_a_live_model_is_put_back_where_it_stands(case, tmp_path):
    make, names = MODELS[case]
    model = drawn(plain(make))
    before = [np.asarray(v.value) for v in model.weights]
    grus = find(model)
    assert [gru.name for gru in grus] == names
    of, variables = grus[-1].take()
    moved = jax.tree.map(lambda a: a + 1, variables)
    replace(model, {names[-1]: (of, moved)}, tmp_path / "tuned.keras")
    there = plain(keras.saving.load_model, tmp_path / "tuned.keras")
    jax.tree.map(np.testing.assert_array_equal, find(there)[-1].take()[1], moved)
    for one, other in zip(find(there)[:-1], grus[:-1], strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.take()[1], other.take()[1])
    for v, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(v.value), old)


@pytest.mark.parametrize("case", WRAPPED)
def test_each_gru_in_a_wrapper_is_found_in_a_model_and_in_its_file(case, tmp_path):
    make, names = WRAPPED[case]
    x = keras.Input((4, 5, I)) if case == "TimeDistributed" else keras.Input((5, I))
    model = drawn(plain(lambda: keras.Sequential([x, make()])))
    plain(model.save, tmp_path / "net.keras")
    live, there = find(model), find(tmp_path / "net.keras")
    assert [gru.name for gru in live] == [gru.name for gru in there] == names
    for one, other in zip(live, there, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.take()[1], other.take()[1])
    for name, gru in zip(names[-1:], there[-1:], strict=True):
        of, variables = gru.take()
        moved = jax.tree.map(lambda a: a + 1, variables)
        replace(tmp_path / "net.keras", {name: (of, moved)}, tmp_path / "tuned.keras")
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "tuned.keras", prefix=name)[1], moved)
        assert find(plain(keras.saving.load_model, tmp_path / "tuned.keras"))[-1].name == name


def test_directions_in_directions_are_not_gone_through(tmp_path):
    """Each level would double the work: a file with sixty levels would never finish."""
    plain(drawn(plain(lambda: keras.Sequential([keras.Input((5, I)), L.GRU(H)]))).save, tmp_path / "net.keras")
    with zipfile.ZipFile(tmp_path / "net.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    inner = {"class_name": "Nothing", "config": {}}
    for _ in range(60):
        inner = {"class_name": "Bidirectional", "config": {"layer": inner}}
    config = {"class_name": "Sequential", "config": {"layers": [inner]}}
    with zipfile.ZipFile(tmp_path / "hostile.keras", "w") as archive:
        for name, data in (members | {"config.json": json.dumps(config)}).items():
            archive.writestr(name, data)
    assert find(tmp_path / "hostile.keras") == []


def test_two_grus_of_a_name_in_a_file_are_told_apart(tmp_path):
    plain(drawn(plain(MODELS["two of a name"][0])).save, tmp_path / "net.keras")
    first, second = (load(tmp_path / "net.keras", prefix=gru.name) for gru in find(tmp_path / "net.keras"))
    assert (first[1]["params"]["l0"]["w_ih"].shape, second[1]["params"]["l0"]["w_ih"].shape) == ((I, 3 * H), (H, 3 * H))
    moved = jax.tree.map(lambda a: a + 1, second[1])
    replace(tmp_path / "net.keras", {"gru#1": (second[0], moved)}, tmp_path / "tuned.keras")
    for name, expected in (("gru", first[1]), ("gru#1", moved)):
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "tuned.keras", prefix=name)[1], expected)


def test_a_model_that_cannot_be_saved_has_its_own_weights_again(tmp_path, monkeypatch):
    model = drawn(plain(keras.Sequential, [X, Steps(name="gru")]))
    (gru,) = find(model)
    of, variables = gru.take()
    with refused("gru_cell/kernel", f"({I}, {3 * H})", f"({H}, {3 * H})"):
        params = {"l0": variables["params"]["l0"] | {"w_ih": np.ones((H, 3 * H), "f")}}
        replace(model, {"gru": (of, {"params": params})}, tmp_path / "tuned.keras")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(model, {"gru": (of, jax.tree.map(lambda a: a + 1, variables))}, tmp_path / "tuned.keras")
    jax.tree.map(np.testing.assert_array_equal, find(model)[0].take()[1], variables)
    assert not list(tmp_path.iterdir())


def test_a_model_of_keras_that_is_a_module_of_torch_too_is_one_of_keras():
    """This is the case when torch is Keras' backend."""
    class_of_torch = type("Module", (), {"__module__": "torch.nn.modules.module"})
    model = drawn(plain(keras.Sequential, [X, Steps(name="gru")]))
    model.__class__ = type("Sequential", (keras.Sequential, class_of_torch), {"__module__": "keras"})
    assert TORCH.recognises(model)
    (gru,) = find(model)
    assert (gru.name, gru.where) == ("gru", "GRU") and gru.take()[1]["params"]["l0"]["w_ih"].shape == (I, 3 * H)


PROGRAM = """
import keras
from grujax.interop import find, replace
model = keras.Sequential([keras.Input((None, 3)), keras.layers.GRU(4, name="gru"), keras.layers.Dense(2)])
(gru,) = find(model)
replace(model, {"gru": gru.take()}, "same.keras")
print(gru.name, gru.where, find("same.keras")[0].name)
"""


@pytest.mark.slow
def test_a_model_of_keras_on_torch_is_one_of_keras(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    env, paths = os.environ | {"KERAS_BACKEND": "torch"}, [os.getcwd(), os.environ.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["gru", "GRU", "gru"], done.stderr
