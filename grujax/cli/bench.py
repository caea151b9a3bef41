"""`grujax bench`: grujax beside other GRUs on this machine."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from grujax.bench import chart
from grujax.bench.measure import Options, run
from grujax.bench.report import TABLE_WIDTH, tables
from grujax.errors import require
from grujax.saving.atomic import replacing


@dataclass(frozen=True)
class Bench(Options):
    """Measure grujax beside other GRUs on this machine: all are checked against the equations and timed in turns.

    The table names the libraries that are not installed; the extra `bench` installs them all. The exit code is 1 where
    grujax itself differs from the equations.
    """

    save: tyro.conf.Suppress[bool] = False  # an option of benchmarks/run.py; here --json names the file
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
        console.print(chart.measured_on(report), soft_wrap=True, highlight=False)
        if self.json is not None:
            with replacing(self.json) as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n", encoding="utf-8")
            console.print(f"saved {self.json}", soft_wrap=True, highlight=False)
        if self.chart is not None:
            chart.draw(report, self.chart)
            console.print(f"drawn {self.chart}", soft_wrap=True, highlight=False)
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
