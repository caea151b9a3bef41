"""Training several heads at once: the sum of their losses, what each head learns, and what is refused."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn
from levels import SMALL
from refusals import refused

import grujax
from grujax.core.config import ModelConfig
from grujax.data import Batch, Dataset, Sequences, batches, load, sequences, stratified_split
from grujax.estimators import GRURegressor
from grujax.training import TrainConfig, baselines, fit, outputs_of, score
from grujax.training.rates import learning_rates
from grujax.training.rows import constants_of, fingerprint, row_weights, weighed
from grujax.training.step import Draws, gradient

CONFIG = dataclasses.replace(SMALL, epochs=25, mixup=0.0, input_offset=0.0)


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers with floats
        yield


def both(count, seed):
    """Two independent targets: the sign of the level of one channel, and the level of the other in other units."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(-1, 1, (count, 2))
    rows = [100 + 30 * (level + 0.1 * rng.normal(size=(rng.integers(3, 9), 2))) for level in levels]
    return sequences(rows, {"way": np.where(levels[:, 0] > 0, "up", "down"), "height": 1000 + 50 * levels[:, 1]})


DATA = Dataset("both", both(120, 0), both(40, 1))


def problem(per_step):
    """A model with two heads, its parameters, statistics and a batch of three rows and a filler, weighted per head."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 2, 4, 0], np.int32)
    x = rng.normal(size=(4, 5, 2)).astype(np.float32)
    shape = (4, 5) if per_step else (4,)
    classes = rng.integers(3, size=shape).astype(np.int32)
    values = rng.normal(size=(*shape, 2)).astype(np.float32)
    if per_step:
        classes[0, 1], values[0, 2], values[1, 0] = -1, np.nan, np.nan  # each head leaves out other steps
    real = (lengths > 0).astype(np.float32)
    weight = {"way": real * np.float32([0.5, 2, 1, 1]), "height": real * np.float32([3, 1, 0.25, 1])}
    batch = Batch(x, lengths, {"way": classes, "height": values}, weight, np.array([0, 1, 2, -1]))
    model = grujax.GRUModel(4, {"way": 3, "height": 2}, pooling=None if per_step else "max")
    statistics = {"input_mean": np.zeros(2, np.float32), "input_std": np.ones(2, np.float32)}
    statistics |= {"output_height_mean": np.float32([1, -2]), "output_height_std": np.float32([2, 0.5])}
    return model, drawn(model, x)["params"], statistics, batch


compiled = partial(jax.jit, static_argnums=(0, 1))(gradient)


@pytest.mark.parametrize("per_step", [False, pytest.param(True, marks=pytest.mark.slow)])  # tested by hand below
def test_loss_and_gradient_are_the_sums_of_those_of_two_models_that_share_the_encoder(per_step):
    model, params, statistics, batch = problem(per_step)
    config = dataclasses.replace(SMALL, label_smoothing=0.1, input_noise=0.1)
    draws = Draws(np.float32([0.75, 0.9, 1.0, 1.0]), np.uint32(7))
    found, total = compiled(model, config, params, statistics, batch, draws)
    sums, encoder = 0.0, jax.tree.map(np.zeros_like, params["encoder"])
    for name, size in model.output_size.items():
        own = {"encoder": params["encoder"], "head": params[f"head_{name}"]}
        moments = {f"output_{s}": a for s in ("mean", "std") if (a := statistics.get(f"output_{name}_{s}")) is not None}
        alone = batch._replace(y=batch.y[name], weight=batch.weight[name])
        given = own, statistics | moments, alone, draws
        gradients, each = compiled(model.clone(output_size=size), config, *given)
        assert each > 0
        sums, encoder = sums + each, jax.tree.map(np.add, encoder, jax.device_get(gradients["encoder"]))
        jax.tree.map(np.testing.assert_array_equal, found[f"head_{name}"], gradients["head"])
    np.testing.assert_allclose(total, sums, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), found["encoder"], encoder)


def losses_by_hand(outputs, y, std):
    """The losses of each row or step in float64: cross-entropy, or the mean squared error in units of the variance."""
    outputs = np.asarray(outputs, np.float64)
    if std is not None:
        return (((outputs - y) / std) ** 2).mean(-1)
    return np.log(np.exp(outputs).sum(-1)) - np.take_along_axis(outputs, np.maximum(y, 0)[..., None], -1)[..., 0]


def test_no_head_is_named_as_a_field_of_a_model():
    """The layer of a head is the attribute head_NAME of the model. A taken name is refused when the rows are made."""
    names = [f.name.removeprefix("head_") for f in dataclasses.fields(ModelConfig) if f.name.startswith("head_")]
    assert len(names) == 2
    for name in names:
        with refused("output_size: expected heads whose layers have unique names"):
            grujax.GRUModel(4, {name: 1}).init(jax.random.key(0), jnp.ones((1, 1, 1)))
        with refused("y: expected heads not named as a field of a model"):
            sequences([[[1.0]], [[2.0]]], {name: [1.0, 2.0]})


@pytest.mark.parametrize("per_step", [False, True])
def test_the_loss_by_hand(per_step):
    """Without noise and mixing. Each head's mean is over its own rows, or over its own labelled steps."""
    model, params, statistics, batch = problem(per_step)
    config = dataclasses.replace(SMALL, input_offset=0.0, label_smoothing=0.0)
    _, total = compiled(model, config, params, statistics, batch, Draws(np.ones(4, np.float32), np.uint32(7)))
    outputs = jax.jit(model.apply)({"params": params, "statistics": statistics}, batch.x, lengths=batch.lengths)
    expected = 0.0
    for name, std in {"way": None, "height": np.array([2.0, 0.5])}.items():
        y, losses = (
            batch.y[name],
            losses_by_hand(outputs[name], batch.y[name], std) * _column(batch.weight[name], per_step),
        )
        if not per_step:
            expected += losses.sum()
            continue
        known = (y >= 0 if std is None else ~np.isnan(y[..., 0])) & (np.arange(5) < batch.lengths[:, None])
        expected += 3 * losses[known].mean()
    assert float(total) == pytest.approx(expected, rel=1e-5)


