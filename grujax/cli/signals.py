"""Ends a command in the same way on Ctrl-C, SIGTERM (SLURM, Kubernetes) and SIGHUP (a closed terminal)."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from grujax.signals import handlers


class Stopped(KeyboardInterrupt):
    """Raised when a signal asks the command to end. As a `KeyboardInterrupt` it is treated by `fit` as Ctrl-C."""


class Stop:
    """Records which signal, if any, has asked this command to end."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal, as in shells; 130 (Ctrl-C) without a signal."""
        return 128 + (signal.SIGINT if self.number is None else self.number)

    @property
    def name(self) -> str:
        return "interrupted" if self.number in (None, signal.SIGINT) else f"ended by {signal.Signals(self.number).name}"

    def check(self) -> None:
        """Raises `Stopped` if a signal has arrived, even if Python could not raise it at once."""
        if self.number is not None:
            raise Stopped

    @contextmanager
    def handled(self) -> Iterator[None]:
        """A context manager in which signals raise `Stopped`.

        Python cannot raise it in a destructor or a callback of the garbage collector. In that case nothing is printed,
        and the next `check` raises it again.
        """
        self.number = None
        hook = sys.unraisablehook
        try:
            sys.unraisablehook = lambda lost: None if lost.exc_type is Stopped else hook(lost)
            with handlers(lambda before: self._handle):
                yield
        finally:
            sys.unraisablehook = hook

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        raise Stopped


stop = Stop()
"""The only instance: signals are sent to the whole process."""
