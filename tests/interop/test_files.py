"""Model files of every format: there and back keeps every bit, hostile files are refused, none is left half-written."""

import contextlib
import json
import os
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from applied import applied
from refusals import refused

import grujax
from grujax import GRU, GRUCell, GRUModel, InputError
from grujax.interop import FORMATS, ConversionWarning, convert, load, save
from grujax.testing import assert_close

torch = pytest.importorskip("torch", reason="torch is not installed")
os.environ.setdefault("KERAS_BACKEND", "jax")


@pytest.fixture(autouse=True)
def numerics_of_other_libraries():
    """Allows the promotions of dtypes and ranks that Keras relies on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def variables_of(model, seed=0):
    """Random float32 weights, including the biases."""
    x = jnp.zeros((1, 1, 3), jnp.float32)
    given = (jnp.zeros((1, model.hidden_size), jnp.float32), x[0]) if isinstance(model, GRUCell) else (x,)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) / 2, jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0), *given),
    )


MODEL = GRUModel(4, 2, num_layers=2, bidirectional=True)
LOSSLESS = {
    "grujax": "m.safetensors",
    "torch": "m.pt",
    "safetensors": "m-torch.safetensors",
    "numpy": "m.npz",
    "keras": "m.keras",
    "keras-weights": "m.weights.h5",
    "onnx": "m.onnx",
}


def same_bits(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), a, b)


def test_every_format_is_told_by_its_ending_or_its_name():
    assert set(FORMATS) == {*LOSSLESS, "flax", "stablehlo"}
    endings = [ending for framework in FORMATS.values() for ending in framework.endings]
    expected = ".safetensors .safetensors .pt .pth .npz .keras .weights.h5 .onnx .msgpack .stablehlo"
    assert " ".join(sorted(endings)) == " ".join(sorted(expected.split(" ")))
    reads = [ending for framework in FORMATS.values() for ending in framework.reads]
    assert sorted(reads) == [".bin", ".ckpt", ".h5", ".pt2"]


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_torch_file_becomes_each_other_format_and_comes_back_to_the_same_bits(name, tmp_path):
    state = {key: torch.randn(t.shape) for key, t in torch.nn.GRU(3, 4, 2, bidirectional=True).state_dict().items()}
    state = {f"gru.{key}": t for key, t in state.items()}
    state |= {"output_layer.weight": torch.randn(2, 8), "output_layer.bias": torch.randn(2)}
    torch.save(state, tmp_path / "source.pth")
    there = convert(tmp_path / "source.pth", tmp_path / LOSSLESS[name], target_format=name)
    assert (there.source_format, there.target_format) == ("torch", name)
    assert there.left_behind == [] and there.missing is None and there.folded is None
    assert there.difference is not None and there.difference < 1e-5  # outputs of up to 10 in absolute value
    back = convert(tmp_path / LOSSLESS[name], tmp_path / "back.pt")  # the format follows from the ending or metadata
    assert back.source_format == name and back.model == there.model == MODEL
    again = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(again) == list(state)
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("field", ["activation", "gate_activation"])
def test_a_tree_of_flax_that_would_be_read_as_another_function_is_not_written(field, tmp_path):
    model = GRU(4, **{field: "relu"})
    for verify in (True, False):
        with pytest.warns(ConversionWarning), refused(field, "'relu'", "another format"):
            save(tmp_path / "m.msgpack", model, variables_of(model), verify=verify)
    assert not list(tmp_path.iterdir())


def test_flax_keeps_the_outputs_and_says_that_it_loses_the_split_of_the_biases(tmp_path):
    model, x = GRU(4, bidirectional=True), jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    variables = variables_of(model)
    save(tmp_path / "m.pt", model, variables)
    there = convert(tmp_path / "m.pt", tmp_path / "m.msgpack")
    assert len(there.left_behind) == 1 and "b_ih and b_hh are stored as their sum" in there.left_behind[0]
    loaded, again = load(tmp_path / "m.msgpack", verify=True)
    assert loaded == model
    assert_close(applied(loaded, again, x)[0], applied(model, variables, x)[0])
    with pytest.warns(ConversionWarning, match="sum"):
        save(tmp_path / "m.msgpack", model, variables)


@pytest.mark.parametrize(
    "model", [GRU(4), GRUCell(4), GRU(4, num_layers=2, bidirectional=True, bias=False)], ids=["layer", "cell", "deep"]
)
def test_layers_and_cells_there_and_back(model, tmp_path):
    for name, file in LOSSLESS.items():
        if isinstance(model, GRUCell) and name.startswith("keras"):
            continue  # Keras only saves models, and a cell is not a model
        with contextlib.suppress(OSError):
            os.remove(tmp_path / file)
        variables = variables_of(model)
        if name == "keras-weights" and not model.bias:
            continue  # refused, because the file would not show the reset mode: test_keras_refusals.py
        assert save(tmp_path / file, model, variables, name, verify=True).tolerances <= 1
        loaded, again = load(tmp_path / file, name)
        assert loaded == model
        same_bits(again, variables)


def test_a_time_major_model_is_saved_as_it_is(tmp_path):
    model = GRU(4, bidirectional=True, time_major=True)
    variables = model.init(jax.random.key(0), jnp.ones((1, 1, 3)))
    save(tmp_path / "model.safetensors", model, variables, verify=True)
    loaded, again = load(tmp_path / "model.safetensors")
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_a_safetensors_file_in_torch_keys_is_what_pytorch_loads(tmp_path):
    from safetensors.torch import load_file, save_file

    module = torch.nn.GRU(3, 4, bidirectional=True)
    save_file(module.state_dict(), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    model, variables = load(tmp_path / "theirs.safetensors")
    save(tmp_path / "ours.safetensors", model, variables, "safetensors")
    module.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    half = module.to(torch.bfloat16)
    save_file(half.state_dict(), tmp_path / "half.safetensors")
    model, variables = load(tmp_path / "half.safetensors")
    assert model.param_dtype == jnp.bfloat16
    same_bits(
        np.asarray(variables["params"]["l0"]["w_ih"]).view(np.int16), half.weight_ih_l0.view(torch.int16).numpy().T
    )


def test_rounding_that_large_weights_blow_up_is_no_difference_and_another_function_still_is(tmp_path, monkeypatch):
    """With 64 units and weights of std 1 the recurrence is chaotic: rounding exceeds the tolerance table by far."""
    from grujax.interop import torch_keys
    from grujax.interop.prove import compare
    from grujax.interop.torch_files import TORCH

    model = GRU(64, num_layers=2)
    variables = jax.tree.map(lambda a: 2 * a, variables_of(model))
    found = save(tmp_path / "m.pt", model, variables, verify=True)
    assert found.largest > 1e-5 and found.tolerances <= 1
    state = TORCH.build(model, jax.tree.map(lambda a: a * (1 + 1e-4), variables))
    assert compare(model, variables, TORCH.run(state, model)).tolerances > 1
    right = torch_keys.DIALECTS["torch"]
    monkeypatch.setitem(torch_keys.DIALECTS, "torch", right._replace(gates="zrn"))
    with refused("the same outputs from both sides"):
        save(tmp_path / "n.pt", model, variables, verify=True)


def test_converting_without_what_would_run_the_target_says_so(tmp_path, monkeypatch):
    import sys

    save(tmp_path / "m.safetensors", MODEL, variables_of(MODEL))
    monkeypatch.setitem(sys.modules, "torch", None)
    found = convert(tmp_path / "m.safetensors", tmp_path / "t.safetensors", target_format="safetensors")
    assert (found.difference, found.missing) == (None, "torch")
    assert load(tmp_path / "t.safetensors")[0] == MODEL
    with refused("torch", "pip install 'grujax[torch]'"):
        convert(tmp_path / "m.safetensors", tmp_path / "t.pt")


# -- statistics --------------------------------------------------------------------------------------------------------


def with_statistics(model, input_size=3):
    statistics = {"input_mean": [1.0, -2.0, 0.5], "input_std": [2.0, 0.5, 3.0]}
    statistics |= {"output_mean": [3.0, -1.0], "output_std": [0.5, 4.0]}
    return variables_of(model) | {"statistics": {k: jnp.asarray(v, jnp.float32) for k, v in statistics.items()}}


def test_statistics_are_refused_or_folded_into_the_weights(tmp_path):
    variables = with_statistics(MODEL)
    save(tmp_path / "m.safetensors", MODEL, variables)
    with refused("statistics", "fold_statistics"):
        convert(tmp_path / "m.safetensors", tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()
    found = convert(tmp_path / "m.safetensors", tmp_path / "m.pt", fold=True)
    assert found.folded is not None and 0 < found.folded < 2e-5 and found.difference < 2e-6
    model, folded = load(tmp_path / "m.pt")
    assert model == MODEL and set(folded) == {"params"}
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 3)), jnp.float32) * 2 + 1
    lengths = jnp.array([6, 3, 1, 0])
    assert_close(applied(model, folded, x, lengths=lengths), applied(MODEL, variables, x, lengths=lengths), "gradient")
    for kept in ("m.onnx", "m.stablehlo"):
        found = convert(tmp_path / "m.safetensors", tmp_path / kept, fold=True)
        assert found.folded is None and found.difference < 2e-5


def test_statistics_that_weights_cannot_hold_are_refused():
    from grujax.interop import fold_statistics

    for model, part in ((GRUModel(4, 2, bias=False), "bias"), (GRUModel(4, 2, layer_norm=True), "layer_norm")):
        with refused(part):
            fold_statistics(model, with_statistics(model))
    behind = MODEL.clone(output_activation="sigmoid")
    with refused("output_activation", "expected None, found sigmoid"):
        fold_statistics(behind, with_statistics(behind))
    wrong = {
        "statistics/input_std": {"input_mean": jnp.ones(3)},
        "statistics/output_mean": {"output_mean": jnp.ones(1), "output_std": jnp.ones(2)},
        "statistics/output_a_mean": {"output_a_mean": jnp.ones(2)},
    }
    for argument, statistics in wrong.items():
        with refused(argument):
            fold_statistics(MODEL, variables_of(MODEL) | {"statistics": statistics})
    for given in ({}, variables_of(MODEL) | {"noise": {}}):
        with refused("variables", '"params", and "statistics"'):
            fold_statistics(MODEL, given)
    with refused("model", "GRUModel"):
        fold_statistics(GRU(4), variables_of(GRU(4)))
    plain = variables_of(MODEL)
    same_bits(fold_statistics(MODEL, plain), plain)


# -- hostile files -----------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch pickled",)


def rewritten(path, change):
    """Writes the zip file again with the members that `change(members)` returns."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(members).items():
            archive.writestr(name, data)


