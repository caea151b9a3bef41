r"""The one derivative rule of the recurrence.

Once the states are known, the tangent of the recurrence is linear in them,

    dh_t = k ⊙ dh + a_z ⊙ d_z + a_n ⊙ (a_r ⊙ d_r + r ⊙ d_m + s_n)        with dh = dh_{t−1}
    d_r, d_z, d_m = dh W_hr + s_r, dh W_hz + s_z, dh W_hn + s_m

and its coefficients k, a and sources s (the tangents of the input, the weights and the biases) need no loop. k is how
much of the old state the new one keeps: z, or 1 − z with update="take". Written as a `custom_jvp` whose tangent is
that linear loop, JAX transposes it into the smallest backward loop there is (only dh goes round; the weight gradients
are products after it), and forward mode, Jacobians and Hessian products come from the same lines.

The coefficients are made of r, z, n and m, which the forward loop emits where it is differentiated; or, for all
activations but sigmoid and tanh and where `Chunks` asks for it, of the states alone, all products of a chunk of steps
at once. What is made of the states is checkpointed, and so are chunks: what is kept between the passes is the input,
the states and what was emitted, nothing else.

With reset_after=False the last term is a_n ⊙ ((a_r ⊙ d_r + r ⊙ dh) W_hn + s_n): r multiplies h before it. A mask on
the state that the products read multiplies dh there too; what is held of a state moves k towards 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from grujax.kernels.step import SLOPES, activate, dot, gate_values, project, split, split_gates
from grujax.types import (
    Activation,
    Array,
    Control,
    Emitted,
    GRUSpec,
    Projection,
    Ran,
    Recurrence,
    Recurrent,
    State,
    States,
)

Forward = Callable[[Sequence[Recurrence], GRUSpec, bool], list[Ran]]
"""A forward loop, or one for each recurrence; the last argument asks for what the steps emit."""


class Values(NamedTuple):
    """What the coefficients of every step are made of, (T, B, H) each, finite at steps that are not valid too."""

    h: States  # the state that enters
    r: Array
    z: Array
    n: Array
    m: Array | None  # what r multiplies, with reset_after=True
    slopes: tuple[Array, Array, Array] | None  # of the activations of r, z, n; None where r, z and n tell them


class Chunks(NamedTuple):
    """How the derivative takes a sequence."""

    steps: int | None  # None: all of them
    emitted: bool  # r, z, n and m are kept from the forward loop, not made anew of the states


class Source(NamedTuple):
    """The tangents that enter every step besides that of the state; None is zero."""

    products: Array | None  # (T, B, 3H), added to dh W_hr, dh W_hz and dh W_hn, or what stands for it
    n: Array | None  # (T, B, H), inside the candidate's activation, where r does not multiply it


def with_derivative(forward: Forward, differentiated: Callable | None = None) -> Callable:
    """`forward`, differentiated by the rule above and not by its own lines.

    The last argument of what it returns is the chunks in which the derivative takes the steps. `differentiated`, such a
    function too, runs in its place where a derivative is wanted.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
    def run(recurrences, spec, emit, chunks):
        return forward(recurrences, spec, emit)

    @partial(run.defjvp, symbolic_zeros=True)
    def rule(spec, emit, chunks, primals, tangents):
        moved = jax.tree.map(lambda t: None if isinstance(t, SymbolicZero) else t, tangents[0])
        outputs, d_outputs = [], []
        kept = slopes_are_told(spec) and (chunks.emitted or emit)
        all_ran = (differentiated or run)(*primals, spec, emit or kept, chunks)
        for recurrence, d_recurrence, ran in zip(primals[0], moved, all_ran, strict=True):
            dhs, dh_last = tangent(
                recurrence, d_recurrence, ran if kept else ran._replace(emitted=None), spec, chunks.steps
            )
            outputs.append(ran if emit else ran._replace(emitted=None))
            d_outputs.append(
                Ran(dhs, dh_last, emitted_tangent(recurrence, d_recurrence, ran, dhs, spec) if emit else None)
            )
        return outputs, d_outputs

    return run


def slopes_are_told(spec: GRUSpec) -> bool:
    """Whether r, z and n tell the slopes of their activations."""
    return all(activation in SLOPES for activation in (spec.activation, spec.gate_activation)) and spec.clip is None


