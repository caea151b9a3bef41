"""Keras files, `.keras` and `.weights.h5`, read and written, whole and damaged; and the older `.h5`, read."""

import json
import sys
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import applied
from keras_models import (
    FRAMEWORKS,
    Both,
    Gru,
    H,
    I,
    L,
    assert_same_bits,
    case,
    chain,
    drawn,
    h5py,
    keras,
    plain,
    random_variables,
    saved,
    weights_of,
    whole,
)
from refusals import refused

from grujax import GRU, GRUCell, GRUModel, InputError
from grujax.interop import load
from grujax.interop.keras import FRAMEWORK, from_keras, to_keras
from grujax.interop.keras_files import load as load_layers
from grujax.interop.prove import compare
from grujax.testing import assert_close
from grujax.types import HardSigmoid

FILES = {
    "last": ("keras", "keras-weights"),
    "mean": ("keras", "keras-weights"),
    "max": ("keras",),
    "every step": ("keras",),
    "probabilities": ("keras",),
    "two layers": ("keras",),
    "no bias": ("keras",),
    "after": ("keras", "keras-weights"),
    "before": ("keras-weights",),
}


OTHERS = {("max", "keras"), ("mean", "keras-weights"), ("every step", "keras")}
"""Slow cases: their files contain nothing that other cases lack, and test_keras.py converts each of them."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] * ((name, kind) in OTHERS))
        for name, kinds in FILES.items()
        for kind in kinds
    ],
)
@pytest.mark.filterwarnings("ignore::grujax.interop.parts.ConversionWarning")  # files of weights lose dropout
def test_files_hold_the_same_bits(name, kind, tmp_path):
    """grujax reads Keras' files; grujax and Keras read grujax's files."""
    source, _, _, _, (model, variables) = case(name)
    framework = FRAMEWORKS[kind]
    ending = framework.endings[0]
    told = model if kind == "keras" else model.clone(dropout=0.0)
    if isinstance(source, keras.Model):
        theirs = tmp_path / f"theirs{ending}"
        plain(source.save if kind == "keras" else source.save_weights, theirs)
        found, back = framework.read(framework.load(theirs))
        assert found == told
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))
    path = tmp_path / f".temporary{ending}"
    path.write_bytes(b"something else")
    framework.write(path, framework.build(model, variables))
    assert [p.name for p in tmp_path.iterdir() if "theirs" not in p.name] == [path.name]
    found, back = framework.read(framework.load(path))
    assert found == told
    assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))
    if kind == "keras":
        there = plain(keras.saving.load_model, path)
    else:
        there = drawn(to_keras(model, variables))
        plain(there.load_weights, path)
    assert_same_bits(weights_of(there), weights_of(source))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype_comes_back_from_either_file(dtype, tmp_path):
    model = GRUModel(H, 2, pooling=None, param_dtype=getattr(jnp, dtype))
    variables = random_variables(model)
    for framework in FRAMEWORKS.values():
        path = tmp_path / f"model{framework.endings[0]}"
        framework.write(path, framework.build(model, variables))
        found, back = framework.read(framework.load(path))
        assert found == model
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))


def test_a_file_that_was_read_runs_in_keras(tmp_path):
    """`run` accepts what `load` returns. The file of a trained model also contains an optimizer."""
    source, _, _, _, (model, variables) = case("mean")
    plain(source.compile, "adam", "mse")
    plain(source.optimizer.build, source.trainable_variables)
    plain(source.save, tmp_path / "model.keras")
    loaded = load_layers(tmp_path / "model.keras")
    assert compare(model, variables, FRAMEWORK.run(loaded, model)).tolerances <= 1
    assert_same_bits(jax.tree.leaves(from_keras(loaded)[1]), jax.tree.leaves(variables))


def test_files_are_read_without_keras_and_a_cell_has_none(tmp_path, monkeypatch):
    path = saved(tmp_path, ".keras")
    with refused("model", "GRUCell", "only saves models"):
        FRAMEWORK.write(path, to_keras(GRUCell(H), random_variables(GRUCell(H))))
    monkeypatch.setitem(sys.modules, "keras", None)
    assert from_keras(load_layers(path))[0] == GRUModel(H, 2)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refused("h5py", "pip install 'grujax[keras]'"):
        load_layers(path)


def test_a_missing_file_is_named(tmp_path):
    for ending in (".keras", ".weights.h5"):
        with refused("path", f"no file at {tmp_path}"):
            load_layers(tmp_path / f"none{ending}")


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_damage_anywhere_is_told_or_does_none(ending, tmp_path):
    """A cut file is refused. A flipped bit is refused or harmless, or changes weights in `.weights.h5`: no checksum."""
    rng, data = np.random.default_rng(0), whole(ending)
    outcomes = []
    path = tmp_path / f"model{ending}"
    expected = from_keras(load_layers(saved(tmp_path, ending)))
    for k in range(120):
        damaged, at = bytearray(data), int(rng.integers(len(data)))
        if k % 2:
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged if k % 2 else damaged[:at]))
        try:
            found = from_keras(load_layers(path))
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.append("refused")
            continue
        outcomes.append("read")
        assert k % 2 and found[0] == expected[0]
        if ending == ".keras":
            assert_same_bits(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]))
    assert outcomes.count("refused") >= 60


# -- Keras 2, and the older `.h5` files of Keras 2 and 3 ---------------------------------------------------------------


def keras_2(config, weights, path, version="2.15.0"):
    """Writes an `.h5` file as Keras 2 does: the names of weights are attributes of each layer."""
    with h5py.File(path, "w") as root:
        root.attrs["keras_version"], root.attrs["model_config"] = version, json.dumps(config)
        for layer, tensors in weights.items():
            group = root.create_group(f"model_weights/{layer}")
            group.attrs["weight_names"] = [name.encode() for name in tensors]
            for name, a in tensors.items():
                group[name] = a
        root.create_group("model_weights/top_level_model_weights")


def gru_of_keras_2(name="encoder", units=H, **options):
    config = {
        "name": name,
        "units": units,
        "activation": "tanh",
        "recurrent_activation": "hard_sigmoid",
        "dtype": "float32",
    }
    config |= {"use_bias": True, "dropout": 0.0, "recurrent_dropout": 0.0, "return_sequences": True}
    return {"class_name": "GRU", "config": config | {"stateful": False, "reset_after": False} | options}


def weights_of_keras_2(at, n_inputs=I, units=H, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel:0": (n_inputs, 3 * units), "recurrent_kernel:0": (units, 3 * units), "bias:0": (3 * units,)}
    return {f"{at}/{key}": rng.normal(size=shape).astype("f") for key, shape in shapes.items()}


def by_hand(x, w, u, b):
    """Keras 2's GRU with reset_after=False, in float64. The columns of the weights are z, r, h."""
    h, out = np.zeros((len(x), len(u))), []
    n = len(u)
    for t in range(x.shape[1]):
        a = x[:, t] @ w + b
        z, r = (np.clip(0.2 * (a[:, k] + h @ u[:, k]) + 0.5, 0, 1) for k in (slice(n), slice(n, 2 * n)))
        c = np.tanh(a[:, 2 * n :] + (r * h) @ u[:, 2 * n :])
        h = z * h + (1 - z) * c
        out.append(h)
    return np.stack(out, 1)


