"""Shared parts of the GPU kernels: layouts, gates, the position of a warpgroup, differences between versions of jax."""

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
"""Typed `Any`, because its names change between versions of jax."""
ACCUMULATED = plgpu.Layout.WGMMA
TILE = plgpu.Layout.WGMMA_TRANSPOSED
"""(units, rows), with two units of a row in a thread, so that row-major memory is read and written in pairs."""
OF_UNITS, OF_ROWS = TILE.reduce(1), TILE.reduce(0)


def load(ref: Any, layout: Any) -> Any:
    """Loads a reference to global or shared memory into registers."""
    return plgpu.load(ref, layout=layout, optimized=False)


def store(ref: Any, value: Array) -> None:
    if hasattr(plgpu, "store"):  # jax 0.12
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def zeros_like(value: Array, layout: Any) -> Array:
    """Zeros with a layout.

    Without one the compiler cannot store an array that it knows to be constant, as after a loop of no steps.
    """
    return plgpu.layout_cast(jnp.zeros_like(value), layout)


def launch(body: Callable[..., None], out: Any, scratch: dict[str, Any], plan: Plan, grid: Sequence[int]) -> Any:
    """Returns the kernel as a function of arrays. grid: directions, tiles of rows, warpgroups of a block."""
    directions, tiles, warpgroups = grid
    names = {"grid": (directions, tiles), "grid_names": ("d", "b"), "num_threads": warpgroups, "thread_name": "wg"}
    if plan.blocks > 1:
        names |= {"cluster": (plan.blocks,), "cluster_names": ("block",)}
    # Only these semantics can be interpreted on a CPU and compiled without a GPU.
    params = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup)
    interpret = plgpu.InterpretGPUParams(detect_races=True) if plan.interpret else False
    return plgpu.kernel(body, out_type=out, scratch_types=scratch, compiler_params=params, interpret=interpret, **names)


def loop(n: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """A loop of n trips, counted in 32 bits even under `jax_enable_x64`."""
    return lax.fori_loop(jnp.int32(0), jnp.int32(n), body, carry)


# ---- memory
def transposed(ref: Any) -> Any:
    return ref.transpose((1, 0))


def tiled(shape: Sequence[int], dtype: Any) -> Any:
    """Shared memory in the layout that the tensor cores and the copy engine read: swizzled, 128 bytes per tile row."""
    return plgpu.SMEM(tuple(shape), dtype, transforms=swizzled(dtype))


def swizzled(dtype: Any) -> tuple:
    return plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(128)


def unused(dtype: Any) -> Any:
    """A placeholder in shared memory, because scratch arrays are not optional."""
    return tiled((8, 128 // jnp.dtype(dtype).itemsize), dtype)


def resident(shape: Sequence[int], dtype: Any) -> Any:
    """The shared memory of the weights, if there are any in it."""
    return tiled(shape, dtype) if all(shape) else unused(dtype)


class Place:
    """The part of a call that a warpgroup computes: its direction d, its rows of the batch, its hidden units."""

    def __init__(self, plan: Plan, n_steps: int, hidden_size: int) -> None:
        self.plan, self.n_steps, self.hidden_size = plan, n_steps, hidden_size
        self.wg, self.d, tile = (lax.axis_index(name) for name in ("wg", "d", "b"))
        block = lax.axis_index("block") if plan.blocks > 1 else 0
        self.first = block * (hidden_size // plan.blocks) + self.wg * UNITS
        self.units = pl.ds(self.first, UNITS)
        self.tile = tile
        self.rows = tile if plan.rows == 1 else pl.ds(tile * plan.rows, plan.rows)
        self.backwards = jnp.bool_(False)
        for d, backwards in enumerate(plan.reverse):
            self.backwards = self.backwards | (self.d == d) if backwards else self.backwards

    def of_gate(self, g: int) -> Any:
        """The columns of gate g of these units in an array with the gates side by side."""
        return pl.ds(g * self.hidden_size + self.first, UNITS)

    def at(self, ref: Any, step: Any, columns: Any, time_major: bool | None = None) -> Any:
        """The (rows, columns) of the step that is read as number `step`."""
        t = self.time_of(step)
        major = self.plan.time_major if time_major is None else time_major
        return ref.at[t, self.rows, columns] if major else ref.at[self.rows, t, columns]

    def time_of(self, step: Any) -> Any:
        """The index in time of the step that is read as number `step`."""
        return jnp.where(self.backwards, self.n_steps - 1 - step, step)

    def of_direction(self, f: Callable[[int], Any]) -> None:
        """Calls f(d) for this block's direction d; needed because each direction has its own arrays."""
        if len(self.plan.reverse) == 1:
            f(0)
            return
        for d in range(len(self.plan.reverse)):
            pl.when(self.d == d)(partial(f, d))

    def select(self, arrays: Sequence[Array]) -> Array:
        """The array of this block's direction, of one array for each direction."""
        selected = arrays[0]
        for d, other in enumerate(arrays[1:], 1):
            selected = jnp.where(lax.broadcast(self.d == d, other.shape), other, selected)
        return selected


# ---- the gates
def sigmoid(x: Array) -> Array:
    return 1 / (1 + jnp.exp(-x))


def tanh(x: Array) -> Array:
    """tanh without jnp.tanh, which becomes tanh.approx under approx_math and is wrong in the fourth digit."""
    return 2 * sigmoid(2 * x) - 1


VALID, RESET_NEXT = 1.0, 2.0
"""The flags of a step, which are added: the step is valid; the state is reset before the next step that is read."""


def is_valid(flags: Array) -> Array:
    return (flags == VALID) | (flags == VALID + RESET_NEXT)


def resets_next(flags: Array) -> Array:
    return flags > 1.5


def new_state(h: Array, x: Sequence[Array], products: Sequence[Array], bias: Sequence[Array], keep: bool) -> tuple:
    """Returns the next state h', r, z, n and m.

    x: the input's part of r, z and n. products: the state's products for r, z and n. bias: of r, z, n and m.
    """
    r, z = sigmoid(x[0] + bias[0] + products[0]), sigmoid(x[1] + bias[1] + products[1])
    m = products[2] + bias[3]
    n = tanh(x[2] + bias[2] + r * m)
    return (n + z * (h - n) if keep else h + z * (n - h)), r, z, n, m


class Coefficients(NamedTuple):
    """The coefficients of a step of the transposed loop: with λ the gradient of the new state, d_r = r λ and so on."""

    keep: Array
    r: Array
    z: Array
    n: Array
    m: Array


def coefficients(r: Array, z: Array, n: Array, m: Array, new: Array, keep: bool) -> Coefficients:
    """Computes the coefficients from the gates and the new state h'.

    The old state h is not needed: (h − n) z = h' − n, and with update="take" (n − h)(1 − z) = n − h'.
    """
    kept, a_z = (z, (new - n) * (1 - z)) if keep else (1 - z, (n - new) * z)
    a_n = (1 - kept) * (1 - n * n)
    return Coefficients(kept, a_n * m * r * (1 - r), a_z, a_n, a_n * r)


def where_valid(flags: Array | None, by_step: Coefficients, dhs: Array) -> tuple[Coefficients, Array]:
    """At rows that are not valid, keep becomes 1 and everything else 0."""
    if flags is None:
        return by_step, dhs
    valid = is_valid(flags)
    keep, *others = by_step
    masked = (jnp.where(valid, a, 0.0) for a in others)
    return Coefficients(jnp.where(valid, keep, 1.0), *masked), jnp.where(valid, dhs, 0.0)


def as_type(shape: Sequence[int], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)
