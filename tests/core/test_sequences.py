"""The contract on sequences, lengths, masks and resets, against a loop over rows and over the pieces of each row."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from refusals import refused

from grujax import GRU, GRUEncoder, GRUModel, GRUWeights, equations, gru
from grujax.data import pack_sequences, unpack_sequences
from grujax.testing import assert_close, assert_trees_close

B, T, I, H, L = 4, 7, 3, 5, 2
WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")
AFTER = equations.Variant()
KEY = jax.random.key(0)
LEARNED = {"initial_state": "learned", "param_dtype": jnp.float64}
DRAWN = {"deadline": None, "derandomize": True}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """Here compiling is most of the work, and the numbers are held to the same tolerance."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


SEEDS = st.integers(0, 2**32 - 1)
FLAGS = arrays(np.bool_, (B, T), fill=st.nothing())  # each one drawn


@st.composite
def valid_steps(draw, holes=True):
    """(B, T): one row has every step, one none, the others some; with or without holes."""
    valid = draw(FLAGS) if holes else np.arange(T) < draw(arrays(np.int64, (B, 1), elements=st.integers(0, T)))
    full = draw(st.integers(0, B - 1))
    valid[full], valid[full - 1] = True, False
    return valid


def said(valid, by):
    """`valid` as the argument `mask`, or as `lengths` where it has no holes."""
    return jnp.asarray(valid if by == "mask" else valid.sum(1))


def poisoned(x, valid):
    """x with what must reach nothing wherever a step is not valid."""
    return np.where(valid[..., None], x, np.resize([np.nan, np.inf, 1e38, -np.inf], x.shape))


def random_weights(rng):
    shapes = [(I, 3 * H), (H, 3 * H), (3 * H,), (3 * H,)]
    return {name: rng.uniform(-0.6, 0.6, shape) for name, shape in zip(WEIGHTS, shapes, strict=True)}


SHAPES = {}


def random_params(model, rng, input_size=I):
    """Parameters of the shapes that the model declares, none of them zero."""
    key = repr(model), input_size
    if key not in SHAPES:
        SHAPES[key] = jax.eval_shape(model.init, KEY, jnp.zeros((1, input_size)))["params"]
    return jax.tree.map(lambda a: rng.uniform(-0.6, 0.6, a.shape), SHAPES[key])


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


# The reference: nothing is masked and nothing reset, each piece is a plain run of its own.


def pieces_of(valid, resets):
    """The valid steps of one row, cut before every one at which a sequence begins."""
    steps = np.flatnonzero(valid)
    return [piece for piece in np.split(steps, np.flatnonzero(resets[steps])) if piece.size]


def one_direction(x, h0, h_reset, weights, valid, resets, reverse, variant=AFTER):
    """x (B, T, I) -> hs (B, T, H), h_last (B, H) and backward(dhs, dh_last), the gradients by name."""
    hs, h_last, runs = np.zeros((*valid.shape, h0.shape[-1])), h0.copy(), []
    options = {"reverse": reverse, "variant": variant}
    for row in range(len(x)):
        pieces = pieces_of(valid[row], resets[row])
        for piece in pieces[:: -1 if reverse else 1]:
            continues = piece is pieces[-1] if reverse else not resets[row, piece[0]]
            start = h0[row] if continues else h_reset
            arguments = (x[row, piece][:, None], start[None], *(weights[name] for name in WEIGHTS))
            run = equations.sequence(*arguments, **options)
            hs[row, piece], h_last[row] = run.hs[:, 0], run.h_last[0]
            runs.append((row, piece, continues, piece is pieces[0 if reverse else -1], arguments))

    def backward(dhs, dh_last):
        total = {"x": np.zeros_like(x), "h0": np.where(valid.any(1)[:, None], 0, dh_last), "h_reset": 0 * h_reset}
        total |= {name: np.zeros_like(weights[name]) for name in WEIGHTS}
        for row, piece, continues, read_last, arguments in runs:
            d = {"dhs": dhs[row, piece][:, None], "dh_last": dh_last[row][None] * read_last}
            found = equations.sequence_backward(*arguments, **d, **options)
            total["x"][row, piece] = found.x[:, 0]
            if continues:
                total["h0"][row] += found.h0[0]
            else:
                total["h_reset"] += found.h0[0]
            for name in WEIGHTS:
                total[name] += getattr(found, name)
        return total

    return hs, h_last, backward


MERGES = {  # both directions as one, and the derivative of that
    "concat": (lambda parts: np.concatenate(parts, -1), lambda d, n: np.split(d, n, -1)),
    "sum": (sum, lambda d, n: [d] * n),
}


