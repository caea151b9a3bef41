"""Plots of the measures in this package. They need matplotlib (extra `plot`).

Each function returns the matplotlib figure. If `path` is given, it also writes the figure as a PNG file, atomically.
Each raises `InputError` for an argument of another type or shape, for a path that does not end in .png, and without
matplotlib.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from grujax.errors import require
from grujax.inspect.dynamics import FixedPoints, principal_components
from grujax.inspect.measures import Saturation
from grujax.saving.pictures import new_figure, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_saturation(saturations: Mapping[str, Saturation] | Saturation, path: str | Path | None = None) -> "Figure":
    """Draws how often each unit's gates are closed (x axis) and open (y axis): one panel per layer, one dot per unit.

    Both axes are shares of steps, so x + y is at most 1. A dot on the diagonal is a switch: its gate is always closed
    or open. A dot at the origin never saturates.

    Args:
      saturations: the result of `saturation`, or a dict of results by layer.

    >>> from grujax.inspect.measures import Gates, saturation
    >>> z = np.array([[0.05, 0.5], [0.95, 0.5]])
    >>> figure = plot_saturation({"l0": saturation(Gates(z, z, z))})
    >>> figure.axes[0].get_title()
    'l0'

    Source: Karpathy, Johnson and Fei-Fei 2015, arXiv 1506.02078.
    """
    layers = _by_layer(saturations, "saturations")
    columns = min(len(layers), 4)
    rows = -(-len(layers) // columns)
    figure = new_figure(max(3.0 * columns, 4.2), 2.9 * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, layer) in zip(panels, layers.items(), strict=False):
        expected = "a Saturation or a dict of them by layer"
        require(isinstance(layer, Saturation), "saturations", expected, type(layer).__name__)
        axes.plot([0, 1], [1, 0], color="0.7", linewidth=1, zorder=0)
        dots: dict[str, Any] = {"s": 26, "alpha": 0.55, "linewidths": 0, "clip_on": False, "zorder": 3}
        axes.scatter(layer.left_r, layer.right_r, color="C0", label="reset gate r", **dots)
        axes.scatter(layer.left_z, layer.right_z, color="C1", label="update gate z", **dots)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=name)
        axes.grid(alpha=0.3)
    for axes in panels[len(layers) :]:
        axes.remove()
    panels[0].legend(frameon=False, loc="upper right", fontsize="small", handletextpad=0.1)
    figure.suptitle("Saturation of the gates, one dot per unit")
    figure.supxlabel("closed (left-saturated): share of steps")
    figure.supylabel("open (right-saturated): share of steps")
    return written(figure, path)


def plot_time_scale(time_scales: Mapping[str, ArrayLike] | ArrayLike, path: str | Path | None = None) -> "Figure":
    """Draws the time scale (steps, log axis) of every unit, sorted: one curve per layer.

    A triangle on the upper edge is a unit that never forgets (τ = ∞), one on the lower edge forgets at once (τ = 0).
    Memory in attractors is not visible, as a note in the figure says: units whose gates are open can hold a value
    together by returning to a fixed point. `plot_eigenvalues` shows such memory.

    Args:
      time_scales: the result of `time_scale`, (H,), or a dict of results by layer.

    >>> plot_time_scale(np.array([2.0, 30.0, np.inf])).axes[0].get_yscale()
    'log'
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for i, (name, layer) in enumerate(_by_layer(time_scales, "time_scales").items()):
        tau = np.sort(np.asarray(layer, float))
        require(tau.ndim == 1, "time_scales", "shape (H,), or a dict of such arrays by layer", f"shape {tau.shape}")
        unit, colour = np.arange(1, len(tau) + 1), f"C{i % 10}"
        finite = np.where((tau > 0) & np.isfinite(tau), tau, np.nan)
        axes.plot(unit, finite, marker=".", color=colour, label=name)
        for edge, at in ((0, tau == 0), (1, tau == np.inf)):
            if at.any():
                y, where = np.full(at.sum(), edge), axes.get_xaxis_transform()
                axes.plot(unit[at], y, "v^"[edge], color=colour, transform=where, clip_on=False)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="unit, sorted", ylabel="time scale τ (steps)", yscale="log", title="Memory of the units")
    note = "By each unit's own update gate. Memory in attractors is not visible here, see fixed_points."
    figure.supxlabel(note, fontsize="small", color="0.4")
    axes.grid(alpha=0.3)
    if isinstance(time_scales, Mapping):
        axes.legend(frameon=False)
    return written(figure, path)


