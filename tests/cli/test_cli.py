"""The command line as a user sees it: what it prints and writes, and how it answers bad input."""

import csv
import dataclasses
import functools
import json
import os
import re
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import QUICK, run, toy
from drawn import drawn

from grujax import GRUModel, cli
from grujax.bench import chart, measure
from grujax.bench import report as reports
from grujax.bench.cases import Case
from grujax.bench.peers import peer as peer_module
from grujax.cli import doctor
from grujax.cli.run_folder import finished
from grujax.kernels import explain
from grujax.saving import save
from grujax.training import Epoch

LEARNING = [*QUICK, "--epochs", "20", "--learning-rate", "0.02"]


pytestmark = pytest.mark.usefixtures("own_folder")


def test_train_evaluate_predict(tmp_path, capsys):
    source, test = toy("toy.npz"), toy("new.npz", seed=1, count=20)
    code, out, err = run(capsys, "train", source, "--test", test, "--output", "out", *LEARNING)
    assert code == 0 and err == ""
    accuracy = next(line for line in out.splitlines() if line.startswith("test accuracy"))
    assert "% (95% interval " in accuracy and "majority class" in out and "nearest neighbour" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "metrics.jsonl", "curves.png", "confusion.png", "settings.json", "checkpoints",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line.get("epoch") for line in lines] == [*range(1, 21), None]
    assert set(lines[0]) == set(Epoch._fields)
    assert lines[-1]["test"]["accuracy"] > 0.8
    assert f"grujax evaluate {os.path.join('out', 'model.safetensors')} {test}\n" in out  # not the training rows
    assert f"test accuracy {100 * lines[-1]['test']['accuracy']:.2f}%" in accuracy

    code, out, _ = run(capsys, "evaluate", "out", test)
    assert (
        code == 0 and accuracy.replace("test", "new.npz", 1) in out
    )  # the model file gives the figure that training printed

    code, out, _ = run(capsys, "predict", "out/model.safetensors", test, "--output", "p.csv")
    assert code == 0 and "saved 20 predictions in p.csv" in out
    again = ["predict", "out", test, "--output", "p.csv"]
    assert (run(capsys, *again)[0], run(capsys, *again, "--overwrite")[0]) == (2, 0)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    right = np.mean([row["label"] == ("up", "down")[int(row["row"]) % 2] for row in rows])
    assert len(rows) == 20 and right == pytest.approx(lines[-1]["test"]["accuracy"])
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    assert run(capsys, "predict", "out", test)[1] == (tmp_path / "p.csv").read_text()

    code, out, _ = run(capsys, "evaluate", "out", toy("turned.npz", seed=1, count=20, labels=("down", "up")))
    confused = [line for line in out.splitlines() if line.startswith("confused: ")]
    assert code == 0 and {line.split(",")[0] for line in confused} >= {"confused: up predicted as down"}
    assert len(confused) <= 2 and all(line.endswith(" of 10") for line in confused)


