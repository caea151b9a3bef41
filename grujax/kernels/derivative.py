r"""The derivative rule of the recurrence, shared by all kernels.

Once the states are known, the tangent of the recurrence is a linear loop,

    dh_t = k ⊙ dh + a_z ⊙ d_z + a_n ⊙ (a_r ⊙ d_r + r ⊙ d_m + s_n)        with dh = dh_{t−1}
    d_r, d_z, d_m = dh W_hr + s_r, dh W_hz + s_z, dh W_hn + s_m

whose coefficients k and a, and sources s (the tangents of the input, the weights and the biases), need no loop. k is
the share of the old state in the new one: z, or 1 − z with update="take". The rule is a `custom_jvp` whose tangent is
that linear loop. JAX transposes it into the smallest backward loop: only dh is carried, and the weight gradients are
products after the loop. Forward mode, Jacobians and Hessian products use the same code.

The coefficients are computed from r, z, n and m, which the forward loop returns when it is differentiated. For
activations other than sigmoid and tanh, and where `Chunks` requires it, r, z, n and m are first recomputed from the
states, with the products of all steps of a chunk at once. This recomputation and the chunks are checkpointed: between
the passes only the input, the states and the gates that the loop returned are kept.

With reset_after=False the last term is a_n ⊙ ((a_r ⊙ d_r + r ⊙ dh) W_hn + s_n), because r multiplies h before W_hn. A
mask on the state that the products read also multiplies dh there. Holding a part of the state moves k towards 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from grujax.kernels.products import (
    add_bias,
    candidate_bias,
    dot,
    input_bias,
    input_products,
    split_gates,
    state_products,
)
from grujax.kernels.step import SLOPES, activate, step
from grujax.types import Array, Control, Gates, GRUSpec, Recurrence, Result, State, States

Loop = Callable[[Sequence[Recurrence], GRUSpec, bool], list[Result]]
"""A forward loop: (recurrences of the same shapes, spec, whether it returns gates) -> results."""


class Values(NamedTuple):
    """The values from which the coefficients are computed, (T, B, H) each; finite also at steps that are not valid."""

    h: States  # the state that enters each step
    r: Array
    z: Array
    n: Array
    m: Array | None  # W_hn h + b_hn, which r multiplies; None with reset_after=False
    slopes: tuple[Array, Array, Array] | None  # derivatives of the activations of r, z, n; None if `SLOPES` has them


Source = tuple[Array | None, Array | None]
LinearLoop = Callable[[Values, Source, State, Array, Control, Array | None, GRUSpec], tuple[State, States]]
"""The signature of `linear_scan`."""


class Chunks(NamedTuple):
    """How the derivative divides a sequence."""

    steps: int | None  # steps of a chunk; None: all
    kept: bool  # r, z, n and m are kept from the forward loop, not recomputed from the states


WHOLE = Chunks(None, kept=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 2, 3, 4))
def under_the_rule(
    loop: Loop, recurrences: Sequence[Recurrence], spec: GRUSpec, with_gates: bool, chunks: Chunks
) -> list[Result]:
    """Returns the results of a loop, differentiated by the rule of this module."""
    return loop(recurrences, spec, with_gates)


@partial(under_the_rule.defjvp, symbolic_zeros=True)
def _rule(loop, spec, with_gates, chunks, primals, tangents):
    moved = jax.tree.map(lambda t: None if isinstance(t, SymbolicZero) else t, tangents[0])
    kept = slopes_follow(spec) and (chunks.kept or with_gates)
    results = under_the_rule(loop, *primals, spec, with_gates or kept, chunks)
    outputs, d_outputs = [], []
    for recurrence, d_recurrence, result in zip(primals[0], moved, results, strict=True):
        plain = Result(result.hs, result.h_last)
        dhs, dh_last = tangent(recurrence, d_recurrence, result if kept else plain, spec, chunks.steps)
        outputs.append(result if with_gates else plain)
        d_gates, dm = gates_tangent(recurrence, d_recurrence, result.hs, dhs, spec) if with_gates else (None, None)
        d_outputs.append(Result(dhs, dh_last, d_gates, dm))
    return outputs, d_outputs


def slopes_follow(spec: GRUSpec) -> bool:
    """Whether the derivatives of the activations follow from r, z and n."""
    return all(activation in SLOPES for activation in (spec.activation, spec.gate_activation)) and spec.clip is None


def tangent(
    recurrence: Recurrence,
    moved: Recurrence,
    result: Result,
    spec: GRUSpec,
    chunk: int | None,
    loop: LinearLoop | None = None,
) -> tuple[States, State]:
    """Returns dhs (T, B, H) and dh_last (B, H), the tangents of the states.

    Args:
      recurrence, result: as a forward loop takes and returns them; without gates, these are recomputed.
      moved: the tangent of the recurrence; None stands for zero.
      chunk: steps that are processed at a time; None: all.
      loop: the linear loop; None: `linear_scan`.
    """
    x, weights, h0, control = recurrence
    dx, _, dh0, d_control = moved
    assert h0 is not None
    hs = result.hs
    dh0 = jnp.zeros_like(h0) if dh0 is None else dh0

    def over(x, dx, first: State, result: Result, steps: Control, dh: State) -> tuple[State, States]:
        """Runs the linear loop over a part of the steps; `first` is the state that enters the first of them."""
        part, d_part = recurrence._replace(x=x, control=steps), moved._replace(x=dx)
        values = values_of(part, entering(first, result.hs, steps), spec, result)
        source = source_of(values, part, d_part, spec)
        return (loop or linear_scan)(values, source, dh, weights.w_hh, steps, d_control.h_reset, spec)

    timed = {"valid": control.valid, "reset": control.reset, "hold": control.hold}
    result = result._replace(h_last=None)
    n_steps = hs.shape[0]
    if chunk is None or chunk >= n_steps:
        at_once = over if result.gates is not None else jax.checkpoint(over)
        dh_last, dhs = at_once(x, dx, h0, result, control, dh0)
        return dhs, dh_last
    n_chunks = n_steps // chunk

    def body(dh: State, xs: tuple) -> tuple[State, States]:
        first, (x, dx, result, timed) = xs
        return over(x, dx, first, result, control._replace(**timed), dh)

    firsts = jnp.concatenate([h0[None], hs[chunk - 1 :: chunk]])
    over_time = (x, dx, result, timed)
    whole = jax.tree.map(lambda a: a[: n_chunks * chunk].reshape(n_chunks, chunk, *a.shape[1:]), over_time)
    dh, dhs = lax.scan(jax.checkpoint(body), dh0, (firsts[:n_chunks], whole))
    dhs = dhs.reshape(n_chunks * chunk, *hs.shape[1:])
    if n_chunks * chunk == n_steps:
        return dhs, dh
    rest = jax.tree.map(lambda a: a[n_chunks * chunk :], over_time)
    dh, last = jax.checkpoint(body)(dh, (firsts[n_chunks], rest))
    return jnp.concatenate([dhs, last]), dh


def entering(h0: State, hs: States, control: Control) -> States:
    """The states that enter the steps, after resets, (T, B, H)."""
    h_in = jnp.concatenate([h0[None], hs])[:-1]  # also right for T = 0
    if control.reset is None:
        return h_in
    return jnp.where(control.reset[..., None], 0 if control.h_reset is None else control.h_reset[None, None], h_in)


def values_of(recurrence: Recurrence, h_in: States, spec: GRUSpec, result: Result) -> Values:
    """Returns the `Values` from the gates in `result`, or recomputes them from h_in with all products at once."""
    if result.gates is not None:
        return Values(h_in, *result.gates, result.m, slopes=None)
    slopes = []

    def with_slope(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def value(a: Array) -> Array:
            y, slope = jax.jvp(f, (a,), (jnp.ones_like(a),))
            slopes.append(slope)
            return y

        return value

    follow = slopes_follow(spec)
    gate, activation = activate(spec.gate_activation, spec.clip), activate(spec.activation, spec.clip)
    recording = spec._replace(gate_activation=with_slope(gate), activation=with_slope(activation), clip=None)
    gates, m = all_gates(recurrence, h_in, spec if follow else recording)
    return Values(h_in, *gates, m if spec.reset_after else None, None if follow else tuple(slopes))


def all_gates(recurrence: Recurrence, h_in: States, spec: GRUSpec) -> tuple[Gates, Array]:
    """Returns the gates and m of all steps from the states that enter them."""
    x, weights, _, control = recurrence
    gates_x = add_bias(input_products(x, weights, spec), input_bias(weights))
    mask = None if control.state_mask is None else control.state_mask[None]
    _, gates, m = step(h_in, gates_x, state_products(weights, spec), spec, mask)
    return gates, m


def source_of(values: Values, recurrence: Recurrence, moved: Recurrence, spec: GRUSpec) -> Source:
    """Returns the sources s of all steps: what the tangents of the input, the weights and the biases contribute.

    The first array, (T, B, 3H), is added to dh W_hr, dh W_hz and dh W_hn (with reset_after=False, to
    (a_r ⊙ d_r + r ⊙ dh) W_hn instead of dh W_hn). The second, s_n (T, B, H), exists only with reset_after=True. None
    stands for zero.
    """
    x, weights, _, control = recurrence
    dx, d_weights, _, _ = moved
    d_rz, d_n = (
        added(*(dot(a, w, spec) for a, w in ((dx, w), (x, dw)) if a is not None and w is not None))
        for w, dw in zip(split_n(weights.w_ih), split_n(d_weights.w_ih), strict=True)
    )
    like = d_weights._replace(w_hh=weights.w_hh)  # its dtype determines the dtype of the biases
    db_rz, db_n = split_n(input_bias(like))
    db_m = candidate_bias(like)
    d_h = None
    if d_weights.w_hh is not None:
        seen = values.h if control.state_mask is None else control.state_mask[None] * values.h
        if spec.reset_after:
            d_h = dot(seen, d_weights.w_hh, spec)
        else:
            dw_rz, dw_n = split_n(d_weights.w_hh)
            d_h = jnp.concatenate([dot(seen, dw_rz, spec), dot(values.r * seen, dw_n, spec)], axis=-1)
    no_h, no_b = jnp.zeros_like(values.h), jnp.zeros_like(values.h, shape=values.h.shape[-1:])

    def everywhere(b: Array | None) -> Array | None:
        return None if b is None else jnp.broadcast_to(b, (*values.h.shape[:-1], b.shape[0]))

    if spec.reset_after:
        products = added(d_h, joined(d_rz, None, no_h), everywhere(joined(db_rz, db_m, no_b)))
        return products, added(d_n, everywhere(db_n))
    return added(d_h, joined(d_rz, d_n, no_h), everywhere(joined(db_rz, added(db_n, db_m), no_b))), None


def joined(rz: Array | None, n: Array | None, zero: Array) -> Array | None:
    """The inverse of `split_n`: a part that is None becomes zeros; returns None if both are None."""
    if rz is None and n is None:
        return None
    parts = [zero, zero] if rz is None else [rz]
    return jnp.concatenate([*parts, zero if n is None else n], axis=-1)


def split_n(a: Array | None) -> Sequence[Any]:
    """Splits (..., 3H) into r and z, (..., 2H), and n; with reset_after=True they enter a step in different places."""
    return (None, None) if a is None else jnp.split(a, [a.shape[-1] // 3 * 2], axis=-1)


def added(*terms: Array | None) -> Any:
    """The sum of the terms that are not None; None if all are None."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def gates_tangent(
    recurrence: Recurrence, moved: Recurrence, hs: States, dhs: States, spec: GRUSpec
) -> tuple[Gates, Array | None]:
    """Returns the tangents of the gates and of m. Given the states and their tangents, this needs no loop."""

    def gates_of(recurrence: Recurrence, hs: States) -> tuple[Gates, Array | None]:
        assert recurrence.h0 is not None
        gates, m = all_gates(recurrence, entering(recurrence.h0, hs, recurrence.control), spec)
        return gates, m if spec.reset_after else None

    def d_or_zero(a: Array, d: Array | None) -> Any:
        if d is not None:
            return d
        return jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.floating) else np.zeros(a.shape, jax.dtypes.float0)

    d_recurrence = jax.tree.map(d_or_zero, recurrence, moved)
    return jax.jvp(gates_of, (recurrence, hs), (d_recurrence, dhs))[1]


