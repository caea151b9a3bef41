"""What a run shows while it trains: a rich progress bar in a terminal, plain lines elsewhere, nothing when quiet."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from grujax.training.fit import Compiled, Epoch


class Screen:
    """A context manager whose `on_compiled` and `on_epoch` are handed to `fit`."""

    def __init__(self, console: Console, epochs: int, quiet: bool) -> None:
        self.console, self.epochs, self.quiet = console, epochs, quiet
        self.progress = Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.task = self.progress.add_task("train", total=epochs, figures="")

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.progress.stop()

    def on_compiled(self, compiled: Compiled) -> None:
        if not self.quiet:
            lengths = ", ".join(str(shape[1]) for shape in compiled.shapes)
            self.console.print(
                f"compiled {len(compiled.shapes)} shapes (padded to {lengths} steps; {100 * compiled.padding:.0f}% of "
                f"steps are padding) in {compiled.seconds:.1f} s",
                soft_wrap=True,
                highlight=False,
            )
            self.progress.start()  # only now: a bar that waits for the compiler would show a wrong time left

    def on_epoch(self, epoch: Epoch) -> None:
        name, value = epoch.metric, epoch.validation_metric
        shown = f"{100 * value:.1f}%" if name == "accuracy" else f"{value:.4g}"
        figures = (
            f"loss {epoch.loss:.4f}  validation loss {epoch.validation_loss:.4f}  {name} {shown}  "
            f"{epoch.sequences_per_second:,.0f} sequences/s"
        )
        self.progress.update(self.task, completed=epoch.epoch, figures=figures)
        every = max(1, self.epochs // 10)
        if self.progress.disable and not self.quiet and (epoch.epoch % every == 0 or epoch.epoch in (1, self.epochs)):
            left = (self.epochs - epoch.epoch) * epoch.seconds
            line = f"epoch {epoch.epoch}/{self.epochs}  {figures}  {left:.0f} s left"
            self.console.print(line, soft_wrap=True, highlight=False)
