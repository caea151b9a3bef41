"""aeon's own checks of a classifier and a regressor, and series as its data sets have them."""

import jax
import pytest

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
