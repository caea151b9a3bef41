"""Checks, reads and writes one layer and direction as other frameworks store it. NumPy in, NumPy out.

The table of frameworks is `grujax.core.weight_layouts.DIALECTS`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grujax.core.weight_layouts import BIASES, Dialect, arranged, of_candidate
from grujax.errors import require
from grujax.types import GRUWeights

DTYPES = ("float16", "bfloat16", "float32", "float64")
FLOATS = "float16, bfloat16, float32 or float64"
QUANTISED = "It is quantised: convert the weights from before, or multiply the scale in."


def remedy_of(dtype: str) -> str:
    """What to do about weights that are no floats."""
    return QUANTISED if "int8" in dtype or "float8" in dtype else ""


class Cell(NamedTuple):
    """The weights of one layer and direction, columns r | z | n; no biases where they are None."""

    w_ih: NDArray  # (I, 3H)
    w_hh: NDArray  # (H, 3H)
    b_ih: NDArray | None = None  # (3H,)
    b_hh: NDArray | None = None  # (3H,)

    @property
    def hidden_size(self) -> int:
        return self.w_hh.shape[0]


class Written(NamedTuple):
    """A cell as a framework has it; `biases` as its row of `BIASES` says, none where the cell has none."""

    w_ih: NDArray
    w_hh: NDArray
    biases: tuple[NDArray, ...]


LOST = {
    "split": "b_ih and b_hh are stored as their sum: the same outputs, but training moves on otherwise",
    "no bias": "bias=False has no form: biases of zeros are stored, which training would move",
}


def lost(cell: Cell, dialect: Dialect) -> list[str]:
    """What `write` leaves behind of this cell, though the outputs are the same: sentences, or none."""
    if cell.b_hh is None:
        return [LOST["no bias"]] * dialect.always_biased
    return [LOST["split"]] * bool(BIASES[dialect.biases].added(cell.b_hh).any())


def write(cell: Cell, dialect: Dialect, update: str = "keep") -> Written:
    """The cell in a dialect, C-contiguous arrays of their own; `update` is the cell's own polarity of z.

    Raises:
      InputError: b_hn is not 0 where the dialect has no place for it.

    >>> from grujax.core.weight_layouts import DIALECTS
    >>> cell = Cell(np.ones((2, 3)), np.array([[1.0, 2.0, 3.0]]))
    >>> write(cell, DIALECTS["keras"]).w_hh
    array([[2., 1., 3.]])
    """
    there = dialect.biases == "no candidate" and cell.b_hh is not None and bool(of_candidate(cell.b_hh).any())
    remedy = "This framework has no such bias; grujax.nnx.GRUCell has it."
    require(not there, "b_hn", "0, for want of a place", "other values", remedy)
    tensors = arranged(GRUWeights(*cell), dialect, update)  # pyright: ignore[reportArgumentType]
    w_ih, w_hh, *biases = (np.array(a, order="C", copy=True) for a in tensors)
    return Written(w_ih, w_hh, tuple(biases))


REMEDIES = {
    4: "4H of them are an LSTM's, which no GRU can stand for.",
    1: "H of them are a plain RNN's, which has no gates.",
    1 / 3: "It stands transposed.",
}
"""Of w_hh by its gates' axis, in units of H."""


def read(named: Mapping[str, NDArray], dialect: Dialect, update: str = "keep") -> Cell:
    """The cell that a framework has written, C-contiguous arrays of their own; the inverse of `write`, bit for bit.

    Args:
      named: the framework's own names, for errors, to w_ih, w_hh and the biases of the dialect, in this order; no
        biases at all is bias=False.
      update: the polarity of z that the cell is wanted in.

    Raises:
      InputError: naming the tensor whose dtype or shape is not that of a GRU in this dialect.

    >>> from grujax.core.weight_layouts import DIALECTS
    >>> read({"kernel": np.ones((2, 3)), "recurrent_kernel": np.array([[2.0, 1.0, 3.0]])}, DIALECTS["keras"]).w_hh
    array([[1., 2., 3.]])
    """
    (ih, w_ih), (hh, w_hh), *biases = named.items()
    for key, a in named.items():
        require(a.dtype.name in DTYPES, key, FLOATS, f"dtype {a.dtype}", remedy_of(a.dtype.name))
        one = a.dtype == w_ih.dtype
        require(one, key, f"dtype {w_ih.dtype}, that of {ih}", f"dtype {a.dtype}", "Cast them to one dtype.")
    for key, a in ((ih, w_ih), (hh, w_hh)):
        require(a.ndim == 2, key, "two axes", f"shape {a.shape}")
    way = -1 if dialect.rows else 1
    (hidden_size, columns), n_inputs = w_hh.shape[::way], w_ih.shape[::way][0]
    wide, remedy = 3 * hidden_size, REMEDIES.get(columns / hidden_size if hidden_size else 0, "")
    require(columns == wide and hidden_size > 0, hh, f"shape {(hidden_size, wide)[::way]}", w_hh.shape, remedy)
    require(w_ih.shape == (n_inputs, wide)[::way], ih, f"shape {(n_inputs, wide)[::way]}", w_ih.shape)
    for (key, bias), size in zip(biases, BIASES[dialect.biases].sizes, strict=bool(biases)):
        require(bias.shape == (size * hidden_size,), key, f"shape ({size * hidden_size},)", bias.shape)

    def tensor(a: NDArray) -> NDArray:
        if a.ndim == 1 and a.size == hidden_size:
            return a.copy()
        gates = dict(zip(dialect.gates, np.split(a.T if dialect.rows else a, 3, axis=-1), strict=True))
        if update != dialect.update:
            gates["z"] = -gates["z"]
        return np.ascontiguousarray(np.concatenate([gates[gate] for gate in "rzn"], axis=-1))

    both = BIASES[dialect.biases].read(*(tensor(bias) for _, bias in biases)) if biases else (None, None)
    return Cell(tensor(w_ih), tensor(w_hh), *both)
