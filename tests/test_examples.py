"""The scripts of examples/, each with small settings; accelerator/ also on eight devices and in two processes."""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import of_open_mpi
from numerics import of_a_user
from refusals import refused
from shown import calls_that_bind

from grujax.errors import MissingPackage

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = EXAMPLES / "accelerator/train.py"
SIZES = ["--every", "10", "--batch-size", "32", "--length", "20", "--hidden-size", "16"]


def start(folder, steps, devices, *options, **env):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)} | env
    command = [sys.executable, SCRIPT, "--steps", str(steps), "--checkpoints", folder, *SIZES, *options]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(process):
    """Returns the losses by step number."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return losses_in(out)


def losses_in(out):
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {line["step"]: line["loss"] for line in lines}


def two_processes(folder, steps):
    """Starts two processes as Open MPI would."""
    for env in of_open_mpi(2):
        yield start(folder, steps, 4, "--distributed", **env)


@pytest.mark.slow  # by default it runs small, below, and training/test_devices.py tests eight devices
def test_eight_devices_train_as_one_and_one_goes_on(tmp_path, monkeypatch, capsys):
    """tests/cli/test_distributed.py tests two processes; the next test runs this script with two."""
    eight = start(shared := str(tmp_path / "shared"), 10, 8)
    of_command_line(monkeypatch, "accelerator/train", "--steps", 30, "--checkpoints", tmp_path / "one", *SIZES)
    expected, found = losses_in(capsys.readouterr().out), losses(eight)
    of_command_line(monkeypatch, "accelerator/train", "--steps", 30, "--checkpoints", shared, *SIZES)
    goes_on = losses_in(capsys.readouterr().out)
    assert sorted(expected) == [10, 20, 30] and sorted(found) == [10] and sorted(goes_on) == [20, 30]
    found |= goes_on
    np.testing.assert_allclose([found[step] for step in expected], [*expected.values()], rtol=1e-4)
    assert expected[30] < 0.7 * expected[10]


@pytest.mark.slow
def test_eight_devices_and_two_processes_go_on_from_their_own_and_on_one(tmp_path):
    one, eight, two = (str(tmp_path / name) for name in ("one", "eight", "two"))
    processes = [start(one, 30, 1), start(eight, 20, 8), *two_processes(two, 20)]
    expected, found, first, second = (losses(process) for process in processes)
    assert sorted(expected) == [10, 20, 30] and sorted(found) == sorted(first) == [10, 20] and second == {}
    found |= losses(start(eight, 30, 1))  # resumes on another number of devices
    goes_on, _ = (losses(process) for process in [*two_processes(two, 30)])
    assert sorted(goes_on) == [30] and sorted(found) == [10, 20, 30]
    for other in (found, first | goes_on):
        np.testing.assert_allclose([other[k] for k in expected], [*expected.values()], rtol=1e-4)


@contextlib.contextmanager
def example(name):
    """Imports examples/NAME.py as a module, with JAX's default numerics inside the context."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with of_a_user():
        yield module


def run(name, *arguments):
    with example(name) as module:
        return module.main([*map(str, arguments)])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_in_the_list_and_calls_what_there_is(path):
    assert len(path.read_text().splitlines()) < 120
    assert f"`examples/{path.name}`" in (EXAMPLES.parent / "docs/examples.md").read_text()
    assert calls_that_bind(path.read_text()) >= 1


