"""One step of the GRU in jnp, and the projection of the input that needs no loop.

In loops over many steps the gates' weights are taken apart once, and each gate has its own product; for a step or
two, taking them apart costs as much as the products, and r, z and n come from one, which is split.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from grujax.errors import require, require_one_of
from grujax.types import Activation, Array, GRUSpec, GRUWeights, Projection, Recurrence, Recurrent, State, state_dtype

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
SLOPES: dict[Any, Callable[[Array], Array]] = {"tanh": lambda y: (1 + y) * (1 - y), "sigmoid": lambda y: y * (1 - y)}
"""The slope of an activation by its value, for those whose value tells it best."""
UPDATES = ("keep", "take")
EPSILON = 1e-5
"""Added to the variance in layer normalisation."""


class GateValues(NamedTuple):
    """The gates of one or many steps, (..., H) each."""

    r: Array
    z: Array
    n: Array


class Split(NamedTuple):
    """`Recurrent` as the steps use it."""

    w: Sequence[Array]  # three (H, H), or one (H, 3H): r, z and n from one product
    b_n: Array  # (H,)
    scale: Sequence[Array] | None  # three (H,)


def check_spec(spec: GRUSpec) -> None:
    """Raises `InputError` for a spec that names what is not there."""
    require_one_of(spec.update, UPDATES, "update")
    check_activation(spec.activation, "activation")
    check_activation(spec.gate_activation, "gate_activation")
    if spec.clip is not None:
        positive = isinstance(spec.clip, Real) and spec.clip > 0
        require(positive, "clip", "a positive number or None", repr(spec.clip))


def check_activation(activation: Activation, argument: str) -> None:
    if not callable(activation):
        require_one_of(activation, sorted(ACTIVATIONS), argument, "Or pass an elementwise function.")


def activate(activation: Activation, clip: float | None = None) -> Callable[[Array], Array]:
    """The function of a gate: the activation of what stands inside it, clipped."""
    f = ACTIVATIONS[activation] if isinstance(activation, str) else activation
    return f if clip is None else lambda a: f(lax.clamp(jnp.asarray(-clip, a.dtype), a, jnp.asarray(clip, a.dtype)))


def split_gates(a: Array) -> tuple[Array, Array, Array]:
    """(..., 3H) -> r, z, n of (..., H) each."""
    r, z, n = jnp.split(a, 3, axis=-1)
    return r, z, n


def slice_gates(a: Array) -> tuple[Array, Array, Array]:
    """`split_gates` by slices, for products that JAX itself differentiates ("brief").

    The transpose of a split is a concatenation, of which XLA on CPU (jaxlib 0.10.2, AVX-512) made wrong gradients in
    float64 at (B, H) = (4, 5); the transpose of slices is a sum. tests/test_layer.py has that shape.
    """
    hidden_size = a.shape[-1] // 3
    return a[..., :hidden_size], a[..., hidden_size : 2 * hidden_size], a[..., 2 * hidden_size :]


def split(recurrent: Recurrent, joint: bool = False) -> Split:
    """joint: leave w_hh as it is, which reset_after=True without layer normalisation can."""
    scale = None if recurrent.scale_hh is None else split_gates(recurrent.scale_hh)
    return Split((recurrent.w_hh,) if joint else split_gates(recurrent.w_hh), recurrent.b_hn, scale)


def dot(a: Array, w: Array, spec: GRUSpec) -> Array:
    """`a @ w` with `a` (..., K) cast to the dtype of `w` (K, N), summed and returned in float32 at least.

    The product runs on (rows, K): its transpose, a weight gradient, takes XLA on CPU up to 1.5 times as long over two
    axes. Explicit sharding refuses to join axes that are split, so there they stay apart.
    """
    a = a.astype(w.dtype)
    sharded = any(axis is not None for axis in jax.typeof(a).sharding.spec)
    rows = a if sharded else a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
    one_row = isinstance(rows.shape[0], int) and rows.shape[:-1] == (1,) and not sharded
    product = (_one_row_product if one_row else _product)(rows, w, spec.precision)
    return product if sharded else product.reshape(*a.shape[:-1], w.shape[1])


def _product(a: Array, w: Array, precision: jax.lax.PrecisionLike) -> Array:
    numbers = (((a.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(a, w, numbers, precision=precision, preferred_element_type=state_dtype(w.dtype))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _one_row_product(a: Array, w: Array, precision: jax.lax.PrecisionLike) -> Array:
    """`_product` of one row, whose weight gradient is an outer product made in the layout of w (K, N). As the transpose
    of a dot it would come out as (N, K), and XLA on CPU would turn it round in a pass of its own."""
    return _product(a, w, precision)


@_one_row_product.defjvp
def _one_row_tangent(precision, primals, tangents):
    (a, w), (da, dw) = primals, tangents
    wide = state_dtype(w.dtype)
    by_w = (a.astype(wide).T * dw.astype(wide)).sum(0)[None]
    return _one_row_product(a, w, precision), _one_row_product(da, w, precision) + by_w


def along(b: Array, like: Array, axis: int = -1) -> Array:
    """b (H,) in the shape of `like`, whose H units lie on `axis`."""
    return lax.broadcast_in_dim(b, like.shape, (axis % like.ndim,))


def layer_norm(products: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """scale ⊙ (p − mean) / √(variance + ε), mean and variance over the last axes of all `products` together."""

    def mean(parts: Sequence[Array]) -> Array:
        return sum(p.mean(-1, keepdims=True) for p in parts) / len(parts)  # pyright: ignore[reportReturnType]

    centre = mean(products)
    centred = [p - centre for p in products]
    unit = lax.rsqrt(mean([jnp.square(p) for p in centred]) + EPSILON)
    return [p * unit * along(s.astype(p.dtype), p) for p, s in zip(centred, scales, strict=True)]


def projection(x: Array, weights: GRUWeights) -> Projection:
    """What the input gives the gates, not yet computed: x (..., I) and the weights as they enter the products.

    `b_ih` and the r and z parts of `b_hh` become one bias; `b_hn`, which r multiplies, stays in the recurrence.
    """
    dtype, b_ih, b_hh = state_dtype(weights.w_ih.dtype), weights.b_ih, weights.b_hh
    bias = None if b_ih is None else b_ih.astype(dtype)
    if b_hh is not None:
        r, z, _ = split_gates(b_hh.astype(dtype))
        folded = jnp.concatenate([r, z, jnp.zeros_like(r)])
        bias = folded if bias is None else bias + folded
    scale = weights.scale_ih
    return Projection(x, weights.w_ih, bias, None if scale is None else scale.astype(dtype))


def project(p: Projection, spec: GRUSpec, with_bias: bool = True, joint: bool = False) -> list[Array]:
    """What the input gives r, z and n at every step at once, (..., H) each; the biases can be left for later.

    joint: from one product, whose result is split, not from three whose weights are.
    """
    if p.w_ih is None:
        gates = list(split_gates(p.x))
    elif joint:
        gates = list(slice_gates(dot(p.x, p.w_ih, spec)))
    else:
        gates = [dot(p.x, w, spec) for w in split_gates(p.w_ih)]
    if p.scale_ih is not None:
        s_r, s_z, s_n = split_gates(p.scale_ih)
        gates = [*layer_norm(gates[:2], (s_r, s_z)), *layer_norm(gates[2:], (s_n,))]
    return add_bias(gates, p.bias if with_bias else None)


def add_bias(gates: Sequence[Array], bias: Array | None, axis: int = -1) -> list[Array]:
    """bias (3H,) added to r, z and n, whose H units lie on `axis`."""
    if bias is None:
        return list(gates)
    return [g + along(b, g, axis) for g, b in zip(gates, split_gates(bias), strict=True)]


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
) -> tuple[GateValues, Array | None]:
    """r, z, n of steps that the states h (..., H) enter, and m; gates_x three (..., H), state_mask (..., H)."""
    seen = h if state_mask is None else state_mask * h
    if len(weights.w) == 1:
        *products, p_n = slice_gates(dot(seen, weights.w[0], spec))
        r, z = reset_and_update(gates_x, products, spec)
        m = p_n + along(weights.b_n, h)
        return GateValues(r, z, candidate(gates_x[2], r, m, spec)), m
    w_r, w_z, w_n = weights.w
    p_r, p_z = dot(seen, w_r, spec), dot(seen, w_z, spec)
    if weights.scale is not None:
        p_r, p_z = layer_norm((p_r, p_z), weights.scale[:2])
    r, z = reset_and_update(gates_x, (p_r, p_z), spec)
    p_n = dot(seen if spec.reset_after else r * seen, w_n, spec)
    if weights.scale is not None:
        (p_n,) = layer_norm((p_n,), weights.scale[2:])
    m = p_n + along(weights.b_n, h)
    return GateValues(r, z, candidate(gates_x[2], r, m, spec)), m if spec.reset_after else None


def reset_and_update(gates_x: Sequence[Array], products: Sequence[Array], spec: GRUSpec) -> tuple[Array, Array]:
    """r and z: the gate's activation of what the input and the state give them."""
    gate = activate(spec.gate_activation, spec.clip)
    return gate(gates_x[0] + products[0]), gate(gates_x[1] + products[1])


