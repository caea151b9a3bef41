"""Checkpoints: restoring, refusals, and what remains after a full disk or a killed process."""

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from grujax import InputError
from grujax.saving import checkpoints as module
from grujax.saving.checkpoints import Checkpoints, CheckpointWarning
from grujax.signals import terminable, uninterrupted

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""If a file cannot be read or written, orbax leaves coroutines that are never awaited."""

ABOUT = {"seed": 0, "pooling": "max", "head": (1, 2)}


def tree(seed, size=1000):
    key = jax.random.key(seed)
    return {
        "state": (jax.random.normal(key, (size,)), jnp.int32(seed)),
        "best": {"w": jnp.full((2, 3), seed, "bfloat16")},
    }


@pytest.fixture
def opened(tmp_path):
    """Returns a function that opens the checkpoints of one folder; all are closed after the test."""
    made = []

    def open_again(about=ABOUT, period=0.0):
        made.append(Checkpoints(tmp_path / "c", about, period))
        return made[-1]

    yield open_again
    for checkpoints in made:
        checkpoints.close()
    gc.collect()  # frees what orbax left behind now, not during a test of another file


def save_in_time(checkpoints, step, tree, notes):
    """Saves if a checkpoint is due, as `fit` does after each step."""
    if checkpoints.due:
        checkpoints.begin(step, tree, notes())


def assert_restored(checkpoints, step):
    found = checkpoints.restore(tree(0))
    assert found is not None and found.step == step and found.notes == {"at": step}
    expected = tree(step)
    assert jax.tree.structure(found.tree) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found.tree), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_the_last_comes_back_bit_for_bit_and_the_one_before_it_is_kept(opened, tmp_path):
    checkpoints = opened()
    assert checkpoints.restore(tree(0)) is None
    for step in (1, 5, 8):
        checkpoints.save(step, tree(step), {"at": step})
        assert_restored(checkpoints, step)
    assert sorted(os.listdir(tmp_path / "c")) == ["5", "8"]
    assert_restored(opened(), 8)


@pytest.mark.parametrize("path", ["file", "file/below", "link"])
def test_a_path_where_no_folder_can_be_is_refused_at_once(path, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with refused(
        "checkpoints: expected a folder that is writable or can be created", str(tmp_path / path), "Choose another"
    ):
        Checkpoints(tmp_path / path, ABOUT)
    assert (tmp_path / "file").read_text() == "mine"


def test_they_are_written_beside_the_training_from_buffers_that_it_may_reuse(opened):
    checkpoints, step = opened(), jax.jit(lambda a: a * 1.5 + 1, donate_argnums=0)
    a = jax.random.normal(jax.random.key(0), (300_000,))
    for number in range(5):
        expected = np.array(a)
        save_in_time(checkpoints, number, {"a": a}, lambda: {})
        for _ in range(3):
            a = step(a)
        while checkpoints._manager.is_saving_in_progress():
            time.sleep(0.01)
        found = checkpoints.restore({"a": a})
        assert found is not None and found.step == number
        np.testing.assert_array_equal(found.tree["a"], expected)


def test_the_period_is_kept(opened, tmp_path):
    checkpoints = opened(period=1000.0)
    save_in_time(checkpoints, 1, tree(1), lambda: {"at": 1})
    assert os.listdir(tmp_path / "c") == []
    checkpoints._due = 0.0
    save_in_time(checkpoints, 2, tree(2), lambda: {"at": 2})
    save_in_time(checkpoints, 3, tree(3), lambda: {"at": 3})
    checkpoints.close()
    assert os.listdir(tmp_path / "c") == ["2"]


@pytest.mark.parametrize("stored", [0, 2, 99])
def test_another_format_is_refused_by_name(stored, opened, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", stored)
    opened().save(3, tree(3), {"at": 3})
    monkeypatch.undo()
    with pytest.raises(
        InputError, match=rf"^checkpoints: expected format 1, found format {stored} in .*/c/3, written by grujax 0"
    ):
        opened().restore(tree(0))


def test_a_key_that_an_older_checkpoint_lacks_stands_for_what_was_there_before_it(opened, tmp_path):
    opened().save(3, tree(3), {"at": 3})
    about = {**ABOUT, "members": 1}
    for absent, fits in (({"members": 1}, True), ({"members": 2}, False)):
        newer = Checkpoints(opened().folder, about, absent=absent)
        with contextlib.nullcontext() if fits else pytest.raises(InputError, match="members: expected 2"):
            newer.check()
        newer.close()


@pytest.mark.parametrize(
    "about, says",
    [
        ({**ABOUT, "seed": 7}, "seed: expected 0, as in the checkpoint .*, found 7"),
        ({**ABOUT, "more": 1}, "more: expected None, as in the checkpoint .*, found 1"),
        ({"seed": 0, "head": (1, 2)}, "pooling: expected 'max', as in the checkpoint .*, found None"),
    ],
)
def test_another_run_is_refused_by_name(about, says, opened):
    opened().save(3, tree(3), {"at": 3})
    with pytest.raises(InputError, match=f"^{says}"):
        opened(about).restore(tree(0))


def biggest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder):
    path = biggest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a file cut short": cut,
    "no header": lambda folder: (folder / "about/metadata").unlink(),
    "a header that is no JSON": lambda folder: (folder / "about/metadata").write_text("{"),
    "a header of another kind": lambda folder: (folder / "about/metadata").write_text("[1]"),
    "a header without its keys": lambda folder: (folder / "about/metadata").write_text('{"format": 1}'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_serves(name, opened, tmp_path):
    checkpoints = opened()
    for step in (4, 6):
        checkpoints.save(step, tree(step), {"at": step})
    checkpoints.close()
    DAMAGE[name](tmp_path / "c/6")
    with pytest.raises(InputError, match=r"^checkpoints: expected .*c/6") as refused:
        opened().restore(tree(0))
    assert "\n" not in str(refused.value)
    (tmp_path / "c/6").rename(tmp_path / "damaged")
    assert_restored(opened(), 4)


def test_a_full_disk_leaves_the_earlier_ones_and_training_goes_on(opened, tmp_path):
    """A limit on the file size replaces the full disk: tensorstore fails in its own thread in both cases."""
    checkpoints = opened()
    checkpoints.save(1, tree(1), {"at": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.warns(CheckpointWarning, match="no checkpoint was written in .*c: .*File too large"):
            checkpoints.save(2, tree(2, 100_000), {"at": 2})
        assert_restored(checkpoints, 1)
        save_in_time(checkpoints, 3, tree(3, 100_000), lambda: {"at": 3})
        while checkpoints._manager.is_saving_in_progress():
            time.sleep(0.01)
        with pytest.warns(CheckpointWarning, match="File too large"):
            save_in_time(checkpoints, 4, tree(4), lambda: {"at": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoints.save(5, tree(5), {"at": 5})
    assert_restored(checkpoints, 5)
    assert_restored(opened(), 5)
    assert [name for name in os.listdir(tmp_path / "c") if not name.isdigit()] == []


def test_the_warning_ends_with_the_words_of_the_system(opened, monkeypatch):
    """Tensorstore appends notes of any length to that message."""
    checkpoints = opened()
    text = "OUT_OF_RANGE: Error writing: No space left on device [os_error_code='28'] [tensorstore_spec='{%s}']"

    def full(*args, **kwargs):
        raise ValueError(text % ("x" * 1000))

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.warns(CheckpointWarning, match="Error writing: No space left on device$"):
        checkpoints.save(1, tree(1), {"at": 1})


def test_what_json_cannot_hold_is_a_warning_and_costs_nothing_else(opened):
    checkpoints = opened()
    checkpoints.save(1, tree(1), {"at": 1})
    with pytest.warns(CheckpointWarning, match="not JSON serializable"):
        checkpoints.save(2, tree(2), {"at": object()})
    checkpoints.save(3, tree(3), {"at": 3})
    assert_restored(checkpoints, 3)


def test_what_a_killed_process_left_half_written_is_removed(opened, tmp_path):
    opened().save(1, tree(1), {"at": 1})
    (tmp_path / "c/2.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp").mkdir(parents=True)
    checkpoints = opened()
    assert_restored(checkpoints, 1)
    checkpoints.save(2, tree(2), {"at": 2})
    assert_restored(checkpoints, 2)
    assert sorted(os.listdir(tmp_path / "c")) == ["1", "2"]


def test_signals_wait_then_do_what_they_would_have_done():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    of_python = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore SIGINT
    try:
        with uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == []
        assert seen == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)  # `terminable` keeps an existing handler
        assert seen == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, of_python)


ENDS = """
import os, signal
from grujax.signals import terminable
with terminable():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("after")
"""


def test_a_signal_that_would_end_the_process_interrupts_and_ends_it_afterwards():
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "interrupted\n", "")
