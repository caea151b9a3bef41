"""TensorBoard events contain what metrics.jsonl contains; a writer that fails causes only a warning."""

import json
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import QUICK, run, toy

tensorboardX = pytest.importorskip("tensorboardX", reason="tensorboardX (extra `log`) is not installed")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers with floats
        yield


def events(folder):
    """Returns {name: {epoch: value}} from all files of a folder. A record: a length, its CRC, an Event, its CRC."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in Path(folder).glob("events.*"):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            data = data[16 + size :]
    return found


@pytest.mark.usefixtures("no_pictures")
def test_events_hold_the_figures_of_each_epoch(capsys):
    code, _, err = run(capsys, "train", toy("toy.npz"), "--output", "out", "--quiet", "--tensorboard", *QUICK)
    assert code == 0 and err == ""
    *epochs, last = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    found = events("out/events")
    assert {"loss", "sequences_per_second", "steps_per_second", "seconds", "data_seconds"} <= set(found)
    for name, values in found.items():
        np.testing.assert_allclose([*values.values()], [epoch[name] for epoch in epochs], rtol=1e-6)
        assert list(values) == [1, 2, 3]
    assert last["compile_seconds"] > 0 and 0 <= last["padding"] < 1


@pytest.mark.usefixtures("no_pictures")
def test_a_writer_that_fails_is_a_warning(capsys, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(tensorboardX.SummaryWriter, "add_scalar", full)
    code, _, err = run(capsys, "train", toy("toy.npz"), "--output", "out", "--quiet", "--tensorboard", *QUICK)
    assert code == 0 and err.count("warning: no further events for TensorBoard: No space left on device") == 1
    assert Path("out/model.safetensors").exists()
