"""What the kernels share: layouts, the gates, the place of a warpgroup, and the differences between versions of jax."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from grujax.kernels.resident.plan import UNITS, Plan
from grujax.types import Array

plgpu: Any = mosaic_gpu
"""Its names come and go with the versions of jax, more than a type checker can follow."""
ACCUMULATED = plgpu.Layout.WGMMA
TILE = plgpu.Layout.WGMMA_TRANSPOSED
"""(units, rows), two units of a row in a thread: what lies rows first in memory is read and written in pairs."""
OF_UNITS, OF_ROWS = TILE.reduce(1), TILE.reduce(0)


def load(ref: Any, layout: Any) -> Any:
    """The values of a reference to global or shared memory, in registers."""
    return plgpu.load(ref, layout=layout, optimized=False)


def store(ref: Any, value: Array) -> None:
    if hasattr(plgpu, "store"):  # jax 0.12
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def zeros_like(value: Array, layout: Any) -> Array:
    """With a layout: the compiler stores no array that it sees to be the same everywhere, as after no step at all."""
    return plgpu.layout_cast(jnp.zeros_like(value), layout)


def launch(body: Callable[..., None], out: Any, scratch: dict[str, Any], plan: Plan, grid: Sequence[int]) -> Any:
    """The kernel as a function of arrays; grid: directions, tiles of rows, warpgroups of a block."""
    directions, tiles, warpgroups = grid
    names = {"grid": (directions, tiles), "grid_names": ("d", "b"), "num_threads": warpgroups, "thread_name": "wg"}
    if plan.blocks > 1:
        names |= {"cluster": (plan.blocks,), "cluster_names": ("block",)}
    # The only semantics that are interpreted on a CPU and compiled without a GPU.
    params = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup)
    interpret = plgpu.InterpretGPUParams(detect_races=True) if plan.interpret else False
    return plgpu.kernel(body, out_type=out, scratch_types=scratch, compiler_params=params, interpret=interpret, **names)


def loop(n: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """n trips, counted in 32 bits also where jax_enable_x64 is set."""
    return lax.fori_loop(jnp.int32(0), jnp.int32(n), body, carry)


# ---- memory
def turned(ref: Any) -> Any:
    return ref.transpose((1, 0))


def tiled(shape: Sequence[int], dtype: Any) -> Any:
    """Shared memory as the tensor cores and the copy engine read it: 128 bytes a row of a tile, swizzled."""
    return plgpu.SMEM(tuple(shape), dtype, transforms=swizzled(dtype))


def swizzled(dtype: Any) -> tuple:
    return plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(128)


def nothing(dtype: Any) -> Any:
    """Shared memory that is not used: scratch has no optional arrays."""
    return tiled((8, 128 // jnp.dtype(dtype).itemsize), dtype)


def resident(shape: Sequence[int], dtype: Any) -> Any:
    """The weights that are in shared memory, if any."""
    return tiled(shape, dtype) if all(shape) else nothing(dtype)


class Place:
    """Where a warpgroup stands: its direction d, its rows of the batch, its hidden units."""

    def __init__(self, plan: Plan, n_steps: int, hidden_size: int) -> None:
        self.plan, self.n_steps, self.hidden_size = plan, n_steps, hidden_size
        self.wg, self.d, tile = (lax.axis_index(name) for name in ("wg", "d", "b"))
        block = lax.axis_index("block") if plan.blocks > 1 else 0
        self.first = block * (hidden_size // plan.blocks) + self.wg * UNITS
        self.units = pl.ds(self.first, UNITS)
        self.tile = tile
        self.rows = tile if plan.rows == 1 else pl.ds(tile * plan.rows, plan.rows)
        self.backwards = jnp.bool_(False)
        for d, way in enumerate(plan.reverse):
            self.backwards = self.backwards | (self.d == d) if way else self.backwards

    def of_gate(self, g: int) -> Any:
        """The columns of gate g of these units, where gates stand side by side."""
        return pl.ds(g * self.hidden_size + self.first, UNITS)

    def at(self, ref: Any, step: Any, columns: Any, time_major: bool | None = None) -> Any:
        """(rows, columns) of the step that is read as number `step`."""
        t = self.time_of(step)
        major = self.plan.time_major if time_major is None else time_major
        return ref.at[t, self.rows, columns] if major else ref.at[self.rows, t, columns]

    def time_of(self, step: Any) -> Any:
        """The index in time of the step that is read as number `step`."""
        return jnp.where(self.backwards, self.n_steps - 1 - step, step)

    def of_direction(self, f: Callable[[int], Any]) -> None:
        """f(d) of this block's direction: arrays of two directions are not one array."""
        if len(self.plan.reverse) == 1:
            f(0)
            return
        for d in range(len(self.plan.reverse)):
            pl.when(self.d == d)(partial(f, d))

    def of_this(self, of_ways: Sequence[Array]) -> Array:
        """The array of this block's direction."""
        found = of_ways[0]
        for d, other in enumerate(of_ways[1:], 1):
            found = jnp.where(lax.broadcast(self.d == d, other.shape), other, found)
        return found


# ---- the gates
def sigmoid(x: Array) -> Array:
    return 1 / (1 + jnp.exp(-x))


def tanh(x: Array) -> Array:
    """Not jnp.tanh: under approx_math it is tanh.approx, wrong in the fourth digit."""
    return 2 * sigmoid(2 * x) - 1


VALID, RESET_NEXT = 1.0, 2.0
"""The flags of a step, summed: it is valid; the state is reset before the next step that is read."""


def is_valid(flags: Array) -> Array:
    return (flags == VALID) | (flags == VALID + RESET_NEXT)


def resets_next(flags: Array) -> Array:
    return flags > 1.5


def new_state(h: Array, x: Sequence[Array], products: Sequence[Array], bias: Sequence[Array], keep: bool) -> tuple:
    """h' after h, and r, z, n, m, from the input's parts, the products and the biases of r, z, n and m."""
    r, z = sigmoid(x[0] + bias[0] + products[0]), sigmoid(x[1] + bias[1] + products[1])
    m = products[2] + bias[3]
    n = tanh(x[2] + bias[2] + r * m)
    return (n + z * (h - n) if keep else h + z * (n - h)), r, z, n, m


class Coefficients(NamedTuple):
    """Of the transposed loop at a step: with λ the gradient of the new state, d_r = r λ and so on."""

    keep: Array
    r: Array
    z: Array
    n: Array
    m: Array


def coefficients(r: Array, z: Array, n: Array, m: Array, new: Array, keep: bool) -> Coefficients:
    """From the gates and the new state: (h − n) z = h' − n, and with update="take" (n − h)(1 − z) = n − h'."""
    kept, a_z = (z, (new - n) * (1 - z)) if keep else (1 - z, (n - new) * z)
    a_n = (1 - kept) * (1 - n * n)
    return Coefficients(kept, a_n * m * r * (1 - r), a_z, a_n, a_n * r)


def where_valid(flags: Array | None, of: Coefficients, dhs: Array) -> tuple[Coefficients, Array]:
    if flags is None:
        return of, dhs
    valid = is_valid(flags)
    keep, *others = of
    moved = (jnp.where(valid, a, 0.0) for a in others)
    return Coefficients(jnp.where(valid, keep, 1.0), *moved), jnp.where(valid, dhs, 0.0)


def as_type(shape: Sequence[int], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)
