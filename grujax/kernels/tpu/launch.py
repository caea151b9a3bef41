"""One launch of Pallas: a grid over blocks of rows and of steps, w_hh in VMEM, a loop over the steps of a block.

Also the helpers that both passes share: padding of the units to whole vectors, the control inputs of a step, products.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from grujax.kernels.tpu.limits import VMEM, Tiles, precision_of
from grujax.types import Array, Control, GRUSpec

Refs = Mapping[str, Any]
"""References to the block of each input and output, by name. Optional inputs may be missing."""

WHOLE = ("w", "b_n", "h_reset")
"""Inputs that every block reads as a whole. They are fetched once, so one buffer is enough."""
ZERO = np.int32(0)
"""A block index of 0. Mosaic accepts only 32 bits, and under `jax_enable_x64` a plain 0 has 64."""


def launch(
    name: str,
    step: Callable[[Refs, Array, Array], Array],
    state: tuple[str, str],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, tuple[int, ...]],
    tiles: Tiles,
    backwards: bool,
) -> dict[str, Array]:
    """Runs a loop over all steps and returns its outputs in float32.

    Args:
      name: the name of the kernel in profiles.
      step: (references, index of the step in its block, state before it) -> state after it.
      state: the name of the input with the initial state, and of the output that carries the state between blocks.
      inputs: arrays (T, B, ·) and (B, ·), the flags of `steering_of`, and the arrays of `WHOLE`.
      outputs: shapes (T, B, ·) or (B, ·). Outputs (B, ·) begin as 0 and accumulate over the steps.
      backwards: loop from the last step to the first.
    """
    begin, held = state
    varying = jax.typeof(inputs[begin]).manual_axis_type  # inside shard_map
    shapes = {to: jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=varying) for to, shape in outputs.items()}
    if not tiles.n_steps or not tiles.n_rows:
        return {to: jnp.zeros(shape, jnp.float32) for to, shape in outputs.items()} | {held: inputs[begin]}
    last = tiles.grid[1] - 1

    def block(of: str, shape: tuple[int, ...]) -> pl.BlockSpec:
        """The block of the input or output with this name."""
        if of in WHOLE:
            return pl.BlockSpec(shape, lambda b, t: (ZERO, ZERO), pipeline_mode=pl.Buffered(1))
        if len(shape) == 2:
            return pl.BlockSpec((tiles.rows, shape[1]), lambda b, t: (b, ZERO))
        at_once = 1 if of == "flags" else tiles.steps
        return pl.BlockSpec((at_once, tiles.rows, shape[2]), lambda b, t: (last - t if backwards else t, b, ZERO))

    def body(of: Refs, to: Refs) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            for kept in (kept for kept, shape in outputs.items() if len(shape) == 2):
                to[kept][...] = jnp.zeros_like(to[kept]) if kept != held else of[begin][...]

        def trip(i: Array, state: Array) -> Array:
            return step({**of, **to}, tiles.steps - 1 - i if backwards else i, state)

        to[held][...] = lax.fori_loop(jnp.int32(0), jnp.int32(tiles.steps), trip, to[held][...])

    return pl.pallas_call(
        body,
        out_shape=shapes,
        grid=tiles.grid,
        in_specs=({of: block(of, a.shape) for of, a in inputs.items()},),
        out_specs={to: block(to, shape) for to, shape in outputs.items()},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM),
        name=name,
    )(inputs)


def steering_of(control: Control, tiles: Tiles) -> dict[str, Array]:
    """Returns the inputs that control each step. `control.reset` must have been converted by `resets_read`.

    flags (blocks of steps, B, steps) are 0 where a step is not valid, 2 where it resets the state, and 1 otherwise. The
    steps are along the lanes, because in an array (T, B, 1) each flag would occupy all 128 of them.
    """
    of_state = {"state_mask": control.state_mask, "hold": control.hold}
    inputs = {name: filled(a, 1, tiles) for name, a in of_state.items() if a is not None}
    n_blocks = tiles.grid[1]
    rest = n_blocks * tiles.steps - tiles.n_steps
    if control.valid is None and control.reset is None and not rest:
        return inputs
    flags = jnp.ones((tiles.n_steps, tiles.n_rows), jnp.float32)
    flags = flags if control.reset is None else flags + control.reset.astype(jnp.float32)
    flags = flags if control.valid is None else jnp.where(control.valid, flags, 0)
    flags = jnp.pad(flags, ((0, rest), (0, 0))).reshape(n_blocks, tiles.steps, tiles.n_rows)
    return inputs | {"flags": flags.swapaxes(1, 2)}


def steering_at(refs: Refs, t: Array) -> Control:
    """The control of one step of a block: valid and reset (rows, 1), state_mask and hold (rows, units)."""
    state_mask = refs["state_mask"][...] if "state_mask" in refs else None
    hold = refs["hold"][t] if "hold" in refs else None
    if "flags" not in refs:
        return Control(state_mask=state_mask, hold=hold)
    flags = refs["flags"][0]
    flag = jnp.where(lax.broadcasted_iota(jnp.int32, flags.shape, 1) == t, flags, 0).sum(-1, keepdims=True)
    return Control(flag > 0.5, flag > 1.5, state_mask=state_mask, hold=hold)


def filled(a: Array, n_parts: int, tiles: Tiles) -> Array:
    """Pads each of the `n_parts` parts of the last axis with zeros to `tiles.units`."""
    parts = a.reshape(*a.shape[:-1], n_parts, a.shape[-1] // n_parts)
    rest = tiles.units - parts.shape[-1]
    return jnp.pad(parts, [(0, 0)] * a.ndim + [(0, rest)]).reshape(*a.shape[:-1], n_parts * tiles.units)


def cut(a: Array, hidden_size: int, tiles: Tiles) -> Array:
    """The inverse of `filled`."""
    n_parts = a.shape[-1] // tiles.units
    parts = a.reshape(*a.shape[:-1], n_parts, tiles.units)
    return parts[..., :hidden_size].reshape(*a.shape[:-1], n_parts * hidden_size)


def times(a: Array, w: Array, spec: GRUSpec) -> Array:
    """a (rows, K) times w (K, N), inside the loop: operands in the dtype of w, the sum in float32."""
    numbers = (((1,), (0,)), ((), ()))
    precision = precision_of(spec, w.dtype)
    return lax.dot_general(a.astype(w.dtype), w, numbers, precision=precision, preferred_element_type=jnp.float32)
