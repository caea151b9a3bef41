"""The forward loop on the tensor cores: all steps of a tile of rows in one launch, with resident weights.

The operands are swapped: gates^T (units, rows) = W (units, k) h^T (k, rows). A warpgroup computes 64 units of all three
gates, so r, z and n of a unit are in the same thread. The batch is the N of wgmma, which may be as small as 8, and not
its M, which is always 64. Arrays stay in the axis order of the caller, (B, T, ·) or (T, B, ·): tiles are transposed
when they are loaded into registers.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from grujax.kernels.resident.exchange import (
    Ring,
    exchange_of,
    exchange_scratch,
    over_chunks,
    ring_scratch,
    round_type,
    side_by_side,
)
from grujax.kernels.resident.mosaic import (
    ACCUMULATED,
    OF_UNITS,
    TILE,
    Place,
    as_type,
    is_valid,
    launch,
    load,
    loop,
    new_state,
    plgpu,
    resets_next,
    resident,
    store,
    tiled,
    transposed,
)
from grujax.kernels.resident.plan import UNITS, Plan
from grujax.types import Array


def forward(
    x: Sequence[Array],
    h0: Array,
    w: Array,
    bias: Array,
    flags: Array | None,
    h_reset: Array | None,
    mask: Array | None,
    *,
    plan: Plan,
    keep: bool,
    saved: bool,
) -> list[Array]:
    """Runs the loop over all steps.

    Args:
      x: the input's part of the gates of each direction, (B, T, 3H) or (T, B, 3H), float32.
      h0: (D, B, H), the states that enter the first step that is read.
      w: (D, 3, H, H) with axes direction, gate, unit, k; in the dtype of the products.
      bias: (D, 4, H), the biases of r, z, n and m.
      flags: (D, T, B) float32, see `VALID`.
      h_reset: (D, H).
      mask: (D, B, H), multiplies the state that the products read.
      keep: update="keep".

    Returns:
      hs of each direction; h_last (D, B, H); where `saved`, r, z, n and m side by side (T, B, 4H) of each direction.
      All in float32.
    """
    D, B, H = h0.shape
    T = x[0].shape[0 if plan.time_major else 1]
    warpgroups, interpret = H // plan.blocks // UNITS, plan.interpret
    n_out = 5 if saved else 1

    def body(given: dict[str, Any], *outputs: Any, weights: Any, ready: Any, out: Any, **scratch: Any) -> None:
        hs, h_last, kept, round_ = outputs[:D], outputs[D], outputs[D + 1 : -1], outputs[-1]
        place = Place(plan, T, H)

        def over_rows(of_units: Any) -> Array:
            return lax.broadcast_in_dim(load(of_units, OF_UNITS), (UNITS, plan.rows), [0])

        def tiles(step: Any, d: int) -> list[Any]:
            return [place.at(given["x"][d], step, place.of_gate(g)) for g in range(3)]

        ring = Ring(place, tiles, given["flags"], scratch["ring"])
        exchange = exchange_of(place, scratch["exchange"], round_)
        of_gates = [given["w"].at[place.d, g, place.units] for g in range(3)]
        for i, of_gate in enumerate(of_gates[plan.in_registers :]):
            plgpu.copy_gmem_to_smem(of_gate, weights.at[place.wg, i], ready.at[place.wg])
        for step in range(min(plan.stages - 1, T)):
            ring.fetch(jnp.int32(step), jnp.int32(step))
        biases = [over_rows(given["bias"].at[place.d, g, place.units]) for g in range(4)]
        h_reset = 0.0 if given["h_reset"] is None else over_rows(given["h_reset"].at[place.d, place.units])
        mask = given["mask"]
        if mask is not None:
            mask = load(transposed(mask.at[place.d, place.rows, place.units]), TILE)

        def publish(step: Any, h: Array) -> None:
            exchange.publish(step, [h if mask is None else mask * h])

        def of_out(buffer: Any, i: int) -> Any:
            return out.at[place.wg, buffer, pl.ds(i * plan.rows, plan.rows)]

        def emit(step: Any, values: Sequence[Array]) -> None:
            """Writes the results of a step by the copy engine, from one of the buffers."""
            buffer = lax.rem(step, jnp.int32(plan.buffers))
            plgpu.wait_smem_to_gmem(plan.buffers - 1)
            store(transposed(out.at[place.wg, buffer]), side_by_side(values))
            plgpu.commit_smem()

            def of(d: int) -> None:
                plgpu.copy_smem_to_gmem(of_out(buffer, 0), place.at(hs[d], step, place.units), commit_group=not saved)
                for i in range(n_out - 1):
                    to = place.at(kept[d], step, place.of_gate(i), time_major=True)
                    plgpu.copy_smem_to_gmem(of_out(buffer, i + 1), to, commit_group=i == 3)

            place.of_direction(of)

        def weight(in_registers: Any, g: int, k: Any) -> Any:
            if g < plan.in_registers:
                return in_registers[g][k]
            return weights.at[place.wg, g - plan.in_registers, :, pl.ds(k * UNITS, UNITS)]

        h = load(transposed(given["h0"].at[place.d, place.rows, place.units]), TILE)
        publish(jnp.int32(0), h)
        chunks = [pl.ds(k * UNITS, UNITS) for k in range(H // UNITS)]
        kept_here = of_gates[: plan.in_registers]
        in_registers = [[load(ref.at[:, chunk], ACCUMULATED) for chunk in chunks] for ref in kept_here]
        if plan.in_registers < 3:
            plgpu.barrier_wait(ready.at[place.wg])

        def one_step(t: Any, carry: tuple) -> tuple:
            h, before, in_registers = carry
            exchange.collect(t)

            def products(*sums: Any) -> tuple:
                def product(g: int, k: Any) -> None:
                    plgpu.wgmma(sums[g], weight(in_registers, g, k), exchange.chunk(t, 0, k))

                over_chunks(product, plan, H, w.dtype)
                # While the tensor cores are busy: all work that the next states do not depend on.
                pl.when(t > 0)(lambda: emit(t - 1, before))
                pl.when(t + plan.stages - 1 < T)(lambda: ring.fetch(t + plan.stages - 1, t + plan.stages - 1))
                found, flags = ring.read(t, t, 3)
                plgpu.wgmma_wait(0)
                return (
                    [total[...] if interpret else plgpu.layout_cast(total[...], TILE) for total in sums],
                    found,
                    flags,
                )

            of_state, of_input, flags = pl.run_scoped(products, *[plgpu.ACC((UNITS, plan.rows), jnp.float32)] * 3)
            exchange.release()
            new, *values = new_state(h, of_input, of_state, biases, keep)
            emitted, h = [new, *values][:n_out], new if flags is None else jnp.where(is_valid(flags), new, h)
            if flags is not None:
                emitted = [jnp.where(is_valid(flags), a, 0.0) for a in emitted]
                h_next = jnp.where(resets_next(flags), h_reset, h)
            else:
                h_next = h
            publish(t + 1, h_next)
            return h_next, emitted, in_registers

        h, before, _ = loop(T, one_step, (h, [jnp.zeros_like(h)] * n_out, in_registers))
        exchange.collect(jnp.int32(T))
        exchange.release()
        exchange.end()
        emit(jnp.int32(T - 1), before)
        store(transposed(h_last.at[place.d, place.rows, place.units]), h)
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        "exchange": exchange_scratch(plan, warpgroups, 1, H, w.dtype),
        "ring": ring_scratch(plan, warpgroups, 3, flags is not None),
        "weights": resident((warpgroups, 3 - plan.in_registers, UNITS, H), w.dtype),
        "ready": plgpu.Barrier(num_arrivals=max(1, 3 - plan.in_registers), num_barriers=warpgroups),
        "out": tiled((warpgroups, plan.buffers, n_out * plan.rows, UNITS), jnp.float32),
    }
    over = (T, B) if plan.time_major else (B, T)
    out = [as_type((*over, H))] * D + [as_type((D, B, H))] + [as_type((T, B, 4 * H))] * D * saved
    out.append(round_type(plan, 1, B, H, w.dtype))
    given = {"x": list(x), "h0": h0, "w": w, "bias": bias, "flags": flags, "h_reset": h_reset, "mask": mask}
    return launch(body, out, scratch, plan, (D, B // plan.rows, warpgroups))(given)[:-1]
