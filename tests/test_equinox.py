"""The Equinox module: it gives the same bits as the Linen module, and works with the functions of Equinox and JAX."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

import grujax
from grujax.testing import assert_close

eqx = pytest.importorskip("equinox", reason="equinox is not installed")
RNG = np.random.default_rng(0)
B, T, I, H = 3, 5, 4, 6
X, LENGTHS = RNG.normal(size=(B, T, I)), np.array([5, 0, 3])
F64 = {"param_dtype": jnp.float64}
FIELDS = [
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "connection": "highway", "initial_state": "learned", "reset_after": False, "blocks": 3},
    pytest.param({"reverse": True, "layer_norm": True, "implementation": "reference"}, marks=pytest.mark.slow),
]


def pair(**fields):
    """Returns a Linen layer, its variables, and an Equinox module with the same parameters."""
    linen = grujax.GRU(H, **F64, **fields)
    variables = jax.jit(linen.init)(jax.random.key(0), X)
    module = grujax.equinox.GRU(I, H, key=jax.random.key(1), **F64, **fields)
    assert jax.tree.map(jnp.shape, module.params) == jax.tree.map(jnp.shape, variables["params"])
    return linen, variables, eqx.tree_at(lambda m: m.params, module, variables["params"])


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_values_and_gradients_are_those_of_linen_to_the_bit(fields):
    linen, variables, module = pair(**fields)

    def loss(run, params):
        output, h_last = run(params)
        return (output**2).sum() + (h_last**2).sum(), (output, h_last)

    ours = lambda m: loss(lambda m: m(X, lengths=LENGTHS), m)  # noqa: E731
    theirs = lambda v: loss(lambda v: linen.apply(v, X, lengths=LENGTHS), v)  # noqa: E731
    (_, found), gradient = eqx.filter_jit(eqx.filter_value_and_grad(ours, has_aux=True))(module)
    (_, expected), of_linen = jax.jit(jax.value_and_grad(theirs, has_aux=True))(variables)
    jax.tree.map(np.testing.assert_array_equal, (found, gradient.params), (expected, of_linen["params"]))


def output_of(module, **options):
    return module(X, **options)[0]


def test_vmap_over_sequences_and_over_members():
    _, _, module = pair(num_layers=2)
    output, h_last, each, last = eqx.filter_jit(lambda m: (*m(X), *jax.vmap(m)(X)))(module)
    assert_close(each, output)
    assert_close(last.swapaxes(0, 1), h_last)
    keys = jax.random.split(jax.random.key(0), 2)
    members = eqx.filter_vmap(lambda key: grujax.equinox.GRU(I, H, key=key, **F64))(keys)
    outputs = np.asarray(eqx.filter_jit(eqx.filter_vmap(output_of))(members))
    for found, key in zip(outputs, keys, strict=True):
        assert_close(found, eqx.filter_jit(output_of)(grujax.equinox.GRU(I, H, key=key, **F64)))


def test_modules_of_the_same_fields_have_the_same_tree():
    """This lets a filtered jit compile once for both, and lets their trees be added."""
    one, two = (grujax.equinox.GRU(I, H, num_layers=2, key=jax.random.key(k)) for k in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(two) and hash(one.config) == hash(two.config)
    assert not (one.params["l0"]["w_hh"] == two.params["l0"]["w_hh"]).all()
    three = grujax.equinox.GRU(I, H, num_layers=2, reset_after=False, key=jax.random.key(0))
    assert jax.tree.structure(one) != jax.tree.structure(three)


def test_dropout_needs_a_key_and_is_off_in_inference():
    _, _, module = pair(num_layers=2, dropout=0.5, recurrent_dropout=0.5)
    with refused("key: expected a key of jax.random, found None", "equinox.nn.inference_mode(layer)"):
        module(X)
    run = eqx.filter_jit(output_of)
    first, again, other = (np.asarray(run(module, key=jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    quiet = eqx.nn.inference_mode(module)
    _, _, plain = pair(num_layers=2)
    np.testing.assert_array_equal(run(quiet), run(plain))


CONSTRUCTOR = {
    "use_bias": "write bias=",
    "kernel_init": "write initializer=",
    "lengths": "lengths= belongs to the call",
}
CALL = {
    "rngs": "Equinox: key=key",
    "initial_state": "write h0=",
    "training": "equinox.nn.inference_mode(layer, not training)",
    "colour": "it takes x, h0, lengths, mask, resets, key",
}


def test_a_word_of_another_library_gets_ours():
    key, layer = jax.random.key(0), grujax.equinox.GRU(I, H, key=jax.random.key(0), bias=False)
    calls = [
        (CONSTRUCTOR, lambda **words: grujax.equinox.GRU(I, H, key=key, **words)),
        (CALL, lambda **w: layer(X, **w)),
    ]
    for words, call in calls:
        for word, what in words.items():
            with pytest.raises(TypeError) as error:
                call(**{word: 1})
            assert f"GRU takes no {word}= here" in str(error.value) and what in str(error.value)
    with pytest.raises(TypeError, match=r"GRU takes only input_size, hidden_size by position"):
        grujax.equinox.GRU(I, H, 2, key=key)
    with pytest.raises(TypeError, match="no in_features= here: write input_size="):
        grujax.equinox.GRU(in_features=I, hidden_size=H, key=key)
    assert {"num_layers", "clip", "key"} <= inspect.signature(grujax.equinox.GRU).parameters.keys()


def test_a_file_is_that_of_the_linen_layer(tmp_path):
    layer = grujax.equinox.GRU(I, H, key=jax.random.key(0))
    with refused("found grujax.equinox.GRU", 'grujax.GRU with the same fields, and {"params": layer.params}'):
        grujax.save(tmp_path / "model.safetensors", layer, layer.params)


def test_what_cannot_be_served_is_refused():
    with refused("input_size: expected a positive integer, found 0"):
        grujax.equinox.GRU(0, H, key=jax.random.key(0))
    with refused("reverse=True needs bidirectional=False"):
        grujax.equinox.GRU(I, H, reverse=True, bidirectional=True, key=jax.random.key(0))
    with refused("x: expected 4 input features on the last axis"):
        pair()[2](X[..., 1:])
