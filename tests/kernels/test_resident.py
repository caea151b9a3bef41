"""The kernel for Hopper GPUs, without a GPU: interpreted against the oracle and for races, and lowered for CUDA."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from refusals import refused

from grujax import GRUSpec, InputError, kernels
from grujax.kernels import explain, table
from grujax.kernels.calls.arrays import MOVED, Call, by_direction, given
from grujax.kernels.resident import plan
from grujax.kernels.resident.call import resident_forward, resident_transpose
from grujax.testing import Case, assert_serves
from grujax.types import Control, Gates, GRUWeights, Recurrence, Result

VERSION = jax.__version_info__[:2]
SERVES = pytest.mark.skipif(VERSION < plan.JAX, reason="the kernel for GPUs needs jax 0.11")
THREADS = int(os.environ.get("NPROC", os.cpu_count() or 1))  # the size of XLA's pool, counted as XLA does
INTERPRETED = pytest.mark.skipif(
    THREADS < 8, reason="each warpgroup that the interpreter runs waits on a thread of XLA's: set NPROC=16"
)


def interpreted(recurrences, spec=GRUSpec(), *, reverse=None, with_gates=False, time_major=True):
    """`kernels.run` in the interpreter, without primitives: their lowering does not support its ordered callbacks."""
    call = Call(spec, tuple(reverse or (False,) * len(recurrences)), time_major, with_gates, "resident")
    every = [given(recurrence, call) for recurrence in recurrences]

    def whole(moved):
        return [a for of, rest in zip(by_direction(moved, MOVED), every, strict=True) for a in (*of, *rest[MOVED:])]

    @jax.custom_vjp
    def run(*moved):
        return resident_forward(*whole(moved), call=call, interpret=True)

    def forward(*moved):
        out = resident_forward(*whole(moved), call=call._replace(saved=True), interpret=True)
        handed_out = out if with_gates else [a for i, a in enumerate(out) if i % 3 != 2]
        return handed_out, (moved, out[::3], out[2::3])

    def backward(residuals, cotangents):
        moved, hs, saved = residuals
        dhs, dh_last = (cotangents[i :: call.outputs] for i in (0, 1))
        arrays = (*whole(moved), *hs, *saved, *dhs, *dh_last)
        return tuple(resident_transpose(*arrays, call=call._replace(saved=True), interpret=True))

    run.defvjp(forward, backward)
    results = []
    for hs, h_last, *saved in by_direction(run(*(a for of in every for a in of[:MOVED])), call.outputs):
        r, z, n, m = jnp.split(saved[0], 4, axis=-1) if saved else [None] * 4
        results.append(Result(hs, h_last, Gates(r, z, n) if saved else None, m))
    return results


ALL = ("valid", "reset", "h_reset", "state_mask")
BOTH = {"reverse": (False, True)}
TAKE = GRUSpec(update="take")
CASES = {
    # Exact float32: one row per block. Sizes are T, B, I, H; hidden units are padded to a multiple of 64.
    "exact, all": Case(sizes=(4, 3, 3, 5), given=ALL, dtype="float32", with_gates=True, **BOTH),
    "exact, two warpgroups": Case(TAKE, (3, 2, 3, 70), ("valid", "reset"), (True,), time_major=False, dtype="float32"),
    "exact, plain": Case(sizes=(3, 2, 4, 64), plain=True, dtype="float32"),
    "exact, for bfloat16": Case(sizes=(3, 2, 4, 64), given=("valid",), dtype="bfloat16"),
    # On the tensor cores: the GPU has too few multiprocessors for one row each.
    "tiles": Case(sizes=(3, 140, 3, 64), given=("valid",), dtype="bfloat16", plain=True),
    "tiles, both": Case(TAKE, (3, 70, 3, 33), ALL, time_major=False, dtype="bfloat16", with_gates=True, **BOTH),
    # A cluster of three blocks. On a GPU they exchange data differently: grujax/kernels/resident/cluster.py.
    "cluster": Case(sizes=(3, 5, 3, 160), given=ALL, dtype="bfloat16", **BOTH),
    "one step": Case(sizes=(1, 2, 3, 64), given=ALL, dtype="float32", with_gates=True, **BOTH),
}


@SERVES
@INTERPRETED
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_oracle(case, capfd):
    assert_serves(interpreted, CASES[case])
    assert "RACE" not in "".join(capfd.readouterr())


PLANS = {
    # (rows of the batch, H, directions, dtype, precision), (rows per block, blocks per cluster, gates in registers)
    "one row a multiprocessor": ((132, 128, 1, "bfloat16", None), (1, 1, 0)),
    "more": ((133, 128, 1, "bfloat16", None), (8, 1, 3)),
    "two directions": ((67, 128, 2, "bfloat16", None), (8, 1, 3)),
    "exact where TF32 may not be": ((2000, 128, 1, "float32", "highest"), (1, 1, 0)),
    "TF32": ((300, 128, 1, "float32", None), (8, 2, 0)),
    "a wide batch": ((2112, 128, 1, "bfloat16", None), (16, 1, 3)),
    "256 units": ((64, 256, 1, "bfloat16", None), (8, 4, 2)),
    "256 units, more clusters than run at once": ((256, 256, 1, "bfloat16", None), (16, 4, 1)),
    "512 units": ((64, 512, 1, "bfloat16", None), (8, 8, 1)),
}


@pytest.mark.parametrize("case", PLANS)
@pytest.mark.parametrize("sides", [plan.FORWARD, plan.SAVING, plan.BACKWARD], ids=["forward", "saving", "transposed"])
def test_the_design_follows_from_the_sizes(case, sides):
    (rows, hidden_size, directions, dtype, precision), expected = PLANS[case]
    found = plan.plan((False,) * directions, False, rows, hidden_size, dtype, precision, sides)
    assert (found.rows, found.blocks, found.in_registers) == expected
    assert plan.shared_bytes(found, hidden_size, jnp.dtype(dtype).itemsize, sides) < plan.SHARED


REFUSED = {
    "zoneout": ({"control": ("hold",)}, "it has no zoneout"),
    "Cho": ({"spec": GRUSpec(reset_after=False)}, "it supports only reset_after=True"),
    "other activations": ({"spec": GRUSpec(activation="relu")}, "it supports only tanh and sigmoid, without clip"),
    "float64": ({"dtype": "float64"}, "it multiplies in float32 and bfloat16, not in float64"),
    "wide": (
        {"sizes": (9, 9, 513), "dtype": "bfloat16"},
        "the weights of at most 512 hidden units in bfloat16, not of 513",
    ),
    "wide, float32": ({"sizes": (9, 9, 300)}, "at most 256 hidden units in float32, not of 300"),
    "exact": (
        {"sizes": (9, 9, 129), "spec": GRUSpec(precision="highest")},
        "at most 128 hidden units in float32 with exact products, not of 129",
    ),
    "unknown sizes": ({"sizes": (9, 9, None)}, "the sizes are not known at compile time"),
}


@SERVES
@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_serve_is_refused_in_words(case):
    options, why = REFUSED[case]
    with refused("implementation='resident' cannot serve this call", why, "Pass None"):
        explain(implementation="resident", **options)


@SERVES
def test_exact_products_are_never_rounded_to_tf32():
    sizes = (9, 9, 200)
    assert explain(implementation="resident", sizes=sizes).implementation == "resident"
    with jax.default_matmul_precision("highest"), refused("exact products"):
        explain(implementation="resident", sizes=sizes)


@pytest.fixture
def card(monkeypatch):
    """`card(capability)` pretends that a GPU of this compute capability is available."""

    def of(capability):
        monkeypatch.setattr(table, "_capability", lambda: capability)

    return of


@SERVES
def test_it_is_the_default_on_the_card_on_which_it_was_measured(card):
    def chosen(sizes=(512, 64, 128), dtype="bfloat16"):
        return explain(sizes=sizes, dtype=dtype, platform="gpu")

    assert chosen().implementation == "xla" and "no GPU is available" in chosen().reason
    card("9.0")
    assert chosen().implementation == "resident"
    assert chosen((512, None, 128)).implementation == chosen((512, 64, 1024)).implementation == "xla"
    assert chosen((128, 4096, 256), "float32").implementation == "resident"
    for sizes in ((128, 4097, 256), (128, 257, 512)):
        assert f"up to {sizes[1] - 1} rows with {sizes[2]} hidden units, not with {sizes[1]}" in chosen(sizes).reason
    with jax.default_matmul_precision("highest"):
        assert "up to 1024 rows with 128 hidden units, not with 1025" in chosen((128, 1025, 128), "float32").reason
    card("8.0")
    assert "compute capability 9.0 (Hopper), and this one has 8.0" in chosen().reason
    with refused("this one has 8.0"):
        explain(implementation="resident")


def lowered(f, *arrays, platforms=("cuda",)):
    return jax.jit(f).trace(*arrays).lower(lowering_platforms=platforms).as_text()


def arguments(B, T, H, dtype, I=5):
    shapes = [(B, T, I), (I, 3 * H), (H, 3 * H), (3 * H,), (3 * H,), (B, H)]
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


def loss(x, w_ih, w_hh, b_ih, b_hh, h0, *, both=False, implementation="resident", valid=None):
    recurrence = Recurrence(x, GRUWeights(w_ih, w_hh, b_ih, b_hh), h0, Control(valid=valid))
    ways = (False, True)[: 1 + both]
    results = kernels.run([recurrence] * len(ways), implementation=implementation, reverse=ways, time_major=False)
    return sum(result.hs.astype(jnp.float32).sum() for result in results)


LOWERED = {
    "exact": (4, 5, 100, "float32", False),
    "tiles": (200, 5, 128, "bfloat16", True),
    "cluster": (16, 5, 256, "bfloat16", True),
    "cluster, TF32": (16, 5, 256, "float32", False),
    "the widest": (16, 5, 512, "bfloat16", False),
}


@SERVES
@pytest.mark.parametrize("case", LOWERED)
def test_each_design_is_one_launch_a_pass(case):
    B, T, H, dtype, both = LOWERED[case]
    valid = jnp.ones((T, B), bool)
    forward = lowered(partial(loss, both=both, valid=valid), *arguments(B, T, H, dtype))
    with_gradients = lowered(
        jax.grad(partial(loss, both=both, valid=valid), (0, 1, 2, 3, 4, 5)), *arguments(B, T, H, dtype)
    )
    for text, launches in ((forward, 1), (with_gradients, 2)):
        assert text.count("@mosaic_gpu") == launches and "stablehlo.while" not in text


@SERVES
def test_it_lowers_under_transformations():
    given = arguments(4, 5, 64, "float32")
    batched = [jax.ShapeDtypeStruct((3, *a.shape), a.dtype) for a in given]
    shared = jax.vmap(jax.grad(loss), (0, None, None, None, None, 0))
    assert "@mosaic_gpu" in lowered(shared, batched[0], *given[1:5], batched[5])
    assert "@mosaic_gpu" in lowered(jax.vmap(loss), *batched)
    assert "@mosaic_gpu" in lowered(jax.grad(jax.checkpoint(loss)), *given)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    rows = jax.P("data")
    specs = (rows, *[jax.P()] * 4, rows)
    split = jax.shard_map(lambda *a: jax.lax.psum(loss(*a), "data"), mesh=mesh, in_specs=specs, out_specs=jax.P())
    assert "@mosaic_gpu" in lowered(jax.grad(split), *given)


@SERVES
def test_a_program_for_several_platforms_holds_each_of_its_own(card):
    card("9.0")
    text = lowered(
        partial(loss, implementation=None), *arguments(4, 5, 64, "float32"), platforms=("cpu", "cuda", "tpu")
    )
    assert "@mosaic_gpu" in text and "stablehlo.while" in text


@SERVES
def test_an_export_holds_the_plain_loop():
    exported = jax.export.export(jax.jit(loss), platforms=["cpu", "cuda"])(*arguments(4, 5, 8, "float32"))
    assert "mosaic" not in exported.mlir_module()
    arrays = [
        jnp.asarray(np.random.default_rng(0).normal(size=a.shape), a.dtype) for a in arguments(4, 5, 8, "float32")
    ]
    np.testing.assert_allclose(exported.call(*arrays), loss(*arrays, implementation="xla"), rtol=1e-5)


@SERVES
def test_elsewhere_it_raises():
    with pytest.raises(
        InputError, match="implementation='resident' cannot serve this call: it runs only on NVIDIA GPUs"
    ):
        jax.jit(loss).lower(*arguments(4, 5, 8, "float32"))


@pytest.mark.skipif(VERSION >= plan.JAX, reason="this jax is not too old")
def test_with_an_older_jax_it_is_refused():
    with refused("it needs jax 0.11, and this is"):
        explain(implementation="resident")
