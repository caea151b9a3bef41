"""The figures of each epoch as events of TensorBoard. tensorboardX comes with the extra `log`."""

import shutil
from pathlib import Path
from typing import Any

from grujax.cli.streams import warned
from grujax.errors import require_package
from grujax.training import Epoch


class Events:
    """A writer of events in a folder, which begins anew; it ends at the first error."""

    def __init__(self, folder: Path) -> None:
        writer = require_package("tensorboardX", "log").SummaryWriter
        shutil.rmtree(folder, ignore_errors=True)
        self._writer: Any = writer(str(folder))

    def add(self, epoch: Epoch) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        with warned("no further events for TensorBoard"):
            of_heads = {f"validation_metrics/{name}": value for name, value in (epoch.validation_metrics or {}).items()}
            for name, value in {**epoch._asdict(), **of_heads}.items():
                if isinstance(value, (int, float)) and name not in ("epoch", "best"):
                    writer.add_scalar(name, value, epoch.epoch)
            writer.flush()
            self._writer = writer

    def close(self) -> None:
        if self._writer is not None:
            with warned("events for TensorBoard may be missing"):
                self._writer.close()
