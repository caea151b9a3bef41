"""How other frameworks store the weights of one layer and direction: one row a framework.

`GRUWeights` has `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, columns r | z | n. Another framework orders
the gates differently, stores matrices transposed, stores sums of biases, or lets z weigh the candidate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grujax.types import GRUWeights

Array = Any  # a NumPy or a JAX array: every function here returns the kind that it is given


class Dialect(NamedTuple):
    """How one framework stores a GRU.

    Attributes:
      gates: their order. rows: gates are rows, matrices are (3H, I). biases: a key of `BIASES`.
      tensors: their names, in the order of `arranged`; of Flax the first of each group of gates.
      update: "keep" where z weighs the state, "take" where it weighs the candidate.
      always_biased: the framework has no GRU without biases.
    """

    tensors: tuple[str, ...]
    gates: str = "rzn"
    rows: bool = False
    biases: str = "both"
    update: str = "keep"
    always_biased: bool = False


KERAS = ("kernel", "recurrent_kernel", "bias")
NNX = ("dense_i/kernel", "dense_h/kernel", "dense_i/bias", "hn_bias")
DIALECTS = {
    "torch": Dialect(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), rows=True),
    "onnx": Dialect(("W", "R", "B"), "zrn", rows=True),
    "keras": Dialect(KERAS, "zrn"),
    "keras, reset before": Dialect(KERAS, "zrn", biases="sum"),
    "flax": Dialect(("ir/kernel", "hr/kernel", "ir/bias", "hn/bias"), biases="candidate apart", always_biased=True),
    "nnx": Dialect(NNX[:3], biases="no candidate", always_biased=True),
    "nnx with hn_bias": Dialect(NNX, biases="candidate apart", always_biased=True),
    "equinox": Dialect(("weight_ih", "weight_hh", "bias", "bias_n"), rows=True, biases="candidate apart"),
    "haiku": Dialect(("w_i", "w_h", "b"), "zrn", biases="sum", update="take", always_biased=True),
}


def by_gate(w_ih: Array, w_hh: Array, bias: Array, b_hn: Array) -> dict[str, Array]:
    """The tensors of Flax Linen's cell, one a gate, of what `arranged` gives for it.

    >>> list(by_gate(np.ones((2, 3)), np.ones((1, 3)), np.ones(3), np.ones(1)))[3:8]
    ['hr/kernel', 'hz/kernel', 'hn/kernel', 'ir/bias', 'iz/bias']
    """
    xp, found = _numpy_of(w_ih), {}
    for side, a, what in (("i", w_ih, "kernel"), ("h", w_hh, "kernel"), ("i", bias, "bias")):
        found |= {f"{side}{gate}/{what}": one for gate, one in zip("rzn", xp.split(a, 3, axis=-1), strict=True)}
    return found | {"hn/bias": b_hn}


class Biases(NamedTuple):
    """One way to store b_ih and b_hh. `added` is the part of b_hh that is stored only as a sum with b_ih."""

    sizes: tuple[int, ...]  # in units of H
    write: Callable[[Array, Array], tuple[Array, ...]]
    read: Callable[..., tuple[Array, Array]]
    added: Callable[[Array], Array]


def _numpy_of(a: Array) -> Any:
    return jnp if isinstance(a, jax.Array) else np


def _joined(b_ih: Array, b_hh: Array) -> Array:
    """The sum; bit for bit b_ih where b_hh is 0, since −0.0 + 0.0 would be 0.0."""
    return _numpy_of(b_ih).where(b_hh == 0, b_ih, b_ih + b_hh)


def _of_gates(b_hh: Array) -> Array:
    """b_hh with zeros for the candidate."""
    xp = _numpy_of(b_hh)
    return xp.where(np.arange(b_hh.size) < b_hh.size // 3 * 2, b_hh, xp.zeros_like(b_hh))


def of_candidate(b_hh: Array) -> Array:
    """b_hn (H,)."""
    return b_hh[b_hh.size // 3 * 2 :]


def _with_candidate(bias: Array, b_hn: Array) -> tuple[Array, Array]:
    xp = _numpy_of(b_hn)
    return bias, xp.concatenate([xp.zeros(2 * b_hn.size, b_hn.dtype), b_hn])


def _alone(bias: Array) -> tuple[Array, Array]:
    return bias, _numpy_of(bias).zeros_like(bias)


BIASES = {
    "both": Biases((3, 3), lambda b_ih, b_hh: (b_ih, b_hh), lambda b_ih, b_hh: (b_ih, b_hh), lambda b_hh: b_hh[:0]),
    "candidate apart": Biases(
        (3, 1), lambda b_ih, b_hh: (_joined(b_ih, _of_gates(b_hh)), of_candidate(b_hh)), _with_candidate, _of_gates
    ),
    "no candidate": Biases((3,), lambda b_ih, b_hh: (_joined(b_ih, _of_gates(b_hh)),), _alone, _of_gates),
    "sum": Biases((3,), lambda b_ih, b_hh: (_joined(b_ih, b_hh),), _alone, lambda b_hh: b_hh),
}
"""How biases are stored: both; one and b_hn; one and no b_hn (refused unless b_hn is 0); their sum."""


def arranged(weights: GRUWeights, dialect: Dialect, update: str = "keep") -> tuple[Array, ...]:
    """(w_ih, w_hh, *biases) as `dialect` stores them; linear in the weights, and JAX can differentiate it.

    Args:
      weights: of a GRU without layer normalisation. With no biases, a framework that always has them gets zeros.
      update: "keep" or "take", of the GRU that the weights belong to.

    >>> arranged(GRUWeights(np.ones((2, 3)), np.array([[1.0, 2.0, 3.0]])), DIALECTS["keras"])[1]
    array([[2., 1., 3.]])
    """
    w_ih, w_hh, b_ih, b_hh = weights[:4]
    hidden_size, xp = w_hh.shape[0], _numpy_of(w_hh)
    if b_ih is None and dialect.always_biased:
        b_ih = b_hh = xp.zeros(3 * hidden_size, w_hh.dtype)

    def one(a: Array) -> Array:
        if a.shape == (hidden_size,):  # b_hn alone: there are no gates to order
            return a
        gates = dict(zip("rzn", xp.split(a, 3, axis=-1), strict=True))
        if update != dialect.update:
            gates["z"] = -gates["z"]
        ordered = xp.concatenate([gates[gate] for gate in dialect.gates], axis=-1)
        return ordered.T if dialect.rows else ordered

    biases = () if b_ih is None else BIASES[dialect.biases].write(b_ih, b_hh)
    return tuple(map(one, (w_ih, w_hh, *biases)))
