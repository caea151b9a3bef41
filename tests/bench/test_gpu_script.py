"""Runs benchmarks/gpu.py with tiny sizes on the CPU: every part is measured, and the file and the table agree.

Slow: the script is not part of the package, and is run by hand, first with `--dry-run`.
"""

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"
KINDS = ("dense", "lengths", "resets", "both directions")
ROWS = ("bfloat16", "float32", "float32 highest")
PASSES = ("forward", "forward + backward")
DENSE, RESETS = "4, 5, 8", "4, 5, 8, resets 30%"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the contents of the file and what was printed."""
    folder = tmp_path_factory.mktemp("gpu") / "new"
    command = [sys.executable, SCRIPT, "--out", folder, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert [path.name for path in folder.iterdir()] == ["gpu.json"]
    return json.loads((folder / "gpu.json").read_text()), done.stdout


@pytest.mark.slow
def test_nothing_failed_and_nothing_was_left_out(run):
    found, printed = run
    assert set(found) == {"machine", "values", "times"}
    assert "failed" not in json.dumps(found) and "failed" not in printed


@pytest.mark.slow
def test_the_machine_is_named_and_its_rates_are_measured(run):
    machine = run[0]["machine"]
    assert machine["device"] == "cpu" and machine["versions"]["jax"] and machine["seed"] >= 0
    rates = [machine[f"product {row}, TFLOP/s"] for row in ROWS] + [machine["copy, TB/s"], machine["seconds"]]
    assert all(0 < rate < math.inf for rate in rates)


@pytest.mark.slow
def test_values_are_within_the_tolerance_and_the_same_twice(run):
    values = run[0]["values"]
    pairs = [(kind, row) for k, kind in enumerate(KINDS) for r, row in enumerate(ROWS) if (k + r) % 3 == 0]
    names = [(name, *pair) for name in ("resident", "xla") for pair in pairs]
    assert set(values) == {f"{name} | H 6 | {kind} | {row}" for name, kind, row in names}
    for key, found in values.items():
        if key.startswith("resident"):  # it refuses the call and says why
            assert "implementation" in found
            continue
        directions = ("", "_reverse") if "both" in key else ("",)
        arrays = {f"{w}_l0{way}" for w in ("w_ih", "w_hh", "b_ih", "b_hh") for way in directions} | {"hs", "x", "h0"}
        assert set(found["used"]) == set(found["relative error"]) == arrays
        assert all(0 < used < 1 for used in found["used"].values()) and found["identical"] is True
        least, most = (1e-4, 1e-2) if "bfloat16" in key else (1e-9, 1e-6)
        assert all(least < error < most for error in found["relative error"].values())


@pytest.mark.slow
def test_every_contender_has_a_time_or_a_reason(run):
    times = run[0]["times"]
    expected = {f"{DENSE} | {row} | {kind}" for row in ROWS[::2] for kind in PASSES}
    assert set(times) == expected | {f"{RESETS} | {row} | {kind}" for row in ROWS[:1] for kind in PASSES}
    torch = find_spec("torch") is not None
    for key, found in times.items():
        reasons = {name: t for name, t in found["us a step"].items() if isinstance(t, str)}
        without = {"cuDNN", "cuDNN packed"} if not torch or key.startswith(RESETS) else set()
        assert set(reasons) == {"resident", "torchrl"} | without
        measured = set(found["us a step"]) - set(reasons)
        assert measured == {"xla", "lax.scan", "cuDNN", "cuDNN packed"} - without
        assert all(0 < found["us a step"][name] < math.inf for name in measured)
        assert set(found["from xla"]) == measured and found["from xla"]["xla"] == 0
        most = 3e-2 if "bfloat16" in key else 1e-6
        assert all(0 < found["from xla"][name] < most for name in measured - {"xla"})


@pytest.mark.slow
def test_the_table_is_printed_last_and_shows_what_the_file_holds(run):
    found, printed = run
    lines = printed.splitlines()[-7:]
    for name in ("resident", "xla", "lax.scan", "cuDNN", "cuDNN packed", "torchrl", "floor", "/scan", "/best"):
        assert name in lines[0]
    for line, (key, times) in zip(lines[1:], found["times"].items(), strict=True):
        shape, row, kind = key.split(" | ")
        assert line.startswith(shape) and row in line and ("both" in line) == (kind == PASSES[1])
        floor = least(found["machine"], row, kind)
        assert line[48 + 6 * 13 :][:13].strip() == f"{floor:.2f}"
        cells = [line[48 + 13 * i : 61 + 13 * i].strip() for i in range(6)]
        taken = times["us a step"]
        assert cells[:3] == ["-", f"{taken['xla']:.2f}", f"{taken['lax.scan']:.2f}"]
        ratios = line[48 + 7 * 13 :].split()
        assert ratios[0] == f"{taken['lax.scan'] / taken['xla']:.2f}" and len(ratios) == 4
        assert float(ratios[3]) == pytest.approx(taken["xla"] / floor, rel=1e-3, abs=6e-3)


def least(machine, row, kind):
    """The least time of a step of B 4, T 5, I = H 8, in microseconds: the larger of its products' and its bytes'."""
    numbers, products, weights = 4 * (8 + 8), 2 * 4 * 8 * 3 * (8 + 8), 3 * 8 * (8 + 8) / 5  # per step
    if kind == PASSES[1]:  # x, hs, dx, dhs, and x and hs again; dw, and w once
        numbers, products, weights = 3 * numbers, 3 * products, 2 * weights
    moved = (numbers + weights) * (2 if row == "bfloat16" else 4)
    return max(products / machine[f"product {row}, TFLOP/s"], moved / machine["copy, TB/s"]) / 1e6


def test_the_profile_of_a_call_names_what_ran(tmp_path):
    command = [sys.executable, SCRIPT.with_name("gpu_profile.py"), "--out", tmp_path, "--tiny"]
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads((tmp_path / "profile.json").read_text())
    calls = {key: of for key, of in found.items() if key.startswith("2, 3, 4 ")}
    assert len(calls) == 4
    for of in calls.values():
        assert 0 < of["call"] < 1e6 and of["kernels"] and all(us >= 0 for us in of["kernels"].values())
