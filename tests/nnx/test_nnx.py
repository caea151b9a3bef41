"""The NNX modules: against Linen with the same parameters, in NNX's transformations, and in training and evaluation."""

import functools
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from refusals import refused

import grujax
import grujax.nnx as gnnx
from grujax import equations
from grujax.testing import assert_close, assert_trees_close

RNG = np.random.default_rng(0)
B, T, I, H = 4, 5, 3, 4
X, H0 = jax.device_put((RNG.normal(size=(B, T, I)), RNG.normal(size=(4, B, H))))
LENGTHS, RESETS = np.array([5, 0, 2, 4]), RNG.random((B, T)) < 0.3
STEPS = {"lengths": LENGTHS, "resets": RESETS}
SEGMENTS = {"segments": RNG.integers(-1, 3, (B, T)), "num_segments": 4, "resets": RESETS}
RATES = {"dropout": 0.35, "input_dropout": 0.3, "recurrent_dropout": 0.4, "weight_dropout": 0.3, "zoneout": 0.4}
WIDE = {"param_dtype": jnp.float64}
KEY = jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled(request):
    """Compiles without most optimisations: compiling would take most of the time, and speed is not compared."""
    slow = request.config.getoption("--slow")  # without --slow everything is compiled in this way
    jax.config.update("jax_disable_most_optimizations", slow)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    if slow:
        jax.clear_caches()


def norms_of_three(output, valid):
    return jnp.sqrt(jnp.square(jnp.where(valid[..., None], output, 1)).sum(-2))[..., :3]


LAYER = grujax.GRU(H, num_layers=2, bidirectional=True, **WIDE)
MODEL = grujax.GRUModel(H, 2, num_layers=2, pooling="attention", head_hidden=(5,), dropout=0.4, **WIDE)
NOISY = grujax.GRUModel(H, 2, num_layers=2, dropout=0.4, **WIDE)
CASES = {
    "layers, directions, h0, lengths, resets": (LAYER, (X, H0), STEPS),
    "reference": (LAYER.clone(implementation="reference"), (X, H0), STEPS),
    "variant": (
        grujax.GRU(H, num_layers=2, bidirectional=True, merge="mul", reset_after=False, update="take",
                   activation="softsign", gate_activation="hard_sigmoid", clip=1.5, connection="highway",
                   layer_norm=True, blocks=2, **WIDE),
        (X,),
        STEPS,
    ),
    "learned initial state": (
        grujax.GRU(H, num_layers=2, initial_state="learned", connection="residual", bias=False,
                   time_major=True, **WIDE),
        (X.swapaxes(0, 1),),
        {"resets": RESETS.T},
    ),
    "directions apart": (grujax.GRU(H, bidirectional=True, merge=None, **WIDE), (X,), {"mask": ~RESETS}),
    "attention": (grujax.GRUEncoder(H, bidirectional=True, pooling="attention", **WIDE), (X,), {"lengths": LENGTHS}),
    "segments": (grujax.GRUEncoder(H, bidirectional=True, pooling="max", **WIDE), (X,), SEGMENTS),
    "heads": (
        grujax.GRUModel(H, {"a": 2, "b": 1}, pooling=None, head_hidden=(3,), head_activation="tanh", **WIDE),
        (X, H0[:1]),
        STEPS | {"return_state": True},
    ),
    "model, pooled by a function": (grujax.GRUModel(H, 2, pooling=norms_of_three, **WIDE), (X,), {"lengths": LENGTHS}),
    "model, zoneout, backwards": (NOISY.clone(zoneout=0.2, reverse=True), (X,), {"lengths": LENGTHS}),
    "cell": (grujax.GRUCell(H, **WIDE), (H0[0], X[:, 0]), {}),
}  # fmt: skip
STATISTICS = {"input_mean": RNG.normal(size=I), "input_std": RNG.uniform(1, 2, I), "output_mean": RNG.normal(size=2)}
STATISTICS = {name: jax.device_put(np.float32(a)) for name, a in (STATISTICS | {"output_std": [0.5, 3.0]}).items()}


def drawn(model, *args):
    """Random variables: no zeros, which biases and learned states have initially."""
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda a: jax.device_put(rng.uniform(-0.6, 0.6, a.shape)), jax.eval_shape(model.init, KEY, *args)
    )
    return variables | ({"statistics": STATISTICS} if getattr(model, "output_size", None) == 2 else {})


