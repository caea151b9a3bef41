"""The native kernel beyond the contract: instruction sets, exactness, transformations, threads, refusals.

Run as a program, this file tests the instruction set of its process: it runs the given cases of the contract, or a few.
"""

import ctypes
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import jax
import jax.numpy as jnp
import numerics  # noqa: F401
import numpy as np
import pytest
from drawn import drawn

from grujax import GRUSpec, GRUWeights, InputError, equations, kernels
from grujax.interop.stablehlo import to_stablehlo
from grujax.kernels import native
from grujax.kernels.derivative import Chunks
from grujax.kernels.native import build
from grujax.kernels.table import KERNELS, Asked
from grujax.linen import GRU
from grujax.testing import CASES, assert_close, assert_serves, assert_trees_close
from grujax.testing.contract import draw
from grujax.types import Control, Recurrence

run = partial(kernels.run, implementation="native")
needs_library = pytest.mark.skipif(native.status()[0] is None, reason=native.status()[1] or "there is a library")
RNG = np.random.default_rng(0)


def normal(*shape, dtype="float64"):
    return RNG.normal(size=shape).astype(jnp.dtype(dtype))  # NumPy compiles nothing


def program(code, *arguments, **env):
    """Runs Python in a separate process, and returns the lines of its output."""
    env = os.environ | {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"} | env
    command = [sys.executable, "-W", "error", *code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


# Instruction sets

SERVED = [
    name
    for name, case in CASES.items()
    if KERNELS["native"].refuses(Asked(case.spec, case.dtype, (1, 1, 1), frozenset())) is None
]
MOVED = ["few", "33 units, 65 rows", "one row", "bfloat16, odd"]
FEW = ["few", "33 units, 65 rows", "bfloat16, odd"]  # all sets share the source: whole and partial tiles, pairs
MANY = ["15 units", *MOVED, "threads, columns, Cho", "bfloat16, threads", "16 units", "17 units"]
"""Both values of `reset_after` and `update`, each way to divide work and to process rows, partial and whole vectors."""
IN_USE, _ = native.status()
CHOSEN = (
    "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).grujax_instruction_set; f.restype = ctypes.c_char_p; print(f())"
)
"""Prints the instruction set that a library uses, without importing JAX."""


@needs_library
@pytest.mark.parametrize(
    ("instructions", "cases", "numbers"),
    # test_contract.py and the tests below test the set in use, in this process
    [
        pytest.param(name, [], 17, marks=[pytest.mark.slow] * (name == IN_USE), id=f"{name}-few")
        for name in build.INSTRUCTION_SETS
    ]
    + [pytest.param(name, SERVED, 21, marks=pytest.mark.slow, id=f"{name}-all") for name in build.INSTRUCTION_SETS],
)
def test_each_instruction_set_passes_the_contract_and_is_exact(instructions, cases, numbers):
    if program(["-c", CHOSEN, native.library()._name], GRUJAX_NATIVE_ISA=instructions) != [str(instructions.encode())]:
        pytest.skip(f"this processor or this library has no {instructions}")
    found, *passed = program([__file__], str(numbers), *cases, GRUJAX_NATIVE_ISA=instructions)
    assert found == instructions and passed == ["activations", *(cases or FEW)]


# Tiles of 8 rows, and products of pairs of bfloat16, whose operands have a layout of their own
WIDE = ["few", "33 units, 65 rows", "few, bfloat16", "few, bfloat16, part", "bfloat16, odd", "bfloat16, Cho"]
WIDE += ["bfloat16, one row", "bfloat16, threads"]


@needs_library
@pytest.mark.skipif(build.missing() is not None, reason=build.missing() or "there is a compiler")
@pytest.mark.parametrize(
    "cases",  # if the processor has these instructions, test_contract.py tests them
    [
        pytest.param(WIDE, marks=[pytest.mark.slow] * (IN_USE == "avx512bf16")),
        pytest.param(SERVED, marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_what_only_avx512_runs_is_right_in_plain_code(cases, tmp_path):
    library = tmp_path / "_gru.so"
    assert build.build(library, build.EMULATED, "-O0") == ["emulated"]  # compiled in a third of the time
    found, *passed = program([__file__], "13", *cases, GRUJAX_NATIVE_LIBRARY=str(library))
    assert found == "emulated" and passed == ["activations", *cases]


def assert_forward_mode(case):
    """Compares hs, h_last and their tangents, for x, h0, the weights and h_reset, with a plain scan in float64."""
    case, rng = CASES[case], np.random.default_rng(0)
    drawn, moved = ([draw(case, rng) for _ in case.reverse] for _ in range(2))
    for of, d_of in zip(drawn, moved, strict=True):
        d_of.x[:] = np.where(np.isnan(of.x), np.nan, np.nan_to_num(d_of.x))

    def of(given, implementation, dtype):
        def f(moving):
            recurrences = [
                Recurrence(
                    lie(arrays["x"]),
                    GRUWeights(**arrays["weights"]),
                    arrays["h0"],
                    Control(**of.control | {"h_reset": arrays["h_reset"]}),
                )
                for arrays, of in zip(moving, drawn, strict=True)
            ]
            recurrences = jax.tree.map(lambda a: a if a.dtype == bool else jnp.asarray(a, dtype), recurrences)
            spec, way = case.spec._replace(precision="highest"), case.reverse
            results = kernels.run(recurrences, spec, implementation, reverse=way, time_major=case.time_major)
            return [a for result in results for a in (result.hs, result.h_last)]

        return jax.jit(lambda given, moved: jax.jvp(f, (given,), (moved,)))(*given)

    def lie(x):
        return x if case.time_major else x.swapaxes(0, 1)

    arrays = [
        [{"x": a.x, "h0": a.h0, "weights": a.weights, "h_reset": a.control.get("h_reset")} for a in every]
        for every in (drawn, moved)
    ]
    found, expected = of(arrays, "native", case.dtype), of(arrays, "autodiff", "float64")
    assert_trees_close(found, expected, "gradient", case.dtype)


def main(numbers="17", *cases):
    print(IN_USE)
    if IN_USE is not None:
        assert_activations_are_exact(int(numbers))
        print("activations")
        for case in cases or FEW:
            assert_serves(run, CASES[case])
            if case in MOVED or len(cases) == len(SERVED):
                assert_forward_mode(case)
            print(case, flush=True)


def activations(x):
    """sigmoid and tanh of the library."""
    found = np.empty_like(x), np.empty_like(x)
    of = getattr(native.library(), f"grujax_{'float' if x.dtype == np.float32 else 'double'}_activations")
    of(*(ctypes.c_void_p(a.ctypes.data) for a in (x, *found)), ctypes.c_long(len(x)))
    return found


def assert_activations_are_exact(numbers):
    """Checks 2**numbers values spread over all bit patterns of the dtype, and as many near 0."""
    for dtype in (np.float32, np.float64):
        bits = np.dtype(f"u{np.dtype(dtype).itemsize}").type
        everywhere = (np.arange(2**numbers, dtype=bits) * bits((2 ** (8 * bits().itemsize) >> numbers) | 1)).view(dtype)
        near = [np.linspace(-n, n, 2 ** (numbers - 2) + 1).astype(dtype) for n in (0.01, 2, 25, 800)]
        x = np.concatenate([everywhere[np.isfinite(everywhere)], *near])
        wide = x.astype(np.longdouble)
        with np.errstate(all="ignore"):
            e = np.exp(-np.abs(wide))
            expected = np.where(wide >= 0, 1, e) / (1 + e), np.tanh(wide)
        for name, found, right in zip(("sigmoid", "tanh"), activations(x), expected, strict=True):
            ulp = np.abs(found - right) / np.spacing(np.abs(right).astype(dtype))
            least = (np.abs(right) < 1.01 * np.finfo(dtype).tiny) & (found == 0)  # smaller results become 0
            worst = np.argmax(np.where(least, 0, ulp))
            assert least[worst] or ulp[worst] <= 3, f"{name} of {x[worst]!r} ({dtype.__name__}): {ulp[worst]} ulp"
        sigmoids, tanhs = activations(np.array([0, np.inf, -np.inf, 1e30, -1e30, np.nan], dtype))
        np.testing.assert_array_equal(sigmoids, [0.5, 1, 0, 1, 0, np.nan])
        np.testing.assert_array_equal(tanhs, [0, 1, -1, 1, -1, np.nan])


@needs_library
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name in MANY else pytest.mark.slow) for name in SERVED]
)
def test_forward_mode_gives_the_tangents_of_a_plain_scan(case):
    assert_forward_mode(case)


@needs_library
def test_sigmoid_and_tanh_are_exact_to_three_units_in_the_last_place():
    assert_activations_are_exact(numbers=19)


# Transformations, both directions at once, with lengths and resets; core/test_sharding.py tests several devices

T, B, I, H = 5, 4, 3, 6
SHAPES = {"h0": (B, H), "w_ih": (I, 3 * H), "w_hh": (H, 3 * H), "b_ih": (3 * H,), "b_hh": (3 * H,), "h_reset": (H,)}
POINT = {"x": normal(T, B, I)} | {name: normal(2, *shape) for name, shape in SHAPES.items()}
TANGENT = {name: normal(*a.shape) for name, a in POINT.items()}
VALID = jax.device_put(np.arange(T)[:, None] < np.array([5, 3, 0, 2]))
RESET = jax.device_put(RNG.random((T, B)) < 0.4)
WEIGH = normal(T, B, H)


def outputs(implementation, run=kernels.run, reverse=(False, True)):
    """Returns a function: (arrays, valid steps, resets) -> hs and h_last of each direction."""

    def f(p, valid=VALID, reset=RESET):
        recurrences = [
            Recurrence(
                p["x"],
                GRUWeights(*(p[name][d] for name in ("w_ih", "w_hh", "b_ih", "b_hh"))),
                p["h0"][d],
                Control(valid, reset, p["h_reset"][d]),
            )
            for d in range(len(reverse))
        ]
        results = run(recurrences, GRUSpec(), implementation, reverse=reverse)
        return [a for result in results for a in (result.hs, result.h_last)]

    return f


def loss(f):
    def scalar(p, *steps):
        return sum(
            (jnp.sin(a) * (i + jnp.cos(jnp.arange(a.size)).reshape(a.shape))).sum() for i, a in enumerate(f(p, *steps))
        )

    return scalar


def of(f, **some):
    """Calls `f` with some of the arrays; the others are those of POINT."""
    return f(POINT | some)


def dot(tree):
    return sum(jnp.vdot(tree[name], TANGENT[name]) for name in tree)


def stacked(name, axis=0):
    return jnp.stack([POINT[name], 2 * POINT[name] + 1], axis)


def of_a_row(f, x, h0, valid, reset):
    row = {"x": x[:, None], "h0": h0[:, None]}
    return jax.grad(lambda w: loss(f)(POINT | row | {"w_hh": w}, valid[:, None], reset[:, None]))(POINT["w_hh"])


TRANSFORMATIONS = {
    "jit": lambda f: f(POINT),
    "grad": lambda f: jax.grad(loss(f))(POINT),
    "grad of weights alone": lambda f: jax.grad(lambda w: of(loss(f), w_ih=w))(POINT["w_ih"]),
    "jvp": lambda f: jax.jvp(f, (POINT,), (TANGENT,)),
    "linearize": lambda f: jax.linearize(f, POINT)[1](TANGENT),
    "jvp of what is linear": lambda f: jax.jvp(jax.linearize(f, POINT)[1], (TANGENT,), (POINT,)),
    "jacfwd": lambda f: jax.jacfwd(lambda h: of(f, h0=h))(POINT["h0"]),
    "jacrev": lambda f: jax.jacrev(lambda h: of(f, h_reset=h))(POINT["h_reset"]),
    "vmap over inputs": lambda f: jax.vmap(lambda x: of(f, x=x), 1)(stacked("x", 1)),
    "vmap over steps": lambda f: jax.vmap(lambda valid: f(POINT, valid))(jnp.stack([VALID, ~VALID])),
    "vmap over weights": lambda f: jax.vmap(lambda w: of(f, w_hh=w))(stacked("w_hh")),
    "vmap of gradients": lambda f: jax.vmap(jax.grad(lambda x: of(loss(f), x=x)))(stacked("x")),
    "vmap of gradients over weights": lambda f: jax.vmap(jax.grad(lambda w: of(loss(f), w_hh=w)))(stacked("w_hh")),
    "gradients of each row": lambda f: jax.vmap(partial(of_a_row, f), 1)(POINT["x"], POINT["h0"], VALID, RESET),
    "forward over reverse": lambda f: jax.jvp(jax.grad(loss(f)), (POINT,), (TANGENT,))[1],
    "reverse over reverse": lambda f: jax.grad(lambda p: dot(jax.grad(loss(f))(p)))(POINT),
    "reverse over forward": lambda f: jax.grad(lambda p: jax.jvp(loss(f), (p,), (TANGENT,))[1])(POINT),
    "hessian": lambda f: jax.hessian(lambda h: of(loss(f), h0=h))(POINT["h0"]),
    "remat": lambda f: jax.grad(jax.checkpoint(loss(f)))(POINT),
    "scan": lambda f: jax.grad(
        lambda h: jax.lax.scan(lambda h, _: (jnp.stack(of(f, h0=h)[1::2]), None), h, length=3)[0].sum()
    )(POINT["h0"]),
}


EQUALS = {
    "reverse over reverse": "forward over reverse",
    "reverse over forward": "forward over reverse",
    "remat": "grad",
}
"""Transformations that must give the values of another one."""
INSIDE = {
    "jit": "test_contract.py",
    "grad": "test_contract.py",
    "grad of weights alone": "vmap of gradients over weights",
    "linearize": "jvp of what is linear",
    "vmap over inputs": "gradients of each row",
    "vmap over weights": "vmap of gradients over weights",
    "vmap of gradients": "gradients of each row",
    "reverse over forward": "reverse over reverse",
    "hessian": "jacrev, and forward over reverse",
    "scan": "scan, of chunks",
}
"""Slow transformations, and the test that covers what they do."""


def of_a_loop(name, implementation):
    """Runs a transformation; second derivatives in one direction only, which halves the time. Chunks test both."""
    reverse = (True,) if " over re" in name or name in ("hessian", "reverse over forward") else (False, True)
    return jax.jit(lambda: TRANSFORMATIONS[name](outputs(implementation, reverse=reverse)))()


of_the_plain_loop = cache(partial(of_a_loop, implementation="xla"))


@needs_library
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in INSIDE)) for name in TRANSFORMATIONS]
)
def test_a_transformation_gives_what_it_gives_of_the_plain_loop(name):
    found, expected = of_a_loop(name, "native"), of_the_plain_loop(EQUALS.get(name, name))
    assert all(np.asarray(a).any() for a in jax.tree.leaves(expected)), "zero proves nothing"
    assert_trees_close(found, expected, "gradient")


