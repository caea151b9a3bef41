"""Training: the loss, what the statistics do, determinism, the choice of the best epoch, interrupts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grujax
from grujax.data import Batch, Dataset, load, sequences
from grujax.training import TrainConfig, baselines, fit, outputs_of, score
from grujax.training.step import TrainState, make_optimizer, row_losses, train_step


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's schedules mix integer counts with floats: they do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


SMALL = TrainConfig(hidden_size=8, epochs=8, batch_size=16, learning_rate=0.02, seed=3, buckets=1)


def ragged(count, seed, regression=False):
    """Sequences whose mean sign (or mean) is the target, 3 to 12 steps, 2 channels far from standard."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(-1, 1, count)
    rows = [100 + 30 * (level + 0.1 * rng.normal(size=(rng.integers(3, 13), 2))) for level in levels]
    return sequences(rows, levels if regression else np.where(levels > 0, "up", "down"))


DATA = Dataset("levels", ragged(80, 0), ragged(40, 1))
TARGETS = Dataset("levels", ragged(120, 0, True), ragged(40, 1, True))


def test_cross_entropy_by_hand():
    logits, y = jnp.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]], jnp.float32), jnp.array([1, 2])
    expected = [-2.0 + np.log(np.exp([1.0, 2.0, 0.5]).sum()), np.log(3.0)]
    np.testing.assert_allclose(row_losses(logits, y, {}), expected, rtol=1e-6)


def test_squared_error_is_in_units_of_the_targets_variance():
    outputs, y = jnp.array([[3.0], [10.0]], jnp.float32), jnp.array([1.0, 4.0], jnp.float32)
    losses = row_losses(outputs, y, {"output_std": jnp.array([2.0], jnp.float32)})
    np.testing.assert_allclose(losses, [1.0, 9.0], rtol=1e-6)


def step_of(batch):
    model = grujax.GRUModel(4, 2)
    params = model.init(jax.random.key(0), batch.x)["params"]
    optimizer = make_optimizer(SMALL, 10)
    state = TrainState(params, optimizer.init(params), jax.random.key(1))
    constants = {"input_mean": jnp.zeros(2, jnp.float32), "input_std": jnp.ones(2, jnp.float32)}
    for _ in range(2):  # the first step of the warm-up has rate zero
        state, total = train_step(model, optimizer, SMALL, state, constants, batch)
    return state.params, total


def test_filler_rows_change_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 5, 2)).astype(np.float32), np.array([0, 1, 1], np.int32)
    lengths, ones = np.array([5, 2, 4], np.int32), np.ones(3, np.float32)
    plain = step_of(Batch(x, lengths, y, ones, np.arange(3)))
    filled = step_of(
        Batch(
            np.concatenate([x, np.zeros((2, 5, 2), np.float32)]),
            np.concatenate([lengths, [0, 0]]).astype(np.int32),
            np.concatenate([y, [0, 0]]).astype(np.int32),
            np.concatenate([ones, [0, 0]]).astype(np.float32),
            np.array([0, 1, 2, -1, -1]),
        )
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, filled)


def test_fit_learns_classes_and_keeps_the_best_epoch():
    fitted = fit(dataclasses.replace(SMALL, buckets=2), DATA)
    assert fitted.test is not None and fitted.test.accuracy is not None and fitted.test.accuracy > 0.9
    losses = [epoch.validation_loss for epoch in fitted.history]
    assert len(losses) == 8 and fitted.best.epoch == 1 + int(np.argmin(losses))
    assert fitted.labels == ("down", "up")
    assert len(fitted.compiled.shapes) == 2


def test_fit_learns_targets_in_their_own_units():
    data = Dataset("moved", *(dataclasses.replace(s, y=s.y * 50 + 1000) for s in (TARGETS.train, TARGETS.test)))
    fitted = fit(dataclasses.replace(SMALL, epochs=25), data)
    assert fitted.test is not None and fitted.test.r2 is not None and fitted.test.r2 > 0.9
    outputs = outputs_of(fitted.model, fitted.variables, data.test)
    assert abs(outputs.mean() - 1000) < 50


def test_statistics_are_those_of_the_training_split_without_validation_and_test():
    fitted = fit(dataclasses.replace(SMALL, epochs=1), DATA)
    moved = Dataset("moved", DATA.train, dataclasses.replace(DATA.test, x=DATA.test.x * 7))
    again = fit(dataclasses.replace(SMALL, epochs=1), moved)
    from grujax.data import statistics, stratified_split

    mean, std = statistics(stratified_split(DATA.train, SMALL.validation, SMALL.seed)[0])
    for run in (fitted, again):
        np.testing.assert_array_equal(run.variables["statistics"]["input_mean"], mean)
        np.testing.assert_array_equal(run.variables["statistics"]["input_std"], std)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = (fit(dataclasses.replace(SMALL, epochs=2, seed=s), DATA) for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first.variables, again.variables)
    assert first.test is not None and again.test is not None and first.test.loss == again.test.loss
    w = ("params", "encoder", "gru", "l0", "w_hh")
    pick = [run.variables for run in (first, other)]
    for key in w:
        pick = [p[key] for p in pick]
    assert not np.array_equal(*pick)


def test_an_interrupt_keeps_the_best_so_far():
    def stop(epoch):
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    fitted = fit(SMALL, DATA, on_epoch=stop)
    assert fitted.interrupted and fitted.test is None and len(fitted.history) == 3

    def stop_at_once(compiled):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(SMALL, DATA, on_compiled=stop_at_once)


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(grujax.InputError, match="Lower --learning-rate"):
        fit(dataclasses.replace(SMALL, learning_rate=1e30), TARGETS)


def test_scores_by_hand():
    data = sequences([[[1.0]]] * 4, ["a", "b", "b", "a"])
    outputs = np.array([[2.0, 0], [0, 2], [2, 0], [2, 0]], np.float32)
    scores = score(outputs, data, {"statistics": {}})
    assert scores.accuracy == 0.75 and scores.confusion is not None
    np.testing.assert_array_equal(scores.confusion, [[2, 0], [1, 1]])
    assert scores.interval is not None  # Wilson's, by its formula
    n, p, z = 4, 0.75, 1.959963984540054
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(scores.interval, [(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)])


def test_baselines_on_japanese_vowels():
    data = load("JapaneseVowels")
    figures = baselines(data.train, data.test)
    majority = np.bincount(data.test.y)[0] / 370  # all classes have 30 training rows: the first is taken
    assert figures["majority class"] == pytest.approx(majority)
    assert 0.9 < figures["nearest neighbour"] < 0.97
    assert set(baselines(TARGETS.train, TARGETS.test)) == {"mean target", "nearest neighbour"}


@pytest.mark.parametrize(
    "field, value",
    [("hidden_size", 0), ("epochs", 0), ("dropout", 1.0), ("learning_rate", -1.0), ("learning_rate", float("nan")),
     ("validation", 0.0), ("seed", -1), ("pooling", "sum"),
     ("clip_norm", 0.0), ("weight_decay", -1.0), ("batch_size", 0)],
)  # fmt: skip
def test_configurations_that_cannot_be(field, value):
    with pytest.raises(grujax.InputError, match=f"^{field}: expected"):
        TrainConfig(**{field: value})
