"""How far apart two arrays may be that should be equal: the one table, for tests, benchmarks and conversions."""

from typing import Literal

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
"""Per dtype and kind: relative to max(|expected|, rms of expected), then absolute."""


def tolerances_used(found: NDArray, expected: NDArray, dtype: str, kind: Kind = "forward") -> NDArray:
    """|found − expected| in units of what the row of `dtype` allows, element by element: at most 1 where equal.

    NaN, which no comparison calls at most 1, where one of the two is NaN.

    >>> tolerances_used(np.ones(2), np.array([1.0, 1 + 8e-6]), "float32").round(1)
    array([0., 2.])
    """
    relative, absolute = TOLERANCES[dtype, kind]
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if not expected.size:
        return np.zeros_like(expected)
    scale = np.maximum(np.abs(expected), np.sqrt(np.mean(expected**2)))
    return np.abs(found - expected) / (relative * scale + absolute)
