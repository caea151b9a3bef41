"""Backtests: forecasts of past steps by the GRU and by methods without one, and their errors."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from grujax.errors import require, require_count


class Forecast(NamedTuple):
    """The forecast of one series."""

    point: np.ndarray  # (H,)
    quantiles: np.ndarray  # (H, Q)


def seasonal_naive(y: np.ndarray, horizon: int, season: int, levels: tuple[float, ...]) -> Forecast:
    """Repeats the last season. The quantiles are those of a normal distribution.

    Its σ is the root mean square of the seasonal differences, times √k in the k-th season ahead.

    >>> seasonal_naive(np.array([1.0, 2.0, 3.0, 4.0]), 3, 2, ()).point
    array([3., 4., 3.])

    Source: Hyndman and Athanasopoulos 2021, Forecasting: Principles and Practice, section 5.5.
    """
    from scipy.stats import norm

    step = np.arange(horizon)
    point = y[-season:][step % season]
    spread = np.sqrt(np.mean((y[season:] - y[:-season]) ** 2) * (step // season + 1))
    return Forecast(point, point[:, None] + spread[:, None] * norm.ppf(np.array(levels)))


def exponential_smoothing(y: np.ndarray, horizon: int, season: int, levels: tuple[float, ...]) -> Forecast:
    """Forecasts by statsmodels' `ExponentialSmoothing` with an additive trend and, if `season` is not 1, a seasonal
    component: multiplicative for a positive series (Holt-Winters), otherwise additive.

    The quantiles are those of 1,000 simulated paths, whose errors are drawn from the residuals.
    """
    import warnings

    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    kind = None if season == 1 else "mul" if y.min() > 0 else "add"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its optimizer warns when it does not converge
        model = ExponentialSmoothing(y, trend="add", seasonal=kind, seasonal_periods=season if kind else None).fit()
        drawn = np.random.default_rng(0).choice(model.resid, (horizon, 1000))
        paths = model.simulate(horizon, repetitions=1000, random_errors=drawn) if levels else np.zeros((horizon, 1))
    return Forecast(model.forecast(horizon), np.quantile(np.asarray(paths).reshape(horizon, -1), levels, axis=1).T)


def figures(
    frame: Any,
    forecast: Callable[[Any], Any],
    windows: int,
    horizon: int,
    step: int,
    season: int,
    shortest: int,
    levels: tuple[float, ...],
) -> Any:
    """Returns the table of `GRUForecaster.backtest`.

    forecast: a function from a table of past values, with at least `shortest` steps, to the result of `predict`.
    """
    import pandas
    from sklearn.metrics import mean_absolute_error, mean_absolute_percentage_error

    for name, value in {"windows": windows, "horizon": horizon, "step": step}.items():
        require_count(value, name)
    shortest = max(shortest, 2 * season + 1)
    most = (len(frame) - horizon - shortest) // step + 1
    require(most > 0, "y", f"at least {shortest + horizon} steps", len(frame), "Lower lags, seasons or horizon.")
    remedy = f"At least {shortest} of the {len(frame)} steps must be before the first window."
    require(windows <= most, "windows", f"at most {most} windows", windows, remedy)
    first = len(frame) - horizon - (windows - 1) * step
    methods = {"seasonal naive": seasonal_naive}
    if find_spec("statsmodels") is not None:
        methods["exponential smoothing"] = exponential_smoothing
    rows = []
    for origin in range(first, len(frame) - horizon + 1, step):
        past, future = frame.iloc[:origin], frame.iloc[origin : origin + horizon]
        forecasts = forecast(past)
        for column in frame.columns:
            gru = forecasts if len(frame.columns) == 1 else forecasts[column]
            y, actual = past[column].to_numpy(), future[column].to_numpy()
            by_method = {"GRU": Forecast(gru["forecast"].to_numpy(), gru.to_numpy()[:, 1:])}
            by_method |= {name: method(y, horizon, season, levels) for name, method in methods.items()}
            naive = mean_absolute_error(y[season:], y[:-season])
            for name, (point, quantiles) in by_method.items():
                mape = 100 * mean_absolute_percentage_error(actual, point) if actual.all() else np.nan
                interval = (quantiles.min(1) <= actual) & (actual <= quantiles.max(1)) if len(levels) > 1 else [np.nan]
                error = mean_absolute_error(actual, point)
                mase = error / naive if naive else np.nan
                rows.append({"method": name, "MAPE": mape, "MASE": mase, "coverage": np.mean(interval)})
    return pandas.DataFrame(rows).groupby("method", sort=False).agg(lambda values: values.mean(skipna=False))