def plot_gradient_norm(norms: ArrayLike, path: str | Path | None = None) -> "Figure":
    """Draws how far back the loss reaches: one thin curve per sequence (log axis), and their median as a thick curve.

    Args:
      norms: the result of `gradient_norm`, (B, T) or (T,), in units of the loss per unit of x. Zeros are left out:
        they are the steps beyond a sequence's length.

    >>> plot_gradient_norm(np.array([[1e-3, 1e-2, 0.1]])).axes[0].get_title()
    'Reach of the gradient'

    Source: Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """
    values = np.asarray(norms, float)
    expected = "shape (B, T) or (T,), at least one step"
    require(values.ndim in (1, 2) and values.size > 0, "norms", expected, f"shape {values.shape}")
    rows = np.ma.masked_where(~(values > 0), values).reshape(-1, values.shape[-1])
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    steps, few = np.arange(values.shape[-1]), values.shape[-1] <= 50
    style: dict[str, Any] = {"color": "C0", "alpha": max(0.1, min(0.6, 4 / len(rows))), "linewidth": 1}
    for row in rows.filled(np.nan):
        axes.plot(steps, row, marker="." if few else None, **style)
    if len(rows) > 1:
        median = np.ma.median(rows, axis=0)
        axes.plot(steps, np.ma.filled(median, np.nan), color="C1", linewidth=2, label="median of the sequences")
        axes.legend(frameon=False)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="time (steps)", ylabel="‖∂ loss / ∂ x‖ (loss per unit of x)", yscale="log")
    axes.set_title("Reach of the gradient")
    axes.grid(alpha=0.3)
    return written(figure, path)


def plot_states(
    states: ArrayLike, fixed: FixedPoints | None = None, path: str | Path | None = None, lines: int = 20
) -> "Figure":
    """Draws runs in the plane of their first two principal components and, if S > 2, of the first and third.

    Args:
      states: the result of `states`, (..., T, S).
      fixed: the result of `fixed_points`, drawn on top: a dot for a stable point, a cross for an unstable one.
      lines: the number of runs to draw. The components are computed from all runs.

    >>> plot_states(np.array([[0.0, 0.0], [1.0, 0.5], [2.0, -0.5]])).axes[0].get_xlabel()
    'component 1 (86% of the variance)'

    Source: Sussillo and Barak 2013, doi 10.1162/NECO_a_00409.
    """
    h = np.asarray(states, float)
    components = principal_components(h)
    planes = [(0, 1), (0, 2)][: len(components.shares) - 1]
    require(bool(planes), "states", "two states or more, of two units or more", f"shape {h.shape}")
    runs = ((h - components.mean) @ components.axes.T).reshape(-1, *h.shape[-2:-1], len(components.shares))
    figure = new_figure(4.4 * len(planes) + 0.4, 4.4)
    panels = figure.subplots(1, len(planes), squeeze=False)[0]
    for axes, (i, j) in zip(panels, planes, strict=True):
        for run in runs[:lines]:
            axes.plot(run[:, i], run[:, j], color="C0", alpha=0.35, linewidth=0.8)
        if fixed is not None:
            at, stable = (fixed.points - components.mean) @ components.axes.T, fixed.stable
            axes.scatter(*at[~stable][:, [i, j]].T, color="C3", marker="x", label="unstable fixed point", zorder=3)
            axes.scatter(*at[stable][:, [i, j]].T, color="black", s=40, label="stable fixed point", zorder=4)
        shares = [f"component {k + 1} ({components.shares[k]:.0%} of the variance)" for k in (i, j)]
        axes.set(xlabel=shares[0], ylabel=shares[1])
        axes.grid(alpha=0.3)
    if fixed is not None:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("Paths of the state")
    return written(figure, path)


def plot_eigenvalues(eigenvalues: ArrayLike, path: str | Path | None = None) -> "Figure":
    """Draws eigenvalues in the complex plane, with circles of equal time constant τ = −1 / ln |λ|.

    Inside the unit circle a mode decays, more slowly the closer it is to the circle. Outside it grows.

    Args:
      eigenvalues: `FixedPoints.eigenvalues`, (P, S), or (S,). Each point has a colour; ten colours repeat.

    >>> plot_eigenvalues([0.9, 0.5 + 0.5j, 0.5 - 0.5j]).axes[0].get_title()
    'Eigenvalues at fixed points'

    Source: Sussillo and Barak 2013, doi 10.1162/NECO_a_00409.
    """
    values = np.atleast_2d(np.asarray(eigenvalues, complex))
    expected = "shape (P, S) or (S,), at least one eigenvalue"
    require(values.ndim == 2 and values.size > 0, "eigenvalues", expected, f"shape {values.shape}")
    figure = new_figure(5.2, 5.2)
    axes = figure.subplots()
    circle = np.exp(2j * np.pi * np.linspace(0, 1, 201))
    for tau, style in {1: ":", 5: "--", np.inf: "-"}.items():
        ring = np.exp(-1 / tau) * circle
        label = "τ = ∞" if tau == np.inf else f"τ = {tau} steps"
        axes.plot(ring.real, ring.imag, style, color="0.6", linewidth=1, label=label)
    for i, row in enumerate(values):
        axes.scatter(row.real, row.imag, s=18, alpha=0.7, linewidths=0, color=f"C{i % 10}", zorder=3)
    axes.set(xlabel="real part of λ", ylabel="imaginary part of λ", title="Eigenvalues at fixed points", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    return written(figure, path)


def _by_layer(measures: Any, name: str) -> dict[str, Any]:
    layers = dict(measures) if isinstance(measures, Mapping) else {"": measures}
    require(bool(layers), name, "at least one layer", "none")
    return layers
