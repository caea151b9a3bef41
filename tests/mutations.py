"""One-line faults that the test suite must detect: `python tests/mutations.py [-k NAME]`.

mutations.toml lists them. Each is put into a copy of the tree, in which the tests named with it must fail. After a
fault in C++ the native kernel is rebuilt. It is an error if an original text is not found exactly once: change the
mutation together with the code.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    name: str
    file: str  # in grujax/
    original: str
    replacement: str
    tests: str  # the tests that detect it, in tests/
    needs_jax: str = ""  # the lowest version that those tests run with


MUTATIONS = [Mutation(**row) for row in tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["mutation"]]


LIBRARY = "grujax/kernels/native/_gru.so"
LONGEST = 900
"""In seconds. Without a fault the tests of a mutation take at most two minutes."""
BUILD = [sys.executable, "-m", "grujax.kernels.native.build"]


def copy_of_the_tree(folder: Path) -> None:
    """Copies the files that git tracks, in their current state, and the native kernel."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, [*listed.split("\0"), LIBRARY]):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def failure(tests: set[str], folder: Path, seconds: float | None = None) -> str:
    """Returns a message if a test in the copy fails, crashes or takes too long, "" if all pass; other results raise."""
    files = [f"tests/{name}" for name in sorted(tests)]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    env = os.environ | {"PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:  # a fault may make a loop endless
        return f"pytest had not ended after {seconds} seconds"
    if done.returncode > 1:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return f"{done.stdout}\npytest ended with {done.returncode}" if done.returncode else ""


def mutated(mutation: Mutation) -> str:
    """Returns the text of the file with the fault in it."""
    text = (ROOT / "grujax" / mutation.file).read_text()
    found = text.count(mutation.original)
    if found != 1:
        where = f"{mutation.name}: {mutation.original!r}"
        raise LookupError(f"{where} is {found} times in grujax/{mutation.file}, expected once")
    return text.replace(mutation.original, mutation.replacement)


def main() -> int:
    """Prints one line per mutation and returns how many were missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="", help="the mutations whose name or file holds this text")
    wanted = parser.parse_args().k
    chosen = [m for m in MUTATIONS if wanted in m.name or wanted in m.file]
    if not chosen:
        parser.error(f"argument -k: no mutation has {wanted!r} in its name or file")
    for m in [m for m in chosen if m.needs_jax > metadata.version("jax")]:
        print(f"{'left':8}{m.file:28}{m.name}: it needs jax {m.needs_jax}")
        chosen.remove(m)
    faulty = [mutated(m) for m in chosen]  # an original text that is not found is an error before any test runs
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_of_the_tree(folder)
        tests = {test for m in chosen for test in m.tests.split()}  # without names pytest would run all
        if tests and (said := failure(tests, folder)):
            sys.exit(f"The tests fail without a mutation:\n{said}")
        for m, text in zip(chosen, faulty, strict=True):
            path = folder / "grujax" / m.file
            sound = path.read_text()
            library = (folder / LIBRARY).read_bytes() if path.suffix != ".py" else b""
            path.write_text(text)
            if library:
                subprocess.run(BUILD, cwd=folder, check=True)
            caught = bool(failure(set(m.tests.split()), folder, LONGEST))
            path.write_text(sound)
            if library:
                (folder / LIBRARY).write_bytes(library)
            print(f"{'caught' if caught else 'MISSED':8}{m.file:28}{m.name}", flush=True)
            missed += not caught
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return missed


if __name__ == "__main__":
    sys.exit(main())
