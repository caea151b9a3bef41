"""What is shown during training: what is being compiled, and a line that fits the terminal."""

import io
import re

from rich.console import Console

from grujax.training import Compiled, Epoch
from grujax.training.progress import Screen

EPOCH = Epoch(7, 1.2345, 0.2345, "accuracy", 0.951, 12345.6, 0.2, True, 98765.4)
SHAPES = ((3, 4, 5), (3, 8, 5))


def shown(epochs=120, terminal=True, width=80):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system="truecolor" if terminal else None)
    with Screen(console, epochs, quiet=False) as screen:
        for seconds in ((), (61.5,)):
            screen.on_compiled(Compiled(SHAPES, seconds, 0.25))
        screen.on_epoch(EPOCH._replace(epoch=epochs))
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()))
    return [line.rstrip() for line in lines if line.strip()]


def test_compiling_says_what_and_how_long_it_took():
    assert shown()[:2] == [
        "compiling 2 shapes (padded to 4, 8 steps; 25% of steps are padding)",
        "compiled 2 shapes (padded to 4, 8 steps; 25% of steps are padding) in 61.5 s",
    ]


def test_epoch_bar_and_time_left_stay_in_a_narrow_terminal():
    for epochs, width in ((120, 80), (100000, 80), (120, 40)):
        line = shown(epochs, width=width)[-1]
        assert re.match(rf"epoch {epochs}/{epochs} ━{{12}} +\d*:?\d+:\d\d ", line), line
        assert len(line) <= width
    assert "loss 1.2345  validation 0.2345  accuracy 95.1%" in shown()[-1]


def test_without_validation_the_line_has_no_figures_of_it(monkeypatch):
    monkeypatch.setitem(globals(), "EPOCH", EPOCH._replace(validation_loss=None, metric="", validation_metric=None))
    assert shown(terminal=False)[-1] == "epoch 120/120  loss 1.2345  12,346 sequences/s, 98,765 steps/s  0 s left"


def test_what_is_no_terminal_gets_lines():
    assert shown(terminal=False)[-1] == (
        "epoch 120/120  loss 1.2345  validation 0.2345  accuracy 95.1%  12,346 sequences/s, 98,765 steps/s  0 s left"
    )
