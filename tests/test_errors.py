"""The errors themselves: their text is one line, and they survive pickling, copying and process pools."""

import copy
import multiprocessing
import pickle

import jax.numpy as jnp
import pytest

from grujax.errors import InputError, MissingPackage, require, require_equal, require_one_of, require_package

FIELDS = ("argument", "expected", "found", "remedy", "rule")
ERRORS = {
    InputError("h0", "shape (4, 5)", (4, 4)): "h0: expected shape (4, 5), found (4, 4).",
    InputError("h0", "a float", "int", "Cast it."): "h0: expected a float, found int. Cast it.",
    InputError("merge", "'concat'", "'sum'", "Leave it out.", "merge='sum' needs bidirectional=True"): (
        "merge='sum' needs bidirectional=True (merge: expected 'concat', found 'sum'). Leave it out."
    ),
    MissingPackage("torch", "an installed package", "No module named 'torch'", "pip install 'grujax[torch]'"): (
        "torch is required: pip install 'grujax[torch]' (No module named 'torch')"
    ),
}


def same(a, b):
    return type(a) is type(b) and str(a) == str(b) and all(getattr(a, f) == getattr(b, f) for f in FIELDS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.argument)
def test_the_message_holds_every_part_and_copies_keep_all(error):
    assert str(error) == ERRORS[error]
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert same(copied, error)


def test_a_worker_that_raises_does_not_hang_its_pool():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        bad = pool.apply_async(require, (False, "h0", "shape (4, 5)", jnp.ones((2, 2)), "Transpose it."))
        missing = pool.apply_async(require_package, ("no_such_package", "torch"))
        with pytest.raises(InputError) as refused:
            bad.get(timeout=60)
        with pytest.raises(MissingPackage) as absent:
            missing.get(timeout=60)
    assert same(refused.value, InputError("h0", "shape (4, 5)", "[[1. 1.] [1. 1.]]", "Transpose it."))
    assert absent.value.remedy == "pip install 'grujax[torch]'"
    assert "no_such_package is required" in str(absent.value)


@pytest.mark.parametrize(
    "found, shown",
    [
        (jnp.ones((2, 2)), "[[1. 1.] [1. 1.]]"),
        ("a\x1b[31mred\x1b[0m", r"a\x1b[31mred\x1b[0m"),
        ("over\rwritten\u202e", r"over\rwritten\u202e"),
        ("σ ⊙ é", "σ ⊙ é"),
        ("x" * 1000, "x" * 197 + " ... " + "x" * 197),
    ],
    ids=["array", "colours", "control characters", "letters", "long"],
)
def test_a_message_is_one_printable_line_of_bounded_length(found, shown):
    error = InputError("x", "a number", found)
    assert error.found == shown
    assert str(error) == f"x: expected a number, found {shown}."


def test_one_of_and_equal_say_what_was_expected_and_found():
    for value in ("concat", None):
        require_one_of(value, ("concat", "sum", None), "merge")
    for value in ("max", 3, {}, jnp.ones(2)):
        with pytest.raises(InputError) as error:
            require_one_of(value, ("concat", "sum"), "merge", "Leave it out.")
        assert error.value.expected == "one of ['concat', 'sum']"
        assert error.value.remedy == "Leave it out."
    require_equal((4, 5), (4, 5), "h0")
    with pytest.raises(InputError, match=r"h0: expected shape \(4, 5\), found shape \(4,\)\. Transpose it\."):
        require_equal((4,), (4, 5), "h0", "Transpose it.")
    with pytest.raises(InputError, match=r"channels: expected 3, found 2\."):
        require_equal(2, 3, "channels")
