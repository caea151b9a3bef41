"""Every transformation of JAX and Flax on `gru`, `GRU` and `GRUModel`, with padding and resets."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from jax import export
from pairs import by_turns

from grujax import GRU, GRUModel, GRUWeights, gru
from grujax.testing import assert_close, assert_trees_close

B, T, I, H = 3, 5, 2, 4
RNG = np.random.default_rng(0)


def normal(*shape):
    return jax.device_put(RNG.normal(size=shape))  # device_put compiles nothing


def random(tree):
    """Random arrays in the shapes of a tree: no zeros, which biases and learned states have initially."""
    return jax.tree.map(lambda a: normal(*a.shape), tree)


def batch(rows=B, steps=T):
    """x, the lengths of its rows, and the steps at which sequences begin."""
    lengths = (np.arange(rows) * 2 + steps) % (steps + 1)  # T, 1, 3, ...
    return normal(rows, steps, I), {"lengths": lengths, "resets": RNG.uniform(size=(rows, steps)) < 0.3}


X, STEPS = batch()
WEIGHTS = GRUWeights(*(normal(*shape) for shape in [(I, 3 * H), (H, 3 * H), (3 * H,), (3 * H,)]))
LAYER = GRU(H, initial_state="learned", param_dtype=jnp.float64)
MODEL = GRUModel(H, 2, pooling="attention", param_dtype=jnp.float64)


def run_gru(p, x, steps, implementation=None):
    return gru(x, p["weights"], p["h0"], h_reset=p["h_reset"], reverse=True, implementation=implementation, **steps)


def run_layer(p, x, steps, implementation=None):
    return LAYER.copy(implementation=implementation).apply(p, x, **steps)


def run_model(p, x, steps, implementation=None):
    model = MODEL.copy(implementation=implementation)
    return model.apply(p, x, lengths=steps["lengths"], return_state=True)  # no resets: a pooled row is one sequence


RUNS = {"gru": run_gru, "GRU": run_layer, "GRUModel": run_model}
PARAMS = {
    "gru": {"weights": WEIGHTS, "h0": normal(B, H), "h_reset": normal(H)},
    "GRU": random(jax.eval_shape(LAYER.init, jax.random.key(0), X)),
    "GRUModel": random(jax.eval_shape(MODEL.init, jax.random.key(0), X)),
}


def loss_of(run):
    """A weighted sum of all results; within an array every element has a different weight."""

    def loss(*args):
        leaves = [a.ravel() for a in jax.tree.leaves(run(*args))]
        return sum((a * jnp.sin(1 + jnp.arange(a.size, dtype=a.dtype))).sum() for a in leaves)

    return loss


def inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Derivatives


POINTS = {name: (p, X) for name, p in PARAMS.items()}
TANGENTS = {name: random(point) for name, point in POINTS.items()}
WAYS = {
    "reverse over forward": lambda loss, tangent: jax.grad(lambda p: jax.jvp(loss, (p,), (tangent,))[1]),
    "reverse over reverse": lambda loss, tangent: jax.grad(lambda p: inner(jax.grad(loss)(p), tangent)),
}
"""Ways to compute the product of the Hessian and a tangent; `derivatives` does forward over reverse."""
OF_GRU = [pytest.param("gru", way, marks=pytest.mark.slow) for way in WAYS]


@functools.cache
def derivatives(name, implementation):
    """Values, and derivatives with respect to all parameters and x, from one compiled program."""
    point, tangent = POINTS[name], TANGENTS[name]

    def f(point):
        return RUNS[name](*point, STEPS, implementation)

    @jax.jit
    def compute(point):
        value, jvp = jax.jvp(f, (point,), (tangent,))
        gradient, product = jax.jvp(jax.grad(loss_of(f)), (point,), (tangent,))
        return {"value": value, "gradient": gradient, "jvp": jvp, "product": product}

    return compute(point)


@pytest.mark.slow  # kernels/test_derivative.py tests both for each rule; the next test compares the modes
@pytest.mark.parametrize("name", ["gru", "GRUModel"])
def test_both_jacobians_agree(name):
    point, tangent = POINTS[name], jax.tree.leaves(TANGENTS[name])
    both = jax.jit(lambda p: [of(lambda p: RUNS[name](*p, STEPS, "xla"))(p) for of in (jax.jacrev, jax.jacfwd)])
    reverse, forward = both(point)
    assert_trees_close(forward, reverse, "gradient")
    for d, jacobian in zip(derivatives(name, "xla")["jvp"], reverse, strict=True):
        parts = zip(jax.tree.leaves(jacobian), tangent, strict=True)
        assert_close(d, sum(np.tensordot(j, t, t.ndim) for j, t in parts), "gradient")


OF_A_RULE = pytest.param("gru", "xla", marks=pytest.mark.slow)
"""Slow: kernels/test_derivative.py tests all these derivatives, with resets to `h_reset`."""


@pytest.mark.parametrize(("name", "implementation"), [OF_A_RULE, ("GRU", "xla"), ("GRUModel", "xla")])
def test_forward_mode_and_reverse_mode_agree(name, implementation):
    found = jax.device_get(derivatives(name, implementation))
    forward = jax.jit(lambda jvp: loss_of(lambda: jvp)())(found["jvp"])
    reverse = sum(
        np.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (found["gradient"], TANGENTS[name])), strict=True)
    )
    assert_close(reverse, forward, "gradient")


@pytest.mark.parametrize(
    ("name", "implementation"), [OF_A_RULE, ("GRU", "xla"), ("GRUModel", "xla"), ("GRU", "reference")]
)
def test_derivatives_are_those_of_scan(name, implementation):
    expected, found = derivatives(name, "autodiff"), derivatives(name, implementation)
    zero = [
        jax.tree_util.keystr(path)
        for path, a in jax.tree.leaves_with_path(expected["product"])
        if not np.asarray(a).any()
    ]
    assert all("['head']['bias']" in path for path in zero)  # the output is linear in it
    for kind in expected:
        assert_trees_close(found[kind], expected[kind], "gradient")


@pytest.mark.parametrize(("name", "way"), by_turns(("GRU", "GRUModel"), [*WAYS], quick=1) + OF_GRU)
def test_second_derivatives_are_those_of_scan(name, way):
    loss, tangent = loss_of(lambda point: RUNS[name](*point, STEPS, "xla")), TANGENTS[name]
    found = jax.jit(WAYS[way](loss, tangent))(POINTS[name])
    assert_trees_close(found, derivatives(name, "autodiff")["product"], "gradient")


@functools.cache
def value_and_gradient_of_gru():
    def loss(point):
        found = run_gru(*point, STEPS, "xla")
        return loss_of(lambda: found)(), found

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(POINTS["gru"])


@pytest.mark.parametrize("name", RUNS)
def test_eager_equals_jit(name):
    eager = RUNS[name](*POINTS[name], STEPS, "xla")
    jitted = value_and_gradient_of_gru()[0][1] if name == "gru" else derivatives(name, "xla")["value"]
    assert_trees_close(eager, jitted)
    told = jax.eval_shape(RUNS[name], *POINTS[name], STEPS)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), told) == jax.tree.map(lambda a: (a.shape, a.dtype), eager)


def test_eager_value_and_grad_equals_jit():
    loss = loss_of(lambda point: run_gru(*point, STEPS))
    value, gradient = jax.value_and_grad(loss)(POINTS["gru"])
    (expected, _), of_jit = value_and_gradient_of_gru()
    assert_close(value, expected)
    assert_trees_close(gradient, of_jit, "gradient")


def test_checkpointed_gradients_are_the_same():
    def run(point):
        return run_model(*point, STEPS)

    gradient = jax.jit(jax.grad(loss_of(jax.checkpoint(run))))(POINTS["GRUModel"])
    assert_trees_close(gradient, derivatives("GRUModel", "xla")["gradient"], "gradient")


@pytest.mark.parametrize(("name", "implementation"), [("gru", "autodiff"), ("GRUModel", "xla"), ("GRU", "reference")])
def test_no_tracer_leaks(name, implementation):
    x, steps = batch(steps=T + 4)  # new sizes: what was traced before is not checked
    with jax.checking_leaks():
        jax.jit(jax.grad(loss_of(RUNS[name])), static_argnums=3).lower(PARAMS[name], x, steps, implementation)


# vmap


@pytest.mark.parametrize(  # `gru` is in test_sequence.py and kernels/test_native.py
    "name", [pytest.param("gru", marks=pytest.mark.slow), "GRUModel"]
)
def test_vmap_equals_a_loop(name):
    """Values and gradients, over data and over weights (an ensemble)."""
    members, batches = [PARAMS[name], random(PARAMS[name])], [(X, STEPS), batch()]

    def both(p, x, steps):
        return jax.value_and_grad(loss_of(RUNS[name]), (0, 1))(p, x, steps)

    def stack(*trees):
        return jax.tree.map(lambda *a: jnp.stack(a), *trees)

    @jax.jit
    def together(members, batches):
        over_data = jax.vmap(both, (None, 0, 0))(members[0], *stack(*batches))
        over_weights = jax.vmap(both, (0, None, None))(stack(*members), *batches[0])
        return over_data, over_weights

    one = lambda *args: jax.device_get(jitted(*args))  # noqa: E731
    jitted, of_numpy = jax.jit(both), lambda *trees: jax.tree.map(lambda *a: np.stack(a), *trees)
    first = one(members[0], *batches[0])
    expected = of_numpy(first, one(members[0], *batches[1])), of_numpy(first, one(members[1], *batches[0]))
    assert_trees_close(together(members, batches), expected, "gradient")


def test_linen_vmap_over_members_equals_each_alone():
    class Members(nn.Module):
        @nn.compact
        def __call__(self, x, lengths, resets):  # lifts a function, because lifted modules take no keywords
            def run(layer, x, lengths, resets):
                return layer(x, lengths=lengths, resets=resets)

            lifted = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            layer = GRU(H, param_dtype=jnp.float64, name="layer")
            return nn.vmap(run, in_axes=None, axis_size=3, **lifted)(layer, x, lengths, resets)

    variables = jax.device_get(jax.jit(Members().init)(jax.random.key(0), X, **STEPS))
    assert not np.array_equal(*variables["params"]["layer"]["l0"]["w_hh"][:2])

    def of(module):
        def loss(variables, weigh):
            output, _ = module.apply(variables, X, **STEPS)
            return (output * weigh).sum(), output

        return jax.jit(jax.grad(loss, has_aux=True))

    weigh = normal(3, B, T, H)
    gradients, outputs = jax.device_get(of(Members())(variables, weigh))
    weigh = np.asarray(weigh)
    alone = of(GRU(H, param_dtype=jnp.float64))
    for i in range(3):
        gradient, output = jax.tree.map(lambda a: a[i], (gradients["params"]["layer"], outputs))  # noqa: B023
        own = jax.tree.map(lambda a: a[i], variables["params"]["layer"])  # noqa: B023
        expected, expected_output = alone({"params": own}, weigh[i])
        assert_close(output, expected_output)
        assert_trees_close(gradient, expected["params"], "gradient")


# Loops


def test_linen_remat_keeps_tree_values_and_gradients():
    variables = PARAMS["GRU"]
    wrapped = nn.remat(GRU)(**LAYER.fields_of(GRU))
    shapes = jax.eval_shape(wrapped.init, jax.random.key(0), X)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)

    @jax.jit
    def gradient(point):
        def run(point):
            return wrapped.apply(*point, **STEPS)

        return run(point), jax.grad(loss_of(run))(point)

    value, found = gradient((variables, X))
    assert_trees_close(value, derivatives("GRU", "xla")["value"])
    assert_trees_close(found, derivatives("GRU", "xla")["gradient"], "gradient")


def test_a_model_inside_an_outer_scan_equals_one_run():
    """A stream in chunks of three steps, whose state the outer loop carries: values, and gradients through it all."""
    model = GRUModel(H, 2, pooling=None, num_layers=2, param_dtype=jnp.float64)
    x, chunks = normal(B, 6, I), 2
    resets = jax.device_put(RNG.uniform(size=(B, 6)) < 0.3)
    variables, h0 = random(jax.eval_shape(model.init, jax.random.key(0), x)), normal(2, B, H)

    def whole(variables, x, h0):
        return model.apply(variables, x, h0, resets=resets, return_state=True)

    def split(a):
        return jnp.moveaxis(a.reshape(B, chunks, 6 // chunks, *a.shape[2:]), 1, 0)

    def streamed(variables, x, h0):
        def chunk(h, inputs):
            y, h = model.apply(variables, inputs[0], h, resets=inputs[1], return_state=True)
            return h, y

        h_last, y = jax.lax.scan(chunk, h0, (split(x), split(resets)))
        return jnp.moveaxis(y, 0, 1).reshape(B, 6, 2), h_last

    def both(run):
        def value_and_gradient(*args):
            return run(*args), jax.grad(loss_of(run), (0, 1, 2))(*args)

        return jax.jit(value_and_gradient)(variables, x, h0)

    assert_trees_close(both(streamed), both(whole), "gradient")


def test_linen_scan_over_a_module_that_holds_a_layer_equals_a_loop():
    """The scan runs over depth: three layers of one shape, each with its own parameters."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, steps):
            return x + GRU(I, param_dtype=jnp.float64)(x, **steps)[0], None

    stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=3)()
    variables = random(jax.eval_shape(stack.init, jax.random.key(0), X, STEPS))

    def scanned(variables, x):
        return stack.apply(variables, x, STEPS)[0]

    def looped(variables, x):
        for i in range(3):
            x, _ = Block().apply(jax.tree.map(lambda a: a[i], variables), x, STEPS)  # noqa: B023
        return x

    found, expected = (jax.jit(jax.value_and_grad(loss_of(f), (0, 1)))(variables, X) for f in (scanned, looped))
    assert_trees_close(found, expected, "gradient")


