"""The matrix products of a step, and what belongs to them: biases, layer normalisation.

In loops over many steps the weights of r, z and n are split once, and each gate has its own product. For one or two
steps splitting costs as much as the products: there r, z and n come from one product, which is split.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from grujax.types import Array, GRUSpec, GRUWeights, state_dtype

EPSILON = 1e-5
"""Added to the variance in layer normalisation."""

StateProducts = Callable[[Array, str], Sequence[Array]]
"""(a (..., H), gates "rzn", "rz" or "n") -> a W_hg for each of the gates, b_hn added to that of n."""


def input_products(x: Array, weights: GRUWeights, spec: GRUSpec) -> list[Array]:
    """The products of x (..., I) with w_ih for r, z and n, before the bias: (..., H) each, all steps at once."""
    products = [dot(x, w, spec) for w in split_gates(weights.w_ih)]
    if weights.scale_ih is None:
        return products
    s_r, s_z, s_n = split_gates(weights.scale_ih)
    return [*layer_norm(products[:2], (s_r, s_z)), *layer_norm(products[2:], (s_n,))]


def state_products(weights: GRUWeights, spec: GRUSpec, one_product: bool = False) -> StateProducts:
    """The products of a step with w_hh; with `one_product`, which needs `one_product_serves(spec)`, from one."""
    b_n = candidate_bias(weights)

    def with_bias(p: Array) -> Array:
        return p if b_n is None else p + along(b_n, p)

    def one(a: Array, gates: str) -> Sequence[Array]:
        assert gates == "rzn"
        p_r, p_z, p_n = slice_gates(dot(a, weights.w_hh, spec))
        return p_r, p_z, with_bias(p_n)

    if one_product:
        return one
    w = dict(zip("rzn", split_gates(weights.w_hh), strict=True))
    scale = None if weights.scale_hh is None else dict(zip("rzn", split_gates(weights.scale_hh), strict=True))

    def of_each(a: Array, gates: str) -> Sequence[Array]:
        p = {gate: dot(a, w[gate], spec) for gate in gates}
        if scale is not None:
            for group in ("rz", "n"):  # r and z are normalised together
                if group in gates:
                    made = layer_norm([p[gate] for gate in group], [scale[gate] for gate in group])
                    p |= dict(zip(group, made, strict=True))
        return [with_bias(p[gate]) if gate == "n" else p[gate] for gate in gates]

    return of_each


def one_product_serves(spec: GRUSpec) -> bool:
    """Whether r, z and n can come from one product with w_hh."""
    return spec.reset_after and not spec.layer_norm


def precision_asked(precision: jax.lax.PrecisionLike) -> Any:
    """The precision of a product: JAX's default, in the context of the call, where None is asked for."""
    return jax.config.jax_default_matmul_precision if precision is None else precision  # pyright: ignore[reportAttributeAccessIssue]


def input_bias(weights: GRUWeights) -> Array | None:
    """(3H,): b_ih plus the r and z parts of b_hh. b_hn is left out, since r may multiply it."""
    dtype, b_ih, b_hh = state_dtype(weights.w_hh.dtype), weights.b_ih, weights.b_hh
    return folded(None if b_ih is None else b_ih.astype(dtype), None if b_hh is None else b_hh.astype(dtype))


def folded(b_ih: Array | None, b_hh: Array | None) -> Array | None:
    if b_hh is None:
        return b_ih
    r, z, _ = split_gates(b_hh)
    of_state = jnp.concatenate([r, z, jnp.zeros_like(r)])
    return of_state if b_ih is None else b_ih + of_state


def candidate_bias(weights: GRUWeights) -> Array | None:
    """b_hn (H,), in the dtype of the state."""
    b_hh = weights.b_hh
    return None if b_hh is None else b_hh[b_hh.shape[0] // 3 * 2 :].astype(state_dtype(weights.w_hh.dtype))


def add_bias(gates: Sequence[Array], bias: Array | None) -> list[Array]:
    """bias (3H,) added to r, z and n, (..., H) each."""
    if bias is None:
        return list(gates)
    return [g + along(b, g) for g, b in zip(gates, split_gates(bias), strict=True)]


def split_gates(a: Array) -> tuple[Array, Array, Array]:
    """(..., 3H) -> r, z, n of (..., H) each."""
    r, z, n = jnp.split(a, 3, axis=-1)
    return r, z, n


def slice_gates(a: Array) -> tuple[Array, Array, Array]:
    """`split_gates` by slices, for products that JAX itself differentiates, in a cell.

    The transpose of a split is a concatenation, of which XLA on CPU (jaxlib 0.10.2, AVX-512) made wrong gradients in
    float64 at (B, H) = (4, 5); the transpose of slices is a sum. tests/linen/test_layer.py has that shape.
    """
    hidden_size = a.shape[-1] // 3
    return a[..., :hidden_size], a[..., hidden_size : 2 * hidden_size], a[..., 2 * hidden_size :]


def along(b: Array, like: Array) -> Array:
    """b (H,) in the shape of `like` (..., H)."""
    return lax.broadcast_in_dim(b, like.shape, (like.ndim - 1,))


def layer_norm(products: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """scale ⊙ (p − mean) / √(variance + ε), mean and variance over the last axes of all `products` together."""

    def mean(parts: Sequence[Array]) -> Array:
        return sum(p.mean(-1, keepdims=True) for p in parts) / len(parts)  # pyright: ignore[reportReturnType]

    centre = mean(products)
    centred = [p - centre for p in products]
    unit = lax.rsqrt(mean([jnp.square(p) for p in centred]) + EPSILON)
    return [p * unit * along(s.astype(p.dtype), p) for p, s in zip(centred, scales, strict=True)]


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
    of a dot it would come out as (N, K), and XLA on CPU would transpose it in a pass of its own."""
    return _product(a, w, precision)


@_one_row_product.defjvp
def _one_row_tangent(precision, primals, tangents):
    (a, w), (da, dw) = primals, tangents
    wide = state_dtype(w.dtype)
    by_w = (a.astype(wide).T * dw.astype(wide)).sum(0)[None]
    return _one_row_product(a, w, precision), _one_row_product(da, w, precision) + by_w
