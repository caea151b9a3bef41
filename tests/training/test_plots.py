"""The plots of a training run."""

from grujax.training import Epoch
from grujax.training.plots import plot_curves

HISTORY = [Epoch(k, 1 / k, 2 / k, "accuracy", 1 - 1 / k, 100.0, 0.1, True) for k in range(1, 31)]


def test_the_line_of_the_kept_epoch_crosses_no_legend(tmp_path):
    figure = plot_curves(tmp_path / "curves.png", HISTORY, HISTORY[-2])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (legend,) = [*figure.legends, *(axes.legend_ for axes in figure.axes if axes.legend_ is not None)]
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["training (dropout, noise, mixup on)", "validation", "kept: epoch 29"]
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_without_validation_there_is_one_panel(tmp_path):
    history = [epoch._replace(validation_loss=None, metric="", validation_metric=None) for epoch in HISTORY]
    figure = plot_curves(tmp_path / "curves.png", history, history[-1])
    (panel,) = figure.axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training (dropout, noise, mixup on)", "kept: epoch 30"]
    assert panel.get_title() == "Loss" and len(panel.lines) == 2
