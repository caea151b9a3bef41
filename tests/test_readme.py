"""The README's Python blocks run, in order, as one program; its main job runs; its figures are those of the files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_every_python_block_runs(tmp_path):
    program = "\n".join(blocks("python"))
    assert program.count("import grujax") == 1
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fused" in done.stdout


def test_the_two_commands_are_there_and_the_main_job_reaches_its_figure(tmp_path):
    main, tests = (block.strip() for block in blocks("bash"))
    assert main.startswith("python3 -m venv") and main.endswith("grujax train")
    assert re.search(r"pytest( -n 2)?$", tests)
    command = [sys.executable, "-m", "grujax.cli", *main.rsplit("grujax ", 1)[1].split()]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    figure = re.search(r"^test accuracy ([\d.]+)% \(95% interval ([\d.]+)–([\d.]+)\)$", done.stdout, re.MULTILINE)
    assert figure is not None and float(figure[1]) >= 98.0  # one seed on any machine; the mean of five is in the README
    assert (tmp_path / "runs/JapaneseVowels-1/model.safetensors").is_file()
    for line in ("majority class", "nearest neighbour", "compiled 4 shapes", "grujax evaluate"):
        assert line in done.stdout


@pytest.mark.parametrize("command", re.findall(r"^grujax (\w+)", "\n".join(blocks("text")), re.MULTILINE))
def test_every_command_shown_exists(command):
    done = subprocess.run([sys.executable, "-m", "grujax.cli", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: grujax" in done.stdout


@pytest.mark.parametrize("kind", ["forward", "forward + backward"])
def test_the_table_of_times_is_that_of_the_file_it_names(kind):
    report = json.loads((ROOT / re.findall(r"`(benchmarks/results/\d\S+\.json)`", README)[0]).read_text())
    table = re.search(rf"^\| {re.escape(kind)}, ms .*\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert table is not None and not report["dirty"]
    shown = [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in table[1].splitlines()]
    times = {}
    for r in report["results"]:
        if (r["kind"], r["status"]) == (kind, "measured") and r["peer"] != "grujax-before":
            times.setdefault(r["peer"], []).append(f"{r['median_ms']:.1f}")
    assert shown == list(times.values())


def test_the_mean_accuracy_is_that_of_the_five_seeds():
    figures, mean = re.findall(r"mean of seeds 0–4\*\* \((.*?)\) \| \*\*([\d.]+)\*\*", README)[0]
    seeds = [float(figure) for figure in figures.split(",")]
    assert len(seeds) == 5 and f"{sum(seeds) / 5:.2f}" == mean
