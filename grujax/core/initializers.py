"""Named presets of initialisers, and the functions of which they are made."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, constant, glorot_uniform, lecun_normal, orthogonal, zeros
from jax.typing import DTypeLike

from grujax.errors import require_one_of
from grujax.types import Array, state_dtype


class Preset(NamedTuple):
    """An initialiser for each tensor. A cell's may depend on H, a head's on its number of inputs."""

    w_ih: Initializer
    w_hh: Initializer
    bias: Initializer
    head_kernel: Initializer
    head_bias: Initializer


def drawn(draw: Callable[[tuple[int]], Array], shape: Sequence[int]) -> Array:
    """Returns an array of `shape` with random numbers from `draw`, drawn along a single axis.

    With several short axes, XLA on CPU would unroll nested loops and take seconds to compile each draw.
    """
    return draw((math.prod(shape),)).reshape(shape)


def uniform_within(bound: float) -> Initializer:
    """Returns an initialiser that draws from U(−bound, bound)."""

    def init(key: Array, shape, dtype=jnp.float32, out_sharding=None) -> Array:
        return drawn(lambda flat: jax.random.uniform(key, flat, dtype, -bound, bound), shape)

    return init


def gatewise(one_gate: Initializer) -> Initializer:
    """Returns an initialiser of (K, 3H) that applies `one_gate` (K, H) to r, z and n separately.

    It draws in float32 at least, then casts.
    """

    def init(key: Array, shape, dtype=jnp.float32, out_sharding=None) -> Array:
        wide = state_dtype(dtype)
        gates = [one_gate(k, (shape[0], shape[1] // 3), wide) for k in jax.random.split(key, 3)]
        return jnp.concatenate(gates, axis=1).astype(dtype)

    return init


def blockwise(one_block: Initializer) -> Initializer:
    """Returns an initialiser of (K, H/K, 3H/K) that applies `one_block` to each of the K blocks."""

    def init(key: Array, shape, dtype=jnp.float32, out_sharding=None) -> Array:
        return jax.vmap(lambda k: one_block(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return init


def in_float32(initializer: Initializer) -> Initializer:
    """Returns an initialiser that draws in float32 at least, then casts: QR has no half precision."""

    def init(key: Array, shape, dtype=jnp.float32, out_sharding=None) -> Array:
        return initializer(key, shape, state_dtype(dtype)).astype(dtype)

    return init


def with_update_bias(bias: Initializer, value: float) -> Initializer:
    """Returns an initialiser that adds `value` to the update gate's part of `bias` (3H,)."""

    def init(key: Array, shape, dtype=jnp.float32, out_sharding=None) -> Array:
        hidden_size = shape[0] // 3
        return bias(key, shape, dtype).at[hidden_size : 2 * hidden_size].add(jnp.asarray(value, dtype))

    return init


def initial_states(learned: Array | None, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Returns the initial states (L*D, *batch, H): `learned` (L*D, H) for every sequence, or zeros if it is None."""
    if learned is None:
        return jnp.zeros(shape, dtype)
    each = learned.reshape(shape[0], *(1,) * (len(shape) - 2), shape[-1])
    return jnp.broadcast_to(each, shape).astype(dtype)


HIGHWAY: dict[str, Any] = {"kernel_init": lecun_normal(), "bias_init": constant(-1.0)}
"""The initialisers of a highway connection, which at the start passes most of its input through."""
PRESETS: dict[str, Callable[[int, int], Preset]] = {
    "torch": lambda hidden_size, head_inputs: Preset(
        *[uniform_within(hidden_size**-0.5)] * 3, *[uniform_within(head_inputs**-0.5)] * 2
    ),
    "flax": lambda *_: Preset(
        gatewise(lecun_normal()), gatewise(orthogonal()), zeros, in_float32(lecun_normal()), zeros
    ),
    "keras": lambda *_: Preset(
        in_float32(glorot_uniform()), in_float32(orthogonal()), zeros, in_float32(glorot_uniform()), zeros
    ),
}
"""By name, a function (H, number of the head's inputs) -> initialisers."""


def preset(name: str, hidden_size: int, head_inputs: int = 1) -> Preset:
    """Returns the initialisers of a preset.

    "torch": U(±1/√H) for all four tensors, U(±1/√fan_in) for the head (torch.nn.GRU, torch.nn.Linear).
    "flax": LeCun-normal input weights, orthogonal recurrent weights for each gate, zero biases (flax.linen.GRUCell).
    "keras": Glorot-uniform input weights, orthogonal recurrent weights (H, 3H) as one matrix, zero
        biases (keras.layers.GRU).

    Raises:
      InputError: there is no preset of that name.
    """
    require_one_of(name, sorted(PRESETS), "initializer")
    return PRESETS[name](hidden_size, head_inputs)