def layers(params, x, h0, valid, resets, directions=2, merge="concat", residual=False, variant=AFTER):
    """`GRU` with a learned initial state: output (B, T, F), h_last (L*D, B, H), backward(d_output, d_last).

    `backward` gives the gradients of params, of x and of h0; h0 None is the learned one.
    """
    learned, names = params["h0"], sorted(set(params) - {"h0"})
    starts = np.broadcast_to(learned[:, None], (len(learned), len(x), learned.shape[-1])) if h0 is None else h0
    join, part = MERGES[merge]
    last, inner = [], []
    for first in range(0, len(names), directions):
        outputs = []
        for i, reverse in zip(range(first, first + directions), (False, True), strict=False):
            run = one_direction(x, starts[i], learned[i], params[names[i]], valid, resets, reverse, variant)
            for found, where in zip(run, (outputs, last, inner), strict=True):
                where.append(found)
        x = join(outputs) + (x if residual and first else 0)

    def backward(d_output, d_last):
        gradients, d_learned, dh0 = {}, np.zeros_like(learned), np.zeros_like(starts)
        for first in reversed(range(0, len(names), directions)):
            dx = d_output if residual and first else 0
            for i, d in enumerate(part(d_output, directions), first):
                found = inner[i](d, d_last[i])
                gradients[names[i]] = {name: found[name] for name in WEIGHTS}
                d_learned[i], dh0[i], dx = found["h_reset"], found["h0"], dx + found["x"]
            d_output = dx
        if h0 is None:
            d_learned += dh0.sum(1)
        return gradients | {"h0": d_learned}, d_output, dh0

    return x, np.stack(last), backward


def dense(params, features):
    return features @ params["kernel"] + params["bias"]


def pooled(pooling, output, last, params):
    """The vector of one sequence, output (n, F) and last (F,), and backward(d) -> d_output, d_last, d_params."""
    if pooling == "last":
        return last, lambda d: (np.zeros_like(output), d, {})
    attention = pooling == "attention"
    none = {name: jax.tree.map(np.zeros_like, params[name]) for name in ("attention", "attention_score") if attention}
    if not len(output):
        return np.zeros(output.shape[1]), lambda d: (np.zeros_like(output), 0 * last, none)
    if not attention:
        share = np.full(output.shape, 1 / len(output)) if pooling == "mean" else 1.0 * (output == output.max(0))
        return (share * output).sum(0), lambda d: (share * d, 0 * last, none)
    kernel, score = params["attention"]["kernel"], params["attention_score"]["kernel"]
    inside = np.tanh(dense(params["attention"], output))
    share = np.exp(inside @ score)
    share = share / share.sum()
    value = (share * output).sum(0)

    def backward(d):
        d_scores = share * ((output - value) @ d)[:, None]
        d_inside = d_scores @ score.T * (1 - inside**2)
        d_params = {
            "attention": {"kernel": output.T @ d_inside, "bias": d_inside.sum(0)},
            "attention_score": {"kernel": inside.T @ d_scores},
        }
        return share * d + d_inside @ kernel.T, 0 * last, d_params

    return value, backward


def encoded(params, x, h0, valid, resets, pooling, directions=2, merge="concat", residual=False):
    """`GRUEncoder` row by row: features (B, F) and backward(d), the gradients of params and of x."""
    output, h_last, backward_layers = layers(params["gru"], x, h0, valid, resets, directions, merge, residual)
    join, part = MERGES[merge]
    rows = [
        pooled(pooling, output[row, valid[row]], join([state[row] for state in h_last[-directions:]]), params)
        for row in range(len(x))
    ]

    def backward(d):
        d_output, d_last, found = np.zeros_like(output), np.zeros_like(h_last), []
        for row, (_, backward_pooling) in enumerate(rows):
            d_output[row, valid[row]], d_top, d_params = backward_pooling(d[row])
            d_last[-directions:, row] = part(d_top, directions)
            found.append(d_params)
        gradients, dx, _ = backward_layers(d_output, d_last)
        return {"gru": gradients, **jax.tree.map(lambda *a: sum(a), *found)}, dx

    return np.stack([value for value, _ in rows]), backward


# One layer, one direction.

STEERED = {  # by, reverse, steering: implementation, reset_after. Each implementation meets each way to steer
    ("lengths", False, "nothing"): ("fused", True),
    ("lengths", True, "nothing"): ("scan", False),
    ("mask", False, "nothing"): ("scan", True),
    ("mask", True, "nothing"): ("fused", False),
    ("lengths", False, "resets"): ("scan", False),
    ("lengths", True, "resets"): ("fused", False),
    ("mask", False, "resets"): ("fused", True),
    ("mask", True, "resets"): ("scan", True),
    ("lengths", False, "resets to h_reset"): ("fused", False),
    ("lengths", True, "resets to h_reset"): ("scan", True),
    ("mask", False, "resets to h_reset"): ("scan", False),
    ("mask", True, "resets to h_reset"): ("fused", True),
}


