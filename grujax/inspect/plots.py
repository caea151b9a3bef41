"""A picture of each measure. matplotlib comes with the extra `plot`.

Each function returns the matplotlib figure, and writes it as well where `path` names a PNG file, whole or not at all.
Each raises `InputError` for an argument of another type or shape, for a path that does not end in .png, and without
matplotlib.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from grujax.errors import require
from grujax.inspect.measures import Saturation
from grujax.saving.pictures import new_figure, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_saturation(saturations: Mapping[str, Saturation] | Saturation, path: str | Path | None = None) -> "Figure":
    """Draws how often each unit's gates are closed (x axis) and open (y axis): one panel a layer, one dot a unit.

    Both axes are shares of steps, so x + y is at most 1. A dot on the diagonal is a switch: its gate is always closed
    or open. A dot at the origin never saturates.

    Args:
      saturations: what `saturation` returns, or a dict of these by layer.

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
    for axes, (name, found) in zip(panels, layers.items(), strict=False):
        require(isinstance(found, Saturation), "saturations", "a Saturation, or one a layer", type(found).__name__)
        axes.plot([0, 1], [1, 0], color="0.7", linewidth=1, zorder=0)
        dots: dict[str, Any] = {"s": 26, "alpha": 0.55, "linewidths": 0, "clip_on": False, "zorder": 3}
        axes.scatter(found.left_r, found.right_r, color="C0", label="reset gate r", **dots)
        axes.scatter(found.left_z, found.right_z, color="C1", label="update gate z", **dots)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=name)
        axes.grid(alpha=0.3)
    for axes in panels[len(layers) :]:
        axes.remove()
    panels[0].legend(frameon=False, loc="upper right", fontsize="small", handletextpad=0.1)
    figure.suptitle("Saturation of the gates, a dot a unit")
    figure.supxlabel("closed (left-saturated): share of steps")
    figure.supylabel("open (right-saturated): share of steps")
    return written(figure, path)


def plot_time_scale(time_scales: Mapping[str, ArrayLike] | ArrayLike, path: str | Path | None = None) -> "Figure":
    """Draws the time scale (steps, log axis) of every unit, sorted: one curve a layer.

    A triangle on the upper edge is a unit that never forgets (τ = ∞), one on the lower edge forgets at once (τ = 0).

    Args:
      time_scales: what `time_scale` returns (H,), or a dict of these by layer.

    >>> plot_time_scale(np.array([2.0, 30.0, np.inf])).axes[0].get_yscale()
    'log'
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for i, (name, given) in enumerate(_by_layer(time_scales, "time_scales").items()):
        tau = np.sort(np.asarray(given, float))
        require(tau.ndim == 1, "time_scales", "shape (H,), or one such a layer", f"shape {tau.shape}")
        unit, colour = np.arange(1, len(tau) + 1), f"C{i % 10}"
        finite = np.where((tau > 0) & np.isfinite(tau), tau, np.nan)
        axes.plot(unit, finite, marker=".", color=colour, label=name)
        for edge, at in ((0, tau == 0), (1, tau == np.inf)):
            if at.any():
                y, where = np.full(at.sum(), edge), axes.get_xaxis_transform()
                axes.plot(unit[at], y, "v^"[edge], color=colour, transform=where, clip_on=False)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="unit, sorted", ylabel="time scale τ (steps)", yscale="log", title="Memory of the units")
    axes.grid(alpha=0.3)
    if isinstance(time_scales, Mapping):
        axes.legend(frameon=False)
    return written(figure, path)


def plot_gradient_norm(norms: ArrayLike, path: str | Path | None = None) -> "Figure":
    """Draws how far back the loss reaches: one thin curve a sequence (log axis), their median as a thick one.

    Args:
      norms: what `gradient_norm` returns, (B, T) or (T,), in units of the loss per unit of x. Zeros are left out: they
        are the steps beyond a sequence's length.

    >>> plot_gradient_norm(np.array([[1e-3, 1e-2, 0.1]])).axes[0].get_title()
    'Reach of the gradient'

    Source: Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """
    found = np.asarray(norms, float)
    expected = "shape (B, T) or (T,), at least one step"
    require(found.ndim in (1, 2) and found.size > 0, "norms", expected, f"shape {found.shape}")
    there = np.ma.masked_where(~(found > 0), found).reshape(-1, found.shape[-1])
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    steps, few = np.arange(found.shape[-1]), found.shape[-1] <= 50
    style: dict[str, Any] = {"color": "C0", "alpha": max(0.1, min(0.6, 4 / len(there))), "linewidth": 1}
    for row in there.filled(np.nan):
        axes.plot(steps, row, marker="." if few else None, **style)
    if len(there) > 1:
        median = np.ma.median(there, axis=0)
        axes.plot(steps, np.ma.filled(median, np.nan), color="C1", linewidth=2, label="median of the sequences")
        axes.legend(frameon=False)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="time (steps)", ylabel="‖∂ loss / ∂ x‖ (loss per unit of x)", yscale="log")
    axes.set_title("Reach of the gradient")
    axes.grid(alpha=0.3)
    return written(figure, path)


def _by_layer(given: Any, name: str) -> dict[str, Any]:
    layers = dict(given) if isinstance(given, Mapping) else {"": given}
    require(bool(layers), name, "at least one layer", "none")
    return layers
