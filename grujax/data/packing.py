"""Packs short sequences end to end into few rows, for a layer that starts a new sequence where `resets` is True."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grujax.errors import InputError, require


@dataclass(frozen=True, eq=False)
class Packed:
    """N sequences in R rows of T steps. `pack_sequences` makes it; `unpack_sequences` restores the sequences.

    A sequence without steps takes no space: it has no reset, and another one may begin at its start.
    """

    x: np.ndarray  # (R, T, C), zero in padding
    lengths: np.ndarray  # (R,) int32, the filled steps of each row, which are its first ones
    resets: np.ndarray  # (R, T) bool, True at the first step of each sequence
    segments: np.ndarray  # (R, T) int32, the index of the sequence that a step belongs to, -1 in padding
    rows: np.ndarray  # (N,) int32, the row of each sequence
    starts: np.ndarray  # (N,) int32, its first step in that row, 0..T
    sizes: np.ndarray  # (N,) int32, its number of steps, 0..T

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def padding(self) -> float:
        """The share of the packed steps that are padding, empty rows included."""
        return float(1 - self.sizes.sum() / self.segments.size)

    @property
    def padding_before(self) -> float:
        """The share of padding without packing: a row for each sequence, as long as the longest one."""
        return float(1 - self.sizes.sum() / (len(self) * _longest(self.sizes)))

    def __str__(self) -> str:
        rows, steps = self.segments.shape
        return (
            f"{len(self)} sequences of {self.sizes.min()} to {self.sizes.max()} steps in {rows} rows of {steps}: "
            f"{self.padding:.1%} padding, {self.padding_before:.1%} without packing"
        )


def pack_sequences(sequences: Sequence[ArrayLike], *, length: int | None = None, num_rows: int | None = None) -> Packed:
    """Appends each sequence, in the given order, to the first row that has room for it.

    Args:
      sequences: a list of arrays (T_i, C) of one floating dtype, which x keeps. T_i may be 0.
      length: T, the number of steps of a row. None: the longest T_i, at least 1.
      num_rows: R, the number of rows; surplus rows stay empty. None: as many as the sequences need. Pass both `length`
        and `num_rows` to get the same shape for any sequences, so that a jitted function compiles once.

    Raises:
      InputError: no sequences, arrays of other shapes or dtypes, a sequence longer than `length`, or too few rows.

    >>> packed = pack_sequences([np.ones((3, 1)), np.ones((2, 1)), np.ones((1, 1))], length=4)
    >>> packed.segments.tolist(), packed.lengths.tolist()
    ([[0, 0, 0, 2], [1, 1, -1, -1]], [4, 2])
    >>> packed.resets.astype(int).tolist()
    [[1, 0, 0, 1], [1, 0, 0, 0]]
    >>> print(packed)
    3 sequences of 1 to 3 steps in 2 rows of 4: 25.0% padding, 33.3% without packing
    """
    arrays = _checked(sequences)
    sizes = np.array([len(array) for array in arrays], np.int32)
    steps = _longest(sizes) if length is None else length
    require(steps >= 1, "length", "at least 1", length)
    long = np.flatnonzero(sizes > steps)
    if len(long):
        remedy = f"Split it, or give length={_longest(sizes)}."
        expected = f"at most {steps} steps, the length of a row"
        raise InputError(f"sequences[{long[0]}]", expected, sizes[long[0]], remedy)
    require(num_rows is None or num_rows >= 1, "num_rows", "at least 1", num_rows)

    rows, starts, needed = _first_fit(sizes, steps)
    count = needed if num_rows is None else num_rows
    remedy = "Give more rows, longer rows or fewer sequences."
    require(count >= needed, "num_rows", f"at least {needed}, which the sequences need", num_rows, remedy)
    x = np.zeros((count, steps, arrays[0].shape[1]), arrays[0].dtype)
    segments = np.full((count, steps), -1, np.int32)
    for index, (array, row, start) in enumerate(zip(arrays, rows.tolist(), starts.tolist(), strict=True)):
        x[row, start : start + len(array)] = array
        segments[row, start : start + len(array)] = index
    resets = np.zeros((count, steps), bool)
    resets[rows[sizes > 0], starts[sizes > 0]] = True
    lengths = (segments >= 0).sum(1, dtype=np.int32)
    return Packed(x, lengths, resets, segments, rows, starts, sizes)


def unpack_sequences(packed: Packed, output: ArrayLike) -> list[Any]:
    """Returns the part of `output` (R, T, ...) that belongs to each sequence: N arrays (T_i, ...), in packing order.

    For a JAX array, traced or not, these are JAX arrays; for a NumPy array they are views of it. Outside jit, JAX
    compiles one slice for each position: for thousands of sequences unpack `np.asarray(output)`. Raises InputError if R
    or T differ from those of `packed`.

    >>> packed = pack_sequences([np.ones((3, 1)), np.ones((2, 1)), np.ones((1, 1))], length=4)
    >>> [part.tolist() for part in unpack_sequences(packed, [[1, 2, 3, 4], [5, 6, 7, 8]])]
    [[1, 2, 3], [5, 6], [4]]
    """
    values: Any = output if hasattr(output, "shape") else np.asarray(output)
    rows, steps = packed.segments.shape
    fits = tuple(values.shape[:2]) == (rows, steps)
    remedy = "Pass the output of the layer for packed.x, batch first."
    require(fits, "output", f"shape ({rows}, {steps}, ...) as packed", f"shape {tuple(values.shape)}", remedy)
    places = zip(packed.rows.tolist(), packed.starts.tolist(), packed.sizes.tolist(), strict=True)
    return [values[row, start : start + size] for row, start, size in places]


def _checked(sequences: Sequence[ArrayLike]) -> list[np.ndarray]:
    """Returns the sequences as arrays (T_i, C), after checking that all have the same C and floating dtype."""
    require(isinstance(sequences, (list, tuple)), "sequences", "a list of arrays (T, C)", type(sequences).__name__)
    require(len(sequences) > 0, "sequences", "at least one array (T, C)", "none")
    arrays: list[np.ndarray] = []
    for index, sequence in enumerate(sequences):
        argument = f"sequences[{index}]"
        try:
            array = np.asarray(sequence)
        except ValueError as error:
            raise InputError(argument, "an array (T, C)", "rows of unequal sizes") from error
        require(array.ndim == 2, argument, "an array (T, C)", f"shape {array.shape}")
        floating = "float" in array.dtype.name  # includes bfloat16, which is not an np.floating
        require(floating, argument, "a floating dtype", array.dtype, "Cast with astype(np.float32).")
        first = arrays[0] if arrays else array
        same = array.shape[1] == first.shape[1]
        require(same, argument, f"{first.shape[1]} channels as in sequences[0]", array.shape[1])
        same = array.dtype == first.dtype
        require(same, argument, f"{first.dtype} as in sequences[0]", array.dtype, "Cast all to one dtype.")
        arrays.append(array)
    return arrays


def _first_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns rows (N,) int32, starts (N,) int32, and the number of rows of `length` steps needed, at least one."""
    room = np.full(len(sizes), length)
    rows, starts = np.zeros_like(sizes), np.zeros_like(sizes)
    needed = 0
    for index, size in enumerate(sizes.tolist()):
        row = int((room[: needed + 1] >= size).argmax())  # the last of these rows is empty, so one always fits
        rows[index], starts[index] = row, length - room[row]
        room[row] -= size
        needed = max(needed, row + 1)
    return rows, starts, needed


def _longest(sizes: np.ndarray) -> int:
    """The largest of `sizes` (N,), at least 1: the length of a row that can hold any of these sequences."""
    return max(int(sizes.max()), 1)