@pytest.mark.parametrize("units", [1, 4, 7])
def test_hard_sigmoid_of_keras_2_is_its_own_function(units, tmp_path):
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [gru_of_keras_2(units=units)]}}
    weights = weights_of_keras_2("encoder/gru_cell", units=units)
    keras_2(config, {"encoder": weights}, tmp_path / "m.h5")
    model, variables = load(tmp_path / "m.h5", verify=True)
    assert model == GRU(units, reset_after=False, gate_activation=HardSigmoid(0.2, 0.5))
    x = np.random.default_rng(1).normal(size=(3, 6, I)).astype("f") * 3
    expected = by_hand(x.astype("d"), *(a.astype("d") for a in weights.values()))
    assert_close(applied(model, variables, x)[0], expected)
    three = applied(model.clone(gate_activation="hard_sigmoid"), variables, x)[0]
    assert np.abs(np.asarray(three) - expected).max() > 0.05  # Keras 3's function of that name


def test_the_whole_of_an_older_model(tmp_path):
    """A Functional model with a Bidirectional that stores one direction, and the oldest form of a Sequential."""
    both = {
        "class_name": "Bidirectional",
        "config": {"name": "both", "merge_mode": "concat", "layer": gru_of_keras_2()},
    }
    dense = {"class_name": "Dense", "config": {"name": "out", "units": 2, "activation": "softmax", "use_bias": True}}
    layers = [both, {"class_name": "GlobalMaxPooling1D", "config": {"name": "pool"}}, dense]
    weights = {
        "both": weights_of_keras_2("both/forward_e/gru_cell") | weights_of_keras_2("both/backward_e/gru_cell", seed=1)
    }
    weights |= {"pool": {}, "out": {"out/kernel:0": np.ones((2 * H, 2), "f"), "out/bias:0": np.float32([1, 2])}}
    start = {
        "class_name": "InputLayer",
        "config": {"name": "input_1", "batch_input_shape": [None, None, I]},
        "inbound_nodes": [],
    }
    connected = [start] + [
        one | {"inbound_nodes": [[[before["config"]["name"], 0, 0, {}]]]}
        for one, before in zip(layers, [start, *layers], strict=False)
    ]
    ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [["out", 0, 0]]}
    expected = GRUModel(H, 2, bidirectional=True, reset_after=False, pooling="max", output_activation="softmax")
    for config in (
        {"class_name": "Functional", "config": {"layers": connected} | ends},
        {"class_name": "Sequential", "config": layers},
    ):
        keras_2(config, weights, tmp_path / "m.h5")
        assert load(tmp_path / "m.h5")[0] == expected.clone(gate_activation=HardSigmoid())
    connected[2]["inbound_nodes"] = [[["input_1", 0, 0, {}]]]
    keras_2({"class_name": "Functional", "config": {"layers": connected} | ends}, weights, tmp_path / "m.h5")
    with refused("pool", "only [['both', 0, 0]] as its inputs"):
        load(tmp_path / "m.h5")


