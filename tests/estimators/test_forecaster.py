"""The forecaster: its windows by hand, its forecasts of series with a known future, and what it refuses."""

import pickle
import runpy
import sys
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from compilations import compilations
from numerics import of_a_user
from refusals import refused
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from grujax.estimators import GRUForecaster, forecaster
from grujax.estimators.backtest import exponential_smoothing, figures, seasonal_naive
from grujax.estimators.windows import Windows, calendar, following, table
from grujax.training import TrainConfig, fit

pd = pytest.importorskip("pandas", reason="pandas is not installed")

QUICK = replace(
    GRUForecaster.training,
    hidden_size=8,
    epochs=30,
    batch_size=16,
    dropout=0.0,
    weight_decay=0.01,
    input_noise=0.0,
    mixup=0.0,
)


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's schedules mix integer counts with floats: they do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def months(count, start="2000-01-01"):
    return pd.date_range(start, periods=count, freq="MS")


def waves(count, n_series=1, seed=0):
    """Series (T, S) with a season of four steps, a slope and a slow wave."""
    t = np.arange(count)[:, None]
    rng = np.random.default_rng(seed)
    size = 10.0 ** np.arange(n_series)
    return size * (5 + 0.02 * t + np.array([1, -1, 2, 0])[t % 4] + np.sin(t / 7) + 0.02 * rng.normal(size=(count, 1)))


def small(**fields):
    return GRUForecaster(
        **{"horizon": 4, "season": 4, "lags": 8, "members": 1, "quantiles": (), "training": QUICK} | fields
    )


def test_differences_windows_and_what_is_known_by_hand():
    cut = Windows(lags=3, block=3, season=2, seasons=2, level=3)
    assert cut.back == [4, 6]  # the two shortest lags of whole seasons beyond the block of 3 steps
    y = np.arange(14.0)[None] ** 2
    d = cut.difference(y)
    np.testing.assert_allclose(d[0], [t**2 - ((t - 4) ** 2 + (t - 6) ** 2) / 2 for t in range(6, 14)])
    known = 100 + np.arange(8.0)[:, None]
    x, target = cut.cut(d, known)
    assert x.shape == (3, 3, 2) and target.shape == (3, 3)
    for n in range(3):
        level = (d[0, n] + 2 * d[0, n + 1] + 4 * d[0, n + 2]) / 7
        np.testing.assert_allclose(x[n, :, 0], d[0, n : n + 3] - level)
        np.testing.assert_allclose(x[n, :, 1], 100 + np.arange(n + 3, n + 6))  # known values at the times of the block
        np.testing.assert_allclose(target[n], d[0, n + 3 : n + 6] - level)
    plain = Windows(lags=3, block=3, season=None, seasons=1, level=0)
    np.testing.assert_array_equal(plain.difference(y), y)
    np.testing.assert_array_equal(plain.cut(y, np.zeros((14, 0)))[1][0], y[0, 3:6])


def test_windows_of_several_series_share_what_is_known():
    cut = Windows(lags=2, block=1, season=None, seasons=1, level=0)
    d, known = np.arange(10.0).reshape(2, 5), np.arange(5.0)[:, None]
    x, y = cut.cut(d, known)
    assert x[:, :, 0].tolist() == [[0, 1], [1, 2], [2, 3], [5, 6], [6, 7], [7, 8]]
    assert x[:, :, 1].tolist() == [[1, 2], [2, 3], [3, 4]] * 2
    assert y[:, 0].tolist() == [2, 3, 4, 7, 8, 9]


def test_a_forecaster_whose_gru_gives_nothing_is_the_seasonal_difference_and_its_level():
    y = pd.Series(np.exp(waves(60)[:, 0] / 4), months(60))
    forecaster = small(log=True, seasons=2, level=3).fit(y)
    trained = forecaster.trained_
    zero = jax.tree.map(np.zeros_like, trained.variables)
    zero["statistics"]["input_std"] = np.ones_like(zero["statistics"]["input_std"])
    forecaster.trained_ = trained._replace(variables=zero)
    z = np.log(y.to_numpy())
    d = z[8:] - (z[4:-4] + z[:-8]) / 2
    expected = np.exp((z[-4:] + z[-8:-4]) / 2 + np.average(d[-8:], weights=0.5 ** np.arange(8)[::-1]))
    found = forecaster.predict()
    np.testing.assert_allclose(found["forecast"], expected, rtol=1e-6)
    assert found.index.equals(months(4, "2005-01-01"))


