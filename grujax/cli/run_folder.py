"""The folder of a training run: a new one, with the best model so far and a line for every epoch."""

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

from grujax.cli.streams import warned
from grujax.errors import InputError, require, require_one_of
from grujax.saving import save
from grujax.saving.atomic import remove_left_over, replacing
from grujax.signals import uninterrupted
from grujax.training import Fitted, TrainConfig


@contextlib.contextmanager
def new_folder(output: Path | None, name: str) -> Iterator[Path]:
    """A folder made for this run: `output`, or the first free runs/NAME-k.

    `mkdir` is the check, so that two runs never get the same. Where the block raises, what was made and is empty goes.
    """
    numbered = (Path("runs") / f"{name}-{number}" for number in itertools.count(1))
    while True:
        folder = next(numbered) if output is None else output
        made = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError as error:
            if not os.path.lexists(folder):  # it is the parent, a link to nowhere
                raise
            if output is not None:
                remove_left_over(output)
                raise InputError("--output", "a folder that does not exist yet", output, "Name another.") from error
        except OSError as error:
            found = f"{folder}: {error.strerror}"
            raise InputError("--output", "a folder that can be made", found, "Name another.") from error
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that holds something stays
            for path in made:
                path.rmdir()
        raise


SETTINGS, CHECKPOINTS = "settings.json", "checkpoints"
"""Names in the folder of a run."""


def can_go_on(folder: Path) -> bool:
    """Whether the run in that folder has a checkpoint."""
    return any(path.name.isdigit() for path in (folder / CHECKPOINTS).glob("*"))


def finished(metrics: Path) -> bool:
    """Whether a run was trained and judged to its end: then the last line of its metrics is that of the test split."""
    with contextlib.suppress(OSError, ValueError):
        return metrics.read_text(encoding="utf-8").rstrip().rpartition("\n")[2].startswith('{"test":')
    return False


def clear(folder: Path) -> None:
    """Removes what a run leaves that ended before there was anything to keep."""
    (folder / SETTINGS).unlink(missing_ok=True)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


class Settings(NamedTuple):
    """What a run trains on and how: settings.json in its folder, by which it is resumed."""

    data: str
    test: str | None
    training: dict[str, Any]
    missing: Literal["refuse", "mask"] = "refuse"

    def write(self, path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self._asdict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Raises InputError for a file that is not there or that this grujax did not write."""
        found = f"none in {path.parent}"
        remedy = "Nothing had begun, or it is no run: train anew."
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
            remedy = "Go on with the grujax that wrote it."
            raise InputError("--resume", "settings of this version of grujax", f"{path}: {error}", remedy) from error
        return settings


class Kept:
    """The best model so far, and its file, which stays when the run is killed."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path, self.metadata = path, metadata
        self.epoch: int | None = None  # of the model on disk
        self._best: Fitted | None = None
        self._due = 0.0

    def keep(self, fitted: Fitted) -> None:
        self._best = fitted

    def save_in_time(self) -> None:
        """Saves once a second or less often, for a twentieth of the time at most; after an error only `save` does."""
        began = time.monotonic()
        if began < self._due:
            return
        self._due = math.inf
        with warned("the best model so far could not be saved"):
            self.save()
            now = time.monotonic()
            self._due = now + max(1.0, 20 * (now - began))

    def save(self) -> None:
        if self._best is not None and self._best.best.epoch != self.epoch:
            with uninterrupted():
                metadata = {"labels": self._best.labels, **self.metadata}
                save(self.path, self._best.model, self._best.variables, metadata)
                self.epoch = self._best.best.epoch


class Metrics:
    """metrics.jsonl, a line for each epoch; it ends at the first error. Of a run that is resumed it begins anew."""

    def __init__(self, path: Path) -> None:
        self.path, self._mode = path, "w"

    def add(self, line: dict[str, Any]) -> None:
        mode, self._mode = self._mode, ""
        if mode:
            with warned(f"{self.path} ends early"), self.path.open(mode, encoding="utf-8") as file:
                print(json.dumps(line), file=file, flush=True)
                self._mode = "a"
