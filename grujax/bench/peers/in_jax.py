"""Shared parts of all peers in JAX: converted weights, stacked layers, and the two compiled calls."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grujax.bench.cases import Arrays
from grujax.bench.oracle import Gradients
from grujax.bench.peers.peer import Runs
from grujax.types import Array, GRUWeights

Params = Any  # the weights of one layer and direction in the peer's format, a tree of arrays
Convert = Callable[[GRUWeights], Params]
Layer = Callable[..., Array]
"""(params, x (B, T, I), h0 (B, H), reverse, lengths (B,), resets (B, T)) -> hs (B, T, H) in time order."""


def converted(convert: Convert, a: Arrays) -> tuple[list[Params], Callable[..., Gradients]]:
    """Returns the peer's weights, and a function that reads its gradients (dparams, dx, dh0).

    `convert` is linear, so its transpose maps the peer's gradients back. No second mapping is needed.
    """
    weights = [GRUWeights(*map(jnp.asarray, w)) for w in a.weights]
    params, transpose = jax.vjp(lambda all_weights: [convert(w) for w in all_weights], weights)

    def read(gradients: tuple[list[Params], Any, Any]) -> Gradients:
        dparams, dx, dh0 = gradients
        (dweights,) = transpose(jax.tree.map(jnp.asarray, dparams))
        return Gradients(np.asarray(dx), np.asarray(dh0), tuple(tuple(map(np.asarray, w[:4])) for w in dweights))  # pyright: ignore[reportArgumentType]

    return params, read


def layer_runs(layer: Layer, convert: Convert, a: Arrays) -> Runs:
    """Returns the runs of a peer with one-direction layers, whose layers and directions this function stacks."""
    L, D = a.num_layers, a.num_directions

    def function(params: list[Params], x: Array, h0: Array, control: Any) -> Array:
        h0 = jnp.broadcast_to(h0, (L * D, len(x), h0.shape[-1]))
        for first in range(0, L * D, D):
            outputs = [layer(params[first + d], x, h0[first + d], d == 1, *control) for d in range(D)]
            x = jnp.concatenate(outputs, axis=-1).astype(x.dtype)
        return x

    return function_runs(function, convert, a)


def function_runs(function: Callable[..., Array], convert: Convert, a: Arrays) -> Runs:
    """Returns the runs of `function(params of all layers and directions, x, h0, (lengths, resets)) -> last output`.

    Weights, input and cotangent are arguments of each compiled call, never constants.
    """
    params, read_gradients = converted(convert, a)
    x, h0, cotangent = jnp.asarray(a.x), jnp.asarray(a.h0), jnp.asarray(a.cotangent)
    control = [None if v is None else jnp.asarray(v) for v in (a.lengths, a.resets)]

    def loss(params: list[Params], x: Array, h0: Array, control: Any, cotangent: Array) -> Array:
        return (function(params, x, h0, control) * cotangent).sum()

    forward, gradients = jax.jit(function), jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return Runs(
        lambda: jax.block_until_ready(forward(params, x, h0, control)),
        np.asarray,
        lambda: jax.block_until_ready(gradients(params, x, h0, control, cotangent)),
        read_gradients,
    )
