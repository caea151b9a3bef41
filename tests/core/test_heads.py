"""Heads on the features: one, several, and with layers of their own."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import dense, layers
from sequence_problem import LEARNED, LENGTHS, B, T, X, as_jax, random_params

from grujax import GRUModel
from grujax.testing import assert_close

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


@pytest.mark.parametrize("pooling", ["last", None])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_the_activation_of_the_outputs_comes_last(name, pooling):
    """Of each head by itself; of steps that are not valid the output stays 0."""
    model = GRUModel(5, HEADS, pooling=pooling, **LEARNED)
    variables = {"params": as_jax(random_params(model, np.random.default_rng(9)))}
    before = model.apply(variables, jnp.asarray(X), lengths=LENGTHS)
    found = model.clone(output_activation=name).apply(variables, jnp.asarray(X), lengths=LENGTHS)
    valid = np.arange(T) < LENGTHS[:, None]
    for head in HEADS:
        e = np.exp(np.asarray(before[head]))
        expected = e / e.sum(-1, keepdims=True) if name == "softmax" else e / (1 + e)
        assert_close(found[head], expected if pooling else np.where(valid[..., None], expected, 0), name=head)