def _column(weight, per_step):
    return weight[:, None] if per_step else weight


def test_fit_learns_a_class_and_a_value_at_once(tmp_path):
    fitted = fit(CONFIG, DATA)
    assert dict(fitted.model.output_size) == {"way": 2, "height": 1}
    assert fitted.labels == {"way": ("down", "up"), "height": None}
    test = fitted.test
    assert test.accuracy is None and test.metrics == {
        "way accuracy": test.heads["way"].accuracy,
        "height rmse": test.heads["height"].rmse,
    }
    trivial = {name: baselines(DATA.train.of_head(name), DATA.test.of_head(name)) for name in DATA.train.targets}
    assert test.heads["way"].accuracy > 0.9 > trivial["way"]["majority class"]
    assert test.heads["height"].rmse < trivial["height"]["mean target"] / 3
    assert test.loss == pytest.approx(sum(of.loss for of in test.heads.values()), rel=1e-6)
    last = fitted.history[-1]
    assert (last.metric, last.validation_metric) == next(iter(last.validation_metrics.items()))
    assert list(last.validation_metrics) == ["way accuracy", "height rmse"]
    assert test.as_json()["heads"]["height"]["rmse"] == test.heads["height"].rmse

    outputs = outputs_of(fitted.model, fitted.variables, DATA.test)
    assert test.heads["way"].accuracy == (outputs["way"].argmax(1) == DATA.test.y["way"]).mean()
    error = outputs["height"][:, 0].astype(np.float64) - DATA.test.y["height"]
    assert test.heads["height"].rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    grujax.save(tmp_path / "m.safetensors", fitted.model, fitted.variables)
    model, variables = grujax.load(tmp_path / "m.safetensors")
    assert list(model.output_size) == ["way", "height"]
    again = outputs_of(model, variables, DATA.test)
    assert list(again) == ["way", "height"]
    jax.tree.map(np.testing.assert_array_equal, again, outputs)


def test_fit_learns_a_label_and_a_target_a_step():
    def split(count, seed):
        rng = np.random.default_rng(seed)
        rows = [rng.normal(size=(rng.integers(2, 6), 2)) for _ in range(count)]
        signs = [[None, *np.where(row[1:, 0] > 0, "high", "low")] for row in rows]
        return sequences(rows, {"sign": signs, "double": [10 + 2 * row[:, 1:] for row in rows]})

    data = Dataset("steps", split(100, 0), split(40, 1))
    fitted = fit(dataclasses.replace(CONFIG, learning_rate=0.05), data)
    heads, lengths = fitted.test.heads, data.test.lengths
    assert (heads["sign"].steps, heads["double"].steps) == ((lengths - 1).sum(), lengths.sum())
    assert heads["sign"].accuracy > 0.9 and heads["double"].r2 > 0.9


