"""The benchmark cases, and the arrays that every peer gets."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.errors import require

VOWELS = {7: 1, 9: 2, 10: 10, 11: 18, 12: 22, 13: 21, 14: 22, 15: 41, 16: 28, 17: 27, 18: 22}
VOWELS |= {19: 13, 20: 8, 21: 14, 22: 5, 23: 11, 24: 2, 25: 2, 26: 1}
"""{number of steps: number of utterances} for the 270 training utterances of JapaneseVowels."""

LENGTHS = (None, "uniform", "JapaneseVowels")


@dataclass(frozen=True)
class Case:
    """B sequences of T steps, I input features, H hidden units; by default one layer in one direction, all steps valid.

    Attributes:
      num_layers: L.
      bidirectional: D = 2.
      dtype: the dtype of x, the weights and the cotangent.
      lengths: None, "uniform" (from 1 to T) or "JapaneseVowels" (drawn from its training split, scaled to at most T).
      resets: the probability that a new sequence begins at a step, with a state of zeros.

    Lengths, resets and two directions exclude each other, because not every peer defines their combination.
    """

    name: str
    B: int
    T: int
    I: int
    H: int
    num_layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"
    lengths: str | None = None
    resets: float = 0.0

    def __post_init__(self) -> None:
        require(self.lengths in LENGTHS, "lengths", f"one of {LENGTHS}", repr(self.lengths))
        varied = (self.lengths is not None) + (self.resets > 0) + self.bidirectional
        require(varied <= 1, "case", "at most one of lengths, resets and bidirectional", f"{varied} of them")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.B, self.T, self.I, self.H

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def traits(self) -> tuple[str, ...]:
        """The features that this case requires of a library. A peer may lack one of them."""
        return ("ragged" if self.lengths else "dense", self.dtype, *(("resets",) if self.resets else ()))

    def shrunk(self) -> "Case":
        """Returns a tiny case of the same kind, for tests."""
        return replace(self, B=4, T=1 if self.T == 1 else 5, I=3, H=6, resets=0.3 if self.resets else 0.0)

    def __str__(self) -> str:
        words = [f"{self.name} {self.shape}"]
        words += [f"{self.num_layers} layers"] if self.num_layers > 1 else []
        words += ["bidirectional"] if self.bidirectional else []
        words += [f"lengths: {self.lengths}"] if self.lengths else []
        words += [f"resets: {self.resets:.2g}"] if self.resets else []
        return ", ".join(words + ([self.dtype] if self.dtype != "float32" else []))


CASES = {
    case.name: case
    for case in (
        Case("single", 1, 512, 64, 256),  # one long row: the cores can only share the work of one step
        Case("small", 32, 128, 32, 128),
        Case("medium", 32, 256, 64, 256),
        Case("large", 64, 128, 512, 512),  # the products dominate
        Case("narrow", 128, 100, 64, 64),  # the elementwise work dominates
        Case("rl", 1024, 128, 64, 128, resets=1 / 64),  # reinforcement learning: many environments whose episodes end
        Case("rl-plain", 1024, 128, 64, 128),  # the same without resets, so that every library can run it
        Case("long", 1, 16384, 64, 128),
        Case("vowels", 270, 26, 12, 64, lengths="JapaneseVowels"),
        Case("ragged", 64, 256, 64, 128, lengths="uniform"),
        Case("stacked", 32, 128, 64, 256, num_layers=2, bidirectional=True),
        Case("streaming", 1, 1, 64, 256),  # one step: the cost of a call
    )
}
FIVE = ("single", "small", "medium", "large", "narrow")
"""The cases whose geometric mean is reported."""
CASES |= {f"{name}-bfloat16": replace(CASES[name], name=f"{name}-bfloat16", dtype="bfloat16") for name in FIVE}

Weights = tuple[NDArray, NDArray, NDArray, NDArray]
"""w_ih (I, 3H), w_hh (H, 3H), b_ih (3H,), b_hh (3H,), in the layout of `grujax.GRUWeights`."""


class Arrays(NamedTuple):
    """The arrays that every peer gets, in the dtype of the case.

    In ragged cases all sequences share one h0 (L*D, 1, H), so that packed rows can start each sequence with it.
    """

    x: NDArray  # (B, T, I)
    h0: NDArray  # (L*D, B, H), index layer * D + direction
    weights: tuple[Weights, ...]  # L*D, one per layer and direction; layers after the first read D*H features
    lengths: NDArray | None  # (B,) int32
    resets: NDArray | None  # (B, T) bool
    cotangent: NDArray  # (B, T, D*H), 0 at invalid steps; the loss is sum(hs * cotangent)

    @property
    def hidden_size(self) -> int:
        return self.h0.shape[-1]

    @property
    def num_directions(self) -> int:
        return self.cotangent.shape[-1] // self.hidden_size

    @property
    def num_layers(self) -> int:
        return len(self.weights) // self.num_directions

    @property
    def valid(self) -> NDArray:
        """(B, T) bool."""
        n_rows, n_steps, _ = self.x.shape
        if self.lengths is None:
            return np.ones((n_rows, n_steps), bool)
        return np.arange(n_steps) < self.lengths[:, None]


def make_arrays(case: Case, seed: int = 0) -> Arrays:
    """Draws random arrays, weights at torch's scale. Biases and h0 are nonzero, since zeros hide wrong equations.

    >>> make_arrays(Case("tiny", 2, 3, 4, 5)).weights[0][0].shape
    (4, 15)
    """
    rng = np.random.default_rng(seed)
    B, T, I, H = case.shape
    D, limit, dtype = case.num_directions, H**-0.5, jnp.dtype(case.dtype)

    def normal(*shape: int) -> NDArray:
        return rng.standard_normal(shape).astype(dtype)

    def uniform(*shape: int) -> NDArray:
        return rng.uniform(-limit, limit, shape).astype(dtype)

    def weights(n_features: int) -> Weights:
        return uniform(n_features, 3 * H), uniform(H, 3 * H), uniform(3 * H), uniform(3 * H)

    arrays = Arrays(
        x=normal(B, T, I),
        h0=rng.uniform(-1, 1, (case.num_layers * D, 1 if case.lengths else B, H)).astype(dtype),
        weights=tuple(weights(D * H if layer else I) for layer in range(case.num_layers) for _ in range(D)),
        lengths=_lengths(case, rng),
        resets=rng.random((B, T)) < case.resets if case.resets else None,
        cotangent=normal(B, T, D * H),
    )
    return arrays._replace(cotangent=np.where(arrays.valid[..., None], arrays.cotangent, dtype.type(0)))


def _lengths(case: Case, rng: np.random.Generator) -> NDArray | None:
    """(B,) int32."""
    if case.lengths is None:
        return None
    if case.lengths == "uniform":
        return rng.integers(1, case.T + 1, case.B, dtype=np.int32)
    utterances = np.repeat(list(VOWELS), list(VOWELS.values()))
    drawn = rng.choice(utterances, case.B, replace=len(utterances) < case.B)
    return np.ceil(drawn * case.T / max(VOWELS)).astype(np.int32)  # unchanged at T = 26
