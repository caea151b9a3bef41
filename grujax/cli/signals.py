"""Ctrl-C, SIGTERM (SLURM, Kubernetes) and SIGHUP (a terminal that was closed) end a command in the same way."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from grujax.signals import handlers


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end. `fit` treats it as Ctrl-C, which it is a kind of."""


class Stop:
    """Whether a signal has asked this command to end, and which."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it."""
        return 128 + (signal.SIGINT if self.number is None else self.number)

    @property
    def name(self) -> str:
        return "interrupted" if self.number in (None, signal.SIGINT) else f"ended by {signal.Signals(self.number).name}"

    def check(self) -> None:
        """Raises `Stopped` after a signal, also where Python could not raise it at once."""
        if self.number is not None:
            raise Stopped

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Signals raise `Stopped` in the block.

        Python cannot raise it in a destructor or a callback of the garbage collector. Nothing is printed then; `check`
        raises it again.
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
"""One for the process, since signals are sent to processes."""