# The derivative of long sequences, in chunks of steps


def run_in_chunks(recurrences, spec, implementation="native", *, reverse, with_gates=False, time_major=True):
    options = {"reverse": reverse, "with_gates": with_gates, "time_major": time_major}
    return KERNELS[implementation].program(recurrences, spec, chunks=Chunks(2, kept=False), **options)


@needs_library
@pytest.mark.parametrize(
    "case", ["few", "17 units", "16 units", "one row", "bfloat16", "no steps", "Cho, take", "threads, columns, Cho"]
)
def test_chunks_pass_the_contract(case):
    """Some cases run all steps at once: those that return the gates, or read resets backwards."""
    assert_serves(run_in_chunks, CASES[case])


@needs_library
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("grad", marks=pytest.mark.slow),  # in test_chunks_pass_the_contract
        pytest.param("forward over reverse", marks=pytest.mark.slow),  # above, and for chunks in test_derivative.py
        *("jvp", "vmap over steps", "vmap of gradients over weights", "scan"),
    ],
)
def test_a_transformation_of_chunks_gives_what_it_gives_of_the_plain_loop(name):
    of_chunks, plain = (partial(f, reset=None) for f in (outputs("native", run_in_chunks), outputs("xla")))
    found, expected = (jax.jit(lambda f=f: TRANSFORMATIONS[name](f))() for f in (of_chunks, plain))
    assert_trees_close(found, expected, "gradient")


