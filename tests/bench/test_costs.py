"""The costs of a GRU besides its run time: counters and compile times are right, and missing figures are reported."""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from grujax.errors import InputError
from grujax.kernels.table import xla_chunks

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # not a package: its programs import each other by name
import costs
import startup
from costs import STACKS, Compilation, Costs, Epoch, Memory, Size
from startup import Startup

LONG = Size(T=4096)
SMALL = Size(B=2, T=7, I=3, H=4, L=2)


def text(made):
    console = Console(width=160, record=True)
    for table in costs.tables(made):
        console.print(table)
    return console.export_text()


def of_lengths(*lengths, rows=2):
    return [(np.ones((rows, n, 3), np.float32), np.full(rows, n, np.int32)) for n in lengths]


@pytest.mark.parametrize(
    "ragged, expected",
    [(of_lengths(3, 3, 3), 1), (of_lengths(3, 5, 3, 4), 3), (of_lengths(3) + of_lengths(3, rows=1), 2)],
)
def test_a_compilation_is_counted_once_a_shape(ragged, expected):
    assert costs.count_compilations(ragged) == expected


def test_buckets_compile_at_most_as_often_as_there_are_buckets(monkeypatch):
    monkeypatch.setattr(costs, "count_compilations", lambda batches: len({x.shape for x, _ in batches}))  # fast
    ours, plain = costs.measure_epochs(print, buckets=3)
    assert ours.compilations == 3 < plain.compilations <= plain.batches == 9
    assert 0 < ours.padding < plain.padding < 1


def test_the_plain_loop_takes_every_row_once_and_pads_to_the_longest():
    data = costs.ragged()
    made = costs.to_the_longest(data, 32, np.random.default_rng(0))
    assert all(x.shape[1] == lengths.max() for x, lengths in made)
    assert sorted(np.concatenate([lengths for _, lengths in made])) == sorted(data.lengths)
    assert data.lengths.min() >= 7 and data.lengths.max() <= 29 and data.lengths.mean() == pytest.approx(15.8, abs=0.5)


def test_memory_grows_with_steps_and_most_under_plain_autodiff():
    found = {(m.library, m.T): m.bytes for m in costs.measure_memory(print, (16, 512))}
    assert None not in found.values()
    for library in STACKS:
        assert found[library, 512] > 8 * found[library, 16]
    assert found["grujax, autodiff", 512] > found["grujax", 512]


def test_long_training_keeps_less_than_half_of_what_flax_keeps():
    """grujax runs XLA's loop, in chunks."""
    stacks = partial(costs.OurStack, implementation="xla"), STACKS["Flax nn.RNN"]
    ours, flax = (costs.peak_bytes(stack(LONG), LONG) for stack in stacks)
    assert ours is not None and flax is not None and ours < 0.5 * flax


@pytest.mark.parametrize(
    "steps", [(64, 200), (512, 1024), (8192, 32768)], ids=["at once", "in chunks", "in chunks, the gates made anew"]
)
def test_the_program_does_not_grow_with_time(steps):
    """So its compile time does not grow either. There are three programs, each for a range of T."""
    sizes = [Size(T=T) for T in steps]
    chunks = [xla_chunks((size.T, size.B, size.H), "cpu") for size in sizes]
    assert len({(c.steps is None, c.kept) for c in chunks}) == 1
    programs = [costs.gradient_program(costs.OurStack(size, implementation="xla"), size) for size in sizes]
    short, long = (jitted.lower(*arguments).as_text().splitlines() for jitted, arguments in programs)
    assert len(short) == len(long)


@pytest.mark.parametrize("name", STACKS)
def test_the_program_is_that_of_both_passes(name):
    """It returns gradients of every parameter, of x and of h0; the initial states of both layers matter."""
    jitted, (variables, x, h0) = costs.gradient_program(STACKS[name](SMALL), SMALL)
    numbers = jax.tree.map(lambda s: 0.3 * np.ones(s.shape, s.dtype), (variables, x, h0))
    gradients = jax.tree.leaves(jitted(*numbers))
    assert [g.shape for g in gradients] == [v.shape for v in jax.tree.leaves((variables, x, h0))]
    assert all(np.abs(g).max() > 0 for g in gradients) and np.abs(gradients[-1]).min() > 0
    assert len(jax.tree.leaves(variables)) == (2 * 4 if "grujax" in name else 2 * 10)


