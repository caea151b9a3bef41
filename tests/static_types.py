"""Asserts the types that calls return: pyright reads this file, nothing runs it."""

from typing import assert_type

import jax
from flax import nnx

import grujax
import grujax.nnx as gnnx


def layers(x: jax.Array, linen: grujax.GRU, of_nnx: gnnx.GRU) -> None:
    assert_type(linen(x, lengths=x), tuple[jax.Array, jax.Array])
    assert_type(of_nnx(x, x, resets=x, deterministic=None), tuple[jax.Array, jax.Array])


def encoders(x: jax.Array, linen: grujax.GRUEncoder, of_nnx: gnnx.GRUEncoder) -> None:
    assert_type(linen(x, deterministic=False), jax.Array)
    assert_type(of_nnx(x, mask=x, return_state=True), tuple[jax.Array, jax.Array])


def models(x: jax.Array, rngs: nnx.Rngs) -> None:
    assert_type(grujax.GRUModel(3, 2)(x), jax.Array)
    assert_type(grujax.GRUModel(3, 2)(x, return_state=True), tuple[jax.Array, jax.Array])
    assert_type(grujax.GRUModel(3, {"a": 2})(x), dict[str, jax.Array])
    assert_type(gnnx.GRUModel(4, 3, 2, rngs=rngs)(x, rngs=rngs), jax.Array)
    assert_type(gnnx.GRUModel(4, 3, {"a": 2}, rngs=rngs)(x, return_state=True), tuple[dict[str, jax.Array], jax.Array])
