"""The transposed loop: the gradient of the state stays in VMEM from the last step to the first."""

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
    """Of what has a derivative; those of biases that are not given are None."""

    x: Array
    h0: State
    weights: GRUWeights
    h_reset: Array


def backward(
    of: Recurrence,
    outputs: tuple[States, Array],
    moved: tuple[States, State],
    backwards: bool,
    spec: GRUSpec,
    tiles: Tiles,
) -> Gradients:
    """The gradients, from those of hs and h_last, `moved`.

    of, backwards: as `forward` takes them. outputs: hs (T, B, H) and saved (T, B, 4H), as it returns them.
    """
    x, weights, h0, control = of
    assert h0 is not None
    (hs, saved), (dhs, dh_last) = outputs, moved
    h = _entering(h0, hs, control, backwards)
    over_time, of_rows = (tiles.n_steps, tiles.n_rows), (tiles.n_rows, tiles.units)
    inputs = {
        "saved": filled(saved, 4, tiles),
        "h": filled(h, 1, tiles),
        "dhs": filled(dhs, 1, tiles),
        "dh_last": filled(dh_last, 1, tiles),
        "w": filled(filled(weights.w_hh, 3, tiles).T, 1, tiles),
    }
    results = {"d_products": (*over_time, 3 * tiles.units), "dh0": of_rows, "dh_reset": of_rows}
    results |= {"d_n": (*over_time, tiles.units)} if spec.reset_after else {}
    inputs |= steering_of(control, tiles)
    found = launch(
        "grujax_transpose", partial(_step, spec=spec), ("dh_last", "dh0"), inputs, results, tiles, not backwards
    )
    found = {name: cut(a, h0.shape[1], tiles) for name, a in found.items()}
    r, z, n, m = jnp.split(saved, 4, axis=-1)

    def source(dx: Array, d_weights: GRUWeights) -> Any:
        """The tangents of x and of the weights enter the loop here: transposed, their gradients leave it."""
        return source_of(Values(h, r, z, n, m, None), of, Recurrence(dx, d_weights), spec)

    dx, d_weights = jax.linear_transpose(source, x, weights)((found["d_products"], found.get("d_n")))
    return Gradients(dx, found["dh0"], d_weights, found["dh_reset"].sum(0))


def _entering(h0: State, hs: States, control: Control, backwards: bool) -> States:
    """The states that enter the steps, in time order."""

    def flip(a: Any) -> Any:
        return jnp.flip(a, 0) if backwards and a is not None else a

    read = Control(reset=flip(control.reset), h_reset=control.h_reset)
    return flip(entering(h0, held(flip(hs), h0, flip(control.valid)), read))


def _step(refs: Refs, t: Array, dh: Array, spec: GRUSpec) -> Array:
    """From the gradient of the state after a step to that of the state before it: the transpose of `linear_scan`'s."""
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