@cache
def compiled_gru(by, steering, **options):
    """(arrays, valid, resets, dhs, dh_last) -> the gradients of all arrays, hs and h_last."""

    def loss(inputs, valid, resets, dhs, dh_last):
        steer = {by: valid, "resets": resets, "h_reset": inputs["h_reset"]}
        for name in {"nothing": ("resets", "h_reset"), "resets": ("h_reset",)}.get(steering, ()):
            del steer[name]
        weights = GRUWeights(*(inputs[name] for name in WEIGHTS))
        hs, h_last = gru(inputs["x"], weights, inputs["h0"], **steer, **options)
        return (hs * dhs).sum() + (h_last * dh_last).sum(), (hs, h_last)

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize("case", STEERED, ids=lambda case: f"{case[0]}-{'reverse' if case[1] else 'forward'}-{case[2]}")
@given(st.data())
@settings(max_examples=12, **DRAWN)
def test_gru_equals_the_plain_runs_of_its_pieces(case, data):
    (by, reverse, steering), (implementation, reset_after) = case, STEERED[case]
    rng = np.random.default_rng(data.draw(SEEDS))
    valid = data.draw(valid_steps(holes=by == "mask"))
    resets = data.draw(FLAGS) & (steering != "nothing")
    inputs = {"x": rng.normal(size=(B, T, I)), "h0": rng.normal(size=(B, H)), **random_weights(rng)}
    h_reset = rng.normal(size=H) * (steering == "resets to h_reset")
    dhs, dh_last = rng.normal(size=(B, T, H)), rng.normal(size=(B, H))
    variant = equations.Variant(reset_after)
    expected_hs, expected_last, backward = one_direction(
        inputs["x"], inputs["h0"], h_reset, inputs, valid, resets, reverse, variant
    )
    expected = backward(dhs, dh_last)

    run = compiled_gru(by, steering, reverse=reverse, implementation=implementation, reset_after=reset_after)
    handed = as_jax(inputs | {"x": poisoned(inputs["x"], valid), "h_reset": h_reset})
    gradients, (hs, h_last) = run(handed, said(valid, by), *as_jax((resets, dhs, dh_last)))
    assert_close(hs, expected_hs, name="hs")
    assert_close(h_last, expected_last, name="h_last")
    if steering != "resets to h_reset":
        del gradients["h_reset"], expected["h_reset"]
    assert_trees_close(gradients, expected, "gradient")
    assert not np.asarray(hs)[~valid].any() and not np.asarray(gradients["x"])[~valid].any()
    empty = ~valid.any(1)
    np.testing.assert_array_equal(h_last[empty], inputs["h0"][empty])


# Two layers, both directions, the initial state learned.


@cache
def compiled_layers(by, h0_given, hidden_size=H, **options):
    """(params, x, h0, valid, resets, d_output, d_last) -> the gradients of params, x and h0, output and h_last."""
    model = GRU(hidden_size, num_layers=L, bidirectional=True, **LEARNED, **options)

    def loss(params, x, h0, valid, resets, d_output, d_last):
        steer = {by: valid, "resets": resets}
        output, h_last = model.apply({"params": params}, x, h0 if h0_given else None, **steer)
        return (output * d_output).sum() + (h_last * d_last).sum(), (output, h_last)

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def random_layers(rng, input_size=I, hidden_size=H, n_rows=B):
    """params and h0 of two layers in both directions."""
    model = GRU(hidden_size, num_layers=L, bidirectional=True, **LEARNED)
    return random_params(model, rng, input_size), rng.normal(size=(2 * L, n_rows, hidden_size))


def check_layers(rng, params, x, h0, valid, resets, by, h0_given, **options):
    """Two layers in both directions against the reference, gradients too."""
    hidden_size = h0.shape[-1]
    d_output, d_last = rng.normal(size=(*valid.shape, 2 * hidden_size)), rng.normal(size=h0.shape)
    variant = equations.Variant(options.get("reset_after", True))
    expected, expected_last, backward = layers(params, x, h0 if h0_given else None, valid, resets, variant=variant)
    run = compiled_layers(by, h0_given, hidden_size, **options)
    handed = as_jax((params, poisoned(x, valid), h0))
    (*gradients, dh0), (output, h_last) = run(*handed, said(valid, by), *as_jax((resets, d_output, d_last)))
    assert_close(output, expected, name="output")
    assert_close(h_last, expected_last, name="h_last")
    *expected_gradients, expected_dh0 = backward(d_output, d_last)
    assert_trees_close(gradients, expected_gradients, "gradient")
    if h0_given:
        assert_close(dh0, expected_dh0, "gradient", name="h0")
    assert not np.asarray(output)[~valid].any() and not np.asarray(gradients[1])[~valid].any()
    starts = h0 if h0_given else np.broadcast_to(params["h0"][:, None], h0.shape)
    np.testing.assert_array_equal(h_last[:, ~valid.any(1)], starts[:, ~valid.any(1)])


@pytest.mark.parametrize(
    ("implementation", "by", "h0_given", "reset_after"),
    [
        (None, "lengths", False, True),
        (None, "mask", True, False),
        ("scan", "lengths", True, False),
        ("reference", "mask", False, True),
    ],
)
@given(st.data())
@settings(max_examples=6, **DRAWN)
def test_layers_equal_the_plain_runs_of_their_pieces(implementation, by, h0_given, reset_after, data):
    rng = np.random.default_rng(data.draw(SEEDS))
    valid, resets = data.draw(valid_steps(holes=by == "mask")), data.draw(FLAGS)
    params, h0 = random_layers(rng)
    x = rng.normal(size=(B, T, I))
    options = {"implementation": implementation, "reset_after": reset_after}
    check_layers(rng, params, x, h0, valid, resets, by, h0_given, **options)


