"""The kernel for TPU: interpreted on the CPU against the oracle, lowered for a TPU, and compiled by libtpu for three.

Run as a program, this file compiles for the given chip: libtpu needs a process of its own.
"""

import os
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

sys.path.append(str(Path(__file__).parent.parent))  # also when run as a program
import numerics  # noqa: F401
from pairs import pairwise

from grujax import GRUSpec, GRUWeights
from grujax.kernels.calls.arrays import MOVED, Call, N, by_direction, given
from grujax.kernels.table import KERNELS, Asked
from grujax.kernels.tpu import limits
from grujax.kernels.tpu.call import tpu_forward, tpu_transpose
from grujax.testing import CASES, Case, assert_serves
from grujax.types import Control, Gates, Recurrence, Result

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # no package: its programs import each other by name
from targets import compiled_for


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def differentiable(arrays, call):
    return tpu_forward(*arrays, call=call)


def _forward(arrays, call):
    outputs = tpu_forward(*arrays, call=call._replace(saved=True))
    asked = [a for of in by_direction(outputs, 3) for a in of[: call.outputs]]
    return asked, (arrays, outputs[::3], outputs[2::3])


def _backward(call, kept, moved):
    arrays, hs, saved = kept
    found = tpu_transpose(*arrays, *hs, *saved, *moved[:: call.outputs], *moved[1 :: call.outputs], call=call)
    gradients = []
    for of, some in zip(by_direction(arrays, N), by_direction(found, MOVED), strict=True):
        gradients += [*some, *(np.zeros(a.shape, jax.dtypes.float0) if a.dtype == bool else 0 * a for a in of[MOVED:])]
    return (gradients,)


differentiable.defvjp(_forward, _backward)


def run(recurrences, spec, *, reverse, with_gates=False, time_major=True):
    """`grujax.kernels.run` with this kernel."""
    call = Call(spec, tuple(reverse), time_major, with_gates, "tpu")
    results = []
    for hs, h_last, *saved in by_direction(
        differentiable([a for of in recurrences for a in given(of, call)], call), call.outputs
    ):
        gates = Gates(*jnp.split(saved[0], 4, axis=-1)[:3]) if saved else None
        results.append(Result(hs, h_last, gates))
    return results


# Values and gradients


