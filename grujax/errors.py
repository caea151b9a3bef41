"""The one error that bad input gets: which argument, what was expected, what was found, what to do."""

from numbers import Integral


class InputError(ValueError):
    """Input that cannot be served. The message reads `argument: expected ..., found .... remedy`."""

    def __init__(self, argument: str, expected: str, found: object, remedy: str = "") -> None:
        self.argument, self.expected, self.found, self.remedy = argument, expected, found, remedy
        super().__init__(f"{argument}: expected {expected}, found {found}.{' ' + remedy if remedy else ''}")


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
