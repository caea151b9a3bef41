"""Comparison by the one tolerance table, `grujax.tolerances.TOLERANCES`."""

import jax.numpy as jnp
import numpy as np

from grujax.tolerances import Kind, tolerances_used


def assert_close(actual, expected, kind: Kind = "forward", dtype=None, name: str = "") -> None:
    """Raises unless every element is within the row of `dtype`, by default the dtype of `actual`."""
    row = jnp.dtype(actual.dtype if dtype is None else dtype).name
    actual, expected = (np.asarray(a).astype(np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    if not expected.size:
        return
    assert np.isfinite(expected).all(), f"{name}: the expected values are not finite"
    excess = tolerances_used(actual, expected, row, kind)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
    assert excess[worst] <= 1, (  # a NaN fails: no comparison with it holds
        f"{name or 'value'}: {excess[worst]:.3g} times the {row} {kind} tolerance at {[int(i) for i in worst]}: "
        f"{actual[worst]!r}, expected {expected[worst]!r}"
    )


def assert_trees_close(actual, expected, kind: Kind = "forward", dtype=None) -> None:
    """`assert_close` for dicts and tuples of arrays, names in the message."""
    import jax

    leaves, tree = jax.tree_util.tree_flatten_with_path(actual)
    others, other_tree = jax.tree_util.tree_flatten_with_path(expected)
    assert [jax.tree_util.keystr(p) for p, _ in leaves] == [jax.tree_util.keystr(p) for p, _ in others], (
        tree,
        other_tree,
    )
    for (path, a), (_, e) in zip(leaves, others, strict=True):
        assert_close(a, e, kind, dtype, jax.tree_util.keystr(path))
