"""Which design serves which sizes: what a Hopper card has, and how much of it a kernel takes."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from grujax.kernels.products import precision_asked

UNITS = 64
"""Hidden units of a warpgroup: the M of its wgmma."""
JAX = (0, 11)
"""Pallas of an older jax joins no arrays in a kernel, and its interpreter reads no reference turned round."""
CAPABILITY = "9.0"
"""For another the compiler aborts the process."""
MULTIPROCESSORS = 132
SHARED = 232_448
"""Bytes of shared memory of a block, 1 KB of them for barriers and the like."""
ALIGNED = 1024
"""Bytes to whose multiples arrays in shared memory are aligned, however small: the barriers of a cluster are one."""
CLUSTER = 8
"""Blocks of a cluster at most."""
GROUPS, OF_GROUP = 7, 16
"""Groups of multiprocessors that are whole, and multiprocessors of one: a cluster lies within a group. Some cards have
an eighth group with fewer."""
EXACT, ALONE = 128, 128
"""Hidden units at most of the loops in exact float32, and of a block that shares the weights of bfloat16 with none."""
MEASURED, MEASURED_WIDE, MEASURED_EXACT = 4096, 256, 1024
"""Rows at most where None chooses these kernels, those that were timed, the last two as loops alone: up to 256 hidden
units, above, and with exact products."""
ROWS = {8: 144, 16: 100, 32: 0}
"""Of the batch, in a block; beside them so many registers of a thread may hold weights."""
WAYS = ((2, 4), (2, 3), (2, 2), (1, 4), (1, 3), (1, 2), (1, 0))
"""Buffers of what a step exchanges and stages of the ring, the better ones first."""


class Plan(NamedTuple):
    """What is fixed when a kernel is compiled."""

    reverse: tuple[bool, ...]  # of each direction
    time_major: bool
    rows: int  # of the batch, in a block
    blocks: int = 1  # of a cluster, which share the hidden units
    stages: int = 4  # of the ring in which the arrays of later steps arrive; 0: none, they are read when needed
    buffers: int = 2  # of what a step exchanges; 1, where memory is short: a cluster then meets at each step
    in_registers: int = 0  # gates, the first ones, whose weights the tensor cores read from there
    interpret: bool = False


class Sides(NamedTuple):
    """What the shared memory of a loop holds beside the weights, in tiles (rows, units) of a warpgroup."""

    parts: int  # of the operand
    tiles: int  # float32, that arrive for a step
    out: int  # that leave
    out_wide: bool  # in float32, not in the dtype of the products


FORWARD, SAVING, BACKWARD = Sides(1, 3, 1, True), Sides(1, 3, 5, True), Sides(3, 6, 1, False)


def allows_tf32(precision: Any) -> bool:
    """Whether float32 products may be rounded to TF32, as XLA's own then are."""
    return precision_asked(precision) in (None, "default", "tensorfloat32", lax.Precision.DEFAULT)


def padded(hidden_size: int) -> int:
    return math.ceil(hidden_size / UNITS) * UNITS


def refuses(hidden_size: int | None, dtype: Any, precision: Any) -> str | None:
    """Why no design serves; None where one does."""
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
    """Why a call may be slower than XLA's loop; None up to the rows that were timed, of one direction."""
    exactly = jnp.dtype(dtype).name == "float32" and not allows_tf32(precision)
    most = MEASURED_EXACT if exactly else MEASURED if hidden_size <= 256 else MEASURED_WIDE
    return (
        f"it was measured up to {most} rows with {hidden_size} hidden units, not with {rows}" if rows > most else None
    )


def _at_once(blocks: int) -> int:
    """Clusters of so many blocks, one a multiprocessor, that run at a time."""
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
    """The plan of a call that is not refused; hidden_size: as `padded` gives it. One row a block: the exact loops."""
    name = jnp.dtype(dtype).name
    waves = len(reverse) * rows / MULTIPROCESSORS
    if hidden_size <= EXACT and (waves <= 1 or (name == "float32" and (waves <= 2 or not allows_tf32(precision)))):
        return Plan(reverse, time_major, 1, stages=1 if sides is BACKWARD else 2, interpret=interpret)
    found = _tiled(reverse, time_major, rows, hidden_size, name, sides)
    assert found is not None
    # The interpreter takes both operands of a product from shared memory alone.
    return found._replace(interpret=True, in_registers=0) if interpret else found


def _tiled(
    reverse: tuple[bool, ...], time_major: bool, rows: int, hidden_size: int, name: str, sides: Sides
) -> Plan | None:
    """On the tensor cores: the fewest rows a block with which all blocks run at once, else the most that fit."""
    itemsize = jnp.dtype(name).itemsize
    blocks = 1 if hidden_size == UNITS or (itemsize == 2 and hidden_size <= ALONE) else hidden_size // UNITS
    of_gate = hidden_size * UNITS * itemsize // (128 * 4)  # registers of a thread
    fitting: dict[int, Plan] = {}
    for buffers, stages in (way for way in WAYS if blocks > 1 or way[0] == 2):
        for n, registers in ROWS.items():
            in_registers = min(3, registers // of_gate) if itemsize == 2 else 0  # wgmma takes no float32 from there
            plan = Plan(reverse, time_major, n, blocks, stages, buffers, in_registers)
            fits = shared_bytes(plan, hidden_size, itemsize, sides) <= SHARED - 1024
            if fits and n not in fitting and (stages or (sides is BACKWARD and not fitting)):
                fitting[n] = plan
    at_once = (p for n, p in fitting.items() if len(reverse) * math.ceil(rows / n) <= _at_once(blocks))
    return next(at_once, fitting[max(fitting)] if fitting else None)


def shared_bytes(plan: Plan, hidden_size: int, itemsize: int, sides: Sides) -> int:
    """Of a block."""
    warpgroups = hidden_size // plan.blocks // UNITS
    tile = plan.rows * UNITS
    weights = warpgroups * UNITS * (3 - plan.in_registers) * hidden_size * itemsize
    operand = plan.buffers * sides.parts * hidden_size // UNITS * tile * itemsize
    ring = warpgroups * plan.stages * (sides.tiles * tile * 4 + 128)
    out = warpgroups * plan.buffers * sides.out * tile * (4 if sides.out_wide else itemsize)
    return weights + operand + ring + out + (ALIGNED if plan.blocks > 1 else 0)
