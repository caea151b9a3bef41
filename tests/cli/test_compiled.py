"""The programs that the command compiles are kept in the user's cache folder, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import QUICK, toy

from grujax.cli import keep_compiled

COMMAND = [sys.executable, "-m", "grujax.cli", "train", "--quiet", *QUICK]
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERSISTENT"))}


def trained(tmp_path, output):
    data = toy(tmp_path / "toy.npz")
    env = PLAIN | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*COMMAND, data, "--output", str(tmp_path / output)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return (tmp_path / output / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_programs_are_kept_and_a_second_run_gives_the_same_bits_without_a_new_one(tmp_path):
    first = trained(tmp_path, "one")
    kept = [path.name for path in (tmp_path / "cache/grujax").glob("*/*train_step*-cache")]
    assert len(kept) == 1 and trained(tmp_path, "two") == first
    assert [path.name for path in (tmp_path / "cache/grujax").glob("*/*train_step*-cache")] == kept


def test_the_user_s_own_settings_win_and_a_folder_that_cannot_be_made_is_none(tmp_path):
    keep_compiled(environment := {"XDG_CACHE_HOME": str(tmp_path)})
    folder = Path(environment["JAX_COMPILATION_CACHE_DIR"])
    assert folder.is_dir() and folder.parent == tmp_path / "grujax" and folder.stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    for given in (
        {"GRUJAX_COMPILED": "off"},
        {"JAX_COMPILATION_CACHE_DIR": "/mine"},
        {"XDG_CACHE_HOME": str(tmp_path / "file")},
    ):
        keep_compiled(environment := dict(given))
        assert environment == given