def test_a_run_that_was_ended_goes_on_with_the_same_bits(tmp_path, ends_at):
    config = dataclasses.replace(CONFIG, epochs=3, mixup=0.3, class_weights="balanced", head_weights={"height": 0.5})
    whole = fit(config, DATA)
    ends_at(9)
    assert fit(config, DATA, checkpoints=tmp_path).interrupted
    resumed = fit(config, DATA, checkpoints=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)
    metrics = [[epoch.validation_metrics for epoch in run.history] for run in (resumed, whole)]
    assert metrics[0] == metrics[1] and resumed.test.loss == whole.test.loss


def test_weights_of_heads_classes_and_rows():
    y = {"of": ["a"] * 6 + ["b"] * 2, "value": np.arange(8.0), "kind": ["c", "d"] * 4}
    data = sequences(np.random.default_rng(0).normal(size=(8, 3, 1)), y)
    data = dataclasses.replace(data, weight=np.arange(1, 9, dtype=np.float32))
    config = dataclasses.replace(SMALL, class_weights="balanced", head_weights={"kind": 0.5})
    found, own = row_weights(data, config), np.arange(1, 9)
    of_class = own * np.repeat([8 / 12, 8 / 4], [6, 2])
    np.testing.assert_allclose(found["of"], of_class / of_class.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["value"], own / 4.5, rtol=1e-6)
    np.testing.assert_allclose(found["kind"], 0.5 * own / 4.5, rtol=1e-6)
    (batch,) = batches(data, 9, (3,))
    np.testing.assert_array_equal(weighed(batch, found).weight["kind"], [*found["kind"], 0])

    outputs = {"of": np.zeros((8, 2)), "value": np.zeros((8, 1)), "kind": np.zeros((8, 2))}
    variables = {"statistics": constants_of(data)}
    plain = score(outputs, data, variables)
    lighter = score(outputs, data, variables, head_weights=config.head_weights)
    assert plain.loss - lighter.loss == pytest.approx(plain.heads["kind"].loss / 2) and plain.loss > lighter.loss
    config = dataclasses.replace(config, learning_rate=1e-30, mixup=0.0, input_offset=0.0, dropout=0.0, validation=0.0)
    fitted = fit(dataclasses.replace(config, class_weights="none", epochs=1), Dataset("weighed", data))
    assert fitted.history[0].loss == pytest.approx(fitted.scores(data).loss, rel=1e-5)
    assert np.isfinite(learning_rates(config, data, steps=10).losses).all()


def test_statistics_are_those_of_each_head_that_is_a_regression():
    found = constants_of(DATA.train)
    assert set(found) == {"input_mean", "input_std", "output_height_mean", "output_height_std"}
    np.testing.assert_allclose(found["output_height_mean"], [DATA.train.y["height"].mean()], rtol=1e-6)
    np.testing.assert_allclose(found["output_height_std"], [DATA.train.y["height"].std()], rtol=1e-5)


def test_rows_keep_the_targets_of_all_heads(tmp_path):
    data = DATA.train
    taken = data.take([5, 2])
    for name, y in data.y.items():
        np.testing.assert_array_equal(taken.y[name], y[[5, 2]])
        of = data.of_head(name)
        np.testing.assert_array_equal(of.y, y)
        assert of.labels == data.labels[name] and of.x is data.x
    rest, held = stratified_split(data, 0.25, 0)
    ups = [(part.y["way"] == 1).mean() for part in (data, rest, held)]
    np.testing.assert_allclose(ups, ups[0], atol=0.02)
    other = dataclasses.replace(data, y=data.y | {"height": data.y["height"] + 1})
    assert fingerprint(other) != fingerprint(data)

    x = np.random.default_rng(0).normal(size=(20, 4, 1))
    np.savez(tmp_path / "d.npz", X=x, y_way=["up", "down"] * 10, y_height=np.arange(20.0))
    loaded = load(tmp_path / "d.npz")
    assert loaded.train.labels == {"way": ("down", "up"), "height": None} == loaded.test.labels
    assert sorted([*loaded.train.y["height"], *loaded.test.y["height"]]) == [*range(20)]


X = np.zeros((4, 3, 1))
WAYS, HEIGHTS = ["a", "b"] * 2, np.arange(4.0)
TWO = {"way": WAYS, "height": HEIGHTS}


