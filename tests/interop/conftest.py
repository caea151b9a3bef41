"""Runs ONNX graphs in the tests' own process instead of a separate one, by the same program; not with `--slow`."""

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import pytest


def run_here(command, cwd, **_):
    """Replaces `subprocess.run` for the program of onnx_run.py, without its limits, which would apply to the tests."""
    _, _, program, *arguments = command
    with contextlib.chdir(cwd), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *arguments])
        patch.setitem(sys.modules, "resource", None)
        exec(program, {})
    return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def apart():
    """Keeps the separate process, for tests of this process and of graphs that may end it."""


@pytest.fixture(autouse=True)
def no_process_for_each_graph(request, monkeypatch):
    """Saves the 0.3 seconds that each process takes, nearly all of them for imports."""
    run = sys.modules.get("grujax.interop.onnx_run")
    if run and "apart" not in request.fixturenames and not request.config.getoption("--slow"):
        here = SimpleNamespace(run=run_here, TimeoutExpired=subprocess.TimeoutExpired)
        monkeypatch.setattr(run, "subprocess", here)
