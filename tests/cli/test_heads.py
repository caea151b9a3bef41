"""Several heads on the command line: from arrays to a folder, with figures and columns for each head."""

import csv
import json

import numpy as np
import pytest
from commands import QUICK, run
from drawn import drawn

from grujax import GRUModel
from grujax.saving import read, save

pytestmark = pytest.mark.usefixtures("own_folder")


def written(name, count, seed):
    """Writes heads in no alphabetical order: the sign of the level of one channel, and the levels of two others."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(-1, 1, (count, 3))
    x = levels[:, None] + 0.1 * rng.normal(size=(count, 6, 3))
    np.savez(name, X=x, y_way=np.where(levels[:, 0] > 0, "up", "down"), y_at=20 + 5 * levels[:, 1:])
    return name, levels


def test_from_arrays_to_columns_of_each_head(tmp_path, capsys):
    source, _ = written("both.npz", 120, 0)
    test, levels = written("new.npz", 40, 1)
    options = [
        *QUICK,
        "--epochs",
        "15",
        "--learning-rate",
        "0.03",
        "--validation",
        "0.1",
        "--head-weights",
        "at",
        "0.5",
    ]
    code, out, err = run(capsys, "train", source, "--test", test, "--output", "out", *options)
    assert (code, err) == (0, "") and "way: 2 classes, at: regression" in out and "way accuracy" in out
    assert "majority class" in out and "mean target" in out and "confusion-way.png" in out
    *epochs, last = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert all(list(epoch["validation_metrics"]) == ["way accuracy", "at rmse"] for epoch in epochs)
    heads = last["test"]["heads"]
    assert heads["way"]["accuracy"] > 0.9 and heads["at"]["rmse"] < 2 < (5 * levels[:, 1:]).std(0).mean()
    assert last["test"]["loss"] == pytest.approx(heads["way"]["loss"] + 0.5 * heads["at"]["loss"], rel=1e-6)

    lines = [f"way accuracy {100 * heads['way']['accuracy']:.2f}% (95%", f"at RMSE {heads['at']['rmse']:.5g} (R²"]
    assert all(f"test {line}" in out for line in lines)
    np.savez("turned.npz", **dict(reversed([*np.load(test).items()])))  # the order in the file has no effect
    code, out, _ = run(capsys, "evaluate", "out", "turned.npz")
    assert code == 0 and all(f"turned.npz {line}" in out for line in lines)

    code, out, _ = run(capsys, "predict", "out", test)
    table = list(csv.DictReader(out.splitlines()))
    assert code == 0 and [*table[0]] == ["row", "way", "way/probability", "at/0", "at/1"]
    right = np.mean(
        [line["way"] == ("up" if level > 0 else "down") for line, level in zip(table, levels[:, 0], strict=True)]
    )
    assert right == pytest.approx(heads["way"]["accuracy"])
    values = np.array([[float(line["at/0"]), float(line["at/1"])] for line in table])
    assert np.sqrt(((values - 20 - 5 * levels[:, 1:]) ** 2).mean(0)).mean() == pytest.approx(
        heads["at"]["rmse"], rel=1e-4
    )
    np.save("x.npy", np.load(test)["X"])
    assert run(capsys, "predict", "out", "x.npy")[1] == out

    code, out, err = run(capsys, "train", "--resume", "out")
    assert code == 0 and "already finished" in out and lines[0] in out
    code, out, err = run(capsys, "export", "out", "--to", "onnx")
    assert code == 2 and "output_size: expected one head" in err and "StableHLO has several" in err
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    code, out, _ = run(capsys, "export", "out", "--to", "stablehlo")
    assert code == 0 and "largest difference" in out

    np.savez("plain.npz", X=np.ones((4, 6, 3)), y=["up"] * 4)
    code, _, err = run(capsys, "evaluate", "out", "plain.npz")
    assert code == 2 and "y: expected the heads 'way', 'at', as in training, found a single head in plain.npz" in err
    saved = read("out/model.safetensors")
    for labels in ({"way": ["a", "b"]}, {"way": 3, "at": None}, None):
        save("m.safetensors", saved.model, saved.variables, saved.metadata | {"labels": labels})
        assert run(capsys, "predict", "m.safetensors", test)[0] == 2
    heavy = saved.metadata["training"] | {"head_weights": [["of", 1.0]]}
    save("m.safetensors", saved.model, saved.variables, saved.metadata | {"training": heavy})
    code, _, err = run(capsys, "evaluate", "m.safetensors", test)
    assert code == 2 and "head_weights: expected heads of the data: 'way', 'at', found 'of'" in err


def test_arrays_that_say_two_things_are_refused(capsys):
    np.savez("d.npz", X=np.ones((4, 6, 3)), y=["a", "b"] * 2, y_way=["a", "b"] * 2)
    code, _, err = run(capsys, "train", "d.npz")
    assert code == 2 and "expected either y, or y_NAME for several heads" in err
    np.savez("d.npz", X=np.ones((4, 6, 3)), y_way=["a"] * 4, y_at=np.ones(4))
    code, _, err = run(capsys, "train", "d.npz")
    assert code == 2 and "y['way']: expected at least two classes, found only 'a' in d.npz" in err


@pytest.mark.parametrize(
    "name, says",
    [
        ("activation", "y: expected heads not named as a field of a model, head_NAME, found 'activation'. Rename it."),
        ("row", "y: expected no head named row or step: predictions have such columns, found 'row'. Rename it: y_NAME"),
    ],
)
def test_names_that_something_else_has_are_refused_before_a_folder_is_made(name, says, tmp_path, capsys):
    np.savez("d.npz", X=np.ones((4, 6, 3)), y_way=["a", "b"] * 2, **{f"y_{name}": np.arange(4.0)})
    code, _, err = run(capsys, "train", "d.npz", "--output", "out")
    assert code == 2 and says in err and not (tmp_path / "out").exists()


def test_columns_have_names_of_their_own(capsys):
    """Even if a head has the name that a column of another head would have."""
    np.savez("d.npz", X=np.random.default_rng(0).normal(size=(20, 6, 3)), y_way=["a", "b"] * 10)
    with np.load("d.npz") as of:
        arrays = dict(of)
    arrays |= {"y_way probability": np.arange(20.0), "y_at": np.arange(40.0).reshape(20, 2), "y_at 0": np.arange(20.0)}
    np.savez("d.npz", **arrays)
    sizes = {"way": 2, "way probability": 1, "at": 2, "at 0": 1}
    model = GRUModel(4, sizes)
    statistics = {"input_mean": np.zeros(3), "input_std": np.ones(3)}
    for name in ("way probability", "at", "at 0"):
        statistics |= {f"output_{name}_mean": np.zeros(sizes[name]), f"output_{name}_std": np.ones(sizes[name])}
    variables = drawn(model, np.ones((1, 1, 3), np.float32))
    variables |= {"statistics": {key: a.astype(np.float32) for key, a in statistics.items()}}
    labels = dict.fromkeys(sizes) | {"way": ["a", "b"]}
    save("m.safetensors", model, variables, {"labels": labels, "channels": 3})
    code, out, err = run(capsys, "predict", "m.safetensors", "d.npz")
    assert code == 0, err
    columns = out.splitlines()[0].split(",")
    assert columns == ["row", "way", "way/probability", "way probability", "at/0", "at/1", "at 0"]
