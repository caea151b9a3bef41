"""The words of the package: axes, arrays, weights, and what is static about a GRU.

Axis legend
    B  batch          L  layers                  I  input features
    T  time           D  directions (1 or 2)     H  hidden units

Gates stand in the order reset, update, candidate wherever three of them share an axis (3H).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Array: TypeAlias = jax.Array

Inputs: TypeAlias = Array  # (..., T, I)  what a user hands over, batch-major
State: TypeAlias = Array  # (B, H)       float32 at least
States: TypeAlias = Array  # (T, B, H)
Valid: TypeAlias = Array  # (T, B) bool

Activation: TypeAlias = (
    str | Callable[[Array], Array]
)  # a name of `grujax.kernels.step.ACTIVATIONS`, or an elementwise function


class GRUWeights(NamedTuple):
    """One layer, one direction. Columns are r | z | n; both biases are kept, as torch keeps them.

    `bias=False` leaves both biases None; both scales are those of layer normalisation, None without it.
    """

    w_ih: Array  # (I, 3H)
    w_hh: Array  # (H, 3H)
    b_ih: Array | None = None  # (3H,)
    b_hh: Array | None = None  # (3H,)
    scale_ih: Array | None = None  # (3H,)
    scale_hh: Array | None = None  # (3H,)


class GRUSpec(NamedTuple):
    """What is fixed when a GRU is compiled (hashable).

    reset_after: True multiplies r into the finished product `W_hn h + b_hn` (torch, cuDNN, Keras 3);
        False multiplies r into h before it (Cho et al. 2014).
    precision: of every matrix product, as `jax.lax.dot_general` takes it; None follows
        `jax.default_matmul_precision`.
    update: "keep" is h' = (1 − z) ⊙ n + z ⊙ h (torch, Keras, ONNX); "take" is h' = (1 − z) ⊙ h + z ⊙ n (Cho, Haiku).
    activation, gate_activation: of n, and of r and z.
    clip: what stands inside every activation is clipped to ±clip first (ONNX's `clip`); None: it is not.
    layer_norm: the products are normalised (Ba et al. 2016), their scales are among the weights.
    """

    reset_after: bool = True
    precision: jax.lax.PrecisionLike = None
    update: str = "keep"
    activation: Activation = "tanh"
    gate_activation: Activation = "sigmoid"
    clip: float | None = None
    layer_norm: bool = False


class Control(NamedTuple):
    """Which steps count and what they do to the state. Only `h_reset` has a derivative."""

    valid: Valid | None = None  # (T, B): where False the state is held
    reset: Valid | None = None  # (T, B): where True the state that enters is h_reset
    h_reset: Array | None = None  # (H,), zeros where None
    state_mask: Array | None = None  # (B, H), multiplies the state where the products read it
    hold: Array | None = None  # (T, B, H), the share of each unit that stays as it was


class Recurrence(NamedTuple):
    """All that one direction of one layer is made of; what `grujax.kernels.run` and every loop take."""

    x: Array  # (T, B, I)
    weights: GRUWeights  # products run in the dtype of w_ih and w_hh, all else in float32 at least
    h0: State | None = None  # (B, H); zeros where None
    control: Control = Control()


class Gates(NamedTuple):
    """The gates of one or many steps, (..., H) each."""

    r: Array
    z: Array
    n: Array


class Result(NamedTuple):
    """What a loop makes of one `Recurrence`."""

    hs: States  # (T, B, H), the state after every step
    h_last: State  # (B, H)
    gates: Gates | None = None  # (T, B, H) each, where asked
    m: Array | None = None  # (T, B, H), W_hn h + b_hn, beside the gates: the derivative reads it where reset_after


def state_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype that the state is carried in when the compute dtype is `dtype`: float32 at least.

    >>> state_dtype(jnp.bfloat16) == jnp.float32
    True
    """
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
