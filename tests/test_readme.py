"""The README's Python blocks run, in order, as one program; its main job runs and does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


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
    assert figure is not None and float(figure[1]) >= 97.0  # one seed on any machine; the mean of five is in the README
    assert (tmp_path / "runs/JapaneseVowels-1/model.safetensors").is_file()
    for line in ("majority class", "nearest neighbour", "compiled 4 shapes", "grujax evaluate"):
        assert line in done.stdout


@pytest.mark.parametrize("command", re.findall(r"^grujax (\w+)", "\n".join(blocks("text")), re.MULTILINE))
def test_every_command_shown_exists(command):
    done = subprocess.run([sys.executable, "-m", "grujax.cli", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: grujax" in done.stdout
