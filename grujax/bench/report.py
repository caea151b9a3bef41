"""What a run found: results by case and peer, their ratios, a table, and the JSON file."""

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
"""A row among the peers of a report: the matrix products of the case alone, in the fastest library at hand."""
APART = "openvino"
"""A library that is never "the fastest other" and has a ratio of its own: it runs finished graphs, and trains none."""
SHAPES = (*FIVE, "long", "rl", "rl-plain")
SUMMARY = (
    ("forward", FORWARD, "", ()),
    ("forward, against OpenVINO", FORWARD, "", (APART,)),
    ("forward, bfloat16, against OpenVINO", FORWARD, "-bfloat16", (APART,)),
    ("forward + backward", BACKWARD, "", ()),
)
"""A line each: its name, the pass, how the names of its cases end, and beside whom grujax stands; () for all rivals."""
TABLE_WIDTH = 280
"""Columns that a table of all peers needs on a GPU; in fewer its numbers would be cut."""


@dataclass(frozen=True)
class Result:
    """One peer on one case in one pass. `status` is "measured", or the reason why there are no times."""

    case: str
    peer: str
    kind: str
    status: str
    median_ms: float | None = None
    times_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Report:
    """All results and where they come from. `cases`: the fields of each `Case` by its name."""

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
        """grujax itself was found unequal to the oracle."""
        return any(r.peer.startswith("grujax") and r.status.startswith("unequal") for r in self.results)

    def median(self, case: str, peer: str, kind: str) -> float | None:
        return next((r.median_ms for r in self.results if (r.case, r.peer, r.kind) == (case, peer, kind)), None)


def rivals(report: Report) -> tuple[str, ...]:
    """The GRUs of other libraries, but `APART`."""
    peers = dict.fromkeys(r.peer for r in report.results)
    return tuple(peer for peer in peers if peer not in (LIMIT, APART) and not peer.startswith("grujax"))


def ratios(
    report: Report, kind: str, of: tuple[str, ...], to: tuple[str, ...] = ("grujax",)
) -> dict[str, float | None]:
    """By case, the median of the fastest among `of` over that of the fastest among `to`; None where one is missing.

    `ratios(report, FORWARD, rivals(report))` says how many times as fast grujax is as the fastest other library.
    """

    def least(case: str, peers: tuple[str, ...]) -> float | None:
        return min((t for peer in peers if (t := report.median(case, peer, kind))), default=None)

    pairs = {case: (least(case, of), least(case, to)) for case in report.cases}
    return {case: a / b if a and b else None for case, (a, b) in pairs.items()}


def advantages(report: Report) -> dict[str, dict[str, float | None]]:
    """By line of `SUMMARY`, if anything was measured for it: how many times as fast grujax is, by shape, and the mean.

    The geometric mean is that of `FIVE`, and None unless all five are there.
    """
    lines = {}
    for line, kind, ending, others in SUMMARY:
        found = ratios(report, kind, others or rivals(report))
        by_shape = {shape: found.get(shape + ending) for shape in SHAPES}
        five = [by_shape[shape] for shape in FIVE]
        if any(by_shape.values()):
            lines[line] = by_shape | {"mean of the first five": None if None in five else geometric_mean(five)}
    return lines


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are not None; None if all are."""
    there = [value for value in values if value is not None]
    return statistics.geometric_mean(there) if there else None


def tables(report: Report) -> list["Table"]:
    """All that is printed of a report."""
    return [*(table(report, kind) for kind in PASSES), *summary(report)]


def summary(report: Report) -> list["Table"]:
    """`advantages` as a table; none where nothing of it was measured."""
    from rich.table import Table

    lines = advantages(report)
    made = Table(title="grujax: how many times as fast as the fastest of the others, or as OpenVINO")
    for column in ("", *next(iter(lines.values()), ())):
        made.add_column(column, justify="right" if column else "left")
    for line, by_shape in lines.items():
        made.add_row(line, *("–" if ratio is None else f"{ratio:.2f}" for ratio in by_shape.values()))
    return [made] if lines else []


def table(report: Report, kind: str) -> "Table":
    """Cases by peers: the median in ms and its ratio to grujax, or the reason why there is none.

    On an accelerator, where a step costs microseconds whatever its work, the medians are microseconds a step.
    """
    from rich.table import Table

    def times(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.2f}x"

    def share(part: float | None) -> str:
        return "" if part is None else f"{part:.0%}"

    peers = list(dict.fromkeys(r.peer for r in report.results))
    of_peers = {peer: ratios(report, kind, (peer,)) for peer in peers}
    fastest, limit = ratios(report, kind, ("grujax",), rivals(report)), ratios(report, kind, (LIMIT,))
    caption = "fastest: of the other libraries, but for OpenVINO"
    by_step = report.device.get("accelerator") is not None
    unit = "µs a step" if by_step else "ms"
    made = Table(title=f"{kind}: median {unit}, ratio to grujax", caption=caption, row_styles=["", "dim"])
    made.add_column("case", min_width=max(map(len, report.cases)))
    for name in (*peers, "µs a step", "grujax / fastest", "share of the limit"):
        made.add_column(name.replace(" ", "\n"), justify="right")
    for case, fields in report.cases.items():
        a_step, cells = 1e3 / fields["T"], []
        for peer in peers:
            found = next((r for r in report.results if (r.case, r.peer, r.kind) == (case, peer, kind)), None)
            shown = _digits(found.median_ms * (a_step if by_step else 1)) if found and found.median_ms else ""
            cells.append(f"{shown}\n{times(of_peers[peer][case])}" if shown else found.status if found else "")
        mine = report.median(case, "grujax", kind)
        step = _digits(mine * a_step) if mine else ""
        row = (*cells, step, times(fastest[case]), share(limit[case]))
        made.add_row(str(Case(**fields)).replace(" ", "\n", 1), *row)
    made.add_section()
    means = [geometric_mean(found.values()) for found in (*of_peers.values(), fastest, limit)]
    made.add_row("geometric mean", *map(times, means[:-2]), "", times(means[-2]), share(means[-1]))
    return made


def _digits(value: float) -> str:
    """Three digits or more.

    >>> _digits(1234.5), _digits(40.51), _digits(0.0321)
    ('1234', '40.5', '0.032')
    """
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def write_report(report: Report, path: Path) -> None:
    """Writes the report as JSON, a line for each field and result, whole or not at all."""
    fields = {name: json.dumps(value) for name, value in asdict(report).items()}
    fields["results"] = "[\n" + ",\n".join(json.dumps(asdict(r)) for r in report.results) + "\n]"
    with replacing(path) as temporary:
        temporary.write_text(
            "{\n" + ",\n".join(f'"{name}": {value}' for name, value in fields.items()) + "\n}\n", encoding="utf-8"
        )


def read_report(path: Path) -> Report:
    """The report that `write_report` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["results"] = tuple(Result(**r | {"times_ms": tuple(r["times_ms"])}) for r in fields["results"])
    return Report(**fields)
