"""Training on a stream: an iterator that yields new rows for each epoch and need not end."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from refusals import refused

from grujax import InputError
from grujax.data import Dataset, sequences
from grujax.training import TrainConfig, fit

CONFIG = TrainConfig(
    hidden_size=4, bidirectional=False, epochs=3, batch_size=8, buckets=1, validation=0.0, steps_per_frame=1
)
ROWS, LONGEST = 20, 6


def rows(seed, longest=LONGEST, channels=2, count=ROWS):
    """Random rows; the label says whether the mean of the first channel is positive."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(rng.integers(2, longest), channels)) for _ in range(count - 1)]
    x.append(rng.normal(size=(longest, channels)))
    y = [str(row[:, 0].mean() > 0) for row in x]
    return sequences(x, y, labels=("False", "True"))


def endless(**kwargs):
    seed = 1
    while True:
        yield rows(seed, **kwargs)
        seed += 1


DATA = Dataset("signs", rows(0))


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
    assert [e.loss for e in one.history] == [e.loss for e in other.history]


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_a_stream_of_the_same_rows_is_plain_training(class_weights):
    config = replace(CONFIG, class_weights=class_weights)
    same(fit(config, DATA, stream=[DATA.train] * 3), fit(config, DATA))


def test_rows_that_are_new_in_each_epoch_are_learnt_from():
    """The labels of the sample are wrong here, so that only the stream can be learnt from."""
    config = replace(CONFIG, hidden_size=8, epochs=40, dropout=0.0, input_offset=0.0, mixup=0.0)
    wrong = replace(DATA.train, y=1 - DATA.train.y)
    fitted = fit(config, Dataset("signs", wrong, rows(10**6, count=200)), stream=endless())
    assert fitted.test is not None and fitted.test.accuracy is not None and fitted.test.accuracy > 0.8


def test_the_rows_held_out_are_those_of_the_sample():
    config = replace(CONFIG, validation=0.25)
    fitted = fit(config, DATA, stream=endless())
    assert all(epoch.validation_loss is not None for epoch in fitted.history)
    assert len(fitted.compiled.shapes) == 1


def test_a_run_goes_on_where_the_stream_stood(tmp_path, ends_at):
    """An epoch has three steps, so the interruption is within the second epoch."""
    whole = fit(CONFIG, DATA, stream=endless())
    ends_at(4)
    assert fit(CONFIG, DATA, stream=endless(), checkpoints=tmp_path).interrupted
    ends_at(None)
    with refused("stream"):
        fit(CONFIG, DATA, checkpoints=tmp_path)
    same(fit(CONFIG, DATA, stream=endless(), checkpoints=tmp_path), whole)


def test_longer_rows_are_compiled_by_doubling():
    fitted = fit(CONFIG, DATA, stream=(rows(seed, longest) for seed, longest in enumerate((6, 20, 20))))
    assert [shape[1] for shape in fitted.compiled.shapes] == [8, 32]
    assert len(fitted.compiled.seconds) == 2
    assert np.isfinite(fitted.outputs(rows(7, 40))).all()


def failing():
    yield rows(1)
    yield rows(2)
    raise OSError("the store has gone")


@pytest.mark.parametrize(
    "stream, error",
    [((rows(seed) for seed in (1, 2)), InputError), (failing(), OSError)],
    ids=["it ends", "it fails"],
)
def test_a_run_whose_stream_ended_goes_on_with_a_longer_one(stream, error, tmp_path):
    with pytest.raises(error):
        fit(CONFIG, DATA, stream=stream, checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["6"]  # of nine steps
    same(fit(CONFIG, DATA, stream=endless(), checkpoints=tmp_path), fit(CONFIG, DATA, stream=endless()))


APART = """
import sys
import jax, numpy as np
from test_endless import CONFIG, DATA, endless, rows
from grujax import InputError
from grujax.training import fit
rank = int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, rank)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
with jax.numpy_dtype_promotion("standard"):
    alike = fit(CONFIG, DATA, mesh=mesh, stream=endless())
    print(len(alike.history), "epochs")
    for streams in ([rows(1), rows(2), rows(3)], [rows(1), rows(2 + rank)]), ([rows(1)], [rows(1), rows(2)]):
        try:
            fit(CONFIG, DATA, mesh=mesh, stream=streams[rank])
        except InputError as error:
            print(error)
"""


def test_streams_of_several_processes_are_compared():
    """The second process has other rows than the first, and then rows after the first has none left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    commands = [[sys.executable, "-c", APART, port, str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(c, env=env, stdout=subprocess.PIPE, text=True) for c in commands]
    says = "stream: expected the same on all processes, found others on processes [1] than on 0."
    for process in processes:
        assert process.communicate(timeout=300)[0].splitlines()[-3:] == ["3 epochs", says, says]  # Gloo prints too


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        ([DATA.train] * 2, "stream of 3 epochs"),
        ([rows(1, count=19)], "19"),
        ([rows(1, channels=3)], "3 in the stream"),
        ([sequences(DATA.train.x, np.arange(20.0))], "labels"),
        (5, "stream: expected an iterable"),
        ([DATA.train.x], "stream: expected `Sequences`"),
        ([replace(DATA.train, weight=np.ones(ROWS, np.float32))], "rows without weights"),
        ([replace(DATA.train, weight=-np.ones(ROWS, np.float32))], "20 positive numbers"),
    ],
    ids=[
        "it ends",
        "fewer rows",
        "more channels",
        "targets for classes",
        "a number",
        "arrays",
        "weights of rows",
        "negative weights",
    ],
)
def test_refused(stream, why):
    with refused(why):
        fit(CONFIG, DATA, stream=stream)
