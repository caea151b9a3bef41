"""What other libraries do with a module: run it uncompiled, pickle, hash and copy it, call its cell, reset states."""

import copy
import functools
import operator
import pickle

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grujax
import grujax.nnx as gnnx
from grujax.interop.flax import from_flax
from grujax.interop.haiku import from_haiku
from grujax.testing import assert_close, assert_trees_close

RNG = np.random.default_rng(0)
B, T, I, H = 2, 4, 3, 5
KEY, WIDE = jax.random.key(0), {"param_dtype": jnp.float64}
X, H0 = jnp.asarray(RNG.normal(size=(B, T, I))), jnp.asarray(RNG.normal(size=(1, B, H)))
RESETS = np.array([[False, False, True, False], [True, False, False, True]])


def drawn(model, *args):
    """Returns random variables, none of them zero."""
    shapes = jax.eval_shape(model.init, KEY, *args)
    return jax.tree.map(lambda a: jnp.asarray(RNG.uniform(-0.6, 0.6, a.shape), a.dtype), shapes)


@pytest.mark.parametrize("implementation", [None, pytest.param("reference", marks=pytest.mark.slow)])
def test_without_compilation_the_values_and_gradients_are_the_same(implementation):
    layer = grujax.GRU(H, reverse=True, implementation=implementation, **WIDE)
    variables, x = drawn(layer, X), X[:, :2]

    def loss(variables, x):
        return jnp.square(layer.apply(variables, x, lengths=[2, 1], resets=RESETS[:, 2:])[0]).sum()

    expected = jax.jit(jax.value_and_grad(loss))(variables, x)
    with jax.disable_jit():
        found = jax.value_and_grad(loss)(variables, x)
    assert_close(found[0], expected[0])
    assert_trees_close(found[1], expected[1], "gradient")


MODULES = {
    "cell": grujax.GRUCell(H),
    "layer": grujax.GRU(H, num_layers=2, reverse=True, dtype=jnp.bfloat16),
    "function": grujax.GRUEncoder(H, activation=operator.neg, pooling="max", precision=jax.lax.Precision.HIGHEST),
    "heads": grujax.GRUModel(H, {"a": 1, "b": 2}, head_hidden=[4]),
}


@pytest.mark.parametrize("name", MODULES)
def test_linen_modules_are_values(name):
    module = MODULES[name]
    fields = {"num_layers": 3} if name != "cell" else {"bias": False}
    for again in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), module.clone()):
        assert again == module and hash(again) == hash(module) and again is not module
    assert module.clone(**fields) != module and module.clone(**fields).clone(**{k: getattr(module, k) for k in fields})
    run = jax.jit(lambda module, x: module.hidden_size * x, static_argnums=0)
    assert run(module, 2) == 2 * H and run._cache_size() == 1
    assert run(module.clone(), 2) == 2 * H and run._cache_size() == 1  # an equal module compiles nothing


