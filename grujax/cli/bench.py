"""Grujax beside its peers on this machine."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from grujax.bench import chart, costs
from grujax.bench.runner import PASSES, TABLE_WIDTH, Options, run, table
from grujax.errors import require
from grujax.saving import replacing


@dataclass(frozen=True)
class Bench(Options):
    """grujax beside other GRUs on this machine: checked equal, timed in turns; and what else a GRU costs.

    A library that is not installed is shown as such; the extra `bench` brings them all. The exit code is 1 where grujax
    itself was found unequal to the equations.
    """

    save: tyro.conf.Suppress[bool] = False  # of benchmarks/run.py, which knows its folder; here it is --json
    costs: bool = True
    """Also compile time, memory, compilations for ragged data, import time, time to the first prediction."""
    chart: Path | None = Path("grujax-bench.png")
    """The picture to draw (extra `plot`); an earlier one of that name is replaced. None: none."""
    json: Path | None = None
    """The file for the report; the costs go beside it, into NAME-costs.json. None: none."""

    def run(self, console: Console) -> int:
        self._check()
        report = run(self, console.print)
        console.width = max(console.width, TABLE_WIDTH)
        for kind in PASSES:
            console.print(table(report, kind))
        console.print(chart.measured_on(report), soft_wrap=True, highlight=False)
        if self.json is not None:
            _save_json(console, self.json, report)
        if self.chart is not None:
            chart.draw(report, self.chart)
            console.print(f"drawn {self.chart}", soft_wrap=True, highlight=False)
        if self.costs:
            found = costs.measure(console.print)
            for one in costs.tables(found):
                console.print(one)
            if self.json is not None:
                _save_json(console, self.json.with_name(f"{self.json.stem}-costs.json"), found)
        return int(report.failed)

    def _check(self) -> None:
        """What would fail after minutes of measuring fails now."""
        for argument, path in (("--chart", self.chart), ("--json", self.json)):
            there = path is None or (path.parent.is_dir() and not path.is_dir())
            require(there, argument, "a file in a folder that exists", path, "Make the folder first.")
        if self.chart is not None:
            chart.require_matplotlib()
            require(self.chart.suffix == ".png", "--chart", "a name that ends in .png", self.chart)
            remedy = "The chart shows times relative to it: add it, or --chart None."
            require("grujax" in self.peers, "--peers", "grujax among them", list(self.peers), remedy)


def _save_json(console: Console, path: Path, found: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n", encoding="utf-8")
    console.print(f"saved {path}", soft_wrap=True, highlight=False)