@needs_library
def test_a_long_sequence_keeps_one_chunk_of_gates():
    """Compiled but not run: the gates take 1 GB, of which one chunk of 34 MB exists at a time."""
    T, B, I, H = 2**15, 32, 32, 64
    shapes = [(T, B, I), (I, 3 * H), (H, 3 * H)]

    def loss(x, w_ih, w_hh):
        (result,) = run([Recurrence(x, GRUWeights(w_ih, w_hh, None, None), None, Control())], GRUSpec())
        return (result.hs**2).sum()

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    kept = jax.jit(jax.grad(loss, argnums=(1, 2))).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    assert kept < 4 * T * B * (2 * I + 5 * H), "x, dx, hs, its gradient, their chunks; 4 H more with the gates"


@needs_library
def test_a_gradient_is_two_calls_and_no_loop():
    text = jax.jit(jax.grad(loss(outputs("native")))).lower(POINT).as_text()
    assert [text.count(f"@{target}(") for target in native.TARGETS] == [1, 0, 1]
    assert text.count("custom_call") == 2 and "stablehlo.while" not in text
    again = jax.jit(lambda: outputs("native")(POINT)).lower().as_text()
    assert [again.count(f"@{target}(") for target in native.TARGETS] == [1, 0, 0]
    forward = jax.jit(lambda: jax.jvp(outputs("native"), (POINT,), (TANGENT,))).lower().as_text()
    assert [forward.count(f"@{target}(") for target in native.TARGETS] == [1, 2, 0], "a call for each direction"


