"""`hk.GRU` under `hk.dynamic_unroll`. It resets before the product, and z weighs the candidate."""

from typing import Any

from grujax.bench.cases import Arrays
from grujax.bench.peers.in_jax import Params, layer_runs
from grujax.bench.peers.peer import Runs
from grujax.core.dialects import DIALECTS, arranged
from grujax.types import Array, GRUWeights


def layers(a: Arrays, threads: int) -> Runs:
    import haiku as hk

    def unroll(x: Array, h0: Array, resets: Any, reverse: bool) -> Any:
        core = hk.GRU(a.hidden_size)
        if resets is None:
            return hk.dynamic_unroll(core, x, h0, time_major=False, reverse=reverse)[0]
        return hk.dynamic_unroll(hk.ResetCore(core), (x, resets), h0, time_major=False, reverse=reverse)[0]

    function = hk.without_apply_rng(hk.transform(unroll)).apply

    def convert(w: GRUWeights) -> Params:
        return {"gru": dict(zip(DIALECTS["haiku"].tensors, arranged(w, DIALECTS["haiku"]), strict=True))}

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Any:
        return function(params, x, h0, resets, reverse)

    return layer_runs(layer, convert, a)