def dataset(*ys) -> Dataset:
    return Dataset("d", *(y if isinstance(y, Sequences) else sequences(X, y) for y in ys))


def training(**changes):
    return lambda: fit(dataclasses.replace(CONFIG, **changes), DATA)


REFUSED = {
    "no heads": (lambda: sequences(X, {}), "y: expected heads named by strings"),
    "a name with a slash": (lambda: sequences(X, {"a/b": WAYS}), "y: expected heads named by strings"),
    "a name that is empty": (lambda: sequences(X, {"": WAYS}), "y: expected heads named by strings"),
    "a head of another size": (lambda: sequences(X, {**TWO, "k": [1, 2]}), "y['k']: expected one value, or several"),
    "a missing value": (lambda: sequences(X, {"a": [1.0, np.nan, 1, 1]}), "y['a']: expected finite", "row 1 of data"),
    "a row": (lambda: sequences(X, {"a": [["b"] * 3] * 3 + [["b"]]}), "y['a'][3]: expected one label, or one list"),
    "steps beside rows": (lambda: sequences(X, {"a": WAYS, "b": [WAYS[:3]] * 4}), "for all heads or for none", "'b'"),
    "labels of another head": (lambda: sequences(X, TWO, labels={"way": WAYS}), "labels: expected class names, or No"),
    "labels of no head": (lambda: sequences(X, TWO, labels=WAYS), "labels: expected class names, or None, for each"),
    "labels of heads": (lambda: sequences(X, WAYS, labels={"way": WAYS}), "labels: expected class names, or None"),
    "a head that is not there": (lambda: DATA.train.of_head("level"), "name: expected one of ['way', 'height']"),
    "other heads in the test split": (lambda: dataset(TWO, {"way": WAYS}), "y: expected the heads 'way', 'height'"),
    "a head of another width": (
        lambda: dataset(TWO, {"way": WAYS, "height": np.ones((4, 2))}),
        "y['height']: expected targets () per row as in training, found (2,) per row",
    ),
    "other classes": (lambda: dataset(TWO, {**TWO, "way": ["a", "c"] * 2}), "labels['way']: expected 'a', 'b' as in"),
    "quantiles": (training(quantiles=(0.5,)), "quantiles needs a regression with a single head", "of_head(name)"),
    "members": (training(members=2), "members=2 needs a single head"),
    "weight of no head": (training(head_weights={"level": 1.0}), "head_weights: expected heads of the data: 'way', 'h"),
    "a weight of one head": (
        lambda: fit(dataclasses.replace(SMALL, head_weights={"way": 2.0}), dataset(WAYS)),
        "head_weights: expected heads of the data: none, found 'way'",
    ),
    "no weight": (lambda: TrainConfig(head_weights={"way": 0}), "head_weights: expected a positive number for each"),
    "a weight as a word": (lambda: TrainConfig(head_weights={"way": "2"}), "head_weights: expected a positive number"),
    "a weight past all floats": (lambda: TrainConfig(head_weights={"way": 10**400}), "head_weights: expected a positi"),
    "a name twice": (lambda: TrainConfig(head_weights=(("a", 1), ("a", 2))), "head_weights: expected a positive"),
    "no name": (lambda: TrainConfig(head_weights={"": 2.0}), "head_weights: expected a positive number"),
    "weights without names": (lambda: TrainConfig(head_weights=(1.0, 2.0)), "head_weights: expected a positive number"),
    "classes of none": (
        lambda: fit(dataclasses.replace(SMALL, class_weights="balanced"), dataset({"a": HEIGHTS, "b": HEIGHTS})),
        "class_weights='balanced' needs classes",
    ),
    "baselines": (lambda: baselines(DATA.train, DATA.test), "train: expected a single head", "of_head(name)"),
    "outputs of a single head": (lambda: score(np.zeros((40, 2)), DATA.test, {"statistics": {}}), "y: expected a sing"),
    "outputs of other heads": (
        lambda: score({"way": np.zeros((40, 2))}, DATA.test, {"statistics": {}}),
        "y: expected the heads 'way', as the model has, found the heads 'way', 'height'",
    ),
    "an estimator": (lambda: GRURegressor().fit(X, TWO), "y: expected the labels or targets of a single head"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_several_heads_is_refused_by_name(name):
    call, *parts = REFUSED[name]
    with refused(*parts):
        call()
