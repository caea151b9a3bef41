"""`InputError`, the error for bad input, with the functions that raise it, and warnings at the user's line.

The message names the argument, what was expected, what was found, and the remedy.
"""

import importlib
import re
import sys
import warnings
from collections.abc import Iterable
from numbers import Integral
from typing import Any

LONGEST = 400
"""The maximum number of characters in each part of a message; the middle of a longer part is left out."""
INSIDE = ("contextlib", "flax", "functools", "grujax", "jax", "jaxlib")
"""Packages that `warn_user` skips when it looks for the user's line."""


class InputError(ValueError):
    """Raised for input that cannot be served, with a one-line message: `argument: expected ..., found .... remedy`.

    If arguments contradict each other, the message begins with the rule: `merge='sum' needs bidirectional=True
    (merge: ...)`. The error can be pickled and copied.

    Attributes:
      argument: the name of the argument, or the path of the file.
      expected, found: descriptions of the values that are allowed, and of the value that was passed.
      remedy: what to do; may be empty.
      rule: the rule that several arguments break together; empty if a single argument is wrong.

    >>> print(InputError("hidden_size", "a positive integer", -3, "Pass 3."))
    hidden_size: expected a positive integer, found -3. Pass 3.
    """

    def __init__(self, argument: str, expected: object, found: object, remedy: str = "", rule: str = "") -> None:
        parts = [_one_line(part) for part in (argument, expected, found, remedy, rule)]
        self.argument, self.expected, self.found, self.remedy, self.rule = parts
        super().__init__(*parts)

    def __str__(self) -> str:
        what = f"{self.argument}: expected {self.expected}, found {self.found}"
        return f"{f'{self.rule} ({what})' if self.rule else what}. {self.remedy}".rstrip()


class MissingPackage(InputError):
    """Raised when a package that the call needs is not installed."""

    def __str__(self) -> str:
        return f"{self.argument} is required: {self.remedy} ({self.found})"


def require_package(module: str, extra: str) -> Any:
    """Imports and returns a module; raises `MissingPackage` with the install command if the import fails.

    >>> require_package("math", "math").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackage(
            module.partition(".")[0], "an installed package", error, f"pip install 'grujax[{extra}]'"
        ) from error


def counted(count: int, noun: str) -> str:
    """Returns the number with its noun, for messages.

    >>> counted(1, "step"), counted(3, "step")
    ('1 step', '3 steps')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def require_count(value: object, argument: str) -> None:
    """Raises `InputError` unless `value` is a positive integer.

    >>> require_count(3, "num_layers")
    """
    counts = isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0
    require(counts, argument, "a positive integer", repr(value))


def require_one_of(value: object, choices: Iterable[str | None], argument: str, remedy: str = "") -> None:
    """Raises `InputError` unless `value` is one of `choices`, which are names or None.

    >>> require_one_of("keep", ("keep", "take"), "update")
    """
    choices = list(choices)
    known = (value is None or isinstance(value, str)) and value in choices
    require(known, argument, f"one of {choices}", repr(value), remedy)


def require_equal(found: object, expected: object, argument: str, remedy: str = "") -> None:
    """Raises `InputError` unless `found == expected`. The message calls a tuple a shape.

    >>> require_equal((4, 5), (4, 5), "h0")
    """
    if found != expected:
        expected, found = (f"shape {a}" if isinstance(a, tuple) else a for a in (expected, found))
        raise InputError(argument, expected, found, remedy)


def require(
    condition: bool, argument: str, expected: object, found: object, remedy: str = "", *, rule: str = ""
) -> None:
    """Raises `InputError` unless `condition` holds.

    >>> require(3 > 2, "hidden_size", "a positive integer", 3)
    """
    if not condition:
        raise InputError(argument, expected, found, remedy, rule)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning at the user's line that called grujax, skipping the frames of `INSIDE`."""
    frame = sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in INSIDE:
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    where = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
    warnings.warn_explicit(message, category, *where, registry)


def _one_line(part: object) -> str:
    """The text of a part: printable characters, on one line, at most `LONGEST` of them."""
    text = re.sub(r"\s*\n\s*", " ", str(part))
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = (LONGEST - 5) // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"
