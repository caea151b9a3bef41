"""`keras.layers.GRU` on JAX."""

import os
from typing import Any

import jax.numpy as jnp

from grujax.bench.cases import Arrays
from grujax.bench.peers.in_jax import Params, layer_runs
from grujax.bench.peers.peer import Runs, Unavailable
from grujax.core.dialects import DIALECTS, arranged
from grujax.types import Array, GRUWeights


def layers(a: Arrays, threads: int) -> Runs:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if keras.backend.backend() != "jax":
        raise Unavailable(f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=jax")
    n_rows, n_steps, n_features = a.x.shape
    modules = {}
    for size in {n_features, a.cotangent.shape[-1]}:
        for reverse in (False, True):
            module = keras.layers.GRU(
                a.hidden_size,
                return_sequences=True,
                reset_after=True,
                go_backwards=reverse,
                dtype=a.x.dtype.name,
                recurrent_initializer="zeros",  # never used; the default has no bfloat16
            )
            module.build((n_rows, n_steps, size))
            modules[size, reverse] = module, [v.value for v in module.non_trainable_variables]

    def convert(w: GRUWeights) -> Params:
        return list(arranged(w, DIALECTS["keras"]))

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Any:
        module, state = modules[x.shape[-1], reverse]
        mask = None if lengths is None else jnp.arange(n_steps)[None] < lengths[:, None]
        hs = module.stateless_call(params, state, x, initial_state=h0, mask=mask)[0]
        return jnp.flip(hs, 1) if reverse else hs

    return layer_runs(layer, convert, a)
