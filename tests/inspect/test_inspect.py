"""Looking inside a GRU: gates against the oracle, figures by hand, gradients by finite differences, plots as drawn."""

import itertools
import sys
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from compilations import compilations
from pairs import pairwise
from refusals import refused

from grujax import GRU, GRUCell, GRUEncoder, GRUModel, equations
from grujax.inspect import (
    FixedPoints,
    Saturation,
    gates,
    gradient_norm,
    plot_eigenvalues,
    plot_gradient_norm,
    plot_saturation,
    plot_states,
    plot_time_scale,
    saturation,
    time_scale,
)
from grujax.kernels import native
from grujax.testing import assert_close
from grujax.types import Gates

RNG = np.random.default_rng(0)
B, T, I, H = 4, 6, 3, 5
X, H0 = RNG.normal(size=(B, T, I)), RNG.normal(size=(4, B, H))
LENGTHS = np.array([6, 0, 2, 5])
VALID = np.arange(T) < LENGTHS[:, None]
HOLES = np.array([[1, 1, 0, 1, 1, 1], [0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0]], bool)
RESETS = np.array([[1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1]], bool)
PADDED = np.where(HOLES[..., None], X, np.nan)
WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "scale_ih", "scale_hh")
KEY = jax.random.key(0)


def gru(layers=1, bidirectional=True, **options):
    return GRU(H, num_layers=layers, bidirectional=bidirectional, param_dtype=jnp.float64, **options)


def drawn(model, x=X):
    """Returns random variables for all parameters, including the scales of layer normalisation."""
    shapes, rng = jax.eval_shape(model.init, KEY, jnp.asarray(x)), np.random.default_rng(1)
    return jax.tree.map(lambda a: jax.device_put(rng.uniform(-0.7, 0.7, a.shape).astype(a.dtype)), shapes)


def oracle(params, x, h0, valid, resets, variant):
    """Returns the gates (B, T, H) of each layer, and the output. It runs the sequences between resets separately."""
    found, h0, learned = {}, iter(h0), iter(np.asarray(params.get("h0", np.zeros((len(h0), H)))))
    for layer in range(sum("reverse" not in name and name != "h0" for name in params)):
        outputs = []
        for name, reverse in ((f"l{layer}", False), (f"l{layer}_reverse", True)):
            if name not in params:
                continue
            weights = [np.asarray(params[name][w]) if w in params[name] else None for w in WEIGHTS]
            hs, values, start = np.zeros((B, T, H)), np.zeros((3, B, T, H)), next(h0)
            initial = next(learned)
            for b in range(len(x)):
                times = np.flatnonzero(valid[b])
                pieces = np.split(times, np.flatnonzero(resets[b, times]))
                for i, piece in enumerate(pieces):
                    given = start[b] if i == (len(pieces) - 1 if reverse else 0) else initial
                    run = equations.sequence(
                        x[b, piece][:, None], given[None], *weights, reverse=reverse, variant=variant
                    )
                    hs[b, piece] = run.hs[:, 0]
                    for t, step in zip(piece[::-1] if reverse else piece, run.steps, strict=True):
                        values[:, b, t] = step.r[0], step.z[0], step.n[0]
            found[name] = values
            outputs.append(hs)
        x = np.concatenate(outputs, -1)
    return found, x


