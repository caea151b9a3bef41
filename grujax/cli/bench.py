"""`grujax bench`: compares grujax with other GRU implementations on this machine."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from grujax.bench import chart
from grujax.bench.measure import Options, run
from grujax.bench.report import TABLE_WIDTH, tables, write_report
from grujax.cli.show import say
from grujax.errors import require


@dataclass(frozen=True)
class Bench(Options):
    """Check grujax and other GRU libraries against the equations, then time them alternately on this machine.

    The table names the libraries that are not installed; the extra `bench` installs all of them. The exit code is 1 if
    the results of grujax differ from the equations.
    """

    chart: Path | None = Path("grujax-bench.png")
    """The chart to draw (PNG, extra `plot`); an existing file is replaced. None: no chart."""
    json: Path | None = None
    """The JSON file for the report. None: no file."""

    def run(self, console: Console) -> int:
        self._check()
        report = run(self, console.print)
        console.width = max(console.width, TABLE_WIDTH)
        for table in tables(report):
            console.print(table)
        say(console, chart.measured_on(report))
        if self.json is not None:
            write_report(report, self.json)
            say(console, f"saved {self.json}")
        if self.chart is not None:
            chart.draw(report, self.chart)
            say(console, f"drawn {self.chart}")
        return int(report.failed)

    def _check(self) -> None:
        """Raises `InputError` at once for output that would otherwise fail after minutes of measuring."""
        for argument, path in (("--chart", self.chart), ("--json", self.json)):
            fits = path is None or (path.parent.is_dir() and not path.is_dir())
            require(fits, argument, "a file in a folder that exists", path, "Create the folder first.")
        if self.chart is not None:
            chart.require_matplotlib()
            require(self.chart.suffix == ".png", "--chart", "a file name that ends in .png", self.chart)
            remedy = "The chart shows times relative to grujax: add it, or pass --chart None."
            require("grujax" in self.peers, "--peers", "a list that contains grujax", list(self.peers), remedy)
