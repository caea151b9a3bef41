"""The derivative rule of a kernel call: a tangent linear in the tangents of the arguments, which JAX transposes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from grujax.kernels.calls.arrays import MOVED, Call, N, by_direction
from grujax.kernels.calls.chunks import chunks_serve, in_chunks
from grujax.kernels.calls.plain import plain_forward
from grujax.kernels.calls.primitives import forward_p, tangent_p
from grujax.types import Array


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def under_primitives(arrays: Sequence[Array], call: Call) -> list[Array]:
    """hs and h_last of each direction, and its gates where `call.saved`."""
    return forward_p.bind(*arrays, call=call)


@partial(under_primitives.defjvp, symbolic_zeros=True)
def _rule(call: Call, primals: tuple[list[Array]], tangents: tuple[list[Any]]) -> tuple[list[Array], list[Array]]:
    (arrays,), (moved,) = primals, tangents
    d_arrays = [jnp.zeros_like(a) if isinstance(t, SymbolicZero) else t for a, t in zip(arrays, moved, strict=True)]
    if chunks_serve(arrays, call):
        kernel = partial(under_primitives, call=call._replace(chunk=None))
        return jax.jvp(lambda *arrays: in_chunks(kernel, arrays, call), arrays, _as_jvp_takes(d_arrays))
    saving = call._replace(saved=True)
    outputs = forward_p.bind(*arrays, call=saving)
    tangents_or_empty = [
        jnp.zeros_like(a, shape=(0,)) if isinstance(t, SymbolicZero) else t for a, t in zip(arrays, moved, strict=True)
    ]
    d_moved = [t for direction in by_direction(tangents_or_empty, N) for t in direction[:MOVED]]
    d_outputs = tangent_p.bind(*arrays, *outputs[::3], *outputs[2::3], *d_moved, call=saving)
    every, d_every = [], []
    for (hs, h_last, saved), (dhs, dh_last) in zip(by_direction(outputs, 3), by_direction(d_outputs, 2), strict=True):
        every += [hs, h_last, saved][: call.outputs]
        d_every += [dhs, dh_last, saved][: call.outputs]
    if call.saved:  # plain JAX: the derivative of the gates themselves is rarely needed
        d_every[2::3] = jax.jvp(partial(plain_forward, call=call), arrays, _as_jvp_takes(d_arrays))[1][2::3]
    return every, d_every


def _as_jvp_takes(tangents: Sequence[Array]) -> list[Any]:
    return [t if jnp.issubdtype(t.dtype, jnp.floating) else np.zeros(t.shape, jax.dtypes.float0) for t in tangents]