@pytest.mark.parametrize("recursive", [False, True])
def test_it_forecasts_series_better_than_the_season_before(recursive):
    values = waves(140, 2)
    y = pd.DataFrame(values[:-4], months(136), columns=["a", "b"])
    forecaster = small(recursive=recursive, log=True)
    found = forecaster.fit(y).predict()
    assert found.columns.tolist() == [("a", "forecast"), ("b", "forecast")]
    error = np.abs(found.to_numpy() / values[-4:] - 1).mean(0)
    before = np.abs(values[-8:-4] / values[-4:] - 1).mean(0)
    assert (error < 0.5 * before).all(), (error, before)
    longer = forecaster.predict(9) if recursive else forecaster.predict(2)
    shared = min(len(longer), 4)
    np.testing.assert_allclose(longer[:shared], found[:shared], rtol=1e-6)
    assert longer.index.equals(months(len(longer), found.index[0]))


def test_one_model_serves_series_of_any_size():
    y = pd.DataFrame(waves(80) * [1, 1e6], months(80), columns=["small", "large"])
    found = small().fit(y).predict()
    np.testing.assert_allclose(found["large"], found["small"] * 1e6, rtol=1e-4)


def test_exogenous_values_of_the_future_are_read():
    """y follows a variable that its past does not predict."""
    rng = np.random.default_rng(1)
    promotion = pd.DataFrame({"promotion": rng.integers(0, 2, 204).astype(float)}, months(204))
    noise = 0.01 * rng.normal(size=204)
    y = pd.Series(10 + 2 * promotion["promotion"] + noise, name="sales")
    for recursive in (False, True):
        forecaster = small(recursive=recursive, level=4, training=replace(QUICK, epochs=60))
        found = forecaster.fit(y[:200], promotion[:200]).predict(exogenous=promotion[200:])
        assert np.abs(found["forecast"] - y[200:]).max() < 0.6
        flipped = forecaster.predict(exogenous=1 - promotion[200:])["forecast"] - found["forecast"]
        np.testing.assert_allclose(flipped, 2 - 4 * promotion["promotion"][200:], atol=0.6)


def test_the_calendar_is_of_the_times_that_are_forecast():
    """y is high in one month of the year, and no season is differenced."""
    index = months(132)
    y = pd.Series(1.0 * (index.month == 3), index)
    forecaster = small(season=None, horizon=1, lags=2, level=0, calendar=("month",), training=replace(QUICK, epochs=80))
    forecaster.fit(y[:122])  # the next month is March
    assert forecaster.predict()["forecast"].item() > 0.7
    assert forecaster.fit(y[:121]).predict()["forecast"].item() < 0.3


def test_parts_of_dates_are_angles():
    angles = calendar(months(13), ("month", "quarter"))
    np.testing.assert_allclose(angles[0], angles[12], atol=1e-12)
    np.testing.assert_allclose(angles[2, :2], [1, 0], atol=1e-12)
    np.testing.assert_allclose(angles[3, 2:], [0, -1], atol=1e-12)
    periods = pd.period_range("2024-01-01", periods=3, freq="D")
    np.testing.assert_allclose(
        calendar(periods, ("dayofweek", "week")), calendar(periods.to_timestamp(), ("dayofweek", "week"))
    )


def test_quantiles_hold_what_they_say_on_noise():
    """Of white noise the GRU can only learn the distribution: a tenth of the values lies outside each quantile."""
    rng = np.random.default_rng(0)
    y = pd.Series(rng.normal(size=1000), months(1000, "1900-01-01"))
    forecaster = small(
        season=None, horizon=1, lags=4, level=0, quantiles=(0.1, 0.9), training=replace(QUICK, epochs=10)
    )
    found = forecaster.fit(y).predict()
    assert found.columns.tolist() == ["forecast", "0.1", "0.9"]
    np.testing.assert_allclose(found.to_numpy()[0], [0, -1.28, 1.28], atol=0.3)


