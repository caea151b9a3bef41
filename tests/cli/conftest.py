"""Fixtures that the tests of the command line share."""

import sys

import jax
import pytest


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Runs the command in an empty folder and a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers with floats
        yield


@pytest.fixture
def no_pictures(monkeypatch):
    """As if Matplotlib were not installed: pictures take most of the time of a small run."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
