"""Writes the metrics of each epoch as TensorBoard events. Needs tensorboardX (extra `log`)."""

import shutil
from pathlib import Path
from typing import Any

from grujax.cli.streams import error_as_warning
from grujax.errors import require_package
from grujax.training import Epoch


class Events:
    """Writes events to a folder, which it empties first. After the first error it writes nothing more."""

    def __init__(self, folder: Path) -> None:
        writer = require_package("tensorboardX", "log").SummaryWriter
        shutil.rmtree(folder, ignore_errors=True)
        self._writer: Any = writer(str(folder))

    def add(self, epoch: Epoch) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        with error_as_warning("no further events for TensorBoard"):
            by_head = {f"validation_metrics/{name}": value for name, value in (epoch.validation_metrics or {}).items()}
            for name, value in {**epoch._asdict(), **by_head}.items():
                if isinstance(value, (int, float)) and name not in ("epoch", "best"):
                    writer.add_scalar(name, value, epoch.epoch)
            writer.flush()
            self._writer = writer

    def close(self) -> None:
        if self._writer is not None:
            with error_as_warning("events for TensorBoard may be missing"):
                self._writer.close()