def assert_gates(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        for gate, actual, value in zip("rzn", found[name], values, strict=True):
            assert_close(actual, value, name=f"{name} {gate}")


VARIANTS = pairwise(reset_after=[True, False], update=["keep", "take"], layer_norm=[False, True])


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
def test_gates_equal_the_oracle_in_every_variant(options):
    model = gru(**options)
    variables = drawn(model)
    variant = equations.Variant(options["reset_after"], options["update"])
    found = gates(model, variables, PADDED, H0[:2], mask=HOLES, resets=RESETS)
    expected, _ = oracle(variables["params"], X, H0, HOLES, RESETS, variant)
    assert_gates(found, expected)
    assert not np.asarray(found["l0_reverse"].z)[~HOLES].any()


NO_RESETS, ALL = np.zeros((B, T), bool), np.ones((B, T), bool)
STEPS = {
    "plain": ({}, {}, ALL, NO_RESETS),
    "reference": ({"implementation": "reference"}, {"lengths": LENGTHS, "resets": RESETS}, VALID, RESETS),
    "autodiff": (
        {"implementation": "autodiff", "reset_after": False, "initial_state": "learned"},
        {"lengths": LENGTHS, "resets": RESETS},
        VALID,
        RESETS,
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_gates_of_two_layers_equal_the_oracle_in_every_implementation(case):
    options, steps, valid, resets = STEPS[case]
    model = gru(2, **options)
    variables = drawn(model)
    found = gates(model, variables, X, H0, **steps)
    variant = equations.Variant(options.get("reset_after", True))
    assert_gates(found, oracle(variables["params"], X, H0, valid, resets, variant)[0])


def test_gates_of_a_model_are_those_of_its_gru_batch_first():
    model = GRUModel(H, 2, time_major=True, pooling="max", merge="sum", bidirectional=True, param_dtype=jnp.float64)
    time_major = jnp.asarray(X).swapaxes(0, 1)
    params = drawn(model, time_major)["params"]
    mean, std = jnp.asarray([1.0, -2.0, 3.0]), jnp.asarray([0.5, 2.0, 4.0])
    variables = {"params": params, "statistics": {"input_mean": mean, "input_std": std}}
    raw = time_major * std[None, None] + mean[None, None]
    found = gates(model, variables, raw, mask=HOLES.T, resets=RESETS.T)  # with pooling the model would require segments
    expected, _ = oracle(params["encoder"]["gru"], X, np.zeros((2, B, H)), HOLES, RESETS, equations.Variant())
    for name in expected:
        for actual, value in zip(found[name], expected[name], strict=True):
            assert_close(actual, value, "gradient")  # standardising changes the last bits of x
    encoder = GRUEncoder(H, bidirectional=True, pooling="attention", param_dtype=jnp.float64)
    of_encoder = gates(encoder, {"params": params["encoder"]}, X, mask=HOLES, resets=RESETS)
    assert_gates(of_encoder, expected)


def test_gates_of_one_sequence_and_of_two_batch_axes():
    model = gru(bidirectional=False)
    variables = drawn(model)
    whole = gates(model, variables, X, lengths=LENGTHS)["l0"]
    one = gates(model, variables, X[3], lengths=LENGTHS[3])["l0"]
    four = gates(model, variables, X.reshape(2, 2, T, I), lengths=LENGTHS.reshape(2, 2))["l0"]
    for gate, alone, apart in zip(whole, one, four, strict=True):
        assert_close(alone, gate[3])
        assert_close(apart, gate.reshape(2, 2, T, H))


def test_gates_after_a_reset_to_a_learned_state_in_half_precision():
    options = {"bidirectional": True, "initial_state": "learned"}
    half, full = GRU(H, param_dtype=jnp.bfloat16, **options), GRU(H, **options)
    x = jnp.asarray(X, jnp.bfloat16)
    variables = drawn(half, x)
    found = gates(half, variables, x, mask=HOLES, resets=RESETS)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), variables)
    expected = gates(full, wide, x.astype(jnp.float32), mask=HOLES, resets=RESETS)
    for name in expected:
        for actual, value in zip(found[name], expected[name], strict=True):
            assert actual.dtype == jnp.float32  # like the state
            assert_close(actual, value, dtype="bfloat16")


def test_gates_are_traced_and_compiled_once():
    traced = []

    def counting(a):
        traced.append(a)
        return a

    model = GRUModel(H, 2, head_hidden=(4,), head_activation=counting, param_dtype=jnp.float64)
    variables = drawn(model)
    gates(model, variables, X, lengths=LENGTHS)
    traced.clear()
    assert compilations(lambda: gates(model, variables, X + 1, lengths=LENGTHS - (LENGTHS > 0))) == 0 and not traced


@pytest.mark.parametrize("update", ["keep", "take"])
def test_the_output_is_made_of_the_gates(update):
    """With regularisation on, the sown gates are those that made the output."""
    model = gru(bidirectional=False, update=update, recurrent_dropout=0.5, weight_dropout=0.5, input_dropout=0.5)
    variables = drawn(model)
    (output, _), sown = model.apply(
        variables,
        jnp.asarray(X),
        jnp.asarray(H0[:1]),
        deterministic=False,
        rngs={"dropout": KEY},
        mutable=["intermediates"],
    )
    (values,) = sown["intermediates"]["l0_gates"]
    _, z, n = (np.asarray(g).swapaxes(0, 1) for g in values)
    entering = np.concatenate([H0[0][:, None], np.asarray(output)[:, :-1]], 1)
    keep = z if update == "keep" else 1 - z
    assert_close(output, keep * entering + (1 - keep) * n)
    plain = gates(model, variables, X, H0[:1])["l0"]
    assert np.abs(plain.z - z).max() > 0.01  # `gates` switches regularisation off


def count(jaxpr, name):
    """Counts a primitive in a jaxpr and in the jaxprs inside it."""
    return len(outputs_of(jaxpr, name))


def outputs(jaxpr, name):
    """Counts the arrays that all primitives of that name return."""
    return sum(outputs_of(jaxpr, name))


def outputs_of(jaxpr, name):
    """Returns the number of arrays that each primitive of that name returns."""
    found = []
    for equation in jaxpr.eqns:
        found += [len(equation.outvars)] * (equation.primitive.name == name)
        leaves = jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns"))
        found += [n for p in leaves if hasattr(p, "eqns") for n in outputs_of(p, name)]
    return found


@pytest.mark.parametrize(
    ("implementation", "loop", "n_products", "n_outputs"),
    [("native", "grujax_forward", 0, (2, 3)), ("xla", "scan", 6 + 2, (4, 12)), ("autodiff", "scan", 6 + 2, (4, 12))],
)
def test_nothing_is_sown_and_nothing_computed_unless_asked_for(implementation, loop, n_products, n_outputs):
    """XLA has two loops, with one product for all gates or with three. A program runs the loop of its platform."""
    if implementation == "native" and native.status()[0] is None:
        pytest.skip(native.status()[1])
    model = gru(2, implementation=implementation)
    variables, x = drawn(model), jnp.asarray(X)
    plain, told = (
        jax.make_jaxpr(lambda v, x, a=asked: model.apply(v, x, mutable=a))(variables, x)
        for asked in (False, ("intermediates",))
    )
    # sown gates add no products; each layer and direction has as many products of the input as of the state
    assert count(plain, "dot_general") == count(told, "dot_general") == 4 * n_products
    # a loop returns h_last and hs, and on request r, z, n and m, which the native kernel returns in one array
    assert (outputs(plain, loop), outputs(told, loop)) == tuple(4 * n for n in n_outputs)
    assert set(jax.eval_shape(lambda: model.init(KEY, x, mutable=True))) == {"params"}
    assert not jax.eval_shape(lambda: model.apply(variables, x, mutable=["others"])[1])


def test_sowing_changes_no_bit_of_the_output():
    model = gru(bidirectional=False)
    variables, x = drawn(model), jnp.asarray(X)
    sown, _ = model.apply(variables, x, mutable=["intermediates"])
    jax.tree.map(np.testing.assert_array_equal, model.apply(variables, x), sown)


def of(z, r=None):
    """The gates of one layer, (B, T, H) each."""
    z = np.asarray(z, float)
    return Gates(z if r is None else np.asarray(r, float), z, np.zeros_like(z))


def test_saturation_by_hand():
    r = [[[0.05, 0.95], [0.5, 0.05], [0.1, 0.9]], [[0.99, 0.2], [0.0, 0.0], [0.0, 0.0]]]
    z = [[[0.5, 0.92], [0.1, 0.9], [0.04, 0.94]], [[0.03, 0.01], [0.0, 0.0], [0.0, 0.0]]]
    valid = np.array([[1, 1, 1], [1, 0, 0]], bool)
    found = saturation(of(z, r), valid)
    np.testing.assert_array_equal(found, [[0.25, 0.25], [0.25, 0.25], [0.5, 0.25], [0, 0.5]])
    np.testing.assert_array_equal(saturation(of(z, r)).left_z, [4 / 6, 3 / 6])  # without valid, padding counts too
    wide = saturation(of(z, r), valid, low=0.15, high=0.85)  # now 0.1 and 0.9 count too
    np.testing.assert_array_equal(wide, [[0.5, 0.25], [0.25, 0.5], [0.75, 0.25], [0, 0.75]])
    (row,) = saturation(of(z, r), [[True, False, False], [False] * 3], 0.1, 0.9)[3:]
    np.testing.assert_array_equal(row, [0, 1])


def test_time_scale_by_hand():
    z = [[[0.5, 1.0, 0.0, 0.25], [0.5, 1.0, 1.0, 0.5]], [[0.125, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    valid = np.array([[1, 1], [1, 0]], bool)
    found = time_scale(of(z), valid)
    assert_close(found[0], np.array(1 / (np.log(2) * (1 + 1 + 3) / 3)))
    np.testing.assert_array_equal(found[1:], [np.inf, 0, 0])
    assert np.signbit(found).sum() == 0
    np.testing.assert_array_equal(time_scale(of(1 - np.asarray(z)), valid, "take")[1:], [np.inf, 0, 0])
    assert_close(time_scale(of(1 - np.asarray(z)), valid, "take")[:1], found[:1])
    tiny = time_scale(of(np.full((1, 2, 1), 1e-20)), update="take")  # 1 − z is 1 in floating point
    assert_close(tiny, np.array([1e20]))


@pytest.mark.parametrize("update, z", [("keep", 0.9), ("take", 0.1)])
def test_the_time_scale_of_a_unit_that_keeps_nine_tenths(update, z):
    """It also checks the meaning of τ: after t steps exp(−t / τ) of an impulse is left."""
    model = gru(bidirectional=False, update=update)
    blank = jax.tree.map(jnp.zeros_like, drawn(model))
    weights = blank["params"]["l0"]
    weights["b_ih"] = weights["b_ih"].at[H : 2 * H].set(np.log(z / (1 - z)))  # n = 0: the state only decays
    found = time_scale(gates(model, blank, X, lengths=LENGTHS)["l0"], VALID, update)
    assert_close(found, np.full(H, -1 / np.log(0.9)))
    _, h_last = model.apply(blank, jnp.asarray(X), jnp.asarray(H0[:1]), lengths=LENGTHS)
    assert_close(h_last[0], H0[0] * np.exp(-LENGTHS[:, None] / found))


def test_gradient_norm_of_a_layer_equals_the_oracle():
    model = gru()
    variables = drawn(model)
    expected, x = 0.0, X.swapaxes(0, 1)
    for i, (name, reverse) in enumerate((("l0", False), ("l0_reverse", True))):
        weights = [np.asarray(variables["params"][name][w]) for w in WEIGHTS[:4]]
        options = {"lengths": LENGTHS, "reverse": reverse}
        h_last = equations.sequence(x, H0[i], *weights, **options).h_last
        arguments = {"dhs": np.zeros((T, B, H)), "dh_last": h_last}
        expected = expected + equations.sequence_backward(x, H0[i], *weights, **arguments, **options).x
    found = gradient_norm(
        model, variables, np.where(VALID[..., None], X, np.nan), h0=jnp.asarray(H0[:2]), lengths=LENGTHS
    )
    assert_close(found, np.linalg.norm(expected, axis=-1).T, "gradient")
    assert (found[VALID] > 0).all() and not found[~VALID].any()
    last = gradient_norm(model, variables, X, lambda y: jnp.square(y[1]).sum() / 2, h0=jnp.asarray(H0[:2]), mask=VALID)
    np.testing.assert_array_equal(last, found)


@pytest.mark.parametrize("time_major", [False, True], ids=["batch first", "time first"])
def test_gradient_norm_equals_finite_differences(time_major):
    model = GRUModel(H, {"a": 2, "b": 1}, pooling="mean", time_major=time_major, param_dtype=jnp.float64)
    axes = (1, 0, 2) if time_major else (0, 1, 2)
    x = X.transpose(axes)
    scaled = {"input_mean": np.array([1.0, -2.0, 3.0]), "input_std": np.array([0.5, 2.0, 4.0])}
    variables = drawn(model, x) | {"statistics": scaled}
    found = gradient_norm(model, variables, x, lengths=LENGTHS)
    given = lambda y: (jnp.square(y["a"]).sum() + jnp.square(y["b"]).sum()) / 2  # noqa: E731
    np.testing.assert_array_equal(found, gradient_norm(model, variables, x, given, lengths=LENGTHS))

    eps = 1e-5
    moves = eps * np.eye(X.size).reshape(X.size, *X.shape)
    loss = jax.vmap(lambda d: given(model.apply(variables, x + d.transpose(axes), lengths=LENGTHS)))
    slopes = np.asarray(jax.jit(lambda d: (loss(d) - loss(-d)) / (2 * eps))(moves)).reshape(X.shape)
    np.testing.assert_allclose(found, np.linalg.norm(slopes, axis=-1), rtol=1e-7, atol=1e-9)
    assert (found[VALID] > 1e-4).all() and not found[~VALID].any()


def test_what_vanishes_does_not_underflow():
    model = GRU(H)
    x = jnp.asarray(X, jnp.float32)
    variables = drawn(model, x)
    whole, tiny = (gradient_norm(model, variables, x, lambda y, s=s: y[1].sum() * s) for s in (1.0, 2.0**-80))
    np.testing.assert_array_equal(tiny, whole * 2.0**-80)
    assert tiny.dtype == np.float64 and tiny.all()  # their squares in float32 would all be 0


def test_the_loss_of_one_packed_sequence_reaches_no_other():
    model = GRUModel(H, 2, param_dtype=jnp.float64)
    variables = drawn(model)
    segments = np.array([[0, 0, 1, 1, 1, -1]] * B) + 2 * np.arange(B)[:, None] * (np.arange(T) < 5)
    resets = np.array([[1, 0, 1, 0, 0, 0]] * B, bool)
    options = {"resets": resets, "segments": segments, "num_segments": 2 * B}
    found = gradient_norm(model, variables, X, lambda y: jnp.square(y[3]).sum(), **options)
    np.testing.assert_array_equal(found > 0, segments == 3)


STANDS_FOR = {
    "l0": Saturation(*RNG.uniform(0, 0.5, (4, H))),
    "l0_reverse": Saturation(*RNG.uniform(0, 0.5, (4, H))),
    "l1": Saturation(*RNG.uniform(0, 0.5, (4, H))),
    "l2": Saturation(*RNG.uniform(0, 0.5, (4, H))),
    "l3": Saturation(*RNG.uniform(0, 0.5, (4, H))),
}
SCALES = {"l0": np.array([30.0, np.inf, 0.5, 0.0, 2.0]), "l0_reverse": np.array([1.0, 200.0])}
NORMS = np.where(VALID, RNG.uniform(0.1, 10, (B, T)), 0.0)
PATHS, EIGENVALUES = RNG.normal(size=(B, T, 3)), np.array([[0.9, 0.1j, -0.1j], [1.2, -0.5, 0.0]])
FIXED = FixedPoints(PATHS[:2, 0], np.zeros(2), np.zeros((2, 3, 3)), EIGENVALUES)
PLOTS = {
    "saturation": (plot_saturation, STANDS_FOR),
    "saturation of one": (plot_saturation, STANDS_FOR["l0"]),
    "time scale": (plot_time_scale, SCALES),
    "time scale of one": (plot_time_scale, SCALES["l0"]),
    "gradient norm": (plot_gradient_norm, NORMS),
    "gradient norm of one": (plot_gradient_norm, NORMS[0]),
    "states": (partial(plot_states, fixed=FIXED), PATHS),
    "states of one": (plot_states, PATHS[0, :, :2]),
    "eigenvalues": (plot_eigenvalues, EIGENVALUES),
}


def test_the_saturation_plot_shows_every_unit():
    figure = plot_saturation(STANDS_FOR)
    assert [axes.get_title() for axes in figure.axes] == list(STANDS_FOR)
    for axes, values in zip(figure.axes, STANDS_FOR.values(), strict=True):
        r, z = axes.collections
        np.testing.assert_array_equal(r.get_offsets(), np.stack([values.left_r, values.right_r], 1))
        np.testing.assert_array_equal(z.get_offsets(), np.stack([values.left_z, values.right_z], 1))
        assert (r.get_facecolor()[0] != z.get_facecolor()[0]).any()
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 1], [1, 0]])
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1))
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["reset gate r", "update gate z"]
    assert "left-saturated" in figure.get_supxlabel() and "right-saturated" in figure.get_supylabel()


