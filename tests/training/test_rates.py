"""The range test for the learning rate."""

import dataclasses
import os
import re

import jax
import numpy as np
import pytest
from commands import QUICK, run, toy
from levels import DATA, SMALL

from grujax import InputError
from grujax.data import load
from grujax.training import TrainConfig, fit, rates
from grujax.training.rates import learning_rates

PLAIN = dataclasses.replace(SMALL, mixup=0.0, input_offset=0.0, dropout=0.0)


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("shares", [(1, 0.1), pytest.param((1, 0.1, 0.01), marks=pytest.mark.slow)])
def test_rates_grow_evenly_the_loss_falls_and_the_suggestion_trains_better_than_a_tenth_of_it(shares):
    found = learning_rates(PLAIN, DATA.train, steps=60)
    assert found.rates[0] == pytest.approx(1e-5) and len(found.rates) == len(found.losses)
    np.testing.assert_allclose(np.diff(np.log(found.rates)), np.log(1e5) / 59)
    assert found.losses[0] == pytest.approx(np.log(2), rel=0.3) and found.losses.min() < 0.8 * found.losses[0]
    assert found.suggestion == float(f"{found.rates[found.losses.argmin()] / 3:.1g}")
    peaks = [found.suggestion * share for share in shares]
    runs = [fit(dataclasses.replace(PLAIN, epochs=3, learning_rate=peak), DATA) for peak in peaks]
    losses = [run.history[-1].loss for run in runs]
    assert losses == sorted(losses)


def test_the_first_steps_whose_average_is_of_few_do_not_decide(monkeypatch):
    losses = iter([0.4, *[1.0] * 29, 0.5, *[1.0] * 19])
    monkeypatch.setattr(rates, "_step", lambda model, config, steps, state, *_: (state, next(losses)))
    found = rates.learning_rates(PLAIN, DATA.train, steps=50, smoothing=0.0)
    assert found.losses.argmin() == 0 and found.suggestion == float(f"{found.rates[30] / 3:.1g}")


def test_a_mesh_of_the_caller_is_not_read(monkeypatch):
    meshes = []

    def step(model, config, steps, state, *_):
        meshes.append(jax.sharding.get_abstract_mesh())
        return state, 1.0

    monkeypatch.setattr(rates, "_step", step)
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        learning_rates(PLAIN, DATA.train, steps=10)
    assert len(meshes) == 10 and all(mesh.empty for mesh in meshes)


def test_weights_of_rows_and_classes_count_as_in_fit():
    weights = np.where(np.arange(len(DATA.train)) % 2, 1.0, 1e-3).astype(np.float32)
    weighed = dataclasses.replace(DATA.train, weight=weights)
    few = DATA.train.take(np.flatnonzero((DATA.train.y == 0) | (np.arange(len(DATA.train)) < 20)))
    for config, train, plain in (
        (PLAIN, weighed, (PLAIN, DATA.train)),
        (dataclasses.replace(PLAIN, class_weights="balanced"), few, (PLAIN, few)),
    ):
        found, other = (learning_rates(c, rows, steps=10).losses for c, rows in ((config, train), plain))
        assert np.abs(found - other).max() > 1e-3


def test_a_loss_that_grows_ends_the_test():
    found = learning_rates(dataclasses.replace(PLAIN, clip_norm=1e9), DATA.train, steps=400, smoothing=0.0)
    grown = found.losses >= 4 * np.minimum.accumulate(found.losses)
    assert len(found.losses) < 400 and grown.tolist() == [False] * (len(grown) - 1) + [True]


def test_the_command_prints_a_table_and_the_suggestion_and_saves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "train", toy("toy.npz"), "--find-learning-rate", *QUICK)
    found = learning_rates(
        TrainConfig(epochs=3, hidden_size=8, batch_size=16, buckets=1), load("toy.npz", seed=0).train
    )
    assert code == 0 and err == "" and sorted(os.listdir()) == ["toy.npz"]
    assert f"suggestion: --learning-rate {found.suggestion:g}, a third" in out
    assert re.search(rf"{found.rates[8]:.1e} +│ {found.losses[8]:.4f}", out)


@pytest.mark.parametrize("argument", [{"steps": 9}, {"smoothing": 1.0}])
def test_arguments_that_cannot_be(argument):
    with pytest.raises(InputError, match=rf"^{next(iter(argument))}: expected"):
        learning_rates(SMALL, DATA.train, **argument)
