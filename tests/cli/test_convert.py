"""The commands convert and export: what they print, write and refuse."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import QUICK, run, toy
from drawn import drawn

from grujax import GRU, GRUModel, cli, save
from grujax.cli.convert import EXPORTS
from grujax.interop import FORMATS
from grujax.interop import load as load_any
from grujax.saving import read
from grujax.saving.model_file import MODEL_FILE
from grujax.testing import assert_close

torch = pytest.importorskip("torch", reason="torch is not installed")
os.environ.setdefault("KERAS_BACKEND", "jax")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def saved_model(path, **fields):
    model = GRUModel(4, 2, **fields)
    variables = drawn(model, np.ones((1, 1, 3), np.float32))
    save(path, model, variables)
    return model, variables


def test_convert_turns_a_torch_file_into_another_and_says_how_far_both_are_apart(tmp_path, capsys):
    module = torch.nn.GRU(3, 4, bidirectional=True)
    torch.save(module.state_dict(), "gru.pt")
    code, out, err = run(capsys, "convert", "gru.pt", "gru.onnx")
    assert (code, err) == (0, "")
    assert "saved gru.onnx (onnx), from gru.pt (torch)" in out and "largest difference " in out
    assert float(out.split("largest difference ")[1].split()[0]) < 1e-6
    assert run(capsys, "convert", "gru.onnx", "back.pth")[0] == 0
    again = torch.load("back.pth", weights_only=True)
    assert all(torch.equal(again[key], tensor) for key, tensor in module.state_dict().items())
    code, out, _ = run(capsys, "convert", "gru.pt", "keys.bin", "--to", "safetensors")
    assert code == 0 and "(safetensors)" in out
    assert run(capsys, "convert", "keys.bin", "own.safetensors", "--from", "safetensors")[0] == 0
    assert load_any("own.safetensors", "grujax")[0] == load_any("gru.pt")[0]


def test_convert_and_export_replace_a_file_only_where_told(tmp_path, capsys):
    saved_model("m.safetensors", pooling="last")
    there = tmp_path / "there.pt"
    export = ["export", "m.safetensors", "--to", "torch", "--output", "there.pt"]
    for command in (["convert", "m.safetensors", "there.pt"], export):
        there.write_bytes(b"earlier")
        code, _, err = run(capsys, *command)
        assert code == 2 and "a file that does not exist yet" in err and "--overwrite" in err
        assert there.read_bytes() == b"earlier"
        code, _, err = run(capsys, *command, "--overwrite")
        assert code == 0 and there.read_bytes() != b"earlier", err


def test_convert_says_what_is_left_behind(capsys):
    torch.save(torch.nn.GRU(3, 4).state_dict(), "gru.pt")
    code, out, _ = run(capsys, "convert", "gru.pt", "gru.msgpack")
    assert code == 0 and "left behind: " in out and "b_ih and b_hh are stored as their sum" in out


def test_find_cuts_no_name(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "generator." * 12 + "gru"
    torch.save({f"{name}.{key}": a for key, a in torch.nn.GRU(3, 4).state_dict().items()}, "net.pt")
    _, out, _ = run(capsys, "find", "net.pt")
    lines = [line.split("│")[1].strip() for line in out.splitlines() if "│" in line]
    assert len(lines) > 1 and "".join(lines) == name


def test_find_lists_the_grus_and_convert_takes_one_out(capsys):
    module = torch.nn.ModuleDict({"front": torch.nn.Linear(3, 3), "rnn": torch.nn.GRU(3, 4, 2, bidirectional=True)})
    module["last"] = torch.nn.GRUCell(8, 5)
    torch.save({"epoch": 1, "model": module.state_dict()}, "net.ckpt")
    code, out, err = run(capsys, "find", "net.ckpt")
    assert (code, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert rows == [
        ["rnn", "3", "4", "2", "2", "after", "state dict"],
        ["last", "8", "5", "1", "1", "after", "state dict"],
    ]
    code, _, err = run(capsys, "convert", "net.ckpt", "gru.onnx")
    assert code == 2 and "interop.find" in err and err.count("\n") == 1
    assert run(capsys, "convert", "net.ckpt", "gru.onnx", "--prefix", "rnn")[0] == 0
    assert load_any("gru.onnx")[0] == GRU(4, num_layers=2, bidirectional=True)
    code, _, err = run(capsys, "convert", "net.ckpt", "x.onnx", "--prefix", "front")
    assert code == 2 and "['rnn', 'last']" in err
    torch.save(torch.nn.LSTM(3, 4).state_dict(), "lstm.pt")
    assert run(capsys, "find", "lstm.pt")[:2] == (0, "no GRU in lstm.pt\n")
    assert run(capsys, "find", "absent.pt")[0] == 2


@pytest.mark.parametrize("pooling", [None, "last", "mean", "none"])
def test_what_a_state_dict_does_not_tell_is_an_option_and_announced(pooling, capsys):
    module = torch.nn.ModuleDict({"rnn": torch.nn.GRU(3, 4), "fc": torch.nn.Linear(4, 2)})
    torch.save(module.state_dict(), "net.pt")
    options = [] if pooling is None else ["--pooling", pooling]
    code, out, _ = run(capsys, "convert", "net.pt", "net.safetensors", *options)
    assert code == 0 and ("read as: Linear on the last state" in out) == (pooling is None)
    expected = {None: "last", "none": None}.get(pooling, pooling)
    assert load_any("net.safetensors")[0].pooling == expected
    if pooling == "mean":
        code, _, err = run(capsys, "convert", "net.safetensors", "again.onnx", *options)
        assert code == 2 and "grujax files contain it" in err


REFUSED = {
    "no such file": (["absent.pt", "out.onnx"], ["absent.pt"]),
    "no such ending": (["gru.pt", "out.tar"], ["out.tar", ".onnx", "name the format"]),
    "no such format": (["gru.pt", "out.onnx", "--to", "tar"], ["format", "'tar'"]),
    "no such folder": (["gru.pt", "absent/out.onnx"], ["absent"]),
    "an lstm": (["lstm.pt", "out.onnx"], ["weight_hh_l0", "LSTM", "lstm.pt"]),
    "renamed": (["renamed.onnx", "out.pt"], ["renamed.onnx"]),
    "another reset mode": (["before.safetensors", "out.pt"], ["reset_after", "cannot be converted"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_convert_refuses_in_one_line_and_writes_nothing(name, tmp_path, capsys):
    arguments, parts = REFUSED[name]
    torch.save(torch.nn.GRU(3, 4).state_dict(), "gru.pt")
    torch.save(torch.nn.LSTM(3, 4).state_dict(), "lstm.pt")
    torch.save(torch.nn.GRU(3, 4).state_dict(), "renamed.onnx")
    saved_model("before.safetensors", reset_after=False)
    before = sorted(os.listdir())
    code, out, err = run(capsys, "convert", *arguments)
    assert (code, out) == (2, "") and err.startswith("grujax: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert sorted(os.listdir()) == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training run whose model can be exported to every format."""
    folder = tmp_path_factory.mktemp("trained")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        source = toy(folder / "toy.npz")
        arguments = ["train", source, "--output", str(folder / "run"), "--pooling", "last", "--quiet", *QUICK]
        assert cli.main(arguments) == 0
    return folder / "run"


