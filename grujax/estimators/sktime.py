"""`grujax.estimators.GRUForecaster` as a forecaster of sktime, where `fit` gets the steps to forecast."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from grujax.core.config import own_fields
from grujax.core.keywords import explained
from grujax.errors import require, require_package
from grujax.estimators import forecaster
from grujax.estimators.windows import table

BaseForecaster: Any = require_package("sktime.forecasting.base", "sktime").BaseForecaster


@dataclass(eq=False, repr=False)
class Parameters(forecaster.GRUForecaster):
    """Every field of the forecaster except its horizon, which follows from the steps to forecast."""

    horizon: int = field(default=1, init=False)


class GRUForecaster(BaseForecaster):
    """`grujax.estimators.GRUForecaster` for sktime: one or more series, with exogenous values, without intervals.

    The parameters are the fields of that forecaster except `horizon`, which is the last step of `fh` in `fit`. The
    forecast is the median, or the mean with quantiles=(). `update(y, update_params=False)` keeps the weights and
    forecasts from the end of y; with update_params=True the forecaster is trained again on all values.

    Attributes:
      forecaster_: the fitted forecaster of `grujax.estimators`.

    >>> import numpy as np, pandas as pd
    >>> from grujax.estimators.sktime import GRUForecaster
    >>> y = pd.Series(10 + np.sin(2 * np.pi * np.arange(72) / 12))
    >>> GRUForecaster(season=12, lags=6, quantiles=(), members=1).fit(y, fh=[1, 3]).predict().round(1)
    72    10.0
    74    10.9
    dtype: float64
    """

    _tags: ClassVar[dict[str, Any]] = {
        "capability:multivariate": True,
        "capability:insample": False,
        "capability:update": True,
        "capability:non_contiguous_X": False,
        "capability:categorical_in_X": False,
        "y_inner_mtype": "pd.DataFrame",
    }
    _config: ClassVar[dict[str, Any]] = {"remember_data": False}  # `forecaster_` holds the data
    _y = _X = None  # sktime does not set these without remember_data

    def __init__(self, **fields: Any) -> None:
        for f in own_fields(Parameters):
            if f.init:
                setattr(self, f.name, fields.get(f.name, f.default))
        super().__init__()

    def _fit(self, y: Any, X: Any, fh: Any) -> Self:
        steps = fh.to_indexer(self.cutoff)  # counted from 0
        self.forecaster_ = forecaster.GRUForecaster(int(steps.max()) + 1, **self.get_params(deep=False)).fit(y, X)
        return self

    def _update(self, y: Any, X: Any = None, update_params: bool = True) -> Self:
        trained = self.forecaster_.trained_
        y, X = joined("y", y, trained.y), joined("X", X, trained.exogenous)
        if update_params:
            self.forecaster_.fit(y, X)
        else:
            y = table(y, "y")
            known = None if X is None else forecaster.covering(table(X, "X"), y.index)
            self.forecaster_.trained_ = trained._replace(y=y, exogenous=known)
        return self

    def _predict(self, fh: Any, X: Any) -> Any:
        trained = self.forecaster_.trained_
        remedy = "Update with values that begin right after the end of the earlier ones."
        require(
            trained.y.index[-1] == self.cutoff[0], "y", f"values up to {self.cutoff[0]}", trained.y.index[-1], remedy
        )
        forecast = self.forecaster_.predict(exogenous=joined("X", X, trained.exogenous))
        columns = trained.y.columns
        each = [forecast["forecast"]] if len(columns) == 1 else [forecast[name, "forecast"] for name in columns]
        ahead = type(forecast)(dict(enumerate(each))).set_axis(columns, axis=1)
        return ahead.iloc[fh.to_indexer(self.cutoff)]

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Returns parameters with which sktime's checks are quick."""
        quick = {"lags": 6, "members": 1, "training": replace(forecaster.TRAINING, epochs=1, hidden_size=4)}
        return [quick, quick | {"recursive": True, "quantiles": ()}]


def joined(name: str, new: Any, old: Any) -> Any:
    """Returns the rows of both tables, those of `new` where both have a row; None if both are None.

    Raises InputError if their columns differ, or only one of them is None.
    """
    found, expected = ("none" if frame is None else f"columns {list(frame.columns)}" for frame in (new, old))
    require(found == expected, name, f"{expected}, as in fit", found)
    return None if new is None else new.combine_first(old)[old.columns]


explained(GRUForecaster, Parameters)
