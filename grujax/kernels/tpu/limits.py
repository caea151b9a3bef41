"""How a call is cut into blocks that fit into VMEM, and which calls the kernel refuses."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from grujax.kernels.products import precision_asked
from grujax.types import GRUSpec

LANES = 128
"""Units are filled up to a multiple of it, so that r, z and n each begin at a whole vector."""
VMEM = 56 * 2**20
"""Bytes that a call may take: v5p and 7x have 64 MiB a core, v5e and v6e 128. v4 and older, with 16, are not served."""
TILES = tuple((rows, steps) for rows in (128, 64, 32, 16, 8) for steps in (16, 8, 4, 2, 1))
"""Rows and steps of a block, the best first: each step reads all of w_hh again for each block of rows."""
OVER_TIME, OF_ROWS = 2 * 11, 2 * 5 + 16
"""Arrays of (steps, rows, H) and of (rows, H), float32: the most that either pass reads and writes, each twice since
the next block is fetched meanwhile, and what a step computes."""
Sizes = tuple[int | None, int | None, int | None]
"""T, B and H; None for one that is not known while compiling."""


class Tiles(NamedTuple):
    """The sizes of a call, and how many rows and steps of it are in VMEM at a time."""

    n_steps: int
    n_rows: int
    units: int  # a multiple of LANES
    rows: int
    steps: int

    @property
    def grid(self) -> tuple[int, int]:
        """How many blocks of rows, and of steps. The last may reach past the end: a launch writes nothing there."""
        return -(-self.n_rows // self.rows), -(-self.n_steps // self.steps)


def tiles(n_steps: int, n_rows: int, hidden_size: int, dtype: DTypeLike) -> Tiles:
    """The first of `TILES` that fits: the last one does, where `tpu_refuses` does not."""
    units = up(hidden_size)
    fitting = (block for block in TILES if needed(units, dtype, min(block[0], n_rows), min(block[1], n_steps)) <= VMEM)
    rows, steps = next(fitting, TILES[-1])
    return Tiles(n_steps, n_rows, units, min(rows, max(n_rows, 1)), min(steps, max(n_steps, 1)))


def up(hidden_size: int) -> int:
    """The units of a state, filled up."""
    return -(-hidden_size // LANES) * LANES


def needed(units: int, dtype: DTypeLike, rows: int, steps: int) -> int:
    """Bytes of VMEM: w_hh once, all else as above; rows in eights, as they lie there."""
    weights = 3 * units * units * jnp.dtype(dtype).itemsize
    return weights + 4 * units * (-(-rows // 8) * 8) * (OVER_TIME * steps + OF_ROWS)


def precision_of(spec: GRUSpec, dtype: DTypeLike) -> lax.Precision | None:
    """How the products within the loop are computed; None where Mosaic has no such product.

    Products of bfloat16 are exact in float32 already.
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        return lax.Precision.DEFAULT
    try:
        precision = lax.Precision(precision_asked(spec.precision))
    except ValueError:  # one for each operand, or an algorithm
        return None
    return None if precision == lax.Precision.HIGH else precision


def tpu_refuses(spec: GRUSpec, dtype: DTypeLike, sizes: Sizes) -> str | None:
    """Why the kernel cannot serve a spec, a dtype of products and sizes (T, B, H); None where it can.

    >>> tpu_refuses(GRUSpec(), jnp.float32, (100, 32, 512)) is None
    True
    >>> tpu_refuses(GRUSpec(layer_norm=True), jnp.float32, (100, 32, 512))
    'it has no layer normalisation'
    >>> tpu_refuses(GRUSpec(), jnp.bfloat16, (100, 32, 4096))
    'w_hh and one step of H 4096 in bfloat16 take 102 MiB of VMEM, and a call may take 56'
    """
    name = jnp.dtype(dtype).name
    if spec.layer_norm:
        return "it has no layer normalisation"
    if (spec.activation, spec.gate_activation, spec.clip) != ("tanh", "sigmoid", None):
        return "it supports only tanh and sigmoid, without clip"
    if name not in ("float32", "bfloat16"):
        return f"it multiplies in float32 and bfloat16, not in {name}"
    if precision_of(spec, dtype) is None:
        return "its products have the precision DEFAULT or HIGHEST"
    hidden_size = sizes[2]
    if hidden_size is not None and (least := needed(up(hidden_size), dtype, *TILES[-1])) > VMEM:
        what = f"w_hh and one step of H {hidden_size} in {name}"
        return f"{what} take {least / 2**20:.0f} MiB of VMEM, and a call may take {VMEM / 2**20:.0f}"
    return None