@needs_library
def test_the_gradient_of_x_is_computed_where_it_is_asked_for_alone():
    """The first layer needs none in training, and its product takes up to a quarter of the backward pass."""
    for name, count in {"x": 0, "w_ih": 2}.items():
        text = (
            jax.jit(jax.grad(lambda a, name=name: of(loss(outputs("native")), **{name: a})))
            .lower(POINT[name])
            .as_text()
        )
        (call,) = re.findall(rf"@{native.TARGETS[2]}\(.*->(.*)", text)
        assert call.count("tensor<0xf64>") == count, call


@needs_library
def test_a_tangent_that_is_zero_costs_no_products():
    """Per direction dx has two products, x two and the states one; the product with dh is inside the kernel."""
    for names, count in ((("h0",), 0), (("x",), 4), (tuple(POINT), 10)):
        point, moved = ({name: every[name] for name in names} for every in (POINT, TANGENT))
        tangent = jax.jit(lambda p, t: jax.jvp(lambda p: of(outputs("native"), **p), (p,), (t,))[1])
        assert tangent.lower(point, moved).as_text().count("stablehlo.dot_general") == count, names


@needs_library
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_named_it_is_refused_where_a_program_for_another_platform_is_made(platform):
    def hs(x, implementation):
        weights = GRUWeights(jnp.ones((4, 9)), jnp.ones((3, 9)))
        return kernels.run([Recurrence(x, weights)], implementation=implementation)[0].hs

    def text(implementation):
        traced = jax.jit(partial(hs, implementation=implementation)).trace(jnp.ones((5, 2, 4)))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    with pytest.raises(InputError, match="it runs only on CPU"):
        text("native")
    assert "grujax_forward" not in text(None)
    exported = jax.export.export(jax.jit(partial(hs, implementation="native")), platforms=("cpu", platform))
    assert "custom_call" not in exported(jnp.ones((5, 2, 4))).mlir_module()


