"""The folder of a training run: its creation, its settings, the best model so far and the metrics of each epoch."""

import contextlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from grujax.cli.streams import error_as_warning
from grujax.errors import InputError, require, require_one_of
from grujax.saving import save
from grujax.saving.atomic import remove_left_over, replacing
from grujax.signals import uninterrupted
from grujax.training import Fitted, TrainConfig


@contextlib.contextmanager
def new_folder(output: Path | None, name: str) -> Iterator[Path]:
    """Creates the folder of this run: `output`, or the first free runs/NAME-k.

    `mkdir` itself is the check, so two runs never get the same folder. If the block raises, the created folders that
    are empty are removed.
    """
    remedy = "Choose another folder."
    numbered = (Path("runs") / f"{name}-{number}" for number in itertools.count(1))
    while True:
        folder = next(numbered) if output is None else output
        created = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError as error:
            if not os.path.lexists(folder):  # the error is about a parent that is a broken link
                raise
            if output is not None:
                remove_left_over(output)
                raise InputError("--output", "a folder that does not exist yet", output, remedy) from error
        except OSError as error:
            raise InputError(
                "--output", "a folder that can be created", f"{folder}: {error.strerror}", remedy
            ) from error
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for path in created:
                path.rmdir()
        raise


SETTINGS, CHECKPOINTS = "settings.json", "checkpoints"
"""Names of a file and a folder in the folder of a run."""


def can_resume(folder: Path) -> bool:
    """Returns whether the run in that folder has a checkpoint."""
    return any(path.name.isdigit() for path in (folder / CHECKPOINTS).glob("*"))


def finished(metrics: Path) -> bool:
    """Returns whether a run was trained and evaluated: the last line of its metrics then holds the test scores."""
    with contextlib.suppress(OSError, ValueError):
        return metrics.read_text(encoding="utf-8").rstrip().rpartition("\n")[2].startswith('{"test":')
    return False


def clear(folder: Path) -> None:
    """Removes the settings and checkpoints of a run that ended before it saved a model or a checkpoint."""
    (folder / SETTINGS).unlink(missing_ok=True)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


class Settings(NamedTuple):
    """The data and options of a run, stored as settings.json in its folder so that it can be resumed."""

    data: str
    test: str | None
    training: dict[str, Any]
    missing: Literal["refuse", "mask"] = "refuse"

    def write(self, path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self._asdict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Reads the file; raises `InputError` if it is missing or cannot come from this version of grujax."""
        found = f"no {path.name} in {path.parent}"
        remedy = "Its training never started, or it is not the folder of a run: train without --resume."
        require(path.is_file(), "--resume", f"the folder of a run, with its {path.name}", found, remedy)
        try:
            settings = cls(**json.loads(path.read_text(encoding="utf-8")))
            TrainConfig(**settings.training)
            require_one_of(settings.missing, ("refuse", "mask"), "missing")
            for name in ("data", "test"):
                value = getattr(settings, name)
                named = isinstance(value, str) or (name == "test" and value is None)
                require(named, name, "a name or a file", repr(value))
        except (ValueError, TypeError, AttributeError) as error:
            remedy = "Resume with the version of grujax that wrote it."
            raise InputError("--resume", "settings of this version of grujax", f"{path}: {error}", remedy) from error
        return settings


class BestModel:
    """The best model so far and its file, which remains when the run is killed."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path, self.metadata = path, metadata
        self.epoch: int | None = None  # the epoch of the model on disk
        self._best: Fitted | None = None
        self._due = 0.0

    def update(self, fitted: Fitted) -> None:
        self._best = fitted

    def save_if_due(self) -> None:
        """Saves at most once a second and for at most a twentieth of the time. After an error only `save` saves."""
        start = time.monotonic()
        if start < self._due:
            return
        self._due = math.inf
        with error_as_warning("the best model so far could not be saved"):
            self.save()
            end = time.monotonic()
            self._due = end + max(1.0, 20 * (end - start))

    def save(self) -> None:
        if self._best is not None and self._best.best.epoch != self.epoch:
            with uninterrupted():
                metadata = {"labels": self._best.labels, **self.metadata}
                save(self.path, self._best.model, self._best.variables, metadata)
                self.epoch = self._best.best.epoch


class Metrics:
    """Writes metrics.jsonl, one line per epoch, up to the first error. A resumed run writes the file from the start."""

    def __init__(self, path: Path) -> None:
        self.path, self._mode = path, "w"

    def add(self, line: dict[str, Any]) -> None:
        mode, self._mode = self._mode, ""
        if mode:
            with error_as_warning(f"{self.path} ends early"), self.path.open(mode, encoding="utf-8") as file:
                print(json.dumps(line), file=file, flush=True)
                self._mode = "a"
