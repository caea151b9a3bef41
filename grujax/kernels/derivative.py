r"""The one derivative rule of the recurrence.

Once the states are known, the tangent of the recurrence is linear in them,

    dh_t = k ⊙ dh + a_z ⊙ d_z + a_n ⊙ (a_r ⊙ d_r + r ⊙ d_m + s_n)        with dh = dh_{t−1}
    d_r, d_z, d_m = dh W_hr + s_r, dh W_hz + s_z, dh W_hn + s_m

and its coefficients k, a and sources s (the tangents of the input, the weights and the biases) need no loop. k is how
much of the old state the new one keeps: z, or 1 − z with update="take". Written as a `custom_jvp` whose tangent is
that linear loop, JAX transposes it into the smallest backward loop (its carry is dh alone; the weight gradients are
products after it), and forward mode, Jacobians and Hessian products come from the same lines.

The coefficients are computed from r, z, n and m, which the forward loop returns where it is differentiated. For
activations other than sigmoid and tanh, and where `Chunks` asks for it, they are computed from the states, all products
of a chunk of steps at once. That part is checkpointed, and so are chunks: only the input, the states and the gates that
the loop returned are kept between the passes.

With reset_after=False the last term is a_n ⊙ ((a_r ⊙ d_r + r ⊙ dh) W_hn + s_n): r multiplies h before W_hn. A mask on
the state that the products read multiplies dh there too; holding a part of the state moves k towards 1.
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
"""A forward loop: of one or several recurrences of one shape, the spec, and whether it returns gates."""


class Values(NamedTuple):
    """What the coefficients are computed from, (T, B, H) each, finite at steps that are not valid too."""

    h: States  # the state that enters
    r: Array
    z: Array
    n: Array
    m: Array | None  # what r multiplies, with reset_after=True
    slopes: tuple[Array, Array, Array] | None  # of the activations of r, z, n; None where `SLOPES` has them


Source = tuple[Array | None, Array | None]
LinearLoop = Callable[[Values, Source, State, Array, Control, Array | None, GRUSpec], tuple[State, States]]
"""What `linear_scan` takes and returns."""


class Chunks(NamedTuple):
    """How the derivative divides a sequence."""

    steps: int | None  # of a chunk; None: all
    kept: bool  # r, z, n and m are kept from the forward loop, not computed again from the states


WHOLE = Chunks(None, kept=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 2, 3, 4))
def under_the_rule(
    loop: Loop, recurrences: Sequence[Recurrence], spec: GRUSpec, with_gates: bool, chunks: Chunks
) -> list[Result]:
    """The results of a loop, differentiated by the rule above."""
    return loop(recurrences, spec, with_gates)


@partial(under_the_rule.defjvp, symbolic_zeros=True)
def _rule(loop, spec, with_gates, chunks, primals, tangents):
    moved = jax.tree.map(lambda t: None if isinstance(t, SymbolicZero) else t, tangents[0])
    kept = slopes_are_told(spec) and (chunks.kept or with_gates)
    results = under_the_rule(loop, *primals, spec, with_gates or kept, chunks)
    outputs, d_outputs = [], []
    for recurrence, d_recurrence, result in zip(primals[0], moved, results, strict=True):
        plain = Result(result.hs, result.h_last)
        dhs, dh_last = tangent(recurrence, d_recurrence, result if kept else plain, spec, chunks.steps)
        outputs.append(result if with_gates else plain)
        d_gates, dm = gates_tangent(recurrence, d_recurrence, result.hs, dhs, spec) if with_gates else (None, None)
        d_outputs.append(Result(dhs, dh_last, d_gates, dm))
    return outputs, d_outputs


def slopes_are_told(spec: GRUSpec) -> bool:
    """Whether the slopes of the activations follow from r, z and n."""
    return all(activation in SLOPES for activation in (spec.activation, spec.gate_activation)) and spec.clip is None


def tangent(
    recurrence: Recurrence,
    moved: Recurrence,
    result: Result,
    spec: GRUSpec,
    chunk: int | None,
    loop: LinearLoop | None = None,
) -> tuple[States, State]:
    """dhs (T, B, H) and dh_last (B, H). In `moved`, the tangent of the recurrence, None is zero.

    loop: the linear loop, `linear_scan` where None.
    """
    x, weights, h0, control = recurrence
    dx, _, dh0, d_control = moved
    assert h0 is not None
    hs = result.hs
    dh0 = jnp.zeros_like(h0) if dh0 is None else dh0

    def over(x, dx, first: State, result: Result, steps: Control, dh: State) -> tuple[State, States]:
        """The linear loop over some of the steps; `first` is the state that enters them."""
        some, d_some = recurrence._replace(x=x, control=steps), moved._replace(x=dx)
        values = values_of(some, entering(first, result.hs, steps), spec, result)
        source = source_of(values, some, d_some, spec)
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
    """The states that enter the steps, after resets: (T, B, H)."""
    h_in = jnp.concatenate([h0[None], hs])[:-1]  # also right for T = 0
    if control.reset is None:
        return h_in
    return jnp.where(control.reset[..., None], 0 if control.h_reset is None else control.h_reset[None, None], h_in)


def values_of(recurrence: Recurrence, h_in: States, spec: GRUSpec, result: Result) -> Values:
    """From the gates in `result`; without them from the states that enter, all products at once."""
    if result.gates is not None:
        return Values(h_in, *result.gates, result.m, slopes=None)
    slopes = []

    def with_slope(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def value(a: Array) -> Array:
            y, slope = jax.jvp(f, (a,), (jnp.ones_like(a),))
            slopes.append(slope)
            return y

        return value

    told = slopes_are_told(spec)
    gate, activation = activate(spec.gate_activation, spec.clip), activate(spec.activation, spec.clip)
    noting = spec._replace(gate_activation=with_slope(gate), activation=with_slope(activation), clip=None)
    gates, m = all_gates(recurrence, h_in, spec if told else noting)
    return Values(h_in, *gates, m if spec.reset_after else None, None if told else tuple(slopes))


def all_gates(recurrence: Recurrence, h_in: States, spec: GRUSpec) -> tuple[Gates, Array]:
    """The gates of all steps, and m, from the states that enter them."""
    x, weights, _, control = recurrence
    gates_x = add_bias(input_products(x, weights, spec), input_bias(weights))
    mask = None if control.state_mask is None else control.state_mask[None]
    _, gates, m = step(h_in, gates_x, state_products(weights, spec), spec, mask)
    return gates, m


def source_of(values: Values, recurrence: Recurrence, moved: Recurrence, spec: GRUSpec) -> Source:
    """The tangents of the input, the weights and the biases, at all steps at once: the source s; None is zero.

    (T, B, 3H), added to dh W_hr, dh W_hz and dh W_hn (with reset_after=False to (a_r ⊙ d_r + r ⊙ dh) W_hn); and
    (T, B, H), s_n, with reset_after=True.
    """
    x, weights, _, control = recurrence
    dx, d_weights, _, _ = moved
    d_rz, d_n = (
        added(*(dot(a, w, spec) for a, w in ((dx, w), (x, dw)) if a is not None and w is not None))
        for w, dw in zip(split_n(weights.w_ih), split_n(d_weights.w_ih), strict=True)
    )
    like = d_weights._replace(w_hh=weights.w_hh)  # whose dtype is the state's
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
    """The inverse of `split_n`: zeros for a part that is None; None where both are."""
    if rz is None and n is None:
        return None
    parts = [zero, zero] if rz is None else [rz]
    return jnp.concatenate([*parts, zero if n is None else n], axis=-1)


def split_n(a: Array | None) -> Sequence[Any]:
    """(..., 3H) -> r and z together, (..., 2H), and n; with reset_after=True they enter a step in different places."""
    return (None, None) if a is None else jnp.split(a, [a.shape[-1] // 3 * 2], axis=-1)


def added(*terms: Array | None) -> Any:
    """The sum of the terms that are not None; None where all are."""
    there = [term for term in terms if term is not None]
    return sum(there[1:], there[0]) if there else None


def gates_tangent(
    recurrence: Recurrence, moved: Recurrence, hs: States, dhs: States, spec: GRUSpec
) -> tuple[Gates, Array | None]:
    """The tangents of the gates and of m: no loop is needed once the states and their tangents are known."""

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
    """The linear loop: dh_last (B, H) and dhs (T, B, H).

    Each step computes its coefficients while their values are in the cache, and the backward loop does so again: it
    then yields the gradients of the gates in the same pass.
    """
    # Transposed beforehand: the backward loop, which is what training runs, then multiplies without transposing.
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
    """keep, a_r, a_z and a_n of a step, (B, H) each."""
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