def tangent(
    recurrence: Recurrence, moved: Recurrence, ran: Ran, spec: GRUSpec, chunk: int | None
) -> tuple[States, State]:
    """dhs (T, B, H) and dh_last (B, H). In `moved`, the tangent of the recurrence, None is zero."""
    projection, h0, recurrent, control = recurrence
    d_projection, dh0, d_recurrent, d_control = moved
    hs, _, emitted = ran
    dh0 = jnp.zeros_like(h0) if dh0 is None else dh0

    def over(
        x, dx, first: State, hs: States, emitted: Emitted | None, steps: Control, dh: State
    ) -> tuple[State, States]:
        """The linear loop over some of the steps; `first` is the state that enters them."""
        p, dp = projection._replace(x=x), d_projection._replace(x=dx)
        values = values_of(p, entering(first, hs, steps), recurrent, steps, spec, emitted)
        source = source_of(values, p, dp, d_recurrent, steps, spec)
        return linear_scan(values, source, dh, recurrent.w_hh, steps, d_control.h_reset, spec)

    timed = {"valid": control.valid, "reset": control.reset, "hold": control.hold}
    n_steps = hs.shape[0]
    if chunk is None or chunk >= n_steps:
        at_once = over if emitted is not None else jax.checkpoint(over)
        dh_last, dhs = at_once(projection.x, d_projection.x, h0, hs, emitted, control, dh0)
        return dhs, dh_last
    n_chunks = n_steps // chunk

    def body(dh: State, xs: tuple) -> tuple[State, States]:
        first, (x, dx, hs, emitted, timed) = xs
        return over(x, dx, first, hs, emitted, control._replace(**timed), dh)

    firsts = jnp.concatenate([h0[None], hs[chunk - 1 :: chunk]])
    over_time = (projection.x, d_projection.x, hs, emitted, timed)
    whole = jax.tree.map(lambda a: a[: n_chunks * chunk].reshape(n_chunks, chunk, *a.shape[1:]), over_time)
    dh, dhs = lax.scan(jax.checkpoint(body), dh0, (firsts[:n_chunks], whole))
    dhs = dhs.reshape(n_chunks * chunk, *hs.shape[1:])
    if n_chunks * chunk == n_steps:
        return dhs, dh
    rest = jax.tree.map(lambda a: a[n_chunks * chunk :], over_time)
    dh, last = jax.checkpoint(body)(dh, (firsts[n_chunks], rest))
    return jnp.concatenate([dhs, last]), dh


def entering(h0: State, hs: States, control: Control) -> States:
    """The states that enter the steps, resets done: (T, B, H)."""
    h_in = jnp.concatenate([h0[None], hs])[:-1]  # also right for T = 0
    if control.reset is None:
        return h_in
    return jnp.where(control.reset[..., None], 0 if control.h_reset is None else control.h_reset[None, None], h_in)


def values_of(
    projection: Projection,
    h_in: States,
    recurrent: Recurrent,
    control: Control,
    spec: GRUSpec,
    emitted: Emitted | None,
) -> Values:
    """From what the forward loop emitted; or from the states that enter, all products at once."""
    if emitted is not None:
        return Values(h_in, *emitted, slopes=None)
    w_r, w_z, w_n = split_gates(recurrent.w_hh)
    seen = h_in if control.state_mask is None else control.state_mask[None] * h_in

    def value_and_slope(activation: Activation, a: Array) -> tuple[Array, Array]:
        return jax.jvp(activate(activation, spec.clip), (a,), (jnp.ones_like(a),))

    gates_x = project(projection, spec)
    if control.valid is not None and projection.w_ih is None:  # gates of a step that is not valid may be NaN
        gates_x = [jnp.where(control.valid[..., None], g, 0) for g in gates_x]
    x_r, x_z, x_n = gates_x
    r, slope_r = value_and_slope(spec.gate_activation, x_r + dot(seen, w_r, spec))
    z, slope_z = value_and_slope(spec.gate_activation, x_z + dot(seen, w_z, spec))
    m = dot(seen if spec.reset_after else r * seen, w_n, spec) + recurrent.b_hn[None, None]
    n, slope_n = value_and_slope(spec.activation, x_n + (r * m if spec.reset_after else m))
    slopes = None if slopes_are_told(spec) else (slope_r, slope_z, slope_n)
    return Values(h_in, r, z, n, m if spec.reset_after else None, slopes)


