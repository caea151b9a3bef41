"""The Python blocks of the documents run, each document as one program; what the tables name exists."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TABLE = re.search(r"^\| .*\| held by \|\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE)


@pytest.mark.parametrize("file, n_printed", [("guide.md", 3), ("interop.md", 0)])
def test_every_block_runs(file, n_printed, tmp_path):
    program = "\n".join(
        re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / file).read_text(), re.DOTALL | re.MULTILINE)
    )
    command = [sys.executable, "-W", "error", "-c", program]
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # most of its time is compiling
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=quick)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^(?:print\(.*|    print\(.*)# (.*)$", program, re.MULTILINE)
    assert len(printed) == n_printed
    for line, found in zip(printed, done.stdout.splitlines(), strict=True):
        assert re.fullmatch(re.escape(line).replace(r"\.\.\.", ".*"), found), (line, found)


def test_the_table_of_conversions_has_a_row_for_each_that_is_measured():
    """Each framework with what it loses; `python benchmarks/conversions.py` measures them again."""
    spec = importlib.util.spec_from_file_location("conversions", ROOT / "benchmarks/conversions.py")
    assert spec is not None and spec.loader is not None
    conversions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conversions)
    _, below = (ROOT / "docs/interop.md").read_text().split("| a conversion loses |")
    found = re.findall(r"^\| (.*) \| (.*) \| (\d\.\de-\d\d) \|$", below, re.MULTILINE)
    assert [row[:2] for row in found] == [(row.framework, row.loses) for row in conversions.ROWS]
    assert all(float(difference) < 1e-6 for *_, difference in found)


def rows():
    assert TABLE is not None, "the README has no table of features"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE[1].splitlines()]


@pytest.mark.parametrize("row", rows() if TABLE else [None], ids=lambda row: row and row[0])
def test_each_feature_names_a_test_that_exists(row):
    feature, grujax, *_, held_by = row
    assert feature and grujax
    named = re.findall(r"`(?P<file>[\w/]+)::(?P<test>test_\w+)`", held_by)
    assert named, held_by
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(f"{file}.py")
        assert re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), (file, test)
