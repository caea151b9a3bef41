"""GRUs with the interfaces of other libraries: a classifier and a regressor for scikit-learn, a forecaster for pandas;
in `grujax.estimators.aeon` and `grujax.estimators.sktime` the same for aeon and sktime."""

from grujax.errors import require_package

require_package("sklearn", "sklearn")  # its error says what to install

from grujax.estimators.forecaster import GRUForecaster  # noqa: E402
from grujax.estimators.sklearn import GRUClassifier, GRURegressor  # noqa: E402

__all__ = ["GRUClassifier", "GRUForecaster", "GRURegressor"]
