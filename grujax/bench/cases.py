"""The shapes that are measured and the arrays they are measured on."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal["forward", "gradient"]

TOLERANCES: dict[tuple[str, Kind], tuple[float, float]] = {
    ("float64", "forward"): (1e-13, 1e-13),
    ("float64", "gradient"): (1e-11, 1e-12),
    ("float32", "forward"): (3e-6, 1e-6),
    ("float32", "gradient"): (2e-5, 3e-6),
    ("bfloat16", "forward"): (1.5e-2, 1e-2),
    ("bfloat16", "gradient"): (5e-2, 3e-2),
    ("float16", "forward"): (1.5e-2, 1e-2),  # held to the row of bfloat16, the coarser of the two
    ("float16", "gradient"): (5e-2, 3e-2),
}
"""Per dtype and kind: relative to max(|expected|, rms of expected), then absolute. The tests hold to it too."""


@dataclass(frozen=True)
class Case:
    """One GRU layer in one direction: B rows, T steps, I input features, H hidden units."""

    name: str
    B: int
    T: int
    I: int
    H: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.B, self.T, self.I, self.H


CASES = {
    case.name: case
    for case in (
        Case("single", 1, 512, 64, 256),  # one long row: nothing to share among cores but one step
        Case("small", 32, 128, 32, 128),
        Case("medium", 32, 256, 64, 256),
        Case("large", 64, 128, 512, 512),  # the products dominate
        Case("narrow", 128, 100, 64, 64),  # the elementwise work dominates
    )
}


class Arrays(NamedTuple):
    """What every peer is given, float32; weights in the layout of `grujax.GRUWeights`."""

    x: NDArray  # (B, T, I)
    h0: NDArray  # (B, H)
    w_ih: NDArray  # (I, 3H)
    w_hh: NDArray  # (H, 3H)
    b_ih: NDArray  # (3H,)
    b_hh: NDArray  # (3H,)
    cotangent: NDArray  # (B, T, H): gradients are those of sum(hs * cotangent)

    @property
    def weights(self) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        return self.w_ih, self.w_hh, self.b_ih, self.b_hh


def make_arrays(case: Case, seed: int = 0) -> Arrays:
    """Random arrays with torch's scale of weights. Biases and h0 are not zero: zeros hide wrong equations.

    >>> make_arrays(Case("tiny", 2, 3, 4, 5)).w_ih.shape
    (4, 15)
    """
    rng = np.random.default_rng(seed)
    B, T, I, H = case.shape
    limit = H**-0.5

    def normal(*shape: int) -> NDArray:
        return rng.standard_normal(shape).astype(np.float32)

    def uniform(*shape: int) -> NDArray:
        return rng.uniform(-limit, limit, shape).astype(np.float32)

    return Arrays(
        x=normal(B, T, I),
        h0=np.tanh(normal(B, H)),
        w_ih=uniform(I, 3 * H),
        w_hh=uniform(H, 3 * H),
        b_ih=uniform(3 * H),
        b_hh=uniform(3 * H),
        cotangent=normal(B, T, H),
    )
