"""Computes the expected results, hs and all gradients, in float64, step by step with `grujax.equations`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from grujax import equations
from grujax.bench.cases import Arrays, Weights

NAMES = ("w_ih", "w_hh", "b_ih", "b_hh")


class Gradients(NamedTuple):
    """The gradients of sum(hs * cotangent), in the layout of `Arrays`."""

    x: NDArray
    h0: NDArray
    weights: tuple[Weights, ...]

    def named(self, num_directions: int) -> dict[str, NDArray]:
        """Returns the gradients by name, weights with torch's suffixes: w_ih_l0, w_hh_l0, ..., w_ih_l0_reverse, ..."""
        named = {"x": self.x, "h0": self.h0}
        for index, weights in enumerate(self.weights):
            layer, reverse = divmod(index, num_directions)
            ending = f"_l{layer}{'_reverse' if reverse else ''}"
            named |= {name + ending: w for name, w in zip(NAMES, weights, strict=True)}
        return named


def oracle(a: Arrays, reset_after: bool) -> tuple[NDArray, Gradients]:
    """Returns hs (B, T, D*H), 0 at invalid steps, and the gradients of the GRU with this `reset_after`."""
    variant, D = equations.Variant(reset_after=reset_after), a.num_directions
    x, cotangent = (v.astype(np.float64).swapaxes(0, 1) for v in (a.x, a.cotangent))
    n_rows = x.shape[1]
    h0 = np.broadcast_to(a.h0.astype(np.float64), (len(a.h0), n_rows, a.hidden_size))
    weights = [tuple(w.astype(np.float64) for w in layer_weights) for layer_weights in a.weights]
    valid = a.valid.T[..., None]
    resets = np.zeros_like(valid) if a.resets is None else a.resets.T[..., None]

    backwards: list[list[Backward]] = []
    for layer in range(a.num_layers):
        runs = []
        for d in range(D):
            index = layer * D + d
            runs.append(_direction(x, h0[index], weights[index], valid, resets, d == 1, variant))
        x = np.concatenate([hs for hs, _ in runs], axis=-1)
        backwards.append([backward for _, backward in runs])

    dx, gradients = cotangent, []
    for directions in reversed(backwards):
        parts = [backward(dhs) for backward, dhs in zip(directions, np.split(dx, D, axis=-1), strict=True)]
        dx = np.sum([part.x for part in parts], axis=0)
        gradients = parts + gradients
    dh0 = np.stack([g.h0 for g in gradients])
    dh0 = dh0.sum(1, keepdims=True) if a.h0.shape[1] != n_rows else dh0
    return x.swapaxes(0, 1), Gradients(dx.swapaxes(0, 1), dh0, tuple(g[2:6] for g in gradients))


Backward = Callable[[NDArray], equations.Gradients]  # dhs (T, B, H) -> the gradients of sum(dhs * hs)


def _direction(
    x: NDArray,
    h0: NDArray,
    weights: tuple[NDArray, ...],
    valid: NDArray,
    resets: NDArray,
    reverse: bool,
    variant: equations.Variant,
) -> tuple[NDArray, Backward]:
    """Runs one layer in one direction: x (T, B, I), valid and resets (T, B, 1); resets only in the forward direction.

    The backward pass recomputes each step from the state before it, since storing all steps would take gigabytes.
    """
    times = range(len(x))[:: -1 if reverse else 1]
    entering, hs = np.zeros((2, *x.shape[:2], h0.shape[-1]))
    h = h0
    for t in times:
        entering[t] = np.where(resets[t], 0.0, h)
        h = np.where(valid[t], equations.step(x[t], entering[t], *weights, variant=variant).h, entering[t])
        hs[t] = np.where(valid[t], h, 0.0)

    def backward(dhs: NDArray) -> equations.Gradients:
        dx, dh = np.zeros_like(x), np.zeros_like(h0)
        totals = [np.zeros_like(w) for w in weights]
        for t in reversed(times):
            step = equations.step(x[t], entering[t], *weights, variant=variant)
            dx[t], dh_in, *parts = step.backward(np.where(valid[t], dh + dhs[t], 0.0))
            for total, part in zip(totals, parts, strict=False):
                total += part
            dh = np.where(resets[t], 0.0, np.where(valid[t], dh_in, dh))
        return equations.Gradients(dx, dh, *totals)

    return hs, backward
