"""The function `gru`: one GRU layer in one direction, without Flax."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from grujax.arrays import as_array, require_floating, require_floating_dtype
from grujax.core.inputs import check_inputs, check_state, from_rows, to_rows
from grujax.errors import require
from grujax.kernels import run
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
    """Runs one GRU layer in one direction, with the equations of `torch.nn.GRU`:

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    Args:
      x: the input (..., T, I), with any number of batch axes, including none.
      weights: `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, with columns r | z | n. The biases may be
        None. With `scale_ih` and `scale_hh` (3H,) the products are layer-normalised before the biases are added, r and
        z together and n separately (Ba et al. 2016, arXiv 1607.06450, appendix).
      h0: the initial state (..., H); None: zeros. Its dtype may differ from that of x: h_last has the dtype of h0, so
        that it fits a scan.
      lengths: integers (...), the number of valid steps of each sequence. Later steps do not affect any output or
        gradient, even if they contain NaN. Under jit, where values are unknown, a length above T means T.
      mask: bool (..., T), True at valid steps, in place of `lengths`; holes are allowed. The state does not change over
        the other steps.
      resets: bool (..., T), True at the first step of a new sequence. Forward, that step reads the state `h_reset`. In
        reverse, the last valid step before it does. So h0 enters only the sequence that is read first, and forward not
        even that one if it begins with a reset.
      h_reset: the state after a reset (H,); None: zeros.
      reverse: whether to read the valid part backwards; the output stays in time order.
      time_major: whether time is the first axis: x (T, ..., I), mask and resets (T, ...), hs (T, ..., H).
      reset_after: False applies r before the product, n = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn) (Cho et al. 2014).
      update: "take" makes z weigh the candidate, h' = (1 − z) ⊙ h + z ⊙ n (Cho et al. 2014, Haiku).
      activation, gate_activation: the activation of n, and the one of r and z: a name from
        `grujax.kernels.step.ACTIVATIONS` or an elementwise function.
      clip: clips the argument of every activation to ±clip (ONNX). None does not clip.
      implementation: the name of a loop (docs/speed.md). None chooses one; see `grujax.kernels.explain`.
      dtype: the dtype of the products. None promotes the dtypes of x and the weights.
      precision: the precision of the products. None follows `jax.default_matmul_precision`.

    Returns:
      hs (..., T, H), exactly 0 at steps that are not valid, and h_last (..., H), the state after the last valid step
      that is read; h0 for length 0. With resets, h_last belongs to the last sequence, or in reverse to the first. hs is
      float32 at least; so is h_last, unless h0 has another dtype.

    Raises:
      InputError: an array, shape, dtype, length or combination of arguments is not supported.

    >>> import jax, jax.numpy as jnp
    >>> w = GRUWeights(jnp.ones((4, 9)), jnp.ones((3, 9)), jnp.ones(9), jnp.ones(9))
    >>> hs, h_last = gru(jnp.ones((2, 5, 4)), w, lengths=jnp.array([5, 3]))
    >>> hs.shape, h_last.shape
    ((2, 5, 3), (2, 3))

    Source: torch.nn.GRU; Cho et al. 2014, arXiv 1406.1078.
    """
    weights = _checked_weights(weights)
    spec = GRUSpec(
        reset_after=reset_after,
        precision=precision,
        update=update,
        activation=activation,
        gate_activation=gate_activation,
        clip=clip,
        layer_norm=weights.scale_ih is not None or weights.scale_hh is not None,
    )
    steps = check_inputs(x, weights.w_ih.shape[0], lengths, mask, resets, time_major)
    hidden_size = weights.w_hh.shape[0]
    h0 = check_state(h0, "h0", (*steps.batch, hidden_size))
    h_reset = check_state(h_reset, "h_reset", (hidden_size,))
    unused = h_reset is not None and resets is None
    remedy = "Pass the initial state of a sequence as h0."
    require(not unused, "h_reset", "None", "an array", remedy, rule="h_reset needs resets")
    require_floating_dtype(dtype, "dtype")
    dtype = jnp.dtype(jnp.result_type(steps.x, weights.w_ih) if dtype is None else dtype)
    x, valid, reset = to_rows(steps)
    start = None if h0 is None else h0.reshape(x.shape[1 if time_major else 0], hidden_size)
    recurrence = Recurrence(x.astype(dtype), cast(weights, dtype), start, Control(valid, reset, h_reset))
    ((hs, h_last, *_),) = run([recurrence], spec, implementation, reverse=(reverse,), time_major=time_major)
    h_last = h_last.reshape(*steps.batch, hidden_size)
    return from_rows(hs, steps.batch, time_major), h_last if h0 is None else h_last.astype(h0.dtype)


def _checked_weights(weights: GRUWeights) -> GRUWeights:
    """Returns the weights as floating arrays. Checks the shapes of both matrices, which define I and H; `run` checks
    the other shapes."""
    remedy = "From a dict of parameters, make GRUWeights(**parameters)."
    require(isinstance(weights, GRUWeights), "weights", "a GRUWeights", f"a {type(weights).__name__}", remedy)
    arrays: dict[str, Any] = weights._asdict()
    for name, a in arrays.items():
        if a is not None or name in ("w_ih", "w_hh"):
            arrays[name] = jnp.asarray(as_array(a, f"weights.{name}"))
            require_floating(arrays[name], f"weights.{name}")
    remedy = "PyTorch's weights are transposed: use grujax.interop.torch.from_torch."
    for name, axes in (("w_hh", "(H, 3H)"), ("w_ih", "(I, 3H)")):
        shape = arrays[name].shape
        fits = len(shape) == 2 and 0 not in shape and shape[1] == 3 * arrays["w_hh"].shape[0]
        require(fits, f"weights.{name}", f"{axes}, without an axis of size 0", f"shape {shape}", remedy)
    return GRUWeights(**arrays)
