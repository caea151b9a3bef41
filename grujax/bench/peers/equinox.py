"""`equinox.nn.GRUCell` under `lax.scan` and `vmap`, as its documentation shows it."""

from typing import Any

import jax
import jax.numpy as jnp

from grujax.bench.cases import Arrays
from grujax.bench.peers.in_jax import Params, layer_runs
from grujax.bench.peers.peer import Runs
from grujax.core.dialects import DIALECTS, arranged
from grujax.types import Array


def layers(a: Arrays, threads: int) -> Runs:
    import equinox as eqx

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Array:
        cell = eqx.filter_eval_shape(eqx.nn.GRUCell, x.shape[-1], a.hidden_size, key=jax.random.key(0))
        cell = eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n), cell, params)

        def one_step(h: Array, inputs: Any) -> tuple[Array, Array]:
            x, reset = inputs
            h = cell(x, h if reset is None else jnp.where(reset, jnp.zeros_like(h), h))
            return h, h

        def one_row(x: Array, h0: Array, resets: Any) -> Array:
            return jax.lax.scan(one_step, h0, (x, resets), reverse=reverse)[1]

        return jax.vmap(one_row)(x, h0, resets)

    return layer_runs(layer, lambda w: arranged(w, DIALECTS["equinox"]), a)