def test_an_exported_program_holds_the_plain_loop():
    rows = jax.export.symbolic_shape("b")[0]
    symbolic = {"x": (T, rows, I), "h0": (2, rows, H)}
    given = {name: jax.ShapeDtypeStruct(symbolic.get(name, a.shape), a.dtype) for name, a in POINT.items()}
    steps = jax.ShapeDtypeStruct((T, rows), bool)
    for of_sizes in ((POINT, VALID, RESET), (given, steps, steps)):
        text = jax.export.export(jax.jit(jax.grad(loss(outputs("native")))))(*of_sizes).mlir_module()
        assert "@grujax" not in text and "stablehlo.while" in text
    layer = GRU(H, bidirectional=True)
    variables = drawn(layer, np.ones((B, T, I), "f"))
    text = jax.export.deserialize(bytearray(to_stablehlo(layer, variables))).mlir_module()
    assert "grujax_" not in text and "stablehlo.while" in text


# Numbers


@needs_library
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_is_not_finite_goes_where_it_goes_in_the_oracle(dtype, reset_after, value):
    """The value is in a row in the middle of a tile. The sizes are odd: the last vectors are padded with zeros."""
    rows, units, features = 11, 19, 3
    x = np.array(normal(T, rows, features, dtype=dtype).astype(float))
    x[2, 5, 1], shapes = value, [(features, 3 * units), (units, 3 * units), (3 * units,), (3 * units,)]
    weights, h0, dhs = [normal(*s, dtype=dtype) / 4 for s in shapes], normal(rows, units), normal(T, rows, units)
    spec, wide = GRUSpec(reset_after), [np.asarray(w.astype(float)) for w in weights]

    def scalar(x, h0):
        (result,) = run([Recurrence(x, GRUWeights(*weights), h0)], spec)
        return (result.hs * dhs.astype(result.hs.dtype)).sum(), result.hs

    (dx, dh0), hs = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(jnp.asarray(x, dtype), h0)
    with np.errstate(all="ignore"):
        given = (x, np.asarray(h0), *wide)
        variant = equations.Variant(reset_after)
        expected = equations.sequence(*given, variant=variant).hs
        right = equations.sequence_backward(
            *given, dhs=np.asarray(dhs), dh_last=np.zeros((rows, units)), variant=variant
        )
    for name, a, b in (("hs", hs, expected), ("dx", dx, right.x), ("dh0", dh0, right.h0)):
        np.testing.assert_array_equal(np.isnan(a.astype(float)), np.isnan(b), name)
    assert np.isnan(expected).any() == np.isnan(value) and np.isfinite(np.delete(hs, 5, 1)).all()
    assert_close(jnp.nan_to_num(hs), np.nan_to_num(expected), dtype=dtype)