def test_a_module_of_a_local_function_goes_through_cloudpickle():
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    module = grujax.GRU(H, activation=lambda x: x / 2, **WIDE)
    again = pickle.loads(cloudpickle.dumps(module))
    variables = drawn(module, X)
    np.testing.assert_array_equal(again.apply(variables, X)[0], module.apply(variables, X)[0])


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_nnx_modules_are_copied_whole(way):
    model = gnnx.GRUModel(I, H, {"a": 1, "b": 2}, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    again, x = way(model), X.astype(jnp.float32)
    for options in ({"deterministic": True}, {"deterministic": False}):  # the copy contains the "dropout" stream
        jax.tree.map(np.testing.assert_array_equal, again(x, **options), model(x, **options))
    before = model(x, deterministic=True)
    again.encoder.gru.l0.w_ih[...] = jnp.zeros_like(again.encoder.gru.l0.w_ih[...])
    jax.tree.map(np.testing.assert_array_equal, model(x, deterministic=True), before)
    assert (np.asarray(again(x, deterministic=True)["a"]) != np.asarray(before["a"])).all()


# Flax's own wrappers of a cell


@pytest.fixture(scope="module")
def layer():
    """A layer in float64, its variables, and the same variables under the names of `nn.RNN`."""
    layer = grujax.GRU(H, **WIDE)
    variables = drawn(layer, X)
    return layer, variables, {"params": {"cell": variables["params"]["l0"]}}


@pytest.mark.parametrize("unroll", [1, 3, T])
def test_rnn_may_be_unrolled(layer, unroll):
    layer, variables, params = layer
    rnn = nn.RNN(grujax.GRUCell(H, **WIDE), unroll=unroll)
    assert_close(rnn.apply(params, X, initial_carry=H0[0]), layer.apply(variables, X, H0)[0])
    module = gnnx.from_linen(grujax.GRUCell(H, **WIDE), {"params": params["params"]["cell"]}, rngs=nnx.Rngs(0))
    assert_close(nnx.RNN(module, unroll=unroll)(X, initial_carry=H0[0]), layer.apply(variables, X, H0)[0])


@pytest.mark.parametrize("time_major", [False, True])
def test_rnn_takes_several_batch_axes(layer, time_major):
    layer, variables, params = layer
    layer, axis = layer.clone(time_major=time_major), 0 if time_major else 2
    x = jnp.moveaxis(jnp.asarray(RNG.normal(size=(2, 3, T, I))), 2, axis)
    rnn = nn.RNN(grujax.GRUCell(H, **WIDE), time_major=time_major)
    expected, h_last = layer.apply(variables, x)
    carry, output = rnn.apply(params, x, return_carry=True)
    assert_close(output, expected)
    assert_close(carry, h_last[0])


def test_bidirectional_may_share_one_cell():
    layer = grujax.GRU(H, bidirectional=True, **WIDE)
    of_cell = drawn(layer, X)["params"]["l0"]
    variables = {"params": {"l0": of_cell, "l0_reverse": of_cell}}
    expected = layer.apply(variables, X)[0]

    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            rnn = nn.RNN(grujax.GRUCell(H, **WIDE))
            return nn.Bidirectional(rnn, rnn)(x)

    assert_close(Shared().apply({"params": {"GRUCell_0": of_cell}}, X), expected)
    cell = gnnx.from_linen(grujax.GRUCell(H, **WIDE), {"params": of_cell}, rngs=nnx.Rngs(0))
    assert_close(nnx.Bidirectional(nnx.RNN(cell), nnx.RNN(cell))(X), expected)


# Resets, as reinforcement learning code implements them


def test_resets_are_those_of_haikus_reset_core():
    def unroll(x, resets, h0):
        return hk.dynamic_unroll(hk.ResetCore(hk.GRU(H)), (x, resets), h0, time_major=False)

    theirs = hk.without_apply_rng(hk.transform(unroll))
    shapes = jax.eval_shape(theirs.init, KEY, X, RESETS, H0[0])
    params = jax.tree.map(lambda a: jnp.asarray(RNG.uniform(-0.6, 0.6, a.shape)), shapes)
    expected, last = theirs.apply(params, X, RESETS, H0[0])
    model, variables = from_haiku(params)
    assert (model.reset_after, model.update) == (False, "take")
    output, h_last = model.apply(variables, X, H0, resets=RESETS)
    assert_close(output, expected)
    assert_close(h_last[0], last)


class ScannedRNN(nn.Module):
    """The module of PureJaxRL and of the projects derived from it."""

    @functools.partial(nn.scan, variable_broadcast="params", in_axes=0, out_axes=0, split_rngs={"params": False})
    @nn.compact
    def __call__(self, carry, x):
        ins, resets = x
        carry = jnp.where(resets[:, np.newaxis], self.initialize_carry(*ins.shape).astype(carry.dtype), carry)
        return nn.GRUCell(features=ins.shape[1], param_dtype=jnp.float64)(carry, ins)

    @staticmethod
    def initialize_carry(batch_size, hidden_size):
        return nn.GRUCell(features=hidden_size).initialize_carry(jax.random.key(0), (batch_size, hidden_size))


def test_resets_are_those_of_the_scanned_rnn():
    x, resets = jnp.asarray(RNG.normal(size=(T, B, H))), jnp.asarray(RESETS.T)
    params = drawn(ScannedRNN(), H0[0], (x, resets))
    last, expected = ScannedRNN().apply(params, H0[0], (x, resets))
    _, cell = from_flax(*params["params"].values())
    layer = grujax.GRU(H, time_major=True, **WIDE)
    output, h_last = layer.apply({"params": {"l0": cell["params"]}}, x, H0[0], resets=resets)
    assert_close(output, expected)
    assert_close(h_last[0], last)
