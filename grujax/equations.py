r"""The equations of the GRU in plain NumPy: the oracle that every implementation is tested against.

    r  = σ(W_ir x + b_ir + W_hr h + b_hr)
    z  = σ(W_iz x + b_iz + W_hz h + b_hz)
    n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))      reset_after=True   (torch.nn.GRU, cuDNN)
    n  = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn)      reset_after=False  (Cho et al. 2014, arXiv 1406.1078v3)
    h' = (1 − z) ⊙ n + z ⊙ h                            update="keep"
    h' = (1 − z) ⊙ h + z ⊙ n                            update="take"      (Cho et al. 2014, Haiku)

The code is written to be read: one step, one loop over time, and next to each step its derivative, derived by hand.
Arrays are float64. They may be unbatched in the forward pass of `step`; `Step.backward`, `sequence` and
`sequence_backward` need a batch axis. Weights are NumPy arrays in the layout of `GRUWeights`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


class Variant(NamedTuple):
    """The variant of the GRU: the fields of `GRUSpec` that change an equation, with the same names."""

    reset_after: bool = True
    update: str = "keep"
    activation: Any = "tanh"  # a key of `ACTIVATIONS`, or an instance of a class of `grujax.types.PARAMETRIC`
    gate_activation: Any = "sigmoid"
    clip: float | None = None  # clips the arguments of all activations to ±clip


def sigmoid(a: Float) -> Float:
    """1 / (1 + exp(−a)) without overflow: exp is only applied to numbers that are not positive."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


ACTIVATIONS: dict[str, tuple[Callable[[Float], Float], Callable[[Float], Float]]] = {
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "sigmoid": (sigmoid, lambda a: sigmoid(a) * sigmoid(-a)),
    "relu": (lambda a: np.maximum(a, 0), lambda a: (a > 0) * 1.0),
    "hard_tanh": (lambda a: np.clip(a, -1, 1), lambda a: (np.abs(a) < 1) * 1.0),
    "hard_sigmoid": (lambda a: np.clip(a / 6 + 0.5, 0, 1), lambda a: (np.abs(a) < 3) / 6.0),
    "softsign": (lambda a: a / (1 + np.abs(a)), lambda a: (1 + np.abs(a)) ** -2.0),
    "elu": (lambda a: np.where(a > 0, a, np.expm1(np.minimum(a, 0))), lambda a: np.exp(np.minimum(a, 0))),
    "identity": (lambda a: a, np.ones_like),
}
"""Activations and their derivatives, by name."""

PARAMETRIC: dict[str, Callable[..., tuple[Callable[[Float], Float], Callable[[Float], Float]]]] = {
    "HardSigmoid": lambda alpha, beta: (
        lambda a: np.clip(alpha * a + beta, 0, 1),
        lambda a: alpha * ((alpha * a + beta > 0) & (alpha * a + beta < 1)),
    ),
    "LeakyRelu": lambda alpha: (lambda a: np.where(a >= 0, a, alpha * a), lambda a: np.where(a >= 0, 1.0, alpha)),
    "Elu": lambda alpha: (
        lambda a: np.where(a > 0, a, alpha * np.expm1(np.minimum(a, 0))),
        lambda a: np.where(a > 0, 1.0, alpha * np.exp(np.minimum(a, 0))),
    ),
    "ScaledTanh": lambda alpha, beta: (
        lambda a: alpha * np.tanh(beta * a),
        lambda a: alpha * beta * (1 - np.tanh(beta * a) ** 2),
    ),
    "ThresholdedRelu": lambda alpha: (lambda a: np.where(a > alpha, a, 0.0), lambda a: (a > alpha) * 1.0),
    "Affine": lambda alpha, beta: (lambda a: alpha * a + beta, lambda a: np.full_like(a, alpha)),
    "Softplus": lambda: (lambda a: np.logaddexp(a, 0), sigmoid),
}
"""Functions of the parameters that return an activation and its derivative, by class name."""


