"""The README's Python blocks and commands run, and the figures in README and docs/ equal those in the result files."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from numerics import of_a_user

from grujax import cli
from grujax.bench.report import PASSES, Report, Result, read_report
from grujax.errors import InputError
from grujax.kernels import explain

ROOT = Path(__file__).parent.parent
README, SPEED, TRAINING = ((ROOT / name).read_text() for name in ("README.md", "docs/speed.md", "docs/training.md"))


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def program():
    pytest.importorskip("torch", reason="a block needs torch, which is not installed")
    return "\n".join(blocks("python"))


def test_every_python_block_runs(tmp_path, monkeypatch, capsys):
    assert program().count("import grujax") == 1
    monkeypatch.chdir(tmp_path)
    with of_a_user():
        exec(compile(program(), "README.md", "exec"), {"__name__": "__main__"})
        assert str(explain()) in capsys.readouterr().out


@pytest.mark.slow
def test_every_python_block_runs_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-W", "error", "-c", program()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(explain()) in done.stdout


def main_job():
    """The arguments of the first of the README's two commands."""
    main, tests = (block.strip() for block in blocks("bash"))
    assert main.startswith("python3 -m venv") and main.endswith("grujax train")
    assert re.search(r"pytest( -n 2)?$", tests)
    return main.rsplit("grujax ", 1)[1].split()


def assert_its_figure_is_reached(out, folder):
    figure = re.search(r"^test accuracy ([\d.]+)% \(95% interval ([\d.]+)–([\d.]+)\)$", out, re.MULTILINE)
    assert figure is not None
    assert float(figure[1]) >= 98.0  # one seed on any machine; the mean of five is in docs/training.md
    assert (folder / "runs/JapaneseVowels-1/model.safetensors").is_file()
    for line in ("majority class", "nearest neighbour", "compiled 4 shapes", "grujax evaluate"):
        assert line in out


