"""The benchmark is honest: it times only equal results, drops no result, and loses nothing in the file."""

import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from implementations import HERE
from pairs import by_turns
from rich.console import Console

from grujax import equations
from grujax.bench import machine, measure, products
from grujax.bench import report as reports
from grujax.bench.cases import CASES, FIVE, VOWELS, Case, make_arrays
from grujax.bench.measure import Options
from grujax.bench.peers import PEERS, implementations, in_onnx, ours
from grujax.bench.peers.openvino import package
from grujax.bench.peers.peer import Peer, Unavailable
from grujax.bench.peers.torch import torch_device
from grujax.bench.report import BACKWARD, FORWARD, LIMIT, PASSES, Report, Result
from grujax.errors import InputError
from grujax.testing import assert_close

TINY = Case("tiny", 3, 5, 4, 6)
STACKED = replace(TINY, num_layers=2, bidirectional=True)
SHRUNK = {name: case.shrunk() for name, case in CASES.items()}
KINDS_OF_CASE = {(case.T == 1, case.num_layers, case.traits): name for name, case in reversed(SHRUNK.items())}
"""One case of each kind. Every other case differs from one of these only in its sizes or lengths."""

CANNOT = {
    ("rl", "torch"): "no resets",
    ("rl", "flax"): "no resets",
    ("rl", "keras"): "no resets",
    ("rl", "onnxruntime"): "no resets",
    ("rl", "openvino"): "no resets",
    ("single-bfloat16", "onnxruntime"): "no bfloat16 on CPU",
} | {(name, "grujax-packed"): "not ragged" for name, case in CASES.items() if not case.lengths}


@pytest.mark.parametrize("name", CASES)
def test_arrays_hide_no_equation(name):
    case = SHRUNK[name]
    a, again, other = make_arrays(case), make_arrays(case), make_arrays(case, seed=1)
    floating = [a.x, a.h0, *(w for weights in a.weights for w in weights), a.cotangent[a.valid]]
    assert all(v.dtype == case.dtype and np.abs(v).min() > 0 for v in floating)
    assert len(a.weights) == len(a.h0) == case.num_layers * case.num_directions == a.num_layers * a.num_directions
    np.testing.assert_array_equal(a.x, again.x)
    assert (a.x != other.x).any()
    assert not a.cotangent[~a.valid].any()
    assert (a.lengths is not None) == (case.lengths is not None) == bool((~a.valid).any())
    assert (a.resets is not None) == (case.resets > 0)
    if a.resets is not None:
        assert 0 < a.resets.sum() < a.resets.size
    assert CASES[name].name == name


def test_the_vowels_are_those_of_the_training_split():
    data = pytest.importorskip("grujax.data", reason="grujax[data] is not installed")
    try:
        lengths = data.load("JapaneseVowels").train.lengths
    except InputError as error:
        pytest.skip(str(error))
    steps, counts = np.unique(lengths, return_counts=True)
    assert dict(zip(steps.tolist(), counts.tolist(), strict=True)) == VOWELS
    drawn = make_arrays(CASES["vowels"]).lengths
    assert drawn is not None and (np.sort(drawn) == np.sort(lengths)).all()
    assert lengths.max() == CASES["vowels"].T


def test_lengths_and_resets_go_with_one_direction():
    for more in ({"lengths": "uniform"}, {"resets": 0.5}):
        with pytest.raises(InputError, match="bidirectional"):
            replace(STACKED, **more)
    with pytest.raises(InputError, match="uniform"):
        replace(TINY, lengths="unifrom")


