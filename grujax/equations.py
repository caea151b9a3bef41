r"""The GRU in plain NumPy: the oracle that every implementation is tested against.

    r  = σ(W_ir x + b_ir + W_hr h + b_hr)
    z  = σ(W_iz x + b_iz + W_hz h + b_hz)
    n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))      reset_after=True   (torch.nn.GRU, cuDNN)
    n  = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn)      reset_after=False  (Cho et al. 2014, arXiv 1406.1078v3)
    h' = (1 − z) ⊙ n + z ⊙ h

Written for reading: one row, one step, one loop. Arrays are float64 and unbatched in `step`, batched in
`sequence` and `sequence_backward`. Weights are NumPy arrays in the layout of `GRUWeights`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


class Step(NamedTuple):
    """One step and what its derivative needs."""

    h: Float  # the new state
    h_in: Float
    r: Float
    z: Float
    n: Float
    candidate: Float  # what r multiplies: W_hn h + b_hn when reset_after, h otherwise


def sigmoid(a: Float) -> Float:
    """1 / (1 + exp(−a)), without overflow: exp is only ever taken of a number that is not positive."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def step(x: Float, h: Float, w_ih: Float, w_hh: Float, b_ih: Float, b_hh: Float, reset_after: bool = True) -> Step:
    """One step: x (..., I), h (..., H) -> the new state (..., H)."""
    x_r, x_z, x_n = np.split(x @ w_ih + b_ih, 3, axis=-1)
    w_r, w_z, w_n = np.split(w_hh, 3, axis=-1)
    b_r, b_z, b_n = np.split(b_hh, 3)
    r = sigmoid(x_r + h @ w_r + b_r)
    z = sigmoid(x_z + h @ w_z + b_z)
    candidate = h @ w_n + b_n if reset_after else h
    n = np.tanh(x_n + r * candidate) if reset_after else np.tanh(x_n + (r * candidate) @ w_n + b_n)
    return Step((1 - z) * n + z * h, h, r, z, n, candidate)


class Sequence(NamedTuple):
    hs: Float  # (T, B, H), zero where a step is not valid
    h_last: Float  # (B, H), the state after the last valid step
    steps: list[Step]


def sequence(
    x: Float,
    h0: Float,
    w_ih: Float,
    w_hh: Float,
    b_ih: Float,
    b_hh: Float,
    *,
    lengths: NDArray[np.integer] | None = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> Sequence:
    """The loop over time: x (T, B, I), h0 (B, H), lengths (B,).

    In reverse the valid part is read backwards; `hs` stays in time order and `h_last` is the state at time 0.
    """
    n_steps, n_rows, _ = x.shape
    hs = np.zeros((n_steps, n_rows, h0.shape[-1]))
    h, steps = h0, []
    for t in _times(n_steps, reverse):
        valid = _valid(t, n_rows, lengths)
        steps.append(step(np.where(valid, x[t], 0.0), h, w_ih, w_hh, b_ih, b_hh, reset_after))
        h = np.where(valid, steps[-1].h, h)
        hs[t] = np.where(valid, h, 0.0)
    return Sequence(hs, h, steps)


class Gradients(NamedTuple):
    x: Float
    h0: Float
    w_ih: Float
    w_hh: Float
    b_ih: Float
    b_hh: Float


def sequence_backward(
    x: Float,
    h0: Float,
    w_ih: Float,
    w_hh: Float,
    b_ih: Float,
    b_hh: Float,
    dhs: Float,
    dh_last: Float,
    *,
    lengths: NDArray[np.integer] | None = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> Gradients:
    """The gradients of `sum(dhs * hs) + sum(dh_last * h_last)`, derived by hand: dhs (T, B, H), dh_last (B, H)."""
    n_steps, n_rows, _ = x.shape
    steps = sequence(x, h0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, reverse=reverse, reset_after=reset_after).steps
    w_r, w_z, w_n = np.split(w_hh, 3, axis=-1)
    dx, dw_ih, dw_hh = np.zeros_like(x), np.zeros_like(w_ih), np.zeros_like(w_hh)
    db_ih, db_hh = np.zeros_like(b_ih), np.zeros_like(b_hh)
    dh = dh_last
    for t, (_, h, r, z, n, candidate) in zip(reversed(_times(n_steps, reverse)), reversed(steps), strict=True):
        valid = _valid(t, n_rows, lengths)
        dh_out = np.where(valid, dh + dhs[t], 0.0)  # what reaches this step's equations
        da_n = dh_out * (1 - z) * (1 - n**2)  # a_g: what stands inside the gate's σ or tanh
        da_z = dh_out * (h - n) * z * (1 - z)
        if reset_after:
            dg_n = da_n * r  # the gradient of W_hn h + b_hn
            dr = da_n * candidate
            dh_in = dh_out * z + dg_n @ w_n.T
        else:
            dg_n = da_n
            dr = (da_n @ w_n.T) * h
            dh_in = dh_out * z + (da_n @ w_n.T) * r
        da_r = dr * r * (1 - r)
        dh_in += da_r @ w_r.T + da_z @ w_z.T

        dgates_x = np.concatenate([da_r, da_z, da_n], axis=-1)
        dgates_h = np.concatenate([da_r, da_z, dg_n], axis=-1)
        x_t, read = np.where(valid, x[t], 0.0), h if reset_after else r * h
        dx[t] = dgates_x @ w_ih.T
        dw_ih += x_t.T @ dgates_x
        dw_hh += np.concatenate([h.T @ da_r, h.T @ da_z, read.T @ dg_n], axis=-1)
        db_ih += dgates_x.sum(0)
        db_hh += dgates_h.sum(0)
        dh = np.where(valid, dh_in, dh)
    return Gradients(dx, dh, dw_ih, dw_hh, db_ih, db_hh)


def _times(n_steps: int, reverse: bool) -> list[int]:
    return list(range(n_steps))[:: -1 if reverse else 1]


def _valid(t: int, n_rows: int, lengths: NDArray[np.integer] | None) -> NDArray[np.bool_]:
    """(B, 1): does step t belong to the row?"""
    return np.ones((n_rows, 1), bool) if lengths is None else (t < lengths)[:, None]
