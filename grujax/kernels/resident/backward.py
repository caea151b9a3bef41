"""The transposed loop on the tensor cores: the only sequential part of the gradient, all steps in one launch.

    λ_t = dh_t + dhs_t        d_g = a_g ⊙ λ_t        dh_{t−1} = k ⊙ λ_t + Σ_g W_hg d_g

It works like forward.py, with the rows of W (k, 3H) resident. The coefficients of the next step are computed while the
tensor cores are busy. The weight gradients are products after the loop.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from grujax.kernels.resident.exchange import Ring, exchange_of, exchange_scratch, over_chunks, ring_scratch, round_type
from grujax.kernels.resident.mosaic import (
    ACCUMULATED,
    TILE,
    Coefficients,
    Place,
    as_type,
    coefficients,
    launch,
    load,
    loop,
    plgpu,
    resets_next,
    resident,
    store,
    tiled,
    transposed,
    where_valid,
    zeros_like,
)
from grujax.kernels.resident.plan import UNITS, Plan
from grujax.types import Array


def backward(
    saved: Sequence[Array],
    hs: Sequence[Array],
    dhs: Sequence[Array],
    dh_last: Array,
    w: Array,
    flags: Array | None,
    mask: Array | None,
    *,
    plan: Plan,
    keep: bool,
) -> list[Array]:
    """Computes the gradients of the gates and of the initial states.

    Args:
      saved: r, z, n and m side by side (T, B, 4H) for each direction.
      hs, dhs: for each direction, in the axis order of the caller's x.
      dh_last: (D, B, H).
      w: (D, H, 3H) in the dtype of the products.
      flags, mask, keep: as for `forward`.

    Returns:
      For each direction the gradients of the arguments of r, z and n, and of m, side by side, (B, T, 4H) or (T, B, 4H)
      in the dtype of w; dh0 (D, B, H); with flags also dh_reset for each row, (D, B, H).
    """
    D, B, H = dh_last.shape
    T = saved[0].shape[0]
    warpgroups, interpret = H // plan.blocks // UNITS, plan.interpret

    def body(given: dict[str, Any], *outputs: Any, weights: Any, ready: Any, out: Any, **scratch: Any) -> None:
        d_gates, (*of_states, round_) = outputs[:D], outputs[D:]
        place = Place(plan, T, H)

        def tiles(step: Any, d: int) -> list[Any]:
            of_gates = [place.at(given["saved"][d], step, place.of_gate(g), time_major=True) for g in range(4)]
            return [*of_gates, *(place.at(given[name][d], step, place.units) for name in ("hs", "dhs"))]

        ring = Ring(place, tiles, given["flags"], scratch["ring"])
        exchange = exchange_of(place, scratch["exchange"], round_)
        of_units = given["w"].at[place.d, place.units]
        if plan.in_registers < 3:
            rest = of_units.at[:, pl.ds(plan.in_registers * H, (3 - plan.in_registers) * H)]
            plgpu.copy_gmem_to_smem(rest, weights.at[place.wg], ready.at[place.wg])

        def step_of(i: Any) -> Any:
            """The step of trip i. A step is also fetched for the trip after the last; it is not used."""
            return jnp.maximum(T - 1 - i, 0)

        for i in range(min(plan.stages, T + 1)):
            ring.fetch(step_of(jnp.int32(i)), jnp.int32(i))

        def read(i: Any) -> tuple[Coefficients, Array, Array | None]:
            (r, z, n, m, h, dh), flags = ring.read(step_of(i), i, 6)
            return *where_valid(flags, coefficients(r, z, n, m, h, keep), dh), flags

        def emit(i: Any, d_n: Array) -> None:
            """Writes the gradients by the copy engine, three of the four directly from the operand of the products."""
            buffer, step = lax.rem(i, jnp.int32(plan.buffers)), T - 1 - i
            store(transposed(out.at[place.wg, buffer]), d_n.astype(out.dtype))
            plgpu.commit_smem()

            def of(d: int) -> None:
                for part, g in enumerate((0, 1, 3)):
                    to = place.at(d_gates[d], step, place.of_gate(g))
                    plgpu.copy_smem_to_gmem(exchange.own(i, part), to, commit_group=False)
                plgpu.copy_smem_to_gmem(out.at[place.wg, buffer], place.at(d_gates[d], step, place.of_gate(2)))

            place.of_direction(of)

        def columns(g: int, k: Any) -> Any:
            return pl.ds(g * H + k * UNITS, UNITS)

        def weight(in_registers: Any, g: int, k: Any) -> Any:
            if g < plan.in_registers:
                return in_registers[g][k]
            return weights.at[place.wg, :, columns(g - plan.in_registers, k)]

        in_registers = [
            [load(of_units.at[:, columns(g, k)], ACCUMULATED) for k in range(H // UNITS)]
            for g in range(plan.in_registers)
        ]
        if plan.in_registers < 3:
            plgpu.barrier_wait(ready.at[place.wg])
        mask = given["mask"]
        if mask is not None:
            mask = load(transposed(mask.at[place.d, place.rows, place.units]), TILE)

        def trip(i: Any, carry: tuple) -> tuple:
            dh, d_reset, (a, dhs, _), in_registers = carry
            d_state = dh + dhs
            plgpu.wait_smem_to_gmem(plan.buffers - 1)
            exchange.publish(i, [a_g * d_state for a_g in (a.r, a.z, a.m)])
            exchange.collect(i)

            def product(total: Any) -> tuple:
                def add_chunk(g: int, k: Any) -> None:
                    plgpu.wgmma(total, weight(in_registers, g, k), exchange.chunk(i, g, k))

                over_chunks(add_chunk, plan, H, w.dtype)
                emit(i, a.n * d_state)
                pl.when(i + plan.stages <= T)(lambda: ring.fetch(step_of(i + plan.stages), i + plan.stages))
                ahead = read(i + 1)
                plgpu.wgmma_wait(0)
                return total[...] if interpret else plgpu.layout_cast(total[...], TILE), ahead

            through, ahead = pl.run_scoped(product, plgpu.ACC((UNITS, plan.rows), jnp.float32))
            exchange.release()
            dh = a.keep * d_state + (through if mask is None else mask * through)
            if (flags := ahead[2]) is not None:  # where the state that entered this step was h_reset
                fresh = resets_next(flags) & (i + 1 < T)
                d_reset, dh = d_reset + jnp.where(fresh, dh, 0.0), jnp.where(fresh, 0.0, dh)
            return dh, d_reset, ahead, in_registers

        dh = load(transposed(given["dh_last"].at[place.d, place.rows, place.units]), TILE)
        d_reset = None if given["flags"] is None else zeros_like(dh, TILE)
        dh, d_reset, *_ = loop(T, trip, (dh, d_reset, read(jnp.int32(0)), in_registers))
        for ref, value in zip(of_states, (dh, d_reset), strict=False):
            store(transposed(ref.at[place.d, place.rows, place.units]), value)
        exchange.end()
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        "exchange": exchange_scratch(plan, warpgroups, 3, H, w.dtype),
        "ring": ring_scratch(plan, warpgroups, 6, flags is not None),
        "weights": resident((warpgroups, UNITS, (3 - plan.in_registers) * H), w.dtype),
        "ready": plgpu.Barrier(num_barriers=warpgroups),
        "out": tiled((warpgroups, plan.buffers, plan.rows, UNITS), w.dtype),
    }
    over = (T, B) if plan.time_major else (B, T)
    out = [as_type((*over, 4 * H), w.dtype)] * D + [as_type((D, B, H))] * (1 if flags is None else 2)
    out.append(round_type(plan, 3, B, H, w.dtype))
    given = {
        "saved": list(saved),
        "hs": list(hs),
        "dhs": list(dhs),
        "dh_last": dh_last,
        "w": w,
        "flags": flags,
        "mask": mask,
    }
    return launch(body, out, scratch, plan, (D, B // plan.rows, warpgroups))(given)[:-1]
