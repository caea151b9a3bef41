"""One layer, one direction, without Flax."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from grujax.errors import require
from grujax.kernels import explain, gru_sequence
from grujax.step import candidate_bias, project
from grujax.types import Array, GRUSpec, GRUWeights, Inputs


def gru(
    x: Inputs,
    weights: GRUWeights,
    h0: Array | None = None,
    *,
    lengths: ArrayLike | None = None,
    reverse: bool = False,
    reset_after: bool = True,
    implementation: str | None = None,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Array, Array]:
    """One GRU layer in one direction, the equations of `torch.nn.GRU`:

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    Args:
      x: (..., T, I), any number of batch axes, none included.
      weights: `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, columns r | z | n; biases may be None.
      h0: (..., H), zeros where None.
      lengths: integers (...), how many steps of each sequence are valid. What stands past them, NaN included,
        reaches no output and no gradient. Under jit, where values are unknown, a length past T means T.
      reverse: read the valid part backwards; the output stays in time order.
      reset_after: False puts r before the product, n = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn) (Cho et al. 2014).
      implementation: "fused", "scan", or None, which chooses (`grujax.kernels.explain`).
      dtype: compute dtype of the products; the dtype that x and the weights promote to where None.
      precision: of the products; None follows `jax.default_matmul_precision`.

    Returns:
      hs (..., T, H), exactly 0 at steps that are not valid, and h_last (..., H), the state after the last valid
      step, h0 for length 0. Both in float32 at least.

    Raises:
      InputError: a shape, dtype or length that does not fit.

    >>> import jax, jax.numpy as jnp
    >>> w = GRUWeights(jnp.ones((4, 9)), jnp.ones((3, 9)), jnp.ones(9), jnp.ones(9))
    >>> hs, h_last = gru(jnp.ones((2, 5, 4)), w, lengths=jnp.array([5, 3]))
    >>> hs.shape, h_last.shape
    ((2, 5, 3), (2, 3))

    Source: torch.nn.GRU; Cho et al. 2014, arXiv 1406.1078.
    """
    spec = GRUSpec(reset_after, precision)
    explain(spec=spec, implementation=implementation)
    x, lengths = check_inputs(x, weights.w_ih.shape[0], lengths)
    _check_weights(weights)
    batch, hidden_size = x.shape[:-2], weights.w_hh.shape[0]
    if h0 is not None:
        require(h0.shape == (*batch, hidden_size), "h0", f"shape {(*batch, hidden_size)}", h0.shape)
        require_floating(h0, "h0")
    if dtype is None:
        dtype = jnp.result_type(x, weights.w_ih)
    return _gru(x, weights, h0, lengths, reverse, spec, implementation, jnp.dtype(dtype))


@partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _gru(
    x: Array,
    weights: GRUWeights,
    h0: Array | None,
    lengths: Array | None,
    reverse: bool,
    spec: GRUSpec,
    implementation: str | None,
    dtype: jnp.dtype,
) -> tuple[Array, Array]:
    batch, (n_steps, n_features) = x.shape[:-2], x.shape[-2:]
    n_rows, hidden_size = math.prod(batch), weights.w_hh.shape[0]
    w_ih, w_hh = weights.w_ih.astype(dtype), weights.w_hh.astype(dtype)

    def flat(a: Array, *shape: int) -> Array:
        return a if len(batch) == 1 else a.reshape(n_rows, *shape)

    def flip(a: Array) -> Array:
        return jnp.flip(a, 0) if reverse else a

    x = flip(flat(x, n_steps, n_features).astype(dtype).swapaxes(0, 1))
    valid = None
    if lengths is not None:
        # Read backwards in time the padding comes first, and holds h0: no gather is needed to reverse a sequence.
        valid = flip(valid_steps(n_steps, flat(lengths)).T)
        x = jnp.where(valid[..., None], x, 0)
    start = jnp.zeros((n_rows, hidden_size), dtype) if h0 is None else flat(h0, hidden_size)
    hs, h_last = gru_sequence(
        project(x, w_ih, weights.b_ih, weights.b_hh, spec),
        start,
        w_hh,
        candidate_bias(weights.b_hh, w_hh),
        valid=valid,
        spec=spec,
        implementation=implementation,
    )
    if valid is not None:
        hs = jnp.where(valid[..., None], hs, 0)
    hs = flip(hs).swapaxes(0, 1)
    if len(batch) != 1:
        hs, h_last = hs.reshape(*batch, n_steps, hidden_size), h_last.reshape(*batch, hidden_size)
    return hs, h_last


def check_inputs(x: Inputs, input_size: int | None, lengths: ArrayLike | None) -> tuple[Array, Array | None]:
    """x and lengths as arrays that fit each other; `input_size` None accepts any number of features."""
    x = jnp.asarray(x)
    require(x.ndim >= 2, "x", "(..., T, I), at least two axes", f"shape {x.shape}")
    require_floating(x, "x")
    if input_size is not None:
        require(
            x.shape[-1] == input_size,
            "x",
            f"{input_size} input features on the last axis",
            f"shape {x.shape}",
            "Axes are (batch, time, features).",
        )
    if lengths is None:
        return x, None
    if isinstance(lengths, (list, tuple)):
        lengths = np.asarray(lengths)
    require(
        jnp.issubdtype(jnp.result_type(lengths), jnp.integer),
        "lengths",
        "integers",
        f"dtype {jnp.result_type(lengths)}",
    )
    require(
        jnp.shape(lengths) == x.shape[:-2],
        "lengths",
        f"shape {x.shape[:-2]}, one a sequence",
        f"shape {jnp.shape(lengths)}",
    )
    if not isinstance(lengths, Tracer) and np.size(lengths):
        low, high = int(np.min(lengths)), int(np.max(lengths))
        require(low >= 0 and high <= x.shape[-2], "lengths", f"0 to T = {x.shape[-2]}", f"{low} to {high}")
    return x, jnp.asarray(lengths)


def valid_steps(n_steps: int, lengths: Array) -> Array:
    """lengths (...) -> (..., T) bool: does the step belong to the sequence?"""
    return lax.broadcasted_iota(lengths.dtype, (*lengths.shape, n_steps), lengths.ndim) < lengths[..., None]


def require_floating(a: Array, name: str) -> None:
    require(
        jnp.issubdtype(a.dtype, jnp.floating),
        name,
        "a floating dtype",
        f"dtype {a.dtype}",
        f"Convert it, {name}.astype(jnp.float32), if that is what it means.",
    )


def _check_weights(weights: GRUWeights) -> None:
    hidden_size = weights.w_hh.shape[0]
    require(
        weights.w_hh.shape == (hidden_size, 3 * hidden_size),
        "weights.w_hh",
        "(H, 3H)",
        weights.w_hh.shape,
        "PyTorch's weights are transposed: use grujax.interop.torch.from_torch.",
    )
    require(
        weights.w_ih.ndim == 2 and weights.w_ih.shape[1] == 3 * hidden_size,
        "weights.w_ih",
        f"(I, {3 * hidden_size})",
        weights.w_ih.shape,
    )
    for name, bias in (("b_ih", weights.b_ih), ("b_hh", weights.b_hh)):
        if bias is not None:
            require(bias.shape == (3 * hidden_size,), f"weights.{name}", f"({3 * hidden_size},)", bias.shape)
