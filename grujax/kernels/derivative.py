r"""The one derivative rule of the recurrence.

Once the states are known, the tangent of the recurrence is linear in them,

    dh_t = k ⊙ dh + c_r ⊙ (dh W_hr) + c_z ⊙ (dh W_hz) + c_n ⊙ (dh W_hn) + s_t        with dh = dh_{t−1}

and its coefficients k, c and source s (which holds the tangents of gates_x, w_hh and b_hn) need no loop: they are
a few products over all steps at once. k is how much of the old state the new one keeps: z, or 1 − z with
update="take". Written as a `custom_jvp` whose tangent is that linear loop, JAX transposes it into the smallest
backward loop there is (only dh goes round; the weight gradients are one product each, after it), and forward mode,
Jacobians and Hessian products come from the same lines.

With reset_after=False the last product is c_n ⊙ ((a_r ⊙ (dh W_hr) + r ⊙ dh) W_hn): r multiplies h before it. A mask
on the state that the products read multiplies dh there too; what is held of a state moves k towards 1.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from grujax.step import activate, dot, split_gates
from grujax.types import Activation, Array, Control, Gates, GRUSpec, Recurrent, State, States

Forward = Callable[[Gates, State, Recurrent, Control, GRUSpec], tuple[States, State]]


class Coefficients(NamedTuple):
    """What multiplies dh in each step of the tangent, (T, B, H) each."""

    keep: Array | float  # dh itself
    r: Array | float  # dh W_hr
    z: Array | float  # dh W_hz
    n: Array | float  # dh W_hn, or what stands for it with reset_after=False
    gate_r: Array | float | None = None  # the value of r, with reset_after=False alone


def with_derivative(forward: Forward) -> Forward:
    """`forward`, differentiated by the rule above and not by its own lines."""

    @partial(jax.custom_jvp, nondiff_argnums=(4,))
    def run(gates_x, h0, recurrent, control, spec):
        return forward(gates_x, h0, recurrent, control, spec)

    @run.defjvp
    def rule(spec, primals, tangents):
        gates_x, h0, recurrent, control = primals
        dgates_x, dh0, d_recurrent, d_control = tangents
        hs, h_last = run(*primals, spec)
        coefficients, source = linearise(
            gates_x, entering(h0, hs, control), recurrent, dgates_x, d_recurrent, control, spec
        )
        return (hs, h_last), linear_scan(coefficients, source, dh0, recurrent.w_hh, control, d_control.h_reset, spec)

    return run


def entering(h0: State, hs: States, control: Control) -> States:
    """The states that enter the steps, resets done: (T, B, H)."""
    h_in = jnp.concatenate([h0[None], hs])[:-1]  # also right for T = 0
    if control.reset is None:
        return h_in
    return jnp.where(control.reset[..., None], 0 if control.h_reset is None else control.h_reset[None, None], h_in)


def linearise(
    gates_x: Gates,
    h_in: States,
    recurrent: Recurrent,
    dgates_x: Gates,
    d_recurrent: Recurrent,
    control: Control,
    spec: GRUSpec,
) -> tuple[Coefficients, States]:
    """The coefficients and the source of every step; h_in (T, B, H) are the states that enter the steps."""
    (x_r, x_z, x_n), (w_r, w_z, w_n) = split_gates(gates_x), split_gates(recurrent.w_hh)
    (dx_r, dx_z, dx_n), (dw_r, dw_z, dw_n) = split_gates(dgates_x), split_gates(d_recurrent.w_hh)
    b_n, db_n = recurrent.b_hn[None, None], d_recurrent.b_hn[None, None]
    seen = h_in if control.state_mask is None else control.state_mask[None] * h_in

    def value_and_slope(activation: Activation, a: Array) -> tuple[Array, Array]:
        return jax.jvp(activate(activation, spec.clip), (a,), (jnp.ones_like(a),))

    r, slope_r = value_and_slope(spec.gate_activation, x_r + dot(seen, w_r, spec))
    z, slope_z = value_and_slope(spec.gate_activation, x_z + dot(seen, w_z, spec))
    if spec.reset_after:
        m = dot(seen, w_n, spec) + b_n
        n, slope_n = value_and_slope(spec.activation, x_n + r * m)
    else:
        m = seen
        n, slope_n = value_and_slope(spec.activation, x_n + dot(r * seen, w_n, spec) + b_n)
    keep, a_z = (z, (h_in - n) * slope_z) if spec.update == "keep" else (1 - z, (n - h_in) * slope_z)
    if control.hold is not None:
        keep, a_z = keep + control.hold * (1 - keep), (1 - control.hold) * a_z
    a_n = (1 - keep) * slope_n  # dh_t / d(inside of the candidate's activation)
    a_r = m * slope_r

    inside_r = dx_r + dot(seen, dw_r, spec)
    inside_z = dx_z + dot(seen, dw_z, spec)
    if spec.reset_after:
        coefficients = Coefficients(keep=keep, r=a_n * a_r, z=a_z, n=a_n * r)
        inside_n = dx_n + a_r * inside_r + r * (dot(seen, dw_n, spec) + db_n)
    else:
        coefficients = Coefficients(keep=keep, r=a_r, z=a_z, n=a_n, gate_r=r)
        inside_n = dx_n + dot(a_r * inside_r, w_n, spec) + dot(r * seen, dw_n, spec) + db_n
    source = a_z * inside_z + a_n * inside_n
    if (valid := control.valid) is not None:
        held = Coefficients(keep=1.0, r=0.0, z=0.0, n=0.0, gate_r=0.0 if coefficients.gate_r is not None else None)
        coefficients = jax.tree.map(lambda c, h: jnp.where(valid[..., None], c, h), coefficients, held)
        source = jnp.where(valid[..., None], source, 0)
    return coefficients, source


def linear_scan(
    coefficients: Coefficients,
    source: States,
    dh0: State,
    w_hh: Array,
    control: Control,
    dh_reset: Array | None,
    spec: GRUSpec,
) -> tuple[States, State]:
    """The linear loop: dhs (T, B, H) and dh_last (B, H)."""
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

    dh_last, dhs = lax.scan(body, dh0, (coefficients, source, control.reset))
    return dhs, dh_last
