"""Checkpoints of a training run, by orbax: written beside the training, whole or not at all."""

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
"""The keys of the JSON beside the arrays, in any format."""
KEPT = 2
"""The last checkpoint, and the one before it for a disk that damages the last."""
TENSORSTORE_NOTES = re.compile(r" \[\w+='")
"""Where the notes begin that tensorstore appends to an error: `[os_error_code='28'] [tensorstore_spec='...']`."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written; the earlier ones stay, and training goes on."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns."""

    step: int
    tree: Any
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in a folder.

    Orbax writes each into a folder of another name beside it, in a thread, and renames it when it is whole. So a
    process that is killed, or a full disk, leaves the earlier ones as they were. The last two are kept.

    Args:
      folder: where to; it is made.
      about: what the run is, as JSON can hold it. A checkpoint of a run that was something else is refused.
      period: seconds until the next one is `due`.
      absent: what a key of `about` that a checkpoint lacks stands for there: it may be older than the key.

    Raises:
      InputError: there is no folder at that path and none can be made, or nothing can be written in it.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder, {"seed": 0})
    ...     checkpoints.save(7, {"w": jnp.ones(3)}, {"loss": 0.5})
    ...     found = checkpoints.restore({"w": jnp.zeros(3)})
    ...     checkpoints.close()
    >>> found.step, found.tree["w"].tolist(), found.notes
    (7, [1.0, 1.0, 1.0], {'loss': 0.5})
    """

    def __init__(
        self, folder: str | Path, about: Mapping[str, Any], period: float = 60.0, absent: Mapping[str, Any] = {}
    ) -> None:
        require(period >= 0, "checkpoint_period", "0 or more seconds", period)
        self.folder = Path(folder).absolute()
        self.about, self.absent = (json.loads(json.dumps(of)) for of in (about, absent))  # as they are read again
        self.period = period
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:  # orbax would fail in its threads, and the process wait for them
            expected, found = "a folder to write in, or where one can be made", f"{self.folder}: {error.strerror}"
            raise InputError("checkpoints", expected, found, "Name another.") from error
        self._manager = self._opened()
        self._due = time.monotonic() + period

    def check(self) -> None:
        """Raises InputError where `restore` would refuse the last checkpoint by its format or its run."""
        self._notes(self._manager.latest_step())

    def restore(self, like: Any) -> Restored | None:
        """The last checkpoint, or None where there is none.

        Args:
          like: a tree of arrays with the structure, shapes, dtypes and shardings to restore.

        Raises:
          InputError: the checkpoint has another format, is of another run, or is damaged.
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
        """Writes a checkpoint and waits until it is whole. Signals wait too. An error is a `CheckpointWarning`."""
        with uninterrupted():
            jax.block_until_ready(tree)  # raises where a computation failed; orbax's reading would end the process
            self._try(self._manager.wait_until_finished)
            if self._manager.latest_step() != step:
                self._try(lambda: self._start(step, tree, notes))
                self._try(self._manager.wait_until_finished)

    @property
    def due(self) -> bool:
        """Whether the period is over, and the checkpoint before is written."""
        return time.monotonic() >= self._due and not self._manager.is_saving_in_progress()

    def begin(self, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint, and the next period. An error is a `CheckpointWarning`."""
        with uninterrupted():
            jax.block_until_ready(tree)  # as in `save`
            self._try(self._manager.check_for_errors)
            self._try(lambda: self._start(step, tree, notes))
        self._due = time.monotonic() + self.period

    def close(self) -> None:
        """Waits for what is being written, and ends the threads."""
        with uninterrupted():
            self._try(self._manager.wait_until_finished)
            self._manager.close()

    def _opened(self) -> Any:
        import orbax.checkpoint as ocp

        if jax.process_index() == 0:  # orbax's own cleaning fails where a thread still writes
            for left in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(left, ignore_errors=True)
        return ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=KEPT))

    def _start(self, step: int, tree: Any, notes: Mapping[str, Any]) -> None:
        import orbax.checkpoint as ocp

        header: dict[str, Any] = dict(zip(HEADER, (FORMAT, version("grujax"), self.about, dict(notes)), strict=True))
        json.dumps(header)  # raises before orbax has begun
        items = {"state": ocp.args.StandardSave(tree), "about": ocp.args.JsonSave(header)}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def _try(self, action: Callable[[], Any]) -> None:
        """An error is a warning; a manager that met one forgets what is on disk, so a new one takes its place."""
        try:
            action()
        except Exception as error:  # tensorstore raises ValueError for a full disk
            if jax.process_count() > 1:  # the others wait for what this one did not write
                raise
            text = " ".join(str(error).split())
            reason = TENSORSTORE_NOTES.split(text)[0][-200:]  # the system's own words come last
            warnings.warn(f"no checkpoint was written in {self.folder}: {reason}", CheckpointWarning, stacklevel=4)
            with contextlib.suppress(Exception):  # the same error again
                self._manager.close()
            self._manager = self._opened()

    def _notes(self, step: int | None) -> dict[str, Any]:
        """Those of a checkpoint of this format and this run; none of no checkpoint."""
        import orbax.checkpoint as ocp

        if step is None:
            return {}
        path = self.folder / str(step)
        header = ocp.args.Composite(about=ocp.args.JsonRestore())
        stored, by, about, notes = self._read(
            path, lambda: [self._manager.restore(step, args=header)["about"][key] for key in HEADER]
        )
        remedy = "Go on with the grujax that wrote it, or start anew in another folder."
        found = f"format {stored} in {path}, written by grujax {by}"
        require(stored == FORMAT, "checkpoints", f"format {FORMAT}", found, remedy)
        for key in sorted(self.about.keys() | about.keys()):
            mine, saved = (of.get(key, self.absent.get(key)) for of in (self.about, about))
            remedy = "Start anew in another folder."
            require(mine == saved, key, f"{saved!r}, as in the checkpoint {path}", repr(mine), remedy)
        return notes

    def _read(self, path: Path, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # orbax, tensorstore and JSON raise whatever a damaged file makes them trip over
            remedy = f"Remove {path} to go on from the checkpoint before it, where there is one."
            raise InputError("checkpoints", f"a whole checkpoint in {path}", error, remedy) from error