def test_flax_and_grujax_are_one_program():
    """Both libraries use the given initial states: with constant weights they give the same hs."""
    found = {}
    for name, stack in STACKS.items():
        _, (variables, x, h0) = costs.gradient_program(stack(SMALL), SMALL)
        ones = jax.tree.map(lambda s: 0.1 * np.ones(s.shape, s.dtype), (variables, x, h0))
        zero = jax.tree_util.tree_map_with_path(
            lambda path, v: v * 0 if v.ndim == 1 else v, ones[0]
        )  # Flax has one bias for r and z, grujax two: all are zero here
        found[name] = stack(SMALL).apply(zero, *ones[1:])
    np.testing.assert_allclose(found["grujax"], found["Flax nn.RNN"], rtol=1e-5)
    np.testing.assert_allclose(found["grujax"], found["grujax, autodiff"], rtol=1e-5)


def test_compile_time_is_not_that_of_the_persistent_cache(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update(names[0], str(tmp_path))
        jax.config.update(names[1], 0.0)
        assert costs.compile_seconds(STACKS["grujax"](SMALL), SMALL) > 0.01
        assert list(tmp_path.iterdir()) == []
        jax.jit(lambda x: x + 1)(1.0)  # afterwards the cache works as before
        assert list(tmp_path.iterdir()) != []
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        with costs.without_persistent_cache():
            pass  # makes JAX forget the folder


def test_compile_time_is_measured_over_every_size(monkeypatch):
    seen = []
    monkeypatch.setattr(costs, "compile_seconds", lambda stack, size: seen.append(size) or float(size.T))
    made = costs.measure_compilations(print, repeats=2)
    assert {(c.axis, c.value) for c in made} == {(axis, v) for axis, values in costs.GROWTH.items() for v in values}
    assert [c.seconds for c in made if c.axis == "T" and c.library == "grujax"] == [64, 512, 4096]
    assert {size.L for size in seen} == {1, 2, 4} and {size.B for size in seen} == {1, 32, 256}


def test_a_start_is_timed_in_a_process_of_its_own():
    sleeps, absent = startup.startup_times(
        {"sleeps": "import time; time.sleep(0.3)", "absent": "import no_such_library"},
        {"sleeps": "json.decoder", "absent": "no_such_library"},
        repeats=1,
    )
    assert sleeps.seconds is not None and sleeps.seconds > 0.3 and absent == Startup("absent", None)


def test_python_s_own_start_is_no_import_time(monkeypatch):
    monkeypatch.setattr(startup, "process_seconds", {"": 1.0, "import json.decoder": 1.25}.__getitem__)
    assert startup.measure_imports(print, {"json": "json.decoder"}) == (Startup("json", 0.25),)


def test_a_program_that_fails_is_no_time():
    with pytest.raises(InputError, match="ZeroDivisionError"):
        startup.process_seconds("1 / 0")


def test_only_the_parts_named_are_measured():
    assert costs.measure(parts=()) == Costs()
    with pytest.raises(InputError, match="parts"):
        costs.measure(parts=("nope",))


MADE = Costs(
    compilations=(Compilation("grujax", "T", 64, 0.5), Compilation("Flax nn.RNN", "T", 64, 0.4)),
    memory=(Memory("grujax", 64, None), Memory("Flax nn.RNN", 64, 2_500_000)),
    epochs=(Epoch("buckets", 9, 4, 0.25),),
    imports=(Startup("grujax", 0.6), Startup("torch", None)),
    predictions=(Startup("grujax", 2.0), Startup("Flax", 8.0)),
)


def test_the_tables_hold_every_figure():
    shown = text(MADE)
    for part in ("0.50", "0.40", "1.25x", "not reported", "2.5", "25%", "0.60", "not installed", "2.00", "0.25x"):
        assert part in shown
    assert costs.tables(Costs()) == [] and len(costs.tables(MADE)) == 4


def test_costs_are_json():
    assert json.loads(json.dumps(asdict(MADE)))["memory"][1] == {"library": "Flax nn.RNN", "T": 64, "bytes": 2_500_000}
