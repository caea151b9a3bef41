"""Makes batches of few shapes: sequences of similar length share a batch, for little padding and few compilations."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from grujax.data.sequences import Sequences, require_sequences
from grujax.data.targets import Target, padded, unnamed
from grujax.errors import require


class Plan(NamedTuple):
    """The rows of each of S batches."""

    bucket: np.ndarray  # (S,) int32, the index of the boundary that the batch is padded to
    rows: np.ndarray  # (S, B) int32, -1 for filler


class Batch(NamedTuple):
    """B rows of one bucket. Filler rows have length 0, weight 0, row -1 and zeros for x and y.

    With a label or target for each step, y is (B, T) int32 or (B, T, K) float32, and -1 or NaN at steps without one,
    which includes padding and filler. With several heads y is a dict of such arrays, and in `fit` weight may be a dict
    of arrays (B,).
    """

    x: np.ndarray  # (B, T, C) float32
    lengths: np.ndarray  # (B,) int32
    y: Any  # (B,) int32 classes, (B,) or (B, K) float32 targets; (B,) float32 zeros if y is unknown
    weight: Any  # (B,) float32, 1 for a row, 0 for filler
    rows: np.ndarray  # (B,) int32: the index of each row in the data


def bucket_boundaries(lengths: ArrayLike, count: int = 4, multiple: int = 4) -> tuple[int, ...]:
    """Returns the padded lengths that give the least total padding for sequences of `lengths` (N,).

    They are at most `count` multiples of `multiple`, in increasing order; the last one holds the longest sequence.
    Raises InputError for lengths, count or multiple below 1.

    >>> bucket_boundaries([3, 4, 4, 15, 30], count=2, multiple=1)
    (4, 30)
    """
    lengths = _positive(lengths)
    require(count >= 1, "count", "at least 1", count)
    require(multiple >= 1, "multiple", "at least 1", multiple)
    edges, counts = np.unique(-(-lengths // multiple) * multiple, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # before[j] sequences are shorter than edges[j]
    least = np.full(len(edges) + 1, np.inf)  # least[j]: the fewest steps, with padding, for the first j edges
    least[0] = 0
    starts = []  # for each number of buckets: the start of the last bucket, indexed by its end
    for _ in range(min(count, len(edges))):
        start, steps = np.zeros(len(least), np.int64), np.full(len(least), np.inf)
        for end in range(1, len(least)):
            total = least[:end] + (before[end] - before[:end]) * edges[end - 1]
            start[end] = total.argmin()
            steps[end] = total[start[end]]
        starts.append(start)
        least = steps
    boundaries, end = [], len(edges)
    for start in reversed(starts):
        boundaries.append(int(edges[end - 1]))
        end = start[end]
    return tuple(reversed(boundaries))


def padding_share(lengths: ArrayLike, boundaries: tuple[int, ...]) -> float:
    """Returns the share of padded steps if `lengths` (N,) are padded as in `batches`. Filler rows are not counted.

    >>> padding_share([1, 2, 4], (2, 4))
    0.125
    """
    lengths = _positive(lengths)
    edges = np.array(_covering(boundaries, lengths))
    return float(1 - lengths.sum() / edges[np.searchsorted(edges, lengths)].sum())


def batches(
    data: Sequences, batch_size: int, boundaries: tuple[int, ...], rng: np.random.Generator | None = None
) -> Iterator[Batch]:
    """Yields every row once, in batches of exactly `batch_size` rows padded to one of `boundaries`.

    A sequence is padded to the smallest boundary that is long enough; if it is longer than all of them, to the longest
    length of the data. The last batch of a bucket is filled up with rows of weight 0. `rng` shuffles the rows of each
    bucket and then the batches; without it they are ordered by bucket, then by row. Raises InputError for a batch_size
    or a boundary below 1 and for boundaries that do not increase.

    >>> from grujax.data import sequences
    >>> data = sequences([[[1.0]], [[2.0], [3.0]], [[4.0]]])
    >>> [(batch.x.shape, batch.rows.tolist()) for batch in batches(data, 2, (1, 2))]
    [((2, 1, 1), [0, 2]), ((2, 2, 1), [1, -1])]
    """
    require_sequences(data, "data")
    edges, plan = _covering(boundaries, data.lengths), plan_of(data.lengths, batch_size, boundaries, rng)
    return (batch_of(data, rows, edges[bucket]) for bucket, rows in zip(*plan, strict=True))


def plan_of(
    lengths: np.ndarray, batch_size: int, boundaries: tuple[int, ...], rng: np.random.Generator | None = None
) -> Plan:
    """Returns the rows of the batches that `batches` yields for sequences of `lengths` (N,)."""
    require(batch_size >= 1, "batch_size", "at least 1", batch_size)
    bucket_of_row = np.searchsorted(_covering(boundaries, lengths), lengths)
    bucket, rows = [], []
    for index in np.unique(bucket_of_row):
        inside = np.flatnonzero(bucket_of_row == index).astype(np.int32)
        if rng is not None:
            rng.shuffle(inside)
        count = -(-len(inside) // batch_size)
        bucket += [index] * count
        rows.append(padded(inside, 0, count * batch_size, -1).reshape(count, batch_size))
    order = np.arange(len(bucket)) if rng is None else rng.permutation(len(bucket))
    return Plan(np.array(bucket, np.int32)[order], np.concatenate(rows)[order])


def batch_of(data: Sequences, rows: np.ndarray, steps: int) -> Batch:
    """Returns the batch of `rows` (..., B), -1 for filler, padded to `steps`; its arrays have these leading axes."""
    filler = rows < 0
    targets = data.targets or {"": Target(np.zeros(len(data), np.float32), None)}
    x = padded(data.x[rows, :steps], rows.ndim, steps, 0).astype(np.float32, copy=False)
    x[filler] = 0
    y = unnamed({name: target.of_rows(rows, steps) for name, target in targets.items()})
    lengths = (data.lengths[rows] * ~filler).astype(np.int32, copy=False)
    return Batch(x, lengths, y, (~filler).astype(np.float32), rows)


def _positive(lengths: ArrayLike) -> np.ndarray:
    """Returns `lengths` as (N,) int64. Raises InputError unless they are one or more positive integers."""
    array = np.asarray(lengths)
    fits = array.ndim == 1 and array.size > 0 and array.dtype.kind in "iu"
    require(fits, "lengths", "one or more integers", f"{array.dtype} of shape {array.shape}")
    require(array.min() >= 1, "lengths", "at least 1 step", array.min())
    return array.astype(np.int64)


def _covering(boundaries: tuple[int, ...], lengths: np.ndarray) -> tuple[int, ...]:
    """Returns the boundaries, and the longest length after them if it exceeds them all."""
    rising = all(low < high for low, high in zip((0, *boundaries), boundaries, strict=False))
    require(rising, "boundaries", "increasing lengths of at least 1", boundaries)
    longest = int(lengths.max())
    return (*boundaries, longest) if longest > max(boundaries, default=0) else tuple(boundaries)
