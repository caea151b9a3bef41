"""`grujax.estimators.GRUForecaster` as a forecaster of sktime, which says in `fit` which steps are wanted."""

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
    """Every field of the forecaster but its horizon, which follows from the steps that are wanted."""

    horizon: int = field(default=1, init=False)


class GRUForecaster(BaseForecaster):
    """`grujax.estimators.GRUForecaster` for sktime: one series or several, with exogenous values, without intervals.

    Parameters are its fields but `horizon`, which is the last step of `fh`, in `fit`. The forecast is the mean, or the
    median where `quantiles` are trained. `update(y, update_params=False)` keeps the weights and goes on from the end
    of y; with update_params=True all is trained anew.

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
    _config: ClassVar[dict[str, Any]] = {"remember_data": False}  # `forecaster_` holds them
    _y = _X = None  # which sktime leaves out then

    def __init__(self, **fields: Any) -> None:
        for f in own_fields(Parameters):
            if f.init:
                setattr(self, f.name, fields.get(f.name, f.default))
        super().__init__()

    def _fit(self, y: Any, X: Any, fh: Any) -> Self:
        steps = fh.to_indexer(self.cutoff)  # from 0
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
        remedy = "Update with values that begin where those before end."
        require(
            trained.y.index[-1] == self.cutoff[0], "y", f"values up to {self.cutoff[0]}", trained.y.index[-1], remedy
        )
        found = self.forecaster_.predict(exogenous=joined("X", X, trained.exogenous))
        columns = trained.y.columns
        each = [found["forecast"]] if len(columns) == 1 else [found[name, "forecast"] for name in columns]
        ahead = type(found)(dict(enumerate(each))).set_axis(columns, axis=1)
        return ahead.iloc[fh.to_indexer(self.cutoff)]

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Parameters with which sktime's checks are quick."""
        quick = {"lags": 6, "members": 1, "training": replace(forecaster.TRAINING, epochs=1, hidden_size=4)}
        return [quick, quick | {"recursive": True, "quantiles": ()}]


def joined(name: str, new: Any, old: Any) -> Any:
    """The rows of both tables, the new one's where both have them; None where there are none."""
    given, wanted = ("none" if of is None else f"columns {list(of.columns)}" for of in (new, old))
    require(given == wanted, name, f"{wanted}, as in fit", given)
    return None if new is None else new.combine_first(old)[old.columns]


explained(GRUForecaster, Parameters)
