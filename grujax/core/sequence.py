"""One layer, one direction, without Flax."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from grujax.core.inputs import check_inputs, check_state, from_rows, require_floating, to_rows
from grujax.errors import require
from grujax.kernels import explain, run
from grujax.kernels.step import cast
from grujax.types import Activation, Array, Control, GRUSpec, GRUWeights, Inputs, Recurrence


def gru(
    x: Inputs,
    weights: GRUWeights,
    h0: Array | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    h_reset: Array | None = None,
    reverse: bool = False,
    time_major: bool = False,
    reset_after: bool = True,
    update: str = "keep",
    activation: Activation = "tanh",
    gate_activation: Activation = "sigmoid",
    clip: float | None = None,
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
        With `scale_ih` and `scale_hh` (3H,) the products are layer-normalised, r and z together and n apart, before
        the biases (Ba et al. 2016, arXiv 1607.06450, appendix).
      h0: (..., H), zeros where None.
      lengths: integers (...), how many steps of each sequence are valid. What stands past them, NaN included,
        reaches no output and no gradient. Under jit, where values are unknown, a length past T means T.
      mask: bool (..., T) instead of `lengths`: which steps are valid, holes allowed. The state is held over the others.
      resets: bool (..., T). A sequence begins at step t: forward, the state that enters t is `h_reset`; in reverse,
        the state that enters the last valid step before t is. h0 enters only what no reset stands before.
      h_reset: (H,), zeros where None.
      reverse: read the valid part backwards; the output stays in time order.
      time_major: x (T, ..., I), mask and resets (T, ...), hs (T, ..., H).
      reset_after: False puts r before the product, n = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn) (Cho et al. 2014).
      update: "take" lets z weigh the candidate, h' = (1 − z) ⊙ h + z ⊙ n (Cho et al. 2014, Haiku).
      activation, gate_activation: a name of `grujax.kernels.step.ACTIVATIONS` or an elementwise function, of n, of r
        and z.
      clip: clips what stands inside every activation to ±clip (ONNX).
      implementation: a loop by its name (docs/speed.md), or None, which chooses (`grujax.kernels.explain`).
      dtype: compute dtype of the products; the dtype that x and the weights promote to where None.
      precision: of the products; None follows `jax.default_matmul_precision`.

    Returns:
      hs (..., T, H), exactly 0 at steps that are not valid, and h_last (..., H), the state after the last valid
      step, h0 for length 0; with resets that of the last sequence, in reverse of the first. Both float32 at least.

    Raises:
      InputError: a shape, dtype, length or combination that does not fit.

    >>> import jax, jax.numpy as jnp
    >>> w = GRUWeights(jnp.ones((4, 9)), jnp.ones((3, 9)), jnp.ones(9), jnp.ones(9))
    >>> hs, h_last = gru(jnp.ones((2, 5, 4)), w, lengths=jnp.array([5, 3]))
    >>> hs.shape, h_last.shape
    ((2, 5, 3), (2, 3))

    Source: torch.nn.GRU; Cho et al. 2014, arXiv 1406.1078.
    """
    spec = GRUSpec(
        reset_after=reset_after,
        precision=precision,
        update=update,
        activation=activation,
        gate_activation=gate_activation,
        clip=clip,
        layer_norm=weights.scale_hh is not None,
    )
    explain(spec=spec, implementation=implementation)
    _check_weights(weights)
    steps = check_inputs(x, weights.w_ih.shape[0], lengths, mask, resets, time_major)
    hidden_size = weights.w_hh.shape[0]
    h0 = check_state(h0, "h0", (*steps.batch, hidden_size))
    h_reset = check_state(h_reset, "h_reset", (hidden_size,))
    alone = h_reset is not None and resets is None
    require(not alone, "h_reset", "None without resets", "an array", "The state that a sequence begins with is h0.")
    dtype = jnp.result_type(steps.x, weights.w_ih) if dtype is None else dtype
    require(jnp.issubdtype(dtype, jnp.floating), "dtype", "a floating dtype or None", dtype)
    x, valid, reset = to_rows(steps, time_major)
    one_axis = len(steps.batch) == 1
    if h0 is not None and not one_axis:
        h0 = h0.reshape(x.shape[1 if time_major else 0], hidden_size)
    recurrence = Recurrence(x.astype(dtype), cast(weights, jnp.dtype(dtype)), h0, Control(valid, reset, h_reset))
    ((hs, h_last, *_),) = run([recurrence], spec, implementation, reverse=(reverse,), time_major=time_major)
    return from_rows(hs, steps.batch, time_major), h_last if one_axis else h_last.reshape(*steps.batch, hidden_size)


def _check_weights(weights: GRUWeights) -> None:
    for name, a in weights._asdict().items():
        if a is not None:
            require_floating(a, f"weights.{name}")
    require(weights.w_hh.ndim == 2, "weights.w_hh", "(H, 3H)", weights.w_hh.shape)
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
    for name in ("b_ih", "b_hh", "scale_ih", "scale_hh"):
        if (a := getattr(weights, name)) is not None:
            require(a.shape == (3 * hidden_size,), f"weights.{name}", f"({3 * hidden_size},)", a.shape)
    both = (weights.scale_ih is None) == (weights.scale_hh is None)
    require(both, "weights.scale_ih", "beside scale_hh", "one without the other", "Layer normalisation has both.")
