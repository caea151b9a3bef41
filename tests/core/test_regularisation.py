"""Regularisation: the statistics of the masks, the oracle with the same masks, all implementations, and evaluation."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from refusals import refused

import grujax.nnx as gnnx
from grujax import GRU, GRUEncoder, GRUModel, equations
from grujax.core.config import own_fields
from grujax.kernels import explain
from grujax.seq2seq import Seq2Seq
from grujax.seq2seq.nnx import Seq2Seq as NNXSeq2Seq
from grujax.testing import assert_close, assert_trees_close
from grujax.training import TrainConfig
from grujax.training.step import disturb

RNG = np.random.default_rng(0)
B, T, I, H = 12, 5, 24, 32
X, H0 = RNG.normal(size=(B, T, I)), RNG.normal(size=(4, B, H))
D_OUTPUT, D_LAST = RNG.normal(size=(B, T, 2 * H)), RNG.normal(size=(4, B, H))
LENGTHS = np.array([5, 0, 2, 4, 1, 5, 3, 3, 0, 5, 4, 2])
VALID = np.arange(T) < LENGTHS[:, None]
RESETS = RNG.random((B, T)) < 0.3
PADDED = np.where(VALID[..., None], X, np.nan)
WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")
CELLS = (("l0", False), ("l0_reverse", True))
RATE = {"dropout": 0.35, "input_dropout": 0.3, "recurrent_dropout": 0.4, "weight_dropout": 0.3, "zoneout": 0.4}
DROPOUTS = [name for name in RATE if name != "zoneout"]
KEY, OTHER, *_ = KEYS = jax.random.split(jax.random.key(0), 16)
TRAINING = {"deterministic": False, "rngs": {"dropout": KEY}}
OPEN = 1e3
"""A bias at which the sigmoid is 1; with the other sign it is 0."""


def layer(name, rate, bidirectional=True, hidden_size=H, **options):
    """The smallest layer on which this kind of regularisation acts."""
    layers = 2 if name == "dropout" else 1
    options = {"bidirectional": bidirectional, "param_dtype": jnp.float64} | options
    return GRU(hidden_size, num_layers=layers, **{name: rate}, **options)


def drawn(model, x=X):
    shapes, rng = jax.eval_shape(model.init, KEY, jnp.asarray(x)), np.random.default_rng(1)
    return jax.tree.map(lambda a: jax.device_put(rng.uniform(-0.4, 0.4, a.shape)), shapes)


def start(model):
    return jax.device_put(H0[: model.num_layers * model.num_directions, :, : model.hidden_size])


def training(model, variables, x=X, key=KEY, h0=None, **options):
    h0 = start(model) if h0 is None else jnp.asarray(h0)
    return model.apply(variables, jnp.asarray(x), h0, deterministic=False, rngs={"dropout": key}, **options)


def put(cells, **parts):
    """Overwrites the part of one gate in a weight of every cell: `w_hh_of_n=...`."""
    for cell in cells:
        for part, value in parts.items():
            weight, gate = part.split("_of_")
            size = cell[weight].shape[-1] // 3
            first = size * "rzn".index(gate)
            cell[weight] = np.array(cell[weight])
            cell[weight][..., first : first + size] = value


def entering(hs, h0, reverse):
    """The states that enter the steps: hs (..., B, T, H), h0 (B, H)."""
    first = np.broadcast_to(h0[:, None], (*hs.shape[:-2], 1, hs.shape[-1]))
    return np.concatenate([hs[..., 1:, :], first] if reverse else [first, hs[..., :-1, :]], -2)


@functools.cache
def masks(name):
    """The masks that a layer draws with each of KEYS, read from the output of a layer whose weights reveal them.

    (K, D, B, T, features), for every step; for weights (K, D, H, 3H). D is 1 for dropout between layers.
    """
    on_weights = name == "weight_dropout"
    options = {"activation": "identity", "gate_activation": "identity" if on_weights else "sigmoid"}
    model = layer(name, RATE[name], bidirectional=name != "dropout", **options)
    x, h0 = np.ones((B, T, I)) * np.arange(1.0, T + 1)[:, None], np.ones((2, B, H))
    shapes = jax.eval_shape(model.init, KEY, jnp.asarray(x))
    cells = jax.tree.map(lambda a: np.zeros(a.shape), shapes)["params"]
    every = list(cells.values())
    # r = 1 and z = 0, so that the new state is W_in x + b_in + W_hn h
    put(every, b_ih_of_r=OPEN, b_ih_of_z=-OPEN)
    match name:
        case "dropout":  # the first layer returns ones, the second its input
            put(every[:1], b_ih_of_n=1.0)
            put(every[1:], w_ih_of_n=np.eye(H))
        case "input_dropout":
            put(every, w_ih_of_n=np.eye(I, H))
        case "recurrent_dropout":  # h' = 1 + mask ⊙ h
            put(every, w_hh_of_n=np.eye(H), b_ih_of_n=1.0)
        case "weight_dropout":  # a unit vector h selects a row i: r = 1 + W_hr[i], z = W_hz[i], n = r ⊙ W_hn[i]
            put(every, b_ih_of_r=1.0, b_ih_of_z=0.0, w_hh_of_r=1.0, w_hh_of_z=1.0, w_hh_of_n=1.0)
            x, h0 = np.ones((H, 1, I)), np.stack([np.eye(H)] * 2)
        case "zoneout":  # the new state is the number of the step, which no earlier state was
            put(every, w_ih_of_n=np.eye(1, I).T)
            h0 = 0 * h0

    def run(key):
        return training(model, {"params": cells}, x, key, h0, mutable=["intermediates"])

    (output, _), sown = jax.jit(jax.vmap(run))(KEYS)
    directions = np.split(np.asarray(output), model.num_directions, -1)
    match name:
        case "input_dropout":
            found = [h[..., :I] / x for h in directions]
        case "recurrent_dropout":
            found = [(h - 1) / entering(h, h0[0], reverse) for h, (_, reverse) in zip(directions, CELLS, strict=True)]
        case "weight_dropout":
            gates = [map(np.asarray, sown["intermediates"][f"{cell}_gates"][0]) for cell, _ in CELLS]
            found = [np.concatenate([r - 1, z, n / r], -1)[:, 0] for r, z, n in gates]
        case "zoneout":
            found = [(h != x[..., :1]).astype(float) for h in directions]
        case _:
            found = directions
    return np.stack(found, 1)


def exact(name):
    """The masks of KEY without the rounding errors of `masks`: 0, or the factor of an element that survives."""
    found = masks(name)[0]
    return found if name == "zoneout" else np.where(found > 0.5, 1 / (1 - RATE[name]), 0.0)


def draws(name):
    """Each draw once, over the keys, directions, rows and steps that differ: (N, features), True where dropped."""
    found = masks(name)
    if name in ("input_dropout", "recurrent_dropout"):
        found = found[..., 0, :]
    if name == "input_dropout":
        found = found[:, 0]
    return found.reshape(-1, found.shape[-1]) == (name == "zoneout")


@pytest.mark.parametrize("name", RATE)
def test_as_many_are_dropped_as_the_rate_says(name):
    """The share is within five standard deviations of the binomial distribution."""
    dropped, rate = draws(name), RATE[name]
    assert dropped.size > 3000
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / dropped.size)


@pytest.mark.parametrize("name", DROPOUTS)
def test_what_survives_is_divided_by_the_probability_to(name):
    found = masks(name)
    survives = np.abs(found) > 0.5
    assert_close(found, np.where(survives, 1 / (1 - RATE[name]), 0.0))
    assert survives.any() and not survives.all()


@pytest.mark.parametrize("name", ["input_dropout", "recurrent_dropout"])
def test_a_locked_mask_is_the_same_at_every_step_and_another_for_every_sequence(name):
    found = masks(name)
    assert_close(found, np.broadcast_to(found[..., :1, :], found.shape))
    each = draws(name)
    assert len(np.unique(each, axis=0)) == len(each)
    if name == "input_dropout":  # both directions read the same masked input
        np.testing.assert_array_equal(found[:, 0], found[:, 1])


@pytest.mark.parametrize("name", ["dropout", "zoneout"])
def test_an_unlocked_mask_is_another_at_every_step(name):
    each = draws(name)
    assert len(np.unique(each, axis=0)) == len(each)


def test_a_mask_on_weights_serves_all_sequences_and_steps():
    """The mask is recovered from one step; the gates at other steps, of other states, follow from it too."""
    model = layer("weight_dropout", RATE["weight_dropout"])
    variables = drawn(model)
    (output, _), sown = jax.jit(lambda v: training(model, v, mutable=["intermediates"]))(variables)
    for i, (name, reverse) in enumerate(CELLS):
        w_ih, w_hh, b_ih, b_hh = (np.asarray(variables["params"][name][w]) for w in WEIGHTS)
        h = entering(np.split(np.asarray(output), 2, -1)[i], H0[i], reverse)
        inside = X @ w_ih + b_ih + h @ (w_hh * exact("weight_dropout")[i]) + b_hh
        r, z, _ = (np.asarray(g).swapaxes(0, 1) for g in sown["intermediates"][f"{name}_gates"][0])
        assert_close(r, equations.sigmoid(inside[..., :H]))
        assert_close(z, equations.sigmoid(inside[..., H : 2 * H]))
    each = masks("weight_dropout").reshape(2 * len(KEYS), -1) > 0.5
    assert len(np.unique(each, axis=0)) == len(each)  # a different mask for each key and direction


STEPS = {"recurrent_dropout": 1, "weight_dropout": 1}
"""The number of steps with an exact expectation: at step two, a mask that stays is multiplied by itself."""


@pytest.mark.parametrize(  # slow: follows from the rates and factors that are tested above
    "name",
    [pytest.param(name, marks=[] if name in ("input_dropout", "zoneout") else pytest.mark.slow) for name in RATE],
)
def test_the_expectation_of_a_linear_layer_is_its_evaluation(name):
    """r = 1, z = 1/2 and no tanh: at every element, the mean over 4000 keys is within five standard errors."""
    x, keys = X[:, : STEPS.get(name, T)], jax.random.split(KEY, 4000)
    model = layer(name, 0.4, bidirectional=False, hidden_size=3, activation="identity")
    variables = drawn(model)
    for weight in WEIGHTS:
        put(variables["params"].values(), **{f"{weight}_of_r": 0.0, f"{weight}_of_z": 0.0})
    put(variables["params"].values(), b_ih_of_r=OPEN)
    outputs = np.asarray(jax.jit(jax.vmap(lambda key: training(model, variables, x, key)[0]))(keys))
    expected, _ = jax.jit(model.apply)(variables, x, start(model))
    error = outputs.std(0) / np.sqrt(len(keys))
    assert (error > 1e-5).all() and (np.abs(outputs.mean(0) - expected) < 5 * error).all()


def value_and_gradients(model, variables, **options):
    """output and h_last on PADDED, and the gradients of the parameters, x and h0."""

    def loss(params, x, h0):
        output, h_last = model.apply({"params": params}, x, h0, lengths=LENGTHS, **options)
        d_output, d_last = jnp.asarray(D_OUTPUT[..., : output.shape[-1]]), jnp.asarray(D_LAST[: len(h_last)])
        return (output * d_output).sum() + (h_last * d_last).sum(), (output, h_last)

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, values), gradients = run(variables["params"], jnp.asarray(PADDED), start(model))
    return values, gradients


def oracle(params, of_direction):
    """The same for one layer, by the oracle; `of_direction(i)` returns the factors of x and w_hh, and options."""
    hs, h_last, gradients, dx, dh0 = [], [], {}, 0.0, []
    for i, (cell, reverse) in enumerate(CELLS):
        on_x, on_w, options = of_direction(i)
        options = {"lengths": LENGTHS, "reverse": reverse} | options
        w_ih, w_hh, b_ih, b_hh = (np.asarray(params[cell][w]) for w in WEIGHTS)
        given = ((X * on_x).swapaxes(0, 1), H0[i], w_ih, w_hh * on_w, b_ih, b_hh)
        run = equations.sequence(*given, **options)
        dhs = np.split(D_OUTPUT.swapaxes(0, 1), 2, -1)[i]
        g = equations.sequence_backward(*given, dhs=dhs, dh_last=D_LAST[i], **options)
        hs.append(run.hs)
        h_last.append(run.h_last)
        gradients[cell] = {w: getattr(g, w) for w in WEIGHTS} | {"w_hh": g.w_hh * on_w}
        dx = dx + g.x.swapaxes(0, 1) * on_x
        dh0.append(g.h0)
    return (np.concatenate(hs, -1).swapaxes(0, 1), np.stack(h_last)), (gradients, dx, np.stack(dh0))


UNDER_MASKS = {
    "input_dropout": lambda mask: (mask, 1.0, {}),
    "recurrent_dropout": lambda mask: (1.0, 1.0, {"state_mask": mask[:, 0]}),
    "weight_dropout": lambda mask: (1.0, mask, {}),
    "zoneout": lambda mask: (1.0, 1.0, {"hold": mask.swapaxes(0, 1)}),
}


@pytest.mark.parametrize("name", UNDER_MASKS)
def test_values_and_gradients_equal_the_oracle_under_the_recovered_masks(name):
    model = layer(name, RATE[name])
    variables = drawn(model)
    values, gradients = value_and_gradients(model, variables, **TRAINING)
    expected = oracle(variables["params"], lambda i: UNDER_MASKS[name](exact(name)[i]))
    assert_trees_close(values, expected[0])
    assert_trees_close(gradients, expected[1], "gradient")


def test_zoneout_in_evaluation_moves_every_unit_by_its_mean():
    model = layer("zoneout", RATE["zoneout"])
    variables = drawn(model)
    values, gradients = value_and_gradients(model, variables)
    hold = np.full((T, B, H), RATE["zoneout"])
    expected = oracle(variables["params"], lambda i: (1.0, 1.0, {"hold": hold}))
    assert_trees_close(values, expected[0])
    assert_trees_close(gradients, expected[1], "gradient")


def test_dropout_between_layers_masks_the_output_of_the_first_and_not_of_the_last():
    model = layer("dropout", RATE["dropout"], bidirectional=False)
    variables = drawn(model)
    first, second = ([np.asarray(variables["params"][cell][w]) for w in WEIGHTS] for cell in ("l0", "l1"))
    below = equations.sequence(X.swapaxes(0, 1), H0[0], *first)
    above = equations.sequence(below.hs * exact("dropout")[0].swapaxes(0, 1), H0[1], *second)
    output, h_last = jax.jit(lambda v: training(model, v))(variables)
    assert_close(output, above.hs.swapaxes(0, 1))
    assert_close(h_last, np.stack([below.h_last, above.h_last]))


@pytest.mark.parametrize("name", DROPOUTS)
def test_it_is_off_in_evaluation_and_at_rate_zero(name):
    """The results are equal to the bit, and need no stream of random numbers."""
    model, plain = (layer(name, rate, bidirectional=False) for rate in (0.5, 0.0))
    variables, given = drawn(model), (jax.device_put(X), start(model))
    off = ((plain, {}), (model, {}), (model, {"deterministic": True}), (plain, {"deterministic": False}))
    results = [jax.jit(functools.partial(m.apply, lengths=LENGTHS, **of))(variables, *given) for m, of in off]
    expected, *others = jax.device_get(results)
    for found in others:
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    drops = jax.jit(lambda v: training(model, v, lengths=LENGTHS)[0])(variables)
    assert (expected[0] != np.asarray(drops)).any()


FRAMES, TOKENS = jnp.ones((2, 3, 5), jnp.float32), jnp.ones((2, 3), jnp.int32)
WITH_DROPOUT = {
    "encoder": (GRUEncoder(4, num_layers=2, dropout=0.5), functools.partial(gnnx.GRUEncoder, 5), [FRAMES]),
    "model": (GRUModel(4, 2, dropout=0.5), functools.partial(gnnx.GRUModel, 5), [FRAMES]),
    "seq2seq": (Seq2Seq(4, source_vocabulary=3, target_vocabulary=3, dropout=0.5), NNXSeq2Seq, [TOKENS, TOKENS]),
}


@pytest.mark.parametrize("which", WITH_DROPOUT)
def test_a_model_that_is_given_no_key_says_what_to_write(which):
    linen, of_nnx, args = WITH_DROPOUT[which]
    shapes = jax.eval_shape(linen.init, {"params": KEY}, *args)
    init = functools.partial(linen.init, deterministic=False)
    assert jax.eval_shape(init, {"params": KEY}, *args) == shapes  # the key "params" replaces "dropout"
    variables = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    with refused('rngs: expected a key "dropout", found none. Write model.apply(', 'rngs={"dropout": key}'):
        linen.apply(variables, *args, deterministic=False)
    fields = {f.name: getattr(linen, f.name) for f in own_fields(type(linen))}
    unfit = nnx.Rngs(params=0)
    parts = "rngs: expected an nnx.Rngs with a stream \"dropout\", found streams ['params']", "nnx.Rngs(0, dropout=1)"
    with refused(*parts):
        of_nnx(**fields, rngs=unfit)
    module = of_nnx(**fields, rngs=nnx.Rngs(0))
    with refused(*parts):
        module(*args, rngs=unfit)


@pytest.mark.parametrize("name", RATE)
def test_the_stream_dropout_decides_every_bit(name):
    model = layer(name, 0.5, bidirectional=False)
    variables, x = drawn(model), jnp.asarray(X)
    with refused('rngs: expected a key "dropout", found none. Write model.apply(', 'rngs={"dropout": key}'):
        model.apply(variables, x, deterministic=False)
    drop = jax.jit(lambda key: training(model, variables, key=key)[0])
    one, again, other = (np.asarray(drop(key)) for key in (KEY, KEY, OTHER))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any((1, 2)).all()  # in every sequence
    streams = {"dropout": KEY, "params": OTHER, "noise": OTHER}
    with_others = jax.jit(lambda rngs: model.apply(variables, x, start(model), deterministic=False, rngs=rngs)[0])
    np.testing.assert_array_equal(one, with_others(streams))


def test_random_numbers_are_drawn_along_one_axis():
    """Otherwise XLA unrolls the loops of each draw on CPU: a step of three lengths compiles in 8 seconds, not 3."""
    model = GRUModel(H, 3, num_layers=2, head_hidden=(7,), **RATE, param_dtype=jnp.float64)
    run = functools.partial(model.apply, drawn(model), deterministic=False)
    programs = {
        "init": jax.make_jaxpr(model.init)(KEY, X),
        "apply": jax.make_jaxpr(lambda key: run(X, rngs={"dropout": key}))(KEY),
        "disturb": jax.make_jaxpr(lambda key: disturb(key, jnp.asarray(X), jnp.ones(I), TrainConfig()))(KEY),
    }
    for name, program in programs.items():
        shapes = re.findall(r"random_bits\[[^]]*shape=\(([^)]*)\)", str(program))
        assert shapes, name
        assert all(shape.count(",") == shape.endswith(",") for shape in shapes), (name, shapes)


JOINT = {
    "after, two layers": {"num_layers": 2},
    "before, take, both ways": {"bidirectional": True, "reset_after": False, "update": "take", "dropout": 0.0},
    "after, two layers, both ways": {"num_layers": 2, "bidirectional": True},
}


@functools.cache
def joint(case, implementation):
    model = GRU(H, param_dtype=jnp.float64, implementation=implementation, **RATE | JOINT[case])
    return value_and_gradients(model, drawn(model), resets=RESETS, **TRAINING)


QUICK = dict.fromkeys(("xla", "autodiff", "reference"), "after, two layers")
"""Masks are drawn before any kernel runs: for each implementation, one case where all five act is enough."""


@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        pytest.param(case, name, marks=[] if case == QUICK[name] else pytest.mark.slow)
        for case, name in itertools.product(JOINT, QUICK)
    ],
)
def test_every_implementation_draws_the_same_masks_and_gives_the_same_gradients(case, implementation):
    """All five kinds at once, with NaN in the padding, and with resets."""
    (values, gradients), (expected, of_default) = joint(case, implementation), joint(case, None)
    assert_trees_close(values, expected)
    assert_trees_close(gradients, of_default, "gradient")


@pytest.mark.parametrize("name", RATE)
def test_the_fast_path_runs(name):
    """With its derivative rule, the only custom_jvp of the program."""
    assert explain(spec=layer(name, 0.5).spec) == explain()
    for implementation, ruled in ((None, True), ("xla", True), ("autodiff", False), ("reference", False)):
        model = layer(name, 0.5, implementation=implementation)
        jaxpr = jax.make_jaxpr(lambda v, m=model: training(m, v))(drawn(model))
        assert ("custom_jvp_call" in str(jaxpr)) == ruled


CUT = {
    "dropout": ("l1", "w_ih"),
    "input_dropout": ("l0", "w_ih"),
    "recurrent_dropout": ("l0", "w_hh"),
    "weight_dropout": ("l0", "w_hh"),
}
"""At a rate of 1 a layer equals one in which these weights are zero."""


@pytest.mark.parametrize("name", DROPOUTS)
def test_at_rate_one_nothing_passes(name):
    model, plain = (layer(name, rate, bidirectional=False) for rate in (1.0, 0.0))
    variables, (cell, weight) = drawn(model), CUT[name]
    values, gradients = value_and_gradients(model, variables, **TRAINING)
    blank = np.zeros_like(variables["params"][cell][weight])
    cut = variables["params"] | {cell: variables["params"][cell] | {weight: blank}}
    assert_trees_close(
        values, jax.jit(functools.partial(plain.apply, lengths=LENGTHS))({"params": cut}, X, start(model))
    )
    assert not np.asarray(gradients[0][cell][weight]).any()
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(  # slow: "xla" and "autodiff" have the same loop
    "implementation", [None, pytest.param("xla", marks=pytest.mark.slow), "autodiff", "reference"]
)
def test_at_rate_one_zoneout_keeps_the_state_to_the_bit(implementation):
    model = layer("zoneout", 1.0, bidirectional=False, implementation=implementation)
    (output, h_last), (params, x, h0) = value_and_gradients(model, drawn(model), **TRAINING)
    np.testing.assert_array_equal(h_last, H0[:1])
    np.testing.assert_array_equal(output, np.where(VALID[..., None], H0[0][:, None], 0.0))
    assert not any(np.asarray(g).any() for g in jax.tree.leaves((params, x)))
    through_time = (D_OUTPUT[..., :H] * VALID[..., None]).sum(1) + D_LAST[0]
    assert_close(h0[0], through_time, "gradient")


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("name", RATE)
def test_a_rate_that_is_no_probability_is_refused_by_name(name, rate):
    for model in (GRU(H, **{name: rate}), GRUModel(H, 2, **{name: rate})):
        with refused(f"{name}: expected a probability, found {rate}"):
            jax.eval_shape(model.init, KEY, jnp.ones((B, T, I)))