def candidate(x_n: Array, r: Array, m: Array, spec: GRUSpec) -> Array:
    """n; m is the recurrent product with its bias, which r multiplies with reset_after, and is in already without."""
    return activate(spec.activation, spec.clip)(x_n + (r * m if spec.reset_after else m))


def mix(h: State, z: Array, n: Array, spec: GRUSpec) -> State:
    """h' = n + z ⊙ (h − n), which is (1 − z) ⊙ n + z ⊙ h; with update="take" h + z ⊙ (n − h)."""
    return n + z * (h - n) if spec.update == "keep" else h + z * (n - h)


def step(gates_x: Sequence[Array], h: State, weights: Split, spec: GRUSpec, state_mask: Array | None = None) -> State:
    """The state h' after the states h."""
    (_, z, n), _ = gate_values(gates_x, h, weights, spec, state_mask)
    return mix(h, z, n, spec)


def steered(
    one_step: Callable[[State], tuple[State, Any]],
    h: State,
    h_start: State,
    valid: Array | None,
    reset: Array | None,
    hold: Array | None,
) -> tuple[State, Any]:
    """One step under `Control`, all of it in the layout of h: begin anew, hold units, hold the state."""
    if reset is not None:
        h = jnp.where(reset, h_start, h)
    h_new, more = one_step(h)
    if hold is not None:
        h_new = hold * h + (1 - hold) * h_new
    return h_new if valid is None else jnp.where(valid, h_new, h), more


def steps_a_trip(recurrence: Recurrence, most: int) -> int:
    """How far to unroll, where the projection of a later step need not wait for the state after the first.

    JAX unrolls loops of known length alone.
    """
    return most if isinstance(recurrence.projection.x.shape[0], int) else 1
