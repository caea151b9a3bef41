"""`GRUForecaster`, which forecasts time series by an ensemble of GRUs."""

from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from grujax.core.keywords import explained
from grujax.data import Dataset, sequences
from grujax.errors import require, require_count, require_package
from grujax.estimators.backtest import figures
from grujax.estimators.windows import CALENDAR, Windows, calendar, following, table
from grujax.linen import GRUEnsemble, GRUModel
from grujax.training import TrainConfig, fit, outputs_of

TRAINING = TrainConfig(
    hidden_size=16,
    bidirectional=False,
    pooling="last",
    steps_per_frame=1,
    dropout=0.2,
    epochs=150,
    batch_size=128,
    weight_decay=1.0,
    input_offset=0.0,
    input_noise=0.1,
    validation=0.0,
)
"""The default training settings of a forecaster."""


class Trained(NamedTuple):
    """The result of `fit`, from which `predict` forecasts."""

    settings: "GRUForecaster"  # a copy of the forecaster as it was in `fit`
    y: Any  # the table that was fitted
    exogenous: Any  # the exogenous values at the same times, or None
    mean: np.ndarray  # (S, 1), of the differences
    std: np.ndarray  # (S, 1), of the differences
    model: GRUModel | GRUEnsemble
    variables: dict[str, Any]