EDGES = {"no steps": (4, 0, 3, 5), "no rows": (0, 7, 3, 5), "one unit": (4, 7, 3, 1)}


@pytest.mark.parametrize("implementation", [None, "columns", "halves", "joint", "merged"])
@pytest.mark.parametrize("edge", EDGES)
def test_sizes_at_the_edge(edge, implementation):
    n_rows, n_steps, input_size, hidden_size = EDGES[edge]
    rng = np.random.default_rng(3)
    params, h0 = random_layers(rng, input_size, hidden_size, n_rows)
    x, (valid, resets) = rng.normal(size=EDGES[edge][:3]), rng.random((2, n_rows, n_steps)) < 0.7
    check_layers(rng, params, x, h0, valid, resets, "mask", False, implementation=implementation, reset_after=True)


# Packing and pooling.

N, LONGEST = 6, 3
SIZES = st.lists(st.integers(0, LONGEST), min_size=N, max_size=N)  # two or more fit in a row: no more than 3 rows of B


def packed_and_apart(rng, sizes):
    """N sequences packed into B rows of T steps; x (N, LONGEST, I) and valid, each in a row of its own."""
    sequences = [rng.normal(size=(size, I)) for size in sizes]
    apart, valid = np.zeros((N, LONGEST, I)), np.arange(LONGEST) < np.array(sizes)[:, None]
    apart[valid] = np.concatenate(sequences)
    return pack_sequences(sequences, length=T, num_rows=B), apart, valid


def unpacked(packed, output):
    """All valid steps of `output` (B, T, F), sequence after sequence."""
    return np.concatenate(unpack_sequences(packed, np.asarray(output)))


@given(SEEDS, SIZES)
@settings(max_examples=6, **DRAWN)
def test_packed_sequences_equal_separate_runs(seed, sizes):
    rng = np.random.default_rng(seed)
    params, h0 = random_layers(rng)
    packed, apart, valid = packed_and_apart(rng, sizes)
    expected, last, backward = layers(params, apart, None, valid, np.zeros_like(valid))
    d_output, d_last = rng.normal(size=(B, T, 2 * H)), rng.normal(size=h0.shape)
    d_apart, d_last_apart = np.zeros_like(expected), np.zeros_like(last)
    d_apart[valid] = unpacked(packed, d_output)
    expected_last, d_learned = np.repeat(params["h0"][:, None], B, 1), np.zeros_like(params["h0"])
    for row in range(B):
        inside = packed.segments[row, : packed.lengths[row]]
        for i in range(2 * L):  # of the last sequence in the row, in reverse of the first
            if inside.size:
                owner = inside[0 if i % 2 else -1]
                expected_last[i, row], d_last_apart[i, owner] = last[i, owner], d_last[i, row]
            else:
                d_learned[i] += d_last[i, row]
    expected_gradients, dx, _ = backward(d_apart, d_last_apart)
    expected_gradients["h0"] += d_learned

    run = compiled_layers("lengths", False, implementation=None, reset_after=True)
    x = poisoned(packed.x, packed.segments >= 0)
    handed = as_jax((params, x, h0, packed.lengths, packed.resets, d_output, d_last))
    (gradients, packed_dx, _), (output, h_last) = run(*handed)
    assert_close(unpacked(packed, output), expected[valid], name="output")
    assert_close(h_last, expected_last, name="h_last")
    assert_close(unpacked(packed, packed_dx), dx[valid], "gradient", name="x")
    assert_trees_close(gradients, expected_gradients, "gradient")


ENCODERS = {
    "last": {"num_layers": L, "bidirectional": True, "merge": "sum"},
    "mean": {},
    "max": {"num_layers": L, "connection": "residual"},
    "attention": {},
}


@cache
def compiled_encoder(pooling, num_segments=None):
    """(params, x, steering, d) -> the gradients of params and x, and the features."""
    model = GRUEncoder(H, pooling=pooling, **ENCODERS[pooling], **LEARNED)

    def loss(params, x, steering, d):
        features = model.apply({"params": params}, x, **steering, num_segments=num_segments)
        return (features * d).sum(), features

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))


def encoder_params(pooling, rng):
    """Parameters, and what `encoded` calls the settings."""
    options = ENCODERS[pooling]
    params = random_params(GRUEncoder(H, pooling=pooling, **options, **LEARNED), rng)
    directions, residual = 1 + options.get("bidirectional", False), "connection" in options
    return params, {"directions": directions, "merge": options.get("merge", "concat"), "residual": residual}


