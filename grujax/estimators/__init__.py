"""GRUs with the interfaces of other libraries: scikit-learn's here, aeon's in `grujax.estimators.aeon`."""

from grujax.estimators.sklearn import GRUClassifier, GRURegressor

__all__ = ["GRUClassifier", "GRURegressor"]
