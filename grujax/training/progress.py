"""Shows the progress of a run: a bar in a terminal, plain lines elsewhere, nothing when quiet."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from grujax.errors import counted
from grujax.training.loop import Compiled
from grujax.training.run import Epoch


class Screen:
    """A context manager whose methods `on_compiled` and `on_epoch` are the callbacks of `fit`."""

    def __init__(self, console: Console, epochs: int, quiet: bool) -> None:
        self.console, self.epochs, self.quiet = console, epochs, quiet
        figures = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # the one column that a narrow terminal cuts
        self.progress = Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(epochs)) + 1)),
            BarColumn(bar_width=12),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
            TextColumn("{task.fields[figures]}", table_column=figures),
            console=console,
            expand=True,
            disable=quiet or not console.is_terminal,
        )
        self.task = self.progress.add_task("train", total=epochs, figures="")

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.progress.stop()

    def on_compiled(self, compiled: Compiled) -> None:
        lengths = ", ".join(str(shape[1]) for shape in compiled.shapes)
        padding = f"{100 * compiled.padding:.0f}% of steps are padding"
        shapes = f"{counted(len(compiled.shapes), 'shape')} (padded to {lengths} steps; {padding})"
        if not compiled.seconds:
            self._print(f"compiling {shapes}")
            return
        self._print(f"compiled {shapes} in {sum(compiled.seconds):.1f} s")
        self.progress.start()  # after compilation, whose time would make the estimate of the time left wrong

    def on_epoch(self, epoch: Epoch) -> None:
        name, value = epoch.metric, epoch.validation_metric
        validated = ""
        if value is not None:
            shown = f"{100 * value:.1f}%" if name.endswith("accuracy") else f"{value:.4g}"
            validated = f"validation {epoch.validation_loss:.4f}  {name} {shown}  "
        figures = f"loss {epoch.loss:.4f}  {validated}{epoch.sequences_per_second:,.0f} sequences/s"
        figures += f", {epoch.steps_per_second:,.0f} steps/s"
        self.progress.update(self.task, completed=epoch.epoch, figures=figures)
        every = max(1, self.epochs // 10)
        if self.progress.disable and (epoch.epoch % every == 0 or epoch.epoch in (1, self.epochs)):
            left = (self.epochs - epoch.epoch) * epoch.seconds
            self._print(f"epoch {epoch.epoch}/{self.epochs}  {figures}  {left:.0f} s left")

    def _print(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, soft_wrap=True, highlight=False)
