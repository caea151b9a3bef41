"""The estimators of `grujax.estimators` as classifier and regressor of aeon, which hands over X (N, C, T) or lists."""

from typing import Any

import numpy as np

from grujax.errors import require_package
from grujax.estimators import sklearn
from grujax.estimators.parameters import Parameters, Settable

require_package("aeon", "data")  # says what to install

from aeon.classification import BaseClassifier  # noqa: E402
from aeon.regression import BaseRegressor  # noqa: E402

TAGS = {
    "X_inner_type": ["np-list", "numpy3D"],
    "algorithm_type": "deeplearning",
    "capability:multivariate": True,
    "capability:unequal_length": True,
}

QUICK = {"hidden_size": 4, "bidirectional": False, "epochs": 2, "buckets": 1}
"""Parameters with which aeon's checks are quick."""


class GRUClassifier(Settable, Parameters, BaseClassifier):
    """`grujax.estimators.GRUClassifier` for series as aeon has them, of any number of channels and of unequal lengths.

    Parameters are the fields of `grujax.training.TrainConfig` but `quantiles` and `head_weights`, with its `seed` as
    `random_state`.

    Attributes:
      classes_: (K,) the labels, in the order of `np.unique`.
      estimator_: the fitted estimator of `grujax.estimators`.

    >>> from aeon.datasets import load_unit_test
    >>> X, y = load_unit_test(split="train")
    >>> GRUClassifier(hidden_size=16, bidirectional=False, epochs=150).fit(X, y).score(X, y) > 0.9
    True
    """

    _tags = TAGS

    def __post_init__(self) -> None:
        BaseClassifier.__init__(self)

    def _fit(self, X: Any, y: np.ndarray) -> None:
        self.estimator_ = sklearn.GRUClassifier(**self.get_params(), channels="first").fit(X, y)

    def _predict(self, X: Any) -> np.ndarray:
        return self.estimator_.predict(X)

    def _predict_proba(self, X: Any) -> np.ndarray:
        return self.estimator_.predict_proba(X)

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return QUICK


class GRURegressor(Settable, Parameters, BaseRegressor):
    """`grujax.estimators.GRURegressor` for series as aeon has them; see `GRUClassifier`."""

    _tags = TAGS

    def __post_init__(self) -> None:
        BaseRegressor.__init__(self)

    def _fit(self, X: Any, y: np.ndarray) -> None:
        self.estimator_ = sklearn.GRURegressor(**self.get_params(), channels="first").fit(X, y)

    def _predict(self, X: Any) -> np.ndarray:
        return self.estimator_.predict(X)

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return QUICK
