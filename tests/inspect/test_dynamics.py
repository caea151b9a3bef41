"""States, fixed points and Jacobians, against a GRU with known fixed points, finite differences and the covariance."""

from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from refusals import refused
from scipy.optimize import brentq

from grujax import GRU, GRUEncoder, GRUModel
from grujax.inspect import (
    FixedPoints,
    fixed_points,
    plot_eigenvalues,
    plot_states,
    principal_components,
    states,
    time_constants,
)
from grujax.testing import assert_close

RNG = np.random.default_rng(0)
B, T, I, H = 4, 6, 3, 5
X = RNG.normal(size=(B, T, I))
LENGTHS = np.array([6, 0, 2, 5])
RESETS = np.array([[1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1]], bool)
ROOT = brentq(lambda h: np.tanh(2 * h) - h, 0.5, 1)  # the positive fixed point, beside 0 and −ROOT


def drawn(model, x=X):
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x), np.random.default_rng(1)
    return jax.tree.map(lambda a: jax.device_put(rng.uniform(-0.7, 0.7, a.shape).astype(a.dtype)), shapes)


def two_switches(dtype=jnp.float64):
    """Two units, each h' = ½ tanh(2 h) + ½ h at x = 0, as z and r are ½, W_hn is 4. Fixed points: {−ROOT, 0, ROOT}²."""
    model = GRU(2, param_dtype=dtype)
    variables = jax.tree.map(np.zeros_like, drawn(model, np.zeros((1, 1, 1), dtype)))
    variables["params"]["l0"]["w_hh"][:, 4:] = 4 * np.eye(2)
    return model, variables


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_the_fixed_points_of_two_switches_are_found_once_each(dtype):
    found = fixed_points(*two_switches(dtype), [0.0], RNG.uniform(-1, 1, (60, 2)))
    order = np.lexsort(found.points.round(6).T)
    grid = np.array([(a, b) for b in (-ROOT, 0, ROOT) for a in (-ROOT, 0, ROOT)])
    np.testing.assert_allclose(found.points[order], grid, atol=1e-12)
    np.testing.assert_array_equal(found.stable[order], (grid != 0).all(1))
    slopes = 0.5 + (1 - grid**2)  # ½ + ½ · 2 (1 − tanh²)
    np.testing.assert_allclose(found.jacobians[order], [np.diag(row) for row in slopes], atol=1e-12)
    np.testing.assert_allclose(found.eigenvalues[order], np.sort(slopes)[:, ::-1], atol=1e-12)
    assert (found.speeds < 1e-25).all() and (np.diff(found.speeds) >= 0).all()
    assert found.eigenvalues.dtype == complex and found.points.dtype == np.float64


def test_an_input_moves_the_fixed_points():
    model, variables = two_switches()
    weights = variables["params"]["l0"]
    weights["w_ih"][0, 4:] = 1.0
    found = fixed_points(model, variables, [1.0], RNG.uniform(-1, 1, (30, 2)))  # ½ tanh(2 h + 1) + ½ h: one fixed point
    np.testing.assert_allclose(found.points, [[brentq(lambda h: np.tanh(2 * h + 1) - h, 0.5, 1)] * 2], atol=1e-12)


def test_minima_that_are_no_fixed_points_are_left_out_unless_slow_ones_are_asked_for():
    model, variables = two_switches()
    weights = variables["params"]["l0"]
    weights["w_ih"][0, 4:] = 1.0
    options = {"x": [0.55], "starts": np.full((1, 2), -0.7)}  # just past where two of the three points meet and vanish
    none = fixed_points(model, variables, **options)
    assert (none.points.shape, none.stable.shape) == ((0, 2), (0,))
    slow = fixed_points(model, variables, **options, max_speed=1e-3)
    assert 1e-8 < slow.speeds[0] < 1e-3
    np.testing.assert_allclose(np.linalg.eigvals(slow.jacobians[0]), 1, atol=1e-3)


