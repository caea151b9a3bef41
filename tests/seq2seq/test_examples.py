"""The examples run, and examples/g2p.py prints the same sounds as the package g2p-en."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from numerics import of_a_user

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = ["activationist", "gated", "recurrent", "unit", "grujax", "a", "pneumonoultramicroscopic"]


@pytest.mark.slow  # like the whole runs of the other examples
def test_dates_run_small(monkeypatch, capsys):
    options = ["--steps", "2", "--rows", "4", "--hidden-size", "8", "--test-rows", "5"]
    monkeypatch.setattr(sys, "argv", ["dates.py", *options])
    with of_a_user():
        runpy.run_path(str(EXAMPLES / "dates.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.fullmatch(
        r"(step    \d: loss \d\.\d{5}\n){2}loss \d\.\d{5} after \d+ s; \d+\.00% of 5 dates right\n", printed
    )


def test_both_examples_are_short():
    for name in ("dates.py", "g2p.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) < 120


THEIRS = """
import json, sys
from unittest.mock import MagicMock
for name in ("nltk", "nltk.corpus", "nltk.tokenize", "inflect"):  # its dictionary and tagger are not asked
    sys.modules[name] = MagicMock()
from g2p_en import G2p
print(json.dumps([G2p().predict(word) for word in sys.argv[1:]]))
"""


def test_g2p_says_what_the_package_says():
    if importlib.util.find_spec("g2p_en") is None:
        pytest.skip("g2p_en is not installed: pip install --no-deps g2p-en")
    run = {"capture_output": True, "text": True, "check": True, "timeout": 900}
    expected = json.loads(subprocess.run([sys.executable, "-c", THEIRS, *WORDS], **run).stdout)
    found = subprocess.run([sys.executable, EXAMPLES / "g2p.py", *WORDS], **run).stdout.splitlines()
    assert found == [f"{word}: {' '.join(sounds)}" for word, sounds in zip(WORDS, expected, strict=True)]
