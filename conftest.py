"""Doctests run as a user would run them: without the strict numerics that tests/conftest.py switches on."""

import jax
import pytest


@pytest.fixture(autouse=True)
def plain_numerics_in_doctests(request):
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
