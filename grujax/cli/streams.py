"""Standard output and standard error: a stream that fails costs the text, never the work of the command."""

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
    """Standard output. Its first error (a full disk, a reader that has gone) is kept and not raised.

    Text goes to files and pipes as UTF-8 (a lone surrogate, which has none, as an escape); a terminal shows a
    replacement for characters that its encoding lacks.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.error: OSError | None = None
        self._stream: Any = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        with contextlib.suppress(AttributeError):  # not every stand-in for standard output can be reconfigured
            terminal = self._stream.isatty()
            how = {"errors": "replace"} if terminal else {"encoding": "utf-8", "errors": "backslashreplace"}
            self._stream.reconfigure(**how)

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
            with contextlib.suppress(OSError):  # what the stream still holds goes nowhere, else Python fails on exit
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


def tell(message: str) -> None:
    """Prints one line on standard error; nothing where that cannot be written."""
    with contextlib.suppress(OSError):
        print(f"grujax: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def warned(what: str) -> Iterator[None]:
    """Prints an error of the block as a warning of one line; the command goes on."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        tell(f"warning: {what}: {reason}")


@contextlib.contextmanager
def told(category: type[Warning]) -> Iterator[None]:
    """Prints warnings of that category as lines of their own, and not what the libraries log of their cause."""
    log = logging.getLogger("absl")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("always", category)
        show = warnings.showwarning
        warnings.showwarning = lambda message, of, *where: (
            tell(f"warning: {message}") if issubclass(of, category) else show(message, of, *where)
        )
        try:
            log.setLevel(logging.CRITICAL)
            yield
        finally:
            log.setLevel(level)


def check_free(argument: str, path: Path, overwrite: bool) -> None:
    """Refuses a file that exists already, unless told to replace it; a folder or device is always refused."""
    there = path.exists() or path.is_symlink()
    require(overwrite or not there, argument, "a file that does not exist yet", path, "Add --overwrite to replace it.")
    require(not there or path.is_file(), argument, "a file", f"{path}, which is not a file")