@pytest.mark.parametrize("pooling", ENCODERS)
@given(SEEDS, SIZES)
@settings(max_examples=6, **DRAWN)
def test_pooled_segments_equal_separate_runs(pooling, seed, sizes):
    rng = np.random.default_rng(seed)
    params, named = encoder_params(pooling, rng)
    packed, apart, valid = packed_and_apart(rng, sizes)
    expected, backward = encoded(params, apart, None, valid, np.zeros_like(valid), pooling, **named)
    d = rng.normal(size=expected.shape)
    there = packed.segments >= 0
    segments = np.where(there, packed.segments, rng.integers(-1, N, (B, T)))  # in the padding they say nothing
    steering = {"lengths": packed.lengths, "resets": packed.resets, "segments": segments}
    x = poisoned(packed.x, there)
    (gradients, packed_dx), features = compiled_encoder(pooling, len(packed))(*as_jax((params, x, steering, d)))
    expected_gradients, dx = backward(d)
    assert_close(features, expected)
    assert_trees_close(gradients, expected_gradients, "gradient")
    assert_close(unpacked(packed, packed_dx), dx[valid], "gradient", name="x")


@pytest.mark.parametrize("pooling", ENCODERS)
@given(SEEDS, valid_steps())
@settings(max_examples=6, **DRAWN)
def test_pooling_goes_over_the_valid_steps_of_each_row(pooling, seed, valid):
    rng = np.random.default_rng(seed)
    params, named = encoder_params(pooling, rng)
    x = rng.normal(size=(B, T, I))
    expected, backward = encoded(params, x, None, valid, np.zeros_like(valid), pooling, **named)
    d = rng.normal(size=expected.shape)
    handed = as_jax((params, poisoned(x, valid), {"mask": valid}, d))
    gradients, features = compiled_encoder(pooling)(*handed)
    assert_close(features, expected)
    assert_trees_close(gradients, backward(d), "gradient")
    if pooling != "last":
        assert not np.asarray(features)[~valid.any(1)].any()


RNG = np.random.default_rng(1)
X, H0 = RNG.normal(size=(B, T, I)), RNG.normal(size=(2 * L, B, H))
RESETS, VALID = RNG.random((B, T)) < 0.4, RNG.random((B, T)) < 0.7
VALID[1], RESETS[0, :2], VALID[0, :2], VALID[3] = False, (False, True), True, np.arange(T) != 2
LENGTHS = np.array([5, 0, 7, 6])
SEGMENTS = np.arange(B)[:, None] + np.where(np.arange(T) < 4, 0, B)  # two in each row


def test_a_function_pools_what_it_likes():
    seen = []

    def first_and_count(output, valid):
        seen.append((output, valid))
        return output[..., 0, :] + valid.sum(-1, keepdims=True).astype(output.dtype)

    model = GRUEncoder(H, bidirectional=True, pooling=first_and_count, **LEARNED)
    params = random_params(model, np.random.default_rng(9))
    del seen[:]
    features = model.apply({"params": as_jax(params)}, jnp.asarray(X), mask=jnp.asarray(VALID))
    ((found, valid),) = seen
    expected = layers(params["gru"], X, None, VALID, np.zeros_like(VALID))[0]
    assert_close(found, expected, name="what the function is given")
    np.testing.assert_array_equal(valid, VALID)
    assert_close(features, expected[:, 0] + VALID.sum(1, keepdims=True))


# Axes and sizes.


def in_two(a):
    return a.reshape(2, 2, *a.shape[1:])


LAYOUTS = {  # time_major; how arrays of steps (B, T, ...), rows (B, ...), states (D, B, H), segments (N, ...) lie
    "time-major": (True, {"steps": lambda a: a.swapaxes(0, 1)}),
    "two batch axes": (False, {"steps": in_two, "rows": in_two, "states": lambda a: a.reshape(-1, 2, 2, H)}),
    "no batch axis": (
        False,  # and of the segments those in row 3
        {"steps": lambda a: a[3], "rows": lambda a: a[3], "states": lambda a: a[:, 3], "segments": lambda a: a[3::B]},
    ),
    "two batch axes, time-major": (
        True,
        {"steps": lambda a: np.moveaxis(in_two(a), 2, 0), "rows": in_two, "states": lambda a: a.reshape(-1, 2, 2, H)},
    ),
}
STEERING = {
    "mask": ("steps", VALID),
    "resets": ("steps", RESETS),
    "segments": ("steps", SEGMENTS),
    "lengths": ("rows", LENGTHS),
}
FLAGGED, POOLED, SEGMENTED = ("mask", "resets"), ("lengths",), ("lengths", "resets", "segments")
BOTH = {"bidirectional": True, **LEARNED}


def first_step(output, valid):
    return output[..., 0, :] + valid.sum(-1, keepdims=True).astype(output.dtype)


MODULES = {  # module, what steers it, what its output is made of, in how many of the layouts it is seen
    "gru": (GRU(H, **LEARNED), FLAGGED, "steps", 4),
    "GRU": (GRU(H, **BOTH), FLAGGED, "steps", 4),
    "GRU, directions apart": (GRU(H, merge=None, **BOTH), FLAGGED, "steps", 2),
    "GRUModel": (GRUModel(H, 2, pooling=None, **BOTH), FLAGGED, "steps", 3),
    "GRUModel, pooled": (GRUModel(H, 2, **BOTH), POOLED, "rows", 3),
    "function": (GRUEncoder(H, pooling=first_step, **BOTH), POOLED, "rows", 2),
    "mean": (GRUEncoder(H, pooling="mean", **BOTH), POOLED, "rows", 1),
    "max": (GRUEncoder(H, pooling="max", **BOTH), POOLED, "rows", 1),
    "attention": (GRUEncoder(H, pooling="attention", **BOTH), POOLED, "rows", 1),
    "last of segments": (GRUEncoder(H, pooling="last", **BOTH), SEGMENTED, "segments", 3),
    "mean of segments": (GRUEncoder(H, pooling="mean", **BOTH), SEGMENTED, "segments", 1),
    "attention of segments": (GRUEncoder(H, pooling="attention", **BOTH), SEGMENTED, "segments", 1),
}


