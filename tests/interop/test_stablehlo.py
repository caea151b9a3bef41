"""Exported StableHLO programs give the model's outputs, for any batch and length, without grujax and Flax."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import applied

from grujax import GRU, GRUCell, GRUEncoder, GRUModel
from grujax.errors import MissingPackage
from grujax.interop import save
from grujax.interop.stablehlo import LOADER, PLATFORMS, to_stablehlo
from grujax.testing import assert_trees_close

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def variables_of(model, *given):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *map(jnp.asarray, given))
    return jax.tree.map(lambda a: jnp.asarray(normal(*a.shape)), shapes)


def test_a_process_without_grujax_gets_the_same_numbers(tmp_path):
    model = GRUModel(4, 2, num_layers=2, bidirectional=True, pooling="max", zoneout=0.1, update="take")
    variables = variables_of(model, normal(1, 2, 3))
    statistics = {"input_mean": normal(3), "input_std": 1 + abs(normal(3))}
    variables["statistics"] = jax.tree.map(jnp.asarray, statistics)
    save(tmp_path / "model.stablehlo", model, variables)
    arrays = {"x": normal(5, 7, 3), "h0": normal(4, 5, 4), "lengths": np.array([7, 3, 0, 1, 7], np.int32)}
    arrays["x"][1, 3:] = np.nan
    np.savez(tmp_path / "given.npz", **arrays)
    alone = f"""
import sys
sys.modules["grujax"] = sys.modules["flax"] = None
import numpy as np
given = np.load("given.npz")
x, h0, lengths = (given[name] for name in ("x", "h0", "lengths"))
{LOADER}
np.savez("found.npz", y=y, h_last=h_last)
"""
    subprocess.run([sys.executable, "-c", alone], check=True, cwd=tmp_path, timeout=120)
    with np.load(tmp_path / "found.npz") as found:
        given = arrays["x"], arrays["h0"]
        y, h_last = applied(model, variables, *given, lengths=arrays["lengths"], return_state=True)
        assert_trees_close((found["y"], found["h_last"]), (y, h_last))
        assert np.isfinite(found["y"]).all() and np.ptp(found["y"]) > 0.1


CALLS = {
    "layer": (GRU(4, bidirectional=True), True, True),
    "without lengths": (GRU(4), True, False),
    "without state": (GRUModel(4, 2, initial_state="learned"), False, True),
    "x alone": (GRUModel(4, {"a": 1, "b": 2}, pooling=None), False, False),
    "encoder": (GRUEncoder(4, pooling="mean"), True, True),
    "time-major": (GRU(4, time_major=True, bidirectional=True, merge=None), True, True),
    "time-major, x alone": (GRUModel(4, 2, time_major=True, pooling=None), False, False),
}


@pytest.mark.parametrize("name", CALLS)
def test_any_batch_and_length_with_and_without_arguments(name):
    model, state, lengths = CALLS[name]
    variables = variables_of(model, normal(1, 2, 3))
    program = jax.export.deserialize(bytearray(to_stablehlo(model, variables, state=state, lengths=lengths)))
    model = model.clone(time_major=False)  # exported programs are always batch-major
    assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    for rows, steps in ((2, 5), (3, 1)):
        x = normal(rows, steps, 3)
        h0 = normal(model.num_directions, rows, 4) if state else None
        of_rows = np.array([steps, 0, 1][:rows], np.int32) if lengths else None
        found = program.call(*(a for a in (x, h0, of_rows) if a is not None))
        options = {} if isinstance(model, GRU) else {"return_state": state}
        expected = applied(model, variables, x, h0, lengths=of_rows, **options)
        assert_trees_close(found, expected if state or not isinstance(model, GRU) else expected[0])


def test_a_cell():
    cell = GRUCell(4)
    variables = variables_of(cell, normal(1, 4), normal(1, 3))
    program = jax.export.deserialize(bytearray(to_stablehlo(cell, variables)))
    x, h = normal(5, 3), normal(5, 4)
    assert_trees_close(program.call(x, h), applied(cell, variables, h, x)[0])


def test_without_flatbuffers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(MissingPackage, match=r"flatbuffers is required: pip install 'grujax\[stablehlo\]'"):
        to_stablehlo(GRU(4), variables_of(GRU(4), normal(1, 2, 3)))
