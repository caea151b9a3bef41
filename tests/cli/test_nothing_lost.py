"""Attacks on a training run: whatever happens after its first epoch, it leaves a whole model and no temporary file."""

import contextlib
import csv
import dataclasses
import io
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import PLAIN, PROGRAM, QUICK, run, toy
from drawn import drawn
from numerics import of_a_user

from grujax import GRUModel, InputError, cli, save
from grujax.cli import evaluate, run_folder, signals, streams, train
from grujax.data import load
from grujax.saving import read
from grujax.saving.checkpoints import Checkpoints
from grujax.training import Fitted, TrainConfig, fit, outputs_of, score

LABELS = ("hinauf – ↑", '上, "ж"\n')
CONFIG = TrainConfig(epochs=2, hidden_size=8, batch_size=16, buckets=1)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers with floats
        yield


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """One real training: its data, the arguments of the callbacks, and what `fit` returned."""
    calls = {"compiled": [], "epoch": [], "best": []}
    with of_a_user():
        data = load(toy(tmp_path_factory.mktemp("data") / "toy.npz", labels=LABELS))
        callbacks = {f"on_{name}": found.append for name, found in calls.items()}
        return data, calls, fit(CONFIG, data, evaluate_test=False, **callbacks)


@pytest.fixture
def fitted(training):
    """The result of one real training. Most attacks come before or after training, and reuse it."""
    return training[2]


@pytest.fixture
def trains_at_once(monkeypatch, fitted):
    """`grujax train` without training: `fit` passes the model to its callbacks, runs `attack` and returns the model."""

    def prepare(attack=lambda on_best: None, draws=False):
        def at_once(config, data, *, on_epoch, on_best, **_):
            on_best(fitted)
            on_epoch(fitted.best)
            attack(on_best)
            return fitted

        monkeypatch.setattr(train, "fit", at_once)
        monkeypatch.setattr(run_folder.Settings, "write", lambda *_: None)  # the attacks come later
        if not draws:
            monkeypatch.setattr(train, "_draw", lambda *_: [])

    return prepare


def test_fit_hands_over_every_shape_and_every_best_epoch_and_leaves_the_test_split_alone(training):
    data, calls, fitted = training
    assert [len(compiled.seconds) for compiled in calls["compiled"]] == [0, 1]
    assert all(compiled.shapes == fitted.compiled.shapes for compiled in calls["compiled"])
    assert [best.best for best in calls["best"]] == [epoch for epoch in calls["epoch"] if epoch.best]
    assert calls["best"][-1].variables["params"] is fitted.variables["params"]
    assert fitted.test is None and not fitted.interrupted
    expected = score(outputs_of(fitted.model, fitted.variables, data.test), data.test, fitted.variables)
    assert fitted.scores(data.test).loss == pytest.approx(expected.loss, rel=1e-5)


def train_it(capsys, *options):
    return run(capsys, "train", toy("toy.npz", labels=LABELS), "--output", "out", *QUICK, *options)


def assert_whole(folder="out", fitted=None):
    """Asserts that the model loads and is the trained one, and that no temporary file is left."""
    saved = read(f"{folder}/model.safetensors")
    assert saved.metadata["labels"] == sorted(LABELS) and saved.metadata["channels"] == 2
    if fitted is not None:
        jax.tree.map(np.testing.assert_array_equal, saved.variables, dict(fitted.variables))
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []


def ended_by(number):
    def end(*_, **__):
        os.kill(os.getpid(), number)

    return end


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def half_written(error):
    def write(figure, path, **_):
        path.write_bytes(b"half")
        raise error

    return write


AFTER = {
    "Ctrl-C in the test evaluation": (Fitted, "scores", ended_by(signal.SIGINT), 130, "interrupted: the model is "),
    "SIGTERM in the baselines": (train, "baselines", ended_by(signal.SIGTERM), 143, "ended by SIGTERM: the model is "),
    "SIGHUP in the pictures": (train, "plot_curves", ended_by(signal.SIGHUP), 129, "ended by SIGHUP: the model is "),
    "no memory for the test evaluation": (Fitted, "scores", failing(MemoryError()), 1, "evaluated: MemoryError"),
    "an error in the baselines": (train, "baselines", failing(ValueError("a\nb")), 0, "no table of baselines: a b"),
    "an error in a table": (train, "show_beside", failing(RuntimeError("odd")), 0, "no table of baselines: odd"),
    "no space for the pictures": ("savefig", half_written(OSError(28, "No space left")), 0, "no curves.png: [Err"),
    "no memory for the pictures": ("savefig", half_written(MemoryError()), 0, "no confusion.png: MemoryError"),
}  # fmt: skip


@pytest.mark.parametrize("name", AFTER)
def test_what_fails_after_the_model_is_saved_costs_itself_alone(name, capsys, monkeypatch, trains_at_once, fitted):
    *where, attack, code, message = AFTER[name]
    monkeypatch.setattr(*(where if len(where) == 2 else ["matplotlib.figure.Figure.savefig"]), attack)
    trains_at_once(draws="pictures" in name)
    found, out, err = train_it(capsys)
    assert found == code and message in err and "Traceback" not in err, err
    assert all(line.startswith("grujax: ") for line in err.splitlines())
    assert ("saved out/model.safetensors" in out) == (code in (0, 1))
    assert_whole(fitted=fitted)


