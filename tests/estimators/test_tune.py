"""The search of hyper-parameters by optuna."""

import re
import runpy
import sys
from pathlib import Path

import jax
import pytest

SCRIPT = Path(__file__).parents[2] / "examples/tune.py"


def test_the_search_prints_the_best_trial_and_its_test_accuracy(monkeypatch, capsys):
    pytest.importorskip("optuna", reason="optuna is not installed")
    small = ["--data", "UnitTest", "--trials", "2", "--folds", "2", "--epochs", "2", "--hidden-sizes", "8"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *small])
    with jax.numpy_dtype_promotion("standard"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    first, last = capsys.readouterr().out.splitlines()
    assert re.match(r"best of 2 trials: \{.*'learning_rate': 0\.0", first)
    assert re.fullmatch(r"UnitTest: cross-validation accuracy 0\.\d{4}, test accuracy [01]\.\d{4}", last)
    assert len(SCRIPT.read_text().splitlines()) < 120
