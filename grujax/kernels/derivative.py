r"""The one derivative rule of the recurrence.

Once the states are known, the tangent of the recurrence is linear in them,

    dh_t = k ⊙ dh + c_r ⊙ (dh W_hr) + c_z ⊙ (dh W_hz) + c_n ⊙ (dh W_hn) + s_t        with dh = dh_{t−1}

and its coefficients k, c and source s (which holds the tangents of the input, the weights and the biases) need no
loop. k is how much of the old state the new one keeps: z, or 1 − z with update="take". Written as a `custom_jvp`
whose tangent is that linear loop, JAX transposes it into the smallest backward loop there is (only dh goes round;
the weight gradients are one product each, after it), and forward mode, Jacobians and Hessian products come from the
same lines.

The coefficients are made of r, z, n and m, which the forward loop emits where it is differentiated; or, for all
activations but sigmoid and tanh and for long sequences, of the states alone, all products of a chunk of steps at
once. Chunks are checkpointed: what is kept between the passes is then the input and the states, nothing else.

With reset_after=False the last product is c_n ⊙ ((a_r ⊙ (dh W_hr) + r ⊙ dh) W_hn): r multiplies h before it. A mask
on the state that the products read multiplies dh there too; what is held of a state moves k towards 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from grujax.step import SLOPES, activate, along, dot, gate_values, project, split, split_gates
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


class Coefficients(NamedTuple):
    """What multiplies dh in each step of the tangent, (T, B, H) each."""

    keep: Array | float  # dh itself
    r: Array | float  # dh W_hr
    z: Array | float  # dh W_hz
    n: Array | float  # dh W_hn, or what stands for it with reset_after=False
    gate_r: Array | float | None = None  # the value of r, with reset_after=False alone


def with_derivative(forward: Forward) -> Callable:
    """`forward`, differentiated by the rule above and not by its own lines.

    Its last argument, `chunk`, is how many steps have their coefficients at once; None is all of them.
    """

    @partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
    def run(recurrences, spec, emit, chunk):
        return forward(recurrences, spec, emit)

    @partial(run.defjvp, symbolic_zeros=True)
    def rule(spec, emit, chunk, primals, tangents):
        moved = jax.tree.map(lambda t: None if isinstance(t, SymbolicZero) else t, tangents[0])
        told = all(activation in SLOPES for activation in (spec.activation, spec.gate_activation)) and spec.clip is None
        outputs, d_outputs = [], []
        all_ran = run(*primals, spec, emit or (told and chunk is None), chunk)
        for recurrence, d_recurrence, ran in zip(primals[0], moved, all_ran, strict=True):
            dhs, dh_last = tangent(recurrence, d_recurrence, ran if told else ran._replace(emitted=None), spec, chunk)
            outputs.append(ran if emit else ran._replace(emitted=None))
            d_outputs.append(
                Ran(dhs, dh_last, emitted_tangent(recurrence, d_recurrence, ran, dhs, spec) if emit else None)
            )
        return outputs, d_outputs

    return run


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
        coefficients, source = linearise(
            p, entering(first, hs, steps), recurrent, dp, d_recurrent, steps, spec, emitted
        )
        return linear_scan(coefficients, source, dh, recurrent.w_hh, steps, d_control.h_reset, spec)

    timed = {"valid": control.valid, "reset": control.reset, "hold": control.hold}
    n_steps = hs.shape[0]
    if chunk is None or chunk >= n_steps:
        dh_last, dhs = over(projection.x, d_projection.x, h0, hs, emitted, control, dh0)
        return dhs, dh_last
    n_chunks = n_steps // chunk

    def body(dh: State, xs: tuple) -> tuple[State, States]:
        x, dx, first, hs, timed = xs
        return over(x, dx, first, hs, None, control._replace(**timed), dh)

    firsts = jnp.concatenate([h0[None], hs[chunk - 1 :: chunk]])
    over_time = (projection.x, d_projection.x, hs, timed)
    whole = jax.tree.map(lambda a: a[: n_chunks * chunk].reshape(n_chunks, chunk, *a.shape[1:]), over_time)
    x, dx, hs_whole, timed_whole = whole
    dh, dhs = lax.scan(jax.checkpoint(body), dh0, (x, dx, firsts[:n_chunks], hs_whole, timed_whole))
    dhs = dhs.reshape(n_chunks * chunk, *hs.shape[1:])
    if n_chunks * chunk == n_steps:
        return dhs, dh
    x, dx, hs, timed = jax.tree.map(lambda a: a[n_chunks * chunk :], over_time)
    dh, last = jax.checkpoint(body)(dh, (x, dx, firsts[n_chunks], hs, timed))
    return jnp.concatenate([dhs, last]), dh


def entering(h0: State, hs: States, control: Control) -> States:
    """The states that enter the steps, resets done: (T, B, H)."""
    h_in = jnp.concatenate([h0[None], hs])[:-1]  # also right for T = 0
    if control.reset is None:
        return h_in
    return jnp.where(control.reset[..., None], 0 if control.h_reset is None else control.h_reset[None, None], h_in)


def linearise(
    projection: Projection,
    h_in: States,
    recurrent: Recurrent,
    d_projection: Projection,
    d_recurrent: Recurrent,
    control: Control,
    spec: GRUSpec,
    emitted: Emitted | None,
) -> tuple[Coefficients, States]:
    """The coefficients and the source of every step; h_in (T, B, H) are the states that enter the steps."""
    w_r, w_z, w_n = split_gates(recurrent.w_hh)
    seen = h_in if control.state_mask is None else control.state_mask[None] * h_in
    if emitted is not None:
        r, z, n, m = emitted  # m is None with reset_after=False, and not used
        gate_slope, slope = SLOPES[spec.gate_activation], SLOPES[spec.activation]
        slope_r, slope_z, slope_n = gate_slope(r), gate_slope(z), slope(n)
    else:

        def value_and_slope(activation: Activation, a: Array) -> tuple[Array, Array]:
            return jax.jvp(activate(activation, spec.clip), (a,), (jnp.ones_like(a),))

        x_r, x_z, x_n = project(projection, spec)
        r, slope_r = value_and_slope(spec.gate_activation, x_r + dot(seen, w_r, spec))
        z, slope_z = value_and_slope(spec.gate_activation, x_z + dot(seen, w_z, spec))
        m = dot(seen if spec.reset_after else r * seen, w_n, spec) + recurrent.b_hn[None, None]
        n, slope_n = value_and_slope(spec.activation, x_n + (r * m if spec.reset_after else m))
    keep, a_z = (z, (h_in - n) * slope_z) if spec.update == "keep" else (1 - z, (n - h_in) * slope_z)
    if control.hold is not None:
        keep, a_z = keep + control.hold * (1 - keep), (1 - control.hold) * a_z
    a_n = (1 - keep) * slope_n  # dh_t / d(inside of the candidate's activation)
    a_r = (m if spec.reset_after else seen) * slope_r  # pyright: ignore[reportOptionalOperand]

    d_x = projection_tangent(projection, d_projection, spec)
    read = (seen, seen, seen if spec.reset_after else r * seen)
    d_h: list[Any] = [None] * 3
    if d_recurrent.w_hh is not None:
        d_h = [dot(a, dw, spec) for a, dw in zip(read, split_gates(d_recurrent.w_hh), strict=True)]
    inside_r, inside_z = added(d_x[0], d_h[0]), added(d_x[1], d_h[1])
    d_m = added(d_h[2], None if d_recurrent.b_hn is None else along(d_recurrent.b_hn, h_in))
    if spec.reset_after:
        coefficients = Coefficients(keep=keep, r=a_n * a_r, z=a_z, n=a_n * r)
        source = coefficients.r * inside_r + a_z * inside_z + coefficients.n * d_m + a_n * added(d_x[2])
    else:
        coefficients = Coefficients(keep=keep, r=a_r, z=a_z, n=a_n, gate_r=r)
        source = a_z * inside_z + a_n * added(d_x[2], dot(a_r * inside_r, w_n, spec), d_m)
    if (valid := control.valid) is not None:
        held = Coefficients(keep=1.0, r=0.0, z=0.0, n=0.0, gate_r=0.0 if coefficients.gate_r is not None else None)
        coefficients = jax.tree.map(lambda c, h: jnp.where(valid[..., None], c, h), coefficients, held)
        source = jnp.where(valid[..., None], source, 0)
    return coefficients, source


def projection_tangent(p: Projection, dp: Projection, spec: GRUSpec) -> Sequence[Array | None]:
    """That of the input's part of r, z and n, (T, B, H) each; None where it is zero."""
    if p.w_ih is None:
        return [None] * 3 if dp.x is None else split_gates(dp.x)
    terms = [dot(a, w, spec) for a, w in ((dp.x, p.w_ih), (p.x, dp.w_ih)) if a is not None and w is not None]
    gates = split_gates(sum(terms[1:], terms[0])) if terms else [None] * 3
    if dp.bias is None:
        return gates
    shape = jnp.zeros((*p.x.shape[:-1], p.w_ih.shape[1] // 3), dp.bias.dtype)
    return [added(g, along(b, shape)) for g, b in zip(gates, split_gates(dp.bias), strict=True)]


def added(*terms: Array | None) -> Any:
    """The sum of the terms that are there."""
    there = [term for term in terms if term is not None]
    return sum(there[1:], there[0]) if there else 0.0


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
    coefficients: Coefficients,
    source: States,
    dh0: State,
    w_hh: Array,
    control: Control,
    dh_reset: Array | None,
    spec: GRUSpec,
) -> tuple[State, States]:
    """The linear loop: dh_last (B, H) and dhs (T, B, H)."""
    # Transposed beforehand: the backward loop, which is what training runs, then multiplies without transposing.
    w_r, w_z, w_n = [w.T for w in split_gates(w_hh)]
    dh_start = jnp.zeros_like(dh0) if dh_reset is None else dh_reset[None] + jnp.zeros_like(dh0)

    def times(dh: State, w: Array) -> State:
        return lax.dot_general(
            dh.astype(w.dtype),
            w,
            (((1,), (1,)), ((), ())),
            precision=spec.precision,
            preferred_element_type=dh.dtype,
        )

    def body(dh: State, inputs: tuple) -> tuple[State, State]:
        c, s, reset = inputs
        if reset is not None:
            dh = jnp.where(reset[:, None], dh_start, dh)
        seen = dh if control.state_mask is None else control.state_mask * dh
        inside_n = times(seen, w_n) if c.gate_r is None else times(c.r * times(seen, w_r) + c.gate_r * seen, w_n)
        dh_new = c.keep * dh + c.z * times(seen, w_z) + c.n * inside_n + s
        if c.gate_r is None:
            dh_new += c.r * times(seen, w_r)
        return dh_new, dh_new

    return lax.scan(body, dh0, (coefficients, source, control.reset))