DURING = {
    "an error of fit": (failing(InputError("loss", "a finite number", "nan")), 2, "loss: expected a finite number"),
    "SIGTERM": (ended_by(signal.SIGTERM), 143, "ended by SIGTERM"),
}


@pytest.mark.parametrize("name", DURING)
def test_what_ends_training_leaves_the_best_so_far(name, capsys, trains_at_once, fitted):
    attack, code, message = DURING[name]
    trains_at_once(attack)
    found, _, err = train_it(capsys)
    assert found == code and message in err and f"(epoch {fitted.best.epoch}) is saved in out/" in err
    assert_whole(fitted=fitted)


def test_a_signal_in_the_second_epoch_keeps_the_first(capsys, monkeypatch):
    add = run_folder.Metrics.add

    def add_and_end(self, line):
        add(self, line)
        if line.get("epoch") == 2:
            assert_whole()  # what SIGKILL would leave
            os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(run_folder.Metrics, "add", add_and_end)
    before = signal.getsignal(signal.SIGHUP)
    code, _, err = train_it(capsys)
    assert code == 129 and "the best model so far (epoch " in err
    assert signal.getsignal(signal.SIGHUP) is before
    assert_whole()


def test_a_signal_whose_exception_is_lost_ends_training_after_the_epoch(capsys, monkeypatch, fitted):
    class Dies:
        def __del__(self):  # like JAX's callback of the garbage collector: Python drops exceptions raised here
            os.kill(os.getpid(), signal.SIGTERM)

    def fit_that_loses_it(config, data, *, on_epoch, on_best, **_):
        on_best(fitted)
        Dies()
        with pytest.raises(signals.Stopped):
            on_epoch(fitted.best)
        return fitted

    monkeypatch.setattr(train, "fit", fit_that_loses_it)
    code, _, err = train_it(capsys)
    assert code == 143 and "ended by SIGTERM: the best model so far" in err and "ignored" not in err
    assert_whole(fitted=fitted)


def test_a_signal_waits_while_the_model_is_written(capsys, monkeypatch, trains_at_once, fitted):
    trains_at_once()
    monkeypatch.setattr(os, "fsync", ended_by(signal.SIGINT))
    code, _, err = train_it(capsys)
    assert code == 130 and "is saved in out/" in err
    assert_whole(fitted=fitted)


@pytest.mark.parametrize("output", [["--output", "a/b/out"], []])
def test_before_the_first_epoch_there_is_nothing_to_save_and_no_folder_stays(output, capsys, monkeypatch):
    monkeypatch.setattr(train, "fit", ended_by(signal.SIGTERM))
    code, _, err = run(capsys, "train", toy("toy.npz", labels=LABELS), *output, *QUICK)
    assert code == 143 and "ended by SIGTERM before the command finished" in err and os.listdir() == ["toy.npz"]


def test_a_folder_of_runs_that_cannot_be_made_is_refused(capsys, trains_at_once):
    trains_at_once()
    os.symlink("nowhere", "runs")
    code, _, err = run(capsys, "train", toy("toy.npz", labels=LABELS), *QUICK)
    assert code == 2 and "runs: File exists" in err


def test_a_run_in_a_folder_that_cannot_be_written_is_refused_before_it_goes_on(capsys, monkeypatch, trains_at_once):
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", failing(OSError(5, "Input/output error")))
        patch.setattr(train, "clear", lambda folder: None)
        assert train_it(capsys)[0] == 2
    begun = []
    monkeypatch.setattr(train, "fit", lambda *_, **__: begun.append(1))
    monkeypatch.setattr(os, "fsync", failing(OSError(30, "Read-only file system")))
    before = sorted(os.listdir("out"))
    code, _, err = run(capsys, "train", "--resume", "out")
    assert (code, begun) == (2, []) and "Read-only file system" in err
    assert sorted(os.listdir("out")) == before == ["settings.json"]