def test_quantiles_are_in_order_and_the_forecast_is_the_median():
    y = pd.Series(waves(80)[:, 0], months(80))
    forecaster = small(quantiles=(0.05, 0.5, 0.95), training=replace(QUICK, epochs=1)).fit(y)
    found = forecaster.predict()
    assert found.columns.tolist() == ["forecast", "0.05", "0.5", "0.95"]
    assert (found["0.05"] <= found["0.5"]).all() and (found["0.5"] <= found["0.95"]).all()
    np.testing.assert_array_equal(found["forecast"], found["0.5"])


def test_mirrored_windows_are_trained_on_beside_the_others(monkeypatch):
    given = []
    monkeypatch.setattr(forecaster, "fit", lambda config, data: given.append(data.train) or fit(config, data))
    y = pd.Series(waves(40)[:, 0], months(40))
    for mirrored in (False, True):
        small(mirrored=mirrored, training=replace(QUICK, epochs=1)).fit(y)
    plain, both = given
    np.testing.assert_array_equal(both.x, np.concatenate([plain.x, -plain.x]))
    np.testing.assert_array_equal(both.y, np.concatenate([plain.y, -plain.y]))


def test_members_are_averaged_and_seeds_decide():
    y = pd.Series(waves(60)[:, 0], months(60))
    fitted = small(members=2).fit(y)
    both, trained, each = fitted.predict(), fitted.trained_, []
    for n in range(2):
        alone = trained._replace(model=trained.model.model, variables=trained.model.member(trained.variables, n))
        fitted.trained_ = alone
        each.append(fitted.predict())
    other = small(members=2, training=replace(QUICK, seed=1)).fit(y).predict()
    for one, another in (each, (both, other)):
        assert np.abs(one - another).to_numpy().max() > 1e-4
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, rtol=1e-6)


def test_a_second_fit_of_the_same_sizes_compiles_nothing():
    fields = {"quantiles": (0.2, 0.8), "training": replace(QUICK, epochs=2, hidden_size=7)}  # a size of no other test
    first = small(**fields)
    other = clone(first).set_params(training=replace(first.training, seed=5))
    y, later = pd.Series(waves(50)[:, 0], months(50)), pd.Series(waves(50, seed=1)[:, 0], months(50, "2010-01-01"))
    assert compilations(lambda: first.fit(y).predict().to_numpy()) > 0
    assert compilations(lambda: other.fit(later).predict().to_numpy()) == 0


def test_it_is_an_estimator_whose_settings_are_those_of_its_fit():
    y = pd.Series(np.exp(waves(40)[:, 0]), months(40))
    made = small(log=True, training=replace(QUICK, epochs=1))
    assert clone(made).get_params() == made.get_params() and set(made.get_params()) == {f.name for f in fields(made)}
    assert repr(made).startswith("GRUForecaster(horizon=4, lags=8, log=True, members=1, quantiles=()")
    expected = made.fit(y).predict()
    made.set_params(log=False, horizon=3, season=None, level=0)
    pd.testing.assert_frame_equal(made.predict(), expected)  # the changes wait for the next fit
    assert not hasattr(clone(made), "trained_") and len(made.fit(y).predict()) == 3
    with refused("members: expected a positive integer, found 0"):
        made.set_params(members=0).fit(y)
    assert len(made.predict()) == 3


def test_a_csv_a_table_a_pickle_and_periods_give_the_same(tmp_path):
    y = pd.Series(waves(60)[:, 0], months(60), name="passengers")
    forecaster = small().fit(y)
    expected = forecaster.predict()
    y.to_csv(tmp_path / "y.csv")
    from_file = small().fit(tmp_path / "y.csv").predict()
    pd.testing.assert_frame_equal(from_file, expected)
    pd.testing.assert_frame_equal(small().fit(y.to_frame()).predict(), expected)
    again = pickle.loads(pickle.dumps(forecaster)).predict()
    pd.testing.assert_frame_equal(again, expected)
    periods = small().fit(y.to_period()).predict()
    np.testing.assert_array_equal(periods, expected)
    assert periods.index.equals(expected.index.to_period())
    plain = small().fit(y.to_numpy()).predict()
    np.testing.assert_array_equal(plain, expected)
    assert plain.index.equals(pd.RangeIndex(60, 64))
    y.set_axis(pd.RangeIndex(1940, 2060, 2)).to_csv(tmp_path / "years.csv")
    years = small().fit(tmp_path / "years.csv").predict()
    np.testing.assert_array_equal(years, expected)
    assert years.index.tolist() == [2060, 2062, 2064, 2066]


