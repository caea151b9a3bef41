"""Model files: loading restores every bit, equal models give equal bytes, hostile files are refused."""

import json
import os
import stat
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from drawn import drawn
from flax import nnx
from flax.traverse_util import flatten_dict
from refusals import refused

import grujax
import grujax.nnx as gnnx
from grujax import interop
from grujax.saving import model_file, read
from grujax.saving.atomic import replacing
from grujax.seq2seq import CONTEXTS, Seq2Seq
from grujax.seq2seq import nnx as of_nnx

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
    return drawn(model, X)


VARIABLES = variables_of(MODELS["model"])


def whole():
    with tempfile.TemporaryDirectory() as folder:
        grujax.save(f"{folder}/m", MODELS["model"], VARIABLES)
        return Path(f"{folder}/m").read_bytes()


WHOLE = whole()


@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_is_what_was_saved(name, tmp_path):
    model, variables = MODELS[name], variables_of(MODELS[name])
    grujax.save(tmp_path / "m.safetensors", model, variables)
    loaded, again = grujax.load(tmp_path / "m.safetensors")
    assert loaded == model
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), again, variables
    )
    jax.tree.map(
        np.testing.assert_array_equal, *(jax.jit(m.apply)(v, X) for m, v in ((loaded, again), (model, variables)))
    )