@pytest.mark.parametrize("reset_after", [True, False])
def test_the_oracle_is_the_equations_over_whole_sequences(reset_after):
    """Two directions of `equations.sequence`, with lengths and without resets; dx is the sum of both."""
    a = make_arrays(replace(TINY, bidirectional=True))
    lengths = np.array([5, 2, 3], np.int32)
    a = a._replace(lengths=lengths)
    a = a._replace(cotangent=a.cotangent * a.valid[..., None])
    hs, gradients = measure.oracle(a, reset_after)
    x, cotangent = (v.astype(np.float64).swapaxes(0, 1) for v in (a.x, a.cotangent))
    dx = 0
    for d, (mine, dhs) in enumerate(zip(np.split(hs, 2, -1), np.split(cotangent, 2, -1), strict=True)):
        given = (x, *(v.astype(np.float64) for v in (a.h0[d], *a.weights[d])))
        options = dict(lengths=lengths, reverse=d == 1, variant=equations.Variant(reset_after))
        assert_close(mine.swapaxes(0, 1), equations.sequence(*given, **options).hs)
        right = equations.sequence_backward(*given, dhs=dhs, dh_last=np.zeros_like(given[1]), **options)
        assert_close(gradients.h0[d], right.h0, "gradient")
        for found, expected in zip(gradients.weights[d], right[2:6], strict=True):
            assert_close(found, expected, "gradient")
        dx = dx + right.x
    assert_close(gradients.x.swapaxes(0, 1), dx, "gradient")


def test_the_oracle_runs_sequences_that_resets_part_as_if_they_stood_apart():
    a = make_arrays(replace(TINY, B=1))
    resets = np.array([[False, False, True, False, False]])
    hs, gradients = measure.oracle(a._replace(resets=resets), True)
    first = a._replace(x=a.x[:, :2], cotangent=a.cotangent[:, :2])
    second = a._replace(x=a.x[:, 2:], cotangent=a.cotangent[:, 2:], h0=np.zeros_like(a.h0))
    apart = [measure.oracle(one, True) for one in (first, second)]
    assert_close(hs, np.concatenate([hs for hs, _ in apart], axis=1))
    assert_close(gradients.x, np.concatenate([g.x for _, g in apart], axis=1), "gradient")
    assert_close(gradients.h0, apart[0][1].h0, "gradient")
    for whole, *parts in zip(gradients.weights[0], *(g.weights[0] for _, g in apart), strict=True):
        assert_close(whole, parts[0] + parts[1], "gradient")


@pytest.mark.parametrize(("implementation", "case"), by_turns(HERE, [*KINDS_OF_CASE.values()], quick=1))
def test_every_implementation_equals_the_oracle_on_every_kind_of_case(implementation, case):
    """At the timed sizes None chooses one of these implementations, but not the one that it chooses at these sizes."""
    a, peer = make_arrays(SHRUNK[case]), Peer(partial(ours.implementation, implementation))
    prepared = measure.prepare(peer, a, 1, *measure.oracle(a, True), traits=SHRUNK[case].traits)
    assert all(map(callable, prepared.values())), prepared


@pytest.mark.parametrize(("name", "case"), by_turns(PEERS, [*KINDS_OF_CASE.values()], quick=1))
def test_peer_equals_the_oracle(name, case):
    peer, a = PEERS[name], make_arrays(SHRUNK[case])
    if missing := peer.missing():
        pytest.skip(f"{name}: {missing}")
    # grujax is tested strictly, the other libraries are not written for that
    ranks, dtypes = ("raise", "strict") if name.startswith("grujax") else ("allow", "standard")
    with jax.numpy_rank_promotion(ranks), jax.numpy_dtype_promotion(dtypes):
        right = measure.oracle(a, peer.reset_after)
        prepared = measure.prepare(peer, a, 1, *right, traits=SHRUNK[case].traits)
    if prepared[FORWARD] == "no bfloat16 on this processor":
        pytest.skip(f"{name}: {prepared[FORWARD]}")
    refused = dict.fromkeys(PASSES, CANNOT[case, name]) if (case, name) in CANNOT else {}
    if name in ("onnxruntime", "openvino") and not refused:
        refused = {BACKWARD: "forward only"}
    assert {kind: run for kind, run in prepared.items() if isinstance(run, str)} == refused


