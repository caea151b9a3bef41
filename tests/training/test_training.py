"""Training: the loss, the effect of the statistics, determinism, the choice of the best epoch, interrupts."""

import contextlib
import dataclasses
import functools
import gc
import json
import os
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import compilations
from levels import DATA, SMALL, TARGETS, assert_fit_takes_the_steps_of_train_step
from scipy.special import log_softmax

import grujax
from grujax.data import Batch, Dataset, load, sequences, statistics, stratified_split
from grujax.training import TrainConfig, baselines, chosen, fit, loop, outputs_of, score
from grujax.training.rows import class_weights, fingerprint, row_weights
from grujax.training.step import (
    Draws,
    disturb,
    draw,
    ended,
    initial_state,
    make_optimizer,
    mix,
    mixed_loss,
    new_parameters,
    row_losses,
    train_step,
)


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's schedules mix integer counts with floats: they do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_cross_entropy_by_hand():
    logits, y = jnp.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]], jnp.float32), jnp.array([1, 2])
    expected = [-2.0 + np.log(np.exp([1.0, 2.0, 0.5]).sum()), np.log(3.0)]
    np.testing.assert_allclose(row_losses(logits, y, {}), expected, rtol=1e-6)


def test_squared_error_is_in_units_of_the_targets_variance():
    outputs, y = jnp.array([[3.0], [10.0]], jnp.float32), jnp.array([1.0, 4.0], jnp.float32)
    losses = row_losses(outputs, y, {"output_std": jnp.array([2.0], jnp.float32)})
    np.testing.assert_allclose(losses, [1.0, 9.0], rtol=1e-6)


def test_the_pinball_loss_by_hand():
    """Two targets with two quantiles each, side by side."""
    outputs, y = jnp.array([[1.0, 3.0, 0.0, 8.0]], jnp.float32), jnp.array([[2.0, 4.0]], jnp.float32)
    statistics = {"output_std": jnp.array([2.0, 2.0, 4.0, 4.0], jnp.float32)}
    losses = row_losses(outputs, y, statistics, quantiles=(0.1, 0.9))
    expected = [0.1 * 1 / 2, 0.1 * 1 / 2, 0.1 * 4 / 4, 0.1 * 4 / 4]
    np.testing.assert_allclose(losses, [np.mean(expected)], rtol=1e-6)
    losses = row_losses(outputs, y, statistics, quantiles=(0.1, 0.7))
    np.testing.assert_allclose(losses, [np.mean([0.05, 0.3 * 1 / 2, 0.1, 0.3 * 4 / 4])], rtol=1e-6)