def test_a_cell_and_its_float64_weights(tmp_path):
    cell = grujax.GRUCell(5, param_dtype=jnp.float64)
    variables = drawn(cell, np.zeros((3, 5)), np.zeros((3, 4)))
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
    """Writes the file again with changed tensors and header and a matching digest, as an attacker would."""
    with safetensors.safe_open(str(path), framework="np") as file:
        header = json.loads(file.metadata()["grujax"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del header["sha256"]
    text = change(tensors, header)
    header["sha256"] = model_file._sha256(header, tensors)
    text = text if isinstance(text, str) else json.dumps(header)
    path.write_bytes(safetensors.numpy.save(tensors, {"grujax": text}))


def field(**values):
    return lambda p: rewrite(p, lambda t, h: h["model"].update(values))


def tensor(key, array):
    return lambda p: rewrite(p, lambda t, h: t.update({key: array}))


def metadata(text):
    return lambda p: rewrite(p, lambda t, h: text)


def a_fifo(path):
    path.unlink()
    os.mkfifo(path)


BIAS, W = "params/head/bias", "params/encoder/gru/l0/w_ih"
HOSTILE = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "whole safetensors file"),
    "trailing bytes": (lambda p: p.write_bytes(p.read_bytes() + b"0"), "whole safetensors file"),
    "empty": (lambda p: p.write_bytes(b""), "whole safetensors file"),
    "a pickle": (lambda p: p.write_bytes(b"\x80\x04K\x01."), "whole safetensors file"),
    "huge header": (lambda p: p.write_bytes(b"\xff" * 64), "whole safetensors file"),
    "foreign": (lambda p: p.write_bytes(safetensors.numpy.save({"a": np.ones(2)})), "metadata key 'grujax'"),
    "not there": (lambda p: p.unlink(), "no file at"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "a folder at"),
    "a pipe": (a_fifo, "no file at"),
    "metadata is no JSON": (metadata("{"), "grujax's metadata"),
    "metadata is a list": (metadata("[]"), "grujax's metadata"),
    "metadata is empty": (metadata("{}"), "grujax's metadata"),
    "metadata is deep": (metadata("[" * 200_000 + "]" * 200_000), "grujax's metadata"),
    "a key twice": (metadata('{"format": 1, "format": 1}'), "distinct keys"),
    "newer format": (
        lambda p: rewrite(p, lambda t, h: h.update(format=7)),
        "model: expected format 1, found a file written by a newer grujax (format 7) in",
    ),
    "no format": (lambda p: rewrite(p, lambda t, h: h.update(format=True)), "found format True"),
    "other input_size": (lambda p: rewrite(p, lambda t, h: h.update(input_size=5)), "input_size: expected 4"),
    "unknown class": (field(**{"class": "os"}), "a class of"),
    "class is a list": (field(**{"class": ["GRU"]}), "grujax's metadata"),
    "unknown field": (field(evil=1), "evil: expected a field of GRUModel"),
    "a name": (field(name="x"), "name: expected a field of GRUModel"),
    "a parent": (field(parent=None), "parent: expected a field of GRUModel"),
    "unknown dtype": (field(dtype="evil"), "grujax's metadata"),
    "dtype is a function": (field(dtype="array"), "grujax's metadata"),
    "other param_dtype": (field(param_dtype="float16"), "expected float16 (15,), found float32 (15,)"),
    "integer param_dtype": (field(param_dtype="int32"), "param_dtype: expected a floating dtype"),
    "missing tensor": (lambda p: rewrite(p, lambda t, h: t.pop(BIAS)), f"{BIAS}: expected a tens"),
    "extra tensor": (tensor("x", np.ones(1)), "x: expected only the model's tensors"),
    "a tensor with a hostile name": (tensor("\n\x1b" * 99, np.ones(1)), "expected only the model's tensors"),
    "wrong shape": (
        tensor(BIAS, np.ones(9, np.float32)),
        "params/head/bias: expected float32 (2,), found float32 (9,)",
    ),
    "wrong dtype": (tensor(BIAS, np.ones(2, np.int32)), "params/head/bias: expected float32 (2,), found int32 (2,)"),
    "NaN": (tensor(BIAS, np.float32([0, np.nan])), f"{BIAS}: expected finite numbers"),
    "infinity": (tensor(BIAS, np.float32([0, -np.inf])), f"{BIAS}: expected finite numbers"),
    "a scalar w_ih": (tensor(W, np.zeros((), np.float32)), "w_ih (I, 3H) of the first layer"),
    "a std of zero": (
        lambda p: rewrite(
            p, lambda t, h: t.update({f"statistics/input_{s}": np.zeros(4, np.float32) for s in ("mean", "std")})
        ),
        "statistics/input_std: expected positive numbers",
    ),
    "a size that is text": (field(hidden_size="9"), "hidden_size: expected a value of <class 'int'>, found '9'"),
    "a size that is a list": (field(hidden_size=[[5]]), "hidden_size: "),
    "a size that is a truth": (field(num_layers=True), "num_layers: "),
    "a negative size": (field(hidden_size=-5), "hidden_size: "),
    "a negative output": (field(output_size=-2), "output_size: "),
    "a truth that is text": (field(bias="no"), "bias: "),
    "a huge size": (field(hidden_size=10**7), W),
    "a huge output": (field(output_size=10**30), "params/head/bias: "),
    "a million layers": (field(num_layers=10**6), "model: expected 4000001 tensors or more, found 18"),
    "a million hidden layers": (field(head_hidden=[1] * 10**6), "head_hidden: expected 18 entries or fewer"),
    "many heads": (
        field(output_size={str(k): 1 for k in range(10**5)}),
        "output_size: expected 18 entries or fewer",
    ),
    "a huge bias": (field(update_bias=1e300), "update_bias: "),
    "a bias of NaN": (field(update_bias=float("nan")), "update_bias: "),
    "blocks that do not divide": (field(blocks=10**9), "blocks=1000000000 needs a hidden_size that it divides"),
    "blocks beside a dense matrix": (field(blocks=5), "params/encoder/gru/l0/w_hh: "),
    "a rate above one": (field(dropout=2.0), "dropout: "),
    "an unknown activation": (field(activation="evil"), "activation: "),
    "an activation of lists": (field(activation=[["tanh"]]), "activation: "),
    "an unknown precision": (field(precision="evil"), "grujax's metadata"),
    "an unknown initializer": (field(initializer="evil"), "initializer: "),
    "an unknown implementation": (field(implementation="evil"), "implementation"),
    "an unknown pooling": (field(pooling="evil"), "pooling: "),
}


