"""What tests of the command line share."""

import sys

import jax
import pytest


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """The command runs in an empty folder, in a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers with floats
        yield


@pytest.fixture
def no_pictures(monkeypatch):
    """As where Matplotlib is not installed: pictures take most of a small run's seconds."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
