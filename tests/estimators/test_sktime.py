"""sktime's own checks of the forecaster, which must also forecast the same as grujax's own forecaster."""

import doctest
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numerics import of_a_user
from refusals import refused

from grujax.estimators import GRUForecaster

PAGE = Path(__file__).parents[2] / "docs/forecasting.md"
FIELDS = {
    **{"season": 4, "lags": 8, "members": 1, "quantiles": ()},
    "training": replace(GRUForecaster.training, hidden_size=4, epochs=3),
}
QUICK = ["test_constructor", "test_doctest_examples", "test_clone", "test_fh_attribute"]
QUICK += ["test_update_predict_single", "test_update_with_exogenous_variables"]


@pytest.fixture(autouse=True)
def numerics_of_a_user():
    with of_a_user():
        yield


@pytest.fixture
def of_sktime():
    """The forecaster class for sktime."""
    pytest.importorskip("sktime", reason="sktime is not installed")
    from grujax.estimators.sktime import GRUForecaster

    return GRUForecaster


@pytest.fixture
def y(of_sktime):
    import pandas as pd

    t = np.arange(60)
    index = pd.period_range("2000-01", periods=60, freq="M")
    return pd.Series(5 + 0.02 * t + np.array([1.0, -1, 2, 0])[t % 4] + np.sin(t / 7), index, name="sold")


@pytest.mark.parametrize("tests", [QUICK, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.filterwarnings("default")  # warnings of sktime and its imports are no errors
def test_sktime_s_own_checks(of_sktime, tests):
    from sktime.utils.estimator_checks import check_estimator

    found = check_estimator(of_sktime, tests_to_run=tests, verbose=0)
    assert len(found) > (30 if tests else 600)
    assert {name: result for name, result in found.items() if result != "PASSED"} == {}


def test_the_forecast_is_ours(of_sktime, y):
    both = y.to_frame().assign(lost=2 * y[::-1].to_numpy())
    x = y.to_frame("sun") ** 2
    fields = FIELDS | {"calendar": ("month",)}
    expected = GRUForecaster(horizon=5, **fields).fit(both[:-5], x).predict(exogenous=x)
    model = of_sktime(**fields).fit(both[:-5], X=x[:-5], fh=[2, 5])
    found = model.predict(X=x[-5:])
    assert list(found.columns) == ["sold", "lost"] and list(found.index) == [y.index[-4], y.index[-1]]
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name]["forecast"].iloc[[1, 4]])
    single = of_sktime(**FIELDS | {"quantiles": (0.1, 0.9)}).fit(y, fh=[3])
    median = GRUForecaster(horizon=3, **FIELDS | {"quantiles": (0.1, 0.9)}).fit(y).predict()["forecast"]
    assert single.predict().name == "sold" and single.predict().item() == median.iloc[-1]


def test_an_update_trains_anew_or_goes_on_from_the_new_end(of_sktime, y):
    model = of_sktime(**FIELDS).fit(y[:-6], fh=[1, 2])
    weights = model.forecaster_.trained_.variables
    trained = model.clone().fit(y[:-6], fh=[1, 2]).update(y[-6:], update_params=True)
    np.testing.assert_array_equal(trained.predict(), of_sktime(**FIELDS).fit(y, fh=[1, 2]).predict())
    model.update(y[-6:], update_params=False)
    assert model.forecaster_.trained_.variables is weights
    assert list(model.predict().index) == [y.index[-1] + 1, y.index[-1] + 2]
    plain = y.iloc[-4] + y.iloc[-1] - y.iloc[-5], y.iloc[-3] + y.iloc[-1] - y.iloc[-5]  # the forecast without a GRU
    np.testing.assert_allclose(model.predict(), plain, atol=0.3)


def test_what_does_not_fit_is_refused_by_name(of_sktime, y):
    x = y.to_frame("sun")
    with pytest.raises(TypeError, match=r"GRUForecaster takes no horizon= here: it takes season, lags, "):
        of_sktime(horizon=3)
    with pytest.raises(TypeError, match=r"^GRUForecaster takes no argument by position; write GRUForecaster\(season="):
        of_sktime(4)
    with refused("log=True needs a positive series"):
        of_sktime(**FIELDS, log=True).fit(y - 9, fh=1)
    model = of_sktime(**FIELDS).fit(y, X=x, fh=1)
    with refused("X: expected columns ['sun'], as in fit, found none"):
        model.predict()
    with refused("X: expected columns ['sun'], as in fit, found none"):
        model.update(y, update_params=False)
    with pytest.raises(NotImplementedError, match="in-sample"):
        of_sktime(**FIELDS).fit(y, fh=[-1, 2]).predict()


def test_times_other_than_sktime_s_are_refused(of_sktime, y):
    """An update that ends before the known values do moves sktime's cutoff back."""
    forecaster = of_sktime(**FIELDS).fit(y, fh=[1]).update(y[50:55], update_params=False)
    with refused("y", "values up to 2004-07", "2004-12", "Update with values"):
        forecaster.predict()


def test_the_example_of_the_page(of_sktime):
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted >= 3 and not found.failed


def test_a_missing_sktime_is_named(monkeypatch):
    spec = importlib.util.find_spec("grujax.estimators.sktime")
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "sktime", None)
    monkeypatch.setitem(sys.modules, "sktime.forecasting.base", None)
    with refused("sktime is required", "pip install 'grujax[sktime]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
