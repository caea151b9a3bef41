"""The estimators of `grujax.estimators` as classifier and regressor of aeon, which pass X as (N, C, T) or as lists."""

from typing import Any, ClassVar

import numpy as np

from grujax.errors import require_package
from grujax.estimators import sklearn
from grujax.estimators.parameters import Parameters, Settable
from grujax.training import TrainConfig

require_package("aeon", "data")  # its error says what to install

from aeon.classification import BaseClassifier  # noqa: E402
from aeon.regression import BaseRegressor  # noqa: E402


class _Series(Settable, Parameters):
    """The base of the classifier and the regressor: an estimator of `grujax.estimators` behind aeon's methods."""

    _tags: ClassVar[dict[str, Any]] = {
        "X_inner_type": ["np-list", "numpy3D"],
        "algorithm_type": "deeplearning",
        "capability:multivariate": True,
        "capability:unequal_length": True,
    }
    _behind: ClassVar[type]

    def __post_init__(self) -> None:
        super(TrainConfig, self).__init__()  # aeon's base class, which is after the parameters in the MRO

    def _fit(self: Any, X: Any, y: np.ndarray) -> None:
        self.estimator_ = self._behind(**self.get_params(), channels="first").fit(X, y)

    def _predict(self: Any, X: Any) -> np.ndarray:
        return self.estimator_.predict(X)

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        """Returns parameters with which aeon's checks are quick."""
        return {"hidden_size": 4, "bidirectional": False, "epochs": 2, "buckets": 1}


class GRUClassifier(_Series, BaseClassifier):
    """`grujax.estimators.GRUClassifier` as a classifier of aeon, for any number of channels and unequal lengths.

    X is (N, C, T) or a list of (C, T_i), as in aeon. The parameters are the fields of `grujax.training.TrainConfig`
    except `quantiles` and `head_weights`; `seed` is called `random_state`.

    Attributes:
      classes_: (K,) the labels, in the order of `np.unique`.
      estimator_: the fitted estimator of `grujax.estimators`.

    >>> from aeon.datasets import load_unit_test
    >>> X, y = load_unit_test(split="train")
    >>> GRUClassifier(hidden_size=16, bidirectional=False, epochs=150).fit(X, y).score(X, y) > 0.9
    True
    """

    _behind = sklearn.GRUClassifier

    def _predict_proba(self, X: Any) -> np.ndarray:
        return self.estimator_.predict_proba(X)


class GRURegressor(_Series, BaseRegressor):
    """`grujax.estimators.GRURegressor` as a regressor of aeon. X and the parameters are those of `GRUClassifier`."""

    _behind = sklearn.GRURegressor
