"""Times grujax, torch, Flax, Keras, Equinox, Haiku, ONNX Runtime and OpenVINO: `python benchmarks/run.py --help`."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from grujax.bench.measure import Options, run
from grujax.bench.report import TABLE_WIDTH, tables, write_report

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Program(Options):
    """The options of a benchmark run, on the CPU or on the GPU that JAX finds.

    Attributes:
      save: Write the report as JSON to benchmarks/results/.
    """

    save: bool = False


def main(options: Program) -> int:
    """Runs the benchmark. Returns 1 if a result of grujax differs from the equations, else 0."""
    console = Console()
    report = run(options, console.print)
    console.width = max(console.width, TABLE_WIDTH)
    for table in tables(report):
        console.print(table)
    if options.save:
        moment = "".join(c for c in report.date[:19] if c.isalnum())
        path = RESULTS / f"{moment}-{report.commit[:7]}{'-dirty' if report.dirty else ''}.json"
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_report(report, path)
        console.print(f"saved {path}")
    return int(report.failed)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Program)))