@pytest.fixture
def interpreted():
    """Interprets the kernel. Memory that was never written is NaN, and reading past an array is an error."""
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
        yield
    pltpu.reset_tpu_interpret_mode_state()


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes few rows and steps take several blocks, of which the last is not full."""
    monkeypatch.setattr(limits, "TILES", ((8, 4),))


def refusal(spec, dtype, hidden_size=1):
    """Why the table of implementations does not give such a call to the kernel; None if it does."""
    return KERNELS["tpu"].refuses(Asked(spec, dtype, (1, 1, hidden_size), frozenset()))


SERVED = [name for name, case in CASES.items() if refusal(case.spec, case.dtype) is None]
SLOW = [pytest.mark.slow]
FEW = ["one unit", "15 units", "17 units", "few", "bfloat16, odd"]
MINE = {
    "whole blocks, no flags": Case(sizes=(8, 8, 3, 128), dtype="float32", reverse=(False, True)),
    "a rest of steps, no flags": Case(
        GRUSpec(False), (7, 9, 3, 130), dtype="float32", reverse=(True,), with_gates=True
    ),
    "no steps": Case(sizes=(0, 3, 4, 2), given=("valid", "reset", "h_reset"), dtype="float32", with_gates=True),
    "no rows": Case(sizes=(4, 0, 3, 2), given=("valid", "hold"), dtype="float32", time_major=False),
}


@pytest.mark.parametrize(
    "name",  # one unit is padded to a vector as 15 are; these two and MINE cover the others of FEW
    [pytest.param(name, marks=[] if name in ("15 units", "bfloat16, odd", *MINE) else SLOW) for name in (*FEW, *MINE)],
)
def test_values_and_gradients_are_those_of_the_oracle(name, interpreted, small_blocks):
    assert_serves(run, (CASES | MINE)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_all_that_it_serves_of_the_contract(name, interpreted):
    assert_serves(run, CASES[name])


def test_the_contract_has_many_cases_that_it_serves():
    assert set(FEW) < set(SERVED) and len(SERVED) >= 15


def some_recurrence(case, dtype):
    """A recurrence of NumPy ones and zeros in the sizes of a case."""
    (n_steps, n_rows, n_features, hidden_size), columns = case.sizes, 3 * case.sizes[3]
    control = {
        "valid": np.ones((n_steps, n_rows), bool),
        "reset": np.zeros((n_steps, n_rows), bool),
        "h_reset": np.ones(hidden_size),
        "state_mask": np.ones((n_rows, hidden_size)),
        "hold": np.zeros((n_steps, n_rows, hidden_size)),
    }
    of_call = jnp.dtype(dtype)
    w_ih, w_hh = np.ones((n_features, columns), of_call), np.ones((hidden_size, columns), of_call)
    bias = np.ones(columns)
    weights = GRUWeights(w_ih, w_hh, bias, bias)
    control = Control(**{name: a for name, a in control.items() if name in case.given})
    return Recurrence(np.ones((n_steps, n_rows, n_features), of_call), weights, np.ones((n_rows, hidden_size)), control)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_sequence_of_length_0_hands_h0_on_and_a_held_state_is_exact(reverse, interpreted, small_blocks):
    case = Case(sizes=(6, 3, 2, 5), given=("valid",))
    of = some_recurrence(case, "float32")
    h0 = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    valid = np.arange(6)[:, None] < np.array([6, 0, 2])
    of = of._replace(h0=h0, control=Control(valid))
    hs, h_last = jax.device_get(jax.jit(lambda of: run([of], GRUSpec(), reverse=(reverse,))[0][:2])(of))
    np.testing.assert_array_equal(h_last[1], h0[1])
    np.testing.assert_array_equal(h_last[2], hs[0 if reverse else 1, 2])
    np.testing.assert_array_equal(hs[~valid], 0)


# Lowered for a TPU

SPECS = [GRUSpec(after, "highest", update) for after, update in product((True, False), ("keep", "take"))]
ALL = ("valid", "reset", "h_reset", "state_mask", "hold")


def gradient(recurrences, spec):
    def loss(recurrences):
        results = run(recurrences, spec, reverse=(False, True))
        return sum(result.hs.sum() + (result.h_last**2).sum() for result in results)

    return jax.grad(loss, allow_int=True)(recurrences)


def lowered(f, *arguments):
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()


VARIANTS = pairwise(after=(True, False), update=("keep", "take"), dtype=("float32", "bfloat16"), given=((), ALL))


@pytest.mark.parametrize(
    "of", VARIANTS, ids=lambda of: f"{of['after']}-{of['update']}-{of['dtype']}-{len(of['given'])}"
)
def test_each_variant_is_one_launch_a_direction_and_pass(of):
    spec, case = GRUSpec(of["after"], "highest", of["update"]), Case(sizes=(17, 9, 4, 130), given=of["given"])
    of = some_recurrence(case, of["dtype"])
    alone = lowered(lambda of: run([of], spec, reverse=(True,), with_gates=True), of)
    both = lowered(partial(gradient, spec=spec), [of, of])
    launches = [re.findall(r'@tpu_custom_call.*kernel_name = "(\w+)"', text) for text in (alone, both)]
    assert launches == [["grujax_forward"], [*["grujax_forward"] * 2, *["grujax_transpose"] * 2]]
    assert "stablehlo.while" not in alone + both


def test_products_are_exact_where_highest_is_asked_for():
    for dtype, spec, expected in (("float32", "highest", 3), ("float32", None, 0), ("bfloat16", "highest", 1)):
        of = some_recurrence(Case(sizes=(4, 8, 4, 128)), dtype)
        f = partial(run, spec=GRUSpec(False, spec), reverse=(False,))
        assert str(jax.make_jaxpr(f)([of])).count("HIGHEST") // 2 == expected, (dtype, spec)


def test_it_runs_inside_of_shard_map():
    of = some_recurrence(Case(sizes=(4, 8, 3, 5), given=("valid",)), "float32")
    rows = Recurrence(P(None, "rows"), GRUWeights(P(), P(), P(), P()), P("rows"), Control(P(None, "rows")))
    f = jax.shard_map(
        lambda of: run([of], GRUSpec(), reverse=(False,))[0].hs,
        mesh=jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,)),
        in_specs=(rows,),
        out_specs=P(None, "rows"),
    )
    assert "@tpu_custom_call" in lowered(f, of)


# Refusals


REFUSED = {
    "it has no layer normalisation": (GRUSpec(layer_norm=True), "float32"),
    "it supports only tanh and sigmoid, without clip": (GRUSpec(clip=1.0), "float32"),
    "it multiplies in float32 and bfloat16, not in float64": (GRUSpec(), "float64"),
    "its products support only the precisions DEFAULT and HIGHEST": (GRUSpec(precision="high"), "float32"),
    "w_hh and one step with 2049 hidden units in float32 need 57 MiB of VMEM, and a call may use 56": (
        GRUSpec(),
        "float32",
        2049,
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_it_cannot_serve_is_refused_in_words(why):
    assert refusal(*REFUSED[why]) == why


def test_a_default_precision_that_mosaic_has_not_is_refused():
    with jax.default_matmul_precision("tensorfloat32"):
        assert "precision" in str(refusal(GRUSpec(), "float32"))
        assert refusal(GRUSpec(), "bfloat16") is None
        assert refusal(GRUSpec(precision="highest"), "float32") is None


def test_the_largest_sizes_that_fit():
    largest = {
        dtype: max(H for H in range(128, 4096, 128) if refusal(GRUSpec(), dtype, H) is None)
        for dtype in ("float32", "bfloat16")
    }
    assert largest == LARGEST
    assert refusal(GRUSpec(), "float32", None) is None
    cut = limits.tiles(100, 300, 1024, "float32")
    assert (cut.rows, cut.steps, cut.grid) == (128, 2, (3, 50))


LARGEST = {"float32": 2048, "bfloat16": 2944}


# Compiled

CHIPS = ("v5e", "v5p", "v6e")
COMPILED = {
    "torch": (SPECS[0], "float32", (), (16, 8, 4, 128)),
    "torch, all": (SPECS[0], "float32", ALL, (17, 9, 4, 130)),
    "Cho": (SPECS[3], "float32", ALL, (17, 130, 4, 130)),
    "bfloat16": (SPECS[1], "bfloat16", ALL, (17, 9, 4, 130)),
    "bfloat16, Cho": (SPECS[2], "bfloat16", (), (16, 9, 4, 130)),
}
LARGE = {f"largest, {dtype}": (SPECS[0], dtype, ALL, (5, 9, 4, H)) for dtype, H in LARGEST.items()}


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu, which compiles for TPUs, is not installed")
@pytest.mark.parametrize("cases", [COMPILED, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["few", "large"])
@pytest.mark.parametrize("chip", CHIPS)
def test_libtpu_compiles_values_and_gradients(chip, cases):
    settings = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    settings |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, __file__, chip, *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, timeout=3000)
    assert done.stdout.splitlines() == [f"{name}: 4 launches" for name in cases], done.stdout + done.stderr


def main(chip, *names):
    """Compiles the gradient of both directions for a chip that need not be present."""
    for name in names:
        spec, dtype, given, sizes = (COMPILED | LARGE)[name]
        of = some_recurrence(Case(sizes=sizes, given=given), dtype)
        compiled = compiled_for(chip, partial(gradient, spec=spec), [of, of])
        n_launches = compiled.as_text().count('custom_call_target="tpu_custom_call"')
        print(f"{name}: {n_launches} launches", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
