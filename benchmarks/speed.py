"""Rewrites the tables of docs/speed.md and draws docs/speed.png from a saved report.

python benchmarks/speed.py benchmarks/results/FILE.json
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from textwrap import fill
from typing import Any

from grujax.bench.cases import Case
from grujax.bench.chart import figure
from grujax.bench.report import APART, LIMIT, PASSES, Report, advantages, ratios, read_report, rivals
from grujax.errors import require
from grujax.saving.atomic import replacing

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs" / "speed.md", ROOT / "docs" / "speed.png"
NAMES = {
    "torch": "torch.nn.GRU",
    "flax": "Flax nn.RNN(GRUCell)",
    "keras": "Keras 3 on JAX",
    "equinox": "Equinox",
    "haiku": "Haiku",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "flax-scan": "Flax nn.scan over GRUCell",
    "grujax-before": "grujax, reset before",
    "grujax-packed": "grujax, packed rows",
}
"""The names of peers on the page, if they differ from those in reports."""
UNEQUAL = re.compile(r"unequal: \S+ is (\S+) times the tolerance away")


def block(report: Report, path: str) -> str:
    """Returns the text from the opening marker to the closing one, both included."""
    tables = [*(table(report, kind) for kind in PASSES), summary(report)]
    return "\n\n".join([f"<!-- times: {path} -->", measured_on(report, path), *tables, "<!-- /times -->"])


def summary(report: Report) -> str:
    """Returns `advantages` as Markdown; empty if nothing was measured for it."""
    lines = advantages(report)
    head = ["grujax, times as fast", *next(iter(lines.values()), ())]
    rows = [[line, *("–" if x is None else f"{x:.2f}" for x in shapes.values())] for line, shapes in lines.items()]
    return markdown([head, *rows]) if rows else ""


def markdown(rows: list[list[str]]) -> str:
    """Returns a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def table(report: Report, kind: str) -> str:
    """Returns Markdown: peers by cases, medians in ms, each case's fastest in bold; ratios; why times are missing."""
    rows, reasons = [], {}
    peers = list(dict.fromkeys(r.peer for r in report.results))
    racing = ("grujax", APART, *rivals(report))
    least = {
        case: min((t for p in racing if (t := report.median(case, p, kind))), default=None) for case in report.cases
    }
    statuses = {(r.case, r.peer): r.status for r in report.results if r.kind == kind}
    for peer in peers:
        cells = []
        for case in report.cases:
            median = report.median(case, peer, kind)
            bold = "**" if median == least[case] and peer in racing else ""
            cells.append("–" if median is None else f"{bold}{_ms(median)}{bold}")
            if median is None:
                reason = statuses.get((case, peer), "not measured")
                away = UNEQUAL.fullmatch(reason)
                key = peer, "not equal" if away else reason
                reasons.setdefault(key, []).append((case, float(away[1]) if away else 0))
        rows.append([NAMES.get(peer, peer), *cells])
    for ours, others, words in (
        ("grujax", rivals(report), "fastest other"),
        ("grujax", (APART,), NAMES[APART]),
        ("grujax-packed", rivals(report), "fastest other"),
    ):
        by_case = ratios(report, kind, (ours,), others).values()
        if any(by_case):
            rows.append([f"{NAMES.get(ours, ours)} / {words}", *("" if r is None else f"{r:.2f}" for r in by_case)])
    notes = []
    for (peer, reason), cases in reasons.items():
        where = "" if len(cases) == len(report.cases) else f" ({', '.join(case for case, _ in cases)})"
        most = max(away for _, away in cases)
        words = f"{reason}, with errors up to {most:.3g} times the tolerance" if most else reason
        notes.append(_filled(f"- {NAMES.get(peer, peer)}{where}: {words}."))
    explanation = "\n".join(["\n\nWhy a time is missing (–):\n", *notes]) if notes else ""
    return markdown([[f"{kind}, ms", *report.cases], *rows]) + explanation


def measured_on(report: Report, path: str) -> str:
    """Describes the machine, the versions, the day, the commit and the sizes of the cases."""
    device, load = report.device, report.device.get("load")
    rounds = {len(r.times_ms) for r in report.results if r.times_ms} or {0}
    count = f"{min(rounds)} to {max(rounds)}" if len(rounds) > 1 else f"{min(rounds)}"
    machine = [
        *([device["accelerator"]] if device.get("accelerator") else []),
        f"{device.get('cpu')}",
        *([] if load is None else [f"load {load[0]:.1f} in the minute before"]),
        *(f"{name}={value}" for name, value in device.get("environment", {}).items()),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    sizes = "; ".join(f"{case} ({_size(size)})" for case, size in report.cases.items())
    dirty = " with changes" if report.dirty else ""
    return "\n".join(
        _filled(line)
        for line in (
            f"Medians of {count} interleaved rounds on {report.threads} cores ({', '.join(machine)}), on "
            f"{report.date[:10]} at commit {report.commit[:7]}{dirty} (`{path}`). "
            "Bold is the fastest among grujax and the other libraries.",
            f"{versions}.",
            f"Cases: {sizes}.",
        )
    )


def _filled(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return fill(line, 125, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _size(size: Any) -> str:
    """Describes B, T, I, H, and each other field without its default value; for True only the name of the field."""
    values = size if isinstance(size, Mapping) else dict(zip("BTIH", size, strict=True))
    defaults = {field.name: field.default for field in fields(Case)}
    shown = {k: v for k, v in values.items() if k != "name" and (k not in defaults or v != defaults[k])}
    return ", ".join(k if v is True else f"{k} {v}" for k, v in shown.items())


def _ms(median: float) -> str:
    """Formats milliseconds with one decimal, or below 1 ms with three significant digits."""
    return f"{median:.1f}" if median >= 1 else f"{median:.3g}"


def rewritten(page: str, report: Report, path: str) -> str:
    """Returns `page` with its block replaced. Raises `InputError` unless the page has exactly one such block."""
    pattern = re.compile(r"<!-- times: \S+ -->.*?<!-- /times -->", re.DOTALL)
    count = len(pattern.findall(page))
    require(count == 1, PAGE.name, "one block from <!-- times: ... --> to <!-- /times -->", f"{count} blocks")
    return pattern.sub(lambda _: block(report, path), page)


def draw(report: Report, path: str) -> None:
    """Draws `PICTURE`: other libraries and packed rows relative to grujax. Its metadata names the report."""
    shown = [r for r in report.results if r.peer not in (LIMIT, "grujax-before")]
    with replacing(PICTURE) as temporary:
        figure(replace(report, results=tuple(shown))).savefig(
            temporary, dpi=80, format="png", metadata={"Source": path, "Software": None}
        )


def main(file: Path) -> None:
    """Rewrites the page and the picture from the report in `file`."""
    report, path = read_report(file), file.resolve().relative_to(ROOT).as_posix()
    text = rewritten(PAGE.read_text(), report, path)
    with replacing(PAGE) as temporary:
        temporary.write_text(text)
    draw(report, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
