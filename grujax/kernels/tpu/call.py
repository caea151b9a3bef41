"""The functions of the TPU kernel that the primitives call: flat arrays in the order of `Given` in, flat arrays out."""

from collections.abc import Sequence

import jax.numpy as jnp

from grujax.kernels.calls.arrays import MOVED, Call, N, by_direction, recurrence_of
from grujax.kernels.order import as_read, resets_read
from grujax.kernels.tpu.backward import backward
from grujax.kernels.tpu.forward import forward
from grujax.kernels.tpu.limits import Tiles, tiles
from grujax.types import Array, Recurrence


def tpu_forward(*arrays: Array, call: Call) -> list[Array]:
    """Returns hs and h_last of each direction, and r | z | n | m (T, B, 4H) where `call.saved`.

    arrays: `Given` of each direction. hs has the axis order of x; the saved gates are time-major.
    """
    outputs = []
    for reverse, given in zip(call.reverse, by_direction(arrays, N), strict=True):
        recurrence, blocks = _read(given, reverse, call)
        result = forward(recurrence, reverse, call.saved, call.spec, blocks)
        outputs += [_reordered(result["hs"], call), result["h_last"], *([result["saved"]] if call.saved else [])]
    return outputs


def tpu_transpose(*arrays: Array, call: Call) -> list[Array]:
    """Returns the gradients of the first `MOVED` arrays of each direction.

    arrays: `Given` of each direction, then hs, the saved gates, dhs and dh_last of each.
    """
    n_directions = len(call.reverse)
    primals, others = arrays[: n_directions * N], by_direction(arrays[n_directions * N :], n_directions)
    gradients = []
    for reverse, given, hs, saved, dhs, dh_last in zip(call.reverse, by_direction(primals, N), *others, strict=True):
        recurrence, blocks = _read(given, reverse, call)
        outputs, cotangents = (_reordered(hs, call), saved), (_reordered(dhs, call), dh_last)
        result = backward(recurrence, outputs, cotangents, reverse, call.spec, blocks)
        w = result.weights
        every = (_reordered(result.x, call), result.h0, w.w_ih, w.w_hh, w.b_ih, w.b_hh, result.h_reset)
        gradients += [
            jnp.zeros_like(a) if d is None or a.shape == (0,) else d.astype(a.dtype)
            for a, d in zip(given[:MOVED], every, strict=True)
        ]
    return gradients


def _reordered(a: Array, call: Call) -> Array:
    """Converts (T, B, ·) to the axis order of the caller, and back."""
    return a if call.time_major else a.swapaxes(0, 1)


def _read(given: Sequence[Array], reverse: bool, call: Call) -> tuple[Recurrence, Tiles]:
    """Returns the recurrence as `forward` takes it, and its tiles."""
    original = recurrence_of(given)
    recurrence = as_read(original, False, call.time_major)
    reset = resets_read(original.control.reset, original.control.valid, reverse)
    n_steps, n_rows, _ = recurrence.x.shape
    w_hh = recurrence.weights.w_hh
    blocks = tiles(n_steps, n_rows, w_hh.shape[0], w_hh.dtype)
    return recurrence._replace(control=recurrence.control._replace(reset=reset)), blocks