def module_of(model, *args, seed=0):
    return gnnx.from_linen(model, drawn(model, *args), rngs=nnx.Rngs(seed)) if args else None


def weighed(results):
    """A weighted sum of all results; within an array every element has a different weight."""
    leaves = [a.ravel() for a in jax.tree.leaves(results)]
    return sum((a * jnp.sin(1 + jnp.arange(a.size, dtype=a.dtype))).sum() for a in leaves)


def results_and_gradients(run, params, args):
    """The gradients of all results of `run(params, *args)` with respect to params and args, and the results."""

    def loss(params, args):
        results = run(params, *args)
        return weighed(results), results

    return jax.grad(loss, (0, 1), has_aux=True)(params, args)


def of_linen(model, variables, args, **options):
    rest = {name: a for name, a in variables.items() if name != "params"}
    run = lambda p, *args: model.apply({"params": p, **rest}, *args, **options)  # noqa: E731
    return results_and_gradients(run, variables["params"], args)


def of_nnx(module, args, **options):
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    run = lambda p, *args: nnx.merge(graph, p, rest, copy=True)(*args, **options)  # noqa: E731
    (gradients, of_args), results = results_and_gradients(run, params, args)
    return (nnx.to_pure_dict(gradients), of_args), results


# The values of Linen


@pytest.mark.parametrize(
    "case",  # the implementation is only one field of the kernel call
    [pytest.param(case, marks=[pytest.mark.slow] * (case == "reference")) for case in CASES],
)
def test_values_and_gradients_are_those_of_linen(case):
    """Both lower to the same program text. Programs that differ are compiled and run, and their results compared."""
    model, args, options = CASES[case]
    variables = drawn(model, *args)
    module = gnnx.from_linen(model, variables, rngs=nnx.Rngs(0))
    module.eval()
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    runs = {
        (lambda p, *args: nnx.merge(graph, p, rest, copy=True)(*args, **options)): params,
        (lambda p, *args: model.apply(variables | {"params": p}, *args, **options)): variables["params"],
    }
    programs = [jax.jit(functools.partial(results_and_gradients, run)).lower(p, args) for run, p in runs.items()]
    texts = {re.sub(r'jax.result_info = "[^"]*"', "", program.as_text()) for program in programs}
    if len(texts) > 1:
        found = [
            jax.tree.leaves(program.compile()(p, args)) for program, p in zip(programs, runs.values(), strict=True)
        ]
        assert_trees_close(*found, "gradient")


def test_training_is_that_of_linen_under_the_same_masks(monkeypatch):
    """All five rates, and dropout before the head. The faked masks depend only on the order in which they are drawn."""

    def draw_in_order():
        rng = np.random.default_rng(2)
        fake = lambda key, p=0.5, shape=None, **_: jnp.asarray(rng.random(shape or p.shape)) < p  # noqa: E731
        monkeypatch.setattr(jax.random, "bernoulli", fake)

    model = NOISY.clone(**RATES)
    variables, options = drawn(model, X), {"deterministic": False, "rngs": {"dropout": KEY}}
    module = gnnx.from_linen(model, variables, rngs=nnx.Rngs(0))

    @jax.jit
    def both():
        draw_in_order()
        found = of_nnx(module, (X,), lengths=LENGTHS)
        draw_in_order()
        return found, of_linen(model, variables, (X,), lengths=LENGTHS, **options)

    found, expected = both()
    assert_trees_close(found, expected, "gradient")
    plain = nnx.jit(lambda m: m(X, lengths=LENGTHS, deterministic=True))(module)
    assert np.abs(np.asarray(plain) - np.asarray(found[1])).max() > 0.1