@pytest.mark.parametrize("name", ["single", "ragged", "stacked"])
def test_openvino_reads_the_input_where_it_lies_and_writes_where_it_wrote(name, monkeypatch):
    """The calling thread is not bound to a core afterwards either: other threads would inherit that."""
    if missing := PEERS["openvino"].missing():
        pytest.skip(f"openvino: {missing}")
    inputs = []

    def graph(a):
        model, feed = in_onnx.graph(a)
        inputs.append(weakref.ref(feed["X"]))
        return model, feed

    monkeypatch.setattr("grujax.bench.peers.openvino.graph", graph)
    cores = getattr(os, "sched_getaffinity", lambda _: None)
    before, a = cores(0), make_arrays(SHRUNK[name])
    runs = PEERS["openvino"].build(a._replace(x=a.x.copy()), 2)
    gc.collect()
    x = inputs[0]()
    assert x is not None  # the calls keep its memory alive
    for given in (a.x, np.zeros_like(a.x)):
        x[...] = given.swapaxes(0, 1)
        found = runs.forward()
        right = measure.oracle(a._replace(x=given), True)[0]
        assert_close(np.where(a.valid[..., None], runs.read_hs(found), 0), right)
    assert np.shares_memory(found, runs.forward()) and cores(0) == before


@pytest.mark.parametrize(("name", "dtype"), [("single", "f32"), ("ragged", "f32"), ("single-bfloat16", "bf16")])
def test_openvino_runs_its_own_gru_in_the_dtype_of_the_case_and_transposes_nothing(name, dtype, monkeypatch):
    if missing := PEERS["openvino"].missing():
        pytest.skip(f"openvino: {missing}")
    openvino = package()
    compile_model, made = openvino.Core.compile_model, []

    def compiled(*arguments):
        made.append(compile_model(*arguments))
        return made[0]

    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    try:
        PEERS["openvino"].build(make_arrays(SHRUNK[name]), 2)
    except Unavailable as reason:
        pytest.skip(f"openvino: {reason}")
    asked = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "PERFORMANCE_HINT", "NUM_STREAMS")
    assert [*map(made[0].get_property, asked)] == [getattr(openvino.Type, dtype), 2, "LATENCY", 1]
    info = [op.get_rt_info() for op in made[0].get_runtime_model().get_ops()]
    ran = {str(i["layerType"].astype(str)): str(i["runtimePrecision"].astype(str)) for i in info}
    assert ran["RNNSeq"] == dtype and not {"Transpose", "TensorIterator"} & {*ran}


def test_openvino_is_imported_without_its_telemetry():
    """The telemetry would fork, and Python would warn of a deadlock because JAX has started threads."""
    if missing := PEERS["openvino"].missing():
        pytest.skip(f"openvino: {missing}")
    package()
    assert sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_openvino_s_bfloat16_is_refused_where_the_processor_has_none(monkeypatch):
    if missing := PEERS["openvino"].missing():
        pytest.skip(f"openvino: {missing}")
    monkeypatch.setattr(package().Core, "get_property", lambda *_: ["FP32"])
    for name, expected in (("single-bfloat16", "no bfloat16 on this processor"), ("single", None)):
        a = make_arrays(SHRUNK[name])
        found = measure.prepare(PEERS["openvino"], a, 1, *measure.oracle(a, True))
        assert found[FORWARD] == expected if expected else callable(found[FORWARD])


def test_the_wrong_gru_is_refused_and_never_timed():
    """grujax-before claims to be the other GRU: both passes must be reported as unequal and have no time."""
    wrong = PEERS["grujax-before"]._replace(reset_after=True)
    right = {name: peer for name, peer in PEERS.items() if name.startswith("grujax")}
    results = measure.measure(TINY, {**right, "wrong": wrong}, repeats=2, threads=1)
    assert {r.peer for r in results} == {*right, "wrong", LIMIT}
    for r in results:
        if r.peer == "grujax-packed":
            assert r.status == "not ragged" and r.median_ms is None
        elif r.peer == "wrong":
            assert r.status.startswith("unequal") and r.median_ms is None and r.times_ms == ()
        else:
            assert r.status == "measured" and len(r.times_ms) == 2


