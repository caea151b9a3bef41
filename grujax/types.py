"""The types of the package: arrays and their axes, weights, and the static options of a GRU.

Axis legend
    B  batch          L  layers                  I  input features
    T  time           D  directions (1 or 2)     H  hidden units

Where three gates share an axis (3H), their order is reset, update, candidate.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Array: TypeAlias = jax.Array

Inputs: TypeAlias = Array  # (..., T, I)  the input of a layer, batch-major
State: TypeAlias = Array  # (B, H)       at least float32
States: TypeAlias = Array  # (T, B, H)
Valid: TypeAlias = Array  # (T, B) bool

Activation: TypeAlias = (
    str | Callable[[Array], Array]
)  # a key of `grujax.kernels.step.ACTIVATIONS`, an instance of a class of `PARAMETRIC`, or an elementwise function


@dataclasses.dataclass(frozen=True)
class HardSigmoid:
    """min(1, max(0, alpha a + beta)), by default that of Keras 2 and ONNX; "hard_sigmoid" is HardSigmoid(1/6, 1/2).

    >>> HardSigmoid()(jnp.array([-3.0, 0.0, 1.0, 3.0])).tolist()
    [0.0, 0.5, 0.699999988079071, 1.0]
    """

    alpha: float = 0.2
    beta: float = 0.5

    def __call__(self, a: Array) -> Array:
        return jnp.clip(self.alpha * a + self.beta, 0, 1)


@dataclasses.dataclass(frozen=True)
class LeakyRelu:
    """a if a >= 0, else alpha a."""

    alpha: float = 0.01

    def __call__(self, a: Array) -> Array:
        return jnp.where(a >= 0, a, self.alpha * a)


@dataclasses.dataclass(frozen=True)
class Elu:
    """a if a > 0, else alpha (exp(a) − 1)."""

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
    """a if a > alpha, else 0."""

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


_CLASSES = (HardSigmoid, LeakyRelu, Elu, ScaledTanh, ThresholdedRelu, Affine, Softplus)
PARAMETRIC = {activation.__name__: activation for activation in _CLASSES}
"""Activation classes by name. Instances compare and hash by their parameters, and a model file can store them."""


class GRUWeights(NamedTuple):
    """The parameters of one layer in one direction, of any floating dtype, for `grujax.gru` and `grujax.kernels.run`.

    The columns are r | z | n. There are two biases, as in torch; None means no bias. The scales belong to layer
    normalisation; without it they are None.

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
    """The options of a GRU that are fixed at compile time. It is hashable.

    Attributes:
      reset_after: True multiplies r by the product `W_hn h + b_hn` (torch, cuDNN, Keras 3); False multiplies r by h
        before that product (Cho et al. 2014).
      precision: the precision of every matrix product, as in `jax.lax.dot_general`; None follows
        `jax.default_matmul_precision`.
      update: "keep" is h' = (1 − z) ⊙ n + z ⊙ h (torch, Keras, ONNX); "take" is h' = (1 − z) ⊙ h + z ⊙ n (Cho, Haiku).
      activation: the activation of n.
      gate_activation: the activation of r and z.
      clip: clips the argument of every activation to ±clip, as ONNX's `clip`; None does not clip.
      layer_norm: normalises the products (Ba et al. 2016); the weights then contain the scales.

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
    """Arrays that control the steps: valid steps, resets, and masks on the state. Only `h_reset` has a derivative."""

    valid: Valid | None = None  # (T, B), False: the step does not change the state
    reset: Valid | None = None  # (T, B), True: the state that enters the step is h_reset
    h_reset: Array | None = None  # (H,), None: zeros
    state_mask: Array | None = None  # (B, H), multiplies the state where the products read it
    hold: Array | None = None  # (T, B, H), the share of each unit that a step does not change


class Recurrence(NamedTuple):
    """One direction of one layer: its input, weights and control, as `grujax.kernels.run` and every loop take them."""

    x: Array  # (T, B, I)
    weights: GRUWeights  # products use the dtype of w_ih and w_hh, everything else at least float32
    h0: State | None = None  # (B, H), None: zeros
    control: Control = Control()


class Gates(NamedTuple):
    """The gates of one or many steps, (..., H) each."""

    r: Array
    z: Array
    n: Array


class Result(NamedTuple):
    """The outputs of a loop for one `Recurrence`."""

    hs: States  # (T, B, H), the state after every step
    h_last: State  # (B, H), the state after the last step that was read
    gates: Gates | None = None  # (T, B, H) each, with `with_gates=True`
    m: Array | None = None  # (T, B, H), W_hn h + b_hn; returned with the gates if reset_after, for the derivative


def state_dtype(dtype: DTypeLike) -> DTypeLike:
    """Returns the dtype of the state for the compute dtype `dtype`: at least float32.

    >>> state_dtype(jnp.bfloat16) == jnp.float32
    True
    """
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
