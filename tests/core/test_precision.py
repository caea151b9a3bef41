"""The errors of each dtype, extreme and infinite inputs, and the precision of every product."""

import contextlib
import importlib.util
import re
from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from implementations import HERE
from pairs import pairwise

from grujax import GRU, GRUModel, GRUWeights, equations, gru
from grujax.testing import assert_close

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("precision", ROOT / "benchmarks/precision.py")
precision = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(precision)

NAMES = ["x", "h0", "w_ih", "w_hh", "b_ih", "b_hh"]
WEIGHTS = NAMES[2:]


@pytest.fixture(scope="module")
def measured():
    return precision.measure()


def published():
    """The table in the documentation: for each pair of dtypes, the figures by column."""
    _, table, _ = (ROOT / "docs/precision.md").read_text().split("<!-- table -->")
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return {tuple(row[0].split(" / ")): dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in rows}


def test_the_published_table_has_every_row_and_column():
    assert {pair: tuple(row) for pair, row in published().items()} == dict.fromkeys(precision.DTYPES, precision.COLUMNS)


@pytest.mark.skipif("native" not in HERE, reason="the figures are those of the native kernel")
@pytest.mark.parametrize("pair", precision.DTYPES, ids="/".join)
def test_every_published_figure_is_what_is_measured(measured, pair):
    """Measured with AVX-512. Other processors sum in another order: with AVX2 the least is 0.49 of its figure."""
    for name, figure in published()[pair].items():
        error = measured[pair][name]
        assert figure / 2.5 <= error <= 2 * figure, f"{name}: published {figure:.1e}, measured {error:.2e}"


def test_the_rule_sums_the_gradient_of_w_hh_in_more_than_the_compute_dtype(measured):
    pair = ("bfloat16", "bfloat16")
    right = precision.expected()["dw_hh"]
    scan = np.abs(precision.found(*pair, "autodiff")["dw_hh"] - right).max() / np.sqrt(np.mean(right**2))
    assert 2 * measured[pair]["dw_hh"] < scan


@pytest.mark.parametrize("implementation", [*HERE, "reference"])
@pytest.mark.parametrize(("dtype", "state"), [("bfloat16", "float32"), ("float64", "float64")])
def test_the_state_is_carried_in_float32_at_least(dtype, state, implementation):
    """Each step moves the state by 1/60 of the way, too little for half precision. Zero weights: no other rounding."""
    steps, hidden = 300, 3
    rng = np.random.default_rng(0)
    h0 = np.asarray(jnp.asarray(rng.normal(size=(1, 2, hidden)), dtype).astype("float64"))
    bias = np.repeat([0.0, 4.0, 1.0], hidden)
    weights = {"w_ih": np.zeros((1, 9)), "w_hh": np.zeros((3, 9)), "b_ih": bias, "b_hh": bias / 64}
    layer = GRU(hidden, dtype=dtype, param_dtype=dtype, implementation=implementation)
    params = {"params": {"l0": {name: jnp.asarray(a, dtype) for name, a in weights.items()}}}
    x = np.zeros((2, steps, 1))
    output, h_last = jax.jit(layer.apply)(params, jnp.asarray(x, dtype), jnp.asarray(h0, state))
    assert (output.dtype, h_last.dtype) == (dtype, state)
    expected = equations.sequence(x.swapaxes(0, 1), h0[0], *weights.values()).h_last
    assert np.abs(expected - h0[0]).max() > 0.5
    assert_close(h_last[0], expected)


def test_bfloat16_parameters_train(problem):
    given = problem()
    x, target = given["x"].astype(jnp.bfloat16), given["h0"][:, :2].astype(jnp.bfloat16)
    model = GRUModel(5, 2, pooling="mean", param_dtype=jnp.bfloat16)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    @jax.jit
    def update(variables):
        def loss(variables):
            return jnp.square((model.apply(variables, x, lengths=[6, 0, 2, 5]) - target).astype(jnp.float32)).mean()

        value, gradients = jax.value_and_grad(loss)(variables)
        return value, gradients, jax.tree.map(lambda p, g: p - jnp.asarray(0.3, p.dtype) * g, variables, gradients)

    losses = []
    for _ in range(40):
        value, gradients, variables = update(variables)
        losses.append(float(value))
        for gradient in jax.tree.leaves(gradients):
            assert gradient.dtype == jnp.bfloat16 and np.isfinite(np.asarray(gradient).astype(np.float32)).all()
    assert losses[-1] < losses[0] / 2


