"""Named presets of initialisation: a table, one row a preset."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, orthogonal, zeros

from grujax.errors import require
from grujax.types import Array, state_dtype


class Preset(NamedTuple):
    """How each tensor starts. `cell` tensors may depend on H, those of the head on its number of inputs."""

    w_ih: Initializer
    w_hh: Initializer
    bias: Initializer
    head_kernel: Initializer
    head_bias: Initializer


def uniform_within(bound: float) -> Initializer:
    """U(−bound, bound)."""

    def init(key: Array, shape, dtype=jnp.float32, out_sharding=None) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def gatewise(one_gate: Initializer) -> Initializer:
    """`one_gate` for each of r, z, n apart: (K, 3H) from three (K, H). In float32 at least, then cast."""

    def init(key: Array, shape, dtype=jnp.float32, out_sharding=None) -> Array:
        wide = state_dtype(dtype)
        gates = [one_gate(k, (shape[0], shape[1] // 3), wide) for k in jax.random.split(key, 3)]
        return jnp.concatenate(gates, axis=1).astype(dtype)

    return init


def _torch(hidden_size: int, head_inputs: int) -> Preset:
    cell, head = uniform_within(hidden_size**-0.5), uniform_within(head_inputs**-0.5)
    return Preset(w_ih=cell, w_hh=cell, bias=cell, head_kernel=head, head_bias=head)


def _flax(hidden_size: int, head_inputs: int) -> Preset:
    del hidden_size, head_inputs
    return Preset(
        w_ih=gatewise(lecun_normal()),
        w_hh=gatewise(orthogonal()),
        bias=zeros,
        head_kernel=lecun_normal(),
        head_bias=zeros,
    )


PRESETS = {"torch": _torch, "flax": _flax}


def preset(name: str, hidden_size: int, head_inputs: int = 1) -> Preset:
    """The initialisers of a preset.

    "torch": U(±1/√H) for all four tensors, U(±1/√fan_in) for the head (torch.nn.GRU, torch.nn.Linear).
    "flax": lecun-normal input weights, orthogonal recurrent weights gate by gate, zero biases (flax.linen.GRUCell).
    """
    require(name in PRESETS, "initializer", f"one of {sorted(PRESETS)}", repr(name))
    return PRESETS[name](hidden_size, head_inputs)
