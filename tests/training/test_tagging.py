"""A label or target for each step: which steps count in the loss; the model is trained, saved and exported."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from levels import DATA, SMALL, assert_fit_takes_the_steps_of_train_step

import grujax
from grujax.data import Dataset, batches, sequences, stratified_split
from grujax.training import TrainConfig, baselines, chosen, fit, outputs_of, score
from grujax.training.rows import constants_of
from grujax.training.step import mixed_loss

TAGGER = dataclasses.replace(SMALL, epochs=20, mixup=0.0, input_offset=0.0)


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax's schedules mix integer counts with floats: they do not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def tagged(count, seed, regression=False):
    """2 to 9 steps of one channel. The tag of a step depends on its value plus the one before; the first has none."""
    rng = np.random.default_rng(seed)
    x, y = [], []
    for size in rng.integers(2, 10, count):
        values = rng.normal(size=size)
        both = np.append(np.nan, values[1:] + values[:-1])
        x.append(values[:, None])
        y.append(50 * both[:, None] + 1000 if regression else [None, *np.where(both[1:] > 0, "up", "down")])
    return sequences(x, y)


TAGS = Dataset("tags", tagged(120, 0), tagged(40, 1))
TARGETS = Dataset("targets", tagged(120, 0, True), tagged(40, 1, True))


def by_hand(outputs, y, lengths, share, weight, std=None):
    """The loss in loops: the weighted mean over labelled steps within the lengths, of each row and of its partner."""
    total = count = 0.0
    for row in range(len(y)):
        for labels, part in ((y[row], share[row]), (y[row - 1], 1 - share[row])):
            for step in range(lengths[row]):
                label, output = labels[step], outputs[row, step].astype(np.float64)
                if std is None and label >= 0:
                    loss = np.log(np.exp(output).sum()) - output[label]
                elif std is not None and not np.isnan(label).any():
                    loss = np.mean(((output - label) / std) ** 2)
                else:
                    continue
                total, count = total + part * weight[row] * loss, count + part * weight[row]
    return total / count


@pytest.mark.parametrize("regression", [False, True])
def test_the_loss_averages_over_the_labelled_steps(regression):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(4, 5, 3)).astype(np.float32)
    lengths, share = np.array([5, 2, 4, 0]), np.array([1.0, 0.6, 1.0, 1.0], np.float32)
    weight = np.array([1, 1, 1, 0], np.float32)
    none = rng.uniform(size=(4, 5)) < 0.3
    std = np.array([1.0, 2.0, 0.5], np.float32)
    if regression:
        y = rng.normal(size=(4, 5, 3)).astype(np.float32)
        y[none] = np.nan
    else:
        y = rng.integers(0, 3, (4, 5)).astype(np.int32)
        y[none] = -1
    expected = by_hand(outputs, y, lengths, share, weight, std if regression else None)
    partner = np.roll(np.arange(4), 1)

    @jax.jit
    def of(outputs, arrays):
        def loss(outputs):
            return mixed_loss(TrainConfig(), outputs, arrays[0], {"output_std": arrays[1]}, *arrays[2:])

        return jax.value_and_grad(loss, has_aux=True)(outputs)

    (mean, total), gradient = jax.device_get(of(outputs, (y, std, lengths, share, partner, weight)))
    np.testing.assert_allclose([mean, total], [expected, 3 * expected], rtol=1e-5)
    assert np.isfinite(gradient).all() and not gradient[3].any() and not gradient[1, 2:].any()
    assert not gradient[2][none[2]].any() and gradient[2][~none[2] & (np.arange(5) < 4)].any()  # row 2 is unmixed


@pytest.mark.parametrize("targets", [False, True])
def test_a_split_without_a_label_on_one_side_is_refused(targets):
    y = [[[0.5]] * 4 if targets else ["a", "b", "a", "b"]] * 2
    y += [[[np.nan]] * 4 if targets else [None] * 4] * 30
    data = sequences(np.ones((32, 4, 1)), y)
    with pytest.raises(grujax.InputError, match=r"^y: expected steps with a label or target among the rows held out"):
        stratified_split(data, 0.05, 0)


def test_a_batch_without_a_label_moves_nothing():
    y, ones = np.full((2, 3), -1), np.ones(2, np.float32)
    arrays = np.ones((2, 3, 2), np.float32), y, {}, np.array([3, 2]), ones, np.array([1, 0]), ones
    mean, total = jax.jit(partial(mixed_loss, TrainConfig()))(*arrays)
    assert (mean, total) == (0, 0)


def test_fit_learns_a_label_a_step_and_the_model_is_saved_and_exported(tmp_path):
    fitted = fit(TAGGER, TAGS)
    assert fitted.model.pooling is None and fitted.labels == ("down", "up") and fitted.test is not None
    outputs = outputs_of(fitted.model, fitted.variables, TAGS.test)
    known = TAGS.test.labelled
    right = (outputs.argmax(-1) == TAGS.test.y)[known]
    assert fitted.test.steps == known.sum() == right.size and fitted.test.rows == 40 and fitted.test.interval is None
    assert fitted.test.accuracy == right.mean() > 0.9
    assert fitted.test.confusion is not None and fitted.test.confusion.sum() == right.size
    majority = np.bincount(TAGS.train.y[TAGS.train.labelled]).argmax()
    share = (TAGS.test.y[known] == majority).mean()
    assert baselines(TAGS.train, TAGS.test) == {"majority class": pytest.approx(share)} and share > 0.3
    grujax.save(tmp_path / "m.safetensors", fitted.model, fitted.variables)
    model, variables = grujax.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(outputs_of(model, variables, TAGS.test), outputs)
    with pytest.raises(grujax.InputError, match=r"^y: expected a label or target for each step, as the model has"):
        score(outputs, sequences(TAGS.test.x, ["up", "down"] * 20), variables)
    with pytest.raises(grujax.InputError, match=r"^y: expected a label or target for each row, as the model has"):
        score(outputs[:, 0], TAGS.test, variables)


def test_fit_takes_the_steps_of_train_step_with_rows_of_two_padded_lengths():
    config = dataclasses.replace(TAGGER, epochs=2, validation=0.0, buckets=2, dropout=0.5, pooling="none")
    assert_fit_takes_the_steps_of_train_step(config, TAGS)


@pytest.mark.slow  # test_heads.py learns a target for each step, beside a label
def test_fit_learns_a_target_a_step_in_its_own_units():
    fitted = fit(dataclasses.replace(TAGGER, epochs=30), TARGETS)
    assert fitted.test is not None and fitted.test.r2 is not None and fitted.test.r2 > 0.8
    assert fitted.test.rmse is not None
    assert fitted.test.rmse < baselines(TARGETS.train, TARGETS.test)["mean target"] / 2


def test_statistics_are_those_of_the_steps_that_have_a_target():
    data = TARGETS
    statistics = constants_of(data.train)
    known = data.train.y[data.train.labelled]
    assert np.isfinite(known).all() and len(known) == (data.train.lengths - 1).sum()
    np.testing.assert_allclose(statistics["output_mean"], known.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["output_std"], known.std(0), rtol=1e-5)


def test_padding_and_filler_of_a_batch_have_no_label():
    for data, none in ((TAGS.train, -1), (tagged(5, 0, True), np.nan)):
        for batch in batches(data, 4, (4,)):
            for row, y, x in zip(batch.rows, batch.y, batch.x, strict=True):
                length = 0 if row < 0 else data.lengths[row]
                assert len(y) == len(x)
                np.testing.assert_array_equal(y[length:], np.full_like(y[length:], none))
                np.testing.assert_array_equal(y[:length], data.y[max(row, 0), :length])


def test_settings_follow_from_the_data_and_others_are_refused():
    long = sequences(np.zeros((40, 90, 1)), [[0, 1] * 45] * 40)
    found, why = chosen(TrainConfig(), long)
    assert (found.pooling, found.steps_per_frame) == ("none", 1)
    assert why["pooling"] == "an output for each step, as each has a label or target"
    refused = [
        (
            {"pooling": "mean"},
            TAGS,
            r"^a label or target for each step needs pooling none \(pooling: expected 'none', found 'm",
        ),
        ({"pooling": "none"}, DATA, r"^a label or target for each sequence needs pooling \(pooling: "),
        ({"steps_per_frame": 2}, TAGS, r"^steps_per_frame=2 needs pooling "),
        ({"class_weights": "balanced"}, TAGS, r"^class_weights='balanced' needs a label for each sequence "),
    ]
    for changes, data, message in refused:
        with pytest.raises(grujax.InputError, match=message):
            fit(dataclasses.replace(TAGGER, **changes), data)
