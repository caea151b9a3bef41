"""grujax: the layer, with any implementation or reset_after=False, and packed rows."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.bench.oracle import Gradients
from grujax.bench.peers.in_jax import function_runs, layer_runs
from grujax.bench.peers.peer import Runs, Unavailable
from grujax.core.sequence import gru
from grujax.data.packing import pack_sequences, unpack_sequences
from grujax.errors import InputError
from grujax.linen.layer import GRU
from grujax.types import Array, GRUWeights


def layers(a: Arrays, threads: int, **options: Any) -> Runs:
    """Runs `grujax.GRU` with these options."""
    L, D, dtype = a.num_layers, a.num_directions, a.x.dtype
    module = GRU(a.hidden_size, num_layers=L, bidirectional=D == 2, dtype=dtype, param_dtype=dtype, **options)
    names = [f"l{k}{way}" for k in range(L) for way in ("", "_reverse")[:D]]

    def function(params: list[GRUWeights], x: Array, h0: Array, control: Any) -> Any:
        variables = {
            name: {k: v for k, v in w._asdict().items() if v is not None} for name, w in zip(names, params, strict=True)
        }
        h0 = jnp.broadcast_to(h0, (L * D, len(x), a.hidden_size))
        return module.apply({"params": variables}, x, h0, lengths=control[0], resets=control[1])[0]

    return function_runs(function, lambda w: w, a)


def implementation(name: str, a: Arrays, threads: int) -> Runs:
    """Runs `grujax.GRU(implementation=name)`. A first call shows whether the implementation refuses the case."""
    runs = layers(a, threads, implementation=name)
    try:
        runs.forward()
    except InputError as error:
        raise Unavailable(" ".join(str(error).split())) from None
    return runs


def packed_rows(a: Arrays, threads: int) -> Runs:
    """Packs sequences into rows of twice the longest length, before the clock starts, as a data loader does."""
    assert a.lengths is not None
    n_features = a.x.shape[-1]
    both = np.concatenate([a.x, a.cotangent], axis=-1)  # packed together, so that both get the same places
    packed = pack_sequences(
        [row[:length] for row, length in zip(both, a.lengths, strict=True)], length=2 * a.x.shape[1]
    )
    x, cotangent = np.split(packed.x, [n_features], axis=-1)
    rows = a._replace(x=x, cotangent=cotangent, lengths=packed.lengths, resets=packed.resets)

    def layer(w: GRUWeights, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Array:
        return gru(x, w, lengths=lengths, resets=resets, h_reset=h0[0], reverse=reverse)[0]

    runs = layer_runs(layer, lambda w: w, rows)
    assert runs.read_gradients is not None
    read = runs.read_gradients

    def unpacked(values: NDArray) -> NDArray:
        padded = np.zeros((*a.x.shape[:2], values.shape[-1]), values.dtype)
        for row, part in zip(padded, unpack_sequences(packed, np.asarray(values)), strict=True):
            row[: len(part)] = part
        return padded

    def read_gradients(gradients: Any) -> Gradients:
        result = read(gradients)
        return result._replace(x=unpacked(result.x))

    return runs._replace(read_hs=unpacked, read_gradients=read_gradients)
