"""The tolerances for comparing arrays, in one table for tests, benchmarks and conversions."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from numpy.typing import NDArray

Kind = Literal["forward", "gradient"]

TOLERANCES: dict[tuple[str, Kind], tuple[float, float]] = {
    ("float64", "forward"): (1e-13, 1e-13),
    ("float64", "gradient"): (1e-11, 1e-12),
    ("float32", "forward"): (3e-6, 1e-6),
    ("float32", "gradient"): (2e-5, 3e-6),
    ("bfloat16", "forward"): (1.5e-2, 1e-2),
    ("bfloat16", "gradient"): (5e-2, 3e-2),
    ("float16", "forward"): (1.5e-2, 1e-2),  # the row of bfloat16, the coarser of the two
    ("float16", "gradient"): (5e-2, 3e-2),
}
"""(relative, absolute) by dtype and kind; the first is relative to max(|expected|, rms of expected)."""


def tolerances_used(found: NDArray, expected: NDArray, dtype: str, kind: Kind = "forward") -> NDArray:
    """Returns |found − expected| in units of the tolerance of `dtype`, element by element; up to 1 counts as equal.

    The result is NaN where `found` or `expected` is NaN.

    >>> tolerances_used(np.ones(2), np.array([1.0, 1 + 8e-6]), "float32").round(1)
    array([0., 2.])
    """
    relative, absolute = TOLERANCES[dtype, kind]
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if not expected.size:
        return np.zeros_like(expected)
    scale = np.maximum(np.abs(expected), np.sqrt(np.mean(expected**2)))
    return np.abs(found - expected) / (relative * scale + absolute)


def assert_close(
    found: ArrayLike, expected: ArrayLike, kind: Kind = "forward", dtype: DTypeLike | None = None, name: str = ""
) -> None:
    """Raises `AssertionError` unless every element is within the tolerance of `dtype`; None: the dtype of `found`.

    >>> assert_close(np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-14]))
    """
    row = jnp.dtype(jnp.result_type(found) if dtype is None else dtype).name
    actual, wanted = (np.asarray(a).astype(np.float64) for a in (found, expected))
    assert actual.shape == wanted.shape, f"{name}: shape {actual.shape}, expected {wanted.shape}"
    if not wanted.size:
        return
    assert np.isfinite(wanted).all(), f"{name}: the expected values are not finite"
    excess = tolerances_used(actual, wanted, row, kind)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
    assert excess[worst] <= 1, (  # NaN fails too, because every comparison with it is False
        f"{name or 'value'}: {excess[worst]:.3g} times the {row} {kind} tolerance at {[int(i) for i in worst]}: "
        f"{actual[worst]!r}, expected {wanted[worst]!r}"
    )


def assert_trees_close(found: Any, expected: Any, kind: Kind = "forward", dtype: DTypeLike | None = None) -> None:
    """Applies `assert_close` to each leaf of two pytrees; the message names the leaf.

    >>> assert_trees_close({"h": np.ones(2)}, {"h": np.ones(2)})
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(found)
    others, other_tree = jax.tree_util.tree_flatten_with_path(expected)
    same_structure = [path for path, _ in leaves] == [path for path, _ in others]
    assert same_structure, f"the trees differ: found {tree}, expected {other_tree}"
    for (path, a), (_, b) in zip(leaves, others, strict=True):
        assert_close(a, b, kind, dtype, jax.tree_util.keystr(path))
