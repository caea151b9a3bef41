"""The folder of a training run: a new one, with the best model so far and a line for every epoch."""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grujax.cli.signals import stop
from grujax.cli.streams import warned
from grujax.errors import InputError
from grujax.saving import save
from grujax.saving.atomic import remove_left_over
from grujax.training import Fitted


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
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that holds something stays
            for path in made:
                path.rmdir()
        raise


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
            with stop.shielded():
                metadata = {"labels": self._best.labels, **self.metadata}
                save(self.path, self._best.model, self._best.variables, metadata)
                self.epoch = self._best.best.epoch


class Metrics:
    """metrics.jsonl, a line for each epoch; it ends at the first error."""

    def __init__(self, path: Path) -> None:
        self.path, self._ended = path, False

    def add(self, line: dict[str, Any]) -> None:
        if not self._ended:
            self._ended = True
            with warned(f"{self.path} ends early"), self.path.open("a", encoding="utf-8") as file:
                print(json.dumps(line), file=file, flush=True)
                self._ended = False
