"""A run that was interrupted and resumed gives the same bits as an uninterrupted one."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
from compilations import compiled
from levels import DATA, SMALL, TARGETS

from grujax import InputError
from grujax.data import Dataset
from grujax.training import fit, loop

TIMED = ("sequences_per_second", "steps_per_second", "seconds", "data_seconds", "validation_seconds")
CONFIG = dataclasses.replace(SMALL, epochs=6, dropout=0.5, input_noise=0.1, mixup=0.3, buckets=2)


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
    untimed = [[e._replace(**dict.fromkeys(TIMED, 0)) for e in run.history] for run in (one, other)]
    assert untimed[0] == untimed[1] and one.best.epoch == other.best.epoch


@pytest.mark.parametrize(
    "config, data",  # test_heads.py resumes a regression
    [(CONFIG, DATA), pytest.param(dataclasses.replace(CONFIG, num_layers=2), TARGETS, marks=pytest.mark.slow)],
)
def test_resumed_equals_uninterrupted_bit_for_bit(config, data, tmp_path, ends_at):
    """Interrupted in the first epoch, at the last step of an epoch and within a later epoch. Steps taken one at a time
    and several at once give the same bits."""
    several = fit(config, data)
    ends_at(None)
    whole = fit(config, data)
    assert_same(whole, several)
    runs, steps = [], (3, 2 * 5, 4 * 5 + 2)
    ends_at(steps[0])
    with pytest.raises(KeyboardInterrupt):
        fit(config, data, checkpoints=tmp_path)
    for step in steps[1:]:
        ends_at(step)
        assert compiled(lambda: runs.append(fit(config, data, checkpoints=tmp_path))) == []
        assert runs.pop().interrupted
    ends_at(None)
    epochs, best = [], []
    resumed = fit(config, data, checkpoints=tmp_path, on_epoch=epochs.append, on_best=best.append)
    assert_same(resumed, whole)
    assert resumed.test is not None and whole.test is not None and resumed.test.loss == whole.test.loss
    assert tuple(epochs) == resumed.history and best[-1].variables is not None
    again = fit(config, data, checkpoints=tmp_path)  # the run is finished: nothing more is trained
    assert_same(again, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_two_steps_waits_for_the_step_then_goes_to_its_handler(number, tmp_path, monkeypatch):
    """A handler that raises ends the run, which resumes from that very step; otherwise the run continues."""
    agreed, seen = loop.Devices.agreed, []

    def signalled(self, step, *wants):
        if step == 12 and not seen:
            os.kill(os.getpid(), number)
        return agreed(self, step, *wants)

    monkeypatch.setattr(loop, "SHORT", 0)
    monkeypatch.setattr(loop.Devices, "agreed", signalled)
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        one = fit(CONFIG, DATA)
        assert seen == [number] and not one.interrupted
        seen.clear()
        signal.signal(number, lambda *_: seen.append(number) or signal.default_int_handler(number, None))
        assert fit(CONFIG, DATA, checkpoints=tmp_path).interrupted
        assert [path.name for path in tmp_path.iterdir()] == ["13"]
        assert_same(fit(CONFIG, DATA, checkpoints=tmp_path), one)
    finally:
        signal.signal(number, before)
    monkeypatch.undo()
    assert_same(fit(CONFIG, DATA), one)


def test_a_death_without_a_word_goes_on_from_the_last_period(tmp_path, monkeypatch):
    """As with SIGKILL, `fit` saves nothing at its end: only the checkpoints that it wrote before exist."""

    class Died(BaseException):
        pass

    def die(epoch):
        if epoch.epoch == 3:
            raise Died

    whole = fit(CONFIG, DATA)
    with pytest.raises(Died):
        fit(CONFIG, DATA, checkpoints=tmp_path, checkpoint_period=0, on_epoch=die)
    assert 1 <= len(list(tmp_path.iterdir())) <= 2
    assert_same(fit(CONFIG, DATA, checkpoints=tmp_path), whole)


def test_another_configuration_or_other_data_are_refused_by_name(tmp_path):
    fit(CONFIG, DATA, checkpoints=tmp_path)
    for change, says in (({"mixup": 0.5}, "mixup: expected 0.3, as in"), ({"epochs": 7}, "epochs: expected 6, as in")):
        with pytest.raises(InputError, match=f"^{says}"):
            fit(dataclasses.replace(CONFIG, **change), DATA, checkpoints=tmp_path)
    with pytest.raises(InputError, match=r"^data: expected .*, as in the checkpoint"):
        fit(CONFIG, Dataset("other", DATA.test, DATA.test), checkpoints=tmp_path)


def test_a_run_that_began_with_other_weights_is_another_run(tmp_path):
    fitted = fit(CONFIG, DATA)
    fit(CONFIG, DATA, variables=fitted.variables, checkpoints=tmp_path)
    with pytest.raises(InputError, match=r"^data: expected"):
        fit(CONFIG, DATA, checkpoints=tmp_path)


@pytest.mark.parametrize("period", [-1.0, float("nan")])
def test_a_period_that_cannot_be_is_refused(period, tmp_path):
    with pytest.raises(InputError, match=r"^checkpoint_period: expected 0 or more seconds"):
        fit(SMALL, DATA, checkpoints=tmp_path, checkpoint_period=period)
