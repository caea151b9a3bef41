"""The three primitives of a call (forward, tangent, transpose) in plain JAX."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from grujax.kernels.calls.arrays import MOVED, Call, N, by_direction, recurrence_of
from grujax.kernels.derivative import LinearLoop, tangent
from grujax.kernels.order import as_read, held, in_time
from grujax.kernels.xla import program
from grujax.types import Array, Gates, Recurrence, Result


def plain_forward(*arrays: Array, call: Call) -> list[Array]:
    """hs and h_last of each direction, and r | z | n | m where `call.saved`."""
    recurrences = [recurrence_of(direction) for direction in by_direction(arrays, N)]
    options = {"reverse": call.reverse, "time_major": call.time_major}
    outputs = []
    for result in program(recurrences, call.spec, with_gates=call.saved, **options):
        outputs += [result.hs, result.h_last]
        if result.gates is not None:
            m = jnp.zeros_like(result.gates.r) if result.m is None else result.m
            outputs.append(jnp.concatenate([*result.gates, m], axis=-1))
    return outputs


def plain_tangent(*arrays: Array, call: Call, loop: LinearLoop | None = None) -> list[Array]:
    """dhs and dh_last of each direction, linear in the tangents.

    Args:
      arrays: `Given` of each direction; hs of each; the saved gates of each; then the tangents of the first `MOVED`
        arrays of each. A tangent of shape (0,) is zero.
      loop: see `grujax.kernels.derivative.tangent`.
    """
    D = len(call.reverse)
    primals, results, moved = arrays[: D * N], arrays[D * N : D * (N + 2)], arrays[D * (N + 2) :]
    rows = zip(
        call.reverse, by_direction(primals, N), results[:D], results[D:], by_direction(moved, MOVED), strict=True
    )
    outputs = []
    for backwards, of, hs, saved, d_of in rows:

        def read(moving: Sequence[Array], of=of, backwards=backwards) -> Recurrence:
            return as_read(recurrence_of([*moving, *of[MOVED:]]), backwards, call.time_major)

        full = [d if d.shape == a.shape else jnp.zeros_like(a) for a, d in zip(of, d_of, strict=False)]
        recurrence, d_read = jax.jvp(read, (list(of[:MOVED]),), (full,))
        # None means zero: products with it are skipped.
        given = recurrence_of([*d_of, *[jnp.zeros(0)] * (N - MOVED)])
        d_recurrence = jax.tree.map(lambda g, d: None if g is None else d, given, d_read, is_leaf=lambda g: g is None)
        valid = recurrence.control.valid
        hs = hs if call.time_major else hs.swapaxes(0, 1)
        hs, saved = (jnp.flip(a, 0) if backwards else a for a in (hs, saved))
        r, z, n, m = jnp.split(saved, 4, axis=-1)
        kept = Result(held(hs, recurrence.h0, valid), hs, Gates(r, z, n), m if call.spec.reset_after else None)
        dhs, dh_last = tangent(recurrence, d_recurrence, kept, call.spec, None, loop)
        done = in_time(Result(dhs, dh_last), valid, backwards, call.time_major)
        outputs += [done.hs, done.h_last]
    return outputs


def plain_transpose(*arrays: Array, call: Call) -> list[Array]:
    """The gradients of the first `MOVED` arrays of each direction, from `Given`, hs, saved, dhs and dh_last of each."""
    D = len(call.reverse)
    kept, cotangents = arrays[: D * (N + 2)], arrays[D * (N + 2) :]
    moved = [a for direction in by_direction(arrays[: D * N], N) for a in direction[:MOVED]]
    paired = [a for pair in zip(cotangents[:D], cotangents[D:], strict=True) for a in pair]
    return list(jax.linear_transpose(lambda *t: plain_tangent(*kept, *t, call=call), *moved)(paired))
