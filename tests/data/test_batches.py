"""Buckets and batches: padding is minimal, every row appears once, and values are unchanged."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grujax.data import batches, bucket_boundaries, padding_share, sequences
from grujax.errors import InputError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def made(lengths, channels=2, y=None):
    """Sequences without zeros, so that lost or padded values are detected."""
    rng = np.random.default_rng(len(lengths))
    return sequences([rng.uniform(1, 2, (length, channels)) for length in lengths], y)


@given(LENGTHS, st.integers(1, 7), st.lists(st.integers(1, 50), max_size=4, unique=True), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_row_comes_once_and_unchanged(lengths, batch_size, boundaries, shuffled):
    data = made(lengths, y=np.arange(len(lengths)))
    boundaries = tuple(sorted(boundaries))
    seen = []
    for batch in batches(data, batch_size, boundaries, np.random.default_rng(1) if shuffled else None):
        real = batch.rows >= 0
        rows, steps = batch.rows[real], batch.x.shape[1]
        seen += rows.tolist()
        assert batch.x.shape == (batch_size, steps, 2)
        below = max((edge for edge in boundaries if edge < steps), default=0)
        assert ((data.lengths[rows] > below) & (data.lengths[rows] <= steps)).all()
        assert steps in boundaries or steps == max(lengths)
        shared = min(steps, data.x.shape[1])
        np.testing.assert_array_equal(batch.x[real, :shared], data.x[rows, :shared])
        assert not batch.x[:, shared:].any()
        np.testing.assert_array_equal(batch.lengths[real], data.lengths[rows])
        assert batch.y[real].tolist() == rows.tolist()
        np.testing.assert_array_equal(batch.weight, real)
        assert not (batch.x[~real].any() or batch.lengths[~real].any() or batch.y[~real].any())
    assert sorted(seen) == list(range(len(lengths)))


def test_without_rng_the_order_is_by_bucket_then_row():
    data = made([5, 2, 1, 9, 2, 4], y=[0.5, 1, 2, 3, 4, 5])
    found = [(batch.x.shape[1], batch.rows.tolist(), batch.y.tolist()) for batch in batches(data, 2, (2, 5))]
    assert found == [
        (2, [1, 2], [1, 2]),
        (2, [4, -1], [4, 0]),
        (5, [0, 5], [0.5, 5]),
        (9, [3, -1], [3, 0]),
    ]


def test_dtypes():
    for y, dtype in ((None, np.float32), ([0.5, 1.5], np.float32), (["a", "b"], np.int32)):
        batch = next(batches(made([3, 3], y=y), 2, (3,)))
        assert [array.dtype for array in batch] == [np.float32, np.int32, dtype, np.float32, np.int32]


def test_rng_shuffles_rows_and_batches_and_repeats():
    data = made([1] * 40 + [5] * 40)

    def plan(seed):
        return [(b.x.shape[1], *b.rows.tolist()) for b in batches(data, 8, (1, 5), np.random.default_rng(seed))]

    first = plan(0)
    assert first == plan(0) != plan(1)
    steps = [batch[0] for batch in first]
    assert steps != sorted(steps)  # batches are shuffled
    assert any(list(rows) != sorted(rows) for _, *rows in first)  # and the rows within a batch
    spread = [max(rows) - min(rows) for _, *rows in first]
    assert max(spread) > 8  # rows are shuffled over the whole bucket


@given(LENGTHS, st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_boundaries_pad_least(lengths, count, multiple):
    found = bucket_boundaries(lengths, count, multiple)
    edges = sorted({-(-length // multiple) * multiple for length in lengths})
    least = min(
        padded_steps(lengths, (*chosen, edges[-1]))
        for size in range(min(count, len(edges)))
        for chosen in combinations(edges[:-1], size)
    )
    assert padded_steps(lengths, found) == least
    assert len(found) <= count and list(found) == sorted(set(found)) and found[-1] == edges[-1]
    assert all(type(edge) is int and edge % multiple == 0 for edge in found)


def padded_steps(lengths, boundaries):
    return sum(min(edge for edge in boundaries if edge >= length) for length in lengths)


def test_padding_share():
    assert padding_share([1, 2, 4], (2, 4)) == 0.125
    assert padding_share([4, 4], (4,)) == 0
    assert padding_share([1, 3, 6], (2,)) == pytest.approx(1 - 10 / 14)  # 3 and 6 are padded to 6
    assert padding_share([1, 3], ()) == pytest.approx(1 - 4 / 6)


@given(LENGTHS)
@settings(max_examples=50, deadline=None)
def test_padding_share_is_that_of_the_batches(lengths):
    data, boundaries = made(lengths), bucket_boundaries(lengths, 3)
    held = sum(batch.x.shape[1] for batch in batches(data, 1, boundaries))
    assert padding_share(lengths, boundaries) == pytest.approx(1 - sum(lengths) / held)


DATA = made([1, 2, 3])
REFUSED = {
    "no lengths": (lambda: bucket_boundaries([]), "lengths", "shape (0,)"),
    "length 0": (lambda: bucket_boundaries([3, 0]), "lengths", "0"),
    "fractional lengths": (lambda: bucket_boundaries([1.5]), "lengths", "float64"),
    "no bucket": (lambda: bucket_boundaries([1], count=0), "count", "0"),
    "multiple 0": (lambda: bucket_boundaries([1], multiple=0), "multiple", "0"),
    "batch size 0": (lambda: batches(DATA, 0, (3,)), "batch_size", "0"),
    "falling": (lambda: batches(DATA, 1, (3, 2)), "boundaries", "(3, 2)"),
    "twice the same": (lambda: batches(DATA, 1, (3, 3)), "boundaries", "(3, 3)"),
    "boundary 0": (lambda: batches(DATA, 1, (0, 3)), "boundaries", "(0, 3)"),
    "share of falling": (lambda: padding_share([1], (3, 2)), "boundaries", "(3, 2)"),
}


@pytest.mark.parametrize(("call", "argument", "found"), REFUSED.values(), ids=REFUSED)
def test_refuses_at_the_call(call, argument, found):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.argument == argument
    assert found in str(caught.value.found)
