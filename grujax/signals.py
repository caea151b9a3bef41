"""Signals that wait while something must not be cut in two."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C, SIGTERM (SLURM, Kubernetes) and SIGHUP (a terminal that was closed)."""


@contextmanager
def handlers(change: Callable[[Any], Any]) -> Iterator[None]:
    """In the block the signals have the handlers `change(handler before)`; one where that is None keeps its own.

    Only the main thread may set handlers; in others nothing changes. Signals that are ignored (nohup, a job in the
    background) stay ignored.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {s: signal.getsignal(s) for s in SIGNALS}
    new = {s: change(handler) for s, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    new = {s: handler for s, handler in new.items() if handler is not None}
    try:
        for number, handler in new.items():
            signal.signal(number, handler)
        yield
    finally:
        for number in new:
            signal.signal(number, before[number])


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Signals wait until the block ends, then do what they would have done. Yields those that wait, as they come."""
    waiting: list[int] = []
    try:
        with handlers(lambda before: lambda number, frame: waiting.append(number)):
            yield waiting
    finally:
        for number in dict.fromkeys(waiting):
            signal.raise_signal(number)


@contextmanager
def terminable() -> Iterator[None]:
    """A signal that would end the process at once raises `KeyboardInterrupt` in the block, and ends it afterwards."""
    waiting: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        waiting.append(number)
        raise KeyboardInterrupt

    try:
        with handlers(lambda before: interrupt if before is signal.SIG_DFL else None):
            yield
    finally:
        for number in dict.fromkeys(waiting):
            signal.raise_signal(number)
