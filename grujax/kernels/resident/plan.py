"""Chooses the design of the GPU kernel for the sizes of a call, from the resources of a Hopper card."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from grujax.kernels.products import precision_asked

UNITS = 64
"""Hidden units of a warpgroup: the M of its wgmma."""
JAX = (0, 11)
"""The oldest jax that serves. Older versions of Pallas cannot join arrays in a kernel, and their interpreter cannot
read a transposed reference."""
CAPABILITY = "9.0"
"""The only compute capability that is served: for any other, the compiler aborts the process."""
MULTIPROCESSORS = 132
SHARED = 232_448
"""Bytes of shared memory of a block, of which 1 KB is left for barriers and the like."""
ALIGNED = 1024
"""The alignment in bytes of every array in shared memory, even small ones: the barriers of a cluster are one array."""
CLUSTER = 8
"""The maximum number of blocks in a cluster."""
GROUPS, OF_GROUP = 7, 16
"""The number of complete groups of multiprocessors, and the multiprocessors of a group. A cluster runs within one
group. Some cards have an eighth group with fewer."""
EXACT, ALONE = 128, 128
"""The maximum number of hidden units for the loops in exact float32, and for one block that holds all weights in
bfloat16."""
MEASURED, MEASURED_WIDE, MEASURED_EXACT = 4096, 256, 1024
"""The maximum number of rows at which `implementation=None` chooses these kernels, because more were not timed: up to
256 hidden units, above, and with exact products. For the last two only the loops were timed."""
ROWS = {8: 144, 16: 100, 32: 0}
"""Rows of the batch in a block, and the registers of a thread that may then hold weights."""
WAYS = ((2, 4), (2, 3), (2, 2), (1, 4), (1, 3), (1, 2), (1, 0))
"""Pairs of buffers of the exchanged operand and stages of the ring, the best first."""


class Plan(NamedTuple):
    """The parameters that are fixed when a kernel is compiled."""

    reverse: tuple[bool, ...]  # for each direction, whether it reads backwards
    time_major: bool
    rows: int  # rows of the batch in a block
    blocks: int = 1  # blocks of a cluster, which divide the hidden units among them
    stages: int = 4  # stages of the ring that prefetches the arrays of later steps; 0: they are read when needed
    buffers: int = 2  # buffers of the exchanged operand; 1 if memory is short: the cluster then synchronises each step
    in_registers: int = 0  # the weights of this many gates, the first ones, are in registers
    interpret: bool = False


class Sides(NamedTuple):
    """The contents of shared memory in a loop, apart from the weights, in tiles (rows, units) of a warpgroup."""

    parts: int  # tiles of the operand
    tiles: int  # float32 tiles that arrive for a step
    out: int  # tiles that a step writes
    out_wide: bool  # those are float32, not in the dtype of the products


FORWARD, SAVING, BACKWARD = Sides(1, 3, 1, True), Sides(1, 3, 5, True), Sides(3, 6, 1, False)


def allows_tf32(precision: Any) -> bool:
    """Whether float32 products may be rounded to TF32, as XLA rounds its own at this precision."""
    return precision_asked(precision) in (None, "default", "tensorfloat32", lax.Precision.DEFAULT)


def padded(hidden_size: int) -> int:
    """The number of hidden units, rounded up to a multiple of `UNITS`."""
    return math.ceil(hidden_size / UNITS) * UNITS


def refuses(hidden_size: int | None, dtype: Any, precision: Any) -> str | None:
    """Says why no design serves; None if one does."""
    name = jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16"):
        return f"it multiplies in float32 and bfloat16, not in {name}"
    if hidden_size is None:
        return "the sizes are not known at compile time"
    most = EXACT
    if name == "bfloat16" or allows_tf32(precision):
        sizes = range(UNITS, UNITS * CLUSTER + 1, UNITS)
        most = max(
            H for H in sizes if _tiled((), False, 8, H, name, BACKWARD) and _tiled((), False, 8, H, name, SAVING)
        )
    if hidden_size > most:
        exactly = "" if name == "bfloat16" or allows_tf32(precision) else " with exact products"
        return f"it holds the weights of at most {most} hidden units in {name}{exactly}, not of {hidden_size}"
    return None


def not_measured(rows: int, hidden_size: int, dtype: Any, precision: Any) -> str | None:
    """Says why a call may be slower than XLA's loop; None up to the rows that were timed, with one direction."""
    exactly = jnp.dtype(dtype).name == "float32" and not allows_tf32(precision)
    most = MEASURED_EXACT if exactly else MEASURED if hidden_size <= 256 else MEASURED_WIDE
    return (
        f"it was measured up to {most} rows with {hidden_size} hidden units, not with {rows}" if rows > most else None
    )


