"""Checkpoints of a training run, written by orbax in the background, completely or not at all."""

import contextlib
import json
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from grujax.errors import InputError, require
from grujax.signals import uninterrupted

FORMAT = 1
HEADER = ("format", "grujax", "about", "notes")
"""The keys of the JSON that is stored beside the arrays. They are the same in every format."""
KEPT = 2
"""The number of checkpoints kept: the last one, and the one before it in case the last is damaged."""
TENSORSTORE_NOTES = re.compile(r" \[\w+='")
"""The start of the notes that tensorstore appends to an error: `[os_error_code='28'] [tensorstore_spec='...']`."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written. The earlier ones stay, and training continues."""


class Restored(NamedTuple):
    """A checkpoint, as `Checkpoints.restore` returns it."""

    step: int
    tree: Any
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in a folder.

    Orbax writes each checkpoint in a thread, into a temporary folder next to it, and renames that when it is complete.
    A killed process or a full disk therefore leaves earlier checkpoints intact. The last two are kept.

    Args:
      folder: the folder of the checkpoints; it is created if needed.
      about: values that identify the run and that JSON can store. Checkpoints with other values are refused.
      period: the number of seconds until the next checkpoint is `due`.
      absent: default values for keys of `about` that an older checkpoint lacks.

    Raises:
      InputError: the folder cannot be created, or nothing can be written in it.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder, {"seed": 0})
    ...     checkpoints.save(7, {"w": jnp.ones(3)}, {"loss": 0.5})
    ...     restored = checkpoints.restore({"w": jnp.zeros(3)})
    ...     checkpoints.close()
    >>> restored.step, restored.tree["w"].tolist(), restored.notes
    (7, [1.0, 1.0, 1.0], {'loss': 0.5})
    """

    def __init__(
        self, folder: str | Path, about: Mapping[str, Any], period: float = 60.0, absent: Mapping[str, Any] = {}
    ) -> None:
        require(period >= 0, "checkpoint_period", "0 or more seconds", period)
        self.folder = Path(folder).absolute()
        self.about, self.absent = (json.loads(json.dumps(a)) for a in (about, absent))  # comparable with JSON from disk
        self.period = period
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:  # orbax would fail in its threads, and the process would wait for them
            expected, found = "a folder that is writable or can be created", f"{self.folder}: {error.strerror}"
            raise InputError("checkpoints", expected, found, "Choose another folder.") from error
        self._manager = self._opened()
        self._due = time.monotonic() + period

    def check(self) -> None:
        """Raises InputError if `restore` would refuse the last checkpoint for its format or its run."""
        self._notes(self._manager.latest_step())

    def restore(self, like: Any) -> Restored | None:
        """Reads the last checkpoint; None if there is none.

        Args:
          like: a tree of arrays with the structure, shapes, dtypes and shardings of the result.

        Raises:
          InputError: the checkpoint has another format, belongs to another run, or is damaged.
        """
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        if step is None:
            return None
        notes = self._notes(step)
        state = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)))
        tree = self._read(self.folder / str(step), lambda: self._manager.restore(step, args=state)["state"])
        return Restored(step, tree, notes)

    def save(self, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
        """Writes a checkpoint and waits until it is complete. Signals wait too. An error is a `CheckpointWarning`."""
        with uninterrupted():
            jax.block_until_ready(tree)  # raises if a computation failed; orbax would crash the process when it reads
            self._try(self._manager.wait_until_finished)
            if self._manager.latest_step() != step:
                self._try(lambda: self._start(step, tree, notes))
                self._try(self._manager.wait_until_finished)

    @property
    def due(self) -> bool:
        """Whether the period is over and no checkpoint is being written."""
        return time.monotonic() >= self._due and not self._manager.is_saving_in_progress()

    def begin(self, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint and starts the next period. An error is a `CheckpointWarning`."""
        with uninterrupted():
            jax.block_until_ready(tree)  # as in `save`
            self._try(self._manager.check_for_errors)
            self._try(lambda: self._start(step, tree, notes))
        self._due = time.monotonic() + self.period

    def close(self) -> None:
        """Waits until writing is finished, and ends the threads."""
        with uninterrupted():
            self._try(self._manager.wait_until_finished)
            self._manager.close()

    def _opened(self) -> Any:
        import orbax.checkpoint as ocp

        if jax.process_index() == 0:  # orbax's own cleanup fails if a thread is still writing
            for left in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(left, ignore_errors=True)
        return ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=KEPT))

    def _start(self, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
        import orbax.checkpoint as ocp

        header: dict[str, Any] = dict(zip(HEADER, (FORMAT, version("grujax"), self.about, dict(notes)), strict=True))
        json.dumps(header)  # raises before orbax writes anything
        items = {"state": ocp.args.StandardSave(tree), "about": ocp.args.JsonSave(header)}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def _try(self, action: Callable[[], Any]) -> None:
        """Runs `action` and turns an error into a warning.

        After an error the manager is replaced, because it no longer knows which checkpoints are on disk.
        """
        try:
            action()
        except Exception as error:  # tensorstore raises ValueError for a full disk
            if jax.process_count() > 1:  # the other processes would wait for this one
                raise
            text = " ".join(str(error).split())
            reason = TENSORSTORE_NOTES.split(text)[0][-200:]  # the operating system's message comes last
            warnings.warn(f"no checkpoint was written in {self.folder}: {reason}", CheckpointWarning, stacklevel=4)
            with contextlib.suppress(Exception):  # the same error may be raised again
                self._manager.close()
            self._manager = self._opened()

    def _notes(self, step: int | None) -> dict[str, Any]:
        """Returns the notes of a checkpoint; `InputError` if its format or run differs; {} for step None."""
        import orbax.checkpoint as ocp

        if step is None:
            return {}
        path = self.folder / str(step)
        header = ocp.args.Composite(about=ocp.args.JsonRestore())
        stored, writer, about, notes = self._read(
            path, lambda: [self._manager.restore(step, args=header)["about"][key] for key in HEADER]
        )
        remedy = "Continue with the version of grujax that wrote it, or start a new run in another folder."
        found = f"format {stored} in {path}, written by grujax {writer}"
        require(stored == FORMAT, "checkpoints", f"format {FORMAT}", found, remedy)
        for key in sorted(self.about.keys() | about.keys()):
            current, saved = (run.get(key, self.absent.get(key)) for run in (self.about, about))
            remedy = "Start a new run in another folder."
            require(current == saved, key, f"{saved!r}, as in the checkpoint {path}", repr(current), remedy)
        return notes

    def _read(self, path: Path, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # a damaged file can cause any exception in orbax, tensorstore or JSON
            remedy = f"Remove {path} to continue from the previous checkpoint, if there is one."
            raise InputError("checkpoints", f"a whole checkpoint in {path}", error, remedy) from error
