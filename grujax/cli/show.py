"""What the commands print about data and figures."""

import numpy as np
from rich.console import Console
from rich.table import Table

from grujax.data import Dataset
from grujax.training import Scores
from grujax.training.rates import Rates


def say(console: Console, text: str) -> None:
    """Prints lines as they are, however long."""
    console.print(text, soft_wrap=True, highlight=False)


def show_data(console: Console, data: Dataset) -> None:
    train, test = data.train, data.test
    assert test is not None  # `load` holds some rows out
    every = np.concatenate([train.lengths, test.lengths])
    kinds = {
        name: "regression" if t.labels is None else f"{len(t.labels)} classes" for name, t in train.targets.items()
    }
    what = ", ".join(f"{name}: {kind}" if name else kind for name, kind in kinds.items())
    what += " a step" if train.per_step else ""
    channels = f"{train.channels if train.fill is None else len(train.fill)} channels"
    channels += "" if train.fill is None else ", each with its mask and time gap"
    counts = f"{len(train)} training and {len(test)} test sequences, {channels}"
    say(console, f"{data.name}: {counts}, {every.min()} to {every.max()} steps, {what}")


def show_scores(console: Console, split: str, scores: Scores) -> None:
    """A line for each head."""
    for name, found in scores.each.items():
        of, what = "" if found.steps is None else f" of {found.steps} steps", f"{split} {name}".strip()
        if found.accuracy is not None:
            low, high = found.interval or (0, 0)
            interval = f" (95% interval {100 * low:.1f}–{100 * high:.1f})" if found.interval else of
            line = f"{what} accuracy {100 * found.accuracy:.2f}%{interval}"
        else:
            r2 = "" if found.r2 is None else f" (R² {found.r2:.4f})"
            line = f"{what} RMSE {found.rmse:.5g}{r2}{of}"
        console.print(line, highlight=False, style="bold")


def show_rates(console: Console, found: Rates) -> None:
    """The smoothed loss at some twelve of the rates, and the suggestion."""
    table = Table("learning rate", "loss")
    every = -(-len(found.rates) // 12)
    for rate, loss in zip(found.rates[every - 1 :: every], found.losses[every - 1 :: every], strict=True):
        table.add_row(f"{rate:.1e}", f"{loss:.4f}")
    console.print(table)
    say(console, f"suggestion: --learning-rate {found.suggestion:g}, a third of the rate of the least loss")


def show_beside(console: Console, scores: Scores, others: dict[str, float], head: str = "") -> None:
    name, value = scores.metric
    percent = name == "accuracy"
    table = Table("on the same split", f"{head} {name}{' %' if percent else ''}".strip())
    for row, figure in {"grujax": value, **others}.items():
        table.add_row(row, f"{100 * figure:.2f}" if percent else f"{figure:.5g}")
    console.print(table)
    neighbour = others.get("nearest neighbour", value)
    if neighbour > value if percent else neighbour < value:
        say(console, "the nearest neighbour, which needs no training, is better on this split. What may help: more")
        say(console, "rows; --steps-per-frame 1, where single steps matter; --input-offset 0, where the level does.")


def show_confused(console: Console, scores: Scores, labels: tuple[str, ...] | None, head: str = "") -> None:
    """The three most frequent confusions, if there are any."""
    if scores.confusion is None or labels is None:
        return
    wrong = scores.confusion * (1 - np.eye(len(labels), dtype=int))
    for index in np.argsort(-wrong, axis=None, kind="stable")[:3]:
        true, predicted = np.unravel_index(index, wrong.shape)
        if wrong[true, predicted]:
            total = scores.confusion[true].sum()
            what = f"{labels[true]} taken for {labels[predicted]}, {wrong[true, predicted]} of {total}"
            say(console, f"{head} confused: {what}".strip())