def test_quantiles_are_what_is_trained_scored_and_kept():
    """Constant inputs and exponential targets with scales 1 and 1000: the outputs are quantiles of the distribution."""
    y = np.random.default_rng(0).exponential(size=(600, 1)) * [1.0, 1000.0]
    data = Dataset("exponential", sequences(np.ones((600, 2, 1)), y))
    config = dataclasses.replace(SMALL, quantiles=[0.1, 0.5, 0.9], mixup=0.0, batch_size=100, epochs=20)
    fitted = fit(config, data)
    outputs = outputs_of(fitted.model, fitted.variables, data.train)
    expected = -np.log(1 - np.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(outputs[0].reshape(2, 3) / [[1], [1000]], [expected] * 2, rtol=0.12, atol=0.06)
    found = fitted.scores(data.train)
    assert found.rmse == pytest.approx(np.sqrt(np.mean((outputs[:, [1, 4]] - y) ** 2, axis=0)).mean(), rel=1e-5)
    error = (y[:, :, None] - outputs.reshape(-1, 2, 3)) / y.std(0)[:, None]
    levels = np.array([0.1, 0.5, 0.9])
    assert found.loss == pytest.approx(np.maximum(levels * error, (levels - 1) * error).mean(), rel=0.02)
    with pytest.raises(grujax.InputError, match=r"^quantiles needs a regression"):
        fit(dataclasses.replace(SMALL, quantiles=(0.5,)), DATA)


def test_smoothed_labels_by_hand():
    logits, y = np.array([[1.0, 2.0, 0.5]], np.float32), jnp.array([1])
    log_p = logits[0] - np.log(np.exp(logits[0]).sum())
    expected = -(0.8 + 0.2 / 3) * log_p[1] - 0.2 / 3 * (log_p[0] + log_p[2])
    np.testing.assert_allclose(row_losses(jnp.asarray(logits), y, {}, 0.2), [expected], rtol=1e-6)
    data = sequences([[[1.0]]], ["b"], labels=("a", "b", "c"))
    assert score(logits, data, {"statistics": {}}, 0.2).loss == pytest.approx(expected, rel=1e-6)
    assert score(logits, data, {"statistics": {}}).loss == pytest.approx(-log_p[1], rel=1e-6)


@pytest.mark.parametrize("noise, offset", [(0.5, 0.0), (0.0, 0.3), (0.5, 0.3), (0.0, 0.0)])
def test_noise_is_new_at_every_step_and_the_offset_one_a_sequence(noise, offset):
    config = TrainConfig(input_noise=noise, input_offset=offset)
    x, std = jnp.ones((20000, 3, 2), jnp.float32), jnp.array([1.0, 10.0], jnp.float32)
    added = np.float64(disturb(jax.random.key(0), x, std, config) - x) / np.float64(std)
    covariance = np.cov(added.reshape(20000, 6).T)  # between (step, channel) and (step, channel)
    expected = noise**2 * np.eye(6) + offset**2 * np.kron(np.ones((3, 3)), np.eye(2))
    np.testing.assert_allclose(covariance, expected, atol=0.01)
    np.testing.assert_allclose(added.mean(0), 0, atol=0.02)


def test_the_optimizer_clips_decays_rises_and_falls():
    config = TrainConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=2.0, warmup=0.25)
    optimizer, w = make_optimizer(config, 8), np.array([1.0, -2.0], np.float32)
    state, step = optimizer.init(w), jax.jit(optimizer.update)
    _, clipped = step(np.array([30.0, 40.0], np.float32), state, w)
    moment = optax.tree_utils.tree_get(clipped, "mu")  # a tenth of the gradient, clipped to norm 2
    np.testing.assert_allclose(moment, [0.12, 0.16], rtol=1e-5)
    rates = []
    for _ in range(9):  # without a gradient only the weight decay moves the weights
        update, state = jax.device_get(step(np.zeros(2, np.float32), state, w))
        np.testing.assert_allclose(update[1], -2 * update[0], rtol=1e-5)
        rates.append(-float(update[0]) / 0.5)
    falling = 0.05 * (1 + np.cos(np.pi * np.arange(7) / 6))
    np.testing.assert_allclose(rates, [0, 0.05, *falling], atol=1e-7)


def test_mixing_by_hand():
    x = jnp.asarray(np.arange(12.0, dtype=np.float32).reshape(4, 3, 1))
    lengths, weight = jnp.array([3, 1, 2, 0]), jnp.array([1.0, 1.0, 1.0, 0.0], jnp.float32)
    share, mixed, lengths, partner = mix(jnp.array([0.9, 0.75, 1.0, 0.5], jnp.float32), x, lengths, weight)
    np.testing.assert_array_equal(partner, [3, 0, 1, 2])
    np.testing.assert_array_equal(share, [1, 0.75, 1, 1])  # the partner of the first row is filler, as is the last row
    np.testing.assert_array_equal(lengths, [3, 1, 2, 0])
    np.testing.assert_array_equal(mixed[:, :, 0], [[0, 1, 2], [2.25, 3.25, 4.25], [6, 7, 8], [9, 10, 11]])
    *_, lengths, _ = mix(jnp.full(4, 0.8, jnp.float32), x, jnp.array([3, 1, 2, 2]), jnp.ones(4, jnp.float32))
    np.testing.assert_array_equal(lengths, [2, 1, 1, 2])


def test_the_draws_of_a_step_follow_from_the_seed_and_its_number_and_the_share_is_the_larger_side_of_a_beta():
    config = TrainConfig(mixup=0.3, batch_size=100000)
    share, seed = draw(config, 5)
    assert share.min() >= 0.5 and share.dtype == np.float32
    other = np.minimum(share, 1 - share)
    assert np.mean(share * other) == pytest.approx(0.25 * 0.6 / 1.6, rel=0.02)  # E b(1 - b) = a / (2 (2a + 1))
    again, others = draw(config, 5), (draw(config, 6), draw(dataclasses.replace(config, seed=1), 5))
    np.testing.assert_array_equal(again.share, share)
    assert again.seed == seed and all(other.seed != seed and (other.share != share).any() for other in others)
    np.testing.assert_array_equal(draw(TrainConfig(mixup=0.0, batch_size=3), 0).share, [1, 1, 1])


