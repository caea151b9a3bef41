"""The one error that bad input gets: which argument, what was expected, what was found, what to do."""

import importlib
from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Input that cannot be served. The message reads `argument: expected ..., found .... remedy`."""

    def __init__(self, argument: str, expected: str, found: object, remedy: str = "") -> None:
        self.argument, self.expected, self.found, self.remedy = argument, expected, found, remedy
        super().__init__(f"{argument}: expected {expected}, found {found}.{' ' + remedy if remedy else ''}")


class MissingPackage(InputError):
    """A package that is not installed, and that what was asked for needs."""


def require_package(module: str, extra: str) -> Any:
    """The module, imported; `MissingPackage`, with what to install, where there is none.

    >>> require_package("math", "math").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"pip install 'grujax[{extra}]'"
        raise MissingPackage(module, "this package", f"none that can be imported ({error})", remedy) from error


def require_count(value: object, argument: str) -> None:
    """Raises `InputError` unless `value` is a positive integer.

    >>> require_count(3, "num_layers")
    """
    counts = isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0
    require(counts, argument, "a positive integer", repr(value))


def require(condition: bool, argument: str, expected: str, found: object, remedy: str = "") -> None:
    """Raises `InputError` unless `condition` holds.

    >>> require(3 > 2, "hidden_size", "a positive integer", 3)
    """
    if not condition:
        raise InputError(argument, expected, found, remedy)