def test_ignored_signals_stay_ignored(capsys, trains_at_once):
    trains_at_once(ended_by(signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        assert train_it(capsys)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("working, code", [((False, True), 0), ((True, False), 2)])
def test_a_disk_that_is_full_for_a_while(working, code, capsys, monkeypatch, trains_at_once, fitted):
    """Full only at the first save: a warning. Full only at the last: an error, and the first saved model stays."""
    better = dataclasses.replace(fitted, best=fitted.best._replace(epoch=99))
    trains_at_once(lambda on_best: on_best(better))
    works, fsync = iter([*working, True, True]), os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: fsync(fd) if next(works) else failing(OSError(28, "No space left"))())
    found, _, err = train_it(capsys)
    assert found == code and "No space left" in err
    assert ("best model so far could not be saved" in err) == (code == 0)
    assert (f"(epoch {fitted.best.epoch}) is saved in" in err) == (code == 2)
    assert_whole(fitted=fitted)


def test_checkpoints_that_cannot_be_written_cost_themselves_alone(capsys, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_start", failing(OSError(28, "No space left on device")))
    code, out, err = train_it(capsys, "--checkpoint-period", "0")
    assert code == 0 and "saved out/model.safetensors" in out
    said = [line for line in err.splitlines() if "No space left" in line]
    assert said and all(line.startswith("grujax: warning: no checkpoint was written in ") for line in said)
    assert "Traceback" not in err and "ERROR" not in err
    assert_whole()


def test_a_metrics_file_that_cannot_be_written_costs_no_training(capsys, monkeypatch, trains_at_once):
    monkeypatch.setattr(run_folder.json, "dumps", failing(OSError(28, "No space left")))
    monkeypatch.setattr(run_folder, "save", lambda path, *_: path.touch())  # it writes JSON too
    trains_at_once()
    code, _, err = train_it(capsys)
    assert code == 0 and err.count("metrics.jsonl ends early") == 1 and os.path.exists("out/model.safetensors")


def test_two_runs_at_once_get_two_folders(monkeypatch, tmp_path):
    with contextlib.ExitStack() as runs, monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.exists", lambda path, **_: False)  # the other run has not made its folder yet
        folders = [runs.enter_context(run_folder.new_folder(None, "toy")) for _ in range(3)]
    assert len(set(folders)) == 3 and all(folder.is_dir() for folder in folders)


WHILE_IMPORTING = """
import importlib.abc, os, signal, sys
class Ends(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Ends())
from grujax.cli import main
sys.exit(main(["doctor"]))
"""


def test_a_signal_while_jax_is_imported_ends_in_a_line():
    done = subprocess.run([sys.executable, "-c", WHILE_IMPORTING], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "grujax: ended by SIGTERM before the command finished. No partial files were left.\n"


def test_a_locale_without_letters_is_written_to_in_utf_8(fitted):
    """The locale changes no bit of the model."""
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "MPLBACKEND": "not.there"}
    command = [sys.executable, "-c", PROGRAM, "train", toy("toy.npz", labels=LABELS), "--output", "locale", *QUICK]
    command += ["--epochs", str(CONFIG.epochs)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ | ascii, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert "–" in done.stdout and "warning: no curves.png: " in done.stderr
    assert_whole("locale", fitted)


def full():
    return open("/dev/full", "w")


def gone():
    """Returns a pipe that nobody reads any more."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return open(write_end, "w")


@pytest.mark.parametrize("stream, expected, reason", [(full, 2, "No space left on device"), (gone, 141, "")])
def test_a_standard_output_that_takes_nothing(stream, expected, reason, capsys, monkeypatch, trains_at_once, fitted):
    trains_at_once()
    with stream() as output:
        monkeypatch.setattr(sys, "stdout", output)
        code = cli.main(["train", toy("toy.npz", labels=LABELS), "--output", "out", *QUICK])
    err = capsys.readouterr().err
    assert code == expected and reason in err and "the model is saved in out/model.safetensors" in err
    assert_whole(fitted=fitted)


def test_a_process_whose_reader_has_gone_ends_as_others_do():
    """By default Python would report the closed pipe at exit."""
    with gone() as output:
        command = [sys.executable, "-c", PLAIN, "--version"]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (141, "")


def test_csv_gives_labels_back_as_they_were(tmp_path, capsysbinary, monkeypatch):
    labels = ["a,b", 'say "so"', "two\nlines", "cr\rcr", "crlf\r\n", " blank ", "", "上 ж – ñ", "$x", "=1+1"]
    model = GRUModel(2, len(labels))
    variables = drawn(model, np.ones((1, 1, 2), np.float32))
    statistics = {"input_mean": np.zeros(2, np.float32), "input_std": np.ones(2, np.float32)}
    save("m.safetensors", model, {**variables, "statistics": statistics}, {"labels": labels, "channels": 2})
    monkeypatch.setattr(evaluate, "outputs_of", lambda *_: 9 * np.eye(len(labels)))
    toy("toy.npz", count=len(labels))
    assert run(capsysbinary, "predict", "m.safetensors", "toy.npz", "--output", "p.csv")[0] == 0
    printed = run(capsysbinary, "predict", "m.safetensors", "toy.npz")[1]
    assert printed == (tmp_path / "p.csv").read_bytes()
    rows = list(csv.reader(io.StringIO(printed.decode("utf-8"), newline="")))
    assert rows[0] == ["row", "label", "probability"] and [row[1] for row in rows[1:]] == labels


def test_a_terminal_shows_a_replacement_for_what_it_lacks(monkeypatch, trains_at_once):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    trains_at_once()
    assert cli.main(["train", toy("toy.npz", labels=LABELS), "--output", "out", *QUICK]) == 0
    shown = terminal.buffer.getvalue().decode("ascii")
    assert "95% interval" in shown and "?" in shown.split("interval")[1].splitlines()[0]


def test_a_stream_that_has_no_bytes_is_written_all_the_same():
    stream = io.StringIO()
    assert streams.Output(stream).write("上") == 1 and stream.getvalue() == "上"
