"""A label or target per step on the command line: from a table or arrays to an output line per step."""

import csv
import json

import numpy as np
import pytest
from commands import QUICK, run

from grujax.data import load, load_sequences

pytestmark = pytest.mark.usefixtures("own_folder")


def written(path, count=40, seed=0, tags=("low", "high")):
    """Writes a long table. The tag of a step follows from its value; the first step of a sequence has none."""
    rng = np.random.default_rng(seed)
    lines = ["sequence,time,x,y_step"]
    for row in range(count):
        for step, value in enumerate(rng.normal(size=rng.integers(2, 7))):
            tag = "" if step == 0 else f"{value:.3f}" if tags is None else tags[int(value > 0)]
            lines.append(f"s{row},{step},{value:.5f},{tag}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_tags_from_a_table(tmp_path, capsys):
    source, test = written(tmp_path / "tags.csv"), written(tmp_path / "new.csv", 10, 1)
    options = [*QUICK, "--epochs", "15", "--learning-rate", "0.05"]
    code, out, err = run(capsys, "train", source, "--test", test, "--output", "out", *options)
    assert (code, err) == (0, "") and "chosen: an output for each step" in out and "2 classes per step" in out
    scores = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])["test"]
    data = load_sequences(test, labels=("high", "low"))
    assert scores["steps"] == data.labelled.sum() == (data.lengths - 1).sum() and scores["accuracy"] > 0.9
    figure = f"accuracy {100 * scores['accuracy']:.2f}% of {scores['steps']} steps"
    assert f"test {figure}" in out and "majority class" in out
    code, out, _ = run(capsys, "evaluate", "out", test)
    assert code == 0 and f"new.csv {figure}" in out

    code, out, _ = run(capsys, "predict", "out", test)
    lines = list(csv.DictReader(out.splitlines()))
    assert code == 0 and [*lines[0]] == ["row", "step", "label", "probability"]
    assert [(int(a["row"]), int(a["step"])) for a in lines] == [
        (row, step) for row, length in enumerate(data.lengths) for step in range(length)
    ]
    right = [a["label"] == ("high", "low")[y] for a in lines if (y := data.y[int(a["row"]), int(a["step"])]) >= 0]
    assert np.mean(right) == pytest.approx(scores["accuracy"])

    for target in ("onnx", "stablehlo"):
        pytest.importorskip("onnxruntime" if target == "onnx" else "flatbuffers", reason=f"{target} is not installed")
        code, out, _ = run(capsys, "export", "out", "--to", target)
        assert code == 0 and "largest difference" in out


@pytest.mark.usefixtures("no_pictures")
def test_targets_a_step_and_arrays(tmp_path, capsys):
    source = written(tmp_path / "targets.csv", tags=None)
    code, out, _ = run(capsys, "train", source, "--output", "out", *QUICK)
    assert code == 0 and "regression per step" in out and " steps" in out.split("test RMSE")[1].splitlines()[0]
    code, out, _ = run(capsys, "predict", "out", source)
    assert code == 0 and out.splitlines()[0] == "row,step,value"
    table, x = load(source).train, np.ones((10, 4, 1))
    assert table.labels is None and table.y.shape[2:] == (1,)
    np.savez("i.npz", X=x, y=np.ones((10, 4, 1), int))  # a regression model reads integers as targets
    assert run(capsys, "evaluate", "out", "i.npz")[0] == 0
    numbers = written(tmp_path / "numbers.csv", tags=(3, 12))
    assert load(numbers).train.labels == ("3", "12")
    np.testing.assert_allclose(  # and the whole numbers of a table too
        load_sequences(numbers).y[..., 0], np.array([np.nan, 3, 12])[1 + load_sequences(numbers, labels=("3", "12")).y]
    )
    np.savez("n.npz", X=x, y=np.array([["a", "b", "", "a"]] * 10), lengths=np.full(10, 3))
    assert load("n.npz").train.y[0].tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    "table, message",
    [
        ("sequence,y,y_step,x\n1,a,b,2\n", "expected only one of y and y_step, found both"),
        ("sequence,y,x\n1,a,2\n1,b,2\n", "Name the column y_step if each step has its own value."),
        ("sequence,y_step,x\n1,,2\n1,NA,2\n", "y: expected a label or target for at least one step, found none"),
    ],
)
def test_a_table_that_says_neither_is_refused(table, message, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(table)
    code, _, err = run(capsys, "train", "t.csv")
    assert code == 2 and message in err
