"""The calls of the C++ handlers, from flat arrays to flat arrays."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grujax.kernels.calls.arrays import MOVED, Call, Given, N, by_direction, forward_shapes, or_empty
from grujax.kernels.calls.plain import plain_tangent
from grujax.kernels.derivative import Source, Values
from grujax.kernels.order import resets_read
from grujax.types import Array, Control, GRUSpec, State, States, state_dtype


def _called(target: str, arrays: Sequence[Array], outputs: Sequence[Any], call: Call) -> list[Array]:
    options = {
        "directions": np.int64(len(call.reverse)),
        "reverse": np.int64(sum(1 << d for d, backwards in enumerate(call.reverse) if backwards)),
        "time_major": call.time_major,
        "reset_after": call.spec.reset_after,
        "keep": call.spec.update == "keep",
        "with_saved": call.saved,
    }
    return list(jax.ffi.ffi_call(target, [jax.ShapeDtypeStruct(*of) for of in outputs])(*arrays, **options))


def _with_resets_read(arrays: Sequence[Array], call: Call) -> list[Array]:
    """All directions' `Given`, `reset` as the direction reads it."""
    every = []
    for backwards, of in zip(call.reverse, by_direction(arrays, N), strict=True):
        of = Given(*of)
        valid, reset = (None if a.shape == (0,) else a for a in (of.valid, of.reset))
        every += of._replace(reset=or_empty(resets_read(reset, valid, backwards), bool))
    return every


def native_forward(*arrays: Array, call: Call) -> list[Array]:
    return _called("grujax_forward", _with_resets_read(arrays, call), forward_shapes(arrays, call), call)


def _linear_loop(
    values: Values,
    source: Source,
    dh0: State,
    w_hh: Array,
    control: Control,
    dh_reset: Array | None,
    spec: GRUSpec,
) -> tuple[State, States]:
    """`grujax.kernels.derivative.linear_scan`."""
    h, r, z, n, m, _ = values
    gates = jnp.concatenate(
        [r, z, n, r if m is None else m], axis=-1
    )  # forward, with reset_after, XLA finds what they were cut from
    valid, reset, _, state_mask, hold = control
    dtype = state_dtype(w_hh.dtype)
    products, s_n, dh_reset, state_mask, hold = (or_empty(a, dtype) for a in (*source, dh_reset, state_mask, hold))
    flags = or_empty(valid, bool), or_empty(reset, bool)
    arrays = [h, dh0, products, w_hh, s_n, gates, dh_reset, *flags, state_mask, hold]
    call = Call(spec, reverse=(False,), time_major=True, saved=False, kernel="native")
    dhs, dh_last = _called("grujax_tangent", arrays, [(h.shape, dtype), (dh0.shape, dtype)], call)
    return dh_last, dhs


native_tangent = partial(plain_tangent, loop=_linear_loop)


def native_transpose(*arrays: Array, call: Call) -> list[Array]:
    """The gradients of the first `MOVED` arrays of each direction, from `Given`, hs, saved, dhs and dh_last of each."""
    D = len(call.reverse)
    primals, others = arrays[: D * N], by_direction(arrays[D * N :], D)
    by_rows = zip(by_direction(_with_resets_read(primals, call), N), *others, strict=True)
    inputs = [a for of, *more in by_rows for a in (*of, *more)]
    outputs = []
    for of in (Given(*arrays) for arrays in by_direction(primals, N)):
        wide, columns = of.h0.dtype, (of.w_hh.shape[1],)
        dx = (of.x.shape if call.dx else (0,), of.x.dtype)
        outputs += [dx, (of.h0.shape, wide), (of.w_ih.shape, wide), (of.w_hh.shape, wide)]
        outputs += [(columns, wide), (columns, wide), ((of.w_hh.shape[0],), wide)]
    gradients = _called("grujax_backward", inputs, outputs, call)
    moved = [a for of in by_direction(primals, N) for a in of[:MOVED]]
    return [
        gradient.astype(a.dtype) if a.shape == gradient.shape else jnp.zeros(a.shape, a.dtype)
        for gradient, a in zip(gradients, moved, strict=True)
    ]
