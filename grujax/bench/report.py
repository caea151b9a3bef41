"""What a run found: results by case and peer, their ratios, a table, and the JSON file."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grujax.bench.cases import Case
from grujax.saving.atomic import replacing

if TYPE_CHECKING:
    from rich.table import Table

FORWARD, BACKWARD = PASSES = ("forward", "forward + backward")
LIMIT = "products alone"
"""A row among the peers of a report: the matrix products of the case alone, in the fastest library at hand."""
TABLE_WIDTH = 200
"""Columns that a table of all peers needs; in fewer its numbers would be cut."""


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


def ratios(report: Report, kind: str, peer: str, to: str = "grujax") -> list[float | None]:
    """For every case, the median of the peer over that of `to`; above 1 the peer is slower."""
    pairs = [(report.median(case, peer, kind), report.median(case, to, kind)) for case in report.cases]
    return [a / b if a and b else None for a, b in pairs]


def is_rival(peer: str) -> bool:
    """True for the GRU of another library; False for those of grujax, and for the products alone."""
    return peer != LIMIT and not peer.startswith("grujax")


def to_fastest(report: Report, kind: str, of: str = "grujax") -> list[float | None]:
    """For every case, the median of `of` over that of the fastest other library; below 1 it is the fastest."""
    others = {r.peer for r in report.results if is_rival(r.peer)}
    found = []
    for case in report.cases:
        times = [t for peer in others if (t := report.median(case, peer, kind))]
        mine = report.median(case, of, kind)
        found.append(mine / min(times) if mine and times else None)
    return found


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are not None; None if all are."""
    there = [value for value in values if value is not None]
    return statistics.geometric_mean(there) if there else None


def table(report: Report, kind: str) -> "Table":
    """Cases by peers: the median in ms and its ratio to grujax, or the reason why there is none."""
    from rich.table import Table

    def times(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.2f}x"

    def share(part: float | None) -> str:
        return "" if part is None else f"{part:.0%}"

    peers = list(dict.fromkeys(r.peer for r in report.results))
    of_peers = {peer: ratios(report, kind, peer) for peer in peers}
    fastest, limit = to_fastest(report, kind), ratios(report, kind, LIMIT)
    made = Table(title=f"{kind}: median ms, ratio to grujax", row_styles=["", "dim"])
    made.add_column("case")
    for name in (*peers, "µs a step", "grujax / fastest", "share of the limit"):
        made.add_column(name.replace(" ", "\n"), justify="right")
    for i, (case, fields) in enumerate(report.cases.items()):
        cells = []
        for peer in peers:
            median = report.median(case, peer, kind)
            cells.append(
                f"{_digits(median)}\n{times(of_peers[peer][i])}" if median else _status(report, case, peer, kind)
            )
        mine = report.median(case, "grujax", kind)
        step = _digits(mine * 1e3 / fields["T"]) if mine else ""
        made.add_row(str(Case(**fields)).replace(" ", "\n", 1), *cells, step, times(fastest[i]), share(limit[i]))
    made.add_section()
    means = [times(geometric_mean(of_peer)) for of_peer in of_peers.values()]
    made.add_row("geometric mean", *means, "", times(geometric_mean(fastest)), share(geometric_mean(limit)))
    return made


def _status(report: Report, case: str, peer: str, kind: str) -> str:
    return next((r.status for r in report.results if (r.case, r.peer, r.kind) == (case, peer, kind)), "")


def _digits(value: float) -> str:
    """Three digits or more.

    >>> _digits(1234.5), _digits(40.51), _digits(0.0321)
    ('1234', '40.5', '0.032')
    """
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def write_report(report: Report, folder: Path) -> Path:
    """Writes the report as JSON, a line for each field and result, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = "".join(c for c in report.date[:19] if c.isalnum())
    path = folder / f"{moment}-{report.commit[:7]}{'-dirty' if report.dirty else ''}.json"
    fields = {name: json.dumps(value) for name, value in asdict(report).items()}
    fields["results"] = "[\n" + ",\n".join(json.dumps(asdict(r)) for r in report.results) + "\n]"
    with replacing(path) as temporary:
        temporary.write_text(
            "{\n" + ",\n".join(f'"{name}": {value}' for name, value in fields.items()) + "\n}\n", encoding="utf-8"
        )
    return path


def read_report(path: Path) -> Report:
    """The report that `write_report` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["results"] = tuple(Result(**r | {"times_ms": tuple(r["times_ms"])}) for r in fields["results"])
    return Report(**fields)
