"""The transposed loop of the TPU kernel: the gradient of the state stays in VMEM from the last step to the first."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grujax.kernels.derivative import Values, coefficients, entering, source_of
from grujax.kernels.order import held
from grujax.kernels.tpu.launch import Refs, cut, filled, launch, steering_at, steering_of, times
from grujax.kernels.tpu.limits import Tiles
from grujax.types import Array, Control, GRUSpec, GRUWeights, Recurrence, State, States


class Gradients(NamedTuple):
    """The gradients of a recurrence; None for a bias that the call does not have."""

    x: Array
    h0: State
    weights: GRUWeights
    h_reset: Array


def backward(
    recurrence: Recurrence,
    outputs: tuple[States, Array],
    cotangents: tuple[States, State],
    backwards: bool,
    spec: GRUSpec,
    tiles: Tiles,
) -> Gradients:
    """Returns the gradients of a recurrence.

    Args:
      recurrence, backwards: as for `forward`.
      outputs: hs (T, B, H) and saved (T, B, 4H), as `forward` returns them.
      cotangents: dhs (T, B, H) and dh_last (B, H), the gradients of hs and h_last.
    """
    x, weights, h0, control = recurrence
    assert h0 is not None
    (hs, saved), (dhs, dh_last) = outputs, cotangents
    h = _entering(h0, hs, control, backwards)
    over_time, rows = (tiles.n_steps, tiles.n_rows), (tiles.n_rows, tiles.units)
    inputs = {
        "saved": filled(saved, 4, tiles),
        "h": filled(h, 1, tiles),
        "dhs": filled(dhs, 1, tiles),
        "dh_last": filled(dh_last, 1, tiles),
        "w": filled(filled(weights.w_hh, 3, tiles).T, 1, tiles),
    }
    results = {"d_products": (*over_time, 3 * tiles.units), "dh0": rows, "dh_reset": rows}
    results |= {"d_n": (*over_time, tiles.units)} if spec.reset_after else {}
    inputs |= steering_of(control, tiles)
    outputs_by_name = launch(
        "grujax_transpose", partial(_step, spec=spec), ("dh_last", "dh0"), inputs, results, tiles, not backwards
    )
    gradients = {name: cut(a, h0.shape[1], tiles) for name, a in outputs_by_name.items()}
    r, z, n, m = jnp.split(saved, 4, axis=-1)

    def source(dx: Array, d_weights: GRUWeights) -> Any:
        """The contribution of the tangents of x and the weights; its transpose gives their gradients."""
        return source_of(Values(h, r, z, n, m, None), recurrence, Recurrence(dx, d_weights), spec)

    dx, d_weights = jax.linear_transpose(source, x, weights)((gradients["d_products"], gradients.get("d_n")))
    return Gradients(dx, gradients["dh0"], d_weights, gradients["dh_reset"].sum(0))


def _entering(h0: State, hs: States, control: Control, backwards: bool) -> States:
    """The states that enter the steps, in time order."""

    def flip(a: Any) -> Any:
        return jnp.flip(a, 0) if backwards and a is not None else a

    read = Control(reset=flip(control.reset), h_reset=control.h_reset)
    return flip(entering(h0, held(flip(hs), h0, flip(control.valid)), read))


def _step(refs: Refs, t: Array, dh: Array, spec: GRUSpec) -> Array:
    """Returns the gradient of the state before a step from that of the state after it: a transposed linear step."""
    valid, reset, _, state_mask, hold = steering_at(refs, t)
    r, z, n, m = jnp.split(refs["saved"][t], 4, axis=-1)
    values = Values(refs["h"][t], r, z, n, m if spec.reset_after else None, None)
    keep, a_r, a_z, a_n = coefficients(values, state_mask, hold, spec)
    d = dh + refs["dhs"][t]
    d_z, d_n = a_z * d, a_n * d
    w = refs["w"]
    if spec.reset_after:
        results = {"d_products": jnp.concatenate([a_r * d_n, d_z, r * d_n], axis=-1), "d_n": d_n}
        seen = times(results["d_products"], w[...], spec)
    else:
        after_rz = 2 * d.shape[1]
        d_read = times(d_n, w[after_rz:], spec)
        d_rz = jnp.concatenate([a_r * d_read, d_z], axis=-1)
        results = {"d_products": jnp.concatenate([d_rz, d_n], axis=-1)}
        seen = times(d_rz, w[:after_rz], spec) + r * d_read
    before = keep * d + (seen if state_mask is None else state_mask * seen)
    if valid is not None:
        before = jnp.where(valid, before, dh)
        results = {name: jnp.where(valid, a, 0) for name, a in results.items()}
    if reset is not None:
        refs["dh_reset"][...] += jnp.where(reset, before, 0)
        before = jnp.where(reset, 0, before)
    for name, a in results.items():
        refs[name][t] = a
    return before
