"""Graphs of ONNX run in the tests' own process, by the same program, with `--slow` in one of its own."""

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import pytest


def run_here(command, cwd, **_):
    """As `subprocess.run` of the program of onnx_run.py, but for its limits, which would be those of the tests."""
    _, _, program, *arguments = command
    with contextlib.chdir(cwd), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *arguments])
        patch.setitem(sys.modules, "resource", None)
        exec(program, {})
    return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def apart():
    """For tests about the process of a graph, and of graphs that may end it."""


@pytest.fixture(autouse=True)
def no_process_for_each_graph(request, monkeypatch):
    """A process takes 0.3 seconds, nearly all of them for imports."""
    run = sys.modules.get("grujax.interop.onnx_run")
    if run and "apart" not in request.fixturenames and not request.config.getoption("--slow"):
        here = SimpleNamespace(run=run_here, TimeoutExpired=subprocess.TimeoutExpired)
        monkeypatch.setattr(run, "subprocess", here)
