"""GRUs with the interfaces of other libraries: scikit-learn's here, aeon's in `grujax.estimators.aeon`."""

from grujax.errors import require_package

require_package("sklearn", "sklearn")  # says what to install

from grujax.estimators.sklearn import GRUClassifier, GRURegressor  # noqa: E402

__all__ = ["GRUClassifier", "GRURegressor"]