OTHERS = {"reset_after": False, "update": "take", "layer_norm": True}


@pytest.mark.parametrize("fields", [{}, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["torch", "others"])
def test_the_jacobian_of_two_layers_equals_finite_differences(fields):
    model = GRUModel(H, 2, num_layers=2, param_dtype=jnp.float64, **fields)
    variables = drawn(model)
    found = fixed_points(model, variables, X[0, 0], states(model, variables, X)[:, -1])
    assert len(found.points) >= 1

    @jax.jit
    def step(h):
        return model.apply(variables, X[:1, :1], h.reshape(2, 1, H), return_state=True)[1].ravel()

    for point, jacobian in zip(found.points, found.jacobians, strict=True):
        np.testing.assert_allclose(step(point), point, atol=1e-12)
        slopes = [(step(point + d) - step(point - d)) / 2e-6 for d in 1e-6 * np.eye(2 * H)]
        np.testing.assert_allclose(jacobian, np.transpose(slopes), atol=1e-9)


@pytest.mark.parametrize("cls, time_major", [(GRU, False), (GRUEncoder, True), (GRUModel, True)])
def test_states_are_those_of_shorter_and_shorter_runs(cls, time_major):
    sizes = {"output_size": 2} if cls is GRUModel else {}
    fields = {"pooling": "mean"} if cls is GRUEncoder else {}
    model = cls(H, **sizes, **fields, num_layers=2, initial_state="learned", time_major=time_major, zoneout=0.1)
    model = model.clone(param_dtype=jnp.float64)
    laid = (lambda a: np.swapaxes(a, 0, 1)) if time_major else np.asarray
    variables, flags = drawn(model, laid(X)), {"resets": laid(RESETS), "lengths": LENGTHS}
    h0 = RNG.normal(size=(2, B, H))
    whole = {} if cls is GRU else {"return_state": True}
    runner = model if cls is GRU else model.clone(pooling=None)
    for start in (None, h0):
        found = np.asarray(states(model, variables, laid(X), start, **flags))
        assert found.shape == (B, T, 2 * H)
        for t in (0, 2, T - 1):
            flags_t = {"resets": laid(RESETS[:, : t + 1]), "lengths": np.minimum(LENGTHS, t + 1)}
            h = jax.jit(partial(runner.apply, **whole))(variables, laid(X[:, : t + 1]), start, **flags_t)[1]
            assert_close(found[:, t], np.concatenate(np.asarray(h), -1))


def test_time_constants_by_hand():
    found = time_constants([np.exp(-1 / 7), -np.exp(-1 / 3), 0.6 + 0.8j, 0.3j, 0.0, np.exp(0.1)])
    np.testing.assert_allclose(found, [7, 3, np.inf, -1 / np.log(0.3), 0, -10], rtol=1e-12)


def test_principal_components_are_those_of_the_covariance():
    given = RNG.normal(size=(7, 9, H)) @ RNG.normal(size=(H, H))
    found = principal_components(given)
    values, vectors = np.linalg.eigh(np.cov(given.reshape(-1, H).T))
    np.testing.assert_allclose(found.mean, given.mean((0, 1)), atol=1e-12)
    np.testing.assert_allclose(found.shares, values[::-1] / values.sum(), atol=1e-12)
    np.testing.assert_allclose(np.abs(found.axes @ vectors[:, ::-1]), np.eye(H), atol=1e-9)


def test_the_plot_of_states_shows_runs_and_fixed_points_in_two_planes():
    eigenvalues = np.array([[0.9, 0.1, 0.1], [1.2, 0.1, 0.1]])
    paths = RNG.normal(size=(B, T, 3)) * [3, 2, 1]
    fixed = FixedPoints(paths[:2, 0], np.zeros(2), np.zeros((2, 3, 3)), eigenvalues)
    components = principal_components(paths)
    at = (paths - components.mean) @ components.axes.T
    for axes, plane in zip(plot_states(paths, fixed, lines=3).axes, ([0, 1], [0, 2]), strict=True):
        np.testing.assert_allclose([line.get_xydata() for line in axes.lines], at[:3][..., plane])
        unstable, stable = axes.collections
        np.testing.assert_allclose(unstable.get_offsets(), at[1:2, 0][:, plane])
        np.testing.assert_allclose(stable.get_offsets(), at[:1, 0][:, plane])
        assert f"({components.shares[plane[1]]:.0%} of the variance)" in axes.get_ylabel()
    assert len(plot_states(paths[0, :, :2]).axes) == 1


def test_the_plot_of_eigenvalues_shows_each_point_in_its_colour_and_the_time_constants():
    eigenvalues = np.array([[0.9, 0.2 + 0.1j, 0.2 - 0.1j], [1.2, -0.5, 0.0]])
    (axes,) = plot_eigenvalues(eigenvalues).axes
    for dots, row in zip(axes.collections, eigenvalues, strict=True):
        np.testing.assert_array_equal(dots.get_offsets(), np.stack([row.real, row.imag], 1))
    first, second = (matplotlib.colors.to_hex(dots.get_facecolor()[0]) for dots in axes.collections)
    assert first != second
    for ring, tau in zip(axes.lines, [1, 5, np.inf], strict=True):
        np.testing.assert_allclose(np.hypot(*ring.get_xydata().T), np.exp(-1 / tau))


MODEL, BOTH = GRU(H, param_dtype=jnp.float64), GRU(H, bidirectional=True)
FRAMES = GRUModel(H, 2, steps_per_frame=2)
BAD = {
    "both directions": (lambda: states(BOTH, {}, X), ["model: expected a model that only reads forward"]),
    "backwards": (
        lambda: fixed_points(GRU(H, reverse=True), {}, X[0, 0], X),
        ["model: expected a model that only reads forward"],
    ),
    "frames": (lambda: states(FRAMES, {}, X), ["model: expected steps_per_frame=1, found 2"]),
    "no model": (lambda: states(np.tanh, {}, X), ["model: expected a GRU, GRUEncoder or GRUModel"]),
    "lengths": (lambda: states(MODEL, {}, X, lengths=[7, 1, 1, 1]), ["lengths: expected 0 to T = 6"]),
    "starts": (
        lambda: fixed_points(MODEL, drawn(MODEL), X[0, 0], np.ones((3, H + 1))),
        ["starts: expected shape (..., 5), at least one state, found shape (3, 6)"],
    ),
    "no start": (lambda: fixed_points(MODEL, drawn(MODEL), X[0, 0], np.ones((0, H))), ["starts: expected shape"]),
    "a sequence": (
        lambda: fixed_points(MODEL, drawn(MODEL), X[0], np.ones((3, H))),
        ["x: expected shape (I,), the input of one step, found shape (6, 3)"],
    ),
    "features": (
        lambda: fixed_points(MODEL, drawn(MODEL), np.ones(I + 1), np.ones((3, H))),
        ["x: expected 3 input features"],
    ),
    "one state": (lambda: principal_components(np.ones(H)), ["states: expected shape (..., S)"]),
    "all alike": (lambda: principal_components(np.ones((3, H))), ["states: expected states that differ"]),
    "one unit": (lambda: plot_states(np.arange(3.0)[:, None]), ["states: expected two states or more"]),
    "no eigenvalues": (lambda: plot_eigenvalues(np.ones((0, 3))), ["eigenvalues: expected shape (P, S) or (S,)"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    call, parts = BAD[case]
    with refused(*parts):
        call()


def test_a_run_without_a_step_has_no_states():
    model = GRU(4, num_layers=2, param_dtype=jnp.float64)
    assert states(model, drawn(model), X[:, :0]).shape == (B, 0, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_components_of_what_is_not_finite_are_refused(value):
    with refused("states", "finite"):
        principal_components([[0.0, value], [1.0, 1.0]])