def assert_refused_soon(path, message):
    """Asserts that loading fails within 2 seconds, with one short line."""
    began = time.process_time()
    with pytest.raises(grujax.InputError) as error:
        grujax.load(path)
    assert time.process_time() - began < 2
    assert message in str(error.value) and len(str(error.value)) < 700
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_short_line_and_soon(name, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(WHOLE)
    break_it, message = HOSTILE[name]
    break_it(path)
    assert_refused_soon(path, message)


SENTENCES = Seq2Seq(5, source_vocabulary=4, target_vocabulary=3, context="bahdanau")
TOKENS = jnp.array([[1, 2, 0]])
EMBEDDING = "params/source_embedding"
HOSTILE_SENTENCES = {
    "a million layers": (field(num_layers=10**6), "model: expected 4000000 tensors or more, found 19"),
    "a huge vocabulary": (field(target_vocabulary=10**30), "params/logits/bias: expected float32 (1000"),
    "a huge size": (field(hidden_size=10**9), "params/attention/key: expected float32 (1000000000, 10"),
    "a negative vocabulary": (field(source_vocabulary=-4), "source_vocabulary: expected a positive integer, found -4"),
    "a vocabulary that is a truth": (field(source_vocabulary=True), "source_vocabulary: expected a value of"),
    "no vocabulary": (
        lambda p: rewrite(p, lambda t, h: h["model"].pop("source_vocabulary") and None),
        "grujax's metadata",
    ),
    "an unknown context": (field(context="evil"), "context: expected one of [None, 'cho', 'bahdanau', 'luong']"),
    "another context": (field(context="luong"), "params/attention/key: expected only the model's tensors"),
    "an input_size": (lambda p: rewrite(p, lambda t, h: h.update(input_size=5)), "input_size: expected None, which"),
    "another class": (field(**{"class": "GRU"}), "context: expected a field of GRU"),
    "missing tensor": (lambda p: rewrite(p, lambda t, h: t.pop(EMBEDDING)), f"{EMBEDDING}: expected a tensor"),
    "statistics": (tensor("statistics/input_mean", np.ones(5, np.float32)), "expected only the model's tensors"),
    "wrong shape": (tensor(EMBEDDING, np.ones((4, 6), np.float32)), "expected float32 (4, 5), found float32 (4, 6)"),
    "NaN": (tensor(EMBEDDING, np.full((4, 5), np.nan, np.float32)), f"{EMBEDDING}: expected finite numbers"),
}


@pytest.mark.parametrize("name", HOSTILE_SENTENCES)
def test_hostile_files_of_a_seq2seq_are_refused_in_one_short_line_and_soon(name, tmp_path):
    path = tmp_path / "m.safetensors"
    grujax.save(path, SENTENCES, drawn(SENTENCES, TOKENS, TOKENS))
    break_it, message = HOSTILE_SENTENCES[name]
    break_it(path)
    assert_refused_soon(path, message)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_seq2seq_is_loaded_as_it_was_saved_in_both_faces(context, tmp_path):
    fields = {"source_vocabulary": 4, "target_vocabulary": 3, "embedding_size": 6, "num_layers": 2, "dropout": 0.1}
    model = Seq2Seq(5, **fields, context=context, bidirectional=True, merge="sum")
    variables = drawn(model, TOKENS, TOKENS)
    grujax.save(tmp_path / "m", model, variables, {"end": 2})
    loaded, again, metadata = read(tmp_path / "m")
    assert loaded == model and metadata["end"] == 2
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), again, variables)
    module = of_nnx.from_linen(loaded, again, rngs=nnx.Rngs(1))
    module.eval()
    found = nnx.jit(lambda m: m(TOKENS, TOKENS))(module)
    np.testing.assert_array_equal(found, jax.jit(model.apply)(variables, TOKENS, TOKENS))
    grujax.save(tmp_path / "n", *of_nnx.to_linen(module), {"end": 2})
    assert (tmp_path / "m").read_bytes() == (tmp_path / "n").read_bytes()


def test_a_seq2seq_of_another_face_or_with_other_variables_is_refused(tmp_path):
    variables = drawn(SENTENCES, TOKENS, TOKENS)
    module = of_nnx.from_linen(SENTENCES, variables, rngs=nnx.Rngs(0))
    with refused("model: expected one of", "found grujax.seq2seq.nnx.Seq2Seq", "*grujax.seq2seq.nnx.to_linen(module)"):
        grujax.save(tmp_path / "m", module, variables)
    with refused(f"{EMBEDDING}: expected float32 (4, 5), found float32 (3, 5)"):
        other = drawn(SENTENCES.clone(source_vocabulary=3), TOKENS, TOKENS)
        grujax.save(tmp_path / "m", SENTENCES, other)
    with refused(f"{EMBEDDING}: expected float32 (4, 5), found float32 (3, 5)"):
        of_nnx.from_linen(SENTENCES, other, rngs=nnx.Rngs(0))
    with refused("variables: expected a dict, found a list"):
        of_nnx.from_linen(SENTENCES, [], rngs=nnx.Rngs(0))
    with refused("model: expected one of ['Seq2Seq'] of grujax, found grujax.linen.layer.GRU"):
        of_nnx.from_linen(MODELS["layer"], variables, rngs=nnx.Rngs(0))
    with refused("found grujax.seq2seq.linen.Seq2Seq", "grujax.seq2seq.nnx.from_linen"):
        gnnx.from_linen(SENTENCES, variables, rngs=nnx.Rngs(0))
    with refused("params: expected a dict, found int"):
        of_nnx.from_linen(SENTENCES, {"params": 3}, rngs=nnx.Rngs(0))
    for of, remedy in (
        (SENTENCES, "seq2seq.nnx.from_linen"),
        (gnnx.GRU(4, 5, rngs=nnx.Rngs(0)), "nnx.to_linen(module)"),
    ):
        with refused("module: expected a grujax.seq2seq.nnx.Seq2Seq, found grujax.", remedy):
            of_nnx.to_linen(of)
    with refused("module: expected one of ['GRU', 'GRUCell'", "pass *grujax.seq2seq.nnx.to_linen(module)."):
        gnnx.to_linen(module)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["grujax", "safetensors", "stablehlo"])