# Export


BOTH = GRU(H, bidirectional=True, initial_state="learned", param_dtype=jnp.float64)
DEEP = GRUModel(H, 2, num_layers=2, bidirectional=True, pooling="last", param_dtype=jnp.float64)
MEAN = GRUModel(H, 2, pooling="mean", param_dtype=jnp.float64)


def export_both(v, x, lengths, resets):
    return BOTH.apply(v, x, lengths=lengths, resets=resets)


def export_deep(v, x, lengths, resets):
    return DEEP.apply(v, x, lengths=lengths)


def export_gradient(v, x, lengths, resets):
    return jax.value_and_grad(loss_of(lambda v, x: MEAN.apply(v, x, lengths=lengths)), (0, 1))(v, x)


EXPORTED = {
    "both directions, resets": (export_both, BOTH),
    "two layers, both directions, pooling last": (export_deep, DEEP),
    "gradient, pooling mean": (export_gradient, MEAN),
}
PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("case", EXPORTED)
def test_an_exported_program_of_any_batch_and_length_equals_the_call(case):
    run, module = EXPORTED[case]
    variables = random(jax.eval_shape(module.init, jax.random.key(0), X))
    shapes = {"x": ("b, t, 2", jnp.float64), "lengths": ("b", jnp.int64), "resets": ("b, t", jnp.bool_)}
    scope = export.SymbolicScope()
    symbolic = {
        name: jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for name, (shape, dtype) in shapes.items()
    }
    program = export.export(jax.jit(run), platforms=PLATFORMS)(variables, **symbolic)
    stored = export.deserialize(program.serialize())
    assert stored.platforms == PLATFORMS
    for rows, steps in ((B, T), (2, 7)) if case == "both directions, resets" else ((2, 7),):
        x, given = batch(rows, steps)
        found = jax.jit(stored.call)(variables, x=x, **given)
        assert_trees_close(found, jax.jit(run)(variables, x=x, **given), "gradient")