def gru_as_layer(params, x, h0, **options):
    hs, h_last = gru(x, GRUWeights(**params["l0"]), h0[0], h_reset=params["h0"][0], **options)
    return hs, h_last[None]


def applied(module, params, x, h0, time_major, **options):
    states = {} if isinstance(module, GRU) else {"return_state": True}
    return module.clone(time_major=time_major).apply({"params": params}, x, h0, **options, **states)


@cache
def batch_major(name):
    """How a module runs, and what it gives batch first with one batch axis."""
    module, steering, *_ = MODULES[name]
    params = as_jax(random_params(module, np.random.default_rng(5)))
    run = partial(gru_as_layer, params) if name == "gru" else partial(applied, module, params)
    run = partial(run, num_segments=2 * B) if "segments" in steering else run
    arguments = as_jax({key: STEERING[key][1] for key in steering})
    return run, jax.tree.map(np.asarray, run(*as_jax((X, H0[: module.num_directions])), time_major=False, **arguments))


@pytest.mark.parametrize(
    ("name", "layout"), [(name, it) for name in MODULES for it in list(LAYOUTS)[: MODULES[name][3]]]
)
def test_axes_are_a_matter_of_layout(name, layout):
    module, steering, kind, _ = MODULES[name]
    time_major, lay = LAYOUTS[layout]
    run, (output, h_last) = batch_major(name)

    def laid(kind, a):
        return lay.get(kind, np.asarray)(a)

    arguments = {key: laid(*STEERING[key]) for key in steering}
    x, h0, arguments = as_jax((laid("steps", X), laid("states", H0[: module.num_directions]), arguments))
    found, found_last = run(x, h0, time_major=time_major, **arguments)
    if kind == "segments":
        found = laid(kind, np.asarray(found))
    assert_trees_close(found, jax.tree.map(partial(laid, kind), output))
    assert_close(found_last, laid("states", h_last))


def test_vmap_runs_row_by_row():
    run, expected = batch_major("GRU")

    def row(x, h0, mask, resets):
        return run(x, h0, time_major=False, mask=mask, resets=resets)

    found = jax.vmap(row, (0, 1, 0, 0), (0, 1))(*as_jax((X, H0[:2], VALID, RESETS)))
    assert_trees_close(found, expected)


@pytest.mark.parametrize(
    ("edge", "pooling"), [(edge, pooling) for edge in ("no steps", "no rows") for pooling in ENCODERS]
)
def test_pooling_at_the_edge(edge, pooling):
    n_rows, n_steps, input_size, hidden_size = EDGES[edge]
    rng = np.random.default_rng(4)
    model = GRUModel(hidden_size, 2, pooling=pooling, **BOTH)
    params = random_params(model, rng, input_size)
    x, flags = rng.normal(size=(n_rows + 1, n_steps, input_size)), rng.random((2, n_rows + 1, n_steps)) < 0.7
    flags[:, -1] = False  # in the reference alone: a segment without a step
    (expected, _), (expected_segments, _) = (
        encoded(params["encoder"], x, None, flags[0], resets, pooling) for resets in (0 * flags[1], flags[1])
    )
    handed = {"params": as_jax(params)}, jnp.asarray(x[:-1])
    mask, resets = as_jax((flags[0, :-1], flags[1, :-1]))
    segments = jnp.asarray(np.repeat(np.arange(n_rows)[:, None], n_steps, 1))
    assert_close(model.apply(*handed, mask=mask), dense(params["head"], expected[:-1]))
    found = model.apply(*handed, mask=mask, resets=resets, segments=segments, num_segments=n_rows + 1)
    assert_close(found, dense(params["head"], expected_segments))


@pytest.mark.parametrize("edge", EDGES)
def test_an_output_a_step_at_the_edge(edge):
    n_rows, n_steps, input_size, hidden_size = EDGES[edge]
    rng = np.random.default_rng(4)
    model = GRUModel(hidden_size, 2, pooling=None, **BOTH)
    params = random_params(model, rng, input_size)
    x, (mask, resets) = rng.normal(size=EDGES[edge][:3]), rng.random((2, n_rows, n_steps)) < 0.7
    output, expected_last, _ = layers(params["encoder"]["gru"], x, None, mask, resets)
    y, h_last = model.apply(
        {"params": as_jax(params)}, jnp.asarray(x), return_state=True, **as_jax({"mask": mask, "resets": resets})
    )
    assert_close(y, np.where(mask[..., None], dense(params["head"], output), 0))
    assert_close(h_last, expected_last)