@cache
def compiled(sizes, reverse=(False, True)):
    """A compiled function for values and gradients in float32, and a function that draws its arguments."""
    n_steps, n_rows, n_features, units = sizes

    def draw(seed):
        rng = np.random.default_rng(seed)
        shapes = [(n_features, 3 * units), (units, 3 * units), (3 * units,), (3 * units,)]
        weights = [rng.normal(size=s, scale=0.3).astype("f") for s in shapes]
        return rng.normal(size=(n_steps, n_rows, n_features)).astype("f"), weights, rng.random((n_steps, n_rows)) < 0.8

    def both(x, weights, valid):
        results = run([Recurrence(x, GRUWeights(*weights), None, Control(valid))] * len(reverse), reverse=reverse)
        return sum((a**2).sum() for result in results for a in result[:2]), results

    return jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True)), draw


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


LARGE = {"rows": ((30, 17, 17, 33),), "columns": ((60, 9, 17, 49), (False,)), "one row": ((400, 1, 17, 49), (False,))}


@needs_library
@pytest.mark.parametrize("shared_by", LARGE)
def test_every_call_gives_the_same_bits(shared_by):
    f, draw = compiled(*LARGE[shared_by])
    first = jax.block_until_ready(f(*draw(0)))
    for _ in range(50):
        same(f(*draw(0)), first)


# Threads and processes


@needs_library
def test_a_hundred_threads_may_call_at_once():
    made = [compiled(*of) for of in LARGE.values()] + [compiled((3, 2, 3, 16))]
    work = [(f, draw(seed)) for seed in range(5) for f, draw in made]
    expected = [jax.block_until_ready(f(*given)) for f, given in work]
    with ThreadPoolExecutor(100) as pool:
        for found, right in zip(
            pool.map(lambda i: work[i % 20][0](*work[i % 20][1]), range(400)), expected * 20, strict=True
        ):
            same(found, right)


