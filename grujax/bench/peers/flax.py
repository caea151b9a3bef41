"""Flax Linen: `nn.RNN(nn.GRUCell)`, and `nn.scan` over `nn.GRUCell`."""

from typing import Any

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from grujax.bench.cases import Arrays
from grujax.bench.peers.in_jax import Params, layer_runs
from grujax.bench.peers.peer import Runs
from grujax.core.dialects import DIALECTS, arranged
from grujax.types import Array, GRUWeights


def _params(w: GRUWeights) -> Params:
    return unflatten_dict(dict(zip(DIALECTS["flax"].tensors, arranged(w, DIALECTS["flax"]), strict=True)), sep="/")


def rnn(a: Arrays, threads: int) -> Runs:
    """`nn.RNN`."""
    import flax.linen as nn

    rnn = nn.RNN(nn.GRUCell(a.hidden_size, dtype=a.x.dtype, param_dtype=a.x.dtype))

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Any:
        variables = {"params": {"cell": params}}
        return rnn.apply(variables, x, initial_carry=h0, seq_lengths=lengths, reverse=reverse, keep_order=True)

    return layer_runs(layer, _params, a)


def scan(a: Arrays, threads: int) -> Runs:
    """`nn.scan` over `nn.GRUCell`, with the carry set to zeros where a sequence begins."""
    import flax.linen as nn

    cell = nn.GRUCell(a.hidden_size, dtype=a.x.dtype, param_dtype=a.x.dtype)

    def one_step(cell: Any, h: Array, inputs: Any) -> Any:
        x, reset = inputs
        return cell(h if reset is None else jnp.where(reset[:, None], jnp.zeros_like(h), h), x)

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Any:
        scan = nn.scan(
            one_step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
            reverse=reverse,
        )
        return nn.apply(lambda cell: scan(cell, h0, (x, resets))[1], cell)({"params": params})

    return layer_runs(layer, _params, a)