def test_the_two_commands_are_there_and_the_main_job_reaches_its_figure(tmp_path, monkeypatch, capsys):
    """Runs the command in this process; tests/cli/test_nothing_lost.py starts it as a user does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # pictures take seconds
    with of_a_user():
        assert cli.main(main_job()) == 0
    assert_its_figure_is_reached(capsys.readouterr().out, tmp_path)


@pytest.mark.slow
def test_the_main_job_reaches_its_figure_in_a_process_of_its_own(tmp_path):
    as_a_user = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"COLUMNS": "200"}
    command = [sys.executable, "-m", "grujax.cli", *main_job()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900, env=as_a_user)
    assert done.returncode == 0, done.stderr
    assert_its_figure_is_reached(done.stdout, tmp_path)


@pytest.mark.parametrize("command", re.findall(r"^grujax (\w+)", "\n".join(blocks("text", TRAINING)), re.MULTILINE))
def test_every_command_shown_exists(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"usage: grujax {command}" in capsys.readouterr().out


def generator():
    """Imports benchmarks/speed.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("benchmarks_speed", ROOT / "benchmarks/speed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short_and_says_early_what_was_timed():
    lines = README.splitlines()
    assert len(lines) <= 90 and len(README) < 8000
    assert "nothing was timed on a TPU" in "\n".join(lines[:20]) and "## When not to use it" in lines


def test_the_times_and_the_chart_are_those_of_the_file_they_name():
    (path,) = re.findall(r"<!-- times: (benchmarks/results/\S+\.json) -->", SPEED)
    report = read_report(ROOT / path)
    assert not report.dirty
    assert generator().rewritten(SPEED, report, path) == SPEED
    assert path.encode() in (ROOT / "docs/speed.png").read_bytes()
    assert report.date[:10] in README and "AMD EPYC" in README and "AMD EPYC" in report.device["cpu"]


def invented():
    """grujax, two rivals and two rows that are no rivals, on two cases; the training pass has one case of grujax."""
    times = {"grujax": (2.0, 0.5), "torch": (4.0, 0.25), "keras": (3.0, 1.0)}
    times |= {"grujax-before": (1.0, 0.1), "products alone": (0.5, 0.1)}
    results = [
        Result(case, peer, PASSES[0], "measured", ms, (ms, ms, ms))
        for peer, of in times.items()
        for case, ms in zip(("a", "b"), of, strict=True)
    ]
    results += [
        Result("a", "grujax", PASSES[1], "measured", 12.34, (12.34,) * 9),
        Result("b", "grujax", PASSES[1], "none"),
    ]
    results += [Result(case, "torch", PASSES[1], "forward only") for case in ("a", "b")]
    device = {"cpu": "a processor", "load": [1.25, 0, 0], "environment": {"OMP_NUM_THREADS": "2"}}
    cases: dict = {"a": (1, 2, 3, 4), "b": {"name": "b", "B": 1, "T": 5, "I": 6, "H": 7, "two_ways": True}}
    return Report("2026-11-23T10:11:12+00:00", "abcdef0123", True, device, {"jax": "1.2.3"}, 2, cases, tuple(results))


def test_the_fastest_is_bold_and_the_last_row_is_the_ratio():
    forward = generator().table(invented(), PASSES[0]).splitlines()
    assert forward == [
        "| forward, ms | a | b |",
        "|---|---|---|",
        "| grujax | **2.0** | 0.5 |",
        "| torch.nn.GRU | 4.0 | **0.25** |",
        "| Keras 3 on JAX | 3.0 | 1.0 |",
        "| grujax, reset before | 1.0 | 0.1 |",
        "| products alone | 0.5 | 0.1 |",
        "| grujax / fastest other | 0.67 | 2.00 |",
    ]


def test_packed_rows_have_a_ratio_of_their_own_where_they_were_measured():
    packed = Result("b", "grujax-packed", PASSES[0], "measured", 0.125, (0.125,))
    made = invented()
    lines = generator().table(replace(made, results=(*made.results, packed)), PASSES[0]).splitlines()
    assert [line for line in lines if "fastest other" in line] == [
        "| grujax / fastest other | 0.67 | 2.00 |",
        "| grujax, packed rows / fastest other |  | 0.50 |",
    ]


def test_openvino_has_a_ratio_of_its_own_and_may_be_bold():
    own = Result("a", "openvino", PASSES[0], "measured", 1.0, (1.0,))
    made = invented()
    lines = generator().table(replace(made, results=(*made.results, own)), PASSES[0]).splitlines()
    assert "| OpenVINO | **1.0** | – |" in lines and "| grujax | 2.0 | 0.5 |" in lines
    assert [line for line in lines if line.startswith("| grujax /")] == [
        "| grujax / fastest other | 0.67 | 2.00 |",
        "| grujax / OpenVINO | 2.00 |  |",
    ]


def test_the_summary_stands_below_the_tables():
    made = invented()
    assert generator().summary(made) == ""
    cases: dict = {"single": (1, 2, 3, 4), "small": (1, 2, 3, 4)}
    results = tuple(replace(r, case={"a": "single", "b": "small"}[r.case]) for r in made.results)
    *_, head, _, forward, _, end = generator().block(replace(made, cases=cases, results=results), "x.json").splitlines()
    assert head.startswith("| grujax, times as fast | single | small | medium |")
    assert forward == "| forward | 1.50 | 0.50 | – | – | – | – | – | – | – |" and end == "<!-- /times -->"


def test_what_was_not_measured_says_why():
    trained = generator().table(invented(), PASSES[1])
    assert "| grujax | **12.3** | – |" in trained and "| torch.nn.GRU | – | – |" in trained
    assert "fastest other" not in trained  # a row of ratios is shown only if it has one
    _, notes = trained.split("\n\nWhy a time is missing (–):\n\n")
    assert "- grujax (b): none.\n- torch.nn.GRU: forward only.\n- Keras 3 on JAX: not measured.\n" in notes


AWAY = {"a": "w_ih_l0 is 4.18", "b": "w_hh_l0 is 2.14"}


def test_what_was_not_equal_is_one_line_a_library_with_the_worst():
    made = invented()
    away = [Result(case, "flax", PASSES[1], f"unequal: {w} times the tolerance away") for case, w in AWAY.items()]
    notes = generator().table(replace(made, results=(*made.results, *away)), PASSES[1])
    assert "- Flax nn.RNN(GRUCell): not equal, with errors up to 4.18 times the tolerance." in notes.splitlines()


def test_the_block_says_on_what_it_was_measured():
    block = generator().block(invented(), "x.json")
    said = " ".join(block.split())
    assert "Medians of 3 to 9 interleaved rounds on 2 cores (a processor, " in said
    assert "load 1.2 in the minute before, OMP_NUM_THREADS=2)" in said
    assert "on 2026-11-23 at commit abcdef0 with changes (`x.json`)" in said and "jax 1.2.3." in said
    assert "a (B 1, T 2, I 3, H 4); b (B 1, T 5, I 6, H 7, two_ways)" in said
    assert block.startswith("<!-- times: x.json -->\n") and block.endswith("\n<!-- /times -->")


def test_a_page_is_rewritten_between_its_markers_alone():
    old = "before\n<!-- times: old.json -->\nold | table\n<!-- /times -->\nafter \\1"
    new = generator().rewritten(old, invented(), "x.json")
    assert new.startswith("before\n<!-- times: x.json -->") and new.endswith("<!-- /times -->\nafter \\1")
    assert "old.json" not in new and "old | table" not in new
    for wrong in ("no markers", old + old):
        with pytest.raises(InputError, match="one block"):
            generator().rewritten(wrong, invented(), "x.json")


def test_the_mean_accuracy_is_that_of_the_five_seeds():
    figures, mean = re.findall(r"mean of seeds 0–4\*\* \((.*?)\) \| \*\*([\d.]+)\*\*", TRAINING)[0]
    seeds = [float(figure) for figure in figures.split(",")]
    assert len(seeds) == 5 and f"{sum(seeds) / 5:.2f}" == mean and f"{mean}% in the mean of five seeds" in README