@needs_library
def test_a_process_that_is_spawned_may_call():
    child = multiprocessing.get_context("spawn").Process(target=assert_serves, args=(run, CASES["17 units"]))
    child.start()
    child.join(300)
    assert child.exitcode == 0


# Refusals


def arguments(target, sizes=(3, 2, 5, 4), directions=1):
    """Arrays and results that a handler accepts, with all that is optional."""
    n_steps, n_rows, n_features, units = sizes
    x, state, steps, columns = (n_steps, n_rows, n_features), (n_rows, units), (n_steps, n_rows), 3 * units
    hs, weights = (*steps, units), [(n_features, columns), (units, columns), (columns,), (columns,), (units,)]
    arrays = [np.ones(s, "f") for s in (x, state, *weights)]  # NumPy compiles nothing
    arrays += [np.ones(steps, bool)] * 2 + [np.ones(s, "f") for s in (state, hs)]
    results = [hs, state]
    if target == "grujax_tangent":
        source, gates = (*steps, columns), (*steps, 4 * units)
        arrays[:6] = [np.ones(s, "f") for s in (hs, state, source, (units, columns), hs, gates)]
    if target == "grujax_backward":
        arrays += [np.ones(s, "f") for s in (hs, (*steps, 4 * units), hs, state)]
        results = [x, state, *weights]
    return arrays * directions, [jax.ShapeDtypeStruct(s, jnp.float32) for s in results] * directions


def handed(target, arrays, results, directions=1, **options):
    options = {
        "reverse": np.int64(0),
        "time_major": True,
        "reset_after": True,
        "keep": True,
        "with_saved": False,
    } | options
    return jax.block_until_ready(jax.ffi.ffi_call(target, results)(*arrays, directions=np.int64(directions), **options))


def broken(target, every):
    """Yields calls that every handler must refuse: what is wrong, arrays, results, directions.

    One function checks all shapes and dtypes. So without `every`, each array has each axis longer once, and one of the
    other faults, which alternate.
    """
    arrays, results = arguments(target)
    unread = (4, 5) if target == "grujax_backward" else ()  # the biases
    for i, a in enumerate(arrays):
        if i in unread:
            continue
        changed = {
            f"axis {axis} longer": np.ones(np.add(a.shape, np.eye(a.ndim, dtype=int)[axis]), a.dtype)
            for axis in range(a.ndim)
        }
        others = {"one axis more": a[None], "a scalar": a.ravel()[0], "int32": a.astype(np.int32)}
        changed |= others if every else dict([[*others.items()][i % 3]])
        for what, other in changed.items():
            yield f"argument {i}: {what}", [*arrays[:i], other, *arrays[i + 1 :]], results, 1
    for i, a in enumerate(results):
        others = a.update(shape=(*a.shape[:-1], a.shape[-1] - 1)), a.update(dtype=jnp.dtype("float64"))
        for other in others if every or i == 0 else others[:1]:
            yield f"result {i}: {other}", arrays, [*results[:i], other, *results[i + 1 :]], 1
    yield "an array less", arrays[:-1], results, 1
    yield "an array more", [*arrays, arrays[0]], results, 1
    yield "a result less", arrays, results[:-1], 1
    yield "no arrays", [], results, 1
    for directions in (-1, 0, 2):
        yield f"{directions} directions", arrays, results, directions
    other_sizes = [(4, 2, 5, 4), (3, 7, 5, 4), (3, 2, 5, 40)]
    for sizes in other_sizes if target == "grujax_tangent" else [*other_sizes, (3, 2, 9, 4)]:  # it has no x
        for (a, of_a), (b, of_b) in (
            (arguments(target), arguments(target, sizes)),
            (arguments(target, sizes), arguments(target)),
        ):
            yield f"directions of other sizes: {sizes}", [*a, *b], [*of_a, *of_b], 2


@pytest.fixture
def whole_tracebacks():
    """Switches JAX's filtering of tracebacks off, which takes longer than the call."""
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", "auto")


