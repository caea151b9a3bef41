"""The words of the package: axes, arrays, weights, and what is static about a GRU.

Axis legend
    B  batch          L  layers                  I  input features
    T  time           D  directions (1 or 2)     H  hidden units

Gates stand in the order reset, update, candidate wherever three of them share an axis (3H).
"""

import dataclasses
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
)  # a name of `grujax.kernels.step.ACTIVATIONS`, one of `PARAMETRIC`, or an elementwise function


@dataclasses.dataclass(frozen=True)
class HardSigmoid:
    """min(1, max(0, alpha a + beta)); as it stands that of Keras 2 and ONNX. "hard_sigmoid" is HardSigmoid(1/6, 1/2).

    >>> HardSigmoid()(jnp.array([-3.0, 0.0, 1.0, 3.0])).tolist()
    [0.0, 0.5, 0.699999988079071, 1.0]
    """

    alpha: float = 0.2
    beta: float = 0.5

    def __call__(self, a: Array) -> Array:
        return jnp.clip(self.alpha * a + self.beta, 0, 1)


@dataclasses.dataclass(frozen=True)
class LeakyRelu:
    """a where it is not negative, else alpha a."""

    alpha: float = 0.01

    def __call__(self, a: Array) -> Array:
        return jnp.where(a >= 0, a, self.alpha * a)


@dataclasses.dataclass(frozen=True)
class Elu:
    """a where it is positive, else alpha (exp(a) − 1)."""

    alpha: float = 1.0

    def __call__(self, a: Array) -> Array:
        return jax.nn.elu(a, self.alpha)


@dataclasses.dataclass(frozen=True)
class ScaledTanh:
    """alpha tanh(beta a)."""

    alpha: float = 1.0
    beta: float = 1.0

    def __call__(self, a: Array) -> Array:
        return self.alpha * jnp.tanh(self.beta * a)


@dataclasses.dataclass(frozen=True)
class ThresholdedRelu:
    """a where it is above alpha, else 0."""

    alpha: float = 1.0

    def __call__(self, a: Array) -> Array:
        return jnp.where(a > self.alpha, a, 0)


@dataclasses.dataclass(frozen=True)
class Affine:
    """alpha a + beta."""

    alpha: float = 1.0
    beta: float = 0.0

    def __call__(self, a: Array) -> Array:
        return self.alpha * a + self.beta


@dataclasses.dataclass(frozen=True)
class Softplus:
    """log(1 + exp(a))."""

    def __call__(self, a: Array) -> Array:
        return jax.nn.softplus(a)


PARAMETRIC = {of.__name__: of for of in (HardSigmoid, LeakyRelu, Elu, ScaledTanh, ThresholdedRelu, Affine, Softplus)}
"""Activations that compare and hash by their parameters, and that a model file holds."""


class GRUWeights(NamedTuple):
    """The parameters of one layer in one direction, of any floating dtype, for `grujax.gru` and `grujax.kernels.run`.

    Columns are r | z | n. Both biases are kept, as torch keeps them; None is no bias. The scales are those of layer
    normalisation, None without it.

    >>> weights = GRUWeights(jnp.ones((4, 9)), jnp.ones((3, 9)), jnp.zeros(9), jnp.zeros(9))
    >>> {name: a.shape for name, a in weights._asdict().items() if a is not None}
    {'w_ih': (4, 9), 'w_hh': (3, 9), 'b_ih': (9,), 'b_hh': (9,)}
    """

    w_ih: Array  # (I, 3H)
    w_hh: Array  # (H, 3H)
    b_ih: Array | None = None  # (3H,)
    b_hh: Array | None = None  # (3H,)
    scale_ih: Array | None = None  # (3H,)
    scale_hh: Array | None = None  # (3H,)


class GRUSpec(NamedTuple):
    """What is fixed when a GRU is compiled; it is hashable.

    reset_after: True multiplies r into the finished product `W_hn h + b_hn` (torch, cuDNN, Keras 3);
        False multiplies r into h before it (Cho et al. 2014).
    precision: of every matrix product, as `jax.lax.dot_general` takes it; None follows
        `jax.default_matmul_precision`.
    update: "keep" is h' = (1 − z) ⊙ n + z ⊙ h (torch, Keras, ONNX); "take" is h' = (1 − z) ⊙ h + z ⊙ n (Cho, Haiku).
    activation, gate_activation: of n, and of r and z.
    clip: the argument of every activation is clipped to ±clip (ONNX's `clip`); None does not clip.
    layer_norm: the products are normalised (Ba et al. 2016); the weights then hold their scales.

    >>> GRUSpec(reset_after=False) == GRUSpec(False), hash(GRUSpec()) == hash(GRUSpec())
    (True, True)
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
    """One direction of one layer: its input, weights and control. `grujax.kernels.run` and every loop take it."""

    x: Array  # (T, B, I)
    weights: GRUWeights  # products in the dtype of w_ih and w_hh, all else in float32 at least
    h0: State | None = None  # (B, H); zeros where None
    control: Control = Control()


class Gates(NamedTuple):
    """The gates of one or many steps, (..., H) each."""

    r: Array
    z: Array
    n: Array


class Result(NamedTuple):
    """What a loop returns for one `Recurrence`."""

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
