"""The same values in every layout: batch-major, time-major, without a batch axis and with two."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from sequence_problem import BOTH, H0, LEARNED, LENGTHS, RESETS, SEGMENTS, VALID, B, H, X, as_jax, random_params

from grujax import GRU, GRUEncoder, GRUModel, GRUWeights, gru
from grujax.testing import assert_close, assert_trees_close


def in_two(a):
    return a.reshape(2, 2, *a.shape[1:])


LAYOUTS = {  # time_major; conversions of steps (B, T, ...), rows (B, ...), states (D, B, H) and segments (N, ...)
    "time-major": (True, {"steps": lambda a: a.swapaxes(0, 1)}),
    "two batch axes": (False, {"steps": in_two, "rows": in_two, "states": lambda a: a.reshape(-1, 2, 2, H)}),
    "no batch axis": (
        False,  # row 3 alone, and the segments in it
        {"steps": lambda a: a[3], "rows": lambda a: a[3], "states": lambda a: a[:, 3], "segments": lambda a: a[3::B]},
    ),
    "two batch axes, time-major": (
        True,
        {"steps": lambda a: np.moveaxis(in_two(a), 2, 0), "rows": in_two, "states": lambda a: a.reshape(-1, 2, 2, H)},
    ),
}
STEERING = {
    "mask": ("steps", VALID),
    "resets": ("steps", RESETS),
    "segments": ("steps", SEGMENTS),
    "lengths": ("rows", LENGTHS),
}
FLAGGED, POOLED, SEGMENTED = ("mask", "resets"), ("lengths",), ("lengths", "resets", "segments")


def first_step(output, valid):
    return output[..., 0, :] + valid.sum(-1, keepdims=True).astype(output.dtype)


MODULES = {  # module, its control arrays, the kind of its output, how many of the layouts are tested
    "gru": (GRU(H, **LEARNED), FLAGGED, "steps", 4),
    "GRU": (GRU(H, **BOTH), FLAGGED, "steps", 4),
    "GRU, directions apart": (GRU(H, merge=None, **BOTH), FLAGGED, "steps", 2),
    "GRUModel": (GRUModel(H, 2, pooling=None, **BOTH), FLAGGED, "steps", 3),
    "GRUModel, pooled": (GRUModel(H, 2, **BOTH), POOLED, "rows", 3),
    "function": (GRUEncoder(H, pooling=first_step, **BOTH), POOLED, "rows", 2),
    "mean": (GRUEncoder(H, pooling="mean", **BOTH), POOLED, "rows", 1),
    "max": (GRUEncoder(H, pooling="max", **BOTH), POOLED, "rows", 1),
    "attention": (GRUEncoder(H, pooling="attention", **BOTH), POOLED, "rows", 1),
    "last of segments": (GRUEncoder(H, pooling="last", **BOTH), SEGMENTED, "segments", 3),
    "mean of segments": (GRUEncoder(H, pooling="mean", **BOTH), SEGMENTED, "segments", 1),
    "attention of segments": (GRUEncoder(H, pooling="attention", **BOTH), SEGMENTED, "segments", 1),
}


def gru_as_layer(params, x, h0, **options):
    hs, h_last = gru(x, GRUWeights(**params["l0"]), h0[0], h_reset=params["h0"][0], **options)
    return hs, h_last[None]


def applied(module, params, x, h0, time_major, **options):
    states = {} if isinstance(module, GRU) else {"return_state": True}
    return module.clone(time_major=time_major).apply({"params": params}, x, h0, **options, **states)


@cache
def batch_major(name):
    """A compiled call of a module, and its results in batch-major layout with one batch axis."""
    module, steering, *_ = MODULES[name]
    params = as_jax(random_params(module, np.random.default_rng(5)))
    run = partial(gru_as_layer, params) if name == "gru" else partial(applied, module, params)
    run = jax.jit(partial(run, num_segments=2 * B) if "segments" in steering else run, static_argnames="time_major")
    arguments = as_jax({key: STEERING[key][1] for key in steering})
    return run, jax.tree.map(np.asarray, run(*as_jax((X, H0[: module.num_directions])), time_major=False, **arguments))


@pytest.mark.parametrize(
    ("name", "layout"), [(name, it) for name in MODULES for it in list(LAYOUTS)[: MODULES[name][3]]]
)
def test_axes_are_a_matter_of_layout(name, layout):
    module, steering, kind, _ = MODULES[name]
    time_major, lay = LAYOUTS[layout]
    run, (output, h_last) = batch_major(name)

    def laid(kind, a):
        return lay.get(kind, np.asarray)(a)

    arguments = {key: laid(*STEERING[key]) for key in steering}
    x, h0, arguments = as_jax((laid("steps", X), laid("states", H0[: module.num_directions]), arguments))
    found, found_last = jax.device_get(run(x, h0, time_major=time_major, **arguments))
    if module.merge is None:
        found, output = [*found], [*output]
    if kind == "segments":
        found = laid(kind, found)
    assert_trees_close(found, jax.tree.map(partial(laid, kind), output))
    assert_close(found_last, laid("states", h_last))


def test_vmap_runs_row_by_row():
    run, expected = batch_major("GRU")

    def row(x, h0, mask, resets):
        return run(x, h0, time_major=False, mask=mask, resets=resets)

    found = jax.vmap(row, (0, 1, 0, 0), (0, 1))(*as_jax((X, H0[:2], VALID, RESETS)))
    assert_trees_close(found, expected)
