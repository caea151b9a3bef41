"""The door to the kernels: valid steps and resets against a loop, row by row; who runs, and why."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from grujax import GRUSpec, GRUWeights, equations, gru
from grujax.kernels import explain, gru_sequence, gru_sequences
from grujax.kernels.table import KERNELS, Sizes, chunks_of
from grujax.testing import assert_close, assert_trees_close
from grujax.types import Control, Projection, Recurrence, Recurrent

T, B, H = 6, 4, 3
RNG = np.random.default_rng(0)
GATES, H0, W_HH = RNG.normal(size=(T, B, 3 * H)), RNG.normal(size=(B, H)), RNG.normal(size=(H, 3 * H)) * 0.5
B_HN, H_RESET = RNG.normal(size=H), RNG.normal(size=H)
VALID, RESET = RNG.random((T, B)) < 0.7, RNG.random((T, B)) < 0.4
VALID[:, 1], RESET[0, 0], VALID[0, 0], RESET[2, 1] = False, True, True, True
IN_PLACE = [name for name, kernel in KERNELS.items() if kernel.batch_major]


def by_rows(gates_x, h0, w_hh, b_hn, valid, reset, h_reset, reset_after):
    """One row and one step at a time, nothing shared with the code under test but the equations."""
    b_hh = np.concatenate([np.zeros(2 * H), b_hn])
    hs, h_last = np.zeros((T, B, H)), h0.copy()
    for row in range(B):
        for t in range(T):
            if valid is None or valid[t, row]:
                h = h_last[row]
                if reset is not None and reset[t, row]:
                    h = np.zeros(H) if h_reset is None else h_reset
                gates = gates_x[t, row]
                weights = (np.eye(3 * H), w_hh, np.zeros(3 * H), b_hh)
                h_last[row] = equations.step(gates, h, *weights, variant=equations.Variant(reset_after)).h
            hs[t, row] = h_last[row]
    return hs, h_last


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("implementation", [*KERNELS, None])
@pytest.mark.parametrize("masks", ["none", "valid", "reset", "both", "both and h_reset"])
def test_valid_and_reset_equal_a_loop_row_by_row(masks, implementation, reset_after):
    valid = VALID if masks in ("valid",) or "both" in masks else None
    reset = RESET if masks in ("reset",) or "both" in masks else None
    h_reset = H_RESET if "h_reset" in masks else None
    expected = by_rows(GATES, H0, W_HH, B_HN, valid, reset, h_reset, reset_after)
    gates = GATES if valid is None else np.where(valid[..., None], GATES, np.nan)
    given = jax.tree.map(jnp.asarray, {"valid": valid, "reset": reset, "h_reset": h_reset})
    h0, w_hh, b_hn = map(jnp.asarray, (H0, W_HH, B_HN))
    gates_x = jnp.asarray(gates)
    kernel = KERNELS[implementation or "scan"]
    if kernel.refuses(GRUSpec(reset_after), False):
        return
    if kernel.refuses(GRUSpec(reset_after), True):  # given the input, here projected by the identity
        gates_x = Projection(jnp.nan_to_num(gates_x) - 1, jnp.eye(3 * H), jnp.ones(3 * H))
    found = gru_sequence(gates_x, h0, w_hh, b_hn, **given, spec=GRUSpec(reset_after), implementation=implementation)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def test_explain_says_what_runs_and_why():
    assert explain().implementation == "fused" and "default" in explain().reason
    wide = {"sizes": (128, 32, 512)}
    assert explain(**wide, platform="cpu").implementation == "columns"
    assert explain(platform="cpu").implementation == "fused"
    assert explain(**wide, platform="gpu").implementation == explain(platform="tpu").implementation == "merged"
    assert explain(platform="gpu", projected=True).implementation == "merged"
    assert explain(platform="gpu", spec=GRUSpec(False)).implementation == "fused"
    assert explain(**wide, platform="cpu", projected=True).implementation == "fused"
    for n_steps, expected in ((0, "fused"), (1, "brief"), (2, "brief"), (3, "fused")):
        assert explain(sizes=(n_steps, 1, 64), platform="cpu").implementation == expected
    assert explain(sizes=(128, 1024, 128), platform="cpu").implementation == "joint"
    for n_rows, hidden_size in ((32, 128), (8, 256), (64, 511), (270, 64)):
        assert explain(sizes=(26, n_rows, hidden_size), platform="cpu").implementation == "halves"
    for n_rows, hidden_size in ((8, 128), (1, 256), (128, 256), (64, 512), (128, 64)):
        assert explain(sizes=(26, n_rows, hidden_size), platform="cpu").implementation != "halves"
    assert explain(sizes=(512, 128, 128), platform="cpu").implementation == "columns"
    assert explain(sizes=(128, 1, 512), platform="cpu").implementation == "fused"
    before = explain(**wide, platform="cpu", spec=GRUSpec(False))
    assert before.implementation == "fused" and before.reason.startswith("columns cannot serve")
    named = explain(implementation="scan")
    assert (named.implementation, named.reason) == ("scan", "named by the caller")
    assert str(named).startswith("scan: ") and "lax.scan" in str(named) and named.reason in str(named)


def test_the_state_is_float32_at_least():
    half = [jnp.asarray(a, jnp.bfloat16) for a in (GATES, H0, W_HH, B_HN)]
    assert {a.dtype.name for a in gru_sequence(*half)} == {"float32"}


def test_a_program_takes_the_loop_of_the_platform_that_it_is_for():
    """On CPU the columns, W (3H, H) times h (H, B), elsewhere the rows, one product for all gates; nothing is left to
    choose at run time."""
    x, w_ih = jnp.ones((4, 8, 3), jnp.float32), jnp.ones((3, 1536), jnp.float32)
    h0, w_hh, b_hn = (jnp.ones(shape, jnp.float32) for shape in ((8, 512), (512, 1536), (512,)))
    traced = jax.jit(lambda x: gru_sequence(Projection(x, w_ih), h0, w_hh, b_hn)).trace(x)
    columns, rows = "(tensor<1536x512xf32>, tensor<512x8xf32>) ->", "(tensor<8x512xf32>, tensor<512x1536xf32>) ->"
    for platform, there, absent in (("cpu", columns, rows), ("cuda", rows, columns), ("tpu", rows, columns)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert there in text and absent not in text, platform
    assert "conditional(" not in traced.lower().compile().as_text()


@pytest.mark.parametrize("time_major", [False, True], ids=["batch-major", "time-major"])
@pytest.mark.parametrize("implementation", IN_PLACE)
def test_arrays_are_read_and_written_as_they_lie(implementation, time_major):
    x = jnp.ones((24, 40, 8) if time_major else (40, 24, 8), jnp.float32)
    weights = GRUWeights(*(jnp.ones(shape, jnp.float32) for shape in ((8, 48), (16, 48), (48,), (48,))))
    run = jax.jit(lambda x: gru(x, weights, implementation=implementation, time_major=time_major)[0])
    assert " transpose(" not in run.lower(x).compile().as_text()


@pytest.mark.parametrize("implementation", IN_PLACE)
@pytest.mark.parametrize("steered", ["not", "valid, resets", "mask, hold"])
def test_batch_major_arrays_give_what_time_major_ones_give(steered, implementation):
    """Values, and both modes of the derivative, against the loop that JAX differentiates; an odd number of rows."""
    n_rows, width = 5, 3
    arrays = {"x": (n_rows, T, 2), "w_ih": (2, 9), "bias": (9,), "h0": (n_rows, 3), "w_hh": (3, 9), "b_hn": (3,)}
    primals = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in arrays.items()}
    tangents = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in arrays.items()}
    control = {
        "not": Control(),
        "valid, resets": Control(*(jnp.asarray(RNG.random((T, n_rows)) < 0.6) for _ in range(2)), jnp.ones(width)),
        "mask, hold": Control(
            state_mask=jnp.asarray(RNG.random((n_rows, width))), hold=jnp.asarray(RNG.random((T, n_rows, width)))
        ),
    }[steered]

    def run(given, name, time_major):
        projection = Projection(given["x"].swapaxes(0, 1), given["w_ih"], given["bias"])
        recurrence = Recurrence(projection, given["h0"], Recurrent(given["w_hh"], given["b_hn"]), control)
        (ran,) = gru_sequences([recurrence], implementation=name, time_major=time_major)
        return ran.hs.swapaxes(0, 1), ran.h_last

    def all_of(name, time_major):
        of = partial(run, name=name, time_major=time_major)
        loss = lambda given: sum(jnp.sin(a).sum() for a in of(given))  # noqa: E731
        return of(primals), jax.jvp(of, (primals,), (tangents,))[1], jax.grad(loss)(primals)

    assert_trees_close(jax.jit(all_of, static_argnums=(0, 1))(implementation, False), all_of("scan", True))


@pytest.mark.parametrize("implementation", IN_PLACE)
def test_where_a_derivative_is_wanted_the_states_are_written_time_major(implementation):
    """The rule reads them so; were they not, they would be turned round once more."""
    x = jnp.ones((40, 24, 8), jnp.float32)
    weights = GRUWeights(*(jnp.ones(shape, jnp.float32) for shape in ((8, 48), (16, 48), (48,), (48,))))
    run = jax.jit(lambda x: gru(x, weights, implementation=implementation)[0].sum())
    written = r"dynamic_update_slice .*: \(tensor<{}xf32>"
    forward, gradient = run.lower(x).as_text(), jax.jit(jax.grad(run)).lower(x).as_text()
    for text, shape, other in ((forward, "40x24x16", "24x40x16"), (gradient, "24x40x16", "40x24x16")):
        assert re.search(written.format(shape), text) and not re.search(written.format(other), text)


@pytest.mark.parametrize("shape", ["4, t, 8", "b, t, 8"])
@pytest.mark.parametrize("implementation", KERNELS)
def test_sizes_need_not_be_known(implementation, shape):
    x = jnp.asarray(RNG.normal(size=(4, 7, 8)))
    weights = GRUWeights(*(jnp.asarray(RNG.normal(size=size)) for size in ((8, 48), (16, 48), (48,), (48,))))
    run = jax.jit(lambda x: gru(x, weights, implementation=implementation))
    given = jax.ShapeDtypeStruct(export.symbolic_shape(shape), x.dtype)
    for found, expected in zip(export.export(run)(given).call(x), gru(x, weights, implementation="scan"), strict=True):
        assert_close(found, expected)


def test_rows_that_are_split_among_devices_are_not_halved():
    h0, w_hh, b_hn = (jnp.ones(shape, jnp.float32) for shape in ((32, 128), (128, 384), (128,)))
    x, w_ih = jnp.ones((3, 32, 4), jnp.float32), jnp.ones((4, 384), jnp.float32)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))

    def program(x, h0):
        run = jax.jit(lambda x, h0: gru_sequence(Projection(x, w_ih), h0, w_hh, b_hn))
        return run.trace(x, h0).lower(lowering_platforms=("cpu",)).as_text()

    assert "tensor<16x128xf32>" in program(x, h0)
    with jax.set_mesh(mesh):
        split = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in ((x, P(None, "data")), (h0, P("data")))]
        assert "tensor<16x128xf32>" not in program(*split)


@pytest.mark.parametrize(("platform", "emitted"), [("gpu", False), ("tpu", True)])
def test_off_the_cpu_only_long_sequences_are_chunked_and_a_gpu_hands_out_no_gates(platform, emitted, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert chunks_of(Sizes(256, 32, 256)) == chunks_of(Sizes(None, 32, 256)) == (None, emitted)
    assert chunks_of(Sizes(2**14, 32, 64)) == (128, False)


def test_gates_that_are_made_anew_are_not_kept_between_the_passes(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, weights = jnp.ones((16, 64, 4)), GRUWeights(*(jnp.ones(size) for size in ((4, 96), (32, 96), (96,), (96,))))
    _, backward = jax.vjp(lambda x: gru(x, weights, implementation="merged")[0], x)
    assert sum(a.size for a in jax.tree.leaves(backward)) < 2 * 64 * 16 * 32  # the states, the input, the weights


def test_long_sequences_are_differentiated_in_chunks():
    assert chunks_of(Sizes(64, 32, 128)) == chunks_of(Sizes(None, 32, 64)) == (None, True)
    assert chunks_of(Sizes(256, 32, 256)) == (16, True)
    assert chunks_of(Sizes(100, 128, 64)) == (10, True)  # no rest
    assert chunks_of(Sizes(127, 128, 64)) == (16, True)  # a prime: with a rest
    long = chunks_of(Sizes(2**14, 32, 64))
    assert long is not None and 1 <= long.steps < 2**10 and not long.emitted
    assert chunks_of(Sizes(2, 2**12, 2**12)) == (1, False)