def test_fit_takes_the_steps_of_train_step_with_rows_of_two_padded_lengths():
    config = dataclasses.replace(SMALL, epochs=4, validation=0.0, buckets=2, dropout=0.5, mixup=0.3)
    config = dataclasses.replace(config, bidirectional=True)
    assert_fit_takes_the_steps_of_train_step(config, DATA)


def steps_of(batch, config=SMALL, count=2, share=1.0, dropout=0.0):  # the first step of the warm-up has rate zero
    model = grujax.GRUModel(4, 2, dropout=dropout)
    state = initial_state(new_parameters(model, 2, jax.random.key(0)), make_optimizer(config, 10), config)
    constants = {"input_mean": np.zeros(2, np.float32), "input_std": np.ones(2, np.float32)}
    share, before = np.full(len(batch.y), share, np.float32), 0.0
    for number in range(count):
        state = train_step(model, config, 10, state, constants, batch, Draws(share, np.uint32(number)))
        total, before = float(state.loss) - before, float(state.loss)
        trees = state.params, ended(config, 10, state).average
        yield jax.tree.map(np.array, trees), total  # copies: the next step donates the state's buffers


def step_of(batch):
    *_, ((params, _), total) = steps_of(batch)
    return params, total


def some_batch():
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    y, lengths = np.array([0, 1, 1], np.int32), np.array([5, 2, 4], np.int32)
    return Batch(x, lengths, y, np.ones(3, np.float32), np.arange(3))


def test_the_average_is_the_mean_of_the_weights_so_far_each_older_one_counting_less():
    config = dataclasses.replace(SMALL, averaging=0.4)  # the average spans 4 of 10 steps
    trees = [trees for trees, _ in steps_of(some_batch(), config, count=4)]
    weights = 0.75 ** np.arange(3, -1, -1)
    for k in ("kernel", "bias"):
        params = np.stack([tree["head"][k] for tree, _ in trees])
        assert abs(params[-1] - params[0]).max() > 1e-3
        expected = np.tensordot(weights / weights.sum(), params, 1)
        np.testing.assert_allclose(trees[-1][1]["head"][k], expected, rtol=1e-5)


def test_the_loss_of_mixed_rows_is_mixed_alike():
    batch = some_batch()
    config = dataclasses.replace(SMALL, input_noise=0.0, input_offset=0.0, label_smoothing=0.0)
    (_, total), *_ = steps_of(batch, config, count=1, share=0.75)
    model, previous = grujax.GRUModel(4, 2), [2, 0, 1]
    variables = {"params": new_parameters(model, 2, jax.random.key(0))}
    x = np.float32(0.75) * batch.x + np.float32(0.25) * batch.x[previous]
    outputs = jax.jit(model.apply)(variables, x, lengths=np.minimum(batch.lengths, batch.lengths[previous]))
    log_p = log_softmax(outputs, -1)[np.arange(3)[:, None], np.stack([batch.y, batch.y[previous]], 1)]
    np.testing.assert_allclose(total, -(log_p @ np.float32([0.75, 0.25])).sum(), rtol=1e-5)


def test_training_drops_out():
    (_, total), *_ = steps_of(some_batch(), count=1, dropout=1.0)
    bias = new_parameters(grujax.GRUModel(4, 2, dropout=1.0), 2, jax.random.key(0))["head"]["bias"]
    expected = -log_softmax(bias)[some_batch().y].sum()  # with dropout 1 the logits are the bias
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_the_loss_is_the_mean_over_the_rows_that_are_no_filler():
    """Adam normalises the gradient, so an update does not show by how many rows the loss was divided."""
    outputs = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    y, weight = np.array([1, 0, 0, 0]), np.array([1, 0.5, 0, 0], np.float32)
    share, partner = np.ones(4, np.float32), np.arange(4)
    loss = jax.jit(functools.partial(mixed_loss, dataclasses.replace(SMALL, label_smoothing=0.0)))
    mean, total = loss(outputs, y, {}, np.full(4, 3), share, partner, weight)
    losses = -log_softmax(outputs, -1)[np.arange(2), y[:2]]
    np.testing.assert_allclose(total, losses[0] + 0.5 * losses[1], rtol=1e-6)
    np.testing.assert_allclose(mean, total / 2, rtol=1e-6)


