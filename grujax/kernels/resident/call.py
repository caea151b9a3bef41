"""Calls the GPU kernels with the flat arrays of a call. XLA computes the products before and after the loop."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from grujax.kernels.calls.arrays import MOVED, Call, Given, N, by_direction
from grujax.kernels.calls.plain import plain_forward, plain_transpose
from grujax.kernels.order import held, resets_read
from grujax.kernels.products import dot
from grujax.kernels.resident import backward, exact, forward
from grujax.kernels.resident.mosaic import RESET_NEXT, VALID
from grujax.kernels.resident.plan import BACKWARD, FORWARD, SAVING, Plan, Sides, padded, plan
from grujax.types import Array


class Ways(NamedTuple):
    """The directions of a call, as the kernels take them: hidden units and rows padded, D as the first axis."""

    every: list[Given]
    h0: Array  # (D, B, H), the state that enters the first step that is read: h_reset where that step resets
    flags: Array | None  # (D, T, B)
    h_reset: Array | None  # (D, H)
    mask: Array | None  # (D, B, H)
    first: list[Array | None]  # (B,), where the first step that is read resets
    plan: Plan
    sizes: tuple[int, int, int]  # B, H and the padded H


def resident_forward(*arrays: Array, call: Call, interpret: bool = False) -> list[Array]:
    """See `grujax.kernels.calls.plain.plain_forward`."""
    if any(x.size == 0 for x, *_ in by_direction(arrays, N)):
        return plain_forward(*arrays, call=call)
    ways = _ways(arrays, call, SAVING if call.saved else FORWARD, interpret)
    B, H, wide = ways.sizes
    x = [_gates(of, call, ways) for of in ways.every]
    w = jnp.stack([_by_gate(of.w_hh, H, wide) for of in ways.every])  # (D, k, 3, unit)
    w = jnp.pad(w, [(0, 0), (0, wide - H), (0, 0), (0, 0)]).transpose(0, 2, 3, 1)
    kernel = exact if ways.plan.rows == 1 else forward
    results = kernel.forward(
        x,
        ways.h0,
        w,
        jnp.stack([_bias(of, H, wide) for of in ways.every]),
        ways.flags,
        ways.h_reset,
        ways.mask,
        plan=ways.plan,
        keep=call.spec.update == "keep",
        saved=call.saved,
    )
    D = len(call.reverse)
    hs, h_last, saved = results[:D], results[D], results[D + 1 :]
    outputs = []
    for d in range(D):
        outputs += [_rows_of(hs[d], B, 1 if call.time_major else 0)[..., :H], h_last[d, :B, :H]]
        if call.saved:
            gates = _rows_of(saved[d], B, 1)
            outputs.append(gates if wide == H else _by_gate(gates, wide, H, 4).reshape(*gates.shape[:2], 4 * H))
    return outputs


def resident_transpose(*arrays: Array, call: Call, interpret: bool = False) -> list[Array]:
    """See `grujax.kernels.calls.plain.plain_transpose`."""
    D = len(call.reverse)
    primals, others = arrays[: D * N], by_direction(arrays[D * N :], D)
    if any(x.size == 0 for x, *_ in by_direction(primals, N)):
        return plain_transpose(*arrays, call=call)
    hs, saved, dhs, dh_last = others
    ways = _ways(primals, call, BACKWARD, interpret)
    B, H, wide = ways.sizes
    at = 1 if call.time_major else 0
    w = jnp.stack([_by_gate(of.w_hh, H, wide).reshape(H, 3 * wide) for of in ways.every])
    w = jnp.pad(w, [(0, 0), (0, wide - H), (0, 0)])
    kernel = exact if ways.plan.rows == 1 else backward
    rows = ways.h0.shape[1]

    def filled(a: Array, axis: int) -> Array:
        return _fill(_fill(a, axis, rows), a.ndim - 1, wide)

    results = kernel.backward(
        [_fill(_by_gate(a, H, wide, 4).reshape(*a.shape[:2], 4 * wide), 1, rows) for a in saved],
        [filled(a, at) for a in hs],
        [filled(a, at) for a in dhs],
        jnp.stack([filled(a, 0) for a in dh_last]),
        w,
        ways.flags,
        ways.mask,
        plan=ways.plan,
        keep=call.spec.update == "keep",
    )
    gradients = []
    for d, of in enumerate(ways.every):
        d_gates = _by_gate(_rows_of(results[d], B, at), wide, H, 4)
        dh0, *dh_reset = (a[d, :B, :H] for a in results[D:])
        moved = _gradients(of, call, d, hs[d], d_gates.reshape(*d_gates.shape[:2], 4 * H))
        begun = ways.first[d]
        of_fresh = dh_reset[0] if dh_reset else jnp.zeros_like(dh0)
        if begun is not None:
            of_fresh, dh0 = of_fresh + jnp.where(begun[:, None], dh0, 0), jnp.where(begun[:, None], 0, dh0)
        moved = moved._replace(h0=dh0, h_reset=of_fresh.sum(0))
        for a, gradient in zip(of[:MOVED], moved[:MOVED], strict=True):
            gradients.append(gradient.astype(a.dtype) if a.shape == gradient.shape else jnp.zeros(a.shape, a.dtype))
    return gradients


def _gradients(of: Given, call: Call, d: int, hs: Array, d_gates: Array) -> Given:
    """The gradients of x, the weights and the biases of a direction.

    d_gates (..., 4H): the gradients of the arguments of r, z and n, and of m. It is not cut even where only three of
    the four are needed: another copy costs more than a larger product.
    """
    wide, H, time_major = of.h0.dtype, of.h0.shape[1], call.time_major
    h = hs if time_major else hs.swapaxes(0, 1)
    valid, reset = None if of.valid.shape == (0,) else of.valid, _resets(of, call.reverse[d])
    if call.reverse[d]:
        h = jnp.flip(h, 0)
        valid, reset = (None if a is None else jnp.flip(a, 0) for a in (valid, reset))
    entering = jnp.concatenate([of.h0[None], held(h, of.h0, valid)])[:-1]
    if reset is not None:
        fresh = jnp.zeros_like(of.h0[0]) if of.h_reset.shape == (0,) else of.h_reset
        entering = jnp.where(reset[..., None], fresh, entering)
    if of.state_mask.shape != (0,):
        entering = entering * of.state_mask[None]
    entering = jnp.flip(entering, 0) if call.reverse[d] else entering
    entering = entering if time_major else entering.swapaxes(0, 1)

    def summed(a: Array, b: Array) -> Array:
        """a^T b (K, N), summed over steps and rows."""
        operands = (a.astype(of.w_hh.dtype).reshape(-1, a.shape[-1]), b.astype(of.w_hh.dtype).reshape(-1, b.shape[-1]))
        contracted = (((0,), (0,)), ((), ()))
        return lax.dot_general(*operands, contracted, precision=call.spec.precision, preferred_element_type=wide)

    def of_input(a: Array) -> Array:
        return a[..., : 3 * H]

    def of_state(a: Array) -> Array:
        return jnp.concatenate([a[..., : 2 * H], a[..., 3 * H :]], -1)

    bias = d_gates.sum((0, 1), dtype=wide)
    return Given(
        x=dot(d_gates, jnp.pad(of.w_ih, [(0, 0), (0, H)]).T, call.spec),
        h0=None,
        w_ih=of_input(summed(_sanitised(of, call), d_gates)),
        w_hh=of_state(summed(entering, d_gates)),
        b_ih=of_input(bias),
        b_hh=of_state(bias),
        h_reset=None,
        valid=None,
        reset=None,
        state_mask=None,
        hold=None,
    )


def _ways(arrays: Sequence[Array], call: Call, sides: Sides, interpret: bool) -> Ways:
    """Converts the flat arrays of a call to those of the kernels."""
    every = [Given(*of) for of in by_direction(arrays, N)]
    B, H = every[0].h0.shape
    wide, dtype = padded(H), every[0].w_hh.dtype
    chosen = plan(call.reverse, call.time_major, B, wide, dtype, call.spec.precision, sides, interpret)
    rows = -(-B // chosen.rows) * chosen.rows

    def filled(a: Array) -> Array:
        return _fill(_fill(a, 0, rows), 1, wide)

    n_steps = every[0].x.shape[0 if call.time_major else 1]
    read = [_resets(of, backwards) for of, backwards in zip(every, call.reverse, strict=True)]
    first = [None if r is None else r[-1 if backwards else 0] for r, backwards in zip(read, call.reverse, strict=True)]
    fresh = [jnp.zeros_like(of.h0[0]) if of.h_reset.shape == (0,) else of.h_reset for of in every]
    h0 = [
        of.h0 if begun is None else jnp.where(begun[:, None], h, of.h0)
        for of, begun, h in zip(every, first, fresh, strict=True)
    ]
    flags = mask = None
    if any(a.shape != (0,) for of in every for a in (of.valid, of.reset)):
        codes = []
        for of, resets, backwards in zip(every, read, call.reverse, strict=True):
            zero = jnp.zeros((n_steps, B), jnp.float32)
            code = zero + VALID if of.valid.shape == (0,) else jnp.where(of.valid, VALID, zero)
            if resets is not None:
                none = jnp.zeros_like(resets[:1])
                later = jnp.concatenate([none, resets[:-1]] if backwards else [resets[1:], none])
                code = code + jnp.where(later, RESET_NEXT, zero)
            codes.append(_fill(code, 1, rows))
        flags = jnp.stack(codes)
    if any(of.state_mask.shape != (0,) for of in every):
        masks = [jnp.ones_like(of.h0) if of.state_mask.shape == (0,) else of.state_mask for of in every]
        mask = jnp.stack([filled(a) for a in masks])
    h_reset = None if flags is None else jnp.stack([_fill(h, 0, wide) for h in fresh])
    return Ways(every, jnp.stack([filled(a) for a in h0]), flags, h_reset, mask, first, chosen, (B, H, wide))


def _resets(direction: Given, backwards: bool) -> Array | None:
    """See `resets_read`."""
    valid, reset = (None if a.shape == (0,) else a for a in (direction.valid, direction.reset))
    return resets_read(reset, valid, backwards)


def _sanitised(direction: Given, call: Call) -> Array:
    """x with 0 at steps that are not valid."""
    if direction.valid.shape == (0,):
        return direction.x
    return jnp.where((direction.valid if call.time_major else direction.valid.T)[..., None], direction.x, 0)


def _gates(direction: Given, call: Call, ways: Ways) -> Array:
    """The input's part of the gates, with rows and hidden units padded, in float32."""
    _, H, wide = ways.sizes
    x = _fill(_sanitised(direction, call), 1 if call.time_major else 0, ways.h0.shape[1])
    w = _by_gate(direction.w_ih, H, wide).reshape(direction.w_ih.shape[0], 3 * wide)
    return dot(x, w, call.spec)


