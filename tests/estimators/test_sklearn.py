"""scikit-learn's own checks of an estimator, and tests of what they do not cover."""

import dataclasses
import importlib.util
import pickle
import sys

import jax
import numpy as np
import pytest
import sklearn
from compilations import compilations
from refusals import refused
from scipy.special import softmax
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import grujax
from grujax.data import sequences
from grujax.estimators import GRUClassifier, GRUForecaster, GRURegressor
from grujax.training import TrainConfig, outputs_of

PLAIN = {"bidirectional": False, "dropout": 0.0, "mixup": 0.0, "input_offset": 0.0, "buckets": 1}
TINY = {**PLAIN, "hidden_size": 8, "epochs": 20, "batch_size": 32, "learning_rate": 0.05}
STILL = {"learning_rate": 1e-30, "weight_decay": 0.0}
EXPECTED_FAILED = {
    "check_sample_weight_equivalence_on_dense_data": "a row of weight 2 and the same row twice fall into other batches",
}
SOMETIMES_FAILED = {
    "check_methods_sample_order_invariance": "float32 moves by 3e-7 with the order, drawn anew; 1e-7 is allowed",
}
MANY_SIZES = {
    "check_classifiers_train",
    "check_dtype_object",
    "check_estimators_dtypes",
    "check_fit_check_is_fitted",
    "check_fit_score_takes_y",
    "check_positive_only_tag_during_fit",
    "check_sample_weight_equivalence_on_dense_data",
}
"""Slow checks: they fit other sizes than the rest, and so compile new programs."""


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's schedules mix integer counts with floats: they do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def checks(estimator):
    """Yields scikit-learn's checks with short names. A regressor differs only in y, so its checks are marked slow."""
    for number, (made, check) in enumerate(estimator_checks_generator(estimator, legacy=True)):
        name, marks = check.func.__name__, []
        if name in EXPECTED_FAILED:
            marks.append(pytest.mark.xfail(reason=EXPECTED_FAILED[name], strict=True))
        if name in SOMETIMES_FAILED:
            marks.append(pytest.mark.xfail(reason=SOMETIMES_FAILED[name], strict=False))
        if isinstance(made, GRURegressor) or name in MANY_SIZES:
            marks.append(pytest.mark.slow)
        yield pytest.param(made, check, id=f"{type(made).__name__}-{name}-{number}", marks=marks)


CHECKS = [*checks(GRUClassifier(**TINY)), *checks(GRURegressor(**TINY | {"epochs": 60}))]


@pytest.mark.parametrize("estimator, check", CHECKS)
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


def test_a_row_keeps_its_outputs_wherever_it_stands():
    """Up to rounding: the head is a matrix product, and XLA sums the last rows of a batch in another order."""
    x = 3 * np.random.default_rng(0).uniform(size=(20, 3))
    made = GRUClassifier(**TINY).fit(x, x[:, 0].astype(int))
    outputs = made.predict_proba(x)
    for order in (np.random.default_rng(seed).permutation(20) for seed in range(10)):
        np.testing.assert_allclose(made.predict_proba(x[order]), outputs[order], rtol=1e-6)