def saturate(*gates):
    """Adds ±1e4 to b_ih of these gates, so that they are saturated; b_hh, also in the candidate, stays as it is."""

    def change(given):
        signs = np.sign(np.random.default_rng(2).normal(size=given["b_ih"].shape))
        chosen = np.isin(np.repeat([0, 1, 2], given["b_ih"].size // 3), gates)
        return given | {"b_ih": given["b_ih"] + 1e4 * signs * chosen}

    return change


def infinite(given):
    x = given["x"].copy()
    x[0, 2, 0], x[1, 3, 1], x[2, 1, :2] = np.inf, -np.inf, np.inf  # the last row: Inf − Inf in some gates
    return given | {"x": x}


def large(given):
    x = given["x"].copy()
    x[0, 2, 0], x[1, 3, 1], x[2, 1] = 1e38, -1e38, [1e38, -1e38, 1e38]
    return given | {"x": x}


def tiny(given):
    return given | {name: given[name] * 1e-310 for name in ("x", "h0")}


def tiny_float32(given):
    return given | {name: given[name] * 1e-40 for name in ("x", "h0")}


EXTREMES = {
    "all gates saturated": saturate(0, 1, 2),
    "reset saturated": saturate(0),
    "update saturated": saturate(1),
    "candidate saturated": saturate(2),
    "inputs of 1e38": large,
    "denormals of float64": tiny,
    "denormals of float32": tiny_float32,
}


@partial(jax.jit, static_argnums=(2, 3))
def differentiate(given, weigh, implementation, reset_after):
    def loss(given):
        weights = GRUWeights(*(given[name] for name in WEIGHTS))
        hs, h_last = gru(given["x"], weights, given["h0"], implementation=implementation, reset_after=reset_after)
        return (hs * weigh).sum() + h_last.sum(), (hs, h_last)

    return jax.grad(loss, has_aux=True)(given)


VARIED = {"implementation": HERE, "dtype": ("float64", "float32"), "reset_after": (True, False)}
PAIRS = [tuple(case.values()) for case in pairwise(**VARIED)]
EVERYWHERE = pytest.mark.parametrize(
    tuple(VARIED),
    [pytest.param(*of, marks=[] if of in PAIRS else pytest.mark.slow) for of in product(*VARIED.values())],
)


def both_sides(given, implementation, dtype, reset_after):
    """hs, h_last and the gradients by name: those of the implementation, and those of the oracle."""
    given = {name: a.astype(dtype) for name, a in given.items()}
    weigh = np.random.default_rng(1).normal(size=(4, 6, 5)).astype(dtype)
    wide = [given[name].astype(np.float64) for name in NAMES]
    wide[0] = wide[0].swapaxes(0, 1)
    variant = equations.Variant(reset_after)
    with np.errstate(all="ignore"):
        hs, h_last, _ = equations.sequence(*wide, variant=variant)
        d = {"dhs": weigh.astype(np.float64).swapaxes(0, 1), "dh_last": np.ones_like(h_last)}
        expected = equations.sequence_backward(*wide, **d, variant=variant)._asdict()
    expected |= {"x": expected["x"].swapaxes(0, 1), "hs": hs.swapaxes(0, 1), "h_last": h_last}
    gradients, found = differentiate(jax.tree.map(jnp.asarray, given), weigh, implementation, reset_after)
    return gradients | dict(zip(("hs", "h_last"), found, strict=True)), expected


@pytest.mark.parametrize("case", EXTREMES)
@EVERYWHERE
def test_extreme_inputs_give_what_the_oracle_gives(problem, implementation, dtype, reset_after, case):
    found, expected = both_sides(EXTREMES[case](problem()), implementation, dtype, reset_after)
    for name in ("hs", "h_last"):
        assert_close(found[name], expected[name], name=name)
    for name in NAMES:
        assert_close(found[name], expected[name], "gradient", name=name)


@EVERYWHERE
def test_infinite_inputs_give_nan_exactly_where_the_oracle_does(problem, implementation, dtype, reset_after):
    found, expected = both_sides(infinite(problem()), implementation, dtype, reset_after)
    for name in ("hs", "h_last"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(expected[name]))
        assert_close(jnp.nan_to_num(found[name]), np.nan_to_num(expected[name]), name=name)
    nan = np.isnan(expected["h_last"])
    assert nan[2].any() and not nan[[0, 1, 3]].any()


XLA, HIGHWAY = {"implementation": "xla"}, {"connection": "highway"}
MODEL = {"num_layers": 2, "head_hidden": (3,), "pooling": "attention", **HIGHWAY}
CALLS = {
    "gru": lambda p, x, precision: gru(x, p, precision=precision, **XLA)[0],
    "GRU": lambda p, x, precision: GRU(5, num_layers=2, connection="highway", precision=precision, **XLA).apply(p, x)[
        0
    ],
    "GRU, reference": lambda p, x, precision: GRU(5, precision=precision, implementation="reference").apply(p, x)[0],
    "GRUModel": lambda p, x, precision: GRUModel(5, 2, **MODEL, precision=precision, **XLA).apply(p, x),
}
INIT = {
    "GRU": GRU(5, num_layers=2, **HIGHWAY),
    "GRU, reference": GRU(5),
    "GRUModel": GRUModel(5, 2, **MODEL),
}


@pytest.mark.parametrize(
    "call",  # a model contains a layer
    [pytest.param(call, marks=[pytest.mark.slow] * (call == "GRU")) for call in CALLS],
)
def test_precision_reaches_every_product(problem, call):
    """XLA's products in the function and its gradient, set by the attribute or `jax.default_matmul_precision`."""
    given = {name: jnp.asarray(a, jnp.float32) for name, a in problem().items()}
    x = given["x"]
    p = GRUWeights(*(given[name] for name in WEIGHTS))
    if call != "gru":
        p = jax.eval_shape(INIT[call].init, jax.random.key(0), x)

    def products(attribute, default):
        def loss(p, x):
            return CALLS[call](p, x, attribute).sum()

        with contextlib.nullcontext() if default is None else jax.default_matmul_precision(default):
            texts = [jax.jit(f).lower(p, x).as_text() for f in (loss, jax.grad(loss, (0, 1)))]
        lines = [[line for line in text.splitlines() if "stablehlo.dot_general" in line] for text in texts]
        forward, both = (len(found) for found in lines)
        assert both >= 2 * forward > 0
        return {tuple(re.findall(r"algorithm = <\w+ = \w+|\[[A-Z]+, [A-Z]+\]", x)) for found in lines for x in found}

    assert products(None, "BF16_BF16_F32") == {("[DEFAULT, DEFAULT]", "algorithm = <lhs_precision_type = bf16")}
    assert products(None, "tensorfloat32") == {("[HIGH, HIGH]",)}
    assert products("highest", "bfloat16") == {("[HIGHEST, HIGHEST]",)}
    assert products("default", "highest") == {("[DEFAULT, DEFAULT]",)}