def _at_once(blocks: int) -> int:
    """The number of clusters of `blocks` blocks, one block per multiprocessor, that run at the same time."""
    return MULTIPROCESSORS if blocks == 1 else GROUPS * (OF_GROUP // blocks)


def plan(
    reverse: tuple[bool, ...],
    time_major: bool,
    rows: int,
    hidden_size: int,
    dtype: Any,
    precision: Any,
    sides: Sides,
    interpret: bool = False,
) -> Plan:
    """Returns the plan of a call that `refuses` accepts. A plan with rows=1 uses the loops of exact.py.

    hidden_size: as returned by `padded`.
    """
    name = jnp.dtype(dtype).name
    waves = len(reverse) * rows / MULTIPROCESSORS
    if hidden_size <= EXACT and (waves <= 1 or (name == "float32" and (waves <= 2 or not allows_tf32(precision)))):
        return Plan(reverse, time_major, 1, stages=1 if sides is BACKWARD else 2, interpret=interpret)
    chosen = _tiled(reverse, time_major, rows, hidden_size, name, sides)
    assert chosen is not None
    # The interpreter reads both operands of a product only from shared memory.
    return chosen._replace(interpret=True, in_registers=0) if interpret else chosen


def _tiled(
    reverse: tuple[bool, ...], time_major: bool, rows: int, hidden_size: int, name: str, sides: Sides
) -> Plan | None:
    """A plan for the tensor cores: the fewest rows per block with which all blocks run at once, else the most that fit.

    None if no plan fits.
    """
    itemsize = jnp.dtype(name).itemsize
    blocks = 1 if hidden_size == UNITS or (itemsize == 2 and hidden_size <= ALONE) else hidden_size // UNITS
    of_gate = hidden_size * UNITS * itemsize // (128 * 4)  # registers of a thread
    fitting: dict[int, Plan] = {}
    for buffers, stages in (way for way in WAYS if blocks > 1 or way[0] == 2):
        for n, registers in ROWS.items():
            in_registers = min(3, registers // of_gate) if itemsize == 2 else 0  # wgmma reads no float32 from registers
            plan = Plan(reverse, time_major, n, blocks, stages, buffers, in_registers)
            fits = shared_bytes(plan, hidden_size, itemsize, sides) <= SHARED - 1024
            if fits and n not in fitting and (stages or (sides is BACKWARD and not fitting)):
                fitting[n] = plan
    at_once = (p for n, p in fitting.items() if len(reverse) * math.ceil(rows / n) <= _at_once(blocks))
    return next(at_once, fitting[max(fitting)] if fitting else None)


def shared_bytes(plan: Plan, hidden_size: int, itemsize: int, sides: Sides) -> int:
    """The bytes of shared memory that a block needs."""
    warpgroups = hidden_size // plan.blocks // UNITS
    tile = plan.rows * UNITS
    weights = warpgroups * UNITS * (3 - plan.in_registers) * hidden_size * itemsize
    operand = plan.buffers * sides.parts * hidden_size // UNITS * tile * itemsize
    ring = warpgroups * plan.stages * (sides.tiles * tile * 4 + 128)
    out = warpgroups * plan.buffers * sides.out * tile * (4 if sides.out_wide else itemsize)
    return weights + operand + ring + out + (ALIGNED if plan.blocks > 1 else 0)
