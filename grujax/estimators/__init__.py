"""GRUs with the interfaces of others: of scikit-learn, of aeon in `grujax.estimators.aeon`, forecasts in pandas, and of
sktime in `grujax.estimators.sktime`."""

from grujax.errors import require_package

require_package("sklearn", "sklearn")  # says what to install

from grujax.estimators.forecaster import GRUForecaster  # noqa: E402
from grujax.estimators.sklearn import GRUClassifier, GRURegressor  # noqa: E402

__all__ = ["GRUClassifier", "GRUForecaster", "GRURegressor"]
