"""The transposed loop on the tensor cores: the only sequential part of the gradient, all steps in one launch.

    λ_t = dh_t + dhs_t        d_g = a_g ⊙ λ_t        dh_{t−1} = k ⊙ λ_t + Σ_g W_hg d_g

As in forward.py, with the rows of W (k, 3H) resident. The coefficients of the next step are computed while the tensor
cores are busy; weight gradients are products after the loop.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from grujax.kernels.resident.exchange import Exchange, Ring, exchange_scratch, over_chunks, ring_scratch, round_type
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
    nothing,
    plgpu,
    resets_next,
    store,
    tiled,
    turned,
    where_valid,
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
    """The gradients of the gates and of the initial states.

    saved: of each direction r, z, n, m side by side (T, B, 4H). hs, dhs: of each direction, as the caller has x.
    dh_last: (D, B, H). w: (D, H, 3H) in the dtype of the products. flags, mask: as `forward` takes them.

    Returns:
      Of each direction the gradients of W_ir x, W_iz x and W_in x side by side, (B, T, 3H) or (T, B, 3H); of each that
      of W_hn h, (B, T, H) or (T, B, H), all in the dtype of w; dh0 (D, B, H); with flags dh_reset of each row, alike.
    """
    D, B, H = dh_last.shape
    T = saved[0].shape[0]
    warpgroups, interpret = H // plan.blocks // UNITS, plan.interpret

    def body(given: dict[str, Any], *outputs: Any, weights: Any, ready: Any, out: Any, **scratch: Any) -> None:
        d_x, d_m, (*of_states, round_) = outputs[:D], outputs[D : 2 * D], outputs[2 * D :]
        place = Place(plan, T, H)

        def tiles(step: Any, d: int) -> list[Any]:
            of_gates = [place.at(given["saved"][d], step, place.of_gate(g), time_major=True) for g in range(4)]
            return [*of_gates, *(place.at(given[name][d], step, place.units) for name in ("hs", "dhs"))]

        ring = Ring(place, tiles, given["flags"], scratch["ring"])
        exchange = Exchange(place, scratch["operand"], round_, scratch["here"], scratch["copied"])
        if not plan.weights_in_registers:
            plgpu.copy_gmem_to_smem(given["w"].at[place.d, place.units], weights.at[place.wg], ready.at[place.wg])

        def step_of(i: Any) -> Any:
            """Of trip i; the one that is fetched after the last is not used."""
            return jnp.maximum(T - 1 - i, 0)

        for i in range(min(plan.stages, T + 1)):
            ring.fetch(step_of(jnp.int32(i)), jnp.int32(i))

        def read(i: Any) -> tuple[Coefficients, Array, Array | None]:
            (r, z, n, m, h, dh), flags = ring.read(step_of(i), i, 6)
            return *where_valid(flags, coefficients(r, z, n, m, h, keep), dh), flags

        def emit(i: Any, d_n: Array) -> None:
            """Out by the copy engine, three of the four from where the products read them."""
            buffer, step = lax.rem(i, jnp.int32(plan.buffers)), T - 1 - i
            store(turned(out.at[place.wg, buffer]), d_n.astype(out.dtype))
            plgpu.commit_smem()

            def of(d: int) -> None:
                for g in range(2):
                    to = place.at(d_x[d], step, place.of_gate(g))
                    plgpu.copy_smem_to_gmem(exchange.own(i, g), to, commit_group=False)
                plgpu.copy_smem_to_gmem(exchange.own(i, 2), place.at(d_m[d], step, place.units), commit_group=False)
                plgpu.copy_smem_to_gmem(out.at[place.wg, buffer], place.at(d_x[d], step, place.of_gate(2)))

            place.of_direction(of)

        def columns(g: int, k: Any) -> Any:
            return pl.ds(g * H + k * UNITS, UNITS)

        def weight(in_registers: Any, g: int, k: Any) -> Any:
            return in_registers[g][k] if in_registers else weights.at[place.wg, :, columns(g, k)]

        in_registers = ()
        if plan.weights_in_registers:
            of_units = given["w"].at[place.d, place.units]
            in_registers = [
                [load(of_units.at[:, columns(g, k)], ACCUMULATED) for k in range(H // UNITS)] for g in range(3)
            ]
        else:
            plgpu.barrier_wait(ready.at[place.wg])
        mask = None if given["mask"] is None else load(turned(given["mask"].at[place.d, place.rows, place.units]), TILE)

        def trip(i: Any, carry: tuple) -> tuple:
            dh, d_reset, (of, dhs, _), in_registers = carry
            of_state = dh + dhs
            plgpu.wait_smem_to_gmem(plan.buffers - 1)
            exchange.publish(i, [a * of_state for a in (of.r, of.z, of.m)])
            exchange.collect(i)

            def product(total: Any) -> tuple:
                def of_chunk(k: Any) -> None:
                    for g in range(3):
                        plgpu.wgmma(total, weight(in_registers, g, k), exchange.chunk(i, g, k))

                over_chunks(of_chunk, H, given["w"].dtype)
                emit(i, of.n * of_state)
                pl.when(i + plan.stages <= T)(lambda: ring.fetch(step_of(i + plan.stages), i + plan.stages))
                ahead = read(i + 1)
                plgpu.wgmma_wait(0)
                return total[...] if interpret else plgpu.layout_cast(total[...], TILE), ahead

            through, ahead = pl.run_scoped(product, plgpu.ACC((UNITS, plan.rows), jnp.float32))
            dh = of.keep * of_state + (through if mask is None else mask * through)
            if (flags := ahead[2]) is not None:  # where the state that entered this step was a fresh one
                fresh = resets_next(flags) & (i + 1 < T)
                d_reset, dh = d_reset + jnp.where(fresh, dh, 0.0), jnp.where(fresh, 0.0, dh)
            return dh, d_reset, ahead, in_registers

        dh = load(turned(given["dh_last"].at[place.d, place.rows, place.units]), TILE)
        d_reset = None if given["flags"] is None else jnp.zeros_like(dh)
        dh, d_reset, *_ = loop(T, trip, (dh, d_reset, read(jnp.int32(0)), in_registers))
        for ref, value in zip(of_states, (dh, d_reset), strict=False):
            store(turned(ref.at[place.d, place.rows, place.units]), value)
        plgpu.wait_smem_to_gmem(0)

    scratch = exchange_scratch(plan, warpgroups, 3, H, w.dtype) | {
        "ring": ring_scratch(plan, warpgroups, 6, flags is not None),
        "weights": nothing(w.dtype) if plan.weights_in_registers else tiled((warpgroups, UNITS, 3 * H), w.dtype),
        "ready": plgpu.Barrier(num_barriers=warpgroups),
        "out": tiled((warpgroups, plan.buffers, plan.rows, UNITS), w.dtype),
    }
    over = (T, B) if plan.time_major else (B, T)
    out = [as_type((*over, 3 * H), w.dtype)] * D + [as_type((*over, H), w.dtype)] * D
    out += [as_type((D, B, H))] * (1 if flags is None else 2)
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