def test_a_seq2seq_is_converted_to_no_format(target, tmp_path):
    grujax.save(tmp_path / "m.safetensors", SENTENCES, drawn(SENTENCES, TOKENS, TOKENS))
    with refused("model: expected one of ['GRU', ", "found grujax.seq2seq.linen.Seq2Seq"):
        interop.convert(tmp_path / "m.safetensors", tmp_path / "other", target_format=target)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def same(path):
    """Whether the file holds the model of `WHOLE`, bit for bit."""
    model, variables = grujax.load(path)
    bits = {key: np.asarray(a).tobytes() for key, a in flatten_dict(variables, sep="/").items()}
    return model == MODELS["model"] and bits == {
        key: np.asarray(a).tobytes() for key, a in flatten_dict(VARIABLES, sep="/").items()
    }


def test_a_changed_byte_is_found(tmp_path):
    """After one flipped bit or four random bytes, the file is refused or still loads as the same model."""
    path, rng, refused = tmp_path / "m", np.random.default_rng(0), 0
    header = 8 + int.from_bytes(WHOLE[:8], "little")
    for trial in range(400):
        content = bytearray(WHOLE)
        end = header if trial % 2 else len(WHOLE)  # half the changes are in the header, which is the most sensitive
        for place in rng.integers(0, end, 1 + trial % 4 // 2 * 3):
            content[place] = content[place] ^ 1 << rng.integers(8) if trial % 4 < 2 else rng.integers(256)
        path.write_bytes(content)
        try:
            assert same(path)
        except grujax.InputError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 380


def test_a_truth_flipped_in_the_header_is_found(tmp_path):
    (tmp_path / "m").write_bytes(WHOLE.replace(b'\\"reset_after\\": true', b'\\"reset_after\\":false'))
    assert (tmp_path / "m").read_bytes() != WHOLE
    with refused("expected the file as it was saved, found changed or damaged content"):
        grujax.load(tmp_path / "m")


def test_a_file_without_a_digest_loads(tmp_path):
    def drop(tensors, header):
        return json.dumps(header)  # does not contain the digest yet

    (tmp_path / "m").write_bytes(WHOLE)
    rewrite(tmp_path / "m", drop)
    assert b"sha256" not in (tmp_path / "m").read_bytes() and same(tmp_path / "m")


def test_metadata_come_back_and_may_not_name_the_files_own_keys(tmp_path):
    given = {"labels": ["ä", "\n", "€"], "count": np.int64(3), "share": 0.1, "1": {"b": None, "a": [1.5, True]}}
    grujax.save(tmp_path / "m", MODELS["model"], VARIABLES, given)
    found = read(tmp_path / "m").metadata
    assert set(found.pop("versions")) == {"grujax", "jax", "flax"} and found == given
    with refused("metadata: expected other keys than", "['format', 'sha256']"):
        grujax.save(tmp_path / "m", MODELS["model"], VARIABLES, {"sha256": "", "format": 2})


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    broken = jax.tree.map(lambda a: a * np.float32(np.nan), VARIABLES)
    with refused("expected finite numbers, found NaN"):
        grujax.save(tmp_path / "m", MODELS["model"], broken)
    with refused("bias: expected a value of <class 'bool'>, found 1"):
        grujax.save(tmp_path / "m", MODELS["model"].clone(bias=1), VARIABLES)
    assert not list(tmp_path.iterdir())


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
