"""The chart shows every ratio of the report once, in its place; its file is complete or does not exist."""

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from grujax.bench import chart
from grujax.bench.report import BACKWARD, FORWARD, PASSES, Report, Result
from grujax.errors import InputError

CASES = ("one", "two", "three")
MS = {"grujax": 2.0, "fast": 1.0, "slow": 8.0}


def made(peers=tuple(MS), extra=()):
    """A report on every peer of MS and three cases; `fast` is forward only, `gone` has no time."""
    results = [
        Result(case, peer, kind, "forward only")
        if (peer, kind) == ("fast", BACKWARD)
        else Result(case, peer, kind, "measured", MS[peer] * (1 + i), (1.0,))
        for kind in PASSES
        for i, case in enumerate(CASES)
        for peer in peers
    ]
    results += [Result(case, "gone", kind, "not installed (gone)") for kind in PASSES for case in CASES]
    device, versions = {"cpu": "a processor"}, {"jax": "1.2.3"}
    cases: dict = dict.fromkeys(CASES)  # the chart only uses the names of the cases
    return Report("2026-11-23T10:11:12+00:00", "abcdef0123", True, device, versions, 2, cases, (*results, *extra))


def marks(axes):
    """Returns {peer: [(ratio, case)]}."""
    names = [label.get_text() for label in axes.figure.axes[0].get_yticklabels()]  # shared by both panels
    return {
        line.get_label(): [(x, names[round(y)]) for x, y in zip(*line.get_data(), strict=True)]
        for line in axes.get_lines()
        if line.get_linestyle() == "None"
    }


def test_there_is_a_mark_for_every_ratio_and_no_other():
    forward, backward = chart.figure(made()).axes
    assert (forward.get_title(), backward.get_title()) == (FORWARD, BACKWARD)
    assert marks(forward) == {p: [(r, case) for case in CASES] for p, r in (("fast", 0.5), ("slow", 4.0))}
    assert marks(backward) == {"slow": [(4.0, case) for case in CASES]}


def test_the_line_at_one_is_grujax():
    for axes in chart.figure(made()).axes:
        (line,) = [line for line in axes.get_lines() if line.get_label() == "grujax"]
        assert list(line.get_xdata()) == [1, 1] and axes.get_xscale() == "log"
        left, right = axes.get_xlim()
        assert left < 0.5 and right > 4  # no mark is outside the plot
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first case is on top


def test_the_legend_and_the_title_say_what_is_what():
    figure = chart.figure(made())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["grujax", "fast", "slow"]
    title = figure.get_suptitle().replace("\n", " ")
    assert all(part in title for part in ("2 cores of a processor", "jax 1.2.3", "2026-11-23", "abcdef0 and changes"))


def test_nine_peers_differ_in_mark_and_in_colour():
    many = [Result("one", f"peer {k}", FORWARD, "measured", 2.0 + k, (1.0,)) for k in range(9)]
    many += [Result(case, f"peer {k}", FORWARD, "measured", 3.0, (1.0,)) for case in CASES[1:] for k in range(9)]
    lines = [
        line for line in chart.figure(made(("grujax",), many)).axes[0].get_lines() if line.get_linestyle() == "None"
    ]
    assert (
        len(lines)
        == len({line.get_marker() for line in lines})
        == len({to_hex(line.get_color()) for line in lines})
        == 9
    )
    assert len({y for line in lines for y in line.get_ydata()}) == 27  # marks of equal times do not overlap


def test_it_is_written_as_png(tmp_path):
    chart.draw(made(), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_drawing_that_fails_leaves_the_earlier_file(tmp_path, monkeypatch):
    (tmp_path / "c.png").write_text("earlier")

    def half(self, path, **options):
        Path(path).write_text("half")
        raise OSError("no space")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="no space"):
        chart.draw(made(), tmp_path / "c.png")
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"] and (tmp_path / "c.png").read_text() == "earlier"


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"grujax\[plot\]"):
        chart.figure(made())