# Streaming and truncated backpropagation.

STREAM = GRUModel(H, 2, num_layers=L, pooling=None, **LEARNED)


@jax.jit
def stream(params, x, h, lengths, resets):
    return STREAM.apply({"params": params}, x, h, lengths=lengths, resets=resets, return_state=True)


@jax.jit
def stream_in_scan(params, x, h, valid, resets):
    """One step at a time, the state as the carry."""

    def one_step(h, inputs):
        x, valid, resets = inputs
        y, h = stream(params, x[:, None], h, valid.astype(int), resets[:, None])
        return h, y[:, 0]

    h, ys = jax.lax.scan(one_step, h, jax.tree.map(lambda a: a.swapaxes(0, 1), (x, valid, resets)))
    return ys.swapaxes(0, 1), h


@given(SEEDS, valid_steps(holes=False), FLAGS)
@settings(max_examples=6, **DRAWN)
def test_a_stream_of_chunks_equals_the_whole(seed, valid, resets):
    rng = np.random.default_rng(seed)
    params, x = random_params(STREAM, rng), poisoned(rng.normal(size=(B, T, I)), valid)
    handed, lengths, learned = as_jax(params), valid.sum(1), params["encoder"]["gru"]["h0"]
    start = jnp.asarray(np.repeat(learned[:, None], B, 1))
    output, expected_last, _ = layers(params["encoder"]["gru"], x, None, valid, resets, 1)
    expected = np.where(valid[..., None], dense(params["head"], output), 0)

    def chunk(at, size, h, rows=slice(None)):
        steps, still = slice(at, at + size), np.clip(lengths - at, 0, min(size, T - at))
        return stream(handed, *as_jax((x[rows, steps], h, still[rows], resets[rows, steps])))

    def in_chunks(size, h):
        ys = []
        for at in range(0, T, size):
            y, h = chunk(at, size, h)
            ys.append(y)
        return jnp.concatenate(ys, 1), h

    runs = {
        "the whole": chunk(0, T, None),
        "chunks of 1": in_chunks(1, start),
        "chunks of 3": in_chunks(3, None),
        "a scan": stream_in_scan(handed, *as_jax((x, start, valid, resets))),
    }
    for name, (y, h_last) in runs.items():
        assert_close(y, expected, name=name)
        assert_close(h_last, expected_last, name=f"h_last of {name}")
        assert not np.asarray(y)[~valid].any()
        np.testing.assert_array_equal(h_last[:, lengths == 0], start[:, lengths == 0])
    _, h = chunk(0, 3, None)
    backwards = slice(None, None, -1)
    y, _ = chunk(3, 3, jax.tree.map(lambda a: a[:, backwards], h), backwards)
    assert_close(y, expected[backwards, 3:6], name="rows in another order from there on")


def test_truncated_backpropagation_stops_at_the_chunk():
    rng, cut = np.random.default_rng(6), 4
    params, x, resets = random_params(STREAM, rng), rng.normal(size=(B, T, I)), rng.random((B, T)) < 0.2
    d = rng.normal(size=(B, T - cut, 2))

    @jax.jit
    def gradients(params, x, resets):
        def loss(params):
            _, h = STREAM.apply({"params": params}, x[:, :cut], resets=resets[:, :cut], return_state=True)
            h = jax.lax.stop_gradient(h)
            return (STREAM.apply({"params": params}, x[:, cut:], h, resets=resets[:, cut:]) * d).sum(), h

        return jax.grad(loss, has_aux=True)(params)

    def expected(x, h0, resets):
        """The gradients of what the last steps give, of a run over x from h0."""
        output, h_last, backward = layers(params["encoder"]["gru"], x, h0, np.ones_like(resets), resets, 1)
        d_output = np.zeros_like(output)
        d_output[:, cut - T :] = d @ params["head"]["kernel"].T
        d_kernel = np.einsum("bti,bto->io", output[:, cut - T :], d)
        of_layers = backward(d_output, 0 * h_last)[0]
        return {"encoder": {"gru": of_layers}, "head": {"kernel": d_kernel, "bias": d.sum((0, 1))}}

    found, h = gradients(*as_jax((params, x, resets)))
    assert_trees_close(found, expected(x[:, cut:], np.asarray(h), resets[:, cut:]), "gradient")
    of_whole = expected(x, None, resets)["encoder"]["gru"]
    for name, d_weights in found["encoder"]["gru"]["l0"].items():
        assert np.abs(d_weights - of_whole["l0"][name]).max() > 1e-2


# The initial state in front of the output.


