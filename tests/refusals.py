"""How tests assert that input is refused."""

import contextlib
from collections.abc import Iterator

import pytest

from grujax import InputError


@contextlib.contextmanager
def refused(*parts: str) -> Iterator[None]:
    """Asserts that the code inside raises an InputError whose message contains all `parts`."""
    with pytest.raises(InputError) as error:
        yield
    assert all(part in str(error.value) for part in parts), str(error.value)