def ragged(count=32, seed=0):
    """Returns series of 3 to 8 steps and 2 channels around a level from −1 to 1, and the levels."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(-1, 1, count)
    return [mean + 0.1 * rng.normal(size=(rng.integers(3, 9), 2)) for mean in level], level


ROWS, LEVEL = ragged()
SIGN = np.where(LEVEL > 0, "up", "down")
NEW, NEW_LEVEL = ragged(seed=1)
HOLES = [row * np.where(np.arange(len(row)) == 1, np.nan, 1)[:, None] for row in ROWS]
TURN = "Pass channels='first' for (N, C, T), or channels='last'."
FITTED = {}


def classifier():
    """Returns a classifier that is fitted to ROWS and SIGN, once for all tests."""
    if not FITTED:
        made = FITTED["classifier"] = GRUClassifier(**TINY)
        made.fit(ROWS, SIGN)
    return FITTED["classifier"]


def test_every_setting_of_a_run_is_a_parameter():
    names = {f.name for f in dataclasses.fields(TrainConfig)} - {"seed", "quantiles", "head_weights"}
    assert set(GRUClassifier().get_params()) == names | {"random_state", "channels", "missing", "warm_start"}
    assert GRUClassifier().config() == TrainConfig()
    assert GRUClassifier(hidden_size=3, random_state=7).config() == TrainConfig(hidden_size=3, seed=7)
    drawn = [GRUClassifier(random_state=np.random.RandomState(seed)).config().seed for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_equal_parameters_do_not_make_estimators_equal():
    assert GRUClassifier() != GRUClassifier() and len({GRUClassifier(), GRUClassifier()}) == 2
    assert repr(GRUClassifier(hidden_size=3)) == "GRUClassifier(hidden_size=3)"


@pytest.mark.parametrize("low, high", [("b", "a"), (10, 9), (-1, 1), (True, False), (2.0, 5.0)])
def test_labels_are_the_user_s_own(low, high):
    y = np.where(LEVEL > 0, high, low)
    made = clone(classifier()).fit(ROWS, y)
    np.testing.assert_array_equal(made.classes_, np.unique(y))
    assert made.classes_.dtype == made.predict(NEW).dtype == y.dtype
    expected = np.where(NEW_LEVEL > 0, high, low)
    assert made.score(NEW, expected) == np.mean(made.predict(NEW) == expected) > 0.9
    proba = made.predict_proba(NEW)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(made.classes_[proba.argmax(1)], made.predict(NEW))


def padded(rows, filler=np.nan):
    lengths = np.array([len(row) for row in rows])
    x = np.full((len(rows), lengths.max(), rows[0].shape[1]), filler)
    for place, row in zip(x, rows, strict=True):
        place[: len(row)] = row
    return x, lengths


def objects(rows):
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


FORMS = {
    "an array with lengths": lambda rows: (*padded(rows), {}),
    "channels first": lambda rows: (padded(rows)[0].swapaxes(1, 2), padded(rows)[1], {"channels": "first"}),
    "a list, channels first": lambda rows: ([row.T for row in rows], None, {"channels": "first"}),
    "an array of arrays": lambda rows: (objects(rows), None, {}),
    "lists of lists": lambda rows: ([row.tolist() for row in rows], None, {}),
    "arrays of JAX": lambda rows: ([jax.numpy.asarray(row) for row in rows], None, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_x_is_read_alike(form):
    X, lengths, parameters = FORMS[form](ROWS)
    made = clone(classifier()).set_params(**parameters).fit(X, SIGN, lengths=lengths)
    assert made.n_features_in_ == 2
    X, lengths, _ = FORMS[form](NEW)
    np.testing.assert_array_equal(made.predict_proba(X, lengths), classifier().predict_proba(NEW))
    assert made.score(X, np.where(NEW_LEVEL > 0, "up", "down"), lengths=lengths) > 0.9


def test_series_of_one_channel_need_no_axis_of_it():
    rows = [row[:, 0] for row in ROWS]
    made = clone(classifier()).fit(rows, SIGN)
    X, lengths = padded([row[:, None] for row in rows])
    expected = made.predict_proba(rows)
    for given in (X, X[:, :, 0]):
        again = clone(made).fit(given, SIGN, lengths=lengths)
        np.testing.assert_array_equal(again.predict_proba(given, lengths), expected)
    assert again.n_features_in_ == 8 and made.n_features_in_ == 1
    with pytest.raises(ValueError, match="X has 7 features, but GRUClassifier is expecting 8 features"):
        again.predict(X[:, :7, 0], np.minimum(lengths, 7))
    np.testing.assert_array_equal(again.predict(rows), made.predict(X[:, :, 0], lengths))


@pytest.mark.parametrize(
    "kind, y",  # test_forecaster.py tests it with values
    [(GRUClassifier, SIGN), pytest.param(GRURegressor, LEVEL, marks=pytest.mark.slow)],
)
def test_a_second_fit_of_the_same_sizes_compiles_nothing(kind, y):
    fields = TINY | {"hidden_size": 7}  # a size of no other test
    first, other = kind(**fields), kind(**fields, random_state=5)
    assert compilations(lambda: first.fit(ROWS, y).predict(NEW)) > 0
    assert compilations(lambda: other.fit(ROWS[::-1], y[::-1]).predict(NEW)) == 0


def test_searches_and_pipelines_of_scikit_learn():
    scores = cross_val_score(classifier(), ROWS, SIGN, cv=2)
    assert scores.shape == (2,) and scores.min() > 0.8
    search = GridSearchCV(classifier(), {"learning_rate": [1e-9, 0.05]}, cv=2).fit(ROWS, SIGN)
    assert search.best_params_ == {"learning_rate": 0.05}
    np.testing.assert_array_equal(search.predict(NEW), classifier().predict(NEW))
    halves = FunctionTransformer(lambda rows: [row / 2 for row in rows])
    pipeline = make_pipeline(halves, clone(classifier())).fit(ROWS, SIGN)
    np.testing.assert_allclose(pipeline.predict_proba(NEW), classifier().predict_proba(NEW), atol=1e-4)
    table = np.stack([row[:3, 0] for row in ROWS])
    assert make_pipeline(StandardScaler(), clone(classifier())).fit(table, SIGN).score(table, SIGN) > 0.9


def test_lengths_are_routed_through_a_cross_validation():
    X, lengths = padded(ROWS)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = clone(classifier()).set_fit_request(lengths=True).set_score_request(lengths=True)
        found = cross_val_score(routed, X, SIGN, cv=2, params={"lengths": lengths})
    np.testing.assert_array_equal(found, cross_val_score(classifier(), ROWS, SIGN, cv=2))


def test_a_pickle_and_a_saved_model_predict_alike(tmp_path):
    made = classifier()
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.predict_proba(NEW), made.predict_proba(NEW))
    grujax.save(tmp_path / "model.safetensors", made.fitted_.model, made.fitted_.variables)
    outputs = outputs_of(*grujax.load(tmp_path / "model.safetensors"), sequences(NEW))
    np.testing.assert_array_equal(made.classes_[outputs.argmax(1)], made.predict(NEW))


@pytest.mark.parametrize("batch_size, mixup, epochs", [(1, 0.0, 40), (16, 10.0, 300)])
def test_rows_count_by_their_weight(batch_size, mixup, epochs):
    """If equal rows have two labels, the best probability of a label is its share of the weight."""
    X, y = np.ones((16, 4)), np.array(["a", "b"] * 8)
    weight = np.where(y == "a", 3.0, 1.0)
    changes = {"batch_size": batch_size, "mixup": mixup, "epochs": epochs, "averaging": 0.5}
    made = GRUClassifier(**TINY | changes).fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(made.predict_proba(X)[0], [0.75, 0.25], atol=0.03)
    half = clone(made).fit(X, y, sample_weight=weight / 2)
    np.testing.assert_array_equal(half.predict_proba(X), made.predict_proba(X))
    assert made.score(X, y, sample_weight=weight) == 0.75


def test_rows_of_weight_zero_are_left_out():
    weight = np.ones(64)
    weight[32:] = 0
    made = clone(classifier()).fit([*ROWS, *(100 * row for row in NEW)], [*SIGN, *SIGN], sample_weight=weight)
    np.testing.assert_array_equal(made.predict_proba(NEW), classifier().predict_proba(NEW))


def test_a_warm_start_goes_on_from_the_fit_before():
    made = clone(classifier()).fit(ROWS, SIGN)
    expected, before = made.predict_proba(NEW), made.fitted_
    made.set_params(warm_start=True, **STILL).fit([10 * row for row in NEW], np.where(NEW_LEVEL > 0, "up", "down"))
    np.testing.assert_allclose(made.predict_proba(NEW), expected, rtol=1e-5)
    np.testing.assert_array_equal(
        before.outputs(sequences(NEW)).argmax(1), expected.argmax(1)
    )  # the earlier model still has its arrays
    cold = made.set_params(warm_start=False).fit(ROWS, SIGN)
    assert np.abs(cold.predict_proba(NEW) - expected).max() > 0.1
    made = clone(classifier()).fit(ROWS, SIGN).set_params(warm_start=True)
    with refused("warm_start=True continues with the classes of the first fit", "also ['left']"):
        made.fit(ROWS, ["left", *SIGN[1:]])


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"hidden_size": 9}, ("(hidden_size: expected 8, found 9)",)),
        ({"num_layers": 2, "pooling": "mean"}, ("(num_layers, pooling: expected 1, max, found 2, mean)",)),
        ({"reset_after": False}, ("(reset_after: expected True, found False)",)),
        ({"missing": "mask"}, ("(missing: expected refuse, found mask)",)),
    ],
)
def test_a_warm_start_names_what_would_be_another_model(changes, parts):
    made = pickle.loads(pickle.dumps(classifier())).set_params(warm_start=True, **changes)
    with refused("warm_start=True continues with the model of the previous fit", *parts):
        made.fit(ROWS, SIGN)
    with refused("X: expected 2 channels, as in fit, found 1"):
        made.set_params(**{name: getattr(classifier(), name) for name in changes}).fit([r[:, :1] for r in ROWS], SIGN)


def test_missing_values_are_filled_by_the_means_of_fit_and_masked():
    made = clone(classifier()).set_params(missing="mask").fit(HOLES, SIGN)
    np.testing.assert_allclose(made.fill_, np.nanmean(np.concatenate(HOLES), 0), rtol=1e-5)
    assert made.n_features_in_ == 2 and made.score(NEW, np.where(NEW_LEVEL > 0, "up", "down")) > 0.9
    data = sequences(HOLES[:1], missing="mask", fill=made.fill_)
    expected = made.fitted_.outputs(data).argmax(1)
    for X in (HOLES[:1], HOLES[0][None]):  # the mean of X itself would differ from that of fit
        np.testing.assert_array_equal(made.predict(X), made.classes_[expected])
        np.testing.assert_allclose(made.predict_proba(X), softmax(made.fitted_.outputs(data), axis=1), rtol=1e-6)
    again = made.set_params(warm_start=True).fit(ROWS, SIGN)
    np.testing.assert_array_equal(again.fill_, data.fill)
    table = np.stack([row[:3, 0] for row in HOLES])
    of_table = clone(made).set_params(**TINY, warm_start=False).fit(table, SIGN)
    assert of_table.n_features_in_ == 3 and of_table.score(table, SIGN) > 0.9
    with refused("X: expected 2 channels, as in fit, found 3"):
        made.predict(np.ones((4, 5, 3)))


def test_several_targets_are_in_their_own_units():
    y = np.stack([LEVEL, 100 - 20 * LEVEL], 1)
    made = GRURegressor(**TINY).fit(ROWS, y)
    found = made.predict(NEW)
    expected = np.stack([NEW_LEVEL, 100 - 20 * NEW_LEVEL], 1)
    assert found.shape == (32, 2) and np.abs(found - expected).max(0)[0] < 0.4 and made.score(NEW, expected) > 0.9
    np.testing.assert_array_equal(found, made.fitted_.outputs(sequences(NEW)))


def test_ctrl_c_keeps_what_was_reached_and_ends_a_search(monkeypatch):
    whole = classifier().fitted_
    monkeypatch.setattr("grujax.estimators.sklearn.fit", lambda *_, **__: dataclasses.replace(whole, interrupted=True))
    made = GRUClassifier()
    with pytest.raises(KeyboardInterrupt):
        made.fit(ROWS, SIGN)
    assert made.fitted_.interrupted
    np.testing.assert_array_equal(made.predict(NEW), classifier().predict(NEW))
    search = GridSearchCV(GRUClassifier(), {"epochs": [1, 2]}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(ROWS, SIGN)


def test_more_channels_than_steps_are_announced():
    X, _ = padded(ROWS, filler=0.0)
    for read, wide in {"8 channels of 2": X.swapaxes(1, 2), "30 channels of 3": np.ones((32, 3, 30))}.items():
        with pytest.warns() as warned, refused("one class", "two classes"):
            GRUClassifier().fit(wide, ["one class"] * 32)
        said = [str(warning.message) for warning in warned]
        assert said == [f"X is read as (N, T, C), {read} steps. {TURN}"]
        with refused("two classes"):  # and no warning, which would be an error
            GRUClassifier(channels="last").fit(wide, ["one class"] * 32)
    with refused("X: expected 2 channels, as in fit, found 8", "channels='first' reads (N, C, T)"):
        classifier().predict(X.swapaxes(1, 2))
    with refused("X: expected 2 channels, as in fit, found 1", "one series (T, C) is X[None]"):
        classifier().predict(ROWS[0])
    assert classifier().predict(ROWS[0][None]) == classifier().predict(ROWS[:1])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GRUClassifier(hidden=3), "GRUClassifier takes no hidden= here: write hidden_size=."),
        (lambda: GRURegressor(seed=3), "GRURegressor takes no seed= here: write random_state=."),
        (lambda: GRUClassifier(units=3), "GRUClassifier takes no units= here: write hidden_size=."),
        (lambda: GRUClassifier(max_iter=3), "GRUClassifier takes no max_iter= here: write epochs=."),
        (lambda: GRUClassifier(zzz=3), "GRUClassifier takes no zzz= here: it takes hidden_size, num_layers, "),
        (lambda: GRUClassifier(batch_first=True), "GRUClassifier takes no batch_first= here: it takes hidden_size, "),
        (lambda: GRUForecaster(training_=3), "GRUForecaster takes no training_= here: write training=."),
        (lambda: GRUForecaster(device=3), "GRUForecaster takes no device= here: it takes horizon, season, "),
        (lambda: GRUForecaster(random_state=3), "GRUForecaster takes no random_state= here: write training=replace("),
        (
            lambda: GRUForecaster(lr=3),
            "GRUForecaster takes no lr= here: write training=replace(",
        ),
        (lambda: GRUForecaster(*range(14)), "GRUForecaster takes only horizon, season, lags, "),
        (lambda: GRUForecaster(horizons=3), "GRUForecaster takes no horizons= here: write horizon=."),
        (
            lambda: GRUForecaster(epochs=3),
            "GRUForecaster takes no epochs= here: write training=replace(GRUForecaster.training, epochs=...).",
        ),
    ],
)
def test_parameters_that_are_not_there_name_the_class_and_what_to_write(make, message):
    with pytest.raises(TypeError) as error:
        make()
    assert str(error.value).startswith(message)


def test_a_missing_scikit_learn_is_named(monkeypatch):
    spec = importlib.util.find_spec("grujax.estimators")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with refused("sklearn is required", "pip install 'grujax[sklearn]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


BAD = {
    "missing values": ({"X": HOLES}, ["nan at row 0, step 1", "missing='mask'"]),
    "one class": ({"y": ["up"] * 32}, ["y: expected at least two classes, found only 'up'."]),
    "one class with weight": ({"sample_weight": SIGN == "up"}, ["only 'up' where sample_weight is not 0"]),
    "unequal channels": ({"X": [*ROWS[:-1], ROWS[-1][:, :1]]}, ["2 channels as in row 0, found 1 in row 31"]),
    "strings": ({"X": [row.astype(str) for row in ROWS]}, ["real numbers", "<U"]),
    "four axes": ({"X": np.ones((32, 2, 2, 2))}, ["(N, T, C)", "(32, 2, 2, 2)"]),
    "no y": ({"y": None}, ["requires y to be passed"]),
    "negative weights": ({"sample_weight": -np.ones(32)}, ["sample_weight: expected 32 finite numbers", "-1.0 to"]),
    "lengths of a list": ({"lengths": np.ones(32, int)}, ["lengths cannot be given with a list"]),
    "no such width": ({"hidden_size": 0}, ["hidden_size: expected at least 1, found 0"]),
    "a width in words": ({"hidden_size": "64"}, ["hidden_size: expected an integer, found '64'"]),
    "a yes": ({"bidirectional": "yes"}, ["bidirectional: expected True or False, found 'yes'"]),
    "a share in words": ({"dropout": None}, ["dropout: expected a number, found None"]),
    "a width of yes": ({"hidden_size": True}, ["hidden_size: expected an integer, found True"]),
    "half an epoch": ({"epochs": 0.5}, ["epochs: expected an integer or None, found 0.5"]),
    "a seed in words": ({"random_state": "7"}, ["random_state: expected an integer", "found '7'"]),
    "no such way": ({"missing": "drop"}, ["missing: expected one of ['refuse', 'mask'], found 'drop'"]),
    "no such axis": ({"channels": "middle"}, ["channels: expected one of", "'middle'"]),
    "no such seed": ({"random_state": -1}, ["random_state: expected an integer from 0", "found -1"]),
    "a start in words": ({"warm_start": "no"}, ["warm_start: expected True or False, found 'no'"]),
    "a label that is missing": ({"y": ["up", None] * 16}, ["y: expected labels of one type, none of them missing"]),
    "weights in words": (
        {"sample_weight": "balanced"},
        ["sample_weight: expected 32 finite", "class_weights='balanced'"],
    ),
    "weights of no number": ({"sample_weight": {}}, ["sample_weight: expected 32 finite", "TypeError"]),
    "rows within rows": ({"X": [[[1.0, 2.0], [3.0]]] * 32}, ["x[0]: expected an array", "unequal sizes"]),
    "masked values": ({"X": np.ma.masked_greater(np.ones((32, 3, 2)), 0)}, ["nan at row 0", "missing='mask'"]),
    "masked weights": ({"sample_weight": np.ma.masked_equal(np.ones(32), 1)}, ["sample_weight: expected 32 finite"]),
}


def test_a_masked_value_is_a_missing_one():
    """NumPy's masked arrays store a value behind every mask; it must not be used."""
    x = np.random.default_rng(0).normal(size=(8, 5, 2)).astype("f")
    holes = np.ma.masked_greater(x, 1)
    expected = sequences(np.where(x > 1, np.nan, x), missing="mask").x
    np.testing.assert_array_equal(sequences(holes, missing="mask").x, expected)
    np.testing.assert_array_equal(sequences(list(holes), missing="mask").x, expected)
    with refused("y", "nan in row 4"):
        sequences(x, np.ma.masked_greater(np.arange(8.0), 3))
    with refused("lengths", "found nan in row 4"):
        sequences(x, lengths=np.ma.masked_greater([1, 2, 3, 4, 5, 5, 5, 5], 4))
    for X, y in ((holes[:, :, 0], np.arange(8.0)), (x, np.ma.masked_greater(np.arange(8.0), 3))):
        with pytest.raises(ValueError, match="NaN"):
            GRURegressor(**TINY).fit(X, y)


