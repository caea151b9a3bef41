"""Which implementation runs, and why, and which programs it compiles to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from implementations import HERE
from jax import export
from refusals import refused

from grujax import GRUSpec, GRUWeights, gru
from grujax.kernels import explain, native, run
from grujax.kernels.derivative import WHOLE
from grujax.kernels.table import native_chunks, xla_chunks
from grujax.testing import assert_close
from grujax.types import Recurrence

RNG = np.random.default_rng(0)
NEEDS_LIBRARY = pytest.mark.skipif(native.status()[0] is None, reason=native.status()[1] or "there is a library")


@NEEDS_LIBRARY
def test_explain_says_what_runs_and_why():
    sizes = (128, 32, 512)
    found = explain(sizes=sizes, platform="cpu")
    assert (found.implementation, found.reason) == ("native", "the default on cpu: the fastest that was measured")
    for platform in ("gpu", "tpu"):
        assert explain(sizes=sizes, platform=platform).implementation == "xla"
        assert explain(platform=platform, spec=GRUSpec(False)).implementation == "xla"
        assert explain(platform=platform, spec=GRUSpec(layer_norm=True)).implementation == "autodiff"
    named = explain(implementation="autodiff")
    assert (named.implementation, named.reason) == ("autodiff", "named by the caller")
    assert str(named).startswith("autodiff: ") and "xla" in str(named) and named.reason in str(named)


REFUSALS = [  # spec, T, dtype, the implementation on CPU, part of the reason
    (GRUSpec(False, update="take"), 3, "bfloat16", "native", "the default on cpu"),
    (GRUSpec(), 0, "float64", "native", "the default on cpu"),
    (GRUSpec(activation="relu"), 3, "float32", "xla", "native cannot serve: it supports only tanh and sigmoid"),
    (
        GRUSpec(gate_activation="hard_sigmoid"),
        3,
        "float32",
        "xla",
        "native cannot serve: it supports only tanh and sigmoid",
    ),
    (GRUSpec(clip=3.0), 3, "float32", "xla", "native cannot serve: it supports only tanh and sigmoid, without clip"),
    (GRUSpec(), 3, "float16", "xla", "float32, float64 and bfloat16, not in float16"),
    (GRUSpec(), None, "float32", "xla", "native cannot serve: the sizes are not known at compile time"),
    (GRUSpec(layer_norm=True), 3, "float32", "autodiff", "native cannot serve: it has no layer normalisation; xla"),
]


@NEEDS_LIBRARY
@pytest.mark.parametrize(("spec", "n_steps", "dtype", "implementation", "why"), REFUSALS)
def test_the_first_that_can_serve_runs_and_the_reason_names_the_others(spec, n_steps, dtype, implementation, why):
    found = explain(spec=spec, sizes=(n_steps, 2, 3), dtype=dtype, platform="cpu")
    assert found.implementation == implementation and why in found.reason
    if implementation != "native" and n_steps is not None:
        with refused("implementation='native' cannot serve this call", "Pass None"):
            explain(spec=spec, dtype=dtype, implementation="native")


def weights_of(n_features, hidden_size, dtype=jnp.float32):
    columns = 3 * hidden_size
    return GRUWeights(
        *(jnp.ones(shape, dtype) for shape in ((n_features, columns), (hidden_size, columns), (columns,), (columns,)))
    )


def test_the_state_is_float32_at_least():
    (result,) = run([Recurrence(jnp.ones((3, 2, 4), jnp.bfloat16), weights_of(4, 5, jnp.bfloat16))])
    assert {a.dtype.name for a in result[:2]} == {"float32"}


def test_a_program_takes_the_loop_of_the_platform_that_it_is_for():
    """On CPU there are three products with the state, elsewhere one; no choice is left for run time."""
    traced = jax.jit(lambda x: run([Recurrence(x, weights_of(3, 16))], implementation="xla")).trace(
        jnp.ones((4, 8, 3), "f")
    )
    three, one = "(tensor<8x16xf32>, tensor<16x16xf32>) ->", "(tensor<8x16xf32>, tensor<16x48xf32>) ->"
    for platform, there, absent in (("cpu", three, one), ("cuda", one, three), ("tpu", one, three)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert there in text and absent not in text, platform
    assert "conditional(" not in traced.lower().compile().as_text()


@NEEDS_LIBRARY
def test_a_program_calls_the_native_kernel_on_cpu_alone():
    traced = jax.jit(lambda x: run([Recurrence(x, weights_of(3, 16))])).trace(jnp.ones((4, 8, 3), "f"))
    for platform, calls in (("cpu", 1), ("cuda", 0), ("tpu", 0)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (text.count("@grujax_forward("), text.count("stablehlo.while")) == (calls, 1 - calls), platform


@NEEDS_LIBRARY
@pytest.mark.parametrize("time_major", [False, True], ids=["batch-major", "time-major"])
def test_arrays_are_read_and_written_as_they_lie(time_major):
    x, weights = jnp.ones((24, 40, 8) if time_major else (40, 24, 8), jnp.float32), weights_of(8, 16)

    def loss(x):
        return gru(x, weights, implementation="native", time_major=time_major)[0].sum()

    assert "transpose" not in jax.jit(jax.grad(loss)).lower(x).as_text()


@pytest.mark.parametrize("shape", ["4, t, 8", "b, t, 8"])
@pytest.mark.parametrize("implementation", HERE)
def test_sizes_need_not_be_known(implementation, shape):
    x = jnp.asarray(RNG.normal(size=(4, 7, 8)))
    weights = GRUWeights(*(jnp.asarray(RNG.normal(size=size)) for size in ((8, 48), (16, 48), (48,), (48,))))
    program = jax.jit(lambda x: gru(x, weights, implementation=implementation))
    given = jax.ShapeDtypeStruct(export.symbolic_shape(shape), x.dtype)
    for found, expected in zip(
        export.export(program)(given).call(x), gru(x, weights, implementation="autodiff"), strict=True
    ):
        assert_close(found, expected)


@pytest.mark.parametrize(("backend", "kept"), [("gpu", False), ("tpu", True)])
def test_off_the_cpu_only_long_sequences_are_chunked_and_a_gpu_hands_out_no_gates(backend, kept):
    assert xla_chunks((256, 32, 256), backend) == xla_chunks((None, 32, 256), backend) == (None, kept)
    assert xla_chunks((2**16, 32, 64), backend) == (None, kept)
    assert xla_chunks((2**17, 32, 64), backend) == (2**13, False)


def test_gates_that_are_made_anew_are_not_kept_between_the_passes(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, weights = jnp.ones((16, 64, 4)), weights_of(4, 32, jnp.float64)
    _, backward = jax.vjp(lambda x: gru(x, weights, implementation="xla")[0], x)
    assert sum(a.size for a in jax.tree.leaves(backward)) < 2 * 64 * 16 * 32  # the states, the input, the weights


def test_long_sequences_are_differentiated_in_chunks():
    def chunks(*sizes):
        return xla_chunks(sizes, "cpu")

    assert chunks(64, 32, 128) == chunks(None, 32, 64) == (None, True)
    assert chunks(256, 32, 256) == (16, True)
    assert chunks(100, 128, 64) == (10, True)  # no remainder
    assert chunks(127, 128, 64) == (16, True)  # a prime: with a remainder
    long = chunks(2**14, 32, 64)
    assert long.steps is not None and 1 <= long.steps < 2**10 and not long.kept
    assert chunks(2, 2**12, 2**12) == (1, False)
    assert native_chunks((2**14, 32, 64), "cpu") == native_chunks((None, 32, 64), "cpu") == WHOLE
    assert native_chunks((2**15, 32, 64), "cpu") == (2**10, False)
    assert native_chunks((1, 2**14, 2**12), "cpu") == WHOLE  # one step cannot be divided