# Programs that run many times


LENGTHS, SEGMENTS = jax.device_put((STEPS["lengths"], np.arange(B * T).reshape(B, T)))
OF_LENGTHS = (lambda x, lengths: LAYER.apply(PARAMS["GRU"], x, lengths=lengths)), LENGTHS
OF_SEGMENTS = (lambda x, segments: MODEL.apply(PARAMS["GRUModel"], x, segments=segments, num_segments=B * T)), SEGMENTS
CONSTANTS = {  # a function of x and a control array; that array as an argument, and as a constant
    "lengths": (*OF_LENGTHS, LENGTHS),
    "a list of lengths": (*OF_LENGTHS, STEPS["lengths"].tolist()),
    "segments": (*OF_SEGMENTS, SEGMENTS),
}


@pytest.mark.parametrize("what", CONSTANTS)
def test_what_steers_may_be_a_constant_of_a_compiled_program(what):
    run, argument, constant = CONSTANTS[what]
    assert_trees_close(jax.jit(lambda x: run(x, constant))(X), jax.jit(run)(X, argument))


def test_a_donated_state_is_used_up_and_changes_nothing():
    layer = GRU(H, num_layers=2, param_dtype=jnp.float64)
    variables, h0 = random(jax.eval_shape(layer.init, jax.random.key(0), X)), normal(2, B, H)

    def update(variables, h0):
        def loss(variables):
            output, h_last = layer.apply(variables, X, h0, lengths=STEPS["lengths"])
            return jnp.square(output).mean(), h_last

        gradients, h_last = jax.grad(loss, has_aux=True)(variables)
        return jax.tree.map(lambda p, g: p - 0.1 * g, variables, gradients), h_last

    expected = jax.jit(update)(variables, h0)
    given = jax.device_put(jax.tree.map(np.array, (variables, h0)))
    with warnings.catch_warnings(action="error"):  # "Some donated buffers were not usable"
        found = jax.jit(update, donate_argnums=(0, 1))(*given)
    assert_trees_close(found, expected)
    assert all(a.is_deleted() for a in jax.tree.leaves(given))


