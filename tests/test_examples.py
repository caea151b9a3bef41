"""The scripts of examples/, each in a small setting; accelerator/ also on eight devices and in two processes."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numerics  # noqa: F401
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = EXAMPLES / "accelerator/train.py"
SIZES = ["--every", "10", "--batch-size", "32", "--length", "20", "--hidden-size", "16"]


def start(folder, steps, devices, *options, **env):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)} | env
    command = [sys.executable, SCRIPT, "--steps", str(steps), "--checkpoints", folder, *SIZES, *options]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(process):
    """By the number of the step."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {line["step"]: line["loss"] for line in lines}


def two_processes(folder, steps):
    """As Open MPI would start them: `jax.distributed` finds the first by these variables."""
    port = 50000 + os.getpid() % 4000  # JAX makes the port out of the number of the job
    mpi = {"OMPI_MCA_orte_hnp_uri": f"{port}.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
    for rank in ("0", "1"):
        of_rank = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        yield start(folder, steps, 4, "--distributed", **mpi, **of_rank)


def test_one_device_eight_devices_and_two_processes_train_alike_and_go_on(tmp_path):
    one, eight, two = (str(tmp_path / name) for name in ("one", "eight", "two"))
    processes = [start(one, 30, 1), start(eight, 20, 8), *two_processes(two, 20)]
    expected, found, first, second = (losses(process) for process in processes)
    assert sorted(expected) == [10, 20, 30] and sorted(found) == sorted(first) == [10, 20] and second == {}
    found |= losses(start(eight, 30, 1))  # on another number of devices
    goes_on, _ = (losses(process) for process in [*two_processes(two, 30)])
    assert sorted(goes_on) == [30] and sorted(found) == [10, 20, 30]
    for other in (found, first | goes_on):
        np.testing.assert_allclose([other[k] for k in expected], [*expected.values()], rtol=1e-4)
    assert expected[30] < 0.7 * expected[10]


def run(name, *arguments):
    """What `main` of examples/NAME.py returns, in this process and with JAX as a user has it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return module.main([*map(str, arguments)])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_in_the_list(path):
    assert len(path.read_text().splitlines()) < 120
    assert f"`examples/{path.name}`" in (EXAMPLES.parent / "docs/examples.md").read_text()


def test_recurrent_ppo_learns_as_it_does_over_flax_s_cell(capsys):
    sizes = ["--updates", 30, "--hidden-size", 16, "--envs", 64]
    ours, theirs = run("ppo_memory", *sizes), run("ppo_memory", *sizes, "--rnn", "flax")
    assert ours[:3].mean() < -0.4 and ours[-3:].mean() > -0.2
    assert abs(ours[-3:].mean() - theirs[-3:].mean()) < 0.1
    printed = capsys.readouterr().out
    assert re.search(r"^grujax: return -0\.\d\d, [\d,]+ frames a second\n.*\nflax: return", printed, re.MULTILINE)
