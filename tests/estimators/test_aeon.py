"""aeon's own checks of a classifier and a regressor, and series as its data sets have them."""

import importlib.util
import sys

import jax
import pytest
from refusals import refused

aeon = pytest.importorskip("aeon.testing.estimator_checking", reason="aeon is not installed")

from grujax.estimators.aeon import GRUClassifier, GRURegressor  # noqa: E402


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's schedules mix integer counts with floats: they do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@aeon.parametrize_with_checks([GRUClassifier])
def test_aeon_s_own_checks_of_a_classifier(check):
    check()


@pytest.mark.slow
@aeon.parametrize_with_checks([GRURegressor])
def test_aeon_s_own_checks_of_a_regressor(check):
    check()


def test_a_missing_aeon_is_named(monkeypatch):
    spec = importlib.util.find_spec("grujax.estimators.aeon")
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "aeon", None)
    with refused("aeon is required", "pip install 'grujax[data]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_another_word_names_the_class():
    with pytest.raises(TypeError, match=r"^GRURegressor takes no hidden= here: write hidden_size=\.$"):
        GRURegressor(hidden=3)
