"""Heads on the features: one, several, and with layers of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import dense, layers
from refusals import refused
from sequence_problem import LEARNED, LENGTHS, B, T, X, as_jax, random_params

import grujax.nnx
from grujax import GRUModel, interop
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


HEADS_AND_STATISTICS = {"a": 2, "a_b": 1, "c": 3}


def with_statistics():
    """A model of three heads of which two have statistics, and where one's name begins another's."""
    rng = np.random.default_rng(3)
    model = GRUModel(5, HEADS_AND_STATISTICS, pooling="last", **LEARNED)
    statistics = {"output_a_b_mean": [7.0], "output_a_b_std": [3.0]}
    statistics |= {"output_c_mean": rng.normal(size=3), "output_c_std": rng.uniform(1, 2, 3)}
    statistics = {name: jnp.asarray(a, jnp.float32) for name, a in statistics.items()}
    params = jax.tree.map(lambda a: a.astype(jnp.float32), as_jax(random_params(model, rng)))
    return model.clone(param_dtype=jnp.float32), {"params": params, "statistics": statistics}


def test_each_head_has_statistics_of_its_own(tmp_path):
    model, variables = with_statistics()
    x, statistics = jnp.asarray(X, jnp.float32), variables["statistics"]
    plain = jax.tree.map(np.asarray, model.apply({"params": variables["params"]}, x, lengths=LENGTHS))
    expected = {"a": plain["a"], "a_b": plain["a_b"] * 3 + 7}
    expected["c"] = plain["c"] * np.asarray(statistics["output_c_std"]) + np.asarray(statistics["output_c_mean"])
    found = model.apply(variables, x, lengths=LENGTHS)
    grujax.save(tmp_path / "m.safetensors", model, variables)
    loaded, again = grujax.load(tmp_path / "m.safetensors")
    module = grujax.nnx.from_linen(model, variables, rngs=nnx.Rngs(0))
    back, values = grujax.nnx.to_linen(module)
    folded = interop.fold_statistics(model, variables)
    for name in HEADS_AND_STATISTICS:
        assert_close(found[name], expected[name], name=name)
        np.testing.assert_array_equal(loaded.apply(again, x, lengths=LENGTHS)[name], found[name])
        np.testing.assert_array_equal(module(x, lengths=LENGTHS)[name], found[name])
        np.testing.assert_array_equal(back.apply(values, x, lengths=LENGTHS)[name], found[name])
        assert_close(model.apply(folded, x, lengths=LENGTHS)[name], expected[name], name=name)


@pytest.mark.parametrize("change, part", [
    ({"output_a_mean": jnp.ones(2)}, "statistics/output_a_std: expected a tensor"),
    ({"output_d_mean": jnp.ones(1)}, "statistics/output_d_mean: expected only the model's"),
    ({"output_c_std": jnp.ones(2)}, "statistics/output_c_std: expected float32 (3,)"),
])  # fmt: skip
def test_statistics_that_no_head_has_are_not_saved(change, part, tmp_path):
    model, variables = with_statistics()
    change = {name: a.astype(jnp.float32) for name, a in change.items()}
    with refused(part):
        grujax.save(tmp_path / "m.safetensors", model, variables | {"statistics": variables["statistics"] | change})
