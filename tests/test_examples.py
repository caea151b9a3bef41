"""The scripts of examples/: equal on one device, on eight and in two processes, and resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numerics  # noqa: F401
import numpy as np

SCRIPT = Path(__file__).parent.parent / "examples/accelerator/train.py"
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