def test_dates_without_dashes_are_dates(tmp_path):
    (tmp_path / "y.csv").write_text("date,v\n" + "".join(f"{day},1\n" for day in (20100130, 20100131, 20100201)))
    assert table(tmp_path / "y.csv", "y").index.equals(pd.date_range("2010-01-30", periods=3))


@pytest.mark.parametrize("freq", ["h", "D", "W", "B", "MS", "ME", "QS", "YS", "15min"])
def test_the_index_goes_on_at_its_frequency(freq):
    whole = pd.date_range("2024-01-03", periods=20, freq=freq)
    index = table(pd.Series(np.ones(15), pd.DatetimeIndex(whole[:15].tolist())), "y").index  # its frequency is lost
    assert following(index, 5).equals(whole[15:])


def test_backtest_compares_with_what_is_computed_by_hand():
    pytest.importorskip("statsmodels", reason="statsmodels is not installed")
    values = waves(60)[:, 0]
    y = pd.Series(values, months(60))
    forecaster = small(quantiles=(0.2, 0.8), training=replace(QUICK, epochs=15))
    found = forecaster.backtest(y, windows=3, step=2)
    assert not hasattr(forecaster, "trained_")
    assert found.index.tolist() == ["GRU", "seasonal naive", "exponential smoothing"]
    assert found.columns.tolist() == ["MAPE", "MASE", "coverage"]
    mape, mase, coverage, ours, inside = [], [], [], [], []
    for origin in (52, 54, 56):
        forecast = forecaster.fit(y[:origin]).predict()
        ours.append(100 * np.abs(forecast["forecast"] / y - 1).mean())
        inside.append(((forecast["0.2"] <= y[forecast.index]) & (y[forecast.index] <= forecast["0.8"])).mean())
        past, future = values[:origin], values[origin : origin + 4]
        error, spread = np.abs(future - past[-4:]), np.sqrt(np.mean((past[4:] - past[:-4]) ** 2))
        mape.append(100 * np.mean(error / future))
        mase.append(np.mean(error) / np.mean(np.abs(past[4:] - past[:-4])))
        coverage.append(np.mean(error <= 0.8416212 * spread))
    expected = [np.mean(mape), np.mean(mase), np.mean(coverage)]
    np.testing.assert_allclose(found.loc["seasonal naive"], expected, rtol=1e-6)
    np.testing.assert_allclose(found.loc["GRU", ["MAPE", "coverage"]], [np.mean(ours), np.mean(inside)], rtol=1e-6)
    assert found.loc["GRU", "MAPE"] < found.loc["seasonal naive", "MAPE"]


def test_a_zero_in_one_window_leaves_no_percentage():
    """A mean over only the other windows would not be the MAPE of the backtest."""
    y = pd.Series(waves(40)[:, 0], months(40))
    y.iloc[-1] = 0
    found = small(lags=4, training=replace(QUICK, epochs=1)).backtest(y, windows=2, horizon=1)
    assert found["MAPE"].isna().all() and found["MASE"].notna().all()


def test_the_interval_of_the_seasonal_naive_method_widens_by_the_season():
    y = np.array([0.0, 10.0, 1.0, 11.0, 0.0, 10.0])
    found = seasonal_naive(y, 4, 2, (0.1587, 0.8413))  # ± one standard deviation, which is 1
    np.testing.assert_allclose(found.point, [0, 10, 0, 10])
    width = [1, 1, 2**0.5, 2**0.5]
    np.testing.assert_allclose(found.quantiles.T, [found.point - width, found.point + width], atol=2e-3)