def of_command_line(monkeypatch, name, *arguments):
    """Runs the script in this process, as a user would."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    with of_a_user():
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


ALL = [str(path.relative_to(EXAMPLES).with_suffix("")) for path in sorted(EXAMPLES.rglob("*.py"))]
NEEDS = {"airline": ["pandas", "aeon"], "torch_tagger": ["torch"], "tune": ["optuna", "aeon"]}


@pytest.mark.parametrize("name", ALL)
def test_an_example_says_what_it_does_and_what_each_option_means(name, monkeypatch):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package, reason=f"the example needs {package}, which is not installed")

    class Asked(Exception):
        pass

    def parse_args(parser, argv=None):
        raise Asked(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Asked) as asked:
        of_command_line(monkeypatch, name)
    (parser,) = asked.value.args
    assert len(parser.description) > 60 and parser.format_help()
    assert [action.dest for action in parser._actions if not action.help] == []


REFUSED = {
    "dates": (["--steps", 0], "must be positive"),
    "flip_flop": (["--steps", 0], "must be positive"),
    "flip_flop, more states than there are": (["--starts", 6401], "expected at most 6400, found 6401"),
    "denoiser": (["--onnx", "nodir/x.onnx"], "the folder of --onnx must exist"),
    "denoiser, no frame": (["--seconds", 0.001], "--seconds 0.016 or more"),
    "g2p": (["rock'n'roll", "gated", "É"], "expected only letters a to z, found [\"rock'n'roll\", 'É']"),
    "ppo_memory": (["--envs", 12], "--envs must be a multiple of 8"),
    "ppo_memory, no end of an episode": (["--envs", 8, "--steps", 8], "--envs + --steps > 32"),
    "ppo_memory, no update": (["--updates", 0], "all sizes positive"),
    "torch_tagger": (["--onnx", "nodir/x.onnx"], "the folder of --onnx must exist"),
    "accelerator/train": (["--length", 1], "--length must be 2 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_example_refuses_before_it_works(case, monkeypatch, capsys):
    arguments, says = REFUSED[case]
    name = case.split(",")[0]
    for package in NEEDS.get(name, []):
        pytest.importorskip(package, reason=f"the example needs {package}, which is not installed")
    with pytest.raises(SystemExit, match="2"):
        of_command_line(monkeypatch, name, *arguments)
    assert says in capsys.readouterr().err


MISSING = {
    "denoiser": (["--onnx", "x.onnx"], "onnxruntime", "onnx"),
    "flip_flop": (["--pictures", "made"], "matplotlib", "plot"),
    "torch_tagger": ([], "torch", "torch"),
}


@pytest.mark.parametrize("name", MISSING)
def test_an_example_names_the_package_that_is_missing_before_it_works(name, monkeypatch, tmp_path):
    arguments, package, extra = MISSING[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(jax.random, "key", None)  # any work would need a key first
    with pytest.raises(MissingPackage, match=rf"{package} is required: pip install 'grujax\[{extra}\]'"):
        of_command_line(monkeypatch, name, *arguments)
    assert not [*tmp_path.iterdir()]


def test_the_script_for_accelerators_refuses_a_file_and_says_where_it_is_done(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    small = ["--steps", 1, "--batch-size", 8, "--length", 2, "--hidden-size", 2]
    with refused("checkpoints: expected a folder", "Choose another folder."):
        of_command_line(monkeypatch, "accelerator/train", *small, "--checkpoints", tmp_path / "file")
    for _ in range(2):
        of_command_line(monkeypatch, "accelerator/train", *small, "--checkpoints", tmp_path / "run")
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first)["step"] == 1 and second == "already at step 1; pass a larger --steps to continue"


PRINTED = r"^return, .*: -0\.\d\d .*\n{}: return [+-]\d\.\d\d, [\d,]+ frames per second$"


# -- Whole runs. Other files test the functions that they call; the tests above check that the calls are valid.


@pytest.mark.slow
@pytest.mark.parametrize("rnn, updates", [("grujax", 20), ("flax", 30)])
def test_recurrent_ppo_learns(rnn, updates, capsys):
    returns = run("ppo_memory", "--hidden-size", 16, "--envs", 64, "--updates", updates, "--rnn", rnn)
    assert returns[:3].mean() < -0.4 and returns[-3:].mean() > -0.3
    assert re.search(PRINTED.format(rnn), capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_a_flip_flop_of_three_bits_has_a_stable_point_for_each_combination(tmp_path, capsys):
    sizes = {"steps": 300, "rows": 32, "length": 32, "hidden-size": 12, "starts": 60}
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib, which is not installed")
    options = [text for name, size in sizes.items() for text in (f"--{name}", size)]
    found, corners = run("flip_flop", *options, "--pictures", tmp_path / "made")
    assert len(np.unique(corners, axis=0)) == len(corners) == found.stable.sum() == 8
    made = sorted(p.name for p in (tmp_path / "made").iterdir())
    assert made == ["eigenvalues.png", "states.png", "time_scale.png"]
    *_, said = capsys.readouterr().out.splitlines()
    assert all(name in said for name in made) and said.endswith(f" in {tmp_path / 'made'}")


@pytest.mark.slow
def test_a_denoiser_gains_and_streams_the_same_in_onnx_runtime(tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the export needs onnxruntime, which is not installed")
    sizes = ["--hidden-size", 32, "--steps", 40, "--rows", 4, "--seconds", 0.5]
    model, variables, noisy, found = run("denoiser", *sizes, "--onnx", tmp_path / "denoiser.onnx")
    with example("denoiser") as module:
        spectra = module.spectra(noisy)
        masks = model.apply(variables, module.features(spectra)[None])[0]
        frames = np.fft.irfft(masks * spectra) * module.SHAPE
    whole = frames.reshape(len(frames), 2, -1)
    whole = whole[:, 0] + np.pad(whole[:-1, 1], [(1, 0), (0, 0)])  # adds each half frame to the one before it
    for name in ("jax", "onnxruntime"):
        np.testing.assert_allclose(found[name], whole.ravel(), atol=1e-5)
    said = capsys.readouterr().out
    gains = re.findall(r"^(?:jax|onnxruntime): \+(\d\.\d) dB; a frame of 16 ms takes", said, re.MULTILINE)
    assert said.startswith(f"wrote {tmp_path / 'denoiser.onnx'}\n") and len(gains) == 2 and float(gains[0]) > 2


@pytest.mark.slow
def test_a_tagger_in_torch_and_here_has_one_loss_curve(tmp_path):
    for package in ("torch", "onnxruntime"):
        pytest.importorskip(package, reason=f"the example needs {package}, which is not installed")
    sizes = ["--steps", 40, "--hidden-size", 8, "--onnx", tmp_path / "tagger.onnx"]
    theirs, ours, right = run("torch_tagger", *sizes, "--dropout", 0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert theirs[-1] < 0.99 * theirs[0] and right > 0.4