@pytest.mark.parametrize("spoil", [lambda v: v + 1e-3, lambda v: v * np.nan, lambda v: v[:-1]])
@pytest.mark.parametrize("field", ["hs", "x", "h0", "w_ih_l0", "w_hh_l0_reverse", "b_ih_l1", "b_hh_l1_reverse"])
def test_one_wrong_array_is_seen(field, spoil):
    hs, gradients = measure.oracle(make_arrays(STACKED), True)
    right = {"hs": hs, **gradients.named(num_directions=2)}
    assert len(right) == 3 + 4 * 4
    kind = FORWARD if field == "hs" else BACKWARD
    assert measure.unequal(right, right, kind) is None
    assert f"{field} " in str(measure.unequal(right | {field: spoil(right[field])}, right, kind))


def test_the_worst_array_is_the_one_that_is_named_and_bfloat16_has_its_own_tolerance():
    right = {"a": np.ones(3), "b": np.ones(3)}
    found = {"a": np.full(3, 1 + 1e-3), "b": np.full(3, 1 + 5e-3)}
    assert "unequal: b" in str(measure.unequal(found, right, FORWARD))
    assert measure.unequal(found, right, FORWARD, "bfloat16") is None


def test_what_stands_in_the_padding_is_nobody_s_result():
    case = SHRUNK["ragged"]
    a = make_arrays(case)
    runs = PEERS["grujax"].build(a, 1)
    for where, allowed in ((~a.valid, True), (a.valid, False)):

        def read(hs, where=where):
            return np.where(where[..., None], np.float32(7), np.asarray(hs))

        spoiled = Peer(lambda a, threads, read=read: runs._replace(read_hs=read))
        status = measure.prepare(spoiled, a, 1, *measure.oracle(a, True))[FORWARD]
        assert isinstance(status, str) != allowed


def test_a_peer_that_is_missing_or_cannot_run_here_is_shown():
    def unable(a, threads):
        raise Unavailable("no such device")

    absent = Peer(PEERS["grujax"].build, ("no_such_library",))
    results = measure.measure(TINY, {"absent": absent, "unable": Peer(unable)}, repeats=1, threads=1)
    for peer, reason in (("absent", "not installed (no_such_library)"), ("unable", "no such device")):
        assert [r.status for r in results if r.peer == peer] == [reason] * 2
        assert reason.split()[0] in text(report(results), FORWARD)


def test_on_a_gpu_what_runs_on_the_cpu_alone_has_no_time():
    assert PEERS["onnxruntime"].refuses(("gpu", "dense", "float32")) == "CPU only"
    assert PEERS["onnxruntime"].refuses(("cpu", "dense", "float32")) is None


def test_on_a_gpu_grujax_brings_its_implementations_along_and_a_step_is_shown(monkeypatch):
    """Only the name of the backend is changed to "gpu": torch without CUDA is left out, also from the limit."""
    assert implementations("cpu") == {}
    ours_there = set(implementations("gpu"))
    assert {"grujax xla", "grujax autodiff"} <= ours_there and "grujax native" not in ours_there
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(measure.CASES, "tiny", TINY)
    options = Options(shapes=("tiny",), peers=("grujax", "torch", "onnxruntime"), repeats=1, seconds=0)
    made = measure.run(options)
    assert {r.peer for r in made.results} == {"grujax", "torch", "onnxruntime", LIMIT} | ours_there
    statuses = {r.peer: r.status for r in made.results if r.peer not in ours_there - {"grujax xla", "grujax autodiff"}}
    reasons = {"torch": PEERS["torch"].missing() or "torch without CUDA", "onnxruntime": "CPU only"}
    assert statuses == dict.fromkeys(("grujax", "grujax xla", "grujax autodiff", LIMIT), "measured") | reasons
    assert not made.failed
    on_gpu = replace(report([Result("one", "grujax", FORWARD, "measured", 2.0, (2.0,))]), device={"accelerator": "x"})
    shown = text(on_gpu, FORWARD)
    assert "µs per step, ratio to grujax" in shown and shown.count("400.0") == 2 and "2.00" not in shown  # 5 steps