def linear_scan(
    values: Values,
    source: Source,
    dh0: State,
    w_hh: Array,
    control: Control,
    dh_reset: Array | None,
    spec: GRUSpec,
) -> tuple[State, States]:
    """Runs the linear loop; returns dh_last (B, H) and dhs (T, B, H).

    Each step computes its own coefficients while their inputs are in the cache. The backward loop recomputes them, so
    it produces the gradients of the gates in the same pass.
    """
    # Transposed before the loop, so that the backward loop, which training runs, multiplies without transposing.
    w = [part.T for part in ([w_hh] if spec.reset_after else split_n(w_hh))]
    dh_start = jnp.zeros_like(dh0) if dh_reset is None else dh_reset[None] + jnp.zeros_like(dh0)

    def times(dh: State, w: Array) -> Array:
        return lax.dot_general(
            dh.astype(w.dtype),
            w,
            (((1,), (1,)), ((), ())),
            precision=spec.precision,
            preferred_element_type=dh.dtype,
        )

    @partial(jax.checkpoint, prevent_cse=False)
    def body(dh: State, inputs: tuple) -> tuple[State, State]:
        values, (s_products, s_n), valid, reset, hold = inputs
        if reset is not None:
            dh = jnp.where(reset[:, None], dh_start, dh)
        seen = dh if control.state_mask is None else control.state_mask * dh
        keep, a_r, a_z, a_n = coefficients(values, control.state_mask, hold, spec)
        if spec.reset_after:
            d_r, d_z, d_m = split_gates(added(times(seen, w[0]), s_products))
            d_n = added(a_r * d_r + values.r * d_m, s_n)
        else:
            s_rz, s_n = split_n(s_products)
            d_r, d_z = jnp.split(added(times(seen, w[0]), s_rz), 2, axis=-1)
            d_n = added(times(a_r * d_r + values.r * seen, w[1]), s_n)
        d_new = a_z * d_z + a_n * d_n
        if valid is not None:
            keep, d_new = jnp.where(valid[:, None], keep, 1), jnp.where(valid[:, None], d_new, 0)
        dh = keep * dh + d_new
        return dh, dh

    return lax.scan(body, dh0, (values, source, control.valid, control.reset, control.hold))


def coefficients(
    values: Values, state_mask: Array | None, hold: Array | None, spec: GRUSpec
) -> tuple[Array, Array, Array, Array]:
    """Returns the coefficients keep (k above), a_r, a_z and a_n of a step, (B, H) each."""
    h, r, z, n, m, slopes = values
    if slopes is None:
        gate_slope, slope = SLOPES[spec.gate_activation], SLOPES[spec.activation]
        slopes = gate_slope(r), gate_slope(z), slope(n)
    slope_r, slope_z, slope_n = slopes
    keep, a_z = (z, (h - n) * slope_z) if spec.update == "keep" else (1 - z, (n - h) * slope_z)
    if hold is not None:
        keep, a_z = keep + hold * (1 - keep), (1 - hold) * a_z
    a_n = (1 - keep) * slope_n
    read = m if m is not None else h if state_mask is None else state_mask * h
    return keep, read * slope_r, a_z, a_n
