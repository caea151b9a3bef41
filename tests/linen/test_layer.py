"""The layer: layers and directions against the oracle, parameters, layouts, dropout, initial states, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from drawn import drawn
from flax import linen as nn
from flax import nnx
from implementations import HERE
from reference import layers
from refusals import refused

from grujax import GRU, GRUEncoder, GRUModel, equations
from grujax.nnx import from_linen
from grujax.testing import assert_close, assert_trees_close

RNG = np.random.default_rng(0)
B, T, I, H, L = 4, 6, 3, 5, 2
X, H0 = RNG.normal(size=(B, T, I)), RNG.normal(size=(2 * L, B, H))
D_OUTPUT, D_LAST = RNG.normal(size=(B, T, 2 * H)), RNG.normal(size=(2 * L, B, H))
LENGTHS = np.array([6, 0, 2, 5])
WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")
CELLS = [("l0", False), ("l0_reverse", True), ("l1", False), ("l1_reverse", True)]


def layer(**options):
    return GRU(H, num_layers=L, bidirectional=True, param_dtype=jnp.float64, **options)


@pytest.mark.parametrize(
    ("implementation", "reset_after"),
    [
        (HERE[0], True),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in HERE[1:]),
        *((name, False) for name in ("reference", HERE[0])),
        pytest.param(HERE[-1], False, marks=pytest.mark.slow),
    ],  # core/test_regularisation.py runs each implementation in a layer
)
def test_values_and_gradients_equal_the_oracle(implementation, reset_after):
    """Every step is valid; `core/test_lengths_and_resets.py` tests lengths, masks and resets."""
    model = layer(implementation=implementation, reset_after=reset_after)
    params = drawn(model, X)["params"]

    @jax.jit
    def run(*given):
        def loss(params, x, h0):
            output, h_last = model.apply({"params": params}, x, h0)
            return (output * D_OUTPUT).sum() + (h_last * D_LAST).sum(), (output, h_last)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given)

    (_, (output, h_last)), gradients = run(params, X, H0)
    known = jax.tree.map(np.asarray, params) | {"h0": np.zeros((2 * L, H))}
    steps, variant = (np.ones((B, T), bool), np.zeros((B, T), bool)), equations.Variant(reset_after)
    expected, expected_last, backward = layers(known, X, H0, *steps, variant=variant)
    assert_close(output, expected)
    assert_close(h_last, expected_last)
    (of_params, *others) = backward(D_OUTPUT, D_LAST)
    del of_params["h0"]  # the model has no learned initial state
    assert_trees_close(gradients, (of_params, *others), "gradient")


def test_every_implementation_starts_from_the_same_tree_with_the_same_values():
    of = ("reference", "xla", "autodiff")
    trees = [layer(implementation=i).init(jax.random.key(1), jax.device_put(X[:, :1])) for i in of]
    for tree in trees[1:]:
        jax.tree.map(np.testing.assert_array_equal, trees[0], tree)
    assert set(trees[0]["params"]) == {name for name, _ in CELLS} and set(trees[0]["params"]["l0"]) == set(WEIGHTS)


def test_calling_again_compiles_nothing():
    model = layer()
    variables = drawn(model, X)
    model.apply(variables, jnp.asarray(X))
    assert compilations(lambda: model.apply(variables, jnp.asarray(X))) == 0
    assert compilations(lambda: model.apply(variables, jnp.asarray(X[:, :4]))) > 0


@pytest.mark.parametrize("batch", [(), (2, 2)])
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_batch_axes_may_be_none_or_two(batch, implementation):
    model = layer(implementation=implementation)
    variables = drawn(model, X)
    run = jax.jit(lambda x, lengths: model.apply(variables, x, lengths=lengths))
    output, h_last = jax.device_get(run(X, LENGTHS))
    rows = 4 if batch else 3  # unbatched: the last row alone
    pick = (lambda a: a.reshape(*batch, *a.shape[1:])) if batch else (lambda a: a[rows])
    found, last = run(pick(X), pick(LENGTHS))
    assert_close(found, pick(output))
    assert_close(last, np.stack([pick(h) for h in np.asarray(h_last)]))


@pytest.mark.parametrize("shape", [(4, 0, 3), (0, 6, 3)])
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_no_steps_and_no_rows(shape, implementation):
    model = layer(implementation=implementation)
    variables = drawn(model, X)
    output, h_last = jax.jit(model.apply)(variables, np.zeros(shape), np.ones((4, shape[0], H)))
    assert (output.shape, h_last.shape) == ((*shape[:2], 2 * H), (4, shape[0], H))
    assert (h_last == 1).all()


def test_dropout_falls_between_layers_only_and_not_when_deterministic():
    x = X
    variables = drawn(layer(), x)
    run = jax.jit(lambda model, x: model.apply(variables, x), static_argnums=0)
    drop = jax.jit(lambda model, x: model.apply(variables, x, deterministic=False, rngs=rngs), static_argnums=0)
    plain, plain_last = jax.device_get(run(layer(), x))
    rngs = {"dropout": jax.random.key(3)}
    np.testing.assert_array_equal(run(layer(dropout=0.5), x)[0], plain)
    dropped, last = jax.device_get(drop(layer(dropout=0.5), x))
    assert (np.abs(dropped - plain).max(axis=(1, 2)) > 1e-3).all() and (dropped != 0).all()
    np.testing.assert_array_equal(last[:2], plain_last[:2])  # dropout does not act on the first layer
    cut, _ = drop(layer(dropout=1.0), x)
    shifted, _ = drop(layer(dropout=1.0), x + 1)
    np.testing.assert_array_equal(cut, shifted)  # dropout of 1: nothing of x reaches the second layer


@pytest.mark.parametrize("kind", [GRU, GRUEncoder])
def test_training_warns_of_dropout_that_has_no_place_and_drops_nothing(kind):
    """A model also drops before its head, so it does not warn."""
    x, rngs = jnp.asarray(X), {"dropout": jax.random.key(3)}
    one = kind(H, param_dtype=jnp.float64, dropout=0.9)
    variables = drawn(one, x)
    plain = one.apply(variables, x)
    module = from_linen(one, variables, rngs=nnx.Rngs(0))
    for train in (functools.partial(one.apply, variables, deterministic=False, rngs=rngs), module):
        with pytest.warns(UserWarning, match=r"dropout=0\.9 acts between .* dropped\. Write dropout=0, or use"):
            result = train(x)
        jax.tree.map(np.testing.assert_array_equal, result, plain)
    model = GRUModel(H, 2, param_dtype=jnp.float64, dropout=0.9)
    variables = drawn(model, x)
    assert (model.apply(variables, x, deterministic=False, rngs=rngs) != model.apply(variables, x)).all()


def test_half_precision_compute_gives_half_precision_output_and_a_float32_state():
    x = jnp.asarray(X, jnp.float32)
    model = GRU(H, dtype=jnp.bfloat16)
    variables = drawn(model, x)
    output, h_last = model.apply(variables, x)
    assert (output.dtype, h_last.dtype) == (jnp.bfloat16, jnp.float32)
    assert variables["params"]["l0"]["w_hh"].dtype == jnp.float32
    assert_close(output, GRU(H).apply(variables, x)[0], dtype="bfloat16")


@pytest.mark.parametrize("implementation", [None, "reference"])
def test_a_layer_that_reads_backwards_equals_the_oracle(implementation):
    model = GRU(H, num_layers=L, reverse=True, implementation=implementation, param_dtype=jnp.float64)
    params = drawn(model, X)["params"]
    assert set(params) == {"l0", "l1"}
    hs, last = X.swapaxes(0, 1), []
    for k in range(L):
        weights = [np.asarray(params[f"l{k}"][name]) for name in WEIGHTS]
        hs, h_last, _ = equations.sequence(hs, H0[k], *weights, lengths=LENGTHS, reverse=True)
        last.append(h_last)
    output, h_last = jax.jit(model.apply)({"params": params}, X, H0[:L], lengths=LENGTHS)
    assert_close(output, hs.swapaxes(0, 1))
    assert_close(h_last, np.stack(last))


def test_without_a_merge_the_directions_come_apart_on_the_first_axis():
    both, apart = (GRU(H, bidirectional=True, merge=merge, param_dtype=jnp.float64) for merge in ("concat", None))
    variables = drawn(both, X)
    (expected, last), (found, h_last) = (m.apply(variables, jnp.asarray(X), lengths=LENGTHS) for m in (both, apart))
    np.testing.assert_array_equal(found, np.stack(np.split(np.asarray(expected), 2, -1)), strict=True)
    np.testing.assert_array_equal(h_last, last)


@pytest.mark.parametrize("options", [{"pooling": "last"}, {"pooling": "mean"}, {"pooling": None}], ids=str)
def test_a_layer_that_reads_backwards_is_the_backward_direction_of_one_that_reads_both_ways(options):
    rng = np.random.default_rng(1)
    both, backward = (
        GRUEncoder(H, initial_state="learned", param_dtype=jnp.float64, **way, **options)
        for way in ({"bidirectional": True}, {"reverse": True})
    )
    shapes = jax.eval_shape(both.init, jax.random.key(0), X)["params"]["gru"]
    params = jax.tree.map(lambda a: rng.uniform(-0.6, 0.6, a.shape), shapes)
    steps = {"resets": rng.random((B, T)) < 0.4, "mask": rng.random((B, T)) < 0.8, "return_state": True}
    if options["pooling"]:
        steps |= {"segments": rng.integers(-1, 3, (B, T)), "num_segments": 4}
    run = jax.jit(lambda model, params: model.apply({"params": {"gru": params}}, X, **steps), static_argnums=0)
    expected, last = jax.device_get(run(both, params))
    one = {"l0": params["l0_reverse"], "h0": params["h0"][1:]}
    found, h_last = run(backward, one)
    np.testing.assert_array_equal(found, expected[..., H:])
    np.testing.assert_array_equal(h_last, last[1:])


def test_reverse_is_refused_beside_both_directions():
    with refused("reverse=True needs bidirectional=False"):
        layer(reverse=True).init(jax.random.key(0), jnp.asarray(X))


@pytest.mark.parametrize("batch", [(), (B,), (2, 2)], ids=str)
@pytest.mark.parametrize("of, scope", [(GRU, ()), (GRUEncoder, ("gru",)), (GRUModel, ("encoder", "gru"))])
def test_initialize_carry_is_what_a_sequence_starts_from(of, scope, batch):
    key, sizes = jax.random.key(0), {"output_size": 2} if of is GRUModel else {}
    options = {"num_layers": 2, "bidirectional": True, "dtype": jnp.bfloat16, **sizes}
    expected = np.zeros((4, *batch, H), np.float32)
    zeros, learned = of(H, **options), of(H, initial_state="learned", **options)
    variables = drawn(learned, np.float32(X))
    params = functools.reduce(lambda tree, name: tree[name], scope, variables["params"])
    params["h0"] = jnp.arange(4 * H, dtype=jnp.float32).reshape(4, H)
    for carry in (zeros.initialize_carry(key, (*batch, I)), learned.initialize_carry(key, (*batch, I))):
        np.testing.assert_array_equal(carry, expected, strict=True)
    carry = zeros.apply(drawn(zeros, np.float32(X)), key, (*batch, I), method="initialize_carry")
    np.testing.assert_array_equal(carry, expected, strict=True)
    carry = learned.apply(variables, key, (*batch, I), method="initialize_carry")
    boxed = jax.tree.map(lambda a: nn.Partitioned(a, (None,) * a.ndim), variables)
    np.testing.assert_array_equal(carry, learned.apply(boxed, key, (*batch, I), method="initialize_carry"))
    expected = expected + np.asarray(params["h0"]).reshape(4, *(1,) * len(batch), H)
    np.testing.assert_array_equal(carry, expected, strict=True)
    module = from_linen(learned, variables, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(module.initialize_carry((*batch, I)), expected, strict=True)
    np.testing.assert_array_equal(module.initialize_carry((*batch, I), None), expected)
    ones = module.initialize_carry((*batch, I), nnx.Rngs(0), nnx.initializers.ones)
    np.testing.assert_array_equal(ones, np.ones_like(expected), strict=True)


@pytest.mark.parametrize("batch", [(), (B,), (2, 2)], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_single_layer_takes_a_state_without_the_axis_of_layers(batch, reverse):
    x, h0 = X[: B if batch else 1].reshape(*batch, T, I), H0[0, : B if batch else 1].reshape(*batch, H)
    model = GRU(H, reverse=reverse, param_dtype=jnp.float64)
    variables = drawn(model, x)
    found, expected = (model.apply(variables, jnp.asarray(x), jnp.asarray(h)) for h in (h0, h0[None]))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    module = from_linen(model, variables, rngs=nnx.Rngs(0))
    jax.tree.map(np.testing.assert_array_equal, module(jnp.asarray(x), jnp.asarray(h0)), expected)
    with refused("h0: expected shape (2, "):
        GRU(H, num_layers=2).init(jax.random.key(0), jnp.asarray(x), jnp.asarray(h0))