def test_the_older_file_of_keras_3_is_read(tmp_path):
    source = chain(Both(return_sequences=True), L.Dense(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain(source.save, tmp_path / "m.h5")
    model, variables = load(tmp_path / "m.h5")
    expected, weights = from_keras(source)
    assert model == expected
    assert_same_bits(jax.tree.leaves(variables), jax.tree.leaves(weights))


OLDER = {
    "no version": (None, {}, ["keras_version", "2 or 3"]),
    "another version": ("1.2.2", {}, ["keras_version", "2 or 3", "'1.2.2'"]),
    "an activation of Keras 3": ("2.15.0", {"activation": "hard_tanh"}, ["encoder.activation", "'hard_tanh'"]),
    "its own name for ours": ("2.15.0", {"activation": "hard_sigmoid of Keras 2"}, ["encoder.activation"]),
    "other units": ("2.15.0", {"units": 5}, ["kernel:0", "(any, 15)"]),
}


@pytest.mark.parametrize("name", OLDER)
def test_an_older_file_that_is_wrong_is_refused(name, tmp_path):
    version, options, parts = OLDER[name]
    config = {"class_name": "Sequential", "config": {"layers": [gru_of_keras_2(**options)]}}
    path = tmp_path / "m.h5"
    keras_2(config, {"encoder": weights_of_keras_2("encoder/gru_cell")}, path, version or "2.0")
    if version is None:
        with h5py.File(path, "r+") as root:
            del root.attrs["keras_version"]
    with refused(*parts, "m.h5"):
        load(path)
    if name == "another version":
        for change, part in (
            (lambda root: root["model_weights/encoder"].attrs.__setitem__("weight_names", [b"../../x"] * 3), ".."),
            (lambda root: root.create_dataset("model_weights/more/kernel", data=np.ones(2)), "It would be lost"),
            (lambda root: root.attrs.__delitem__("model_config"), "model_config"),
        ):
            keras_2(config, {"encoder": weights_of_keras_2("encoder/gru_cell")}, path)
            with h5py.File(path, "r+") as root:
                change(root)
            with refused(part, "m.h5"):
                load(path)


def test_the_version_in_a_keras_file_is_read(tmp_path):
    source = drawn(chain(Gru(recurrent_activation="hard_sigmoid")))
    path = tmp_path / "m.keras"
    plain(source.save, path)
    assert load(path)[0].gate_activation == "hard_sigmoid"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for stated, expected in (("2.15.0", HardSigmoid()), ("3.0.0", "hard_sigmoid"), ("4.0", None), (None, None)):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (members | {"metadata.json": json.dumps({"keras_version": stated}).encode()}).items():
                archive.writestr(name, content)
        if expected is None:
            with refused("metadata.json", "keras_version 2 or 3"):
                load(path)
        else:
            assert load(path)[0].gate_activation == expected
