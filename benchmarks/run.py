"""grujax beside torch, Flax, Keras, Equinox, Haiku and ONNX Runtime: `python benchmarks/run.py --help`."""

from pathlib import Path

import tyro
from rich.console import Console

from grujax.bench.measure import Options, run
from grujax.bench.report import PASSES, TABLE_WIDTH, table, write_report


def main(options: Options) -> int:
    """1 where a GRU of grujax was found unequal, 0 otherwise."""
    console = Console()
    report = run(options, console.print)
    console.width = max(console.width, TABLE_WIDTH)
    for kind in PASSES:
        console.print(table(report, kind))
    if options.save:
        console.print(f"saved {write_report(report, Path(__file__).parent / 'results')}")
    return int(report.failed)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
