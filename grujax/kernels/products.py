"""The matrix products of a step, with their biases and layer normalisation.

In loops over many steps the weights are split once into those of r, z and n, and each gate has its own product. For one
or two steps splitting the weights costs as much as the products, so there one product is computed and then split.
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
"""(a (..., H), gates "rzn", "rz" or "n") -> a W_hg for each gate g, with b_hn added to the product of n."""


def input_products(x: Array, weights: GRUWeights, spec: GRUSpec) -> list[Array]:
    """The products of x (..., I) with w_ih for r, z and n, each (..., H), without biases; all steps at once."""
    products = [dot(x, w, spec) for w in split_gates(weights.w_ih)]
    if weights.scale_ih is None:
        return products
    s_r, s_z, s_n = split_gates(weights.scale_ih)
    return [*layer_norm(products[:2], (s_r, s_z)), *layer_norm(products[2:], (s_n,))]


def state_products(weights: GRUWeights, spec: GRUSpec, one_product: bool = False) -> StateProducts:
    """Returns the function that multiplies a state by w_hh.

    one_product: compute r, z and n in one product; needs `one_product_serves(spec)`.
    """
    b_n = candidate_bias(weights)

    def with_bias(p: Array) -> Array:
        return p if b_n is None else p + along(b_n, p)

    def in_one_product(a: Array, gates: str) -> Sequence[Array]:
        assert gates == "rzn"
        p_r, p_z, p_n = slice_gates(dot(a, weights.w_hh, spec))
        return p_r, p_z, with_bias(p_n)

    if one_product:
        return in_one_product
    w = dict(zip("rzn", split_gates(weights.w_hh), strict=True))
    scale = None if weights.scale_hh is None else dict(zip("rzn", split_gates(weights.scale_hh), strict=True))

    def by_gate(a: Array, gates: str) -> Sequence[Array]:
        p = {gate: dot(a, w[gate], spec) for gate in gates}
        if scale is not None:
            for group in ("rz", "n"):  # r and z are normalised together
                if group in gates:
                    normalised = layer_norm([p[gate] for gate in group], [scale[gate] for gate in group])
                    p |= dict(zip(group, normalised, strict=True))
        return [with_bias(p[gate]) if gate == "n" else p[gate] for gate in gates]

    return by_gate


def one_product_serves(spec: GRUSpec) -> bool:
    """Whether r, z and n can come from one product with w_hh."""
    return spec.reset_after and not spec.layer_norm


def precision_asked(precision: jax.lax.PrecisionLike) -> Any:
    """The precision of a product; None becomes JAX's default in the context of the call."""
    return jax.config.jax_default_matmul_precision if precision is None else precision  # pyright: ignore[reportAttributeAccessIssue]


def input_bias(weights: GRUWeights) -> Array | None:
    """b_ih plus the r and z parts of b_hh, (3H,). b_hn is left out because r may multiply it."""
    dtype, b_ih, b_hh = state_dtype(weights.w_hh.dtype), weights.b_ih, weights.b_hh
    return folded(None if b_ih is None else b_ih.astype(dtype), None if b_hh is None else b_hh.astype(dtype))


def folded(b_ih: Array | None, b_hh: Array | None) -> Array | None:
    """`input_bias` of two biases in the same dtype."""
    if b_hh is None:
        return b_ih
    r, z, _ = split_gates(b_hh)
    b_rz = jnp.concatenate([r, z, jnp.zeros_like(r)])
    return b_rz if b_ih is None else b_ih + b_rz


def candidate_bias(weights: GRUWeights) -> Array | None:
    """b_hn (H,), in the dtype of the state."""
    b_hh = weights.b_hh
    return None if b_hh is None else b_hh[b_hh.shape[0] // 3 * 2 :].astype(state_dtype(weights.w_hh.dtype))


def add_bias(gates: Sequence[Array], bias: Array | None) -> list[Array]:
    """Adds bias (3H,) to r, z and n, each (..., H)."""
    if bias is None:
        return list(gates)
    return [g + along(b, g) for g, b in zip(gates, split_gates(bias), strict=True)]


def split_gates(a: Array) -> tuple[Array, Array, Array]:
    """Splits (..., 3H) into r, z and n, each (..., H)."""
    r, z, n = jnp.split(a, 3, axis=-1)
    return r, z, n


def slice_gates(a: Array) -> tuple[Array, Array, Array]:
    """`split_gates` by slicing, for the products of a cell, which JAX itself differentiates.

    The transpose of a split is a concatenation, for which XLA on CPU (jaxlib 0.10.2, AVX-512) computed wrong gradients
    in float64 at (B, H) = (4, 5). The transpose of slices is a sum. tests/linen/test_layer.py covers that shape.
    """
    hidden_size = a.shape[-1] // 3
    return a[..., :hidden_size], a[..., hidden_size : 2 * hidden_size], a[..., 2 * hidden_size :]


def along(b: Array, like: Array) -> Array:
    """Broadcasts b (H,) to the shape of `like` (..., H)."""
    return lax.broadcast_in_dim(b, like.shape, (like.ndim - 1,))


def layer_norm(products: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """scale ⊙ (p − mean) / √(variance + ε), with mean and variance over the last axes of all `products` together."""

    def mean(parts: Sequence[Array]) -> Array:
        return sum(p.mean(-1, keepdims=True) for p in parts) / len(parts)  # pyright: ignore[reportReturnType]

    centre = mean(products)
    centred = [p - centre for p in products]
    unit = lax.rsqrt(mean([jnp.square(p) for p in centred]) + EPSILON)
    return [p * unit * along(s.astype(p.dtype), p) for p, s in zip(centred, scales, strict=True)]


def dot(a: Array, w: Array, spec: GRUSpec) -> Array:
    """Returns `a @ w` with a (..., K) cast to the dtype of w (K, N); summed and returned in at least float32.

    The leading axes are joined into one: over two axes, XLA on CPU takes up to 1.5 times as long for the transpose, a
    weight gradient. Explicit sharding does not allow joining split axes, so there they stay separate.
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
    """`_product` for one row, with a weight gradient that is an outer product in the layout of w (K, N).

    As the transpose of a dot it would be (N, K), and XLA on CPU would transpose it in a separate pass.
    """
    return _product(a, w, precision)


@_one_row_product.defjvp
def _one_row_tangent(precision, primals, tangents):
    (a, w), (da, dw) = primals, tangents
    wide = state_dtype(w.dtype)
    by_w = (a.astype(wide).T * dw.astype(wide)).sum(0)[None]
    return _one_row_product(a, w, precision), _one_row_product(da, w, precision) + by_w