def test_filler_rows_change_nothing():
    batch = some_batch()
    x, lengths, y, ones, _ = batch
    plain = step_of(batch)
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


def test_filler_rows_leave_the_outputs_of_others_alone():
    """A filler row has the row number -1, which must not be taken for the last row of the data."""
    rng = np.random.default_rng(0)
    data = sequences([rng.normal(size=(steps, 2)) for steps in (6, 5, 5, 2)])
    model = grujax.GRUModel(4, 2)
    variables = {"params": new_parameters(model, 2, jax.random.key(0))}
    found = outputs_of(model, variables, data, batch_size=2, boundaries=(3, 6))
    expected = jax.jit(model.apply)(variables, data.x, lengths=data.lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_fit_learns_classes_and_keeps_the_best_epoch():
    fitted = fit(dataclasses.replace(SMALL, buckets=2), DATA)
    assert fitted.test is not None and fitted.test.accuracy is not None and fitted.test.accuracy > 0.9
    losses = [epoch.validation_loss for epoch in fitted.history]
    assert len(losses) == 8 and fitted.best.epoch == 1 + int(np.argmin(losses))
    assert fitted.history[0].loss == pytest.approx(np.log(2), rel=0.3)  # a mean, and nothing is learnt yet
    assert fitted.labels == ("down", "up")
    assert len(fitted.compiled.shapes) == 2


def test_without_validation_all_rows_are_trained_on_and_the_last_average_is_kept():
    epochs, best = [], []
    fitted = fit(dataclasses.replace(SMALL, validation=0.0), DATA, on_epoch=epochs.append, on_best=best.append)
    assert fitted.test is not None and fitted.test.accuracy is not None and fitted.test.accuracy > 0.9
    assert fitted.best == fitted.history[-1] and len(best) == 8 and all(epoch.best for epoch in epochs)
    assert all(e.validation_loss is None and e.validation_metric is None and e.metric == "" for e in epochs)
    mean, _ = statistics(DATA.train)
    np.testing.assert_array_equal(fitted.variables["statistics"]["input_mean"], mean)
    run = [fitted.variables["params"]["head"]["bias"], best[0].variables["params"]["head"]["bias"]]
    assert not np.array_equal(*run)


def test_training_ends_after_so_many_epochs_without_a_smaller_validation_loss(tmp_path):
    config = dataclasses.replace(SMALL, epochs=40, learning_rate=0.2, patience=3)
    fitted = fit(config, DATA, checkpoints=tmp_path)
    last = fitted.history[-1].epoch
    assert last < 40 and fitted.best.epoch == last - 3 and not fitted.interrupted
    assert fit(config, DATA, checkpoints=tmp_path).history == fitted.history
    with pytest.raises(grujax.InputError, match=r"^patience needs validation"):
        fit(dataclasses.replace(config, validation=0.0), DATA)


def test_figures_of_speed_are_of_valid_steps_and_add_up():
    fitted = fit(dataclasses.replace(SMALL, buckets=2), DATA)
    rows, _ = stratified_split(DATA.train, SMALL.validation, SMALL.seed)
    for epoch in fitted.history:
        assert 0 <= epoch.data_seconds < epoch.seconds and epoch.validation_seconds >= 0
        assert epoch.sequences_per_second * epoch.seconds == pytest.approx(len(rows))
        assert epoch.steps_per_second * epoch.seconds == pytest.approx(rows.lengths.sum())
    assert fitted.history[0].data_seconds > 0  # the second epoch's batches may all be made during the first


@pytest.mark.parametrize("short", [0, 60])
def test_a_batch_is_made_once_and_by_compilation_one(short, monkeypatch):
    made, batch_of = [], loop.batch_of

    def counting(data, rows, steps):
        made.append(len(rows))
        return batch_of(data, rows, steps)

    monkeypatch.setattr(loop, "SHORT", short)
    monkeypatch.setattr(loop, "batch_of", counting)
    fitted = fit(dataclasses.replace(SMALL, epochs=4, validation=0.0, batch_size=2), DATA)
    assert sum(made) == 1 + 4 * 40 and max(made) == (1 if short == 0 else 16)
    assert all(np.isfinite(epoch.loss) for epoch in fitted.history)


@pytest.mark.parametrize("ends", ["of patience", "by an error"])
def test_a_run_that_ends_early_keeps_no_arrays(ends, monkeypatch):
    """Memory is freed without the cyclic garbage collector, which does not see how much memory the devices hold."""
    runs = []

    def made(*args, begin=loop.Training.begin, **options):
        runs.append(weakref.ref(args[0]))
        return begin(*args, **options)

    def stop(epoch):
        if ends == "by an error":
            raise ValueError("enough")

    monkeypatch.setattr(loop.Training, "begin", made)
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            fit(dataclasses.replace(SMALL, epochs=40, learning_rate=0.2, patience=3), DATA, on_epoch=stop)
        assert [run() for run in runs] == [None]
    finally:
        gc.enable()


def test_rows_of_another_dtype_are_trained_on_as_float32():
    half = dataclasses.replace(DATA.train, x=DATA.train.x.astype(np.float16))
    same = dataclasses.replace(half, x=half.x.astype(np.float32))
    one, other = (fit(SMALL, Dataset("levels", rows)).variables for rows in (half, same))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, other)