WRONG = {"labels": 3, "channels": "2", "gap": "2", "training": [1], "training ": {"quantiles": "ab"}, "fill": {"a": 1}}
WRONG |= {"labels ": ["a"], " labels": []}  # too few labels


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("key", WRONG)
def test_metadata_of_a_stranger_are_refused_in_a_line(command, key, trained, tmp_path, capsys):
    saved = read(trained / MODEL_FILE)
    save(tmp_path / "m.safetensors", saved.model, saved.variables, metadata=saved.metadata | {key.strip(): WRONG[key]})
    assert cli.main([command, "m.safetensors", toy("toy.npz")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert key.strip() in line and "Traceback" not in line


@pytest.mark.parametrize("to", EXPORTS)
def test_export_a_trained_model(to, trained, tmp_path, capsys):
    target = tmp_path / EXPORTS[to]
    code, out, err = run(capsys, "export", str(trained), "--to", to, "--output", str(target))
    assert (code, err) == (0, "")
    assert f"saved {target} ({to})" in out and "loaded again and compared with grujax" in out
    assert ("folded into the weights" in out) == (not FORMATS[to].keeps_statistics)
    assert ("program.call" in out) == (to == "stablehlo")
    if to != "stablehlo":  # not a model file: its loader has its own test
        saved, (model, variables) = read(trained / MODEL_FILE), load_any(target, to)
        x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32) * 2 + 1
        assert "statistics" in saved.variables and np.ptp(saved.variables["statistics"]["input_mean"]) > 0
        expected = saved.model.apply(saved.variables, jnp.asarray(x), lengths=jnp.array([5, 2, 1]))
        assert_close(model.apply(variables, jnp.asarray(x), lengths=jnp.array([5, 2, 1])), expected, "gradient")


def test_an_exported_graph_names_its_classes_and_gives_probabilities_where_asked(trained, capsys):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    code, _, err = run(capsys, "export", str(trained), "--to", "onnx", "--output", "p.onnx", "--probabilities")
    assert (code, err) == (0, "")
    labels = next(p.value for p in onnx.load("p.onnx").metadata_props if p.key == "labels")
    assert json.loads(labels) == list(read(trained / MODEL_FILE).metadata["labels"])
    model, variables = load_any("p.onnx")
    y = model.apply(variables, jnp.ones((3, 4, 2), jnp.float32))
    assert model.output_activation == "softmax"
    assert_close(y.sum(-1), np.ones(3))
    code, _, err = run(capsys, "export", str(trained), "--to", "torch", "--output", "p.pt", "--probabilities")
    assert code == 2 and "output_activation" in err and not os.path.exists("p.pt")


def test_export_writes_beside_the_model_and_leaves_the_model_itself_alone(trained, capsys):
    before = (trained / MODEL_FILE).read_bytes()
    assert run(capsys, "export", str(trained), "--to", "safetensors")[0] == 0
    assert (trained / "model-torch.safetensors").is_file() and (trained / MODEL_FILE).read_bytes() == before


def test_export_refuses_what_the_other_side_cannot_hold(capsys):
    saved_model("m.safetensors", pooling="max")
    code, _, err = run(capsys, "export", "m.safetensors", "--to", "torch")
    assert code == 2 and "pooling" in err and "'max'" in err and not os.path.exists("model.pt")
    code, _, err = run(capsys, "export", "absent", "--to", "onnx")
    assert code == 2 and "absent" in err


def test_the_printed_loader_runs_as_it_is(trained, tmp_path, capsys):
    _, out, _ = run(capsys, "export", str(trained), "--to", "stablehlo", "--output", "here.stablehlo")
    loader = out[out.index("import jax") :]
    model = read(trained / MODEL_FILE).model
    given = f"""
import numpy as np
x, h0 = np.ones((3, 4, 2), np.float32), np.zeros(({model.num_directions}, 3, 8), np.float32)
lengths = np.full(3, 4, np.int32)
"""
    shown = subprocess.run(
        [sys.executable, "-c", given + loader + "\nprint(y.shape)"], capture_output=True, text=True, timeout=120
    )
    assert shown.stdout == "(3, 2)\n", shown.stderr