def test_values_equal_the_oracle(problem):
    p = problem()
    layer = gnnx.GRU(3, 5, bidirectional=True, **WIDE, rngs=nnx.Rngs(0))
    weights = [p[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    for cell in (layer.l0, layer.l0_reverse):
        cell.w_ih[...], cell.w_hh[...], cell.b_ih[...], cell.b_hh[...] = map(jnp.asarray, weights)
    lengths = np.array([6, 0, 2, 5])
    output, h_last = layer(jnp.asarray(p["x"]), jnp.asarray([p["h0"]] * 2), lengths=lengths)
    for i, reverse in enumerate((False, True)):
        found = equations.sequence(p["x"].swapaxes(0, 1), p["h0"], *weights, lengths=lengths, reverse=reverse)
        assert_close(output[..., 5 * i : 5 * i + 5], found.hs.swapaxes(0, 1))
        assert_close(h_last[i], found.h_last)


def test_a_trajectory_of_training_is_that_of_linen():
    model, y = NOISY.clone(dropout=0.0), jnp.asarray(RNG.normal(size=(B, 2)))
    variables, optimiser = drawn(model, X), optax.sgd(0.1, momentum=0.9)
    module = gnnx.from_linen(model, variables, rngs=nnx.Rngs(0))
    nnx_optimiser = nnx.Optimizer(module, optimiser, wrt=nnx.Param)

    @nnx.jit
    def nnx_step(module, nnx_optimiser):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.square(m(X, lengths=LENGTHS) - y).mean())(module)
        nnx_optimiser.update(module, gradients)
        return loss

    @jax.jit
    def step(params, state):
        def loss_of(p):
            return jnp.square(model.apply(variables | {"params": p}, X, lengths=LENGTHS) - y).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = variables["params"], optimiser.init(variables["params"]), []
    for _ in range(6):
        params, state, loss = step(params, state)
        losses.append(loss)
        assert_close(nnx_step(module, nnx_optimiser), loss, "gradient")
    assert losses[-1] < 0.7 * losses[0]
    assert_trees_close(gnnx.to_linen(module)[1], variables | {"params": params}, "gradient")
    assert not np.allclose(
        module.encoder.gru.l1.w_hh[...], variables["params"]["encoder"]["gru"]["l1"]["w_hh"], atol=0.01
    )


# The cell in NNX's scan, RNN and Bidirectional


def scanned(cell, x, h0):
    scan = nnx.scan(lambda cell, h, x: cell(h, x), in_axes=(None, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
    return scan(cell, h0, x)


def in_rnn(cell, x, h0):
    return nnx.RNN(cell, return_carry=True)(x, initial_carry=h0)


@pytest.mark.parametrize("run", [scanned, in_rnn])
def test_a_scan_over_the_cell_is_the_layer(run):
    model = grujax.GRU(H, **WIDE)
    layer = module_of(model, X)

    @nnx.jit
    def both(layer):
        def of_run(cell):
            h_last, hs = run(cell, X, H0[0])
            return weighed((hs, h_last)), (hs, h_last[None])

        def of_layer(layer):
            results = layer(X, H0[:1])
            return weighed(results), results

        return [nnx.grad(f, has_aux=True)(m) for f, m in ((of_run, layer.l0), (of_layer, layer))]

    (gradient, results), (expected, expected_results) = both(layer)
    assert_trees_close(results, expected_results)
    assert_trees_close(nnx.to_pure_dict(gradient), nnx.to_pure_dict(expected)["l0"], "gradient")


def test_bidirectional_is_the_layer_in_both_directions():
    layer = module_of(grujax.GRU(H, bidirectional=True, **WIDE), X)
    both = nnx.Bidirectional(nnx.RNN(layer.l0), nnx.RNN(layer.l0_reverse))
    lengths = np.array([5, 1, 2, 4])
    valid = (np.arange(T) < lengths[:, None])[..., None]
    ways = lambda both, layer, lengths: (both(X, seq_lengths=lengths), layer(X, lengths=lengths)[0])  # noqa: E731
    found, expected = nnx.jit(ways)(both, layer, lengths)
    assert_close(np.where(valid, found, 0.0), expected)


def test_a_cell_begins_with_zeros_or_with_what_is_drawn():
    cell = gnnx.GRUCell(I, H, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    carry = cell.initialize_carry((B, 2, I))
    assert (carry.shape, carry.dtype) == ((B, 2, H), jnp.float32) and not carry.any()
    drawn = cell.initialize_carry((B, I), nnx.Rngs(carry=1), jax.nn.initializers.normal(1.0))
    np.testing.assert_array_equal(drawn, jax.random.normal(nnx.Rngs(carry=1).carry(), (B, H), jnp.float32))
    new, y = cell(carry[:, 0], X[:, 0].astype(jnp.float32))
    assert (new.dtype, y.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(new.astype(jnp.bfloat16), y)


# The tree of parameters, and conversion to Linen and back


@pytest.mark.parametrize("case", CASES)
def test_new_parameters_have_the_tree_of_linen(case):
    model, args, _ = CASES[case]
    of, narrow = getattr(gnnx, type(model).__name__), model.clone(param_dtype=jnp.bfloat16)
    module = nnx.eval_shape(lambda: of(input_size=I, **narrow.fields_of(of), rngs=nnx.Rngs(0)))
    shape = lambda a: (a.shape, a.dtype)  # noqa: E731
    expected = jax.tree.map(shape, jax.eval_shape(narrow.init, KEY, *(a.astype(jnp.bfloat16) for a in args)))
    assert jax.tree.map(shape, gnnx.to_linen(module)[1]) == expected


@pytest.mark.parametrize("case", CASES)
def test_to_linen_and_back_keeps_every_bit(case):
    model, args, _ = CASES[case]
    variables = drawn(model, *args)
    again, found = gnnx.to_linen(gnnx.from_linen(model, variables, rngs=nnx.Rngs(0)))
    assert again == model and type(again) is type(model)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_files_and_converters_serve(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from grujax.interop.torch import from_torch

    layer = torch.nn.GRU(I, H, 2, bidirectional=True, batch_first=True).double()
    run = nnx.jit(lambda m: m(X))
    module = gnnx.from_linen(*from_torch(layer), rngs=nnx.Rngs(0))
    assert_close(run(module)[0], layer(torch.tensor(np.asarray(X)))[0].detach().numpy())
    model = module_of(MODEL, X)
    model.eval()
    grujax.save(tmp_path / "model.safetensors", *gnnx.to_linen(model))
    loaded = gnnx.from_linen(*grujax.load(tmp_path / "model.safetensors"), rngs=nnx.Rngs(0))
    loaded.eval()
    np.testing.assert_array_equal(run(loaded), run(model))
    assert isinstance(loaded.input_mean, gnnx.Statistic) and "input_mean" not in nnx.state(loaded, nnx.Param)


@pytest.mark.parametrize("initializer", ["torch", "flax", "keras"])
def test_initial_values_have_the_distributions_of_linen(initializer):
    options = {"initializer": initializer, "update_bias": 2.0, **WIDE}

    @jax.jit
    def made(key):
        return gnnx.to_linen(gnnx.GRUModel(24, 32, 40, **options, rngs=nnx.Rngs(key)))[1]

    of_linen = jax.jit(grujax.GRUModel(32, 40, **options).init)
    found, expected = jax.device_get((made(KEY), of_linen(KEY, np.zeros((1, 1, 24)))))
    for (path, a), (_, e) in zip(*(jax.tree.leaves_with_path(tree) for tree in (found, expected)), strict=True):
        name, quantiles = jax.tree_util.keystr(path), np.linspace(0.1, 0.9, 9)
        spread = float(np.std(e)) + 1e-9
        difference = np.abs(np.quantile(a, quantiles) - np.quantile(e, quantiles)).max()
        assert difference < 6 * spread / np.sqrt(a.size / 2), name
        assert np.array_equal(a, e) == (np.std(e[: e.shape[0] // 3]) == 0), name  # only constants are equal
    if initializer == "flax":
        gate = found["params"]["encoder"]["gru"]["l0"]["w_hh"][:, :32]
        assert_close(gate @ gate.T, np.eye(32), "gradient")
    if initializer == "torch":
        other = jax.device_get(made(jax.random.key(1)))["params"]["head"]
        assert all((other[name] != a).all() for name, a in found["params"]["head"].items())


def test_layers_and_directions_start_apart_and_a_highway_lets_most_through():
    layer = gnnx.GRU(H, H, num_layers=2, bidirectional=True, merge="sum", connection="highway", rngs=nnx.Rngs(0))
    cells = [layer.l0, layer.l0_reverse, layer.l1, layer.l1_reverse]
    drawn = [np.asarray(a) for cell in cells for a in (cell.w_ih[...], cell.w_hh[...])]
    assert not any(np.isin(a, drawn[:i]).any() for i, a in enumerate(drawn) if i)
    assert (layer.l1_highway.bias[...] == -1).all() and layer.l1_highway.kernel[...].any()


# Transformations


@pytest.mark.parametrize("of, more", [(gnnx.GRU, {}), (gnnx.GRUEncoder, {}), (gnnx.GRUModel, {"output_size": 2})])
def test_tabulate_shows_every_parameter(of, more):
    module = of(I, H, num_layers=2, rngs=nnx.Rngs(0), **more)
    count = sum(a.size for a in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert f"Total Parameters: {count}" in nnx.tabulate(module, jnp.ones((B, T, I), jnp.float32))


def test_members_of_an_ensemble_are_what_each_is_alone():
    @nnx.jit
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return gnnx.GRU(I, H, input_dropout=0.3, **WIDE, rngs=rngs)

    @nnx.jit
    def run(members):
        together = nnx.vmap(lambda m, **options: m(X, lengths=LENGTHS, **options)[0], in_axes=0)
        graph, states = nnx.split(members)
        each = [nnx.merge(graph, jax.tree.map(operator.itemgetter(i), states)) for i in range(3)]
        alone = jnp.stack([m(X, lengths=LENGTHS, deterministic=True)[0] for m in each])
        return together(nnx.view(members, deterministic=True)), alone, together(members)

    together, alone, dropped = run(make(nnx.Rngs(0)))
    assert_close(together, alone)
    assert np.abs(np.asarray(together[0] - together[1])).max() > 1e-3
    assert np.abs(np.asarray(dropped - together)).max(axis=(1, 2, 3)).min() > 1e-3


def test_jit_keeps_what_a_call_does_to_the_stream():
    model = module_of(NOISY, X)
    run = nnx.jit(lambda m: m(X))
    alone = nnx.clone(model)
    first, second = run(model), run(model)
    assert not np.allclose(first, second)
    assert_close(first, alone(X))
    assert_close(second, alone(X))
    before = int(model.stream.count[...])
    model.eval()
    assert_close(run(model), alone(X, deterministic=True))
    assert int(model.stream.count[...]) == before == int(alone.stream.count[...]) > 0


# Training and evaluation


def test_a_new_module_is_in_training_until_eval():
    model = module_of(NOISY, X)
    expected = NOISY.apply(drawn(NOISY, X), X)
    assert not np.allclose(model(X), expected)
    assert_close(model(X, deterministic=True), expected)
    assert_close(nnx.view(model, deterministic=True)(X), expected)
    assert not np.allclose(model(X), expected)
    model.eval()
    assert_close(model(X), expected)
    assert not np.allclose(model(X, deterministic=False), expected)
    model.train()
    assert not np.allclose(model(X), expected)
    only_encoder = module_of(NOISY.clone(dropout=0.0, zoneout=0.9), X)
    only_encoder.eval()
    assert_close(only_encoder(X), NOISY.clone(zoneout=0.9).apply(drawn(NOISY, X), X))


def test_a_call_draws_from_the_stream_it_is_given():
    model = module_of(NOISY.clone(**RATES), X)
    one, again, other = (model(X, rngs=nnx.Rngs(dropout=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(model(X, rngs=nnx.Rngs(dropout=1)["dropout"]), one)
    model.eval()
    np.testing.assert_array_equal(model(X, rngs=nnx.Rngs(1)), model(X, rngs=nnx.Rngs(2)))


def test_as_many_are_dropped_as_the_rate_says():
    model = gnnx.GRUModel(I, 32, 32, dropout=0.4, **WIDE, rngs=nnx.Rngs(0))
    model.head.kernel[...], model.head.bias[...] = jax.device_put((np.eye(32), np.zeros(32)))
    x = RNG.normal(size=(64, 2, I))
    found, kept = jax.device_get(nnx.jit(lambda m: (m(x), m(x, deterministic=True)))(model))
    zero = np.asarray(found) == 0
    assert abs(zero.mean() - 0.4) < 4 * np.sqrt(0.4 * 0.6 / zero.size)
    assert_close(found, np.where(zero, 0, kept / 0.6))


def test_only_what_drops_holds_a_stream():
    plain = gnnx.GRUModel(I, H, 2, pooling="attention", rngs=nnx.Rngs(0))
    assert {type(v) for _, v in nnx.to_flat_state(nnx.state(plain))} == {nnx.Param}
    for rate in RATES:
        layer = gnnx.GRU(I, H, num_layers=2, **{rate: 0.5}, **WIDE, rngs=nnx.Rngs(0))
        assert not np.allclose(layer(X)[0], layer(X)[0]), rate  # each call advances the layer's own stream


# Refusals


def params(**new):
    return {"params": {"l0": drawn(grujax.GRU(H, **WIDE), X)["params"]["l0"] | new}}


def new(of=gnnx.GRU, rngs=None, **fields):
    return of(I, H, **fields, rngs=nnx.Rngs(0) if rngs is None else rngs)


def rate_set_later():
    layer = new(**WIDE)
    layer.input_dropout = 0.5
    return layer(X)


MODULE = functools.partial(gnnx.from_linen, rngs=nnx.Rngs(0))
BAD = {
    "no inputs": (lambda: gnnx.GRU(0, H, rngs=nnx.Rngs(0)), ["input_size: expected a positive integer, found 0"]),
    "no units": (lambda: gnnx.GRUCell(I, 0, rngs=nnx.Rngs(0)), ["hidden_size: expected a positive integer, found 0"]),
    "merge": (lambda: new(merge="sum"), ["merge='sum' needs bidirectional=True", "nothing to merge"]),
    "pooling": (lambda: new(gnnx.GRUEncoder, pooling="sum"), ["pooling: expected one of", "'sum'"]),
    "head": (lambda: new(gnnx.GRUModel, output_size=0), ["output_size: expected a positive integer, found 0"]),
    "features": (lambda: new()(X[..., :2]), ["x: expected 3 input features", "(4, 5, 2)"]),
    "features of a model": (lambda: new(gnnx.GRUModel, output_size=2)(X[..., :2]), ["x: expected 3 input features"]),
    "features of a cell": (lambda: new(gnnx.GRUCell)(H0[0], X[:, 0, :2]), ["x: expected 3 input features", "2)"]),
    "carry": (lambda: new(gnnx.GRUCell)(H0[0, :, :2], X[:, 0]), ["carry: expected shape (4, 4)", "(4, 2)"]),
    "h0": (lambda: new()(X, H0), ["h0: expected shape (1, 4, 4)", "(4, 4, 4)"]),
    "lengths": (lambda: new()(X, lengths=[6] * B), ["lengths: expected 0 to T = 5", "6 to 6"]),
    "no stream": (
        lambda: new(dropout=0.5, rngs=nnx.Rngs(params=0)),
        ["rngs: expected an nnx.Rngs with a stream \"dropout\"", "streams ['params']", "dropout=1"],
    ),
    "a stream never made": (rate_set_later, ["rngs: expected an nnx.Rngs with a stream \"dropout\"", "None"]),
    "a key": (lambda: new(zoneout=0.5, **WIDE)(X, rngs=KEY), ["rngs: expected an nnx.Rngs with a stream \"dropout\""]),
    "another's module": (lambda: gnnx.to_linen(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), ["module", "grujax.nnx", "Linear"]),
    "another's model": (lambda: MODULE(grujax.nnx.GRU(2, 3, rngs=nnx.Rngs(0)), {}), ["model: expected one of", "GRU"]),
    "parameters in a list": (lambda: MODULE(grujax.GRU(H), {"params": []}), ["params: expected a dict, found list"]),
    "statistics in a list": (
        lambda: MODULE(grujax.GRU(H, **WIDE), params() | {"statistics": []}),
        ["statistics: expected a dict, found list"],
    ),
    "no parameters": (lambda: MODULE(grujax.GRU(H), {}), ["variables", "w_ih of the first layer"]),
    "a parameter missing": (
        lambda: MODULE(grujax.GRU(H, num_layers=2, **WIDE), params()),
        ["params/l1/b_hh: expected float64 (12,), found none"],
    ),
    "a parameter too many": (
        lambda: MODULE(grujax.GRU(H, bias=False, **WIDE), params()),
        ["params/l0/b_hh: expected none, found float64 (12,)"],
    ),
    "a parameter's shape": (
        lambda: MODULE(grujax.GRU(H, **WIDE), params(b_ih=jnp.ones(11))),
        ["params/l0/b_ih: expected float64 (12,), found float64 (11,)"],
    ),
    "a parameter's dtype": (
        lambda: MODULE(grujax.GRU(H), params()),
        ["params/l0/b_hh: expected float32 (12,), found float64 (12,)"],
    ),
    "a statistic of a layer": (
        lambda: MODULE(grujax.GRU(H, **WIDE), params() | {"statistics": {"input_mean": jnp.ones(I)}}),
        ["statistics/input_mean: expected"],
    ),
    "a statistic's name": (
        lambda: MODULE(MODEL, drawn(MODEL, X) | {"statistics": {"mean": jnp.ones(I)}}),
        ["statistics/mean: expected"],
    ),
    "a statistic's shape": (
        lambda: MODULE(MODEL, drawn(MODEL, X) | {"statistics": dict.fromkeys(STATISTICS, jnp.ones(2))})(X),
        ["statistics/input_mean: expected shape (3,)", "(2,)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_served_is_refused_by_name(case):
    call, parts = BAD[case]
    with refused(*parts):
        call()