def test_a_data_set_needs_no_test_split():
    fitted = fit(SMALL, Dataset("alone", DATA.train))
    assert fitted.test is None and not fitted.interrupted
    assert fitted.scores(DATA.test).rows == 40
    with pytest.raises(grujax.InputError, match=r"^y: expected labels or targets in the training split"):
        Dataset("unlabelled", sequences([[[1.0]]]))


def test_long_series_are_read_in_frames_and_the_model_keeps_them(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    split = sequences(rng.normal(size=(40, 130, 1)) + 2 * y[:, None, None], np.where(y, "up", "down"))
    fitted = fit(dataclasses.replace(SMALL, epochs=3), Dataset("long", split, split))
    assert fitted.model.steps_per_frame == 3  # 44 frames
    assert fitted.variables["params"]["encoder"]["gru"]["l0"]["w_ih"].shape == (3, 24)
    grujax.save(tmp_path / "m.safetensors", fitted.model, fitted.variables)
    model, variables = grujax.load(tmp_path / "m.safetensors")
    found = score(outputs_of(model, variables, split), split, variables)
    assert fitted.test is not None and found.loss == pytest.approx(fitted.test.loss, rel=1e-5)


@pytest.mark.parametrize(
    "rows, steps, config, expected",
    [
        (40, 50, {}, {"validation": 0.0, "epochs": 400, "steps_per_frame": 1}),  # 3 training steps per epoch
        (40, 51, {"batch_size": 2}, {"validation": 0.0, "epochs": 100, "steps_per_frame": 2}),
        (294, 1460, {}, {"validation": 0.0, "epochs": 100, "steps_per_frame": 30}),
        (296, 1, {}, {"validation": 0.1, "epochs": 100, "steps_per_frame": 1}),  # 29.6 rows are rounded to 30
        (20, 1, {"epochs": 7, "steps_per_frame": 9}, {"validation": 0.0, "epochs": 7, "steps_per_frame": 9}),
        (20, 1, {"validation": 0.5}, {"validation": 0.5, "epochs": 1200, "steps_per_frame": 1}),
    ],
)
def test_settings_that_choose_themselves(rows, steps, config, expected):
    found, why = chosen(TrainConfig(**config), sequences(np.zeros((rows, steps, 1))))
    assert {name: getattr(found, name) for name in expected} == expected
    assert found == dataclasses.replace(TrainConfig(**config), **expected, pooling="max")
    alone = {name for name in expected if name not in config}
    assert set(why) == alone - ({"steps_per_frame"} if expected["steps_per_frame"] == 1 else set())
    assert chosen(found, sequences(np.zeros((rows, steps, 1)))) == (found, {})


def test_fit_learns_several_targets_each_in_its_own_units(tmp_path):
    two = [dataclasses.replace(s, y=np.stack([s.y * 50 + 1000, -s.y], 1)) for s in (TARGETS.train, TARGETS.test)]
    fitted = fit(dataclasses.replace(SMALL, epochs=25), Dataset("two", *two))
    assert fitted.model.output_size == 2 and fitted.test is not None and fitted.test.r2 is not None
    assert fitted.test.r2 > 0.9
    outputs = outputs_of(fitted.model, fitted.variables, two[1])
    errors = np.sqrt(((outputs - two[1].y) ** 2).mean(0))
    assert errors[0] > 5 * errors[1]  # their units differ
    assert fitted.test.rmse == pytest.approx(errors.mean(), rel=1e-4)
    assert baselines(*two)["mean target"] > fitted.test.rmse
    with pytest.raises(grujax.InputError, match=r"^y: expected 2 targets for each row, as the model has"):
        fitted.scores(TARGETS.test)
    with pytest.raises(
        grujax.InputError, match=r"^y: expected targets \(2,\) per row as in training, found \(\) per row"
    ):
        Dataset("both", two[0], TARGETS.test)


def test_squared_error_of_several_targets_is_their_mean():
    outputs, y = jnp.array([[3.0, 1.0], [10.0, 0.0]], jnp.float32), jnp.array([[1.0, 1.0], [4.0, 4.0]], jnp.float32)
    losses = row_losses(outputs, y, {"output_std": jnp.array([2.0, 4.0], jnp.float32)})
    np.testing.assert_allclose(losses, [0.5, 5.0], rtol=1e-6)


@pytest.mark.slow  # tested with several targets above, and with a head in test_heads.py
def test_fit_learns_targets_in_their_own_units():
    data = Dataset("moved", *(dataclasses.replace(s, y=s.y * 50 + 1000) for s in (TARGETS.train, TARGETS.test)))
    fitted = fit(dataclasses.replace(SMALL, epochs=25), data)
    assert fitted.test is not None and fitted.test.r2 is not None and fitted.test.r2 > 0.9
    outputs = outputs_of(fitted.model, fitted.variables, data.test)
    assert abs(outputs.mean() - 1000) < 50


def test_statistics_are_those_of_the_training_split_without_validation_and_test():
    fitted = fit(SMALL, DATA)
    moved = Dataset("moved", DATA.train, dataclasses.replace(DATA.test, x=DATA.test.x * 7))
    again = fit(SMALL, moved)
    mean, std = statistics(stratified_split(DATA.train, SMALL.validation, SMALL.seed)[0])
    for run in (fitted, again):
        np.testing.assert_array_equal(run.variables["statistics"]["input_mean"], mean)
        np.testing.assert_array_equal(run.variables["statistics"]["input_std"], std)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = (fit(dataclasses.replace(SMALL, seed=s), DATA) for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first.variables, again.variables)
    assert first.test is not None and again.test is not None and first.test.loss == again.test.loss
    w = ("params", "encoder", "gru", "l0", "w_hh")
    pick = [run.variables for run in (first, other)]
    for key in w:
        pick = [p[key] for p in pick]
    assert not np.array_equal(*pick)


def test_ten_equal_fits_compile_once_and_keep_nothing():
    counts, pages = [], []
    for seed in (3, 3, 3, 3, 3, 4, 3, 3, 3, 3):
        config = dataclasses.replace(SMALL, hidden_size=6, epochs=2, seed=seed)
        counts.append(compilations(lambda config=config: fit(config, DATA).variables))
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert counts[0] > 0 and counts[1:] == [0] * 9
    assert (pages[-1] - pages[2]) * os.sysconf("SC_PAGE_SIZE") < 2**24


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


def test_an_interrupt_in_the_first_epoch_stays_one(monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "outputs_of", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(SMALL, DATA)


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(grujax.InputError, match="Lower --learning-rate"):
        fit(dataclasses.replace(SMALL, learning_rate=1e30), TARGETS)


def test_scores_by_hand():
    data = sequences([[[1.0]]] * 4, ["a", "b", "b", "a"])
    outputs = np.array([[2.0, 0], [0, 2], [2, 0], [2, 0]], np.float32)
    scores = score(outputs, data, {"statistics": {}})
    assert scores.accuracy == 0.75 and scores.confusion is not None
    np.testing.assert_array_equal(scores.confusion, [[2, 0], [1, 1]])
    assert scores.interval is not None  # Wilson's interval, by its formula
    n, p, z = 4, 0.75, 1.959963984540054
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(scores.interval, [(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)])


def test_many_classes_have_figures_but_no_confusion_matrix():
    for count in (100, 102):
        data = sequences(np.ones((count, 1, 1)), np.arange(count))
        scores = score(np.eye(count, dtype=np.float32)[:, ::-1], data, {"statistics": {}})
        found = scores.as_json()
        assert (scores.confusion is not None) == ("confusion" in found) == (count == 100)
        assert found["rows"] == count and scores.accuracy == 0 and json.loads(json.dumps(found)) is not None
        assert len(json.dumps(found)) < 40_000


def two_rows_a_class():
    return sequences(np.ones((200, 2, 1)), np.arange(200) // 2)


def test_a_tenth_is_held_out_where_it_is_not_one_row_a_class():
    rest, held = stratified_split(two_rows_a_class(), 0.1, 0)
    assert (len(rest), len(held)) == (180, 20)


@pytest.mark.slow  # its parts are tested above: the split, and the figures of many classes
def test_many_classes_are_trained():
    split = two_rows_a_class()
    fitted = fit(TrainConfig(hidden_size=2, epochs=1, batch_size=100, validation=0.1), Dataset("many", split, split))
    assert fitted.test is not None and fitted.test.rows == 200 and len(fitted.history) == 1


def test_baselines_on_japanese_vowels():
    data = load("JapaneseVowels")
    figures = baselines(data.train, data.test)
    majority = np.bincount(data.test.y)[0] / 370  # all classes have 30 training rows: the first is taken
    assert figures["majority class"] == pytest.approx(majority)
    assert 0.9 < figures["nearest neighbour"] < 0.97
    assert set(baselines(TARGETS.train, TARGETS.test)) == {"mean target", "nearest neighbour"}


def test_weights_of_rows_that_cannot_be_are_refused():
    rows = len(DATA.train)
    for weight in (np.zeros(rows), -np.ones(rows), np.full(rows, np.inf), np.ones(rows + 1)):
        train = dataclasses.replace(DATA.train, weight=weight.astype(np.float32))
        with pytest.raises(grujax.InputError, match=f"^weight: expected {rows} positive numbers"):
            Dataset("weighed", train)


@pytest.mark.parametrize(
    "field, value",
    [("hidden_size", 0), ("epochs", 0), ("dropout", 1.0), ("learning_rate", -1.0), ("learning_rate", float("nan")),
     ("validation", 1.0), ("validation", -0.1), ("steps_per_frame", 0), ("accumulate", 0), ("precision", "float16"),
     ("class_weights", "even"), ("patience", 0), ("seed", -1), ("pooling", "sum"),
     ("clip_norm", 0.0), ("weight_decay", -1.0), ("input_offset", -1.0), ("mixup", -1.0), ("averaging", 1.0),
     ("batch_size", 0), ("quantiles", (0.9, 0.1)), ("quantiles", (0.0, 0.5)), ("quantiles", (0.5, 0.5))],
)  # fmt: skip
def test_configurations_that_cannot_be(field, value):
    with pytest.raises(grujax.InputError, match=f"^{field}: expected"):
        TrainConfig(**{field: value})


def test_the_mean_gradient_of_several_steps_moves_the_weights_once():
    """Accumulating two halves of a batch equals the batch, up to rounding; the weights do not move in between."""
    batch = Batch(*(np.concatenate([a, a[::-1]]) for a in some_batch()))
    halves = [Batch(*(a[part] for a in batch)) for part in (slice(0, 3), slice(3, 6))]
    plain = dataclasses.replace(SMALL, input_offset=0.0, input_noise=0.0, mixup=0.0, warmup=0.0)
    model = grujax.GRUModel(4, 2)
    params = jax.device_get(new_parameters(model, 2, jax.random.key(0)))
    constants = {"input_mean": np.zeros(2, np.float32), "input_std": np.ones(2, np.float32)}
    found = {}
    for count, parts in ((1, [batch, batch]), (2, [*halves, *halves])):
        config, moved = dataclasses.replace(plain, accumulate=count), []
        state = initial_state(jax.device_put(params), make_optimizer(config, 4 * count), config)
        for part in parts:
            draws = Draws(np.ones(len(part.y), np.float32), np.uint32(0))
            state = train_step(model, config, 4 * count, state, constants, part, draws)
            moved.append(np.array(state.params["head"]["kernel"]))
        found[count] = moved
    np.testing.assert_array_equal(found[2][0], params["head"]["kernel"])
    np.testing.assert_array_equal(found[2][1], found[2][2])
    np.testing.assert_allclose(found[2][3], found[1][1], rtol=1e-4, atol=1e-6)
    assert abs(found[1][1] - found[2][0]).max() > 1e-3


def test_bfloat16_is_the_dtype_of_the_products_and_of_nothing_else(tmp_path):
    fitted = fit(dataclasses.replace(SMALL, precision="bfloat16"), DATA)
    plain = fit(SMALL, DATA)
    assert fitted.model.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(fitted.variables)} == {jnp.dtype("float32")}
    assert fitted.history[0].loss != plain.history[0].loss
    assert fitted.history[0].loss == pytest.approx(plain.history[0].loss, rel=0.02)
    assert fitted.test is not None and fitted.test.accuracy is not None and fitted.test.accuracy > 0.9
    grujax.save(tmp_path / "m.safetensors", fitted.model, fitted.variables)
    assert grujax.load(tmp_path / "m.safetensors")[0] == fitted.model


def test_balanced_classes_count_alike():
    y = np.array(["a"] * 6 + ["b"] * 2)
    data = sequences(np.random.default_rng(0).normal(size=(8, 3, 1)), y)
    balanced = dataclasses.replace(SMALL, class_weights="balanced", validation=0.0, epochs=1)
    np.testing.assert_allclose(class_weights(data, balanced)[""], [8 / 12, 8 / 4], rtol=1e-6)
    assert class_weights(data, SMALL) == {}
    still = dataclasses.replace(balanced, learning_rate=1e-30, mixup=0.0, input_offset=0.0, dropout=0.0, averaging=0.0)
    fitted = fit(still, Dataset("uneven", data))
    logits = outputs_of(fitted.model, fitted.variables, data)
    losses = np.asarray(row_losses(jnp.asarray(logits), jnp.asarray(data.y), {}))
    assert fitted.history[0].loss == pytest.approx((losses[:6].mean() + losses[6:].mean()) / 2, rel=1e-5)
    with pytest.raises(grujax.InputError, match=r"^class_weights='balanced' needs classes"):
        fit(balanced, TARGETS)

    weighed = dataclasses.replace(data, weight=np.arange(1, 9, dtype=np.float32))
    of_class = weighed.weight * np.where(y == "a", 8 / 12, 8 / 4)
    np.testing.assert_allclose(row_weights(weighed, balanced), of_class / of_class.mean(), rtol=1e-6)
    np.testing.assert_allclose(row_weights(weighed, SMALL), weighed.weight / 4.5, rtol=1e-6)
    assert row_weights(data, SMALL) is None
    fitted = fit(still, Dataset("weighed", weighed))
    assert fitted.history[0].loss == pytest.approx(np.average(losses, weights=of_class), rel=1e-5)
    assert fitted.scores(weighed).loss == pytest.approx(np.average(losses, weights=weighed.weight), rel=1e-5)
    np.testing.assert_array_equal(weighed.take([2, 0]).weight, [3, 1])
    assert fingerprint(weighed) != fingerprint(data)


def test_the_defaults_are_the_best_of_the_cross_validation():
    found = json.loads((Path(__file__).parents[2] / "benchmarks/results/choose_defaults.json").read_text())
    best = max(found["candidates"].values(), key=lambda r: (r["accuracy"], -r["loss"]))
    defaults = dataclasses.asdict(TrainConfig())
    assert defaults.pop("pooling") is None
    assert chosen(TrainConfig(), DATA.train)[0].pooling == found["base"].pop("pooling")
    assert {name: defaults[name] for name in found["base"]} == found["base"] | best["changes"]
    # None of these changes the program: the longest of these utterances has fewer than 50 steps.
    later = {"steps_per_frame": None, "patience": None, "accumulate": 1, "precision": "float32"}
    later |= {"class_weights": "none", "quantiles": (), "members": 1, "head_weights": ()}
    assert {name: value for name, value in defaults.items() if name not in found["base"]} == later
