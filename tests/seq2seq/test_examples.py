"""The examples run, and the weights of g2p-en say here what they say in its own code."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = ["activationist", "gated", "recurrent", "unit", "grujax", "a", "pneumonoultramicroscopic"]


def test_dates_run_small():
    command = [sys.executable, "-W", "error", EXAMPLES / "dates.py"]
    command += ["--steps", "2", "--rows", "4", "--hidden-size", "8", "--test-rows", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"2 steps in \d+ s, loss \d\.\d{5}\n\d+\.00% of 5 dates right\n", done.stdout)


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
