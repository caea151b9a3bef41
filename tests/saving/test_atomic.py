"""Atomic writing: temporary files of killed processes are removed, those of running processes stay."""

import os
import socket
import subprocess
import sys

import pytest

from grujax.saving import atomic
from grujax.saving.atomic import remove_left_over, replacing

WRITES = """
import runpy, sys
with runpy.run_path(sys.argv[1])["replacing"](sys.argv[2]) as temporary:
    temporary.write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def hidden(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def test_the_temporary_file_of_a_process_that_was_killed_is_removed_by_the_next(tmp_path):
    command = [sys.executable, "-c", WRITES, atomic.__file__, str(tmp_path / "model.safetensors")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        (running,) = hidden(tmp_path)
        with replacing(tmp_path / "other.csv") as temporary:
            temporary.write_text("whole", encoding="utf-8")
        assert hidden(tmp_path) == [running]  # its process is still running
        process.kill()
        process.communicate()
    assert hidden(tmp_path) == [running]
    with replacing(tmp_path / "other.csv") as temporary:
        temporary.write_text("whole", encoding="utf-8")
        assert hidden(tmp_path) == [temporary.name]
        remove_left_over(tmp_path)
        assert hidden(tmp_path) == [temporary.name]  # this process is writing it
    assert os.listdir(tmp_path) == ["other.csv"]


@pytest.mark.parametrize(
    "host, process, goes",
    [(None, os.getpid(), True), (None, 1, False), ("elsewhere", os.getpid(), False), (None, 10**30, False)],
    ids=["this process's", "the first process's", "another host's", "no process's"],
)
def test_which_are_left_over(host, process, goes, tmp_path):
    """In a container an earlier process may have had the same number; processes of other hosts are not visible."""
    name = f".model.safetensors.{host or socket.gethostname()}-{process}-0123abcd.tmp.safetensors"
    for other in (name, ".model.tmp", "model.tmp"):
        (tmp_path / other).touch()
    remove_left_over(tmp_path)
    assert (name not in os.listdir(tmp_path)) == goes
    assert {".model.tmp", "model.tmp"} <= set(os.listdir(tmp_path))


def test_an_error_in_the_block_leaves_the_earlier_file_alone(tmp_path):
    (tmp_path / "a").write_text("earlier")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "earlier"


def test_a_folder_is_refused_by_its_name_before_anything_is_written(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError, match=rf"{tmp_path / 'a'}'$"), replacing(tmp_path / "a"):
        pytest.fail("the block ran")
    assert os.listdir(tmp_path) == ["a"]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / f"epoch=3.{'loss=0.25.' * 20}pt"
    with replacing(path) as temporary:
        assert temporary.suffix == ".pt"
        temporary.write_text("whole")
    assert os.listdir(tmp_path) == [path.name]