@pytest.mark.usefixtures("no_pictures")
def test_regression(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = rng.uniform(500, 600, 80)
    np.savez("r.npz", X=y[:, None, None] + rng.normal(size=(80, 5, 1)), y=y)
    code, out, _ = run(capsys, "train", "r.npz", "--output", "out", *QUICK, "--epochs", "40", "--learning-rate", "0.02")
    assert code == 0 and "test RMSE" in out and "mean target" in out
    code, out, _ = run(capsys, "predict", "out", "r.npz")
    values = [float(line.split(",")[1]) for line in out.splitlines()[1:]]
    assert np.corrcoef(values, y)[0, 1] > 0.9
    np.savez("two.npz", X=y[:, None, None] + rng.normal(size=(80, 5, 1)), y=np.stack([y, -y], 1))
    model, statistics = (
        GRUModel(4, 2),
        {"input_mean": [0], "input_std": [1], "output_mean": [0, 0], "output_std": [1, 1]},
    )
    variables = drawn(model, np.ones((1, 1, 1), np.float32))
    variables |= {"statistics": {key: np.float32(a) for key, a in statistics.items()}}
    save("two.safetensors", model, variables, {"labels": None, "channels": 1})
    code, out, _ = run(capsys, "predict", "two.safetensors", "two.npz")
    assert code == 0 and out.splitlines()[0] == "row,value 0,value 1" and len(out.splitlines()[1].split(",")) == 3
    code, _, err = run(capsys, "evaluate", "two.safetensors", "r.npz")
    assert code == 2 and "y: expected 2 targets for each row, as the model has" in err


@pytest.mark.usefixtures("no_pictures")
def test_equal_quiet_runs_write_the_same_model_into_fresh_folders(tmp_path, capsys):
    """With a data set that comes with aeon. Only the result is printed."""
    for _ in range(2):
        code, out, _ = run(capsys, "train", "BasicMotions", *QUICK, "--quiet")
        assert code == 0 and out.startswith("test accuracy") and len(out.splitlines()) == 1
    one, other = (tmp_path / f"runs/BasicMotions-{k}/model.safetensors" for k in (1, 2))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("no_pictures")
def test_resume_takes_the_settings_of_the_run_and_no_others(tmp_path, capsys):
    source = toy("toy.npz")
    assert run(capsys, "train", source, "--test", toy("new.npz", seed=1), "--output", "out", *QUICK)[0] == 0
    model = (tmp_path / "out/model.safetensors").read_bytes()
    lines = (tmp_path / "out/metrics.jsonl").read_text()
    (tmp_path / "out/model.safetensors").unlink()
    code, out, err = run(capsys, "train", "--resume", "out")
    assert code == 0 and "epoch 3/3" in out and err == "" and "already finished: nothing is left to train" in out
    assert (tmp_path / "out/model.safetensors").read_bytes() == model
    *epochs, last = map(json.loads, (tmp_path / "out/metrics.jsonl").read_text().splitlines())
    *before, end = map(json.loads, lines.splitlines())
    assert epochs == before and last["test"] == end["test"] and last["compile_seconds"] > 0
    for option in (["--epochs", "9"], ["--output", "new"], ["--test", source], [source]):
        code, _, err = run(capsys, "train", "--resume", "out", *option)
        assert code == 2 and "expected nothing beside --resume" in err and option[-1] in err


@pytest.mark.parametrize("text", [None, "", '{"number": 1, "test": 2}\n', "\xff", '{"test": {}}\n{"number": 1}'])
def test_a_run_whose_metrics_do_not_end_with_the_test_split_is_not_finished(text, tmp_path):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text, encoding="latin-1")
    assert not finished(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("given, expected", [(None, "jax"), ("torch", "torch")])
def test_a_command_runs_keras_on_jax_unless_the_user_says_otherwise(given, expected, monkeypatch):
    monkeypatch.setenv("GRUJAX_COMPILED", "off")
    monkeypatch.setenv("KERAS_BACKEND", given or "")
    if given is None:
        monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setattr(sys, "argv", ["grujax", "--version"])
    assert cli.main() == 0 and os.environ["KERAS_BACKEND"] == expected


SETTINGS = {
    "no folder": (None, "expected the folder of a run, with its settings.json, found no settings.json in none"),
    "no JSON": ("{", "expected settings of this version of grujax"),
    "another version's": (
        '{"data": "a", "test": null, "training": {"units": 3}}',
        "unexpected keyword argument 'units'",
    ),
    "a list": ("[]", "expected settings of this version of grujax"),
    "a key too many": ('{"data": "a", "test": null, "training": {}, "more": 1}', "unexpected keyword argument 'more'"),
    "a number for a name": ('{"data": 1, "test": null, "training": {}}', "data: expected a name or a file, found 1"),
    "a number for a file": ('{"data": "a", "test": 1, "training": {}}', "test: expected a name or a file, found 1"),
    "a wrong value": ('{"data": "a", "test": null, "training": {"epochs": "x"}}', "expected settings of this version"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_resumed_are_refused(name, tmp_path, capsys):
    text, says = SETTINGS[name]
    if text is not None:
        (tmp_path / "none").mkdir()
        (tmp_path / "none/settings.json").write_text(text)
    code, _, err = run(capsys, "train", "--resume", "none")
    assert code == 2 and says in err and len(err.splitlines()) == 1, err


@pytest.mark.usefixtures("no_pictures")
def test_a_baseline_that_wins_is_named_and_the_choices_are_printed(capsys):
    x = np.random.default_rng(0).normal(size=(24, 60, 1))
    np.savez("same.npz", X=x, y=np.arange(24) % 3)  # the label can only be known from having seen the row
    code, out, _ = run(capsys, "train", "same.npz", "--test", "same.npz", "--hidden-size", "2", "--epochs", "1")
    assert code == 0 and "the nearest neighbour, which needs no training, is better on this split." in out
    assert "chosen: 2 steps per frame: 30 frames, because 60 steps are more than 50\n" in out
    assert "chosen: all 24 rows are trained on and the last weights kept: a tenth, 2 rows, is too few" in out
    assert out.count("chosen: ") == 2
    sizes = ["--hidden-size", "8", "--batch-size", "48", "--buckets", "1"]
    options = [*sizes, "--patience", "1", "--learning-rate", "0.2"]
    code, out, _ = run(capsys, "train", toy("toy.npz", count=320), "--test", "toy.npz", *options)
    assert code == 0 and "chosen: 200 epochs: 100 would be 600 steps, fewer than 1200\n" in out
    assert "nearest neighbour │" in out and "is better" not in out


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"grujax {version('grujax')}\n", "")


def test_doctor(capsys, monkeypatch):
    def without_torch(name):
        if name == "torch":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without_torch)
    code, out, _ = run(capsys, "doctor")
    assert (
        code == 0
        and jax.__version__ in out
        and explain().implementation in out
        and "cpu" in out
        and "cpu cpu" not in out
    )
    assert "pip install 'grujax[torch]'" in out
    found = dict(re.findall(r"^│ (\S+) +│ (\S+)", out, re.MULTILINE))
    assert found["matplotlib"] == version("matplotlib") and found["scikit-learn"] == version("scikit-learn")


@pytest.mark.parametrize(
    "status, says",
    [
        (("avx2", ""), "avx2, up to 3 threads"),
        ((None, "no C++ compiler"), "no C++ compiler. To build it: python -m grujax.kernels.native.build"),
    ],
)
def test_doctor_on_the_native_kernel(capsys, monkeypatch, status, says):
    monkeypatch.setattr(doctor, "status", lambda: status)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
    line = next(line for line in run(capsys, "doctor")[1].splitlines() if "native kernel" in line)
    assert says in line


def nan(path):
    x = np.zeros((40, 6, 2))
    x[7, 3, 1] = np.nan
    return toy(path, X=x, lengths=np.full(40, 6))


BAD = {
    "unknown data set": (lambda: ["train", "JapaneseVowel"], ["source:", "'JapaneseVowel'", "Nearest: JapaneseVowels"]),
    "missing file": (lambda: ["train", "none.npz"], ["none.npz"]),
    "missing test file": (lambda: ["train", toy("t.npz"), "--test", "none.npz"], ["none.npz"]),
    "truncated npz": (lambda: ["train", cut(toy("t.npz"))], ["t.npz"]),
    "foreign npz": (lambda: ["train", written("t.npz", b"not a zip")], ["t.npz"]),
    "empty file": (lambda: ["train", written("t.ts", b"")], ["t.ts"]),
    "another ending": (lambda: ["train", written("t.xlsx", b"1,2")], [".ts"]),
    "nan": (lambda: ["train", nan("t.npz")], ["row 7", "channel 1"]),
    "lengths past T": (lambda: ["train", toy("t.npz", lengths=np.full(40, 7))], ["lengths:", "7"]),
    "negative lengths": (lambda: ["train", toy("t.npz", lengths=np.full(40, -1))], ["lengths:", "-1"]),
    "fractional lengths": (lambda: ["train", toy("t.npz", lengths=np.full(40, 2.5))], ["lengths:", "2.5"]),
    "one class": (lambda: ["train", toy("t.npz", labels=("up",))], ["two classes"]),
    "labels unseen in training": (
        lambda: ["train", toy("t.npz"), "--test", toy("u.npz", labels=("up", "left"))],
        ["'left'"],
    ),
    "output in a file": (
        lambda: ["train", toy("t.npz"), "--output", "t.npz/x"],
        ["--output: expected a folder that can"],
    ),
    "more memory than there is": (
        lambda: ["train", toy("t.npz"), "--quiet", "--hidden-size", "1000000", "--checkpoint-period", "0"],
        ["memory: expected enough for the model", "Lower --batch-size"],
    ),
    "weights that never move": (
        lambda: ["train", toy("t.npz"), *QUICK, "--accumulate", "7"],
        ["accumulate: expected at most 6, found 7", "the run has 6 steps"],
    ),
    "period": (lambda: ["train", toy("t.npz"), "--checkpoint-period", "-1"], ["checkpoint_period: expected 0 or more"]),
    "all held out": (
        lambda: ["train", toy("t.npz"), "--validation", "0.99"],
        ["data: expected at least 2 sequences", "Hold out less"],
    ),
    "targets that are one": (
        lambda: ["train", toy("t.npz", y=np.full(40, 2.5))],
        ["y: expected targets that differ, found 2.5 alone in t.npz"],
    ),
    "no labels": (
        lambda: ["train", (np.save("x.npy", np.ones((4, 3, 2))), "x.npy")[1]],
        ["y: expected", "Add them as"],
    ),
    "output exists": (lambda: ["train", toy("t.npz"), "--output", "."], ["--output:", "does not exist yet"]),
    "output below a file": (lambda: ["train", toy("t.npz"), "--output", "t.npz/out"], ["t.npz"]),
    "a dropout of one": (
        lambda: ["train", toy("t.npz"), "--dropout", "1"],
        ["grujax: dropout: expected from 0 to below 1"],
    ),
    "no model": (lambda: ["evaluate", "none", toy("t.npz")], ["no file at none"]),
    "model is no model": (lambda: ["evaluate", toy("t.npz"), "t.npz"], ["safetensors"]),
    "missing data to predict": (lambda: ["predict", trained(), "none.npz"], ["none.npz"]),
    "wrong channels": (lambda: ["predict", trained(), toy("w.npz", channels=3)], ["channels: expected 2, found 3"]),
    "unseen labels": (lambda: ["evaluate", trained(), toy("w.npz", labels=("up", "left"))], ["'left'"]),
    "predictions that exist": (
        lambda: ["predict", trained(), toy("w.npz"), "--output", written("p.csv", b"earlier")],
        ["--output: expected a file that does not exist yet", "--overwrite"],
    ),
    "predictions into a folder": (
        lambda: ["predict", trained(), toy("w.npz"), "--output", ".", "--overwrite"],
        ["--output: expected a file,"],
    ),
    "no such command": (lambda: ["trian"], ["'trian'", "Did you mean train?", "Commands: train, evaluate, predict"]),
    "cannot write": (lambda: ["predict", trained(), toy("w.npz"), "--output", "none/p.csv"], ["none"]),
}


def cut(path):
    with open(path, "rb+") as file:
        file.truncate(200)
    return path


def written(path, content):
    with open(path, "wb") as file:
        file.write(content)
    return path


@functools.cache
def model_file():
    """Returns the bytes of a model file after one epoch of training."""
    with tempfile.TemporaryDirectory() as folder:
        data, output = toy(f"{folder}/toy.npz"), f"{folder}/trained"
        assert cli.main(["train", data, "--output", output, "--quiet", *QUICK, "--epochs", "1"]) == 0
        return Path(output, "model.safetensors").read_bytes()


def trained():
    return written("trained.safetensors", model_file())


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("no_pictures")
def test_bad_input_gets_one_or_two_lines_and_exit_code_2(name, tmp_path, capsys):
    arguments, parts = BAD[name]
    arguments = arguments()
    before = set(tmp_path.rglob("*"))
    capsys.readouterr()
    boxed = False
    try:
        code, _, err = run(capsys, *arguments)
    except SystemExit as exit:  # tyro shows a usage error in a box
        code, err, boxed = exit.code, capsys.readouterr().err, True
    assert code == 2 and "Traceback" not in err
    assert all(part in err for part in parts), err
    assert boxed or len(err.splitlines()) <= 2
    assert set(tmp_path.rglob("*")) == before  # no file is left half-written


@pytest.mark.usefixtures("no_pictures")
def test_a_test_file_that_is_trained_on_is_a_warning(capsys):
    code, _, err = run(capsys, "train", toy("toy.npz"), "--test", "./toy.npz", *QUICK, "--quiet", "--epochs", "1")
    assert code == 0 and err == "grujax: warning: the test file toy.npz is the one that is trained on\n"


def test_each_word_of_jax_for_no_memory_is_understood(capsys, monkeypatch):
    for said in ("INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes.", "RESOURCE_EXHAUSTED: 9"):
        monkeypatch.setattr("grujax.cli.commands.run", lambda *_, said=said: (_ for _ in ()).throw(RuntimeError(said)))
        code, _, err = run(capsys, "doctor")
        assert code == 2 and f"memory: expected enough for the model and a batch, found: {said}" in err


def test_an_error_that_is_none_of_memory_is_not_called_one(monkeypatch):
    monkeypatch.setattr("grujax.cli.commands.run", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["doctor"])


def test_a_usage_error_exits_with_2(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["train", "--epochs", "many"])
    assert error.value.code == 2


def no_space(fd):
    raise OSError(28, "No space left on device")


def test_a_full_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "fsync", no_space)
    code, _, err = run(capsys, "train", toy("toy.npz"), "--output", "out", "--quiet", *QUICK)
    assert code == 2 and err.splitlines()[-1].startswith("grujax: No space left on device")
    assert not (tmp_path / "out").exists()  # refused before training


