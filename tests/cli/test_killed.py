"""`grujax train` is killed at random moments: no file is torn, and it resumes to the same bits as an unbroken run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import PLAIN, QUICK, run, toy
from numerics import of_a_user

from grujax.saving import read

TRAIN = [sys.executable, "-c", PLAIN, "train", "--quiet"]
LONG = [*QUICK, "--epochs", "60"]  # 240 steps


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy("toy.npz", count=60)


@pytest.fixture
def whole(capsys, monkeypatch):
    """The bytes of the model file of an unbroken run, in this process."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with of_a_user():
        assert run(capsys, "train", "--quiet", "toy.npz", "--output", "whole", *LONG)[0] == 0
    return Path("whole/model.safetensors").read_bytes()


ALWAYS = ["--checkpoint-period", "0"]  # a checkpoint is always being written


def start(folder, *options):
    """Resumes the run in the folder, or begins it if there is none yet."""
    begun = (Path(folder) / "settings.json").exists()
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    what = ["--resume", folder] if begun else ["toy.npz", "--output", folder, *LONG]
    return subprocess.Popen([*TRAIN, *what, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_nothing_is_torn(folder):
    if os.path.exists(f"{folder}/model.safetensors"):
        assert read(f"{folder}/model.safetensors").metadata["channels"] == 2
    if os.path.exists(f"{folder}/metrics.jsonl"):
        *lines, last = Path(f"{folder}/metrics.jsonl").read_text().split("\n")
        assert [json.loads(line).get("epoch", 61) for line in lines] == list(range(1, len(lines) + 1)) and last == ""


def killed_at_random_moments(numbers, seed):
    """Ends the run with each signal and returns its folder. After the first quarter each waits for a checkpoint."""
    rng, folder = random.Random(seed), "killed"
    checkpoints = Path(folder, "checkpoints")
    for moment, number in enumerate(numbers):
        before = {path.name for path in checkpoints.glob("*")}
        process = start(folder, *ALWAYS)
        deadline = time.time() + (300 if moment >= len(numbers) // 4 else rng.uniform(0, 6))
        while time.time() < deadline and process.poll() is None:
            if {path.name for path in checkpoints.glob("*")} - before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        ended = 0, -number, 128 + number
        assert process.returncode in ended and "Traceback" not in err, (process.returncode, err)
        name = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        said = rf"grujax: {name}(: the best model so far \(epoch | before the command finished)"
        assert "Exception ignored" not in err and (process.returncode <= 0 or re.search(said, err)), err
        assert_nothing_is_torn(folder)
        if process.returncode == 0:
            shutil.rmtree(folder)  # it had finished before the signal: start again
    return folder


def goes_on_here(folder, capsys, monkeypatch):
    """Resumes in this process, which has already compiled the step; returns the exit code and what was printed."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with of_a_user():
        return run(capsys, "train", "--quiet", "--resume", folder)


def goes_on(folder):
    process = start(folder)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def assert_ended_as(whole, folder, code, out, err):
    assert code == 0 and err == "" and "test accuracy" in out, err
    assert Path(folder, "model.safetensors").read_bytes() == whole
    assert_nothing_is_torn(folder)
    left = [path for path in Path(folder).rglob("*") if "tmp" in path.name or path.name.startswith(".")]
    assert left == []


@pytest.mark.parametrize(
    "numbers",  # test_nothing_lost.py tests signals that can be caught, in one process
    [[signal.SIGKILL], pytest.param([signal.SIGKILL, signal.SIGTERM], marks=pytest.mark.slow)],
    ids=["once", "twice"],
)
def test_killed_and_resumed(numbers, whole, capsys, monkeypatch):
    """Without SIGINT, which ends the run as SIGTERM does."""
    folder = killed_at_random_moments(numbers, seed=0)
    assert_ended_as(whole, folder, *goes_on_here(folder, capsys, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, moments",
    [(signal.SIGKILL, 24), (signal.SIGTERM, 8), (signal.SIGINT, 8)],
    ids=["SIGKILL", "SIGTERM", "SIGINT"],
)
def test_killed_at_many_moments_and_resumed(number, moments, whole):
    """SIGKILL can tear a file that is being written, so it is tried most often. The others end the run after a step."""
    folder = killed_at_random_moments([number] * moments, seed=1)
    assert_ended_as(whole, folder, *goes_on(folder))
