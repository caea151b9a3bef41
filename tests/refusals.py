"""The one way in which a test says that input is refused."""

import contextlib
from collections.abc import Iterator

import pytest

from grujax import InputError


@contextlib.contextmanager
def refused(*parts: str) -> Iterator[None]:
    """What runs inside must raise an InputError whose message holds every one of `parts`."""
    with pytest.raises(InputError) as error:
        yield
    assert all(part in str(error.value) for part in parts), str(error.value)