@pytest.mark.parametrize("X", [None, {}, 3.0], ids=str)
def test_what_is_no_array_is_refused_by_predict_too(X):
    regressor = GRURegressor(**TINY | {"epochs": 1}).fit(ROWS, np.arange(32.0))
    with pytest.raises(ValueError, match=r"real numbers|2D array"):
        regressor.predict(X)


def test_dates_are_no_targets():
    with refused("y: expected numbers, found dates or times", "Subtract"):
        GRURegressor(**TINY).fit(ROWS, np.arange(32).astype("M8[D]"))


def test_a_warm_start_goes_on_with_as_many_targets():
    regressor = GRURegressor(**TINY | {"epochs": 1, "warm_start": True}).fit(ROWS, np.arange(32.0))
    with refused("y: expected 1 targets a row, as in the first fit, found 2", "warm_start=False"):
        regressor.fit(ROWS, np.ones((32, 2)))


@pytest.mark.parametrize("name", BAD)
def test_input_that_cannot_be_served_is_refused(name):
    changes, parts = BAD[name]
    given = {"X": ROWS, "y": SIGN} | {k: v for k, v in changes.items() if k in ("X", "y", "sample_weight", "lengths")}
    parameters = {k: v for k, v in changes.items() if k not in ("X", "y", "sample_weight", "lengths")}
    with refused(*parts):
        GRUClassifier(**TINY | parameters).fit(**given)
