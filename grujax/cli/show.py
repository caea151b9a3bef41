"""Prints descriptions of data sets, scores and learning rates."""

import numpy as np
from rich.console import Console
from rich.table import Table

from grujax.data import Dataset
from grujax.errors import counted
from grujax.training import Scores
from grujax.training.rates import Rates


def say(console: Console, text: str) -> None:
    """Prints text without wrapping its lines."""
    console.print(text, soft_wrap=True, highlight=False)


def show_data(console: Console, data: Dataset) -> None:
    train, test = data.train, data.test
    assert test is not None  # `load` always makes a test split
    every = np.concatenate([train.lengths, test.lengths])
    kinds = {
        name: "regression" if t.labels is None else f"{len(t.labels)} classes" for name, t in train.targets.items()
    }
    targets = ", ".join(f"{name}: {kind}" if name else kind for name, kind in kinds.items())
    targets += " per step" if train.per_step else ""
    channels = counted(train.channels if train.fill is None else len(train.fill), "channel")
    channels += "" if train.fill is None else ", each with its mask and time gap"
    counts = f"{len(train)} training and {len(test)} test sequences, {channels}"
    say(console, f"{data.name}: {counts}, {every.min()} to {every.max()} steps, {targets}")


def show_scores(console: Console, split: str, scores: Scores) -> None:
    """Prints one line for each head."""
    for name, head in scores.each.items():
        count, subject = "" if head.steps is None else f" of {head.steps} steps", f"{split} {name}".strip()
        if head.accuracy is not None:
            low, high = head.interval or (0, 0)
            interval = f" (95% interval {100 * low:.1f}–{100 * high:.1f})" if head.interval else count
            line = f"{subject} accuracy {100 * head.accuracy:.2f}%{interval}"
        else:
            r2 = "" if head.r2 is None else f" (R² {head.r2:.4f})"
            line = f"{subject} RMSE {head.rmse:.5g}{r2}{count}"
        console.print(line, highlight=False, style="bold")


def show_rates(console: Console, result: Rates) -> None:
    """Prints the smoothed loss at up to twelve of the rates, and the suggested rate."""
    table = Table("learning rate", "loss")
    every = -(-len(result.rates) // 12)
    for rate, loss in zip(result.rates[every - 1 :: every], result.losses[every - 1 :: every], strict=True):
        table.add_row(f"{rate:.1e}", f"{loss:.4f}")
    console.print(table)
    say(console, f"suggestion: --learning-rate {result.suggestion:g}, a third of the rate with the smallest loss")


def show_beside(console: Console, scores: Scores, others: dict[str, float], head: str = "") -> None:
    """Prints the score of a head beside those of the baselines."""
    name, value = scores.metric
    percent = name == "accuracy"
    table = Table("on the same split", f"{head} {name}{' %' if percent else ''}".strip())
    for row, figure in {"grujax": value, **others}.items():
        table.add_row(row, f"{100 * figure:.2f}" if percent else f"{figure:.5g}")
    console.print(table)
    neighbour = others.get("nearest neighbour", value)
    if neighbour > value if percent else neighbour < value:
        say(console, "the nearest neighbour, which needs no training, is better on this split. These may help:")
        say(console, "more rows; --steps-per-frame 1 if single steps matter; --input-offset 0 if the level matters.")


def show_confusions(console: Console, scores: Scores, labels: tuple[str, ...] | None, head: str = "") -> None:
    """Prints the three most frequent confusions, if there are any."""
    if scores.confusion is None or labels is None:
        return
    wrong = scores.confusion * (1 - np.eye(len(labels), dtype=int))
    for index in np.argsort(-wrong, axis=None, kind="stable")[:3]:
        true, predicted = np.unravel_index(index, wrong.shape)
        if wrong[true, predicted]:
            total = scores.confusion[true].sum()
            pair = f"{labels[true]} predicted as {labels[predicted]}, {wrong[true, predicted]} of {total}"
            say(console, f"{head} confused: {pair}".strip())
