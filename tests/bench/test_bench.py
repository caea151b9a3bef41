"""The benchmark's own honesty: equal before timed, unequal refused, nothing dropped, nothing lost in the file."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from grujax.bench import runner
from grujax.bench.cases import CASES, Case, make_arrays
from grujax.bench.peers import PEERS, Peer
from grujax.bench.runner import BACKWARD, FORWARD, PASSES, Options, Report, Result
from grujax.errors import InputError

TINY = Case("tiny", 3, 5, 4, 6)


def test_arrays_hide_no_equation():
    a = make_arrays(TINY)
    assert all(v.dtype == np.float32 and np.abs(v).min() > 0 for v in a)
    np.testing.assert_array_equal(a.x, make_arrays(TINY).x)
    assert (a.x != make_arrays(TINY, seed=1).x).any()
    assert all(name == case.name for name, case in CASES.items())


@pytest.mark.parametrize("name", PEERS)
def test_peer_equals_the_oracle(name):
    peer = PEERS[name]
    if missing := peer.missing():
        pytest.skip(f"{name}: {missing}")
    a = make_arrays(TINY)
    with jax.numpy_rank_promotion("allow"):  # ours is tested strictly, Keras is not written so
        prepared = runner.prepare(peer, a, 1, *runner.oracle(a, peer.reset_after))
    assert not isinstance(prepared[FORWARD], str), prepared[FORWARD]
    if name == "onnxruntime":
        assert prepared[BACKWARD] == "forward only"
    else:
        assert not isinstance(prepared[BACKWARD], str), prepared[BACKWARD]


def test_the_wrong_gru_is_refused_and_never_timed():
    """grujax-before claims to be the other GRU: both passes must say so and hold no time."""
    wrong = PEERS["grujax-before"]._replace(reset_after=True)
    results = runner.measure(TINY, {"grujax": PEERS["grujax"], "wrong": wrong}, repeats=2, threads=1)
    for r in results:
        if r.peer == "wrong":
            assert r.status.startswith("unequal") and r.median_ms is None and r.times_ms == ()
        else:
            assert r.status == "measured" and len(r.times_ms) == 2


@pytest.mark.parametrize("spoil", [lambda v: v + 1e-3, lambda v: v * np.nan, lambda v: v[:-1]])
@pytest.mark.parametrize("field", ["hs", "x", "h0", "w_ih", "w_hh", "b_ih", "b_hh"])
def test_one_wrong_array_is_seen(field, spoil):
    hs, gradients = runner.oracle(make_arrays(TINY), True)
    right = {"hs": hs, **gradients._asdict()}
    kind = FORWARD if field == "hs" else BACKWARD
    assert runner.unequal(right, right, kind) is None
    assert field in str(runner.unequal(right | {field: spoil(right[field])}, right, kind))


def test_a_peer_that_is_missing_is_shown():
    absent = Peer(PEERS["grujax"].build, ("no_such_library",))
    results = runner.measure(TINY, {"absent": absent}, repeats=1, threads=1)
    assert [r.status for r in results] == ["not installed (no_such_library)"] * 2
    assert "not installed" in text(report(results), FORWARD)


def test_every_thunk_has_its_turn_in_every_round():
    calls = []
    times = runner.interleave({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=4)
    rounds = [calls[6 * i : 6 * i + 6] for i in range(4)]
    assert all(sorted(r) == list("aabbcc") and r[::2] == r[1::2] for r in rounds)  # one warm call, one timed
    assert len({tuple(r) for r in rounds}) > 1
    assert all(len(t) == 4 and min(t) >= 0 for t in times.values())


def test_ratios_and_the_fastest():
    made = report(
        [Result(case, peer, kind, "measured", ms, (ms,)) for kind in PASSES for case, peer, ms in MEDIANS]
        + [Result(case, "gone", kind, "not installed (gone)") for kind in PASSES for case in ("one", "two")]
    )
    assert runner.ratios(made, FORWARD, "slow") == [2.0, 8.0]
    assert runner.geometric_mean(runner.ratios(made, FORWARD, "slow")) == pytest.approx(4)
    assert runner.to_fastest(made, FORWARD) == [2.0, 0.125]  # grujax-before is no rival
    assert runner.ratios(made, FORWARD, "gone") == [None, None]
    assert runner.geometric_mean([None]) is None
    shown = text(made, FORWARD)
    assert "8.00x" in shown and "0.12x" in shown and "not installed" in shown


def test_the_report_survives_the_file(tmp_path):
    made = report([Result("one", "grujax", FORWARD, "measured", 1.5, (1.0, 1.5, 2.0))])
    path = runner.save(made, tmp_path / "results")
    assert runner.load(path) == made
    assert [p.name for p in path.parent.iterdir()] == ["20261123T101112-abcdef0-dirty.json"]


def test_run_names_everything(monkeypatch):
    monkeypatch.setitem(runner.CASES, "tiny", TINY)
    said = []
    made = runner.run(Options(shapes=("tiny",), peers=("grujax",), repeats=1), said.append)
    assert {r.kind for r in made.results} == set(PASSES) and said == ["tiny (3, 5, 4, 6)"]
    assert made.versions["grujax"] and made.versions["jax"] and made.device["cpu"] and made.threads >= 1
    assert made.cases == {"tiny": (3, 5, 4, 6)}


@pytest.mark.parametrize("options", [Options(shapes=("nope",)), Options(peers=("nope",)), Options(repeats=0)])
def test_unknown_options_are_refused(options):
    with pytest.raises(InputError):
        runner.run(options)


def test_the_commit_is_git_s(monkeypatch):
    assert runner._git("rev-parse", "HEAD") in ("", _head())
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=128, stdout=""))
    assert runner._git("rev-parse", "HEAD") == ""


MEDIANS = [
    ("one", "grujax", 2.0),
    ("one", "grujax-before", 0.1),
    ("one", "slow", 4.0),
    ("one", "fast", 1.0),
    ("two", "grujax", 1.0),
    ("two", "grujax-before", 1.0),
    ("two", "slow", 8.0),
    ("two", "fast", 8.0),
]


def report(results):
    cases = {r.case: TINY.shape for r in results}
    return Report("2026-11-23T10:11:12+00:00", "abcdef0123", True, {"cpu": "x"}, {}, 2, cases, tuple(results))


def text(made, kind):
    console = Console(width=200, record=True)
    console.print(runner.table(made, kind))
    return console.export_text()


def _head():
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip()