def _bias(direction: Given, hidden_size: int, wide: int) -> Array:
    """The biases of r, z, n and m, (4, H)."""
    zeros = jnp.zeros(3 * hidden_size, jnp.float32)
    b_ih, b_hh = (zeros if b.shape == (0,) else b for b in (direction.b_ih, direction.b_hh))
    (r, z, n), (h_r, h_z, m) = jnp.split(b_ih, 3), jnp.split(b_hh, 3)
    return _fill(jnp.stack([r + h_r, z + h_z, n, m]), 1, wide)


def _by_gate(a: Array, size: int, new_size: int, gates: int = 3) -> Array:
    """(..., gates · size) -> (..., gates, new_size), padded with zeros or cut."""
    a = a.reshape(*a.shape[:-1], gates, size)
    return a[..., :new_size] if new_size <= size else _fill(a, a.ndim - 1, new_size)


def _fill(a: Array, axis: int, size: int) -> Array:
    """Pads the end of an axis with zeros to `size`."""
    if a.shape[axis] == size:
        return a
    return jnp.pad(a, [(0, size - n if i == axis else 0) for i, n in enumerate(a.shape)])


def _rows_of(a: Array, rows: int, axis: int) -> Array:
    """The first `rows` of an axis."""
    return lax.slice_in_dim(a, 0, rows, axis=axis)
