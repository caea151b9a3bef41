"""The operand that warpgroups exchange at each step, and the rings that prefetch the arrays of later steps.

Every warpgroup writes the operand of its own units and reads that of all units.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from grujax.kernels.resident import cluster
from grujax.kernels.resident.mosaic import (
    OF_ROWS,
    TILE,
    Place,
    as_type,
    load,
    loop,
    plgpu,
    store,
    tiled,
    transposed,
    unused,
)
from grujax.kernels.resident.plan import UNITS, Plan
from grujax.types import Array

FLAGS = 32
"""Floats from the flags of one step to the next in shared memory: the copy engine writes at multiples of 128 bytes."""


class Exchange:
    """The operand of the products, (units / 64, parts · rows, 64), in the shared memory of a block."""

    def __init__(self, place: Place, operand: Any, here: Any) -> None:
        self.place, self.operand, self.here = place, operand, here

    def publish(self, step: Any, values: Sequence[Array]) -> None:
        """Writes the parts of this warpgroup's units, (64, rows) each."""
        store(transposed(self._of_units(step)), side_by_side(values).astype(self.operand.dtype))
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.here)

    def collect(self, step: Any) -> None:
        """Waits until the parts of all units have arrived."""
        plgpu.barrier_wait(self.here)

    def release(self) -> None:
        """Signals that the step collected last has been read."""

    def end(self) -> None:
        """Called after the last `release`. A block must not end before the others have read its memory."""

    def own(self, step: Any, part: int) -> Any:
        """The part of this warpgroup's units, (rows, 64)."""
        return self.operand.at[self._buffer(step), self.place.first // UNITS, self._rows(part)]

    def chunk(self, step: Any, part: int, k: Any) -> Any:
        """The 64 units of a part that begin at unit 64 k, (64, rows)."""
        return transposed(self.operand.at[self._buffer(step), k, self._rows(part)])

    def _of_units(self, step: Any) -> Any:
        return self.operand.at[self._buffer(step), self.place.first // UNITS]

    def _buffer(self, step: Any) -> Any:
        return lax.rem(step, jnp.int32(self.place.plan.buffers))

    def _rows(self, part: int) -> Any:
        return pl.ds(part * self.place.plan.rows, self.place.plan.rows)


class InCluster(Exchange):
    """The exchange among the blocks of a cluster, through shared memory; see `grujax.kernels.resident.cluster`."""

    def __init__(self, place: Place, operand: Any, arrived: Any) -> None:
        super().__init__(place, operand, None)
        self.arrived, self.one_buffer = arrived, place.plan.buffers == 1
        for i in range(place.plan.buffers):
            cluster.begin(arrived.at[i])
        cluster.arrive()
        if not self.one_buffer:
            cluster.depart()

    def publish(self, step: Any, values: Sequence[Array]) -> None:
        if self.one_buffer:
            cluster.depart()
        store(transposed(self._of_units(step)), side_by_side(values).astype(self.operand.dtype))
        plgpu.commit_smem()
        n_bytes = len(values) * self.place.plan.rows * UNITS * jnp.dtype(self.operand.dtype).itemsize
        cluster.send(self._of_units(step), self.arrived.at[self._buffer(step)], n_bytes, self.place.plan.blocks)

    def collect(self, step: Any) -> None:
        cluster.wait(self.arrived.at[self._buffer(step)], lax.div(step, jnp.int32(self.place.plan.buffers)))

    def release(self) -> None:
        if self.one_buffer:
            cluster.arrive()

    def end(self) -> None:
        if not self.one_buffer:
            cluster.arrive()
        cluster.depart()


class Interpreted(Exchange):
    """The exchange among the blocks of a cluster in the interpreter, which runs no PTX: through global memory."""

    def __init__(self, place: Place, operand: Any, here: Any, copied: Any, round_: Any) -> None:
        super().__init__(place, operand, here)
        self.copied, self.round = copied, round_

    def publish(self, step: Any, values: Sequence[Array]) -> None:
        store(transposed(self._of_units(step)), side_by_side(values).astype(self.operand.dtype))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(self._of_units(step), self._round(step).at[self.place.first // UNITS])
        plgpu.wait_smem_to_gmem(0)
        plgpu.barrier_arrive(self.here)

    def collect(self, step: Any) -> None:
        plgpu.barrier_wait(self.here)
        for k in range(self.place.hidden_size // UNITS):
            plgpu.copy_gmem_to_smem(self._round(step).at[k], self.operand.at[self._buffer(step), k], self.copied)
        plgpu.barrier_wait(self.copied)

    def _round(self, step: Any) -> Any:
        """The global memory of a step. There are two of them, because a block may still read that of the last step."""
        return self.round.at[lax.rem(step, jnp.int32(2)), self.place.d, self.place.tile]


def exchange_of(place: Place, scratch: dict[str, Any], round_: Any) -> Exchange:
    """Returns the exchange that matches the arrays of `exchange_scratch`."""
    if "copied" in scratch:
        return Interpreted(place, **scratch, round_=round_)
    return InCluster(place, **scratch) if "arrived" in scratch else Exchange(place, **scratch)


def side_by_side(values: Sequence[Array]) -> Array:
    """(units, n · rows), so that one store is enough: each has two barriers of the warpgroup."""
    return values[0] if len(values) == 1 else jnp.concatenate(values, axis=1)


UNROLLED = 768
"""Bytes of a unit's weights in shared memory up to which a loop over their chunks is unrolled. For more, the compiler
would move the descriptors of all products out of the loop over time into local memory: docs/decisions/gpu-kernel.md."""


def over_chunks(product: Callable[[int, Any], None], plan: Plan, hidden_size: int, dtype: Any) -> None:
    """Calls product(g, k) for each gate g and each chunk k of 64 hidden units, first for weights in shared memory."""
    n = hidden_size // UNITS

    def of_chunk(k: Any) -> None:
        for g in range(plan.in_registers, 3):
            product(g, k)

    if (3 - plan.in_registers) * hidden_size * jnp.dtype(dtype).itemsize > UNROLLED:
        loop(n, lambda k, _: of_chunk(k), None)
    else:
        for k in range(n):
            of_chunk(k)
    for g in range(plan.in_registers):
        for k in range(n):
            product(g, k)


def exchange_scratch(plan: Plan, warpgroups: int, parts: int, hidden_size: int, dtype: Any) -> dict[str, Any]:
    """The scratch arrays for `exchange_of`."""
    operand = {"operand": tiled((plan.buffers, hidden_size // UNITS, parts * plan.rows, UNITS), dtype)}
    if plan.blocks == 1:
        return operand | {"here": plgpu.Barrier(num_arrivals=warpgroups)}
    if not plan.interpret:
        return operand | {"arrived": cluster.barriers(plan.buffers)}
    here = plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=warpgroups)
    return operand | {"here": here, "copied": plgpu.Barrier(num_arrivals=hidden_size // UNITS)}


def round_type(plan: Plan, parts: int, rows: int, hidden_size: int, dtype: Any) -> Any:
    """The output that `Interpreted` uses as global memory; for the other exchanges, the smallest possible array."""
    if plan.blocks == 1 or not plan.interpret:
        return as_type((1, 8, UNITS), dtype)
    of_tile = (hidden_size // UNITS, parts * plan.rows, UNITS)
    return as_type((2, len(plan.reverse), rows // plan.rows, *of_tile), dtype)


class Ring:
    """Prefetches the tiles (rows, units) and flags of the next `stages` steps into shared memory.

    With 0 stages, when there is no room for a ring, steps are read directly from global memory.
    """

    def __init__(
        self, place: Place, tiles: Callable[[Any, int], Sequence[Any]], flags: Any, ring: dict[str, Any]
    ) -> None:
        self.place, self.tiles, self.flags, self.ring = place, tiles, flags, ring
        self.stages = place.plan.stages

    def fetch(self, step: Any, trip: Any) -> None:
        """Starts the copy of a step, which the loop reads in trip number `trip`."""
        if not self.stages:
            return
        place, slot = self.place, lax.rem(trip, jnp.int32(self.stages))
        arrived = self.ring["arrived"].at[place.wg * self.stages + slot]

        def of(d: int) -> None:
            for i, tile in enumerate(self.tiles(step, d)):
                plgpu.copy_gmem_to_smem(tile, self.ring["tiles"].at[place.wg, slot, i], arrived)

        place.of_direction(of)
        if self.flags is not None:
            to = self.ring["flags"].at[place.wg, slot, pl.ds(0, place.plan.rows)]
            plgpu.copy_gmem_to_smem(self.flags.at[place.d, place.time_of(step), place.rows], to, arrived)

    def read(self, step: Any, trip: Any, n: int) -> tuple[list[Array], Array | None]:
        """Returns the n tiles and the flags of a step, (units, rows) each."""
        place, flags = self.place, None
        if self.stages:
            slot = lax.rem(trip, jnp.int32(self.stages))
            plgpu.barrier_wait(self.ring["arrived"].at[place.wg * self.stages + slot])
            tiles = [load(transposed(self.ring["tiles"].at[place.wg, slot, i]), TILE) for i in range(n)]
            flags = self.ring["flags"].at[place.wg, slot, pl.ds(0, place.plan.rows)]
        else:
            by_direction = [self.tiles(step, d) for d in range(len(place.plan.reverse))]
            tiles = [
                place.select([load(transposed(ref), TILE) for ref in refs]) for refs in zip(*by_direction, strict=True)
            ]
            if self.flags is not None:
                flags = self.flags.at[place.d, place.time_of(step), place.rows]
        if self.flags is None:
            return tiles, None
        return tiles, lax.broadcast_in_dim(load(flags, OF_ROWS), (UNITS, place.plan.rows), [1])


def ring_scratch(plan: Plan, warpgroups: int, n: int, with_flags: bool) -> dict[str, Any]:
    """The scratch arrays for a `Ring` of n tiles per step."""
    slots = (warpgroups, max(plan.stages, 1))
    return {
        "tiles": tiled((*slots, n, plan.rows, UNITS), jnp.float32) if plan.stages else unused(jnp.float32),
        "flags": plgpu.SMEM((*slots, FLAGS), jnp.float32),
        "arrived": plgpu.Barrier(num_arrivals=n + with_flags, num_barriers=slots[0] * slots[1]),
    }
