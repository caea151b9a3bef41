"""Files of both kinds, `.keras` and `.weights.h5`, read and written, whole and damaged."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from keras_models import (
    ADAPTERS,
    H,
    assert_same_bits,
    case,
    drawn,
    keras,
    plain,
    random_variables,
    saved,
    weights_of,
    whole,
)
from refusals import refused

from grujax import GRUCell, GRUModel, InputError
from grujax.interop.adapters import compare
from grujax.interop.keras import ADAPTER, from_keras, to_keras
from grujax.interop.keras_files import load_keras, load_weights
from grujax.interop.keras_live import runner

FILES = {
    "last": ("keras", "keras-weights"),
    "mean": ("keras", "keras-weights"),
    "max": ("keras",),
    "every step": ("keras",),
    "two layers": ("keras",),
    "no bias": ("keras",),
    "after": ("keras", "keras-weights"),
    "before": ("keras-weights",),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in FILES.items() for kind in kinds])
@pytest.mark.filterwarnings("ignore::grujax.interop.model_parts.ConversionWarning")  # dropout, in files of weights
def test_files_hold_the_same_bits(name, kind, tmp_path):
    """Files of Keras read here, files of grujax read here and by Keras."""
    source, _, _, _, (model, variables) = case(name)
    adapter = ADAPTERS[kind]
    ending = adapter.endings[0]
    told = model if kind == "keras" else model.clone(dropout=0.0)
    if isinstance(source, keras.Model):
        theirs = tmp_path / f"theirs{ending}"
        plain(source.save if kind == "keras" else source.save_weights, theirs)
        found, back = adapter.ours(adapter.load(theirs))
        assert found == told
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))
    path = tmp_path / f".temporary{ending}"
    path.write_bytes(b"something else")
    adapter.store(path, adapter.theirs(model, variables))
    assert [p.name for p in tmp_path.iterdir() if "theirs" not in p.name] == [path.name]
    found, back = adapter.ours(adapter.load(path))
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
    for adapter in ADAPTERS.values():
        path = tmp_path / f"model{adapter.endings[0]}"
        adapter.store(path, adapter.theirs(model, variables))
        found, back = adapter.ours(adapter.load(path))
        assert found == model
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))


def test_a_file_that_was_read_runs_in_keras(tmp_path):
    """`runner` takes what `load` gives; a model that was trained has an optimizer in its file besides."""
    source, _, _, _, (model, variables) = case("mean")
    plain(source.compile, "adam", "mse")
    plain(source.optimizer.build, source.trainable_variables)
    plain(source.save, tmp_path / "model.keras")
    loaded = load_keras(tmp_path / "model.keras")
    assert compare(model, variables, runner(loaded, model)).tolerances <= 1
    assert_same_bits(jax.tree.leaves(from_keras(loaded)[1]), jax.tree.leaves(variables))


def test_files_are_read_without_keras_and_a_cell_has_none(tmp_path, monkeypatch):
    path = saved(tmp_path, ".keras")
    with refused("model", "GRUCell", "models alone"):
        ADAPTER.store(path, to_keras(GRUCell(H), random_variables(GRUCell(H))))
    monkeypatch.setitem(sys.modules, "keras", None)
    assert from_keras(load_keras(path))[0] == GRUModel(H, 2)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refused("h5py", "pip install 'grujax[keras]'"):
        load_keras(path)


def test_a_missing_file_is_named(tmp_path):
    for load, ending in ((load_keras, ".keras"), (load_weights, ".weights.h5")):
        with refused("path", f"no file at {tmp_path}"):
            load(tmp_path / f"none{ending}")


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_damage_anywhere_is_told_or_does_none(ending, tmp_path):
    """Bits flipped, tails cut: refused in one line, or read. Of weights alone, without a checksum, a bit may differ."""
    rng, data = np.random.default_rng(0), whole(ending)
    load, outcomes = load_keras if ending == ".keras" else load_weights, []
    path = tmp_path / f"model{ending}"
    expected = from_keras(load(saved(tmp_path, ending)))
    for k in range(120):
        damaged, at = bytearray(data), int(rng.integers(len(data)))
        if k % 2:
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged if k % 2 else damaged[:at]))
        try:
            found = from_keras(load(path))
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.append("refused")
            continue
        outcomes.append("read")
        assert k % 2 and found[0] == expected[0]
        if ending == ".keras":
            assert_same_bits(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]))
    assert outcomes.count("refused") >= 60
