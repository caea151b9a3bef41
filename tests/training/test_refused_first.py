"""`fit` refuses invalid input before it compiles the first program, which may take minutes."""

import dataclasses
import sys
from pathlib import Path

import jax
import pytest
from compilations import compilations
from levels import DATA, SMALL, TARGETS
from refusals import refused

from grujax import GRUModel
from grujax.data import Dataset, batches, statistics, stratified_split
from grujax.saving.checkpoints import Checkpoints
from grujax.training import baselines, chosen, fit, outputs_of, score
from grujax.training.rates import learning_rates

MESH = jax.sharding.Mesh(jax.devices()[:1], ("data",))


def file(folder):
    (folder / "file").write_text("mine")
    return {"checkpoints": folder / "file"}


def of_another_run(folder):
    saved = Checkpoints(folder / "c", {"mixup": 0.5})
    saved.save(1, {"w": 1}, {})
    saved.close()
    return {"checkpoints": folder / "c"}


def damaged(folder):
    (folder / "c" / "7" / "about").mkdir(parents=True)
    (folder / "c" / "7" / "about" / "metadata").write_text("{}")
    return {"checkpoints": folder / "c"}


LATE = {
    "a file for checkpoints": ({}, DATA, file, "checkpoints: expected a folder"),
    "a folder that takes no file": ({}, DATA, lambda _: {"checkpoints": "/proc"}, "checkpoints: expected a folder"),
    "checkpoints of another run": ({"bidirectional": True}, DATA, of_another_run, "buckets: expected 4, as in the ch"),
    "a damaged checkpoint": ({}, DATA, damaged, "checkpoints: expected a whole checkpoint"),
    "a period": ({}, DATA, lambda to: {"checkpoints": to, "checkpoint_period": -1.0}, "checkpoint_period: expected 0"),
    "weights of another model": ({}, DATA, lambda _: {"variables": {"params": {}, "statistics": {}}}, "variables: exp"),
    "weights of classes": ({"class_weights": "balanced"}, TARGETS, lambda _: {}, "class_weights='balanced' needs"),
    "smoothing of no labels": ({"label_smoothing": 0.1}, TARGETS, lambda _: {}, "label_smoothing needs classes"),
    "quantiles of classes": ({"quantiles": (0.5,)}, DATA, lambda _: {}, "quantiles needs a regression"),
    "patience": ({"patience": 2, "validation": 0.0}, DATA, lambda _: {}, "patience needs validation"),
    "a training split": ({}, DATA.train, lambda _: {}, "data: expected a `Dataset`, found Sequences. Dataset("),
    "a mesh": ({}, DATA, lambda _: {"mesh": jax.sharding.Mesh(MESH.devices.reshape(1, 1, 1), (*"abc",))}, "mesh: exp"),
}  # fmt: skip


def attempted(function, message):
    with refused(message):
        function()


@pytest.mark.parametrize("name", LATE)
def test_an_argument_is_refused_before_anything_is_compiled(name, tmp_path):
    config, data, options, message = LATE[name]
    if name == "a folder that takes no file" and not Path("/proc").exists():
        pytest.skip("there is no /proc on this system")
    options, config = options(tmp_path), dataclasses.replace(SMALL, hidden_size=7, **config)  # a size of no other test
    assert compilations(lambda: attempted(lambda: fit(config, data, **options), message)) == 0


def test_the_learning_rate_finder_refuses_before_anything_is_compiled():
    config = dataclasses.replace(SMALL, hidden_size=7, class_weights="balanced")
    finding = lambda: learning_rates(config, TARGETS.train)  # noqa: E731
    assert compilations(lambda: attempted(finding, "class_weights='balanced' needs classes")) == 0


def test_a_package_that_the_test_split_needs_is_asked_for_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    config = dataclasses.replace(SMALL, hidden_size=7, validation=0.0)
    assert compilations(lambda: attempted(lambda: fit(config, DATA), "sklearn is required: pip install")) == 0


SPLIT, WHOLE = (
    "found Dataset. Pass its `train` or its `test`.",
    "found ndarray. grujax.data.sequences(x, y) makes them.",
)
KINDS = {
    "fit": (lambda: fit({"hidden_size": 4}, DATA), "config: expected a `TrainConfig`, found dict."),
    "learning_rates": (lambda: learning_rates(SMALL, DATA), f"train: expected `Sequences`, {SPLIT}"),
    "chosen": (lambda: chosen(SMALL, DATA), f"train: expected `Sequences`, {SPLIT}"),
    "baselines": (lambda: baselines(DATA.train, DATA), f"test: expected `Sequences`, {SPLIT}"),
    "outputs_of": (lambda: outputs_of(GRUModel(4, 2), {}, DATA.train.x), f"data: expected `Sequences`, {WHOLE}"),
    "outputs_of, swapped": (lambda: outputs_of({}, GRUModel(4, 2), DATA.train), "model: expected a `GRUModel` or"),
    "score": (lambda: score(DATA.train.x, DATA, {}), f"data: expected `Sequences`, {SPLIT}"),
    "Dataset": (lambda: Dataset("task", DATA.train.x), f"train: expected `Sequences`, {WHOLE}"),
    "Dataset, test": (lambda: Dataset("task", DATA.train, DATA), f"test: expected `Sequences`, {SPLIT}"),
    "stratified_split": (lambda: stratified_split(DATA, 0.2, 0), f"data: expected `Sequences`, {SPLIT}"),
    "statistics": (lambda: statistics(DATA.train.x), f"data: expected `Sequences`, {WHOLE}"),
    "batches": (lambda: batches(DATA, 4, (7,)), f"data: expected `Sequences`, {SPLIT}"),
}


@pytest.mark.parametrize("name", KINDS)
def test_another_kind_of_argument_is_refused_with_what_to_pass(name):
    call, message = KINDS[name]
    with refused(message):
        call()
