"""`grujax bench`: grujax beside other GRUs on this machine."""

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
    """Measure grujax beside other GRUs on this machine: all are checked against the equations and timed in turns.

    The table names the libraries that are not installed; the extra `bench` installs them all. The exit code is 1 where
    grujax itself differs from the equations.
    """

    chart: Path | None = Path("grujax-bench.png")
    """The picture to draw (extra `plot`); a file of that name is replaced. None: no picture."""
    json: Path | None = None
    """The file to write the report to. None: no file."""

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
        """Raises now what would fail after minutes of measuring."""
        for argument, path in (("--chart", self.chart), ("--json", self.json)):
            there = path is None or (path.parent.is_dir() and not path.is_dir())
            require(there, argument, "a file in a folder that exists", path, "Make the folder first.")
        if self.chart is not None:
            chart.require_matplotlib()
            require(self.chart.suffix == ".png", "--chart", "a name that ends in .png", self.chart)
            remedy = "The chart shows times relative to it: add it, or --chart None."
            require("grujax" in self.peers, "--peers", "grujax among them", list(self.peers), remedy)
