"""One step of the GRU in jnp, and the projection of the input that needs no loop.

Gates are handled apart, as three arrays, never as slices of one product: XLA on CPU fuses each gate's product
with the elementwise work behind it, and one (B, 3H) product sliced into gates runs up to 2.6 times slower.
"""

import jax
import jax.numpy as jnp
from jax import lax

from grujax.types import Array, Gates, GRUSpec, State, state_dtype


def split_gates(a: Array) -> tuple[Array, Array, Array]:
    """(..., 3H) -> r, z, n of (..., H) each."""
    r, z, n = jnp.split(a, 3, axis=-1)
    return r, z, n


def dot(a: Array, w: Array, spec: GRUSpec) -> Array:
    """`a @ w` with `a` (..., K) cast to the dtype of `w` (K, N), summed and returned in float32 at least."""
    return lax.dot_general(
        a.astype(w.dtype),
        w,
        (((a.ndim - 1,), (0,)), ((), ())),
        precision=spec.precision,
        preferred_element_type=state_dtype(w.dtype),
    )


def project(x: Array, w_ih: Array, b_ih: Array | None, b_hh: Array | None, spec: GRUSpec) -> Gates:
    """What the input gives each gate at every step at once: x (..., I) -> (..., 3H).

    `b_ih` and the r and z parts of `b_hh` are added here; `b_hn`, which r multiplies, stays in the recurrence.
    """
    gates = [dot(x, w, spec) for w in split_gates(w_ih)]
    for bias, folded in ((b_ih, 3), (b_hh, 2)):
        if bias is not None:
            parts = [b.astype(gates[0].dtype) for b in split_gates(bias)]
            gates[:folded] = [
                g + lax.broadcast_in_dim(b, g.shape, (g.ndim - 1,))
                for g, b in zip(gates[:folded], parts[:folded], strict=True)
            ]
    return jnp.concatenate(gates, axis=-1)


def candidate_bias(b_hh: Array | None, w_hh: Array) -> Array:
    """b_hn (H,): the third part of `b_hh`, zeros without a bias, in the state's dtype."""
    hidden_size, dtype = w_hh.shape[0], state_dtype(w_hh.dtype)
    return jnp.zeros(hidden_size, dtype) if b_hh is None else b_hh[2 * hidden_size :].astype(dtype)


def step(
    gates_x: tuple[Array, Array, Array], h: State, w_hh: tuple[Array, Array, Array], b_hn: Array, spec: GRUSpec
) -> State:
    """h' = n + z ⊙ (h − n), which is (1 − z) ⊙ n + z ⊙ h: gates_x three (..., H), h (..., H), w_hh three (H, H)."""
    x_r, x_z, x_n = gates_x
    w_r, w_z, w_n = w_hh
    b_n = lax.broadcast_in_dim(b_hn, h.shape, (h.ndim - 1,))
    r = jax.nn.sigmoid(x_r + dot(h, w_r, spec))
    z = jax.nn.sigmoid(x_z + dot(h, w_z, spec))
    if spec.reset_after:
        n = jnp.tanh(x_n + r * (dot(h, w_n, spec) + b_n))
    else:
        n = jnp.tanh(x_n + dot(r * h, w_n, spec) + b_n)
    return n + z * (h - n)
