"""The kernel as primitives call it: flat arrays in, flat arrays out, in the order of `Given`."""

from collections.abc import Sequence

import jax.numpy as jnp

from grujax.kernels.calls.arrays import MOVED, Call, N, by_direction, recurrence_of
from grujax.kernels.order import as_read, resets_read
from grujax.kernels.tpu.backward import backward
from grujax.kernels.tpu.forward import forward
from grujax.kernels.tpu.limits import Tiles, tiles
from grujax.types import Array, Recurrence


def tpu_forward(*arrays: Array, call: Call) -> list[Array]:
    """hs, h_last and, where `call.saved`, r | z | n | m (T, B, 4H) of each direction.

    arrays: `Given` of each direction. hs lies as x does, what is saved is time-major.
    """
    outputs = []
    for reverse, given in zip(call.reverse, by_direction(arrays, N), strict=True):
        of, blocks = _read(given, reverse, call)
        found = forward(of, reverse, call.saved, call.spec, blocks)
        outputs += [_lie(found["hs"], call), found["h_last"], *([found["saved"]] if call.saved else [])]
    return outputs


def tpu_transpose(*arrays: Array, call: Call) -> list[Array]:
    """The gradients of the first `MOVED` arrays of each direction.

    arrays: `Given` of each direction, then hs, what was saved, dhs and dh_last of each.
    """
    n_directions = len(call.reverse)
    primals, others = arrays[: n_directions * N], by_direction(arrays[n_directions * N :], n_directions)
    gradients = []
    for reverse, given, hs, saved, dhs, dh_last in zip(call.reverse, by_direction(primals, N), *others, strict=True):
        of, blocks = _read(given, reverse, call)
        outputs, moved = (_lie(hs, call), saved), (_lie(dhs, call), dh_last)
        found = backward(of, outputs, moved, reverse, call.spec, blocks)
        w = found.weights
        every = (_lie(found.x, call), found.h0, w.w_ih, w.w_hh, w.b_ih, w.b_hh, found.h_reset)
        gradients += [
            jnp.zeros_like(a) if d is None or a.shape == (0,) else d.astype(a.dtype)
            for a, d in zip(given[:MOVED], every, strict=True)
        ]
    return gradients


def _lie(a: Array, call: Call) -> Array:
    """From (T, B, ·) to the order of axes of the caller, and back."""
    return a if call.time_major else a.swapaxes(0, 1)


def _read(given: Sequence[Array], reverse: bool, call: Call) -> tuple[Recurrence, Tiles]:
    """The recurrence in time order, x 0 where a step is not valid, `reset` as the direction reads it; and its tiles."""
    asked = recurrence_of(given)
    of = as_read(asked, False, call.time_major)
    reset = resets_read(asked.control.reset, asked.control.valid, reverse)
    n_steps, n_rows, _ = of.x.shape
    blocks = tiles(n_steps, n_rows, of.weights.w_hh.shape[0], of.weights.w_hh.dtype)
    return of._replace(control=of.control._replace(reset=reset)), blocks