@pytest.mark.parametrize(("time_major", "h0_given"), [(False, True), (True, False)])
def test_the_initial_state_stands_in_front(time_major, h0_given):
    rng, states = np.random.default_rng(7), H0[:L] if h0_given else None
    x, mask, resets = (jnp.asarray(a.swapaxes(0, 1) if time_major else a) for a in (X, VALID, RESETS))
    steering = {"mask": mask, "resets": resets}

    def batch_first(a):
        return np.asarray(a).swapaxes(0, 1) if time_major else np.asarray(a)

    weights, h0 = random_weights(rng), H0[0] if h0_given else np.zeros((B, H))
    expected, expected_last, _ = one_direction(X, h0, np.zeros(H), weights, VALID, RESETS, False)
    options = {"time_major": time_major, "include_initial": True, **steering}
    hs, h_last = gru(x, GRUWeights(**as_jax(weights)), jnp.asarray(h0) if h0_given else None, **options)
    np.testing.assert_array_equal(batch_first(hs)[:, 0], h0)
    assert_close(batch_first(hs)[:, 1:], expected)
    assert_close(h_last, expected_last)

    model = GRUModel(H, 2, num_layers=L, pooling=None, include_initial=True, time_major=time_major, **LEARNED)
    params = random_params(model, rng)
    y = model.apply({"params": as_jax(params)}, x, as_jax(states), **steering)
    learned = np.repeat(params["encoder"]["gru"]["h0"][:, None], B, 1)
    first = dense(params["head"], (states if h0_given else learned)[-1])
    output = layers(params["encoder"]["gru"], X, states, VALID, RESETS, 1)[0]
    assert_close(batch_first(y)[:, 0], first)
    assert_close(batch_first(y)[:, 1:], np.where(VALID[..., None], dense(params["head"], output), 0))


@pytest.mark.parametrize("residual", [False, True])
def test_the_initial_state_in_front_is_the_last_layers(residual):
    rng = np.random.default_rng(8)
    model = GRU(H, num_layers=L, include_initial=True, connection="residual" if residual else None, **LEARNED)
    params, d = random_params(model, rng), rng.normal(size=(B, T + 1, H))

    @jax.jit
    def run(params, x):
        def loss(params):
            output, _ = model.apply({"params": params}, x, mask=VALID, resets=RESETS)
            return (output * d).sum(), output

        return jax.grad(loss, has_aux=True)(params)

    gradients, output = run(*as_jax((params, X)))
    expected, h_last, backward = layers(params, X, None, VALID, RESETS, 1, residual=residual)
    expected_gradients = backward(d[:, 1:] * VALID[..., None], 0 * h_last)[0]
    expected_gradients["h0"][-1] += d[:, 0].sum(0)
    np.testing.assert_array_equal(output[:, 0], np.repeat(params["h0"][-1][None], B, 0))
    assert_close(output[:, 1:], np.where(VALID[..., None], expected, 0))
    assert_trees_close(gradients, expected_gradients, "gradient")


INITIAL = {"include_initial": True, "param_dtype": jnp.float64}
NO_FRONT = {
    "gru in reverse": (
        lambda: gru(
            jnp.asarray(X),
            GRUWeights(**as_jax(random_weights(np.random.default_rng(0)))),
            include_initial=True,
            reverse=True,
        ),
        "False where time runs backwards",
    ),
    "both directions": (lambda: GRU(H, bidirectional=True, **INITIAL).init(KEY, jnp.asarray(X)), "False where time"),
    "pooling": (lambda: GRUModel(H, 2, pooling="last", **INITIAL).init(KEY, jnp.asarray(X)), "False beside pooling"),
}


@pytest.mark.parametrize("case", NO_FRONT)
def test_where_there_is_no_front_the_initial_state_is_refused(case):
    call, expected = NO_FRONT[case]
    with refused("include_initial: expected", expected):
        call()


# Heads.

HEADS = {"policy": 3, "value": 1}


@pytest.mark.parametrize("pooling", ["last", None])
def test_each_head_has_layers_of_its_own(pooling):
    model = GRUModel(5, HEADS, head_hidden=(7,), head_activation="tanh", pooling=pooling, **LEARNED)
    params = random_params(model, np.random.default_rng(9))
    assert set(params) == {"encoder", "head_policy_hidden0", "head_policy", "head_value_hidden0", "head_value"}
    valid = np.arange(T) < LENGTHS[:, None]
    output, h_last, _ = layers(params["encoder"]["gru"], X, None, valid, np.zeros_like(valid), 1)
    features = output if pooling is None else h_last[-1]
    found = model.apply({"params": as_jax(params)}, jnp.asarray(X), lengths=LENGTHS)
    assert list(found) == list(HEADS)
    for name in HEADS:
        expected = dense(params[f"head_{name}"], np.tanh(dense(params[f"head_{name}_hidden0"], features)))
        assert_close(found[name], expected if pooling else np.where(valid[..., None], expected, 0), name=name)


def test_a_head_has_as_many_layers_as_it_is_told():
    model = GRUModel(5, 2, head_hidden=(7, 4), **LEARNED)
    params = random_params(model, np.random.default_rng(9))
    features = layers(params["encoder"]["gru"], X, None, np.ones((B, T), bool), np.zeros((B, T), bool), 1)[1][-1]
    for name in ("head_hidden0", "head_hidden1"):
        features = np.maximum(dense(params[name], features), 0)
    assert_close(model.apply({"params": as_jax(params)}, jnp.asarray(X)), dense(params["head"], features))
