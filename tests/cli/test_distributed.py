"""`grujax train --distributed`: several processes train as one, the first writes, a job that lost one resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import PLAIN, QUICK, of_open_mpi, run, toy
from numerics import of_a_user

from grujax import InputError
from grujax.cli import train
from grujax.saving import read
from grujax.training import devices

LONG = [*QUICK, "--epochs", "60"]  # 240 steps with the toy's 60 rows


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy("toy.npz", count=60)


FULL = """
import os
from grujax.saving.checkpoints import Checkpoints
def full(self, step, *others, start=Checkpoints._start):
    if step >= 20:
        raise OSError(28, "No space left on device")
    return start(self, step, *others)
if os.environ["OMPI_COMM_WORLD_RANK"] == "{}":
    Checkpoints._start = full
"""


def started(count, *options, program=PLAIN):
    """Starts `count` processes as Open MPI would, and yields them."""
    command = [sys.executable, "-c", program, "train", "--quiet", *options, "--checkpoint-period", "0"]
    command += ["--distributed", str(count)] if count > 1 else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for env in of_open_mpi(count):
        yield subprocess.Popen(command, env=os.environ | env, **pipes)


def ended(processes):
    """Waits for the processes and returns (exit code, standard output, standard error) of each."""
    found = [(process, *process.communicate(timeout=600)) for process in list(processes)]
    return [(process.returncode, out, err) for process, out, err in found]


def assert_trained_alike(folder, other, epochs):
    losses = [[json.loads(line) for line in Path(f, "metrics.jsonl").read_text().splitlines()] for f in (folder, other)]
    assert len(losses[0]) == len(losses[1]) == epochs + 1
    np.testing.assert_allclose(*[[line["loss"] for line in lines[:-1]] for lines in losses], rtol=1e-4)
    np.testing.assert_allclose(*[lines[-1]["test"]["loss"] for lines in losses], rtol=1e-3)
    variables = [read(f"{f}/model.safetensors").variables for f in (folder, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), *variables)


def await_checkpoint(folder, process):
    while process.poll() is None and not [p for p in Path(folder, "checkpoints").glob("*") if p.name.isdigit()]:
        time.sleep(0.01)


def test_two_processes_train_as_one(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = ["toy.npz", *QUICK, "--epochs", "4"]
    two = list(started(2, *options, "--output", "2"))
    with of_a_user():
        assert run(capsys, "train", "--quiet", *options, "--output", "1")[0] == 0
    found = ended(two)
    assert [code for code, *_ in found] == [0, 0], found
    assert "test accuracy" in found[0][1] and "test accuracy" not in found[1][1]  # only the first one prints
    assert_trained_alike("2", "1", 4)


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_the_full_disk_of_one_process_ends_all_with_its_reason_and_the_job_goes_on(failing):
    alone = list(started(1, "toy.npz", "--output", "1", *LONG))
    found = ended(started(2, "toy.npz", "--output", "2", *LONG, program=FULL.format(failing) + PLAIN))
    assert found[failing][0] == 2 and found[1 - failing][0] != 0, found
    assert (
        f"grujax: process {failing} of 2: [Errno 28] No space left on device. All processes end." in found[failing][2]
    )
    found = [*ended(alone), *ended(started(2, "--resume", "2"))]
    assert [code for code, *_ in found] == [0, 0, 0], found
    assert_trained_alike("2", "1", 60)


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_the_job_goes_on():
    alone, two = (list(started(count, "toy.npz", "--output", str(count), *LONG)) for count in (1, 2))
    await_checkpoint("2", two[0])
    two[1].kill()
    (first, *said), (second, *_) = ended(two)
    # the first fails when its connection breaks, or JAX aborts it when heartbeats stop
    assert first in (2, -signal.SIGABRT) and second == -signal.SIGKILL, (first, said)
    found = [*ended(alone), *ended(started(2, "--resume", "2"))]
    assert [code for code, *_ in found] == [0, 0, 0], found
    assert_trained_alike("2", "1", 60)


@pytest.mark.slow
def test_four_processes_train_as_one_and_a_signal_to_one_ends_all_which_go_on():
    alone = list(started(1, "toy.npz", "--output", "one", *LONG))
    four = list(started(4, "toy.npz", "--output", "four", *LONG))
    await_checkpoint("four", four[0])
    four[2].send_signal(signal.SIGTERM)
    found = ended(four)
    assert [code for code, *_ in found] == [130, 130, 143, 130], found
    assert "to resume: grujax train --resume four" in found[0][2]
    found = [*ended(started(4, "--resume", "four")), *ended(alone)]
    assert [code for code, *_ in found] == [0] * 5, found
    assert_trained_alike("four", "one", 60)


def test_another_number_of_processes_and_no_launcher_are_refused_by_name(capsys, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    for options, message in (
        (["--output", "out", "--distributed", "3"], "--distributed: expected 3 processes, found 1 by the launcher."),
        (["--distributed", "2"], "--distributed needs --output or --resume"),
        (
            ["--output", "out", "--distributed", "2", "--devices", "2"],
            "--devices: expected nothing beside --distributed",
        ),
    ):
        code, out, err = run(capsys, "train", "toy.npz", *options)
        assert code == 2 and message in err and out == "", err

    def no_launcher(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", no_launcher)
    code, _, err = run(capsys, "train", "toy.npz", "--output", "out", "--distributed", "2")
    assert code == 2 and "expected a process started by SLURM, Open MPI, Kubernetes or on a TPU pod" in err
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    "error, code", [(OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130), (KeyError("w_ih"), 2)]
)
def test_an_error_of_one_process_ends_it_at_once(error, code, capsys, monkeypatch):
    """A normal exit of Python would wait for the other processes, which wait for this one."""

    class Ended(BaseException):
        pass

    def failing(*_):
        raise error

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(train, "joined", lambda count: None)
    monkeypatch.setattr(train.Train, "_run_joined", failing)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended, match=str(code)):
        run(capsys, "train", "toy.npz", "--output", "out", "--distributed", "2")
    assert f"grujax: process 0 of 2: {str(error) or 'KeyboardInterrupt'}. All processes end." in (
        err := capsys.readouterr().err
    )
    assert ("Traceback" in err) == isinstance(error, KeyError)  # a bug shows its traceback


def test_processes_agree_at_some_steps_and_one_alone_at_each(monkeypatch):
    alone, together = devices.Devices(None, 16), devices.Devices(None, 16)
    assert alone.agreed(1, True, False) == (True, False)
    together.several_processes = True
    of_others = np.array([[False, False], [True, True]])
    monkeypatch.setattr(devices.multihost_utils, "process_allgather", lambda mine: np.vstack([mine, of_others[1:]]))
    assert together.agreed(1, True, True) == (False, False)
    assert together.agreed(devices.EVERY, False, True) == (True, True)
    assert together.agreed(devices.EVERY, False, False) == (True, False)  # the first process decides when to save


def test_processes_that_do_not_have_the_same_are_refused_by_their_number(monkeypatch):
    together = devices.Devices(None, 16)
    for other in (0, 1):
        third = np.array([[0], [0], [other]], np.uint8)
        monkeypatch.setattr(devices.multihost_utils, "process_allgather", lambda mine, third=third: mine + third)
        refused = pytest.raises(InputError, match=r"^data: expected the same .*\[2\] than on 0")
        with refused if other else nullcontext():
            together.check_same("data", 1, "a")