@needs_library
@pytest.mark.usefixtures("whole_tracebacks")
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["by turns", "every"])
@pytest.mark.parametrize("target", native.TARGETS)
def test_a_handler_checks_all_that_it_is_handed(target, every):
    handed(target, *arguments(target))
    handed(target, *arguments(target, directions=2), directions=2)
    for what, arrays, results, directions in broken(target, every):
        with pytest.raises(jax.errors.JaxRuntimeError, match="grujax: "):
            print(what, handed(target, arrays, results, directions))


def test_without_the_library_another_kernel_runs_and_says_why():
    code = """
import jax.numpy as jnp, numpy as np
from grujax import GRUWeights, InputError, gru, kernels
print(*kernels.explain(platform="cpu"))
x, weights = jnp.ones((2, 3, 4)), GRUWeights(jnp.ones((4, 9)), jnp.ones((3, 9)))
np.testing.assert_array_equal(gru(x, weights)[0], gru(x, weights, implementation="xla")[0])
for call in (gru, lambda *_, **options: kernels.explain(**options)):
    try:
        call(x, weights, implementation="native")
    except InputError as error:
        print(str(error).replace("\\n", " "))
"""
    why = "the native kernel is not built: there is no /nowhere/gru.so"
    chosen, *refused = program(["-c", code], GRUJAX_NATIVE_LIBRARY="/nowhere/gru.so")
    assert chosen == f"xla native cannot serve: {why}"
    assert len(refused) == 2
    for line in refused:
        assert line.startswith("implementation='native' cannot serve this call") and why in line and "Pass None" in line


# A soak: GRUJAX_SOAK=1000000 pytest --slow tests/kernels/test_native.py -k soak

CALLS = int(os.environ.get("GRUJAX_SOAK", 20_000))


@needs_library
@pytest.mark.slow
def test_soak_of_small_random_calls():
    """Up to 200 shapes: one compiled loop runs all calls of a shape, each with its own weights and masks."""
    at_once, rng = max(1000, CALLS // 200), np.random.default_rng(CALLS)
    for _ in range(-(-CALLS // at_once)):
        n_steps, n_rows, n_features, units = (
            int(rng.choice(s)) for s in ([1, 2, 3, 7], [1, 2, 5, 9], [1, 4, 5], [1, 4, 15, 16, 17, 32])
        )
        shapes = {"x": (n_steps, n_rows, n_features), "h0": (n_rows, units), "w_ih": (n_features, 3 * units)}
        shapes |= {"w_hh": (units, 3 * units), "b_ih": (3 * units,), "b_hh": (3 * units,), "h_reset": (units,)}
        dtype = str(rng.choice(["float32", "bfloat16"]))
        arrays = {name: rng.normal(size=(at_once, *s)) * 0.7 for name, s in shapes.items()}
        arrays["w_hh"] /= units**0.5  # so that errors of bfloat16 do not grow from step to step
        arrays = {name: a.astype(jnp.dtype(dtype)) for name, a in arrays.items()}
        valid, reset = rng.random((2, at_once, n_steps, n_rows)) < 0.6
        spec = GRUSpec(bool(rng.integers(2)), update=str(rng.choice(["keep", "take"])))
        options = {"reverse": (bool(rng.integers(2)),), "spec": spec}

        def one(arrays, valid, reset, implementation, options=options):
            def scalar(p):
                weights = GRUWeights(*(p[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")))
                recurrence = Recurrence(p["x"], weights, p["h0"], Control(valid, reset, p["h_reset"]))
                (result,) = kernels.run([recurrence], implementation=implementation, **options)
                return jnp.sin(result.hs).sum() + (result.h_last**2).sum(), result[:2]

            return jax.grad(scalar, has_aux=True)(arrays)

        found = jax.jit(lambda *a: jax.lax.map(lambda of: one(*of, "native"), a))(arrays, valid, reset)
        wide = jax.tree.map(lambda a: a.astype("d"), arrays)
        expected = jax.jit(jax.vmap(partial(one, implementation="xla")))(wide, valid, reset)
        assert_trees_close(found[1], expected[1], dtype=dtype)
        assert_trees_close(found[0], expected[0], "gradient", dtype=dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
