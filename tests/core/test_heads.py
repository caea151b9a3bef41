"""Models with one head, with several heads, and with hidden layers in the heads."""

import jax
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
    found = jax.jit(model.apply)({"params": as_jax(params)}, X, lengths=LENGTHS)
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
    assert_close(jax.jit(model.apply)({"params": as_jax(params)}, X), dense(params["head"], features))


@pytest.mark.parametrize("pooling", ["last", None])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_the_activation_of_the_outputs_comes_last(name, pooling):
    """It is applied to each head separately; at steps that are not valid the output stays 0."""
    model = GRUModel(5, HEADS, pooling=pooling, **LEARNED)
    variables = {"params": as_jax(random_params(model, np.random.default_rng(9)))}
    before = jax.jit(model.apply)(variables, X, lengths=LENGTHS)
    found = jax.jit(model.clone(output_activation=name).apply)(variables, X, lengths=LENGTHS)
    valid = np.arange(T) < LENGTHS[:, None]
    for head in HEADS:
        e = np.exp(np.asarray(before[head]))
        expected = e / e.sum(-1, keepdims=True) if name == "softmax" else e / (1 + e)
        assert_close(found[head], expected if pooling else np.where(valid[..., None], expected, 0), name=head)


HEADS_AND_STATISTICS = {"a": 2, "a_b": 1, "c": 3}


def with_statistics():
    """A model with three heads. Two have statistics, and the name of one is the beginning of another's."""
    rng = np.random.default_rng(3)
    model = GRUModel(5, HEADS_AND_STATISTICS, pooling="last", **LEARNED)
    statistics = {"output_a_b_mean": [7.0], "output_a_b_std": [3.0]}
    statistics |= {"output_c_mean": rng.normal(size=3), "output_c_std": rng.uniform(1, 2, 3)}
    statistics = {name: np.asarray(a, np.float32) for name, a in statistics.items()}
    params = jax.tree.map(lambda a: jax.device_put(a.astype(np.float32)), random_params(model, rng))
    return model.clone(param_dtype=np.dtype("float32")), {"params": params, "statistics": statistics}


def test_each_head_has_statistics_of_its_own(tmp_path):
    model, variables = with_statistics()
    x, statistics = X.astype(np.float32), variables["statistics"]
    run = jax.jit(lambda m, v: m.apply(v, x, lengths=LENGTHS), static_argnums=0)
    plain = jax.tree.map(np.asarray, run(model, {"params": variables["params"]}))
    expected = {"a": plain["a"], "a_b": plain["a_b"] * 3 + 7}
    expected["c"] = plain["c"] * np.asarray(statistics["output_c_std"]) + np.asarray(statistics["output_c_mean"])
    found = run(model, variables)
    grujax.save(tmp_path / "m.safetensors", model, variables)
    loaded, again = grujax.load(tmp_path / "m.safetensors")
    module = grujax.nnx.from_linen(model, variables, rngs=nnx.Rngs(0))
    of_nnx = nnx.jit(lambda m: m(x, lengths=LENGTHS))(module)
    back, values = grujax.nnx.to_linen(module)
    folded = interop.fold_statistics(model, variables)
    of_file, of_linen, of_folded = run(loaded, again), run(back, values), run(model, folded)
    for name in HEADS_AND_STATISTICS:
        assert_close(found[name], expected[name], name=name)
        np.testing.assert_array_equal(of_file[name], found[name])
        np.testing.assert_array_equal(of_nnx[name], found[name])
        np.testing.assert_array_equal(of_linen[name], found[name])
        assert_close(of_folded[name], expected[name], name=name)


@pytest.mark.parametrize("change, part", [
    ({"output_a_mean": np.ones(2)}, "statistics/output_a_std: expected a tensor"),
    ({"output_d_mean": np.ones(1)}, "statistics/output_d_mean: expected only the model's"),
    ({"output_c_std": np.ones(2)}, "statistics/output_c_std: expected float32 (3,)"),
])  # fmt: skip
def test_statistics_that_no_head_has_are_not_saved(change, part, tmp_path):
    model, variables = with_statistics()
    change = {name: a.astype(np.float32) for name, a in change.items()}
    with refused(part):
        grujax.save(tmp_path / "m.safetensors", model, variables | {"statistics": variables["statistics"] | change})
