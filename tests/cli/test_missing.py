"""Missing values and attention on the command line: trained, resumed, evaluated, predicted, exported or refused."""

import json
import warnings
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from commands import QUICK, run

from grujax.data import load
from grujax.saving import read


def written(path, count=40, seed=0):
    """Writes a table whose label is the sign of a level. 30% of the values are missing."""
    rng = np.random.default_rng(seed)
    lines = ["sequence,time,y,a"]
    for row in range(count):
        for step in range(3, 3 + rng.integers(3, 9)):
            value = "" if rng.uniform() < 0.3 else f"{100 + 5 * (-1) ** row + rng.normal():.4f}"
            lines.append(f"{row},{2 * step},{'down' if row % 2 else 'up'},{value}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("no_pictures")
def test_missing_values_and_attention(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "t.csv")
    written(tmp_path / "new.csv", 10, 1)
    options = ["--missing", "mask", "--pooling", "attention", *QUICK, "--epochs", "15", "--learning-rate", "0.03"]
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers with floats
        code, out, err = run(capsys, "train", "t.csv", "--test", "new.csv", "--output", "out", *options)
        assert (code, err) == (0, "") and "1 channel, each with its mask and time gap" in out
        figure = next(line for line in out.splitlines() if line.startswith("test accuracy"))
        assert json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])["test"]["accuracy"] > 0.9
        saved = read(tmp_path / "out/model.safetensors")
        assert saved.model.pooling == "attention"
        assert saved.metadata["fill"] == load("t.csv", test="new.csv", missing="mask").train.fill.tolist()
        assert saved.metadata["fill"][0] == pytest.approx(100, abs=2)
        code, out, _ = run(capsys, "evaluate", "out", "new.csv")
        assert code == 0 and figure.replace("test", "new.csv", 1) in out
        code, out, _ = run(capsys, "predict", "out", "new.csv")
        assert code == 0 and len(out.splitlines()) == 11
        settings = json.loads((tmp_path / "out/settings.json").read_text())
        del settings["training"]["members"]  # as from an older grujax without members
        (tmp_path / "out/settings.json").write_text(json.dumps(settings))
        code, out, err = run(capsys, "train", "--resume", "out", "--quiet")  # with the mask, as before
        assert (code, err) == (0, "") and figure in out
        assert json.loads((tmp_path / "out/settings.json").read_text()) == settings  # unchanged
    assert saved.metadata["gap"] == 2
    hours = (tmp_path / "new.csv").read_text().splitlines()
    minutes = [
        hours[0],
        *(",".join([a, str(60 * int(b)), c]) for a, b, c in (line.split(",", 2) for line in hours[1:])),
    ]
    (tmp_path / "minutes.csv").write_text("\n".join(minutes))
    for command in ("evaluate", "predict"):
        code, out, err = run(capsys, command, "out", "minutes.csv")
        assert code == 0 and "warning: time: a median gap of 120 in minutes.csv, and of 2 in training." in err
    code, _, err = run(capsys, "train", "--resume", "out", "--missing", "mask")
    assert code == 2 and "--missing: expected nothing beside --resume" in err
    code, _, err = run(capsys, "train", "t.csv")
    assert code == 2 and "missing='mask'" in err and len(err.splitlines()) == 1

    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    code, out, _ = run(capsys, "export", "out", "--to", "stablehlo")
    assert code == 0 and "largest difference" in out
    for target in filter(find_spec, ("onnx", "torch")):
        code, _, err = run(capsys, "export", "out", "--to", target)
        assert code == 2 and "pooling" in err and "'attention'" in err and len(err.splitlines()) == 1


def test_axes_that_look_swapped_are_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("s.npz", X=np.full((6, 1, 50), np.nan), y=[*"ababab"])
    with warnings.catch_warnings():
        code, _, err = run(capsys, "train", "s.npz")
    first, second = err.splitlines()
    assert code == 2 and first.startswith("grujax: warning: s.npz: read as 1 step of 50 channels.")
    assert "nan at row 0, step 0, channel 0" in second
