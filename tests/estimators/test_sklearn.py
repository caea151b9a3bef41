"""scikit-learn's own checks of an estimator, and what they do not look at."""

import jax
import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from grujax.estimators import GRUClassifier, GRURegressor

PLAIN = {"bidirectional": False, "dropout": 0.0, "mixup": 0.0, "input_offset": 0.0, "buckets": 1}
TINY = {**PLAIN, "hidden_size": 8, "epochs": 20, "batch_size": 32, "learning_rate": 0.05}
EXPECTED_FAILED = {
    "check_sample_weight_equivalence_on_dense_data": "a row of weight 2 and the same row twice fall into other batches",
}


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's schedules mix integer counts with floats: they do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def checks(estimator):
    """Each of scikit-learn's checks, with a short name."""
    found = estimator_checks_generator(estimator, legacy=True)
    for number, (estimator, check) in enumerate(found):
        name = check.func.__name__
        fails = name in EXPECTED_FAILED
        marks = [pytest.mark.xfail(reason=EXPECTED_FAILED[name], strict=True)] if fails else []
        yield pytest.param(estimator, check, id=f"{type(estimator).__name__}-{name}-{number}", marks=marks)


@pytest.mark.parametrize("estimator, check", [*checks(GRUClassifier(**TINY)), *checks(GRURegressor(**TINY | {"epochs": 60}))])
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)