def test_a_full_disk_leaves_the_earlier_predictions(tmp_path, capsys, monkeypatch):
    model, source = trained(), toy("w.npz")
    (tmp_path / "p.csv").write_text("earlier")

    monkeypatch.setattr(os, "fsync", no_space)
    before = set(tmp_path.rglob("*"))
    code, _, err = run(capsys, "predict", model, source, "--output", "p.csv", "--overwrite")
    assert code == 2 and "No space left on device" in err
    assert (tmp_path / "p.csv").read_text() == "earlier" and set(tmp_path.rglob("*")) == before


TINY = ["--shapes", "tiny", "--peers", "grujax", "--repeats", "1", "--seconds", "0"]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(measure.CASES, "tiny", Case("tiny", 3, 5, 4, 6))


def test_bench_prints_the_table_draws_the_chart_and_saves_the_report(tmp_path, capsys, tiny):
    code, out, err = run(capsys, "bench", *TINY, "--json", "r.json")
    assert code == 0 and err == ""
    for part in (
        "forward: median ms",
        "forward + backward: median ms",
        "tiny",
        "drawn grujax-bench.png",
        "saved r.json",
    ):
        assert part in out
    report = reports.read_report(tmp_path / "r.json")
    assert {len(r.times_ms) for r in report.results} == {1}
    assert all(report.median("tiny", "grujax", kind) for kind in reports.PASSES) and out.count(" 1.00x") >= 2
    assert (tmp_path / "grujax-bench.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in tmp_path.iterdir()} == {"grujax-bench.png", "r.json"}


def test_bench_says_what_is_not_installed_and_measures_grujax_alone(tmp_path, capsys, tiny, monkeypatch):
    monkeypatch.setattr(peer_module, "find_spec", lambda name: None)
    code, out, _ = run(capsys, "bench", *TINY[:4], "torch", *TINY[4:], "--chart", "None")
    assert code == 0 and "not installed" in out and "1.00x" in out and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("peer, expected", [("grujax", 1), ("grujax-before", 1), ("torch", 0)])
def test_bench_fails_where_grujax_is_unequal(peer, expected, capsys, tiny, monkeypatch):
    result = reports.Result("tiny", peer, "forward", "unequal: hs is 2 times the tolerance away")
    monkeypatch.setattr(
        measure, "measure", lambda *arguments: [result, dataclasses.replace(result, kind=reports.BACKWARD)]
    )
    code, out, _ = run(capsys, "bench", *TINY, "--chart", "None")
    assert code == expected and "unequal" in out


BAD_BENCH = {
    "no matplotlib": (["--chart", "c.png"], ["grujax[plot]", "--chart None"]),
    "no folder for the chart": (["--chart", "none/c.png"], ["--chart:", "none/c.png"]),
    "no folder for the report": (["--json", "none/r.json"], ["--json:", "none/r.json"]),
    "a chart of another kind": (["--chart", "c.pdf"], [".png"]),
    "a chart relative to what is not measured": (["--peers", "torch"], ["a list that contains grujax"]),
    "no such shape": (["--shapes", "nope"], ["shapes:", "nope"]),
}


@pytest.mark.parametrize("name", BAD_BENCH)
def test_bench_refuses_before_it_measures(name, tmp_path, capsys, monkeypatch):
    def measured(*arguments):
        raise AssertionError("measured first")

    monkeypatch.setattr(measure, "measure", measured)
    if name == "no matplotlib":
        monkeypatch.setattr(chart, "find_spec", lambda name: None)
    arguments, parts = BAD_BENCH[name]
    code, _, err = run(capsys, "bench", *arguments)
    assert code == 2 and all(part in err for part in parts), err
    assert list(tmp_path.iterdir()) == []


def test_a_chart_that_cannot_be_written_costs_neither_the_table_nor_the_report(tmp_path, capsys, tiny, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    code, out, err = run(capsys, "bench", *TINY, "--json", "r.json")
    assert code == 2 and "No space left on device" in err and "1.00x" in out
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
