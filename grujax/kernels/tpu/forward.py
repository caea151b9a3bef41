"""The forward loop of the TPU kernel: the state stays in VMEM from the first step to the last."""

from functools import partial

import jax.numpy as jnp

from grujax.kernels.products import StateProducts, candidate_bias, dot, input_bias, split_gates
from grujax.kernels.step import masked_step, step
from grujax.kernels.tpu.launch import Refs, cut, filled, launch, steering_at, steering_of, times
from grujax.kernels.tpu.limits import Tiles
from grujax.types import Array, GRUSpec, Recurrence


def forward(recurrence: Recurrence, backwards: bool, with_saved: bool, spec: GRUSpec, tiles: Tiles) -> dict[str, Array]:
    """Returns hs (T, B, H), h_last (B, H) and, `with_saved`, saved r | z | n | m (T, B, 4H).

    hs and saved are 0 at steps that are not valid.

    recurrence: in time order, with x 0 at steps that are not valid, and `reset` converted by `resets_read`.
    """
    x, weights, h0, control = recurrence
    assert h0 is not None
    bias, b_n, zero = input_bias(weights), candidate_bias(weights), jnp.zeros_like(h0, shape=h0.shape[1:])
    gates = dot(x, filled(weights.w_ih, 3, tiles), spec)
    inputs = {
        "gates": gates if bias is None else gates + filled(bias, 3, tiles)[None, None],
        "h0": filled(h0, 1, tiles),
        "w": filled(filled(weights.w_hh, 3, tiles).T, 1, tiles).T,
        "b_n": filled(zero if b_n is None else b_n, 1, tiles)[None],
        "h_reset": filled(zero if control.h_reset is None else control.h_reset, 1, tiles)[None],
    }
    over_time = (tiles.n_steps, tiles.n_rows)
    outputs = {"hs": (*over_time, tiles.units), "h_last": (tiles.n_rows, tiles.units)}
    outputs |= {"saved": (*over_time, 4 * tiles.units)} if with_saved else {}
    inputs |= steering_of(control, tiles)
    results = launch("grujax_forward", partial(_step, spec=spec), ("h0", "h_last"), inputs, outputs, tiles, backwards)
    return {name: cut(a, h0.shape[1], tiles) for name, a in results.items()}


def _step(refs: Refs, t: Array, h: Array, spec: GRUSpec) -> Array:
    valid, reset, _, state_mask, hold = steering_at(refs, t)
    gates_x, multiply = split_gates(refs["gates"][t]), _products(refs, spec)
    one_step = partial(step, gates_x=gates_x, multiply=multiply, spec=spec, state_mask=state_mask)
    h, (r, z, n), m = masked_step(one_step, h, refs["h_reset"][...], valid, reset, hold)
    results = {"hs": h}
    if "saved" in refs:
        results["saved"] = jnp.concatenate([r, z, n, m if spec.reset_after else jnp.zeros_like(m)], axis=-1)
    for name, a in results.items():
        refs[name][t] = a if valid is None else jnp.where(valid, a, 0)
    return h


def _products(refs: Refs, spec: GRUSpec) -> StateProducts:
    """Returns the function that computes the products of the named gates in one product."""
    w, b_n = refs["w"], refs["b_n"]
    n_units = w.shape[0]

    def multiply(a: Array, gates: str) -> list[Array]:
        first = "rzn".index(gates)
        products = times(a, w[:, first * n_units : (first + len(gates)) * n_units], spec)
        parts = jnp.split(products, len(gates), axis=-1)
        return [part + b_n[...] if gate == "n" else part for gate, part in zip(gates, parts, strict=True)]

    return multiply
