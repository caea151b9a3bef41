"""Draws a report: the time of each peer relative to grujax. Needs matplotlib (extra `plot`)."""

from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from grujax.bench.report import PASSES, Report, ratios
from grujax.errors import require
from grujax.saving.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP<>Xp*h"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7f5a2a", "#f0e442", "0.45")
"""Each peer gets the next marker and colour. Colour-blind readers can distinguish the colours (Okabe and Ito)."""


def require_matplotlib() -> None:
    """Raises `InputError` if matplotlib is not installed. Called before an hour of measuring, not after it."""
    installed = find_spec("matplotlib") is not None
    require(installed, "matplotlib", "an installed package", "none", "pip install 'grujax[plot]', or --chart None.")


def draw(report: Report, path: str | Path) -> None:
    """Writes `figure(report)` as a PNG, atomically."""
    chart = figure(report)
    with replacing(path) as temporary:
        chart.savefig(temporary, dpi=130, format="png")


def figure(report: Report) -> "Figure":
    """Returns two panels, forward and forward + backward, with a mark per peer and case: its time relative to grujax.

    A peer has no mark in a case for which it or grujax was not measured. Raises `InputError` without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    chart = Figure(figsize=(13, 2.2 + 0.55 * len(report.cases)), layout="constrained")
    panels = chart.subplots(1, 2, sharex=True, sharey=True)
    for axes, kind in zip(panels, PASSES, strict=True):
        _panel(axes, report, kind)
    left, right = panels[0].get_xlim()
    panels[0].set_xlim(min(left, 0.4), max(right, 2.5))  # room for at least three tick labels
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    chart.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=6, frameon=False)
    chart.suptitle(fill(f"time relative to grujax · {measured_on(report)}", 150), fontsize=9)
    return chart


def _panel(axes: "Axes", report: Report, kind: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    cases = list(report.cases)
    peers = [peer for peer in dict.fromkeys(r.peer for r in report.results) if peer != "grujax"]
    axes.axvline(1, color="black", linewidth=1.2, label="grujax")
    for row in range(0, len(cases), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    for number, peer in enumerate(peers):
        offset = 0.7 * ((number + 0.5) / len(peers) - 0.5)  # so that marks of equal times stay apart
        marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
        pairs = [(x, row + offset) for row, x in enumerate(ratios(report, kind, (peer,)).values()) if x]
        if pairs:
            (line,) = axes.plot(*zip(*pairs, strict=True), linestyle="none", marker=marker, color=colour, label=peer)
            line.set(markersize=6, markeredgecolor="0.2", markeredgewidth=0.4)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.4)
    axes.set_yticks(range(len(cases)), cases)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set(title=kind, xlabel="left: faster than grujax · right: slower")


def measured_on(report: Report) -> str:
    """Describes the machine, the versions, the day and the commit in one line."""
    device, versions = report.device, ", ".join(f"{name} {v}" for name, v in report.versions.items())
    commit = f"commit {report.commit[:7]}{' and changes to it' if report.dirty else ''}"
    machine = device.get("accelerator") or f"{report.threads} cores of {device.get('cpu')}"
    return f"{machine} · {versions} · {report.date[:10]}, {commit}"
