"""The equations of one step of the GRU in jax.numpy; `grujax.equations` has the same in NumPy."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from grujax.kernels.products import (
    StateProducts,
    add_bias,
    dot,
    input_bias,
    input_products,
    one_product_serves,
    slice_gates,
    state_products,
)
from grujax.types import Activation, Array, Gates, GRUSpec, GRUWeights, Recurrence, State, state_dtype

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,  # max(0, min(1, a / 6 + 1 / 2)), as in Keras 3 and torch
    "softsign": jax.nn.soft_sign,
    "elu": jax.nn.elu,
    "identity": lambda a: a,
}
SLOPES: dict[Any, Callable[[Array], Array]] = {"tanh": lambda y: (1 + y) * (1 - y), "sigmoid": lambda y: y * (1 - y)}
"""The derivatives of activations as functions of their values, where that is exact and cheap."""
UPDATES = ("keep", "take")


def step(
    h: State, gates_x: Sequence[Array], multiply: StateProducts, spec: GRUSpec, state_mask: Array | None = None
) -> tuple[State, Gates, Array]:
    """Returns the next state h', the gates, and m, each (..., H).

    m is W_hn h + b_hn, which r multiplies; with reset_after=False, W_hn (r ⊙ h) + b_hn.

    Args:
      h: the state before the step.
      gates_x: the input's part of r, z and n: W_ir x + b_ir + b_hr, the same for z, and W_in x + b_in.
      multiply: returns the products of a state with W_hh for the named gates, with b_hn added to that of n.
      state_mask: multiplies the state where the products read it.
    """
    gate, activation = activate(spec.gate_activation, spec.clip), activate(spec.activation, spec.clip)
    x_r, x_z, x_n = gates_x
    read = h if state_mask is None else state_mask * h
    p_r, p_z, *p_n = multiply(read, "rzn" if spec.reset_after else "rz")
    r = gate(x_r + p_r)
    z = gate(x_z + p_z)
    (m,) = p_n or multiply(r * read, "n")
    n = activation(x_n + (r * m if spec.reset_after else m))
    new = n + z * (h - n) if spec.update == "keep" else h + z * (n - h)  # (1 − z) ⊙ n + z ⊙ h, (1 − z) ⊙ h + z ⊙ n
    return new, Gates(r, z, n), m


def masked_step(
    one_step: Callable[[State], tuple[State, Gates, Array]],
    h: State,
    h_reset: State,
    valid: Array | None,
    reset: Array | None,
    hold: Array | None,
) -> tuple[State, Gates, Array]:
    """Runs a step under `Control`: resets the state before it, and keeps held units and the rows that are not valid.

    h_reset, valid, reset and hold must broadcast against h.
    """
    if reset is not None:
        h = jnp.where(reset, h_reset, h)
    new, gates, m = one_step(h)
    if hold is not None:
        new = hold * h + (1 - hold) * new
    return new if valid is None else jnp.where(valid, new, h), gates, m


def scan_body(
    recurrence: Recurrence,
    gates_of: Callable[[Any], Sequence[Array]],
    multiply: StateProducts,
    spec: GRUSpec,
    with_gates: bool,
) -> Callable[[State, tuple], tuple[State, tuple]]:
    """Returns the body of a `lax.scan` over (x, valid, reset, hold), from h (B, H) to h' and (h', gates, m).

    gates_of: maps the x of one step, or its products, to the input's part of r, z and n with the biases added.
    """
    _, _, h0, control = recurrence
    assert h0 is not None
    h_reset = jnp.zeros_like(h0) if control.h_reset is None else control.h_reset[None] + jnp.zeros_like(h0)

    def body(h: State, inputs: tuple) -> tuple[State, tuple]:
        x, valid, reset, hold = inputs
        one_step = partial(step, gates_x=gates_of(x), multiply=multiply, spec=spec, state_mask=control.state_mask)
        valid, reset = (None if flags is None else flags[:, None] for flags in (valid, reset))
        h, gates, m = masked_step(one_step, h, h_reset, valid, reset, hold)
        return h, (h, *kept(gates, m, spec, with_gates))

    return body


def kept(gates: Gates, m: Array, spec: GRUSpec, with_gates: bool) -> tuple[Gates | None, Array | None]:
    """The gates and m that a loop returns for a step, or None for both."""
    return (gates, m if spec.reset_after else None) if with_gates else (None, None)


def cell_step(x: Array, h: State, weights: GRUWeights, spec: GRUSpec, state_mask: Array | None = None) -> State:
    """Returns the state after one step, from x (..., I) and h (..., H); products in the dtype of the weights."""
    one_product = one_product_serves(spec)
    products = slice_gates(dot(x, weights.w_ih, spec)) if one_product else input_products(x, weights, spec)
    gates_x = add_bias(products, input_bias(weights))
    multiply = state_products(weights, spec, one_product)
    return step(h.astype(state_dtype(weights.w_hh.dtype)), gates_x, multiply, spec, state_mask)[0]


def activate(activation: Activation, clip: float | None = None) -> Callable[[Array], Array]:
    """Returns the activation as a function that first clips its argument to ±clip."""
    f = ACTIVATIONS[activation] if isinstance(activation, str) else activation
    return f if clip is None else lambda a: f(lax.clamp(jnp.asarray(-clip, a.dtype), a, jnp.asarray(clip, a.dtype)))


def cast(weights: GRUWeights, dtype: jnp.dtype) -> GRUWeights:
    """Returns the weights with both matrices cast to the compute dtype."""
    return weights._replace(w_ih=weights.w_ih.astype(dtype), w_hh=weights.w_hh.astype(dtype))
