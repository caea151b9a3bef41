"""One step of a cell, shared by the Flax Linen and the Flax NNX module."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from grujax.arrays import as_array, numpy_of, whole
from grujax.core.config import CellConfig
from grujax.core.inputs import as_state, check_features
from grujax.errors import require
from grujax.kernels.step import cast, cell_step
from grujax.types import Array, GRUWeights


def check_step(cell: CellConfig, carry: Array, x: Array, input_size: int | None) -> tuple[Array, Array]:
    """Returns carry and x as arrays; `InputError` if they do not fit each other or the cell."""
    cell.check()
    x = jnp.asarray(as_array(x, "x"))
    require(x.ndim >= 1, "x", "(..., I), at least one axis", f"shape {x.shape}")
    check_features(x, input_size)
    return as_state(carry, "carry", (*x.shape[:-1], cell.hidden_size), "Use cell.initialize_carry."), x


def weights_of(cell: CellConfig, params: Mapping[str, Any]) -> GRUWeights:
    """Returns the parameters of a cell in the form of the kernels: w_hh is (H, 3H), assembled from blocks if needed."""
    weights = GRUWeights(**{name: whole(a) for name, a in params.items()})
    return weights if cell.blocks == 1 else weights._replace(w_hh=block_diagonal(weights.w_hh))


def block_diagonal(blocks: Array) -> Array:
    """Assembles w_hh (H, 3H) from its K diagonal blocks (K, H/K, 3H/K). Both have columns r | z | n; the rest is zero.

    >>> print(block_diagonal(jnp.arange(1, 7).reshape(2, 1, 3)))
    [[1 0 2 0 3 0]
     [0 4 0 5 0 6]]
    """
    xp, (count, size, _) = numpy_of(blocks), blocks.shape
    on_diagonal = xp.eye(count, dtype=bool)[:, None, None, :, None]
    placed = xp.where(on_diagonal, blocks.reshape(count, size, 3, 1, size), xp.zeros((), blocks.dtype))
    return placed.reshape(count * size, 3 * count * size)


def run_cell(
    cell: CellConfig, carry: Array, x: Array, weights: GRUWeights, state_mask: Array | None
) -> tuple[Array, Array]:
    """Returns the new state (..., H) twice, in the dtype of `carry` and in the compute dtype."""
    dtype = jnp.dtype(cell.dtype or jnp.result_type(x, weights.w_ih))
    h = cell_step(x, carry, cast(weights, dtype), cell.spec, state_mask)
    return h.astype(carry.dtype), h.astype(dtype)
