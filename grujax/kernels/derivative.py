r"""The one derivative rule of the recurrence.

Once the states are known, the tangent of the recurrence is linear in them,

    dh_t = z ⊙ dh + c_r ⊙ (dh W_hr) + c_z ⊙ (dh W_hz) + c_n ⊙ (dh W_hn) + s_t        with dh = dh_{t−1}

and its coefficients z, c and source s (which holds the tangents of gates_x, w_hh and b_hn) need no loop: they are
a few products over all steps at once. Written as a `custom_jvp` whose tangent is that linear loop, JAX transposes
it into the smallest backward loop there is (only dh goes round; the weight gradients are one product each, after
it), and forward mode, Jacobians and Hessian products come from the same lines.

With reset_after=False the third term is c_n ⊙ ((a_r ⊙ (dh W_hr) + r ⊙ dh) W_hn): r multiplies h before the product.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from grujax.step import dot, split_gates
from grujax.types import Array, Gates, GRUSpec, State, States, Valid

Forward = Callable[
    [Gates, State, Array, Array, Valid | None, Valid | None, Array | None, GRUSpec], tuple[States, State]
]


class Coefficients(NamedTuple):
    """What multiplies dh in each step of the tangent, (T, B, H) each."""

    keep: Array | float  # dh itself: z
    r: Array | float  # dh W_hr
    z: Array | float  # dh W_hz
    n: Array | float  # dh W_hn, or what stands for it with reset_after=False
    gate_r: Array | float | None = None  # the value of r, with reset_after=False alone


def with_derivative(forward: Forward) -> Forward:
    """`forward`, differentiated by the rule above and not by its own lines."""

    @partial(jax.custom_jvp, nondiff_argnums=(7,))
    def run(gates_x, h0, w_hh, b_hn, valid, reset, h_reset, spec):
        return forward(gates_x, h0, w_hh, b_hn, valid, reset, h_reset, spec)

    @run.defjvp
    def rule(spec, primals, tangents):
        gates_x, h0, w_hh, b_hn, valid, reset, h_reset = primals
        dgates_x, dh0, dw_hh, db_hn, _, _, dh_reset = tangents
        hs, h_last = run(*primals, spec)
        h_in = jnp.concatenate([h0[None], hs])[:-1]  # also right for T = 0
        if reset is not None:
            h_in = jnp.where(reset[..., None], 0 if h_reset is None else h_reset[None, None], h_in)
        coefficients, source = linearise(gates_x, h_in, w_hh, b_hn, dgates_x, dw_hh, db_hn, valid, spec)
        return (hs, h_last), linear_scan(coefficients, source, dh0, w_hh, reset, dh_reset, spec)

    return run


def linearise(
    gates_x: Gates,
    h_in: States,
    w_hh: Array,
    b_hn: Array,
    dgates_x: Gates,
    dw_hh: Array,
    db_hn: Array,
    valid: Valid | None,
    spec: GRUSpec,
) -> tuple[Coefficients, States]:
    """The coefficients and the source of every step; h_in (T, B, H) are the states that enter the steps."""
    (x_r, x_z, x_n), (w_r, w_z, w_n) = split_gates(gates_x), split_gates(w_hh)
    (dx_r, dx_z, dx_n), (dw_r, dw_z, dw_n) = split_gates(dgates_x), split_gates(dw_hh)
    b_n, db_n = b_hn[None, None], db_hn[None, None]

    def product(h: States, w: Array) -> States:  # flattened, so that its transpose is one product too
        return dot(h.reshape(-1, h.shape[-1]), w, spec).reshape(h.shape)

    r = jax.nn.sigmoid(x_r + product(h_in, w_r))
    z = jax.nn.sigmoid(x_z + product(h_in, w_z))
    if spec.reset_after:
        m = product(h_in, w_n) + b_n
        n = jnp.tanh(x_n + r * m)
    else:
        m = h_in
        n = jnp.tanh(x_n + product(r * h_in, w_n) + b_n)
    a_n = (1 - z) * (1 - n * n)  # dh_t / d(inside of tanh)
    a_r = m * r * (1 - r)
    a_z = (h_in - n) * z * (1 - z)

    inside_r = dx_r + product(h_in, dw_r)
    inside_z = dx_z + product(h_in, dw_z)
    if spec.reset_after:
        coefficients = Coefficients(keep=z, r=a_n * a_r, z=a_z, n=a_n * r)
        inside_n = dx_n + a_r * inside_r + r * (product(h_in, dw_n) + db_n)
    else:
        coefficients = Coefficients(keep=z, r=a_r, z=a_z, n=a_n, gate_r=r)
        inside_n = dx_n + product(a_r * inside_r, w_n) + product(r * h_in, dw_n) + db_n
    source = a_z * inside_z + a_n * inside_n
    if valid is not None:
        held = Coefficients(keep=1.0, r=0.0, z=0.0, n=0.0, gate_r=0.0 if coefficients.gate_r is not None else None)
        coefficients = jax.tree.map(lambda c, h: jnp.where(valid[..., None], c, h), coefficients, held)
        source = jnp.where(valid[..., None], source, 0)
    return coefficients, source


def linear_scan(
    coefficients: Coefficients,
    source: States,
    dh0: State,
    w_hh: Array,
    reset: Valid | None,
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
        inside_n = times(dh, w_n) if c.gate_r is None else times(c.r * times(dh, w_r) + c.gate_r * dh, w_n)
        dh_new = c.keep * dh + c.z * times(dh, w_z) + c.n * inside_n + s
        if c.gate_r is None:
            dh_new += c.r * times(dh, w_r)
        return dh_new, dh_new

    dh_last, dhs = lax.scan(body, dh0, (coefficients, source, reset))
    return dhs, dh_last
