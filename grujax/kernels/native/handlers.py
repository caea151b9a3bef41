"""Calls the C++ handlers: flat arrays in, flat arrays out."""

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
    types = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs]
    return list(jax.ffi.ffi_call(target, types)(*arrays, **options))


def _with_resets_read(arrays: Sequence[Array], call: Call) -> list[Array]:
    """Returns the arrays of all directions with `reset` converted by `resets_read`."""
    converted = []
    for backwards, arrays_of_direction in zip(call.reverse, by_direction(arrays, N), strict=True):
        direction = Given(*arrays_of_direction)
        valid, reset = (None if a.shape == (0,) else a for a in (direction.valid, direction.reset))
        converted += direction._replace(reset=or_empty(resets_read(reset, valid, backwards), bool))
    return converted


def native_forward(*arrays: Array, call: Call) -> list[Array]:
    """See `grujax.kernels.calls.plain.plain_forward`."""
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
    """`grujax.kernels.derivative.linear_scan` in C++."""
    h, r, z, n, m, _ = values
    # With reset_after, XLA recognises in forward mode that the four were split from one array.
    gates = jnp.concatenate([r, z, n, r if m is None else m], axis=-1)
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
    for x, h0, w_ih, w_hh, *_ in by_direction(primals, N):
        wide, columns = h0.dtype, (w_hh.shape[1],)
        dx = (x.shape if call.dx else (0,), x.dtype)
        outputs += [dx, (h0.shape, wide), (w_ih.shape, wide), (w_hh.shape, wide)]
        outputs += [(columns, wide), (columns, wide), ((w_hh.shape[0],), wide)]
    gradients = _called("grujax_backward", inputs, outputs, call)
    moved = [a for direction in by_direction(primals, N) for a in direction[:MOVED]]
    return [
        gradient.astype(a.dtype) if a.shape == gradient.shape else jnp.zeros(a.shape, a.dtype)
        for gradient, a in zip(gradients, moved, strict=True)
    ]
