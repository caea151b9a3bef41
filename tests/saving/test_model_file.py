"""The model file: the same bits back, the same bytes again, hostile files refused, nothing half-written."""

import json
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import grujax
from grujax.saving import read, replacing

X = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
MODELS = {
    "model": grujax.GRUModel(5, 2, num_layers=2, bidirectional=True, pooling="mean", dropout=0.25),
    "without bias": grujax.GRUModel(5, 2, bias=False, reset_after=False, initializer="flax"),
    "bfloat16": grujax.GRUModel(5, 2, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, precision="highest"),
    "layer": grujax.GRU(5, bidirectional=True),
    "backwards": grujax.GRU(5, reverse=True),
    "encoder": grujax.GRUEncoder(5, pooling="max"),
}


def variables_of(model):
    return model.init(jax.random.key(1), X)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_is_what_was_saved(name, tmp_path):
    model, variables = MODELS[name], variables_of(MODELS[name])
    grujax.save(tmp_path / "m.safetensors", model, variables)
    loaded, again = grujax.load(tmp_path / "m.safetensors")
    assert loaded == model
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), again, variables
    )
    jax.tree.map(np.testing.assert_array_equal, loaded.apply(again, X), model.apply(variables, X))


def test_a_cell_and_its_float64_weights(tmp_path):
    cell = grujax.GRUCell(5, param_dtype=jnp.float64)
    variables = cell.init(jax.random.key(0), jnp.zeros((3, 5), jnp.float64), jnp.zeros((3, 4), jnp.float64))
    grujax.save(tmp_path / "m.safetensors", cell, variables)
    loaded, again = grujax.load(tmp_path / "m.safetensors")
    assert loaded.hidden_size == 5 and again["params"]["w_hh"].dtype == jnp.float64
    np.testing.assert_array_equal(again["params"]["w_hh"], variables["params"]["w_hh"])


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model, variables = MODELS["model"], variables_of(MODELS["model"])
    turned = {"params": dict(reversed(variables["params"].items()))}
    metadata = {"labels": ["x", "y"], "channels": 2}
    for name, v, m in (("a", variables, metadata), ("b", turned, dict(reversed(metadata.items())))):
        grujax.save(tmp_path / name, model, v, m)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_views_are_saved_as_they_read(tmp_path):
    model, variables = MODELS["model"], variables_of(MODELS["model"])
    kernel = np.asarray(variables["params"]["head"]["kernel"])
    view = np.ascontiguousarray(kernel.T).T
    assert not view.flags.c_contiguous
    variables["params"]["head"]["kernel"] = view
    grujax.save(tmp_path / "m", model, variables)
    np.testing.assert_array_equal(grujax.load(tmp_path / "m")[1]["params"]["head"]["kernel"], kernel)


def test_the_format(tmp_path):
    model, variables = MODELS["layer"], variables_of(MODELS["layer"])
    grujax.save(tmp_path / "m", model, variables, {"labels": ["x"]})
    with safetensors.safe_open(str(tmp_path / "m"), framework="np") as file:
        header = json.loads(file.metadata()["grujax"])
        assert sorted(file.keys()) == sorted(
            f"params/{layer}/{w}" for layer in ("l0", "l0_reverse") for w in ("w_ih", "w_hh", "b_ih", "b_hh")
        )
    assert header["format"] == 1 and header["input_size"] == 4 and header["labels"] == ["x"]
    assert header["model"]["class"] == "GRU" and header["model"]["hidden_size"] == 5
    assert set(header["versions"]) == {"grujax", "jax", "flax"}
    assert read(tmp_path / "m").metadata["labels"] == ["x"]


def rewrite(path, change):
    """The file again, its tensors and header changed."""
    with safetensors.safe_open(str(path), framework="np") as file:
        header = json.loads(file.metadata()["grujax"])
    tensors = dict(safetensors.numpy.load_file(path))
    change(tensors, header)
    path.write_bytes(safetensors.numpy.save(tensors, {"grujax": json.dumps(header)}))


HOSTILE = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "whole safetensors file"),
    "empty": (lambda p: p.write_bytes(b""), "whole safetensors file"),
    "a pickle": (lambda p: p.write_bytes(b"\x80\x04K\x01."), "whole safetensors file"),
    "huge header": (lambda p: p.write_bytes(b"\xff" * 64), "whole safetensors file"),
    "foreign": (lambda p: p.write_bytes(safetensors.numpy.save({"a": np.ones(2)})), "metadata key 'grujax'"),
    "not there": (lambda p: p.unlink(), "no file at"),
    "metadata is no JSON": (
        lambda p: p.write_bytes(safetensors.numpy.save({"a": np.ones(2)}, {"grujax": "{"})),
        "grujax's metadata",
    ),
    "metadata is a list": (
        lambda p: p.write_bytes(safetensors.numpy.save({"a": np.ones(2)}, {"grujax": "[]"})),
        "grujax's metadata",
    ),
    "newer format": (lambda p: rewrite(p, lambda t, h: h.update(format=2)), "format 1"),
    "unknown class": (lambda p: rewrite(p, lambda t, h: h["model"].update({"class": "os"})), "grujax's metadata"),
    "unknown field": (lambda p: rewrite(p, lambda t, h: h["model"].update(evil=1)), "grujax's metadata"),
    "unknown dtype": (lambda p: rewrite(p, lambda t, h: h["model"].update(dtype="evil")), "grujax's metadata"),
    "missing tensor": (
        lambda p: rewrite(p, lambda t, h: t.pop("params/head/bias")),
        "params/head/bias: expected a tens",
    ),
    "extra tensor": (lambda p: rewrite(p, lambda t, h: t.update(x=np.ones(1))), "x: expected only the model's tensors"),
    "wrong shape": (
        lambda p: rewrite(p, lambda t, h: t.update({"params/head/bias": np.ones(9, np.float32)})),
        "params/head/bias: expected float32 (2,), found float32 (9,)",
    ),
    "wrong dtype": (
        lambda p: rewrite(p, lambda t, h: t.update({"params/head/bias": np.ones(2, np.int32)})),
        "params/head/bias: expected float32 (2,), found int32 (2,)",
    ),
    "a size that is text": (lambda p: rewrite(p, lambda t, h: h["model"].update(hidden_size="9")), "m.safetensors"),
    "a huge size": (lambda p: rewrite(p, lambda t, h: h["model"].update(hidden_size=10**7)), "params/encoder"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name, tmp_path):
    path = tmp_path / "m.safetensors"
    grujax.save(path, MODELS["model"], variables_of(MODELS["model"]))
    break_it, message = HOSTILE[name]
    break_it(path)
    with pytest.raises(grujax.InputError) as error:
        grujax.load(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_only_grujax_models_with_their_own_variables_are_saved(tmp_path):
    with pytest.raises(grujax.InputError, match="model: expected one of"):
        grujax.save(tmp_path / "m", 3, {"params": {}})
    with pytest.raises(grujax.InputError, match="params/head/bias"):
        variables = variables_of(MODELS["model"])
        grujax.save(tmp_path / "m", MODELS["model"], {"params": {"encoder": variables["params"]["encoder"]}})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_earlier_model_whole(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    grujax.save(path, MODELS["model"], variables_of(MODELS["model"]))
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        grujax.save(path, MODELS["layer"], variables_of(MODELS["layer"]))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_mode_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "new") as temporary:
        temporary.write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "new")]
    assert modes[0] == modes[1]
