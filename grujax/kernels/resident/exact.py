"""Both loops in exact float32, without tensor cores: the weights stay in registers, with one batch row per block.

A product is a multiplication and a sum along each row of the weights. The limit is 128 hidden units: the 3 · 64 · 128
floats of a warpgroup occupy 192 registers per thread. With one or two rows per multiprocessor this is faster than the
tensor cores, whose operands must go through shared memory in tiles of at least eight rows.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from grujax.kernels.resident.mosaic import (
    ACCUMULATED,
    Coefficients,
    Place,
    as_type,
    coefficients,
    is_valid,
    launch,
    load,
    loop,
    new_state,
    plgpu,
    resets_next,
    store,
    where_valid,
    zeros_like,
)
from grujax.kernels.resident.plan import UNITS, Plan
from grujax.types import Array

ROW, COLUMN = ACCUMULATED.reduce(1), ACCUMULATED.reduce(0)


class Vectors:
    """Shared parts of both loops: loading vectors, products with the weights, and loading the arrays of a step."""

    def __init__(self, plan: Plan, given: dict[str, Any], n_steps: int, hidden_size: int) -> None:
        self.place, self.given, self.hidden_size = Place(plan, n_steps, hidden_size), given, hidden_size

    def row(self, ref: Any) -> Array:
        return load(ref, ROW)

    def of_row(self, name: str) -> Array | None:
        """The vector (64,) of this warpgroup in an array (D, B, H)."""
        ref = self.given[name]
        return None if ref is None else self.row(ref.at[self.place.d, self.place.rows, self.place.units])

    def weight(self, ref: Any) -> Array:
        return load(ref, ACCUMULATED).astype(jnp.float32)

    def times(self, weight: Array, vector: Any) -> Array:
        along = lax.broadcast_in_dim(load(vector, COLUMN), (UNITS, self.hidden_size), [1])
        return (weight * along).sum(1)

    def of_step(self, names: Sequence[tuple[str, Any, bool | None]], step: Any) -> tuple[list[Array], Array | None]:
        """Returns vectors (64,) of a step, and its flags."""
        place, vectors = self.place, []
        for name, columns, time_major in names:
            by_direction = [self.row(place.at(ref, step, columns, time_major)) for ref in self.given[name]]
            vectors.append(place.select(by_direction))
        if self.given["flags"] is None:
            return vectors, None
        return vectors, lax.broadcast(self.given["flags"][place.d, place.time_of(step), place.rows], (UNITS,))


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
    """See `grujax.kernels.resident.forward.forward`."""
    D, B, H = h0.shape
    T = x[0].shape[0 if plan.time_major else 1]
    n_out = 5 if saved else 1

    def body(given: dict[str, Any], *outputs: Any, operand: Any, here: Any) -> None:
        hs, h_last, kept = outputs[:D], outputs[D], outputs[D + 1 :]
        vectors = Vectors(plan, given, T, H)
        place = vectors.place

        def fetch(step: Any) -> tuple[list[Array], Array | None]:
            return vectors.of_step([("x", place.of_gate(g), None) for g in range(3)], jnp.minimum(step, T - 1))

        weights = [vectors.weight(given["w"].at[place.d, g, place.units]) for g in range(3)]
        biases = [vectors.row(given["bias"].at[place.d, g, place.units]) for g in range(4)]
        h_reset = 0.0 if given["h_reset"] is None else vectors.row(given["h_reset"].at[place.d, place.units])
        mask = vectors.of_row("mask")

        def publish(step: Any, h: Array) -> None:
            store(operand.at[lax.rem(step, jnp.int32(2)), place.units], h if mask is None else mask * h)
            plgpu.barrier_arrive(here)

        def emit(step: Any, values: Sequence[Array]) -> None:
            def of(d: int) -> None:
                store(place.at(hs[d], step, place.units), values[0])
                for g, value in enumerate(values[1:]):
                    store(place.at(kept[d], step, place.of_gate(g), time_major=True), value)

            place.of_direction(of)

        h = vectors.of_row("h0")
        assert h is not None
        publish(jnp.int32(0), h)

        def one_step(t: Any, carry: tuple) -> tuple:
            h, before, ((of_input, flags), *soon), weights = carry
            plgpu.barrier_wait(here)
            pl.when(t > 0)(lambda: emit(t - 1, before))
            soon.append(fetch(t + plan.stages))
            of_state = [vectors.times(weight, operand.at[lax.rem(t, jnp.int32(2))]) for weight in weights]
            new, *values = new_state(h, of_input, of_state, biases, keep)
            emitted, h_next = [new, *values][:n_out], new
            if flags is not None:
                emitted = [jnp.where(is_valid(flags), a, 0.0) for a in emitted]
                h_next = jnp.where(resets_next(flags), h_reset, jnp.where(is_valid(flags), new, h))
            publish(t + 1, h_next)
            return h_next, emitted, soon, weights

        soon = [fetch(jnp.int32(i)) for i in range(plan.stages)]
        h, before, *_ = loop(T, one_step, (h, [jnp.zeros_like(h)] * n_out, soon, weights))
        plgpu.barrier_wait(here)
        emit(jnp.int32(T - 1), before)
        store(h_last.at[place.d, place.rows, place.units], h)

    warpgroups, over = H // UNITS, (T, B) if plan.time_major else (B, T)
    scratch = {"operand": plgpu.SMEM((2, H), jnp.float32), "here": plgpu.Barrier(num_arrivals=warpgroups)}
    out = [as_type((*over, H))] * D + [as_type((D, B, H))] + [as_type((T, B, 4 * H))] * D * saved
    given = {"x": list(x), "h0": h0, "w": w, "bias": bias, "flags": flags, "h_reset": h_reset, "mask": mask}
    return launch(body, out, scratch, plan, (D, B, warpgroups))(given)


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
    """See `grujax.kernels.resident.backward.backward`."""
    D, B, H = dh_last.shape
    T = saved[0].shape[0]

    def body(given: dict[str, Any], *outputs: Any, operand: Any, here: Any) -> None:
        d_gates, of_states = outputs[:D], outputs[D:]
        vectors = Vectors(plan, given, T, H)
        place = vectors.place

        def fetch(i: Any) -> tuple[list[Array], Array | None]:
            names = [("saved", place.of_gate(g), True) for g in range(4)]
            names += [("hs", place.units, None), ("dhs", place.units, None)]
            return vectors.of_step(names, jnp.maximum(T - 1 - i, 0))

        def read(fetched: tuple[list[Array], Array | None]) -> tuple[Coefficients, Array, Array | None]:
            (r, z, n, m, h, dh), flags = fetched
            return *where_valid(flags, coefficients(r, z, n, m, h, keep), dh), flags

        chunks = [pl.ds(g * H, H) for g in range(3)]
        weights = [vectors.weight(given["w"].at[place.d, place.units, chunk]) for chunk in chunks]
        mask = vectors.of_row("mask")

        def emit(step: Any, values: Sequence[Array]) -> None:
            def of(d: int) -> None:
                for g, value in enumerate(values):
                    store(place.at(d_gates[d], step, place.of_gate(g)), value.astype(w.dtype))

            place.of_direction(of)

        def trip(i: Any, carry: tuple) -> tuple:
            dh, d_reset, (a, dhs, _), (following, *soon), weights = carry
            buffer = lax.rem(i, jnp.int32(2))
            d_state = dh + dhs
            d_r, d_z, d_n, d_m = (a_g * d_state for a_g in a[1:])
            for g, value in enumerate((d_r, d_z, d_m)):
                store(operand.at[buffer, place.of_gate(g)], value)
            plgpu.barrier_arrive(here)
            emit(T - 1 - i, [d_r, d_z, d_n, d_m])
            ahead = read(following)
            soon.append(fetch(i + 1 + plan.stages))
            plgpu.barrier_wait(here)
            through = sum(vectors.times(w, operand.at[buffer, chunk]) for w, chunk in zip(weights, chunks, strict=True))
            dh = a.keep * d_state + (through if mask is None else mask * through)
            if (flags := ahead[2]) is not None:
                fresh = resets_next(flags) & lax.broadcast(i + 1 < T, (UNITS,))
                d_reset, dh = d_reset + jnp.where(fresh, dh, 0.0), jnp.where(fresh, 0.0, dh)
            return dh, d_reset, ahead, soon, weights

        dh = vectors.of_row("dh_last")
        assert dh is not None
        d_reset = None if given["flags"] is None else zeros_like(dh, ROW)
        soon = [fetch(jnp.int32(i + 1)) for i in range(plan.stages)]
        carry = (dh, d_reset, read(fetch(jnp.int32(0))), soon, weights)
        dh, d_reset, *_ = loop(T, trip, carry)
        for ref, value in zip(of_states, (dh, d_reset), strict=False):
            store(ref.at[place.d, place.rows, place.units], value)

    warpgroups, over = H // UNITS, (T, B) if plan.time_major else (B, T)
    scratch = {"operand": plgpu.SMEM((2, 3 * H), jnp.float32), "here": plgpu.Barrier(num_arrivals=warpgroups)}
    out = [as_type((*over, 4 * H), w.dtype)] * D + [as_type((D, B, H))] * (1 if flags is None else 2)
    given = {
        "saved": list(saved),
        "hs": list(hs),
        "dhs": list(dhs),
        "dh_last": dh_last,
        "w": w,
        "flags": flags,
        "mask": mask,
    }
    return launch(body, out, scratch, plan, (D, B, warpgroups))(given)