def test_an_implementation_that_refuses_says_why():
    runs = partial(ours.implementation, "no such")
    prepared = measure.prepare(Peer(runs), make_arrays(TINY), 1, *measure.oracle(make_arrays(TINY), True))
    assert all("found 'no such'" in str(reason) for reason in prepared.values())


def test_torch_rounds_float32_on_a_gpu_where_jax_does(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = SimpleNamespace(), SimpleNamespace()
    monkeypatch.setattr(torch.backends.cuda, "matmul", settings[0])
    monkeypatch.setattr(torch.backends, "cudnn", settings[1])
    for precision, rounded in ((None, True), ("highest", False)):
        with jax.default_matmul_precision(precision):
            assert torch_device() == ("cuda", torch.cuda.synchronize)
        assert [setting.allow_tf32 for setting in settings] == [rounded] * 2


def test_every_thunk_has_its_turn_in_every_round():
    calls = []
    times = measure.interleave({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=4)
    rounds = [calls[6 * i : 6 * i + 6] for i in range(4)]
    assert all(sorted(r) == list("aabbcc") and r[::2] == r[1::2] for r in rounds)  # one warm-up call, one timed call
    assert len({tuple(r) for r in rounds}) > 1
    assert all(len(t) == 4 and min(t) >= 0 for t in times.values())


def test_short_calls_are_timed_more_often_and_long_ones_all_the_while(monkeypatch):
    now, calls = [0.0], []

    def thunk(name, takes):
        calls.append(name)
        now[0] += takes

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    long, short = (lambda: thunk("long", 0.25)), (lambda: thunk("short", 0.005))
    times = measure.interleave({"long": long, "short": short, "least": lambda: thunk("least", 1e-9)}, 7, seconds=0.5)
    assert {name: len(t) for name, t in times.items()} == {"long": 7, "short": 100, "least": 200}
    timed = [i for i, name in enumerate(calls[6:]) if name == "long"]
    assert timed[0] < len(calls) * 0.2 and timed[-1] > len(calls) * 0.9


def test_the_products_are_as_many_as_the_equations_need(monkeypatch):
    """Multiply-adds: forward 3H (I + H) for each valid step, layer and direction; backward twice that."""
    spent = []
    original = np.matmul

    def counted(left, right, out):
        spent.append(left.shape[0] * left.shape[1] * right.shape[1])
        return original(left, right, out=out)

    monkeypatch.setattr(products.np, "matmul", counted)
    for case in (SHRUNK["ragged"], STACKED):
        a = make_arrays(case)
        sizes = sum(3 * case.H * (len(w_ih) + case.H) for w_ih, *_ in a.weights)
        calls = products.products(a, 1)["numpy"]
        for call, factor in zip(calls, (1, 3), strict=True):
            spent.clear()
            call()
            assert sum(spent) == factor * sizes * a.valid.sum()


@pytest.mark.parametrize("case", KINDS_OF_CASE.values())
def test_the_limit_is_the_least_of_what_the_libraries_take(case, monkeypatch):
    monkeypatch.setattr(measure, "interleave", lambda thunks, *_: {n: (9.0 - i, 9.0 - i) for i, n in enumerate(thunks)})
    results = measure.measure(SHRUNK[case], {}, repeats=1, threads=1)
    n_libraries = len(measure.products(make_arrays(SHRUNK[case]), 1))
    assert [r.median_ms for r in results if r.peer == LIMIT] == [10.0 - n_libraries] * 2


def test_ratios_and_the_fastest():
    made = report(
        [Result(case, peer, kind, "measured", ms, (ms,)) for kind in PASSES for case, peer, ms in MEDIANS]
        + [Result(case, "gone", kind, "not installed (gone)") for kind in PASSES for case in ("one", "two")]
    )
    slow = reports.ratios(made, FORWARD, ("slow",))
    assert slow == {"one": 2.0, "two": 8.0}
    assert reports.geometric_mean(slow.values()) == pytest.approx(4)
    assert reports.rivals(made) == ("slow", "fast", "gone")  # not grujax-before, the limit, or OpenVINO
    assert reports.ratios(made, FORWARD, reports.rivals(made)) == {"one": 0.5, "two": 8.0}
    assert reports.ratios(made, FORWARD, ("grujax",), reports.rivals(made)) == {"one": 2.0, "two": 0.125}
    assert reports.ratios(made, FORWARD, (LIMIT,)) == {"one": 0.25, "two": 0.1}
    assert reports.ratios(made, FORWARD, ("gone",)) == {"one": None, "two": None}
    assert reports.geometric_mean([None]) is None
    shown = text(made, FORWARD)
    for part in ("8.00x", "0.12x", "not installed", "25%", "10%", "16%", "400.0", "(3, 5, 4, 6)"):
        assert part in " ".join(shown.split()), part


def test_the_summary_says_how_many_times_as_fast():
    """The fastest rival takes 4 / 2 times as long for most shapes; a mean of five needs all five shapes."""
    shapes = [*reports.SHAPES, *(f"{name}-bfloat16" for name in FIVE)]
    of = {"grujax": 2.0, "torch": 6.0, "flax": 4.0, "openvino": 3.0, "grujax-packed": 0.1, LIMIT: 0.1}
    results = [
        Result(shape, peer, FORWARD, "measured", ms * (2 if (shape, peer) == ("single", "flax") else 1), (ms,))
        for shape in shapes
        for peer, ms in of.items()
        if not (shape.startswith("rl") and peer == "openvino")
    ]
    results += [Result(s, p, BACKWARD, "measured", of[p] * 3, (1.0,)) for s in FIVE[1:] for p in ("grujax", "flax")]
    mean = "mean of the first five"
    found = reports.advantages(report(results))
    assert [*found] == [line for line, *_ in reports.SUMMARY]
    assert found["forward"] == {
        **dict.fromkeys(reports.SHAPES, 2.0),
        "single": 3.0,
        mean: pytest.approx((3 * 2**4) ** (1 / 5)),
    }
    ours = found["forward, against OpenVINO"]
    assert ours == {**dict.fromkeys(reports.SHAPES, 1.5), "rl": None, "rl-plain": None, mean: pytest.approx(1.5)}
    theirs = found["forward, bfloat16, against OpenVINO"]
    assert theirs == {
        **dict.fromkeys(reports.SHAPES),
        **dict.fromkeys(FIVE, 1.5),
        mean: pytest.approx(1.5),
    }
    assert found["forward + backward"] == {
        **dict.fromkeys(reports.SHAPES),
        **dict.fromkeys(FIVE[1:], 2.0),
        mean: None,  # single is missing: a mean of four would look like one of five
    }
    console = Console(width=200, record=True)
    for made in reports.tables(report(results)):
        console.print(made)
    shown = console.export_text()
    assert "forward, bfloat16, against OpenVINO" in shown and "2.17" in shown and "–" in shown


def test_no_name_and_no_number_of_a_table_of_all_peers_is_cut():
    peers = PEERS | implementations("gpu") | {"grujax resident": PEERS["grujax"]}
    unequal = "unequal: w_hh_l0 is 2.77 times the tolerance away"
    made = report(
        [Result("medium-bfloat16", peer, FORWARD, "measured", 12345.6, (1.0,)) for peer in (*peers, LIMIT)]
        + [Result("large-bfloat16", peer, FORWARD, unequal) for peer in peers]
    )
    console = Console(width=reports.TABLE_WIDTH, record=True)
    console.print(reports.table(made, FORWARD))
    shown = console.export_text()
    assert "…" not in shown and shown.count("12346") == len(peers) + 1 and "medium-bfloat16" in shown


def test_a_report_of_none_of_the_shapes_has_no_summary():
    made = report([Result("one", "grujax", FORWARD, "measured", 1.5, (1.5,))])
    assert reports.advantages(made) == {} and len(reports.tables(made)) == len(PASSES)


def test_the_report_survives_the_file(tmp_path):
    made = report([Result("one", "grujax", FORWARD, "measured", 1.5, (1.0, 1.5, 2.0))])
    path = tmp_path / "report.json"
    reports.write_report(made, path)
    assert reports.read_report(path) == made
    assert Case(**reports.read_report(path).cases["one"]) == replace(TINY, name="one")


def test_run_names_everything(monkeypatch):
    monkeypatch.setitem(measure.CASES, "tiny", TINY)
    said = []
    made = measure.run(Options(shapes=("tiny",), peers=("grujax",), repeats=1, seconds=0), said.append)
    assert {r.kind for r in made.results} == set(PASSES) and said == ["tiny (3, 5, 4, 6)"]
    assert made.versions["grujax"] and made.versions["jax"] and made.device["cpu"] and made.threads >= 1
    assert made.cases == {"tiny": asdict(TINY)} and made.device["accelerator"] is None


def test_ctrl_c_ends_with_the_cases_that_are_done(monkeypatch):
    def measured(case, *_):
        if case is CASES[interrupted]:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(measure, "measure", measured)
    said, interrupted = [], "small"
    report = measure.run(Options(("single", "small", "medium"), ("flax",)), said.append)
    assert list(report.cases) == ["single"] and said[-1] == "interrupted: 1 of 3 cases were measured"
    interrupted = "single"
    with pytest.raises(KeyboardInterrupt):
        measure.run(Options(("single", "small"), ("flax",)), said.append)


@pytest.mark.parametrize(("peer", "code"), [("grujax-packed", 1), ("torch", 0)])
def test_the_program_saves_its_report_and_fails_where_a_gru_of_grujax_is_wrong(peer, code, tmp_path, monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks/run.py"
    spec = importlib.util.spec_from_file_location("run", path)
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    made = report([Result("one", peer, kind, "unequal: hs is 2 times the tolerance away") for kind in PASSES])
    monkeypatch.setattr(program, "run", lambda options, say: made)
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    assert program.main(program.Program(save=True)) == code
    assert [p.name for p in program.RESULTS.iterdir()] == ["20261123T101112-abcdef0-dirty.json"]


@pytest.mark.parametrize(
    "options", [Options(shapes=("nope",)), Options(peers=("nope",)), Options(repeats=0), Options(seconds=-1)]
)
def test_unknown_options_are_refused(options):
    with pytest.raises(InputError):
        measure.run(options)


def test_the_commit_is_git_s(monkeypatch):
    assert machine.git("rev-parse", "HEAD") in ("", _head())
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=128, stdout=""))
    assert machine.git("rev-parse", "HEAD") == ""


MEDIANS = [
    ("one", "grujax", 2.0),
    ("one", "grujax-before", 0.1),
    ("one", "slow", 4.0),
    ("one", "fast", 1.0),
    ("one", "openvino", 0.25),
    ("one", LIMIT, 0.5),
    ("two", "grujax", 1.0),
    ("two", "grujax-before", 1.0),
    ("two", "slow", 8.0),
    ("two", "fast", 8.0),
    ("two", LIMIT, 0.1),
]


def report(results):
    cases = {r.case: asdict(replace(TINY, name=r.case)) for r in results}
    return Report("2026-11-23T10:11:12+00:00", "abcdef0123", True, {"cpu": "x"}, {}, 2, cases, tuple(results))


def text(made, kind):
    console = Console(width=200, record=True)
    console.print(reports.table(made, kind))
    return console.export_text()


def _head():
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip()