def function(activation: Any) -> tuple[Callable[[Float], Float], Callable[[Float], Float]]:
    """Returns an activation and its derivative.

    >>> function("relu")[0](np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    if isinstance(activation, str):
        return ACTIVATIONS[activation]
    return PARAMETRIC[type(activation).__name__](**vars(activation))


class Gradients(NamedTuple):
    """The gradients of the arguments of `step` or `sequence`, in the shapes of those arguments."""

    x: Float
    h0: Float
    w_ih: Float
    w_hh: Float
    b_ih: Float
    b_hh: Float
    scale_ih: Float | None = None
    scale_hh: Float | None = None
    h_reset: Float | None = None  # set by `sequence_backward`


class Step(NamedTuple):
    """The result of one step: the new state, the gates, and the backward pass."""

    h: Float  # (..., H)
    r: Float  # (..., H)
    z: Float  # (..., H)
    n: Float  # (..., H)
    backward: Callable[[Float], Gradients]  # dh (B, H) -> the gradients of sum(dh * h)


def step(
    x: Float,
    h: Float,
    w_ih: Float,
    w_hh: Float,
    b_ih: Float,
    b_hh: Float,
    scale_ih: Float | None = None,
    scale_hh: Float | None = None,
    *,
    variant: Variant = Variant(),
    state_mask: Float | None = None,
    hold: Float | None = None,
) -> Step:
    """Computes one step.

    Args:
      x: the input, (..., I).
      h: the state before the step, (..., H).
      w_ih, w_hh, b_ih, b_hh: the weights (I, 3H), (H, 3H), (3H,) and (3H,).
      scale_ih, scale_hh: (3H,), the scales of layer normalisation (Ba et al. 2016, arXiv 1607.06450, appendix), which
        is applied to the products with w_ih and with w_hh before the biases; r and z are normalised together, n
        separately.
      variant: the variant of the GRU.
      state_mask: (..., H), multiplies the state where the products read it (Gal and Ghahramani 2016).
      hold: (..., H), the share of the state that stays unchanged (Krueger et al. 2017).

    >>> w_ih, w_hh, bias = np.ones((4, 9)), np.ones((3, 9)), np.zeros(9)
    >>> step(np.ones((2, 4)), np.zeros((2, 3)), w_ih, w_hh, bias, bias).h.shape
    (2, 3)
    """
    after, hidden_size = variant.reset_after, h.shape[-1]
    act, slope = function(variant.activation)
    gate, gate_slope = function(variant.gate_activation)
    seen = h if state_mask is None else state_mask * h
    w_rz, w_n, b_rz, b_n = (
        w_hh[:, : 2 * hidden_size],
        w_hh[:, 2 * hidden_size :],
        b_hh[: 2 * hidden_size],
        b_hh[2 * hidden_size :],
    )
    s_rz, s_n = (None, None) if scale_hh is None else (scale_hh[: 2 * hidden_size], scale_hh[2 * hidden_size :])
    i_rz, i_n = (None, None) if scale_ih is None else (scale_ih[: 2 * hidden_size], scale_ih[2 * hidden_size :])

    x_rz, x_rz_backward = normalise(x @ w_ih[:, : 2 * hidden_size], i_rz)
    x_n, x_n_backward = normalise(x @ w_ih[:, 2 * hidden_size :], i_n)
    h_rz, h_rz_backward = normalise(seen @ w_rz, s_rz)
    a_r, a_z = np.split(x_rz + b_ih[: 2 * hidden_size] + h_rz + b_rz, 2, axis=-1)
    r, z = gate(clipped(a_r, variant)), gate(clipped(a_z, variant))
    h_n, h_n_backward = normalise((seen if after else r * seen) @ w_n, s_n)
    a_n = x_n + b_ih[2 * hidden_size :] + (r * (h_n + b_n) if after else h_n + b_n)
    n = act(clipped(a_n, variant))
    keep = z if variant.update == "keep" else 1 - z
    new = (1 - keep) * n + keep * h
    held = np.zeros_like(h) if hold is None else hold

    def backward(dh: Float) -> Gradients:
        d_new = (1 - held) * dh
        da_n = d_new * (1 - keep) * slope(clipped(a_n, variant)) * inside(a_n, variant)
        dz = d_new * (h - n) * (1 if variant.update == "keep" else -1)
        da_z = dz * gate_slope(clipped(a_z, variant)) * inside(a_z, variant)
        if after:
            dg_n = da_n * r  # the gradient of W_hn h + b_hn
            dp_n, ds_n = h_n_backward(dg_n)
            dr, d_seen, read = da_n * (h_n + b_n), dp_n @ w_n.T, seen
        else:
            dg_n = da_n
            dp_n, ds_n = h_n_backward(dg_n)
            dr, d_seen, read = (dp_n @ w_n.T) * seen, (dp_n @ w_n.T) * r, r * seen
        da_r = dr * gate_slope(clipped(a_r, variant)) * inside(a_r, variant)
        da_rz = np.concatenate([da_r, da_z], axis=-1)
        dp_rz, ds_rz = h_rz_backward(da_rz)
        d_seen = d_seen + dp_rz @ w_rz.T
        dx_rz, di_rz = x_rz_backward(da_rz)
        dx_n, di_n = x_n_backward(da_n)
        dgates_x = np.concatenate([dx_rz, dx_n], axis=-1)
        return Gradients(
            x=dgates_x @ w_ih.T,
            h0=held * dh + d_new * keep + (d_seen if state_mask is None else state_mask * d_seen),
            w_ih=x.T @ dgates_x,
            w_hh=np.concatenate([seen.T @ dp_rz, read.T @ dp_n], axis=-1),
            b_ih=np.concatenate([da_rz, da_n], axis=-1).sum(0),
            b_hh=np.concatenate([da_rz, dg_n], axis=-1).sum(0),
            scale_ih=None if di_rz is None or di_n is None else np.concatenate([di_rz, di_n]),
            scale_hh=None if ds_rz is None or ds_n is None else np.concatenate([ds_rz, ds_n]),
        )

    return Step(held * h + (1 - held) * new, r, z, n, backward)


def clipped(a: Float, variant: Variant) -> Float:
    """The argument of an activation, clipped to ±clip."""
    return a if variant.clip is None else np.clip(a, -variant.clip, variant.clip)


def inside(a: Float, variant: Variant) -> Float:
    """The derivative of `clipped`."""
    return np.ones_like(a) if variant.clip is None else np.where(np.abs(a) < variant.clip, 1.0, 0.0)


def normalise(p: Float, scale: Float | None) -> tuple[Float, Callable[[Float], tuple[Float, Float | None]]]:
    """scale ⊙ (p − mean) / √(variance + 1e-5) over the last axis, or p without a scale; and its backward pass."""
    if scale is None:
        return p, lambda dy: (dy, None)
    centred = p - p.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    unit = centred / deviation

    def backward(dy: Float) -> tuple[Float, Float]:
        d = dy * scale
        dp = (d - d.mean(-1, keepdims=True) - unit * (d * unit).mean(-1, keepdims=True)) / deviation
        return dp, (dy * unit).sum(0)

    return scale * unit, backward


class Sequence(NamedTuple):
    """The result of `sequence`."""

    hs: Float  # (T, B, H), zero at steps that are not valid
    h_last: Float  # (B, H), the state after the last valid step
    steps: list[Step]  # in the order of reading


class Reading(NamedTuple):
    """The order of the steps, which of them are valid, and where the state is reset."""

    lengths: NDArray[np.integer] | None = None  # (B,), the number of valid steps of each sequence
    valid: NDArray[np.bool_] | None = None  # (T, B), replaces lengths
    reset: NDArray[np.bool_] | None = None  # (T, B), where the state that enters a valid step is h_reset
    h_reset: Float | None = None  # (H,), None: zeros
    reverse: bool = False

    def times(self, n_steps: int) -> list[int]:
        """The indices of the steps in the order of reading."""
        return list(range(n_steps))[:: -1 if self.reverse else 1]

    def are_valid(self, t: int, n_rows: int) -> NDArray[np.bool_]:
        """Whether step t is part of each sequence, (B, 1)."""
        if self.valid is not None:
            return self.valid[t][:, None]
        return np.ones((n_rows, 1), bool) if self.lengths is None else (t < self.lengths)[:, None]

    def are_reset(self, t: int, n_rows: int) -> NDArray[np.bool_]:
        """Whether the state that enters step t is reset, (B, 1)."""
        return np.zeros((n_rows, 1), bool) if self.reset is None else self.reset[t][:, None] & self.are_valid(t, n_rows)


def sequence(
    x: Float,
    h0: Float,
    w_ih: Float,
    w_hh: Float,
    b_ih: Float,
    b_hh: Float,
    scale_ih: Float | None = None,
    scale_hh: Float | None = None,
    *,
    variant: Variant = Variant(),
    state_mask: Float | None = None,
    hold: Float | None = None,
    **which: Any,
) -> Sequence:
    """Computes all steps in a loop over time.

    In reverse the valid steps are read backwards. `hs` stays in time order, and `h_last` is the state after time 0.

    Args:
      x: the input, (T, B, I). It is ignored at steps that are not valid.
      h0: the initial state, (B, H).
      w_ih, w_hh, b_ih, b_hh, scale_ih, scale_hh, variant: as for `step`.
      state_mask: (B, H), as for `step`.
      hold: (T, B, H), as for `step`.
      which: the fields of `Reading`.

    >>> w_ih, w_hh, bias = np.ones((4, 9)), np.ones((3, 9)), np.zeros(9)
    >>> result = sequence(np.ones((5, 2, 4)), np.zeros((2, 3)), w_ih, w_hh, bias, bias, lengths=np.array([5, 2]))
    >>> result.hs.shape, result.h_last.shape, bool(result.hs[2:, 1].any())
    ((5, 2, 3), (2, 3), False)
    """
    n_steps, n_rows, _ = x.shape
    hs, reading = np.zeros((n_steps, n_rows, h0.shape[-1])), Reading(**which)
    h, steps, weights = h0, [], (w_ih, w_hh, b_ih, b_hh, scale_ih, scale_hh)
    for t in reading.times(n_steps):
        valid, held = reading.are_valid(t, n_rows), None if hold is None else hold[t]
        h = np.where(reading.are_reset(t, n_rows), 0.0 if reading.h_reset is None else reading.h_reset, h)
        x_t = np.where(valid, x[t], 0.0)
        steps.append(step(x_t, h, *weights, variant=variant, state_mask=state_mask, hold=held))
        h = np.where(valid, steps[-1].h, h)
        hs[t] = np.where(valid, h, 0.0)
    return Sequence(hs, h, steps)


def sequence_backward(
    x: Float,
    h0: Float,
    w_ih: Float,
    w_hh: Float,
    b_ih: Float,
    b_hh: Float,
    scale_ih: Float | None = None,
    scale_hh: Float | None = None,
    *,
    dhs: Float,
    dh_last: Float,
    variant: Variant = Variant(),
    state_mask: Float | None = None,
    hold: Float | None = None,
    **which: Any,
) -> Gradients:
    """Computes the gradients of `sum(dhs * hs) + sum(dh_last * h_last)` with dhs (T, B, H) and dh_last (B, H).

    The other arguments are those of `sequence`.
    """
    n_steps, n_rows, _ = x.shape
    reading, weights = Reading(**which), (w_ih, w_hh, b_ih, b_hh, scale_ih, scale_hh)
    run = sequence(x, h0, *weights, variant=variant, state_mask=state_mask, hold=hold, **which)
    dx, dh, dh_reset = np.zeros_like(x), dh_last, np.zeros(h0.shape[-1])
    totals = {name: np.zeros_like(w) for name, w in zip(Gradients._fields[2:], weights, strict=False) if w is not None}
    for t, one_step in zip(reversed(reading.times(n_steps)), reversed(run.steps), strict=True):
        valid, reset = reading.are_valid(t, n_rows), reading.are_reset(t, n_rows)
        gradients = one_step.backward(np.where(valid, dh + dhs[t], 0.0))
        dx[t], dh_in = gradients.x, gradients.h0
        totals = {name: total + getattr(gradients, name) for name, total in totals.items()}
        dh = np.where(valid, dh_in, dh)
        dh_reset = dh_reset + np.where(reset, dh, 0.0).sum(0)
        dh = np.where(reset, 0.0, dh)
    return Gradients(dx, dh, **totals, h_reset=dh_reset)