@pytest.mark.parametrize("shift, season", [(0, 4), (-50, 4), (0, 1)])
def test_exponential_smoothing_serves_series_of_any_sign(shift, season):
    pytest.importorskip("statsmodels", reason="statsmodels is not installed")
    t = np.arange(80)
    smooth = 5 + shift + 0.02 * t + np.array([1, -1, 2, 0])[t % season]
    y = smooth + 0.1 * np.random.default_rng(0).normal(size=80)
    found = exponential_smoothing(y[:-4], 4, season, (0.01, 0.99))
    np.testing.assert_allclose(found.point, smooth[-4:], atol=0.15)
    np.testing.assert_allclose((found.quantiles - found.point[:, None]) / 0.1, [[-2.3, 2.3]] * 4, atol=0.8)


def a_gap():
    return pd.Series(waves(60)[:, 0], months(60)).drop(pd.Timestamp("2001-03-01"))


def a_nan():
    y = pd.Series(waves(60)[:, 0], months(60), name="sales")
    y.iloc[7] = np.nan
    return y


def at_random():
    days = np.cumsum([1, 5, 2, 8, 3, 9, 4, 13, 6, 17] * 6)
    return pd.Series(waves(60)[:, 0], pd.Timestamp("2000-01-01") + pd.to_timedelta(days, "D"))


@pytest.mark.parametrize(
    "make, parts",
    [
        (a_gap, ("y: expected a row every MS, found none at 2001-03-01", "asfreq")),
        (a_nan, ("y: expected finite numbers, found nan at 2000-08-01", "'sales'", "interpolate")),
        (at_random, ("y: expected an index with one frequency", "asfreq")),
        (lambda: a_nan().fillna(1.0)[::-1], ("y: expected times that increase", "sort_index")),
        (lambda: pd.Series(waves(15)[:, 0], months(15)), ("y: expected at least 17 steps, found 15", "lags")),
        (lambda: pd.Series(waves(60)[:, 0], [f"m{i}" for i in range(60)]), ("dates, periods or steps", "to_datetime")),
        (lambda: pd.DataFrame({"a": ["x"] * 60}, months(60)), ("y: expected columns of numbers", "'a'", "pivot")),
        (lambda: pd.DataFrame({"ds": months(60), "y": 1.0}), ("y: expected columns of numbers", "'ds'", "set_index")),
        (lambda: pd.Series(np.ones(3), [1, 2, 4]), ("y: expected a row every 1 steps, found none at 3",)),
        (lambda: pd.DataFrame(index=months(60)), ("at least one series",)),
        (lambda: pd.DataFrame(np.ones((60, 2)), months(60), columns=["a", "a"]), ("distinct names of columns",)),
        (lambda: pd.Series(waves(60)[:, 0] + 1j), ("y: expected columns of numbers, found complex128",)),
        (lambda: 3.0, ("y: expected a Series, a DataFrame, an array",)),
        (lambda: "nosuch.csv", ("y: expected a CSV whose first column is the time, found no file nosuch.csv.",)),
        (lambda: pd.Series(waves(2)[:, 0], pd.to_datetime(["2020", "2021"])), ("one frequency",)),
        (lambda: a_gap().to_period("M"), ("y: expected a row every M, found none at 2001-03",)),
        (lambda: pd.Series(waves(60)[:, 0] - 6, months(60)), ("log=True needs a positive series",)),
    ],
)  # fmt: skip
def test_series_that_cannot_be_forecast(make, parts):
    with refused(*parts):
        small(log=True).fit(make())


