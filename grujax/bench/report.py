"""The report of a benchmark run: results by case and peer, their ratios, the printed tables, and the JSON file."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grujax.bench.cases import FIVE, Case
from grujax.saving.atomic import replacing

if TYPE_CHECKING:
    from rich.table import Table

FORWARD, BACKWARD = PASSES = ("forward", "forward + backward")
LIMIT = "products alone"
"""The row of the limit in a report: the matrix products of the case alone, in the fastest installed library."""
APART = "openvino"
"""A library that has its own ratio and is never "the fastest other", since it runs finished graphs and cannot train."""
SHAPES = (*FIVE, "long", "rl", "rl-plain")
SUMMARY = (
    ("forward", FORWARD, "", ()),
    ("forward, against OpenVINO", FORWARD, "", (APART,)),
    ("forward, bfloat16, against OpenVINO", FORWARD, "-bfloat16", (APART,)),
    ("forward + backward", BACKWARD, "", ()),
)
"""For each line: its name, the pass, the ending of the names of its cases, and the rivals of grujax, () for all."""
TABLE_WIDTH = 280
"""The width in characters of a table of all peers on a GPU. In a narrower one, numbers would be truncated."""


@dataclass(frozen=True)
class Result:
    """The result of one peer on one case in one pass. `status` is "measured", or the reason why there are no times."""

    case: str
    peer: str
    kind: str
    status: str
    median_ms: float | None = None
    times_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Report:
    """All results, with their date, commit and machine. `cases` maps each case's name to the fields of its `Case`."""

    date: str
    commit: str
    dirty: bool
    device: dict[str, Any]
    versions: dict[str, str]
    threads: int
    cases: dict[str, dict[str, Any]]
    results: tuple[Result, ...]

    @property
    def failed(self) -> bool:
        """True if a result of grujax itself differs from the oracle."""
        return any(r.peer.startswith("grujax") and r.status.startswith("unequal") for r in self.results)

    def median(self, case: str, peer: str, kind: str) -> float | None:
        """Returns the median time in ms, None if there is none."""
        return next((r.median_ms for r in self.results if (r.case, r.peer, r.kind) == (case, peer, kind)), None)


def rivals(report: Report) -> tuple[str, ...]:
    """Returns the GRUs of other libraries, without `APART`."""
    peers = dict.fromkeys(r.peer for r in report.results)
    return tuple(peer for peer in peers if peer not in (LIMIT, APART) and not peer.startswith("grujax"))


def ratios(
    report: Report, kind: str, of: tuple[str, ...], to: tuple[str, ...] = ("grujax",)
) -> dict[str, float | None]:
    """Returns by case the median time of the fastest peer in `of` divided by that of the fastest in `to`.

    A ratio is None if one of the times is missing. `ratios(report, FORWARD, rivals(report))` is how many times as fast
    grujax is as the fastest other library.
    """

    def least(case: str, peers: tuple[str, ...]) -> float | None:
        return min((t for peer in peers if (t := report.median(case, peer, kind))), default=None)

    pairs = {case: (least(case, of), least(case, to)) for case in report.cases}
    return {case: a / b if a and b else None for case, (a, b) in pairs.items()}


