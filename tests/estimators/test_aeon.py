"""aeon's own checks of a classifier and a regressor, and series in the form of aeon's data sets."""

import doctest
import importlib.util
import sys

import pytest
from numerics import of_a_user
from refusals import refused

pytestmark = pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="aeon is not installed")


@pytest.fixture(autouse=True)
def numerics_of_a_user():
    with of_a_user():
        yield


@pytest.fixture
def ours():
    """The module, imported late because aeon takes seconds."""
    return importlib.import_module("grujax.estimators.aeon")


@pytest.mark.parametrize("name", ["GRUClassifier", pytest.param("GRURegressor", marks=pytest.mark.slow)])
def test_aeon_s_own_checks(ours, name):
    from aeon.testing.estimator_checking import check_estimator

    found = check_estimator(getattr(ours, name), verbose=False)
    assert len(found) > 20 and set(found.values()) == {"PASSED"}, found


def test_the_examples_run(ours):
    found = doctest.testmod(ours)
    assert found.attempted >= 3 and not found.failed


def test_a_missing_aeon_is_named(monkeypatch):
    spec = importlib.util.find_spec("grujax.estimators.aeon")
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "aeon", None)
    with refused("aeon is required", "pip install 'grujax[data]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_another_word_names_the_class(ours):
    with pytest.raises(TypeError, match=r"^GRURegressor takes no hidden= here: write hidden_size=\.$"):
        ours.GRURegressor(hidden=3)
