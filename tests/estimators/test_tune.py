"""The search for hyper-parameters with optuna."""

import re
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from grujax.estimators import GRUClassifier

pytest.importorskip("optuna", reason="optuna is not installed")

SCRIPT = Path(__file__).parents[2] / "examples/tune.py"
SMALL = ["--data", "UnitTest", "--folds", "2", "--epochs", "2", "--hidden-sizes", "8", "--trials"]


@pytest.fixture
def search(monkeypatch, capfd):
    """Runs the script and returns its exit code and the lines of its output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        code = 0
        with jax.numpy_dtype_promotion("standard"):
            try:
                runpy.run_path(str(SCRIPT), run_name="__main__")
            except SystemExit as ended:
                code = ended.code
        return code, *(text.splitlines() for text in capfd.readouterr())

    return run


def test_the_search_prints_the_best_trial_and_its_test_accuracy(search):
    code, (first, second, last), _ = search(*SMALL, "1")
    assert code == 0 and re.match(r"best of 1 trials: \{.*'learning_rate': 0\.0", first)
    assert re.fullmatch(r"UnitTest: cross-validation accuracy 0\.\d{4}", second)
    assert re.fullmatch(r"UnitTest: test accuracy [01]\.\d{4}", last)
    assert len(SCRIPT.read_text().splitlines()) < 120


def test_ctrl_c_keeps_the_best_so_far_and_a_store_goes_on_by_its_settings(search, monkeypatch, tmp_path):
    stored = ["--storage", f"sqlite:///{tmp_path / 'tune.db'}"]
    fits = []

    def third_trial_is_ended(self, X, y):
        fits.append(len(X))
        if len(fits) == 5:
            raise KeyboardInterrupt
        self.classes_ = np.unique(y)
        return self

    monkeypatch.setattr(GRUClassifier, "fit", third_trial_is_ended)
    monkeypatch.setattr(GRUClassifier, "score", lambda self, X, y: 0.5)
    code, out, err = search(*SMALL, "5", *stored)
    assert code == 130 and out[0].startswith("best of 3 trials: ") and err[-1] == "interrupted by Ctrl-C"
    assert out[1] == "UnitTest: cross-validation accuracy 0.5000" and len(out) == 2
    assert search(*SMALL, "1", *stored)[1][0].startswith("best of 4 trials: ")
    assert search(*SMALL, "1", *stored, "--hidden-sizes", "4", "8")[1][0].startswith("best of 1 trials: ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--trials", "0"], "--trials: expected a positive integer, found 0."),
        (["--folds", "1"], "--folds: expected from 2 to 10, the rows of the smallest class, found 1."),
        (["--folds", "11"], "--folds: expected from 2 to 10"),
        (["--epochs", "0"], "epochs: expected at least 1, found 0."),
        (["--hidden-sizes", "8", "-1"], "hidden_size: expected at least 1, found -1."),
        (["--data", "Covid3Month"], "--data: expected a data set with a class for each sequence, found Covid3Month"),
        (["--data", "nosuch"], "source: expected a file"),
        (["--storage", "nosuch"], "--storage: expected the URL of a database, such as sqlite:///tune.db, found"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_line(arguments, message, search):
    code, out, err = search("--data", "UnitTest", *arguments)
    assert code == 2 and out == [] and len(err) == 1 and err[0].startswith(message), err
