"""One step of the GRU in jnp, and the projection of the input that needs no loop.

Gates are handled apart, as three arrays, never as slices of one product: XLA on CPU fuses each gate's product
with the elementwise work behind it, and one (B, 3H) product sliced into gates runs up to 2.6 times slower.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from grujax.errors import require
from grujax.types import Activation, Array, Gates, GRUSpec, GRUWeights, Recurrent, State, state_dtype

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,  # max(0, min(1, a / 6 + 1 / 2)), as Keras 3 and torch have it
    "softsign": jax.nn.soft_sign,
    "elu": jax.nn.elu,
    "identity": lambda a: a,
}
UPDATES = ("keep", "take")
EPSILON = 1e-5
"""Added to the variance in layer normalisation."""


class GateValues(NamedTuple):
    """The gates of one or many steps, (..., H) each."""

    r: Array
    z: Array
    n: Array


class Split(NamedTuple):
    """`Recurrent` with its gates apart."""

    w: Sequence[Array]  # three (H, H)
    b_n: Array  # (H,)
    scale: Sequence[Array] | None  # three (H,)


def check_spec(spec: GRUSpec) -> None:
    """Raises `InputError` for a spec that names what is not there."""
    require(spec.update in UPDATES, "update", f"one of {list(UPDATES)}", repr(spec.update))
    check_activation(spec.activation, "activation")
    check_activation(spec.gate_activation, "gate_activation")
    if spec.clip is not None:
        positive = isinstance(spec.clip, Real) and spec.clip > 0
        require(positive, "clip", "a positive number or None", repr(spec.clip))


def check_activation(activation: Activation, argument: str) -> None:
    known = callable(activation) or activation in ACTIVATIONS
    require(known, argument, f"one of {sorted(ACTIVATIONS)} or an elementwise function", repr(activation))


def activate(activation: Activation, clip: float | None = None) -> Callable[[Array], Array]:
    """The function of a gate: the activation of what stands inside it, clipped."""
    f = ACTIVATIONS[activation] if isinstance(activation, str) else activation
    return f if clip is None else lambda a: f(lax.clamp(jnp.asarray(-clip, a.dtype), a, jnp.asarray(clip, a.dtype)))


def split_gates(a: Array) -> tuple[Array, Array, Array]:
    """(..., 3H) -> r, z, n of (..., H) each."""
    r, z, n = jnp.split(a, 3, axis=-1)
    return r, z, n


def split(recurrent: Recurrent) -> Split:
    scale = None if recurrent.scale_hh is None else split_gates(recurrent.scale_hh)
    return Split(split_gates(recurrent.w_hh), recurrent.b_hn, scale)


def dot(a: Array, w: Array, spec: GRUSpec) -> Array:
    """`a @ w` with `a` (..., K) cast to the dtype of `w` (K, N), summed and returned in float32 at least."""
    return lax.dot_general(
        a.astype(w.dtype),
        w,
        (((a.ndim - 1,), (0,)), ((), ())),
        precision=spec.precision,
        preferred_element_type=state_dtype(w.dtype),
    )


def along_last(b: Array, like: Array) -> Array:
    """b (H,) as `like` (..., H)."""
    return lax.broadcast_in_dim(b, like.shape, (like.ndim - 1,))


def layer_norm(products: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """scale ⊙ (p − mean) / √(variance + ε), mean and variance over the last axes of all `products` together."""

    def mean(parts: Sequence[Array]) -> Array:
        return sum(p.mean(-1, keepdims=True) for p in parts) / len(parts)  # pyright: ignore[reportReturnType]

    centre = mean(products)
    centred = [p - centre for p in products]
    unit = lax.rsqrt(mean([jnp.square(p) for p in centred]) + EPSILON)
    return [p * unit * along_last(s.astype(p.dtype), p) for p, s in zip(centred, scales, strict=True)]


def project(x: Array, weights: GRUWeights, spec: GRUSpec) -> Gates:
    """What the input gives each gate at every step at once: x (..., I) -> (..., 3H).

    `b_ih` and the r and z parts of `b_hh` are added here; `b_hn`, which r multiplies, stays in the recurrence.
    """
    gates = [dot(x, w, spec) for w in split_gates(weights.w_ih)]
    if weights.scale_ih is not None:
        s_r, s_z, s_n = split_gates(weights.scale_ih)
        gates = [*layer_norm(gates[:2], (s_r, s_z)), *layer_norm(gates[2:], (s_n,))]
    for bias, folded in ((weights.b_ih, 3), (weights.b_hh, 2)):
        if bias is not None:
            parts = [along_last(b.astype(gates[0].dtype), gates[0]) for b in split_gates(bias)]
            gates[:folded] = [g + b for g, b in zip(gates[:folded], parts[:folded], strict=True)]
    return jnp.concatenate(gates, axis=-1)


def recurrent(weights: GRUWeights) -> Recurrent:
    """What of the weights stands inside the recurrence: `w_hh`, `b_hn` (zeros without a bias), `scale_hh`."""
    hidden_size, dtype = weights.w_hh.shape[0], state_dtype(weights.w_hh.dtype)
    b_hh, scale = weights.b_hh, weights.scale_hh
    b_hn = jnp.zeros(hidden_size, dtype) if b_hh is None else b_hh[2 * hidden_size :].astype(dtype)
    return Recurrent(weights.w_hh, b_hn, None if scale is None else scale.astype(dtype))


def cast(weights: GRUWeights, dtype: jnp.dtype) -> GRUWeights:
    """The weights with both matrices in the compute dtype."""
    return weights._replace(w_ih=weights.w_ih.astype(dtype), w_hh=weights.w_hh.astype(dtype))


def gate_values(
    gates_x: Sequence[Array], h: State, weights: Split, spec: GRUSpec, state_mask: Array | None = None
) -> GateValues:
    """r, z, n of steps that the states h (..., H) enter; gates_x three (..., H), state_mask (..., H)."""
    x_r, x_z, x_n = gates_x
    w_r, w_z, w_n = weights.w
    gate, candidate = (activate(a, spec.clip) for a in (spec.gate_activation, spec.activation))
    seen = h if state_mask is None else state_mask * h
    b_n = along_last(weights.b_n, h)
    p_r, p_z = dot(seen, w_r, spec), dot(seen, w_z, spec)
    if weights.scale is not None:
        p_r, p_z = layer_norm((p_r, p_z), weights.scale[:2])
    r, z = gate(x_r + p_r), gate(x_z + p_z)
    p_n = dot(seen if spec.reset_after else r * seen, w_n, spec)
    if weights.scale is not None:
        (p_n,) = layer_norm((p_n,), weights.scale[2:])
    n = candidate(x_n + (r * (p_n + b_n) if spec.reset_after else p_n + b_n))
    return GateValues(r, z, n)


def step(gates_x: Sequence[Array], h: State, weights: Split, spec: GRUSpec, state_mask: Array | None = None) -> State:
    """h' = n + z ⊙ (h − n), which is (1 − z) ⊙ n + z ⊙ h; with update="take" h + z ⊙ (n − h)."""
    _, z, n = gate_values(gates_x, h, weights, spec, state_mask)
    return n + z * (h - n) if spec.update == "keep" else h + z * (n - h)
