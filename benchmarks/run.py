"""grujax beside torch, Flax, Keras, Equinox, Haiku, ONNX Runtime and OpenVINO: `python benchmarks/run.py --help`."""

from pathlib import Path

import tyro
from rich.console import Console

from grujax.bench.measure import Options, run
from grujax.bench.report import TABLE_WIDTH, tables, write_report


def main(options: Options) -> int:
    """1 where a GRU of grujax was found unequal, 0 otherwise."""
    console = Console()
    report = run(options, console.print)
    console.width = max(console.width, TABLE_WIDTH)
    for table in tables(report):
        console.print(table)
    if options.save:
        console.print(f"saved {write_report(report, Path(__file__).parent / 'results')}")
    return int(report.failed)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