def source_of(
    values: Values, p: Projection, dp: Projection, d_recurrent: Recurrent, control: Control, spec: GRUSpec
) -> Source:
    """The tangents of the input, the weights and the biases, at all steps at once."""
    if p.w_ih is None:
        d_rz, d_n = split_n(dp.x)
    else:
        d_rz, d_n = (
            added(*(dot(a, w, spec) for a, w in ((dp.x, w), (p.x, dw)) if a is not None and w is not None))
            for w, dw in zip(split_n(p.w_ih), split_n(dp.w_ih), strict=True)
        )
    db_rz, db_n = split_n(dp.bias)
    db_m = d_recurrent.b_hn
    d_h = None
    if d_recurrent.w_hh is not None:
        seen = values.h if control.state_mask is None else control.state_mask[None] * values.h
        if spec.reset_after:
            d_h = dot(seen, d_recurrent.w_hh, spec)
        else:
            dw_rz, dw_n = split_n(d_recurrent.w_hh)
            d_h = jnp.concatenate([dot(seen, dw_rz, spec), dot(values.r * seen, dw_n, spec)], axis=-1)
    no_h, no_b = jnp.zeros_like(values.h), jnp.zeros_like(values.h, shape=values.h.shape[-1:])

    def everywhere(b: Array | None) -> Array | None:
        return None if b is None else jnp.broadcast_to(b, (*values.h.shape[:-1], b.shape[0]))

    if spec.reset_after:
        products = added(d_h, joined(d_rz, None, no_h), everywhere(joined(db_rz, db_m, no_b)))
        return Source(products, added(d_n, everywhere(db_n)))
    return Source(added(d_h, joined(d_rz, d_n, no_h), everywhere(joined(db_rz, added(db_n, db_m), no_b))), None)


def joined(rz: Array | None, n: Array | None, zero: Array) -> Array | None:
    """What `split_n` took apart; zeros for the one that is not there, None where neither is."""
    if rz is None and n is None:
        return None
    parts = [zero, zero] if rz is None else [rz]
    return jnp.concatenate([*parts, zero if n is None else n], axis=-1)


def split_n(a: Array | None) -> Sequence[Any]:
    """(..., 3H) -> r and z together, (..., 2H), and n; with reset_after=True they enter a step in different places."""
    return (None, None) if a is None else jnp.split(a, [a.shape[-1] // 3 * 2], axis=-1)


def added(*terms: Array | None) -> Any:
    """The sum of the terms that are there; None where none is."""
    there = [term for term in terms if term is not None]
    return sum(there[1:], there[0]) if there else None


def emitted_tangent(recurrence: Recurrence, moved: Recurrence, ran: Ran, dhs: States, spec: GRUSpec) -> Emitted:
    """That of what the steps emit: each step by itself, once the states and their tangents are known."""
    projection, h0, recurrent, control = recurrence

    def emit(projection: Projection, h0: State, hs: States, recurrent: Recurrent, h_reset: Array | None) -> Emitted:
        h_in = entering(h0, hs, control._replace(h_reset=h_reset))
        mask = None if control.state_mask is None else control.state_mask[None]
        gates, m = gate_values(project(projection, spec), h_in, split(recurrent), spec, mask)
        return Emitted(*gates, m)

    d_projection, dh0, d_recurrent, d_control = moved
    given = (projection, h0, ran.hs, recurrent, control.h_reset)
    along_with = (d_projection, dh0, dhs, d_recurrent, d_control.h_reset)
    zeros = jax.tree.map(jnp.zeros_like, given)
    along_with = jax.tree.map(lambda zero, t: zero if t is None else t, zeros, along_with, is_leaf=lambda a: a is None)
    return jax.jvp(emit, given, along_with)[1]


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

    The coefficients of a step are made in it, where they are still in the cache, and again in the backward loop:
    that, too, then hands out the tangents of the gates instead of passing over all steps once more for each.
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
        values, source, valid, reset, hold = inputs
        if reset is not None:
            dh = jnp.where(reset[:, None], dh_start, dh)
        seen = dh if control.state_mask is None else control.state_mask * dh
        keep, a_r, a_z, a_n = coefficients(values, control.state_mask, hold, spec)
        if spec.reset_after:
            d_r, d_z, d_m = split_gates(added(times(seen, w[0]), source.products))
            d_n = added(a_r * d_r + values.r * d_m, source.n)
        else:
            s_rz, s_n = split_n(source.products)
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
