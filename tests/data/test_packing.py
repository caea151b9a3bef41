"""Packing: first fit, no step is lost or shared, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grujax.data import pack_sequences, sequences, unpack_sequences
from grujax.errors import InputError

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=30)


def made(sizes, channels=2, dtype=np.float32):
    """Sequences of distinct values other than zero, so that lost, moved or padded values are detected."""
    values = np.arange(1, sum(sizes) * channels + 1).reshape(-1, channels).astype(dtype)
    return np.split(values, np.cumsum(sizes)[:-1])


def bits(array):
    return (array.dtype, array.shape, array.tobytes())


def test_the_layout_of_an_example_by_hand():
    """Sequence 2 fits into no earlier row, sequence 3 into rows 0 and 1, sequence 4 only into row 1."""
    packed = pack_sequences(made([3, 2, 4, 1, 2], channels=1), length=4)
    assert packed.x[:, :, 0].tolist() == [[1, 2, 3, 10], [4, 5, 11, 12], [6, 7, 8, 9]]
    assert packed.segments.tolist() == [[0, 0, 0, 3], [1, 1, 4, 4], [2, 2, 2, 2]]
    assert packed.resets.astype(int).tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0]]
    assert packed.lengths.tolist() == [4, 4, 4]
    assert packed.rows.tolist() == [0, 1, 2, 0, 1]
    assert packed.starts.tolist() == [0, 0, 0, 3, 2]
    assert packed.sizes.tolist() == [3, 2, 4, 1, 2]
    assert (len(packed), packed.padding) == (5, 0)


def test_the_first_row_with_room_and_not_the_fullest():
    packed = pack_sequences(made([3, 4, 1]), length=5)  # sequence 2 would fill row 1 exactly
    assert packed.rows.tolist() == [0, 1, 0]
    assert packed.lengths.tolist() == [4, 4]
    assert packed.segments.tolist() == [[0, 0, 0, 2, -1], [1, 1, 1, 1, -1]]
    assert not packed.x[packed.segments < 0].any()


def plain_first_fit(sizes, length):
    filled, places = [0], []
    for size in sizes:
        row = next((row for row, steps in enumerate(filled) if steps + size <= length), len(filled))
        if row == len(filled):
            filled.append(0)
        places.append((row, filled[row]))
        filled[row] += size
    return places, filled


@given(SIZES, st.integers(0, 12), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_and_nothing_shared(sizes, more_steps, more_rows):
    given_arrays = made(sizes)
    length = max(1, *sizes) + more_steps
    places, filled = plain_first_fit(sizes, length)
    packed = pack_sequences(given_arrays, length=length, num_rows=len(filled) + more_rows)
    assert packed.x.shape == (len(filled) + more_rows, length, 2)
    assert list(zip(packed.rows.tolist(), packed.starts.tolist(), strict=True)) == places
    assert packed.lengths.tolist() == filled + [0] * more_rows
    assert packed.sizes.tolist() == sizes

    segments, resets = np.full(packed.segments.shape, -1), np.zeros(packed.resets.shape, bool)
    for index, ((row, start), size) in enumerate(zip(places, sizes, strict=True)):
        assert (segments[row, start : start + size] == -1).all()  # no step belongs to two sequences
        segments[row, start : start + size] = index
        resets[row, start : start + 1] |= size > 0
    np.testing.assert_array_equal(packed.segments, segments)
    np.testing.assert_array_equal(packed.resets, resets)
    np.testing.assert_array_equal(segments >= 0, np.arange(length) < packed.lengths[:, None])
    assert not packed.x[segments < 0].any()

    parts = unpack_sequences(packed, packed.x)
    assert [bits(part) for part in parts] == [bits(array) for array in given_arrays]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_dtypes_and_bits_stay(dtype):
    odd = np.array([[np.nan, -0.0], [np.inf, 1.1]]).astype(dtype)
    packed = pack_sequences([odd, odd[:1], odd[::-1]])
    assert packed.x.dtype == dtype
    assert [bits(part) for part in unpack_sequences(packed, packed.x)] == [bits(odd), bits(odd[:1]), bits(odd[::-1])]
    others = (packed.lengths, packed.segments, packed.rows, packed.starts, packed.sizes)
    assert {array.dtype for array in others} == {np.dtype(np.int32)}
    assert packed.resets.dtype == bool


def test_lists_and_jax_arrays_are_sequences_too():
    packed = pack_sequences(([[1.5], [2.5]], np.array([[3.5]]), jnp.array([[4.5]], jnp.float64)))
    assert packed.x[:, :, 0].tolist() == [[1.5, 2.5], [3.5, 4.5]]


def test_the_input_is_copied():
    given_array = np.ones((2, 1))
    packed = pack_sequences([given_array])
    packed.x[:] = 7
    assert given_array.tolist() == [[1], [1]]


def test_a_row_is_as_long_as_the_longest_unless_told():
    assert pack_sequences(made([2, 5, 3])).x.shape == (2, 5, 2)
    assert pack_sequences(made([2, 5, 3]), length=10).x.shape == (1, 10, 2)


def test_num_rows_pads_with_empty_rows():
    needed, more = pack_sequences(made([3, 3])), pack_sequences(made([3, 3]), num_rows=4)
    assert (needed.x.shape[0], more.x.shape[0]) == (2, 4)
    assert more.lengths.tolist() == [3, 3, 0, 0]
    assert (more.segments[2:] == -1).all()
    assert not (more.x[2:].any() or more.resets[2:].any())
    for name in ("x", "resets", "segments"):
        np.testing.assert_array_equal(getattr(more, name)[:2], getattr(needed, name))
    assert pack_sequences(made([3, 3]), num_rows=2).x.shape[0] == 2
    assert (needed.padding, more.padding, more.padding_before) == (0, 0.5, 0)


def test_a_sequence_of_no_steps_occupies_nothing():
    packed = pack_sequences(made([0, 2, 0, 2, 0, 1]), length=4)
    assert packed.segments.tolist() == [[1, 1, 3, 3], [5, -1, -1, -1]]
    assert packed.resets.astype(int).tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]
    assert packed.rows.tolist() == [0, 0, 0, 0, 0, 1]
    assert packed.starts.tolist() == [0, 0, 2, 2, 4, 0]
    shapes = [part.shape for part in unpack_sequences(packed, np.ones((2, 4, 3)))]
    assert shapes == [(0, 3), (2, 3), (0, 3), (2, 3), (0, 3), (1, 3)]


def test_nothing_but_sequences_of_no_steps():
    packed = pack_sequences(made([0, 0]))
    assert (packed.x.shape, packed.lengths.tolist(), packed.resets.any()) == ((1, 1, 2), [0], False)
    assert (packed.padding, packed.padding_before) == (1, 1)
    assert str(packed) == "2 sequences of 0 to 0 steps in 1 rows of 1: 100.0% padding, 100.0% without packing"


def test_padding_by_hand():
    packed = pack_sequences(made([3, 2, 3, 1]), length=8)  # 8 steps in the first row, 1 in the second
    assert packed.padding == pytest.approx(7 / 16, rel=1e-15)
    assert packed.padding_before == pytest.approx(3 / 12, rel=1e-15)
    assert str(packed) == "4 sequences of 1 to 3 steps in 2 rows of 8: 43.8% padding, 25.0% without packing"


OUTPUT = np.arange(24.0).reshape(3, 4, 2)  # for the example above, two values per step


def test_unpack_keeps_the_kind_and_the_axes_behind():
    packed = pack_sequences(made([3, 2, 4, 1, 2], channels=1), length=4)
    expected = [OUTPUT[0, :3], OUTPUT[1, :2], OUTPUT[2], OUTPUT[0, 3:], OUTPUT[1, 2:]]
    for output, kind in ((OUTPUT, np.ndarray), (jnp.asarray(OUTPUT, jnp.bfloat16), jax.Array)):
        parts = unpack_sequences(packed, output)
        assert all(isinstance(part, kind) and part.dtype == output.dtype for part in parts)
        for part, right in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(part, np.float64), right)
    flat = unpack_sequences(packed, OUTPUT[:, :, 0].tolist())
    assert [part.tolist() for part in flat] == [right[:, 0].tolist() for right in expected]
    deep = unpack_sequences(packed, OUTPUT[..., None] * np.ones(3))
    assert [part.shape for part in deep] == [(3, 2, 3), (2, 2, 3), (4, 2, 3), (1, 2, 3), (2, 2, 3)]


def test_unpack_traced():
    packed = pack_sequences(made([3, 2, 4, 1, 2], channels=1), length=4)

    @jax.jit
    def last_steps(output):
        return jnp.stack([part[-1] for part in unpack_sequences(packed, output)])

    expected = OUTPUT[[0, 1, 2, 0, 1], [2, 1, 3, 3, 3]]
    np.testing.assert_array_equal(last_steps(OUTPUT), expected)
    gradient = jax.grad(lambda output: last_steps(output).sum())(jnp.asarray(OUTPUT))
    chosen = np.zeros((3, 4, 2))
    chosen[[0, 1, 2, 0, 1], [2, 1, 3, 3, 3]] = 1
    np.testing.assert_array_equal(gradient, chosen)


STEPS = made([3, 2, 3])
PACKED = pack_sequences(STEPS)  # 3 rows of 3 steps
BAD = {
    "no sequences": (lambda: pack_sequences([]), "sequences", "found none"),
    "Sequences": (lambda: pack_sequences(sequences(STEPS)), "sequences", "found Sequences"),
    "one array": (lambda: pack_sequences(np.ones((2, 3, 1))), "sequences", "found ndarray"),
    "one axis": (lambda: pack_sequences([*STEPS, np.ones(3)]), "sequences[3]", "(T, C), found shape (3,)"),
    "three axes": (lambda: pack_sequences([np.ones((1, 2, 3))]), "sequences[0]", "found shape (1, 2, 3)"),
    "an empty list within": (lambda: pack_sequences([[]]), "sequences[0]", "found shape (0,)"),
    "ragged": (lambda: pack_sequences([*STEPS, [[1.0], [2.0, 3.0]]]), "sequences[3]", "unequal sizes"),
    "other channels": (
        lambda: pack_sequences([*STEPS, *made([1], 5)]),
        "sequences[3]",
        "2 channels as in sequences[0], found 5",
    ),
    "other channels, no steps": (lambda: pack_sequences([*STEPS, *made([0], 5)]), "sequences[3]", "found 5"),
    "integers": (lambda: pack_sequences(made([2], dtype=int)), "sequences[0]", "found int64. Cast with astype"),
    "booleans": (lambda: pack_sequences(made([2], dtype=bool)), "sequences[0]", "found bool. Cast"),
    "complex": (lambda: pack_sequences(made([2], dtype=complex)), "sequences[0]", "found complex128. Cast"),
    "strings": (lambda: pack_sequences([[["1.0"]]]), "sequences[0]", "a floating dtype, found <U3"),
    "integers later": (lambda: pack_sequences([*STEPS, *made([2], dtype=int)]), "sequences[3]", "found int64"),
    "mixed dtypes": (
        lambda: pack_sequences([*STEPS, *made([2], dtype=np.float64)]),
        "sequences[3]",
        "float32 as in sequences[0], found float64. Cast all",
    ),
    "too long": (
        lambda: pack_sequences(made([2, 5, 3, 7]), length=4),
        "sequences[1]",
        "at most 4 steps, the length of a row, found 5. Split it, or give length=7.",
    ),
    "length 0": (lambda: pack_sequences(STEPS, length=0), "length", "at least 1, found 0"),
    "length 0 of no steps": (lambda: pack_sequences(made([0]), length=0), "length", "at least 1, found 0"),
    "num_rows 0": (lambda: pack_sequences(STEPS, num_rows=0), "num_rows", "at least 1, found 0"),
    "too few rows": (
        lambda: pack_sequences(STEPS, num_rows=2),
        "num_rows",
        "at least 3, which the sequences need, found 2. Give more rows",
    ),
    "other rows": (lambda: unpack_sequences(PACKED, np.ones((2, 3, 4))), "output", "(3, 3, ...)"),
    "other steps": (lambda: unpack_sequences(PACKED, jnp.ones((3, 4, 3))), "output", "found shape (3, 4, 3)"),
    "one axis only": (lambda: unpack_sequences(PACKED, [1.0, 2.0, 3.0]), "output", "found shape (3,)"),
}


@pytest.mark.parametrize(("call", "argument", "part"), BAD.values(), ids=BAD)
def test_refuses(call, argument, part):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.argument == argument
    assert part in str(caught.value)