def advantages(report: Report) -> dict[str, dict[str, float | None]]:
    """Returns, for each line of `SUMMARY` with a measurement, how many times as fast grujax is, by shape and as a mean.

    The mean is the geometric mean over the cases `FIVE`, and None unless all five were measured.
    """
    lines = {}
    for line, kind, ending, others in SUMMARY:
        by_case = ratios(report, kind, others or rivals(report))
        by_shape = {shape: by_case.get(shape + ending) for shape in SHAPES}
        five = [by_shape[shape] for shape in FIVE]
        if any(by_shape.values()):
            lines[line] = by_shape | {"mean of the first five": None if None in five else geometric_mean(five)}
    return lines


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Returns the geometric mean of the values that are not None; None if all are None."""
    present = [value for value in values if value is not None]
    return statistics.geometric_mean(present) if present else None


def tables(report: Report) -> list["Table"]:
    """Returns all tables to print for a report."""
    return [*(table(report, kind) for kind in PASSES), *summary(report)]


def summary(report: Report) -> list["Table"]:
    """Returns `advantages` as a table; an empty list if nothing was measured for it."""
    from rich.table import Table

    lines = advantages(report)
    result = Table(title="grujax: how many times as fast as the fastest other library, or as OpenVINO")
    for column in ("", *next(iter(lines.values()), ())):
        result.add_column(column, justify="right" if column else "left")
    for line, by_shape in lines.items():
        result.add_row(line, *("–" if ratio is None else f"{ratio:.2f}" for ratio in by_shape.values()))
    return [result] if lines else []


def table(report: Report, kind: str) -> "Table":
    """Returns a table of cases by peers: the median in ms and its ratio to grujax, or the reason why there is none.

    On an accelerator, where a step takes microseconds whatever its work, the medians are in microseconds per step.
    """
    from rich.table import Table

    def times(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.2f}x"

    def share(part: float | None) -> str:
        return "" if part is None else f"{part:.0%}"

    peers = list(dict.fromkeys(r.peer for r in report.results))
    by_peer = {peer: ratios(report, kind, (peer,)) for peer in peers}
    fastest, limit = ratios(report, kind, ("grujax",), rivals(report)), ratios(report, kind, (LIMIT,))
    caption = "fastest: the fastest other library, without OpenVINO"
    by_step = report.device.get("accelerator") is not None
    unit = "µs per step" if by_step else "ms"
    result = Table(title=f"{kind}: median {unit}, ratio to grujax", caption=caption, row_styles=["", "dim"])
    result.add_column("case", min_width=max(map(len, report.cases)))
    for name in (*peers, "µs per step", "grujax / fastest", "share of the limit"):
        result.add_column(name.replace(" ", "\n"), justify="right")
    for case, fields in report.cases.items():
        per_step, cells = 1e3 / fields["T"], []
        for peer in peers:
            r = next((r for r in report.results if (r.case, r.peer, r.kind) == (case, peer, kind)), None)
            shown = _digits(r.median_ms * (per_step if by_step else 1)) if r and r.median_ms else ""
            cells.append(f"{shown}\n{times(by_peer[peer][case])}" if shown else r.status if r else "")
        median = report.median(case, "grujax", kind)
        step = _digits(median * per_step) if median else ""
        row = (*cells, step, times(fastest[case]), share(limit[case]))
        result.add_row(str(Case(**fields)).replace(" ", "\n", 1), *row)
    result.add_section()
    means = [geometric_mean(by_case.values()) for by_case in (*by_peer.values(), fastest, limit)]
    result.add_row("geometric mean", *map(times, means[:-2]), "", times(means[-2]), share(means[-1]))
    return result


def _digits(value: float) -> str:
    """Formats a number with three digits or more.

    >>> _digits(1234.5), _digits(40.51), _digits(0.0321)
    ('1234', '40.5', '0.032')
    """
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def write_report(report: Report, path: Path) -> None:
    """Writes the report as JSON, atomically, with one line for each field and each result."""
    fields = {name: json.dumps(value) for name, value in asdict(report).items()}
    fields["results"] = "[\n" + ",\n".join(json.dumps(asdict(r)) for r in report.results) + "\n]"
    with replacing(path) as temporary:
        temporary.write_text(
            "{\n" + ",\n".join(f'"{name}": {value}' for name, value in fields.items()) + "\n}\n", encoding="utf-8"
        )


def read_report(path: Path) -> Report:
    """Reads a report that `write_report` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["results"] = tuple(Result(**r | {"times_ms": tuple(r["times_ms"])}) for r in fields["results"])
    return Report(**fields)