def train_step(model):
    def step(variables, x, valid, key):
        def loss(variables):
            given = {"lengths": valid} if valid.ndim == 1 else {"mask": valid}
            y = model.apply(variables, x, deterministic=False, rngs={"dropout": key}, **given)
            return jnp.square(y).mean()

        value, gradients = jax.value_and_grad(loss)(variables)
        return jax.tree.map(lambda p, g: p - 0.1 * g, variables, gradients), value

    return step


@pytest.mark.parametrize("kind", ["lengths", "mask"])
def test_an_epoch_compiles_once_a_shape(kind):
    rng, key = np.random.default_rng(1), jax.random.key(0)
    valid = {
        "lengths": lambda rows, steps: rng.integers(0, steps + 1, rows),
        "mask": lambda rows, steps: rng.uniform(size=(rows, steps)) < 0.7,
    }[kind]
    step, first = jax.jit(train_step(MEAN)), random(jax.eval_shape(MEAN.init, key, X))

    def epoch():
        variables = first
        for rows, steps in [(3, 5), (3, 7), (2, 5)] * 3:
            variables, value = step(variables, rng.normal(size=(rows, steps, I)), valid(rows, steps), key)
        return value

    assert compilations(epoch) == 3
    assert compilations(epoch) == 0


def test_the_same_program_gives_the_same_bits():
    """Values and gradients are equal with dropout too; another key gives another loss."""
    model = GRUModel(H, 2, dropout=0.3, zoneout=0.1, recurrent_dropout=0.2, param_dtype=jnp.float64)
    variables = random(jax.eval_shape(model.init, jax.random.key(0), X))
    step = jax.jit(train_step(model))
    first, again, other = (step(variables, X, STEPS["lengths"], jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert other[1] != first[1]
