"""Divides a call of the TPU kernel into blocks that fit into VMEM, and says which calls the kernel refuses."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from grujax.kernels.products import precision_asked
from grujax.types import GRUSpec

LANES = 128
"""The units are padded to a multiple of this, so that r, z and n each begin at a whole vector."""
VMEM = 56 * 2**20
"""Bytes that a call may use. v5p and 7x have 64 MiB per core, v5e and v6e 128. v4 and older (16) are not served."""
TILES = tuple((rows, steps) for rows in (128, 64, 32, 16, 8) for steps in (16, 8, 4, 2, 1))
"""Rows and steps of a block, the best first: each step reads all of w_hh again for each block of rows."""
OVER_TIME, OF_ROWS = 2 * 11, 2 * 5 + 16
"""The maximum number of float32 arrays (steps, rows, H) and (rows, H) that either pass needs: its inputs and outputs,
twice because the next block is fetched meanwhile, and the intermediate values of a step."""


class Tiles(NamedTuple):
    """The sizes of a call, and the number of its rows and steps that are in VMEM at a time."""

    n_steps: int
    n_rows: int
    units: int  # a multiple of LANES
    rows: int
    steps: int

    @property
    def grid(self) -> tuple[int, int]:
        """The number of blocks of rows and of steps. The last may extend past the end, where nothing is written."""
        return -(-self.n_rows // self.rows), -(-self.n_steps // self.steps)


def tiles(n_steps: int, n_rows: int, hidden_size: int, dtype: DTypeLike) -> Tiles:
    """Chooses the first of `TILES` that fits. The last one fits every call that `tpu_refuses` accepts."""
    units = up(hidden_size)
    fitting = (block for block in TILES if needed(units, dtype, min(block[0], n_rows), min(block[1], n_steps)) <= VMEM)
    rows, steps = next(fitting, TILES[-1])
    return Tiles(n_steps, n_rows, units, min(rows, max(n_rows, 1)), min(steps, max(n_steps, 1)))


def up(hidden_size: int) -> int:
    """The number of units, padded to a multiple of `LANES`."""
    return -(-hidden_size // LANES) * LANES


def needed(units: int, dtype: DTypeLike, rows: int, steps: int) -> int:
    """Bytes of VMEM: w_hh once, and the arrays of `OVER_TIME` and `OF_ROWS` with rows padded to a multiple of 8."""
    weights = 3 * units * units * jnp.dtype(dtype).itemsize
    return weights + 4 * units * (-(-rows // 8) * 8) * (OVER_TIME * steps + OF_ROWS)


def precision_of(spec: GRUSpec, dtype: DTypeLike) -> lax.Precision | None:
    """The precision of the products inside the loop; None if Mosaic does not support it.

    Products of bfloat16 numbers are already exact in float32.
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        return lax.Precision.DEFAULT
    try:
        precision = lax.Precision(precision_asked(spec.precision))
    except ValueError:  # a precision for each operand, or an algorithm
        return None
    return None if precision == lax.Precision.HIGH else precision


def tpu_refuses(spec: GRUSpec, dtype: DTypeLike, hidden_size: int | None) -> str | None:
    """Says why the kernel cannot serve a precision, a dtype of products and a number of units; None if it can.

    >>> tpu_refuses(GRUSpec(), jnp.float32, 512) is None
    True
    >>> tpu_refuses(GRUSpec(), jnp.float64, 512)
    'it multiplies in float32 and bfloat16, not in float64'
    >>> tpu_refuses(GRUSpec(), jnp.bfloat16, 4096)
    'w_hh and one step with 4096 hidden units in bfloat16 need 102 MiB of VMEM, and a call may use 56'
    """
    name = jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        return f"it multiplies in float32 and bfloat16, not in {name}"
    if precision_of(spec, dtype) is None:
        return "its products support only the precisions DEFAULT and HIGHEST"
    if hidden_size is not None and (least := needed(up(hidden_size), dtype, *TILES[-1])) > VMEM:
        what = f"w_hh and one step with {hidden_size} hidden units in {name}"
        return f"{what} need {least / 2**20:.0f} MiB of VMEM, and a call may use {VMEM / 2**20:.0f}"
    return None
