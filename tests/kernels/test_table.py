"""Which implementation runs, and why; which programs it becomes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from grujax import GRUSpec, GRUWeights, gru
from grujax.kernels import explain, run
from grujax.kernels.table import KERNELS, chunks_of
from grujax.testing import assert_close, assert_trees_close
from grujax.types import Control, Recurrence

T = 6
RNG = np.random.default_rng(0)
IN_PLACE = ["joint", "halves"]


def test_explain_says_what_runs_and_why():
    assert explain().implementation == "xla" and "default" in explain().reason
    wide = {"sizes": (128, 32, 512)}
    assert explain(platform="cpu").implementation == "xla"
    for platform in ("gpu", "tpu"):
        assert explain(**wide, platform=platform).implementation == "xla"
        assert explain(platform=platform, spec=GRUSpec(False)).implementation == "xla"
        assert explain(platform=platform, spec=GRUSpec(layer_norm=True)).implementation == "autodiff"
    before = explain(**wide, platform="cpu", spec=GRUSpec(False))
    assert before.implementation == "xla" and before.reason.startswith("columns cannot serve")
    named = explain(implementation="autodiff")
    assert (named.implementation, named.reason) == ("autodiff", "named by the caller")
    assert str(named).startswith("autodiff: ") and "xla" in str(named) and named.reason in str(named)


CHOSEN = {  # (T, B, H) on CPU: at the edges of every region of the table, and just outside
    "brief": [(1, 1, 64), (2, 1, 64), (2, 2048, 2048)],
    "joint": [(128, 1024, 128), (16, 513, 511)],
    "halves": [(26, 32, 128), (26, 8, 256), (26, 64, 511), (26, 270, 64), (26, 256, 127)],
    "columns": [(128, 32, 512), (512, 128, 128), (26, 64, 512), (26, 8, 512), (2048, 512, 4), (2048, 8, 256 + 1)],
    "xla": [
        *[(0, 1, 64), (3, 1, 64), (26, 8, 128), (26, 1, 256), (26, 128, 256), (26, 128, 64), (128, 1, 512)],
        *[(26, 513, 64), (26, 65, 512), (26, 7, 512), (None, None, None)],
    ],
}


@pytest.mark.parametrize("implementation", CHOSEN)
def test_the_regions_of_the_table_and_their_edges(implementation):
    for sizes in CHOSEN[implementation]:
        assert explain(sizes=sizes, platform="cpu").implementation == implementation, sizes


def weights_of(n_features, hidden_size, dtype=jnp.float32):
    columns = 3 * hidden_size
    return GRUWeights(
        *(jnp.ones(shape, dtype) for shape in ((n_features, columns), (hidden_size, columns), (columns,), (columns,)))
    )


def test_the_state_is_float32_at_least():
    (result,) = run([Recurrence(jnp.ones((3, 2, 4), jnp.bfloat16), weights_of(4, 5, jnp.bfloat16))])
    assert {a.dtype.name for a in result[:2]} == {"float32"}


def test_a_program_takes_the_loop_of_the_platform_that_it_is_for():
    """On CPU the columns, W (3H, H) times h (H, B), elsewhere the rows, one product for all gates; nothing is left to
    choose at run time."""
    weights = weights_of(3, 512)
    traced = jax.jit(lambda x: run([Recurrence(x, weights)])).trace(jnp.ones((4, 8, 3), jnp.float32))
    columns, rows = "(tensor<1536x512xf32>, tensor<512x8xf32>) ->", "(tensor<8x512xf32>, tensor<512x1536xf32>) ->"
    for platform, there, absent in (("cpu", columns, rows), ("cuda", rows, columns), ("tpu", rows, columns)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert there in text and absent not in text, platform
    assert "conditional(" not in traced.lower().compile().as_text()


@pytest.mark.parametrize("time_major", [False, True], ids=["batch-major", "time-major"])
@pytest.mark.parametrize("implementation", IN_PLACE)
def test_arrays_are_read_and_written_as_they_lie(implementation, time_major):
    x = jnp.ones((24, 40, 8) if time_major else (40, 24, 8), jnp.float32)
    weights = weights_of(8, 16)
    program = jax.jit(lambda x: gru(x, weights, implementation=implementation, time_major=time_major)[0])
    assert " transpose(" not in program.lower(x).compile().as_text()


@pytest.mark.parametrize("implementation", IN_PLACE)
@pytest.mark.parametrize("steps", ["all", "valid, resets", "mask, hold"])
def test_batch_major_arrays_give_what_time_major_ones_give(steps, implementation):
    """Values, and both modes of the derivative, against the loop that JAX differentiates; an odd number of rows."""
    n_rows, width = 5, 3
    arrays = {"x": (n_rows, T, 2), "w_ih": (2, 9), "w_hh": (3, 9), "b_ih": (9,), "b_hh": (9,), "h0": (n_rows, 3)}
    primals = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in arrays.items()}
    tangents = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in arrays.items()}
    control = {
        "all": Control(),
        "valid, resets": Control(*(jnp.asarray(RNG.random((T, n_rows)) < 0.6) for _ in range(2)), jnp.ones(width)),
        "mask, hold": Control(
            state_mask=jnp.asarray(RNG.random((n_rows, width))), hold=jnp.asarray(RNG.random((T, n_rows, width)))
        ),
    }[steps]

    def outputs(given, name, time_major):
        weights = GRUWeights(*(given[n] for n in ("w_ih", "w_hh", "b_ih", "b_hh")))
        x = given["x"].swapaxes(0, 1) if time_major else given["x"]
        recurrence = Recurrence(x, weights, given["h0"], control)
        (result,) = run([recurrence], implementation=name, time_major=time_major)
        return result.hs.swapaxes(0, 1) if time_major else result.hs, result.h_last

    def all_of(name, time_major):
        of = partial(outputs, name=name, time_major=time_major)
        loss = lambda given: sum(jnp.sin(a).sum() for a in of(given))  # noqa: E731
        return of(primals), jax.jvp(of, (primals,), (tangents,))[1], jax.grad(loss)(primals)

    assert_trees_close(jax.jit(all_of, static_argnums=(0, 1))(implementation, False), all_of("autodiff", True))


@pytest.mark.parametrize("implementation", IN_PLACE)
def test_where_a_derivative_is_wanted_the_states_are_written_time_major(implementation):
    """The rule reads them so; were they not, they would be turned round once more."""
    x = jnp.ones((40, 24, 8), jnp.float32)
    weights = weights_of(8, 16)
    program = jax.jit(lambda x: gru(x, weights, implementation=implementation)[0].sum())
    written = r"dynamic_update_slice .*: \(tensor<{}xf32>"
    forward, gradient = program.lower(x).as_text(), jax.jit(jax.grad(program)).lower(x).as_text()
    for text, shape, other in ((forward, "40x24x16", "24x40x16"), (gradient, "24x40x16", "40x24x16")):
        assert re.search(written.format(shape), text) and not re.search(written.format(other), text)


@pytest.mark.parametrize("shape", ["4, t, 8", "b, t, 8"])
@pytest.mark.parametrize("implementation", KERNELS)
def test_sizes_need_not_be_known(implementation, shape):
    x = jnp.asarray(RNG.normal(size=(4, 7, 8)))
    weights = GRUWeights(*(jnp.asarray(RNG.normal(size=size)) for size in ((8, 48), (16, 48), (48,), (48,))))
    program = jax.jit(lambda x: gru(x, weights, implementation=implementation))
    given = jax.ShapeDtypeStruct(export.symbolic_shape(shape), x.dtype)
    for found, expected in zip(
        export.export(program)(given).call(x), gru(x, weights, implementation="autodiff"), strict=True
    ):
        assert_close(found, expected)


def test_rows_that_are_split_among_devices_are_not_halved():
    x, h0, weights = jnp.ones((3, 32, 4), jnp.float32), jnp.ones((32, 128), jnp.float32), weights_of(4, 128)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))

    def program(x, h0):
        program = jax.jit(lambda x, h0: run([Recurrence(x, weights, h0)]))
        return program.trace(x, h0).lower(lowering_platforms=("cpu",)).as_text()

    assert "tensor<16x128xf32>" in program(x, h0)
    with jax.set_mesh(mesh):
        split = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in ((x, P(None, "data")), (h0, P("data")))]
        assert "tensor<16x128xf32>" not in program(*split)


@pytest.mark.parametrize(("backend", "kept"), [("gpu", False), ("tpu", True)])
def test_off_the_cpu_only_long_sequences_are_chunked_and_a_gpu_hands_out_no_gates(backend, kept):
    assert chunks_of((256, 32, 256), backend) == chunks_of((None, 32, 256), backend) == (None, kept)
    assert chunks_of((2**14, 32, 64), backend) == (128, False)


def test_gates_that_are_made_anew_are_not_kept_between_the_passes(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, weights = jnp.ones((16, 64, 4)), weights_of(4, 32, jnp.float64)
    _, backward = jax.vjp(lambda x: gru(x, weights, implementation="xla")[0], x)
    assert sum(a.size for a in jax.tree.leaves(backward)) < 2 * 64 * 16 * 32  # the states, the input, the weights


def test_long_sequences_are_differentiated_in_chunks():
    def chunks(*sizes):
        return chunks_of(sizes, "cpu")

    assert chunks(64, 32, 128) == chunks(None, 32, 64) == (None, True)
    assert chunks(256, 32, 256) == (16, True)
    assert chunks(100, 128, 64) == (10, True)  # no rest
    assert chunks(127, 128, 64) == (16, True)  # a prime: with a rest
    long = chunks(2**14, 32, 64)
    assert long.steps is not None and 1 <= long.steps < 2**10 and not long.kept
    assert chunks(2, 2**12, 2**12) == (1, False)
