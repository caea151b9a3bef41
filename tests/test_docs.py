"""The guide's Python blocks run, in order, as one program; the tests that the README's table names exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs/guide.md").read_text()
README = (ROOT / "README.md").read_text()
TABLE = re.search(r"^\| .*\| held by \|\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE)


def test_every_block_of_the_guide_runs(tmp_path):
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE))
    command = [sys.executable, "-W", "error", "-c", program]
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # most of its time is compiling
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=quick)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^(?:print\(.*|    print\(.*)# (.*)$", program, re.MULTILINE)
    assert len(printed) == 3
    for line, found in zip(printed, done.stdout.splitlines(), strict=True):
        assert re.fullmatch(re.escape(line).replace(r"\.\.\.", ".*"), found), (line, found)


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
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / f"{file}.py").read_text(), re.MULTILINE), (file, test)