@explained
@dataclass(eq=False, repr=False)
class GRUForecaster(BaseEstimator):
    """Forecasts one or more series by the mean of several GRUs, which read windows of seasonal differences.

        d[t] = y[t] - mean of y at the same step of the `seasons` last seasons    (of log y with log=True)
        d[t + 1 ... t + horizon] = level[t] + GRU(d[t - lags + 1 ... t] - level[t], known[t - lags + 1 + horizon ...])

    level[t] is the exponentially weighted mean of the window's differences. known holds the exogenous values,
    differenced like y, and the calendar, both at the times that are forecast. Each series of d is standardised
    separately; one GRU serves all series.

    Attributes:
      horizon: number of steps to forecast.
      season: number of steps in a season, such as 12 for months. None: no differencing.
      seasons: number of past seasons that are averaged in the difference; 1 is the usual seasonal difference.
      lags: number of steps in a window. None: two seasons, or two horizons without a season.
      level: the span of the level in steps: each step back has (level - 1) / (level + 1) times the weight of the next.
        1: the last difference alone; 0: no level.
      log: forecast log y, for positive series whose fluctuations grow with their level.
      quantiles: ascending levels between 0 and 1 to forecast besides the median, trained with the pinball loss. ():
        only the mean (of log y with log=True), trained with the squared error.
      recursive: forecast one step at a time, each from the forecasts before it, to any horizon; needs quantiles=().
        False: all steps at once.
      calendar: parts of the date that the GRU reads as sine and cosine: "month", "dayofweek", "hour" and further names
        in `grujax.estimators.windows.CALENDAR`.
      mirrored: train on each window also with its sign reversed, so that the GRU learns no drift of its own and a short
        series gives twice as many rows. Cannot be combined with a calendar, which has no sign.
      members: number of GRUs whose forecasts are averaged; they are trained together.
      training: the training settings of each GRU.
      trained_: the result of `fit`: `model` and `variables`, which `grujax.save` takes, and what else `predict` needs.

    >>> import numpy as np, pandas as pd
    >>> index = pd.date_range("2000-01-01", periods=72, freq="MS")
    >>> y = pd.Series(10 + np.sin(2 * np.pi * np.arange(72) / 12), index)
    >>> forecaster = GRUForecaster(horizon=3, season=12, lags=6, quantiles=(), members=1)
    >>> forecaster.fit(y).predict().round(1)
                forecast
    2006-01-01      10.0
    2006-02-01      10.5
    2006-03-01      10.9

    Sources: Zeng et al. 2023, arXiv 2205.13504 (NLinear), for the level that is subtracted from each window; Wen et al.
    2017, arXiv 1711.11053, for the quantiles.
    """

    horizon: int = 12
    season: int | None = None
    lags: int | None = None
    quantiles: tuple[float, ...] = (0.1, 0.9)
    recursive: bool = False
    log: bool = False
    calendar: tuple[str, ...] = ()
    seasons: int = 1
    level: int = 1
    mirrored: bool = False
    members: int = 5
    training: TrainConfig = TRAINING

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises `InputError` for an invalid field. Called by the constructor and again by `fit`."""
        for name in ("recursive", "log", "mirrored"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "True or False", repr(value))
        for name in ("horizon", "seasons", "members"):
            require_count(getattr(self, name), name)
        for name in ("season", "lags"):
            if getattr(self, name) is not None:
                require_count(getattr(self, name), name)
        whole = isinstance(self.level, Integral) and not isinstance(self.level, bool)
        require(whole and self.level >= 0, "level", "0 or a positive integer", repr(self.level))
        lags = self.windows.lags
        require(self.level <= lags, "level", f"at most {lags}, the steps of a window", self.level)
        rule, remedy = "mirrored=True needs calendar=()", "The sign of a date cannot be reversed."
        require(not (self.mirrored and self.calendar), "calendar", (), self.calendar, remedy, rule=rule)
        rule, remedy = "recursive=True needs quantiles=()", "Only one value per step can be fed back."
        require(not (self.recursive and self.quantiles), "quantiles", (), self.quantiles, remedy, rule=rule)
        remedy = f"Write ({self.calendar!r},)."
        require(isinstance(self.calendar, (tuple, list)), "calendar", "a tuple", repr(self.calendar), remedy)
        for part in self.calendar:
            require(part in CALENDAR, "calendar", f"parts among {list(CALENDAR)}", repr(part))
        self._require_lags(bool(self.calendar))
        expected, remedy = "a TrainConfig", "Write dataclasses.replace(GRUForecaster.training, epochs=50)."
        require(isinstance(self.training, TrainConfig), "training", expected, repr(self.training), remedy)
        for name, plain in {"members": 1, "quantiles": ()}.items():
            value, found, remedy = getattr(self, name), getattr(self.training, name), f"Pass {name}= to the forecaster."
            require(found in (plain, value), f"training.{name}", repr(plain), repr(found), remedy)
        replace(self.training, quantiles=self.quantiles, members=self.members)  # checks both

    @property
    def windows(self) -> Windows:
        """The sizes of the windows that the series are cut into."""
        lags = self.lags or 2 * (self.season or self.horizon)
        return Windows(lags, 1 if self.recursive else self.horizon, self.season, self.seasons, self.level)

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels of `quantiles` and the median; empty if the mean is forecast."""
        return tuple(sorted({*self.quantiles, 0.5})) if self.quantiles else ()

    def fit(self, y: Any, exogenous: Any = None) -> Self:
        """Trains on the whole of y, and returns the forecaster.

        Args:
          y: a Series, a DataFrame with a column per series, an array (T,) or (T, S), or the path of a CSV whose first
            column is the time. Its index has one frequency.
          exogenous: a table of the same kinds with a column per variable, for all times of y; other times are ignored.

        Raises:
          InputError: gaps, missing values, values of 0 or less with log=True, a series shorter than one window, no
            frequency, or exogenous values that do not cover y.
        """
        self.check()
        frame = table(y, "y")
        lowest = frame.to_numpy().min()
        require(not self.log or lowest > 0, "y", "positive values", lowest, rule="log=True needs a positive series")
        cut = self.windows
        remedy = "Lower lags, seasons or horizon."
        require(len(frame) >= cut.shortest, "y", f"at least {cut.shortest} steps", len(frame), remedy)
        self._require_lags(exogenous is not None)
        covariates = None if exogenous is None else covering(table(exogenous, "exogenous"), frame.index)
        values = self._scale(frame)
        d = cut.difference(values)
        mean, std = d.mean(-1, keepdims=True), d.std(-1, keepdims=True)
        std = np.where(std > 1e-9 * np.abs(values).max(-1, keepdims=True), std, 1.0)  # a smaller std is rounding error
        x, targets = cut.cut((d - mean) / std, self._known(frame.index, covariates))
        if self.mirrored:
            x, targets = np.concatenate([x, -x]), np.concatenate([targets, -targets])
        data = Dataset("forecast", sequences(x, targets))
        fitted = fit(replace(self.training, quantiles=self.levels, members=self.members), data)
        if fitted.interrupted:
            raise KeyboardInterrupt
        self.trained_ = Trained(replace(self), frame, covariates, mean, std, fitted.model, fitted.variables)
        return self

    def predict(self, horizon: int | None = None, *, exogenous: Any = None) -> Any:
        """Forecasts the steps after the end of y.

        Args:
          horizon: number of steps, at most the forecaster's horizon unless it is recursive. None: the forecaster's.
          exogenous: as in `fit`, for the steps to forecast; with recursive=False, for the forecaster's whole horizon.

        Returns:
          A DataFrame with the future times as index, and the columns "forecast" and one per quantile, such as "0.1".
          With several series the columns are pairs of a series and one of these names.

        Raises:
          InputError: a horizon that was not trained, or exogenous values that do not cover it.
          sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self)
        return self.trained_.settings._forecast(self.trained_, horizon, exogenous)

    def _forecast(self, trained: Trained, horizon: int | None, exogenous: Any) -> Any:
        pandas = require_package("pandas", "forecast")
        horizon = self.horizon if horizon is None else horizon
        remedy = "A table is passed as exogenous=."
        require(isinstance(horizon, Integral), "horizon", "a positive integer", type(horizon).__name__, remedy)
        require_count(horizon, "horizon")
        remedy = "Train it with a longer horizon, or with recursive=True."
        require(self.recursive or horizon <= self.horizon, "horizon", f"at most {self.horizon}", horizon, remedy)
        cut = self.windows
        future = following(trained.y.index, max(horizon, cut.block))
        covariates = trained.exogenous
        expected, found = ("none" if values is None else "values" for values in (covariates, exogenous))
        require(found == expected, "exogenous", f"{expected}, as in fit", found)
        if exogenous is not None and covariates is not None:
            ahead = covering(table(exogenous, "exogenous"), future)
            names, found = list(covariates.columns), list(ahead.columns)
            require(found == names, "exogenous", f"columns {names}, as in fit", found)
            covariates = pandas.concat([covariates, ahead])
        known = self._known(trained.y.index.append(future), covariates)
        y, blocks = self._scale(trained.y), []
        for start in range(0, horizon, cut.block):
            d = ((cut.difference(y) - trained.mean) / trained.std)[:, -cut.lags :]
            level = cut.levels(d)
            end = trained.y.shape[0] - cut.lost + start + cut.block
            x = sequences(cut.joined(d - level, known[end - cut.lags : end]))
            outputs = outputs_of(trained.model, trained.variables, x).astype(np.float64)
            outputs = outputs.reshape(len(x), cut.block, -1)  # (S, block, quantiles or 1)
            ahead = trained.mean + trained.std * level + cut.before(y, cut.block)[:, -cut.block :]
            outputs = ahead[..., None] + trained.std[..., None] * np.sort(outputs, -1)  # so that no quantiles cross
            blocks.append(outputs)
            y = np.concatenate([y, outputs[..., 0]], -1)  # a recursive forecast continues from these values
        values = np.concatenate(blocks, 1)[:, :horizon]
        values = np.exp(values) if self.log else values
        named = {"forecast": self.levels.index(0.5) if self.levels else 0}
        named |= {f"{level:g}": self.levels.index(level) for level in self.quantiles}
        columns = {
            (name, kind): values[s, :, q] for s, name in enumerate(trained.y.columns) for kind, q in named.items()
        }
        frame = pandas.DataFrame(columns, index=future[:horizon])
        return frame.droplevel(0, axis=1) if len(trained.y.columns) == 1 else frame

    def backtest(
        self, y: Any, exogenous: Any = None, *, windows: int = 5, horizon: int | None = None, step: int = 1
    ) -> Any:
        """Forecasts past steps of y from the values before them, and compares the errors with methods without a GRU.

        The last of `windows` windows ends with y, and each of the others ends `step` steps earlier than the next. A new
        model is trained for each window. The other methods are the seasonal naive one and, if statsmodels is installed,
        exponential smoothing (Holt-Winters with a season).

        Args:
          y: as in `fit`.
          exogenous: as in `fit`.
          windows: number of windows.
          horizon: number of steps in a window. None: the forecaster's horizon.
          step: number of steps between two windows.

        Returns:
          A DataFrame with a row per method, of means over all windows, steps and series. MAPE: mean of 100 |error / y|,
          NaN if a value of y in a window is 0. MASE: mean of |error|, divided by the mean of |error| of the seasonal
          naive method over the steps before the window (Hyndman and Koehler 2006). coverage: the share of y between the
          lowest and the highest quantile, NaN with fewer than two quantiles.

        Raises:
          InputError: more windows than fit into y, and as `fit` and `predict` do.
        """
        frame = table(y, "y")
        covariates = None if exogenous is None else table(exogenous, "exogenous")
        each = replace(self, horizon=self.horizon if horizon is None else horizon)

        def forecast(past: Any) -> Any:
            return each.fit(past, covariates).predict(exogenous=covariates)

        season, shortest = self.season or 1, each.windows.shortest
        return figures(frame, forecast, windows, each.horizon, step, season, shortest, self.quantiles)

    def _require_lags(self, known: bool) -> None:
        """Raises `InputError` if windows with known values are shorter than the block.

        The steps of a window hold what is known of the steps one block later, which must include the whole block.
        """
        block, lags = self.windows.block, self.windows.lags
        rule = f"calendar and exogenous values need lags >= horizon={block}"
        require(not known or lags >= block, "lags", f"at least {block}", lags, rule=rule)

    def _scale(self, frame: Any) -> np.ndarray:
        """Returns the values of the table, or with log=True their logarithms, as (S, T)."""
        values = frame.to_numpy().T
        return np.log(values) if self.log else values

    def _known(self, index: Any, exogenous: Any) -> np.ndarray:
        """Returns the exogenous values, differenced like y, and the calendar, (T - lost, C)."""
        cut, parts = self.windows, calendar(index, self.calendar)
        if exogenous is None:
            return parts[cut.lost :]
        return np.concatenate([cut.difference(exogenous.to_numpy().T).T, parts[cut.lost :]], -1)


def covering(frame: Any, index: Any) -> Any:
    """Returns the rows of `frame` at the times of `index`. Raises `InputError` if one is missing."""
    missing = index.difference(frame.index)
    found = f"none at {missing[0]}" if len(missing) else ""
    require(not found, "exogenous", f"values from {index[0]} to {index[-1]}", found)
    return frame.loc[index]