@pytest.mark.parametrize(
    "text, parts",
    [
        ("date,v\n01.02.2010,1\n02.02.2010,2\n", ("y: expected dates like 2010-01-31, found 01.02.2010. Write ISO",)),
        ("date,v\n2010-01-01,1\n01/02/2010,2\n", ("found 01/02/2010",)),
        ("date,v\n2010-01-01,1\n,2\n", ("y: expected dates like 2010-01-31, found nan",)),
        ("date;v\n2010-01-01;1\n2010-01-02;2\n", ("one column only, 'date;v'", "Is the separator a comma?")),
        ("date;v\n2010-01-01;1,5\n2010-01-02;2,5\n", ("y: expected",)),
        ("v\n1\n2\n", ("one column only, 'v'",)),
        ("2010-01-01,5\n2010-01-02,6\n", ("y: expected names of columns in the first line, found numbers", "date,y")),
        ("2010-01-01,5,\n2010-01-02,6,1\n", ("y: expected names of columns in the first line, found numbers alone",)),
        ("1,5.5,7\n2,6,8\n3,4,4\n", ("names of columns in the first line, found numbers alone, '1', '5.5', '7'",)),
        ("date,v\n2010-01-01T00:00+01:00,1\n2010-01-02T00:00+02:00,2\n", ("y: expected a CSV", "Mixed timezones")),
        ("", ("y: expected a CSV whose first column is the time", "No columns")),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(text, parts, tmp_path):
    (tmp_path / "y.csv").write_text(text)
    with refused(*parts):
        table(tmp_path / "y.csv", "y")


@pytest.mark.parametrize(
    "fields, parts",
    [
        ({"horizon": 0}, ("horizon: expected a positive integer, found 0",)),
        ({"season": 0}, ("season: expected a positive integer",)),
        ({"members": 0}, ("members: expected a positive integer",)),
        ({"level": -1}, ("level: expected 0 or a positive integer, found -1",)),
        ({"level": 9}, ("level: expected at most 8",)),
        ({"quantiles": (0.9, 1.5)}, ("quantiles: expected ascending levels between 0 and 1",)),
        ({"quantiles": (0.9, 0.1)}, ("quantiles: expected ascending levels between 0 and 1",)),
        ({"quantiles": (5, 95)}, ("quantiles: expected ascending levels between 0 and 1, found (5, 95).",)),
        ({"quantiles": 0.9}, ("quantiles: expected ascending levels between 0 and 1, found 0.9. Write (0.1, 0.9).",)),
        ({"training": {"epochs": 2}}, ("training: expected a TrainConfig, found {'epochs': 2}", "replace(")),
        ({"log": "no"}, ("log: expected True or False, found 'no'",)),
        ({"calendar": "month"}, ("calendar: expected a tuple, found 'month'. Write ('month',).",)),
        ({"recursive": True, "quantiles": (0.1,)}, ("recursive=True needs quantiles=()",)),
        ({"calendar": ("month",), "lags": 3}, ("lags >= horizon=4",)),
        ({"calendar": ("month",), "mirrored": True}, ("mirrored=True needs calendar=()",)),
        ({"training": TrainConfig(members=3)}, ("training.members: expected 1, found 3. Pass members= to",)),
        ({"training": TrainConfig(quantiles=(0.5,))}, ("training.quantiles: expected (), found (0.5,)",)),
        ({"calendar": ("moon",)}, ("calendar: expected parts among ['month'", "'moon'")),
    ],
)  # fmt: skip
def test_fields_that_cannot_be(fields, parts):
    with refused(*parts):
        small(**fields)


def test_what_cannot_be_predicted():
    y = pd.Series(waves(40)[:, 0], months(40))
    beside = pd.DataFrame({"x": np.ones(60)}, months(60))
    with pytest.raises(NotFittedError, match=r"^This GRUForecaster instance is not fitted yet\. Call 'fit'"):
        small().predict()
    quick = replace(QUICK, epochs=1)
    forecaster = small(training=quick).fit(y)
    with refused("horizon: expected at most 4, found 5", "recursive=True"):
        forecaster.predict(5)
    with refused("horizon: expected a positive integer, found DataFrame. A table is passed as exogenous=."):
        forecaster.predict(beside)
    with refused("exogenous: expected none, as in fit, found values"):
        forecaster.predict(exogenous=beside)
    with refused("exogenous: expected values from 2000-01-01", "none at 2000-01-01"):
        small(training=quick).fit(y, beside[5:])
    forecaster = small(training=quick).fit(y, beside)
    with refused("exogenous: expected values, as in fit, found none."):
        forecaster.predict()
    with refused("exogenous: expected values from 2003-05-01", "none at 2003-08-01"):
        forecaster.predict(exogenous=beside[:43])
    with refused("exogenous: expected columns ['x'], as in fit, found ['z']"):
        forecaster.predict(exogenous=beside.rename(columns={"x": "z"}))
    with refused("calendar: expected no parts of the date, as the index has no dates"):
        small(calendar=("month",)).fit(y.to_numpy())
    with refused("lags >= horizon=4"):
        small(lags=3).fit(y, beside)


@pytest.mark.parametrize("windows, step, most", [(21, 1, 20), (60, 1, 20), (8, 3, 7)])
def test_a_backtest_has_as_many_windows_as_the_shortest_series_leaves(windows, step, most, monkeypatch):
    monkeypatch.setattr("grujax.estimators.backtest.find_spec", lambda name: None)  # statsmodels is slow
    y, of_y = pd.Series(waves(40)[:, 0], months(40)), Windows(8, 4, 4, 1, 1)
    assert of_y.shortest == 17  # 4 to difference, 8 to read, 4 to forecast, and one more
    with refused(f"windows: expected at most {most} windows, found {windows}. At least 17 of the 40 steps"):
        small().backtest(y, windows=windows, step=step)
    asked = []
    naive = pd.DataFrame({"forecast": np.ones(4)})
    figures(y.to_frame(), lambda past: asked.append(len(past)) or naive, most, 4, step, 4, of_y.shortest, ())
    assert len(asked) == most and 17 <= asked[0] < 17 + step and asked[-1] == 36
    with refused("y: expected at least 21 steps, found 20"):
        small().backtest(y[:20], windows=1)


def test_one_quantile_has_no_coverage():
    y = pd.Series(waves(40)[:, 0], months(40))
    low = pd.DataFrame({"forecast": y[-4:], "0.2": y[-4:] - 1})
    assert figures(y.to_frame(), lambda past: low, 1, 4, 1, 4, 17, (0.2,))["coverage"].isna().all()
    both = low.assign(high=y[-4:] + 1)
    assert figures(y.to_frame(), lambda past: both, 1, 4, 1, 4, 17, (0.2, 0.8)).loc["GRU", "coverage"] == 1


@pytest.mark.parametrize("seasons, first, expected", [(3, 108, 3.77), (1, 108, 5.05), (3, 72, 2.56)])
def test_the_figures_of_the_difference_and_the_level_are_those_of_the_page(seasons, first, expected):
    load_airline = pytest.importorskip(
        "aeon.datasets", reason="aeon, which has the series, is not installed"
    ).load_airline
    y, cut, errors = np.log(load_airline()), Windows(12, 12, 12, seasons, 3), []
    for origin in range(first, first + 25):
        past = y[:origin]
        forecast = cut.before(past, 12)[-12:] + cut.levels(cut.difference(past)[-12:])
        errors.append(np.abs(np.exp(forecast - y[origin : origin + 12]) - 1).mean())
    assert 100 * np.mean(errors) == pytest.approx(expected, abs=0.005)
    page = (Path(__file__).parents[2] / "docs/forecasting.md").read_text()
    assert f"{expected}" in page


@pytest.mark.slow
def test_the_example_prints_its_table(monkeypatch, capsys):
    pytest.importorskip("aeon", reason="aeon, which has the series, is not installed")
    monkeypatch.setattr(sys, "argv", ["airline.py", "--seeds", "1", "--members", "1", "--windows", "1"])
    with of_a_user():
        runpy.run_path(str(Path(__file__).parents[2] / "examples/airline.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()[-3:]
    found = {line.rsplit(maxsplit=3)[0]: float(line.split()[-3]) for line in lines}
    assert found["seasonal naive"] == 9.99 and found["GRU"] < 9


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--windows", "500"], "windows: expected at most 72 windows, found 500."),
        (["--seeds", "0"], "--seeds: expected a positive integer, found 0."),
        (["--members", "0"], "members: expected a positive integer, found 0."),
        (["--picture", "nodir/a.png"], "--picture: expected a file in a folder that exists, found nodir/a.png."),
        (["--picture", "a.xyz"], "--picture: expected a name that ends in one of ['"),
    ],
)
def test_the_example_refuses_in_a_line_before_it_works(arguments, message, monkeypatch, capsys):
    pytest.importorskip("aeon", reason="aeon, which has the series, is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(sys, "argv", ["airline.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(__file__).parents[2] / "examples/airline.py"), run_name="__main__")
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].startswith(message)