def torch_state(**changes):
    state = dict(torch.nn.GRU(3, 4).state_dict())
    return {k: v for k, v in (state | changes).items() if v is not None}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def flipped_weight(path):
    """Inverts one byte of the first tensor's data."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    head = struct.unpack("<HH", path.read_bytes()[info.header_offset + 26 : info.header_offset + 30])
    flip(path, info.header_offset + 30 + sum(head) + 1)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))


PT = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-200]), ["torch.save"]),
    "half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), ["torch.save"]),
    "a weight flipped": (flipped_weight, ["undamaged file", "checksum"]),
    "empty": (lambda p: p.write_bytes(b""), ["bytes"]),
    "text": (lambda p: p.write_text("weights"), ["path"]),
    "a pickle that runs": (lambda p: p.write_bytes(pickle.dumps({"weight_ih_l0": Evil()})), ["path"]),
    "torch's pickle that runs": (lambda p: torch.save({"weight_ih_l0": Evil()}, p), ["only tensors"]),
    "a pickle of another kind": (lambda p: p.write_bytes(pickle.dumps([1])), ["only tensors", "another kind of file"]),
    "a whole module": (
        lambda p: torch.save(torch.nn.GRU(3, 4), p),
        ["only tensors", "found other pickled objects", "state_dict"],
    ),
    "a list": (lambda p: torch.save([torch.ones(2)], p), ["a state dict", "list"]),
    "no keys of text": (lambda p: torch.save({3: torch.ones(2)}, p), ["keys that are text", "found 3"]),
    "a member outside": (
        lambda p: rewritten(p, lambda m: m | {"../evil": b"x"}),
        ["members inside their folder", "../evil"],
    ),
    "a member at the root": (
        lambda p: rewritten(p, lambda m: m | {"/evil": b"x"}),
        ["members inside their folder", "/evil"],
    ),
    "a bomb": (bomb, ["members of at most"]),
    "an lstm": (lambda p: torch.save(torch.nn.LSTM(3, 4).state_dict(), p), ["weight_hh_l0", "LSTM"]),
    "an lstm in disguise": (
        lambda p: torch.save(torch_state(weight_hh_l0=torch.ones(16, 4), weight_ih_l0=torch.ones(16, 3)), p),
        ["weight_hh_l0", "(12, 4)", "(16, 4)", "LSTM"],
    ),
    "not a number": (lambda p: torch.save(torch_state(bias_ih_l0=torch.full((12,), torch.nan)), p), ["b_ih", "NaN"]),
    "infinite": (lambda p: torch.save(torch_state(bias_hh_l0=torch.full((12,), torch.inf)), p), ["b_hh", "Inf"]),
    "integers": (lambda p: torch.save(torch_state(bias_hh_l0=torch.ones(12, dtype=int)), p), ["bias_hh_l0", "int64"]),
    "wrong shape": (lambda p: torch.save(torch_state(bias_hh_l0=torch.ones(11)), p), ["bias_hh_l0", "(12,)", "(11,)"]),
    "a key too few": (lambda p: torch.save(torch_state(bias_hh_l0=None), p), ["bias_hh_l0", "incomplete"]),
    "a layer far away": (
        lambda p: torch.save(torch_state(weight_ih_l99999999999=torch.ones(12, 4)), p),
        ["weight_ih_l1", "incomplete"],
    ),
    "a view larger than its memory": (
        lambda p: torch.save(torch_state(weight_hh_l0=torch.ones(1).expand(1 << 20, 1 << 20)), p),
        ["weight_hh_l0", "bytes stored", "(1048576, 1048576)"],
    ),
    "a safetensors file": (lambda p: p.write_bytes(safetensors.numpy.save({"a": np.ones(3)})), ["path"]),
}


def torch_arrays(**changes):
    return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in torch_state(**changes).items()}


def st(arrays, metadata=None):
    return lambda p: p.write_bytes(safetensors.numpy.save(arrays, metadata))


SAFETENSORS = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-9]), ["whole safetensors file"]),
    "header flipped": (lambda p: flip(p, 9), ["whole safetensors file"]),
    "huge header": (lambda p: p.write_bytes(b"\xff" * 64), ["whole safetensors file"]),
    "an lstm": (st({k: np.ones(v.shape) for k, v in torch.nn.LSTM(3, 4).state_dict().items()}), ["hh_l0", "LSTM"]),
    "integers": (st(torch_arrays(bias_ih_l0=np.ones(12, int))), ["bias_ih_l0", "int64"]),
    "not a number": (st(torch_arrays(bias_ih_l0=np.full(12, np.nan, np.float32))), ["b_ih", "NaN"]),
    "wrong shape": (
        st(torch_arrays(weight_ih_l0=np.ones((11, 3), np.float32))),
        ["weight_ih_l0", "(12, 3)", "(11, 3)"],
    ),
    "a key besides": (st(torch_arrays(more=np.ones(1, np.float32))), ["more", "this extra key"]),
    "none of ours": (st({"a": np.ones(2)}), ["nn.GRU"]),
    "a torch file": (lambda p: torch.save(torch_state(), p), ["whole safetensors file"]),
}


def npz(compressed=False, **arrays):
    return lambda p: (np.savez_compressed if compressed else np.savez)(p, **arrays)


NPZ = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-30]), ["whole .npz file"]),
    "text": (lambda p: p.write_text("weights"), ["whole .npz file"]),
    "a pickle": (npz(weight_hh_l0=np.array([Evil()], object)), ["whole .npz file", "ValueError"]),
    "a lone pickle": (lambda p: p.write_bytes(pickle.dumps(Evil())), ["whole .npz file"]),
    "a bomb": (npz(True, weight_hh_l0=np.zeros(1 << 23)), ["members of at most"]),
    "a member outside": (lambda p: rewritten(p, lambda m: m | {"../evil.npy": b"x"}), ["members inside their folder"]),
    "a weight flipped": (lambda p: flip(p, 200), ["path"]),
    "an lstm": (npz(weight_ih_l0=np.ones((16, 3)), weight_hh_l0=np.ones((16, 4))), ["weight_hh_l0", "LSTM"]),
    "integers": (npz(**torch_arrays(bias_hh_l0=np.ones(12, int))), ["bias_hh_l0", "int64"]),
    "not a number": (npz(**torch_arrays(bias_hh_l0=np.full(12, np.nan, "f"))), ["b_hh", "NaN"]),
    "none of ours": (npz(a=np.ones(3)), ["nn.GRU", "interop.find"]),
}
CKPT = {
    "a checkpoint of nothing": (lambda p: torch.save({"state_dict": {}, "epoch": 1}, p), ["nn.GRU"]),
    "one in itself": (
        lambda p: torch.save({"model": {"model": {"model": {"model": {"model": {}}}}}}, p),
        ["a torch.Tensor", "dict"],
    ),
    "numbers for weights": (
        lambda p: torch.save({"model": torch_state(weight_hh_l0=3.0)}, p),
        ["weight_hh_l0", "float"],
    ),
    "sparse": (
        lambda p: torch.save(torch_state(weight_hh_l0=torch.ones(12, 4).to_sparse()), p),
        ["weight_hh_l0", "dtype"],
    ),
    "half of a weight_norm": (
        lambda p: torch.save(torch_state(weight_hh_l0=None) | {"weight_hh_l0_g": torch.ones(12, 1)}, p),
        ["weight_hh_l0", "the parts of weight_norm"],
    ),
    "a pickle beside": (lambda p: torch.save({"state_dict": torch_state(), "hook": Evil()}, p), ["only tensors"]),
}
SHARD = "m-00001-of-00002.safetensors"


def index(text=None, **where):
    """Writes an index with the tensors of the shard and the entries `where`; or `text` instead."""
    there = dict.fromkeys(torch_arrays(), SHARD) | where
    text = json.dumps({"weight_map": there}) if text is None else text
    return lambda p: p.with_name("m.safetensors.index.json").write_text(text)


def cut(path):
    index()(path)
    path.write_bytes(path.read_bytes()[:-9])


SHARDS = {
    "no index": (lambda p: None, ["one shard of several", "m.safetensors.index.json"]),
    "no JSON": (index("{"), ["an index of shards", "JSONDecodeError"]),
    "a list": (index("[]"), ["an index of shards", "TypeError"]),
    "no map": (index("{}"), ["an index of shards", "KeyError"]),
    "numbers for names": (index('{"weight_map": {"weight_hh_l0": 3}}'), ["an index of shards", "TypeError"]),
    "deep": (index("[" * 200_000), ["an index of shards", "RecursionError"]),
    "large": (index(" " * (17 << 20)), ["an index of at most 16777216 bytes"]),
    "upwards": (index(bias_hh_l0=f"../{SHARD}"), ["in the folder of their index", "../m"]),
    "absolute": (index(bias_hh_l0=f"/etc/{SHARD}"), ["in the folder of their index", "/etc/m"]),
    "another kind of name": (index(bias_hh_l0="passwd"), ["in the folder of their index", "passwd"]),
    "a shard that is not there": (index(more=SHARD.replace("1-", "2-")), ["m-00002-of-00002", "no such file"]),
    "a tensor that is not there": (index(more=SHARD), ["the tensors that the index names", "more"]),
    "a truncated shard": (cut, ["whole safetensors file"]),
}
HOSTILE = {f"shards: {name}": (SHARD, *case) for name, case in SHARDS.items()}
HOSTILE |= {f"pt: {name}": ("m.pt", *case) for name, case in PT.items()}
HOSTILE |= {f"npz: {name}": ("m.npz", *case) for name, case in NPZ.items()}
HOSTILE |= {f"ckpt: {name}": ("m.pt", *case) for name, case in CKPT.items()}
HOSTILE |= {f"safetensors: {name}": ("m.safetensors", *case) for name, case in SAFETENSORS.items()}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line_and_leave_nothing(name, tmp_path, monkeypatch):
    file, break_it, parts = HOSTILE[name]
    path = tmp_path / file
    monkeypatch.chdir(tmp_path)
    model = GRU(4)
    save(path, model, variables_of(model), "safetensors" if file.endswith(".safetensors") else None)
    break_it(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        convert(path, tmp_path / "out.safetensors")
    message = str(error.value)
    assert all(part in message for part in [*parts, file]) and "\n" not in message, message
    assert "\x1b" not in message and "weights_only" not in message  # no colours, no other library's advice
    assert sorted(tmp_path.iterdir()) == before  # nothing written, nothing run


def test_the_table_of_hostile_files_has_sixty():
    assert len(HOSTILE) >= 60


FILES = LOSSLESS | {"flax": "m.msgpack", "stablehlo": "m.stablehlo"}


@pytest.mark.parametrize("name", [*LOSSLESS, "flax"])
def test_weights_that_are_not_finite_are_refused_in_every_format(name, tmp_path):
    variables = variables_of(GRU(4))
    of_layer = variables["params"]["l0"]
    of_layer["b_hh"] = jnp.zeros(12, jnp.float32)  # Flax's sum of the biases then loses nothing
    for value, found in ((jnp.nan, "NaN"), (-jnp.inf, "Inf")):
        of_layer["w_hh"] = of_layer["w_hh"].at[2, 5].set(value)
        with refused("l0/w_hh", "finite", found):  # grujax's own format refuses to write them
            save(tmp_path / FILES[name], GRU(4), variables, name)
            load(tmp_path / FILES[name], name)


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory):
    """The bytes of one model's file in every format."""
    folder, variables = tmp_path_factory.mktemp("each"), variables_of(GRU(4))
    variables["params"]["l0"]["b_hh"] = jnp.zeros(12, jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for name, file in FILES.items():
            save(folder / file, GRU(4), variables, name)
    return {name: (folder / file).read_bytes() for name, file in FILES.items()}


@pytest.mark.parametrize("claimed", FORMATS)
def test_a_file_that_is_renamed_is_refused_in_one_line(claimed, one_of_each, tmp_path):
    for name in FORMATS:
        path = tmp_path / FILES[claimed]
        path.write_bytes(one_of_each[name])
        if name == claimed and name != "stablehlo":
            assert load(path, claimed)[0].hidden_size == 4
            continue
        with pytest.raises(InputError) as error:
            load(path, claimed)
        assert path.name in str(error.value) and "\n" not in str(error.value), (name, claimed, str(error.value))


def test_a_file_of_grujax_is_not_read_in_torch_keys_nor_the_other_way_round(tmp_path):
    save(tmp_path / "own.safetensors", MODEL, variables_of(MODEL))
    with refused("metadata key 'grujax'", "grujax.load"):
        load(tmp_path / "own.safetensors", "safetensors")
    save(tmp_path / "t.safetensors", MODEL, variables_of(MODEL), "safetensors")
    with refused("metadata key 'grujax'", "interop.load"):
        grujax.load(tmp_path / "t.safetensors")


def test_what_is_no_file_or_no_format(tmp_path):
    with refused("path", "none at", "absent.pt"):
        load(tmp_path / "absent.pt")
    with refused("path", "none at"):
        load(tmp_path, "torch")
    with refused("path", ".pt", "model.tar", "name the format"):
        load(tmp_path / "model.tar")
    with refused("format", "one of", "'pytorch'"):
        save(tmp_path / "m.pt", MODEL, variables_of(MODEL), "pytorch")
    with refused("weights", "StableHLO program"):
        save(tmp_path / "m.stablehlo", MODEL, variables_of(MODEL))
        load(tmp_path / "m.stablehlo")


@pytest.mark.parametrize("name", ["torch", "safetensors", "stablehlo"])
def test_a_full_disk_leaves_the_earlier_file_whole(name, tmp_path, monkeypatch):
    path = tmp_path / "m"
    save(path, MODEL, variables_of(MODEL), name)
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, MODEL, variables_of(MODEL, 1), name)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [of for of in FORMATS if of != "flax"])
def test_a_disk_that_fills_up_as_it_is_written_is_an_error_of_the_system(name, tmp_path):
    """Whichever library writes, the error is an OSError, and the process continues."""
    resource = pytest.importorskip("resource", reason="the system has no limits on the size of files")
    path, (_, most) = tmp_path / "m", resource.getrlimit(resource.RLIMIT_FSIZE)
    save(path, MODEL, variables_of(MODEL), name)
    before = path.read_bytes()
    for size in (0, len(before) // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        try:
            with pytest.raises(OSError, match="File too large"):
                save(path, MODEL, variables_of(MODEL, 1), name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_conversion_that_computes_otherwise_is_not_written(tmp_path, monkeypatch):
    from grujax.interop import torch_keys

    right = torch_keys.DIALECTS["torch"]
    monkeypatch.setitem(torch_keys.DIALECTS, "torch", right._replace(gates="zrn"))
    with refused("the same outputs from both sides"):
        save(tmp_path / "m.pt", MODEL, variables_of(MODEL), verify=True)
    assert not list(tmp_path.iterdir())
