"""Plots the curves and the confusion matrix of a run. The extra `plot` installs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grujax.saving.pictures import new_figure, written
from grujax.training.run import Epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(path: str | Path, history: Sequence[Epoch], best: Epoch) -> "Figure":
    """Writes a PNG of the loss and, if rows were held out, the validation figure by epoch; marks the kept epoch."""
    figure = new_figure(8, 3.6)
    held = best.validation_loss is not None
    panels = np.atleast_1d(figure.subplots(1, 1 + held))
    losses = panels[0]
    epochs = [epoch.epoch for epoch in history]
    losses.semilogy(epochs, [epoch.loss for epoch in history], label="training (dropout, noise, mixup on)")
    losses.set(xlabel="epoch", ylabel="loss", title="Loss")
    if held:
        losses.semilogy(epochs, [epoch.validation_loss for epoch in history], label="validation")
        panels[1].plot(epochs, [epoch.validation_metric for epoch in history], color="C1")
        panels[1].set(xlabel="epoch", ylabel=best.metric, title=f"Validation {best.metric}")
    for axes in panels:
        axes.axvline(best.epoch, color="0.5", linestyle=":", label=f"kept: epoch {best.epoch}")
        axes.grid(alpha=0.3)
    # below both panels: inside a panel the curve would cross it
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return written(figure, path)


def plot_confusion(path: str | Path, confusion: np.ndarray, labels: Sequence[str]) -> "Figure":
    """Writes a PNG of the confusion matrix (true, predicted): counts, and colours for shares of each true class."""
    size = max(4.0, 0.5 * len(labels) + 1.5)
    figure = new_figure(size, size)
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    ticks = np.arange(len(labels))
    as_text = {"parse_math": False}  # a "$" in a label does not begin a formula
    axes.set_xticks(ticks, labels, rotation=45 if max(map(len, labels)) > 3 else 0, **as_text)
    axes.set_yticks(ticks, labels, **as_text)
    axes.set(xlabel="predicted", ylabel="true", title="Test set, counts")
    return written(figure, path)
