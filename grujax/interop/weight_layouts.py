"""How other frameworks write down one layer and direction of a GRU: one row a framework. NumPy in, NumPy out.

Here a cell is `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, columns r | z | n. Another framework orders
its gates otherwise, makes them rows, adds biases that only ever stand in a sum, or lets z weigh the candidate.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grujax.errors import require

DTYPES = ("float16", "bfloat16", "float32", "float64")
FLOATS = "float16, bfloat16, float32 or float64"


class Cell(NamedTuple):
    """The weights of one layer and direction, columns r | z | n; no biases where they are None."""

    w_ih: NDArray  # (I, 3H)
    w_hh: NDArray  # (H, 3H)
    b_ih: NDArray | None = None  # (3H,)
    b_hh: NDArray | None = None  # (3H,)

    @property
    def hidden_size(self) -> int:
        return self.w_hh.shape[0]


class Dialect(NamedTuple):
    """gates: their order. rows: whether gates are rows, matrices (3H, I). biases: a key of `BIASES`. update: whether z
    keeps the state or takes the candidate. always_biased: it has no GRU without biases."""

    gates: str = "rzn"
    rows: bool = False
    biases: str = "both"
    update: str = "keep"
    always_biased: bool = False


DIALECTS = {
    "torch": Dialect(rows=True),
    "onnx": Dialect("zrn", rows=True),
    "keras": Dialect("zrn"),
    "keras, reset before": Dialect("zrn", biases="sum"),
    "flax": Dialect(biases="candidate apart", always_biased=True),
    "nnx": Dialect(biases="no candidate", always_biased=True),
    "nnx with hn_bias": Dialect(biases="candidate apart", always_biased=True),
    "equinox": Dialect(rows=True, biases="candidate apart"),
    "haiku": Dialect("zrn", biases="sum", update="take", always_biased=True),
}


class Written(NamedTuple):
    """A cell as a framework has it; `biases` as its row of `BIASES` says, none where the cell has none."""

    w_ih: NDArray
    w_hh: NDArray
    biases: tuple[NDArray, ...]


class Biases(NamedTuple):
    """One way to store b_ih and b_hh. `added` is the part of b_hh that only its sum with b_ih remembers."""

    sizes: tuple[int, ...]  # in units of H
    write: Callable[[NDArray, NDArray], tuple[NDArray, ...]]
    read: Callable[..., tuple[NDArray, NDArray]]
    added: Callable[[NDArray], NDArray]


def _joined(b_ih: NDArray, b_hh: NDArray) -> NDArray:
    """The sum, and to the bit b_ih where b_hh is 0: −0.0 + 0.0 would be 0.0."""
    return np.where(b_hh == 0, b_ih, b_ih + b_hh)


def _of_gates(b_hh: NDArray) -> NDArray:
    """b_hh with its candidate's part zero."""
    return np.where(np.arange(b_hh.size) < b_hh.size // 3 * 2, b_hh, b_hh.dtype.type(0))


def _candidate(b_hh: NDArray) -> NDArray:
    return b_hh[b_hh.size // 3 * 2 :]


def _with_candidate(bias: NDArray, b_hn: NDArray) -> tuple[NDArray, NDArray]:
    return bias, np.concatenate([np.zeros(2 * b_hn.size, b_hn.dtype), b_hn])


BIASES = {
    "both": Biases((3, 3), lambda b_ih, b_hh: (b_ih, b_hh), lambda b_ih, b_hh: (b_ih, b_hh), lambda b_hh: b_hh[:0]),
    "candidate apart": Biases(
        (3, 1), lambda b_ih, b_hh: (_joined(b_ih, _of_gates(b_hh)), _candidate(b_hh)), _with_candidate, _of_gates
    ),
    "no candidate": Biases(
        (3,), lambda b_ih, b_hh: (_joined(b_ih, _of_gates(b_hh)),), lambda b: (b, np.zeros_like(b)), _of_gates
    ),
    "sum": Biases((3,), lambda b_ih, b_hh: (_joined(b_ih, b_hh),), lambda b: (b, np.zeros_like(b)), lambda b_hh: b_hh),
}
"""How a framework stores the biases: both; one and b_hn; one and no b_hn (refused unless it is 0); their sum."""

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

    >>> cell = Cell(np.ones((2, 3)), np.array([[1.0, 2.0, 3.0]]))
    >>> write(cell, DIALECTS["keras"]).w_hh
    array([[2., 1., 3.]])
    """
    biases: tuple[NDArray, ...] = ()
    if cell.b_ih is not None and cell.b_hh is not None:
        there = dialect.biases == "no candidate" and bool(_candidate(cell.b_hh).any())
        remedy = "This framework has no such bias; grujax.nnx.GRUCell has it."
        require(not there, "b_hn", "0, for want of a place", "other values", remedy)
        biases = BIASES[dialect.biases].write(cell.b_ih, cell.b_hh)
    elif dialect.always_biased:
        zeros = np.zeros(3 * cell.hidden_size, cell.w_hh.dtype)
        biases = BIASES[dialect.biases].write(zeros, zeros)

    def tensor(a: NDArray) -> NDArray:
        if a.shape[-1] == cell.hidden_size and a.ndim == 1:  # b_hn alone has no gates to order
            return a.copy()
        gates = dict(zip("rzn", np.split(a, 3, axis=-1), strict=True))
        if update != dialect.update:
            gates["z"] = -gates["z"]
        ordered = np.concatenate([gates[gate] for gate in dialect.gates], axis=-1)
        return np.array(ordered.T if dialect.rows else ordered, order="C", copy=True)

    return Written(tensor(cell.w_ih), tensor(cell.w_hh), tuple(map(tensor, biases)))


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

    >>> read({"kernel": np.ones((2, 3)), "recurrent_kernel": np.array([[2.0, 1.0, 3.0]])}, DIALECTS["keras"]).w_hh
    array([[1., 2., 3.]])
    """
    (ih, w_ih), (hh, w_hh), *biases = named.items()
    for key, a in named.items():
        require(a.dtype.name in DTYPES, key, FLOATS, f"dtype {a.dtype}")
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
