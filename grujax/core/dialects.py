"""The layouts in which other frameworks store the weights of one layer and direction, with a reader and a writer.

`GRUWeights` has `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)` and `b_hh (3H,)`, columns r | z | n. Another framework may
order the gates differently, transpose the matrices, store the sum of the biases, or let z weigh the candidate.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grujax.arrays import numpy_of
from grujax.errors import require

Array = Any  # a NumPy or a JAX array: every function of this module returns the kind that it receives
FLOATS = ("float16", "bfloat16", "float32", "float64")
QUANTISED = "The tensor is quantised: convert the original weights, or multiply by the scale first."


class Dialect(NamedTuple):
    """The layout in which one framework stores a GRU.

    Attributes:
      tensors: the names of the tensors, in the order of `arranged`.
      gates: the order of the gates.
      rows: whether the gates are along the rows, so that the matrices are (3H, I) and (3H, H).
      by_gate: whether each gate has a tensor of its own.
      biases: a key of `BIASES`.
      joined: the NumPy function that joins both biases, "stack" or "concatenate"; empty: they are separate tensors.
      update: "keep" if z weighs the state, "take" if it weighs the candidate.
      always_biased: whether the framework has no GRU without biases.
    """

    tensors: tuple[str, ...]
    gates: str = "rzn"
    rows: bool = False
    by_gate: bool = False
    biases: str = "both"
    joined: str = ""
    update: str = "keep"
    always_biased: bool = False


KERAS = ("kernel", "recurrent_kernel", "bias")
NNX = ("dense_i/kernel", "dense_h/kernel", "dense_i/bias", "hn_bias")
LINEN = tuple(f"{gate}/{kind}" for kind in ("kernel", "bias") for gate in ("ir", "iz", "in", "hr", "hz", "hn"))
DIALECTS = {
    "torch": Dialect(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), rows=True),
    "onnx": Dialect(("W", "R", "B"), "zrn", rows=True, joined="concatenate"),
    "keras": Dialect(KERAS, "zrn", joined="stack"),
    "keras, reset before": Dialect(KERAS, "zrn", biases="sum"),
    "flax": Dialect((*LINEN[:9], LINEN[-1]), by_gate=True, biases="candidate apart", always_biased=True),
    "nnx": Dialect(NNX[:3], biases="no candidate", always_biased=True),
    "nnx with hn_bias": Dialect(NNX, biases="candidate apart", always_biased=True),
    "equinox": Dialect(("weight_ih", "weight_hh", "bias", "bias_n"), rows=True, biases="candidate apart"),
    "haiku": Dialect(("w_i", "w_h", "b"), "zrn", biases="sum", update="take", always_biased=True),
}


class Biases(NamedTuple):
    """One way to store b_ih and b_hh. `added` returns the part of b_hh that is stored only as a sum with b_ih."""

    sizes: tuple[int, ...]  # in units of H
    write: Callable[[Array, Array], tuple[Array, ...]]
    read: Callable[..., tuple[Array, Array]]
    added: Callable[[Array], Array]


def _joined(b_ih: Array, b_hh: Array) -> Array:
    """b_ih + b_hh; where b_hh is 0 exactly the bits of b_ih, because −0.0 + 0.0 would be 0.0."""
    return numpy_of(b_ih).where(b_hh == 0, b_ih, b_ih + b_hh)


def _of_gates(b_hh: Array) -> Array:
    """b_hh with the candidate's part set to zero."""
    xp = numpy_of(b_hh)
    return xp.where(np.arange(b_hh.size) < b_hh.size // 3 * 2, b_hh, xp.zeros_like(b_hh))


def _of_candidate(b_hh: Array) -> Array:
    """The candidate's part of b_hh, b_hn (H,)."""
    return b_hh[b_hh.size // 3 * 2 :]


def _with_candidate(bias: Array, b_hn: Array) -> tuple[Array, Array]:
    xp = numpy_of(b_hn)
    return bias, xp.concatenate([xp.zeros(2 * b_hn.size, b_hn.dtype), b_hn])


def _alone(bias: Array) -> tuple[Array, Array]:
    return bias, numpy_of(bias).zeros_like(bias)


BIASES = {
    "both": Biases((3, 3), lambda b_ih, b_hh: (b_ih, b_hh), lambda b_ih, b_hh: (b_ih, b_hh), lambda b_hh: b_hh[:0]),
    "candidate apart": Biases(
        (3, 1), lambda b_ih, b_hh: (_joined(b_ih, _of_gates(b_hh)), _of_candidate(b_hh)), _with_candidate, _of_gates
    ),
    "no candidate": Biases((3,), lambda b_ih, b_hh: (_joined(b_ih, _of_gates(b_hh)),), _alone, _of_gates),
    "sum": Biases((3,), lambda b_ih, b_hh: (_joined(b_ih, b_hh),), _alone, lambda b_hh: b_hh),
}
"""The ways to store the biases: both; one and b_hn; one without b_hn (refused unless b_hn is 0); their sum."""


def _gates(a: Array, order: str, new_order: str, negated: bool) -> list[Array]:
    """Splits the last axis into gates in a new order. `negated` negates z, which then weighs the other term."""
    gates = dict(zip(order, numpy_of(a).split(a, 3, axis=-1), strict=True))
    if negated:
        gates["z"] = -gates["z"]
    return [gates[gate] for gate in new_order]


def arranged(weights: tuple[Array, ...], dialect: Dialect, update: str = "keep") -> tuple[Array, ...]:
    """Returns the tensors of `dialect`, in its order. They are linear in the weights, and JAX can differentiate them.

    Args:
      weights: a `GRUWeights` or a `Cell`, without layer normalisation. If it has no biases, a framework that always has
        biases gets zeros.
      update: "keep" or "take", the field of the GRU to which the weights belong.

    >>> arranged((np.ones((2, 3)), np.array([[1.0, 2.0, 3.0]]), None, None), DIALECTS["keras"])[1]
    array([[2., 1., 3.]])
    """
    w_ih, w_hh, b_ih, b_hh = weights[:4]
    hidden_size, xp = w_hh.shape[0], numpy_of(w_hh)
    if b_ih is None and dialect.always_biased:
        b_ih = b_hh = xp.zeros(3 * hidden_size, w_hh.dtype)

    def ordered(a: Array) -> list[Array]:
        if a.shape == (hidden_size,):  # b_hn, which is one gate
            return [a]
        return _gates(a, "rzn", dialect.gates, update != dialect.update)

    biases = () if b_ih is None else BIASES[dialect.biases].write(b_ih, b_hh)
    if dialect.by_gate:
        return tuple(gate for a in (w_ih, w_hh, *biases) for gate in ordered(a))
    w_ih, w_hh, *biases = (xp.concatenate(ordered(a), axis=-1) for a in (w_ih, w_hh, *biases))
    matrices = (w_ih.T, w_hh.T) if dialect.rows else (w_ih, w_hh)
    return (*matrices, *([getattr(xp, dialect.joined)(biases)] if dialect.joined and biases else biases))


class Cell(NamedTuple):
    """The weights of one layer and direction as NumPy arrays, with columns r | z | n. Without biases they are None."""

    w_ih: NDArray  # (I, 3H)
    w_hh: NDArray  # (H, 3H)
    b_ih: NDArray | None = None  # (3H,)
    b_hh: NDArray | None = None  # (3H,)

    @property
    def hidden_size(self) -> int:
        return self.w_hh.shape[0]


def lost(cell: Cell, dialect: Dialect) -> list[str]:
    """Returns sentences on what `write` cannot store of this cell. The outputs stay the same, training may differ."""
    if cell.b_hh is None:
        zeros = "bias=False cannot be stored: zero biases are written, which further training would change"
        return [zeros] * dialect.always_biased
    split = "b_ih and b_hh are stored as their sum: the outputs are the same, but further training differs"
    return [split] * bool(BIASES[dialect.biases].added(cell.b_hh).any())


def write(cell: Cell, dialect: Dialect, update: str = "keep") -> dict[str, NDArray]:
    """Returns the cell's tensors by their names in a dialect, as C-contiguous copies.

    Args:
      cell: the weights.
      dialect: the layout to write.
      update: "keep" or "take", the field of the GRU to which the cell belongs.

    Raises:
      InputError: b_hn is not 0, and the dialect cannot store it.

    >>> cell = Cell(np.ones((2, 3)), np.array([[1.0, 2.0, 3.0]]))
    >>> write(cell, DIALECTS["keras"])["recurrent_kernel"]
    array([[2., 1., 3.]])
    """
    lacking = dialect.biases == "no candidate" and cell.b_hh is not None and bool(_of_candidate(cell.b_hh).any())
    remedy = "This framework's GRU has no such bias; grujax.nnx.GRUCell has it."
    require(not lacking, "b_hn", 0, "other values", remedy)
    tensors = zip(dialect.tensors, arranged(cell, dialect, update), strict=False)
    return {name: np.array(a, order="C", copy=True) for name, a in tensors}


REMEDIES = {
    4: "A size of 4H belongs to an LSTM, which cannot become a GRU.",
    1: "A size of H belongs to a plain RNN, which has no gates.",
    1 / 3: "The matrix is transposed.",
}
"""Remedies for a wrong w_hh, by the size of its gate axis in units of H."""


def read(named: Mapping[str, NDArray], dialect: Dialect, update: str = "keep") -> Cell:
    """Reads a cell from a framework's tensors, as C-contiguous copies; the inverse of `write`, bit for bit.

    Args:
      named: the tensors of the dialect, in its order, by the framework's names, which errors mention. Without any
        biases the cell has bias=False.
      dialect: the layout to read.
      update: "keep" or "take", the field of the GRU that will have the cell.

    Raises:
      InputError: a tensor has a dtype or shape that a GRU in this dialect does not have; the message names it.

    >>> read({"kernel": np.ones((2, 3)), "recurrent_kernel": np.array([[2.0, 1.0, 3.0]])}, DIALECTS["keras"]).w_hh
    array([[1., 2., 3.]])
    """
    first = next(iter(named))
    for key, a in named.items():
        require_floats(key, a.dtype)
        dtype, remedy = named[first].dtype, "Cast them to one dtype."
        require(a.dtype == dtype, key, f"dtype {dtype}, as {first} has", f"dtype {a.dtype}", remedy)
    (ih, w_ih), (hh, w_hh), *biases = _by_group(named) if dialect.by_gate else named.items()
    for key, a in ((ih, w_ih), (hh, w_hh)):
        require(a.ndim == 2, key, "two axes", f"shape {a.shape}")
    order = -1 if dialect.rows else 1
    (hidden_size, columns), n_inputs = w_hh.shape[::order], w_ih.shape[::order][0]
    wide, remedy = 3 * hidden_size, REMEDIES.get(columns / max(hidden_size, 1), "")
    require(hidden_size > 0, hh, "one unit or more", w_hh.shape)
    require(columns == wide, hh, f"shape {(hidden_size, wide)[::order]}", w_hh.shape, remedy)
    require(w_ih.shape == (n_inputs, wide)[::order], ih, f"shape {(n_inputs, wide)[::order]}", w_ih.shape)
    require(n_inputs > 0, ih, "one feature or more", w_ih.shape)
    shapes = [(size * hidden_size,) for size in BIASES[dialect.biases].sizes]
    shapes = {"": shapes, "stack": [(2, wide)], "concatenate": [(2 * wide,)]}[dialect.joined]
    for (key, bias), shape in zip(biases, shapes, strict=bool(biases)):
        require(bias.shape == shape, key, f"shape {shape}", bias.shape)

    def tensor(a: NDArray) -> NDArray:
        if a.ndim == 1 and a.size == hidden_size:
            return a.copy()
        gates = _gates(a.T if dialect.rows else a, dialect.gates, "rzn", update != dialect.update)
        return np.ascontiguousarray(np.concatenate(gates, axis=-1))

    stored = [bias.reshape(2, -1) if dialect.joined else bias[None] for _, bias in biases]
    rows = [row for bias in stored for row in bias]
    both = BIASES[dialect.biases].read(*map(tensor, rows)) if rows else (None, None)
    return Cell(tensor(w_ih), tensor(w_hh), *both)


def require_floats(key: str, dtype: Any, remedy: str = "") -> None:
    """Raises `InputError` unless weights of this dtype can be read; the remedy for quantised dtypes says so.

    >>> require_floats("weight", "float32")
    """
    name = getattr(dtype, "name", dtype)
    remedy = QUANTISED if "int8" in name or "float8" in name else remedy
    require(name in FLOATS, key, f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}", f"dtype {dtype}", remedy)


def _by_group(named: Mapping[str, NDArray]) -> list[tuple[str, NDArray]]:
    """Concatenates the tensors of single gates to one tensor for each matrix and bias, named after its first gate."""
    (first, a), keys = next(iter(named.items())), list(named)
    require(a.ndim == 2, first, "two axes", f"shape {a.shape}")
    width = a.shape[1]
    for key, shape in zip(keys, [a.shape] * 3 + [(width, width)] * 3 + [(width,)] * 4, strict=True):
        require(named[key].shape == shape, key, f"shape {shape}", named[key].shape)
    groups = (keys[:3], keys[3:6], keys[6:9], keys[9:])
    return [(group[0], np.concatenate([named[key] for key in group], axis=-1)) for group in groups]
