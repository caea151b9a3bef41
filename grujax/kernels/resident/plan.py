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
CLUSTER = 8
"""Blocks of a cluster at most."""
GROUPS, OF_GROUP = 7, 16
"""Groups of multiprocessors that are whole, and multiprocessors of one: a cluster lies within a group. Some cards have
an eighth group with fewer."""
EXACT, IN_REGISTERS = 128, 128
"""Hidden units at most of the loops in exact float32, and of weights that the tensor cores read from registers."""
WAVES, WAVES_EXACT = 2, 8
"""How many times over the card may be filled, at most, where None chooses these kernels: so far they were measured."""
ROWS = (8, 16, 32)
ROWS_BESIDE = 16
"""Rows at most of a block that has the weights in registers too."""
STAGES = (4, 3, 2)


class Plan(NamedTuple):
    """What is fixed when a kernel is compiled."""

    reverse: tuple[bool, ...]  # of each direction
    time_major: bool
    rows: int  # of the batch, in a block
    blocks: int = 1  # of a cluster, which share the hidden units
    stages: int = 4  # of the ring in which the arrays of later steps arrive; 0: none, they are read when needed
    weights_in_registers: bool = False
    interpret: bool = False

    @property
    def buffers(self) -> int:
        """Of what a step exchanges. In a cluster a barrier parts all reads from the next write: one is enough."""
        return 2 if self.blocks == 1 else 1


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
        return "the sizes are not known while compiling"
    most = EXACT
    if name == "bfloat16" or allows_tf32(precision):
        sizes = range(UNITS, UNITS * CLUSTER + 1, UNITS)
        most = max(
            H for H in sizes if _tiled((), False, 8, H, name, BACKWARD) and _tiled((), False, 8, H, name, SAVING)
        )
    if hidden_size > most:
        exactly = "" if name == "bfloat16" or allows_tf32(precision) else " with exact products"
        return f"it holds the weights of {most} hidden units at most in {name}{exactly}, not of {hidden_size}"
    return None


def not_measured(rows: int, hidden_size: int, dtype: Any, precision: Any) -> str | None:
    """Why a call of one direction may be slower than XLA's loop; None where it was seen to be faster."""
    found = plan((False,), False, rows, padded(hidden_size), dtype, precision, BACKWARD)
    waves = math.ceil(rows / found.rows / _at_once(found.blocks))
    most = WAVES_EXACT if found.rows == 1 else WAVES
    return f"{rows} rows would take {waves} turns, and up to {most} were measured" if waves > most else None


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
    return found._replace(interpret=interpret, weights_in_registers=found.weights_in_registers and not interpret)


def _tiled(
    reverse: tuple[bool, ...], time_major: bool, rows: int, hidden_size: int, name: str, sides: Sides
) -> Plan | None:
    """On the tensor cores: the fewest rows a block with which all blocks run at once, else the most that fit."""
    itemsize = jnp.dtype(name).itemsize
    few_units = itemsize == 2 and hidden_size <= IN_REGISTERS
    blocks = 1 if few_units or hidden_size == UNITS else hidden_size // UNITS
    fitting = []
    for n, stages in ((n, stages) for some in (STAGES, (0,)) for n in ROWS for stages in some):
        plan = Plan(reverse, time_major, n, blocks, stages, weights_in_registers=few_units and n <= ROWS_BESIDE)
        fits = shared_bytes(plan, hidden_size, itemsize, sides) <= SHARED - 1024
        if fits and n not in (p.rows for p in fitting) and (stages or (sides is BACKWARD and not fitting)):
            fitting.append(plan)
    at_once = [p for p in fitting if len(reverse) * math.ceil(rows / p.rows) <= _at_once(blocks)]
    return next(iter(at_once), fitting[-1] if fitting else None)


def shared_bytes(plan: Plan, hidden_size: int, itemsize: int, sides: Sides) -> int:
    """Of a block."""
    warpgroups = hidden_size // plan.blocks // UNITS
    tile = plan.rows * UNITS
    weights = 0 if plan.weights_in_registers else warpgroups * UNITS * 3 * hidden_size * itemsize
    operand = plan.buffers * sides.parts * hidden_size // UNITS * tile * itemsize
    ring = warpgroups * plan.stages * (sides.tiles * tile * 4 + 128)
    out = warpgroups * plan.buffers * sides.out * tile * (4 if sides.out_wide else itemsize)
    return weights + operand + ring + out
