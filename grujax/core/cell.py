"""One step of a cell, for both faces."""

import jax.numpy as jnp

from grujax.arrays import as_array
from grujax.core.config import CellConfig
from grujax.core.inputs import as_state, check_features
from grujax.errors import require
from grujax.kernels.step import cast, cell_step
from grujax.types import Array, GRUWeights


def check_step(cell: CellConfig, carry: Array, x: Array, input_size: int | None) -> tuple[Array, Array]:
    """carry and x as arrays that fit each other; `InputError` otherwise."""
    cell.check()
    x = jnp.asarray(as_array(x, "x"))
    require(x.ndim >= 1, "x", "(..., I), at least one axis", f"shape {x.shape}")
    check_features(x, input_size)
    return as_state(carry, "carry", (*x.shape[:-1], cell.hidden_size), "cell.initialize_carry makes one."), x


def run_cell(
    cell: CellConfig, carry: Array, x: Array, weights: GRUWeights, state_mask: Array | None
) -> tuple[Array, Array]:
    """carry (..., H), x (..., I) -> the new state twice: in the dtype of the carry, and in the compute dtype."""
    dtype = jnp.dtype(cell.dtype or jnp.result_type(x, weights.w_ih))
    h = cell_step(x, carry, cast(weights, dtype), cell.spec, state_mask)
    return h.astype(carry.dtype), h.astype(dtype)