def test_the_time_scale_plot_shows_every_unit_in_order():
    (axes,) = plot_time_scale(SCALES).axes
    first, down, up, second = axes.lines
    np.testing.assert_array_equal(first.get_xydata(), [[1, np.nan], [2, 0.5], [3, 2], [4, 30], [5, np.nan]])
    np.testing.assert_array_equal(second.get_xydata(), [[1, 1], [2, 200]])
    for line, marker, unit, edge in ((down, "v", 1, 0), (up, "^", 5, 1)):  # at the lower and upper edge
        x, y = line.get_transform().transform(line.get_xydata())[0]
        assert axes.transData.inverted().transform((x, y))[0] == pytest.approx(unit)
        assert axes.transAxes.inverted().transform((x, y))[1] == pytest.approx(edge)
        assert line.get_marker() == marker and line.get_color() == first.get_color() != second.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(SCALES)
    assert axes.get_yscale() == "log" and "(steps)" in axes.get_ylabel()
    assert "Memory in attractors is not visible here" in axes.figure.get_supxlabel()


def test_the_gradient_plot_shows_every_sequence_and_their_median():
    (axes,) = plot_gradient_norm(NORMS).axes
    *rows, median = axes.lines
    shown = np.where(VALID, NORMS, np.nan)
    np.testing.assert_array_equal([line.get_ydata() for line in rows], shown)
    valid = [NORMS[VALID[:, t], t] for t in range(T)]
    np.testing.assert_array_equal(median.get_ydata(), [np.median(column) for column in valid])
    for line in axes.lines:
        np.testing.assert_array_equal(line.get_xdata(), np.arange(T))
    assert axes.get_yscale() == "log" and "(steps)" in axes.get_xlabel()
    (one,) = plot_gradient_norm(NORMS[3]).axes
    (line,) = one.lines
    np.testing.assert_array_equal(line.get_ydata(), shown[3])
    plot_gradient_norm(np.zeros((2, 3))).draw_without_rendering()  # an empty plot is no error


