"""Standard output and standard error. A stream that fails loses its text, but never the work of the command."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from grujax.errors import require


class Output:
    """Standard output. Its first error (a full disk, a closed pipe) is stored in `error` and not raised.

    Files and pipes get UTF-8, with lone surrogates, which UTF-8 cannot encode, as escapes. A terminal shows a
    replacement for each character that its encoding lacks.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.error: OSError | None = None
        self._stream: Any = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        with contextlib.suppress(AttributeError):  # not every replacement of sys.stdout can be reconfigured
            terminal = self._stream.isatty()
            options = {"errors": "replace"} if terminal else {"encoding": "utf-8", "errors": "backslashreplace"}
            self._stream.reconfigure(**options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            action()
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError):  # discard the buffered text, else Python fails on exit
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


def print_to_stderr(message: str) -> None:
    """Prints one line on standard error; does nothing if standard error cannot be written."""
    with contextlib.suppress(OSError):
        print(f"grujax: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def error_as_warning(what: str) -> Iterator[None]:
    """A context manager that prints an exception of its block as a one-line warning and suppresses it."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print_to_stderr(f"warning: {what}: {reason}")


@contextlib.contextmanager
def print_warnings(category: type[Warning]) -> Iterator[None]:
    """A context manager that prints each warning of that category as one line and silences the log of absl, in which
    libraries report the same problem."""
    log = logging.getLogger("absl")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("always", category)
        show = warnings.showwarning
        warnings.showwarning = lambda message, kind, *place: (
            print_to_stderr(f"warning: {message}") if issubclass(kind, category) else show(message, kind, *place)
        )
        try:
            log.setLevel(logging.CRITICAL)
            yield
        finally:
            log.setLevel(level)


def check_free(argument: str, path: Path, overwrite: bool) -> None:
    """Raises `InputError` if `path` exists, unless it is a file and `overwrite` is True."""
    exists = path.exists() or path.is_symlink()
    require(overwrite or not exists, argument, "a file that does not exist yet", path, "Add --overwrite to replace it.")
    require(not exists or path.is_file(), argument, "a file", f"{path}, which is not a regular file")