@pytest.mark.parametrize("name", PLOTS)
def test_a_picture_is_a_png_with_nothing_cut_off_or_on_top_of_another(name, tmp_path):
    plot, values = PLOTS[name]
    figure = plot(values, path=tmp_path / "picture.png")
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    np.testing.assert_array_equal(pixels.shape[:2], np.round(figure.get_size_inches()[::-1] * 150))
    assert (pixels[[0, -1]] == 1).all() and (pixels[:, [0, -1]] == 1).all()  # a white margin
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [text.get_window_extent() for text in figure.texts]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    for axes in figure.axes:
        across, upwards = axes.get_xlabel() or figure.get_supxlabel(), axes.get_ylabel() or figure.get_supylabel()
        assert across and upwards and (axes.get_title() or figure.get_suptitle())


@pytest.mark.parametrize("name", ["saturation", "time scale", "gradient norm", "states", "eigenvalues"])
def test_a_picture_is_written_whole_or_not_at_all(name, tmp_path, monkeypatch):
    plot, values = PLOTS[name]
    (tmp_path / "picture.png").write_bytes(b"the picture before")

    def full(self, path, **_):
        path.write_bytes(b"half a pic")
        raise OSError("No space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        plot(values, path=tmp_path / "picture.png")
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes() == b"the picture before"


@pytest.mark.parametrize("name", ["saturation", "time scale", "gradient norm", "states", "eigenvalues"])
def test_without_matplotlib_a_picture_says_what_to_install(name, monkeypatch):
    plot, values = PLOTS[name]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with refused("matplotlib is required: pip install 'grujax[plot]'"):
        plot(values)


GATES, ENCODER = of(np.full((B, T, H), 0.5)), GRUEncoder(H, param_dtype=jnp.float64)
BAD = {
    "gates of a cell": (lambda: gates(GRUCell(H), {}, X), ["model: expected a GRU, GRUEncoder or GRUModel", "GRUCell"]),
    "gradient of a cell": (lambda: gradient_norm(GRUCell(H), {}, X), ["model: expected a GRU", "GRUCell"]),
    "lengths": (lambda: gates(gru(), {}, X, lengths=[7, 1, 1, 1]), ["lengths: expected 0 to T = 6", "1 to 7"]),
    "both": (lambda: gates(gru(), {}, X, lengths=LENGTHS, mask=VALID), ["lengths and mask cannot both be given"]),
    "integers": (lambda: gates(gru(), {}, X.astype(int)), ["x: expected a floating dtype"]),
    "integers too": (lambda: gradient_norm(gru(), {}, X.astype(int)), ["x: expected a floating dtype"]),
    "h0": (lambda: gates(gru(), drawn(gru()), X, H0), ["h0: expected shape (2, 4, 5)"]),
    "not scalar": (
        lambda: gradient_norm(ENCODER, drawn(ENCODER), X, lambda y: y.sum(0)),
        ["loss: expected a function that returns a scalar, found shape (5,)"],
    ),
    "segments": (
        lambda: gradient_norm(gru(), {}, X, segments=np.zeros((B, T), int), num_segments=1),
        ["segments: expected None for a GRU"],
    ),
    "resets": (
        lambda: gradient_norm(ENCODER, drawn(ENCODER), X, resets=RESETS),
        ["resets with pooling='last' need segments", "pass segments and num_segments"],
    ),
    "every layer": (lambda: saturation({"l0": GATES}), ["gates: expected the Gates of one layer, found dict"]),
    "other shapes": (
        lambda: time_scale(GATES._replace(r=GATES.r[:1])),
        ["gates: expected r, z and n of one shape (..., T, H), found (1, 6, 5), (4, 6, 5), (4, 6, 5)"],
    ),
    "no steps": (lambda: saturation(Gates(*np.ones((3, H)))), ["gates: expected r, z and n of one shape"]),
    "valid": (lambda: saturation(GATES, VALID.T), ["valid: expected shape (4, 6)"]),
    "valid dtype": (lambda: time_scale(GATES, VALID * 1), ["valid: expected dtype bool"]),
    "none valid": (lambda: saturation(GATES, NO_RESETS), ["valid: expected at least one step, found none"]),
    "none at all": (lambda: time_scale(of(np.ones((0, T, H)))), ["valid: expected at least one step"]),
    "low": (lambda: saturation(GATES, low=0.9), ["low: expected less than high = 0.9, found 0.9"]),
    "update": (lambda: time_scale(GATES, update="hold"), ["update: expected one of ['keep', 'take']", "'hold'"]),
    "no shares": (lambda: time_scale(of(np.full((B, T, H), 1.5))), ["gates.z: expected values from 0 to 1"]),
    "no numbers": (lambda: time_scale(of(np.full((B, T, H), np.nan))), ["gates.z: expected values from 0 to 1"]),
    "no saturation": (lambda: plot_saturation({"l0": GATES}), ["saturations: expected a Saturation", "Gates"]),
    "no layers": (lambda: plot_time_scale({}), ["time_scales: expected at least one layer"]),
    "no layer": (lambda: plot_saturation({}), ["saturations: expected at least one layer"]),
    "scales": (lambda: plot_time_scale(np.ones((2, 3))), ["time_scales: expected shape (H,)", "(2, 3)"]),
    "norms": (lambda: plot_gradient_norm(np.ones((2, 3, 4))), ["norms: expected shape (B, T) or (T,)", "(2, 3, 4)"]),
    "no norms": (lambda: plot_gradient_norm(np.ones((0, 3))), ["norms: expected", "at least one step", "(0, 3)"]),
    "path": (lambda: plot_time_scale([1.0, 2.0], "picture.svg"), ["path: expected a name that ends in .png"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    call, parts = BAD[case]
    with refused(*parts):
        call()
