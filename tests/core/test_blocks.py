"""A layer with `blocks` equals the dense layer whose w_hh has these blocks on its diagonal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from implementations import HERE
from refusals import refused
from scipy.linalg import block_diag

import grujax
import grujax.nnx as gnnx
from grujax import GRU, GRUCell, GRUModel
from grujax.interop import ConversionWarning, equinox, flax, haiku, keras, onnx, torch
from grujax.seq2seq import Seq2Seq
from grujax.testing import assert_close, assert_trees_close

RNG = np.random.default_rng(0)
B, T, I, H, BLOCKS = 4, 5, 3, 6, 3
X, H0 = RNG.normal(size=(B, T, I)), RNG.normal(size=(4, B, H))
STEPS = {"lengths": np.array([5, 0, 2, 4]), "resets": RNG.random((B, T)) < 0.3}
F64 = {"param_dtype": jnp.float64}
NORMALISED = {"layer_norm": True, "update": "take", "update_bias": -1.0}


def mapped(function, tree):
    """Applies `function` to every w_hh in a tree of parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: function(np.asarray(a)) if path[-1].key == "w_hh" else a, tree
    )


def whole(blocks):
    """(K, n, 3n) -> (H, 3H): the dense matrices of the gates, side by side."""
    gates = np.split(blocks, 3, axis=-1)
    return np.concatenate([block_diag(*gate) for gate in gates], axis=1)


def own(dense):
    """(H, 3H) -> (K, n, 3n): the diagonal blocks."""
    size = H // BLOCKS
    parts = [slice(k * size, (k + 1) * size) for k in range(BLOCKS)]
    gates = np.split(dense, 3, axis=1)
    return np.stack([np.concatenate([gate[at, at] for gate in gates], axis=1) for at in parts])


def random_params(model, *args):
    """Random parameters, none of them zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)["params"]
    return jax.tree.map(lambda a: jax.device_put(RNG.uniform(-0.9, 0.9, a.shape).astype(a.dtype)), shapes)


def values_and_gradients(run, params):
    def loss(params):
        found = run(params)
        return sum(jnp.sin(a).sum() for a in jax.tree.leaves(found)), found

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


LAYERS = {
    "two layers, both ways": {"num_layers": 2, "bidirectional": True},
    "normalised, take": NORMALISED,
    "before": {"reset_after": False, "bidirectional": True, "bias": False},
}
QUICK = {"two layers, both ways": ["native"], "normalised, take": [None], "before": ["xla", "reference"]}
"""The dense matrix is built before a kernel runs: one case per kernel, and both values of `reset_after`, are enough."""
WAYS = [*(name for name in HERE if name != "autodiff"), "reference"]


def of_blocks(layer, params):
    """The results and gradients of a layer."""
    h0 = H0[: layer.num_layers * layer.num_directions]
    return values_and_gradients(lambda params: layer.apply({"params": params}, X, h0, **STEPS), params)


@functools.cache
def dense(case):
    """Parameters of a layer with blocks, and the results and gradients of the equivalent dense layer."""
    layer = GRU(H, blocks=BLOCKS, **LAYERS[case], **F64)
    params = random_params(layer, X)
    return params, of_blocks(layer.clone(blocks=1), mapped(whole, params))


@pytest.mark.parametrize(
    ("case", "implementation"),  # normalisation has one implementation besides the reference
    [
        pytest.param(case, way, marks=[] if way in QUICK[case] else pytest.mark.slow)
        for case in LAYERS
        for way in (WAYS if "normalised" not in case else [None, "reference"])
    ],
)
def test_values_and_gradients_are_those_of_the_dense_layer(case, implementation):
    layer = GRU(H, blocks=BLOCKS, implementation=implementation, **LAYERS[case], **F64)
    params, (expected, of_dense) = dense(case)
    found, gradient = of_blocks(layer, params)
    assert_trees_close(found, expected)
    assert_trees_close(gradient, mapped(own, of_dense), "gradient")
    assert all(np.asarray(gradient[name]["w_hh"]).all() for name in params)  # no block is left out


def test_nnx_has_the_same_values_and_gradients():
    layer = GRU(H, blocks=BLOCKS, **LAYERS["two layers, both ways"], **F64)
    params, ((_, expected), of_dense) = dense("two layers, both ways")
    module = gnnx.from_linen(layer, {"params": params}, rngs=nnx.Rngs(0))

    def loss(module):
        found = module(X, H0, **STEPS)
        return sum(jnp.sin(a).sum() for a in found), found

    (_, found), gradient = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(module)
    assert_trees_close(found, expected)
    assert_trees_close(nnx.to_pure_dict(gradient), mapped(own, of_dense), "gradient")
    again, variables = gnnx.to_linen(module)
    assert again == layer
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": params})


@pytest.mark.parametrize("fields", [{}, NORMALISED], ids=["plain", "normalised"])
def test_a_step_of_the_cell_is_that_of_the_dense_cell_in_both_faces(fields):
    cell = GRUCell(H, blocks=BLOCKS, **fields, **F64)
    params = random_params(cell, H0[0], X[:, 0])
    expected = jax.jit(cell.clone(blocks=1).apply)({"params": mapped(whole, params)}, H0[0], X[:, 0])
    module = gnnx.from_linen(cell, {"params": params}, rngs=nnx.Rngs(0))
    assert_trees_close(jax.jit(cell.apply)({"params": params}, H0[0], X[:, 0]), expected)
    assert_trees_close(module(H0[0], X[:, 0]), expected)


def test_a_unit_reads_the_states_of_its_own_block_alone():
    layer = GRU(H, blocks=BLOCKS, **F64)
    variables = {"params": random_params(layer, X)}
    jacobian = jax.jit(jax.jacobian(lambda h: layer.apply(variables, X[:1], h)[1]))(H0[:1, :1])
    reads = np.asarray(jacobian)[0, 0, :, 0, 0] != 0
    np.testing.assert_array_equal(reads, block_diag(*[np.ones((2, 2), bool)] * BLOCKS))


def test_the_parameters_are_the_blocks_alone():
    count = {
        blocks: sum(a.size for a in jax.tree.leaves(random_params(GRU(64, blocks=blocks), X.astype(np.float32))))
        for blocks in (1, 8)
    }
    assert count == {1: 3 * 64 * (3 + 64 + 2), 8: 3 * 64 * (3 + 8 + 2)}


@pytest.mark.parametrize("initializer", ["torch", "flax", "keras"])
def test_each_block_starts_as_a_layer_of_its_size(initializer):
    cell = GRUCell(64, blocks=4, initializer=initializer)
    blocks = np.asarray(cell.init(jax.random.key(0), I, method="weights")["params"]["w_hh"], np.float64)
    assert blocks.shape == (4, 16, 48) and len({block.tobytes() for block in blocks}) == 4
    for block in blocks:
        if initializer == "torch":  # uniform within 1/sqrt(16)
            assert 0.24 < np.abs(block).max() <= 0.25 and abs(block.std() / (0.25 / 3**0.5) - 1) < 0.1
        for matrix in {"torch": [], "flax": np.split(block, 3, axis=1), "keras": [block]}[initializer]:
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(16), atol=1e-5)


def test_dropout_of_weights_is_that_of_the_dense_layer():
    layer, key = GRU(H, blocks=BLOCKS, weight_dropout=0.5, **F64), {"dropout": jax.random.key(1)}
    params = random_params(layer, X)
    found, expected = (
        jax.jit(lambda p, m=m: m.apply({"params": p}, X, deterministic=False, rngs=key))(p)
        for m, p in ((layer, params), (layer.clone(blocks=1), mapped(whole, params)))
    )
    assert_trees_close(found, expected)
    assert np.abs(np.asarray(found[0]) - jax.jit(layer.apply)({"params": params}, X)[0]).max() > 0.01


def test_an_encoder_and_a_decoder_have_them_too(tmp_path):
    model = Seq2Seq(H, blocks=BLOCKS, source_vocabulary=7, target_vocabulary=5, context="bahdanau", **F64)
    source, target = RNG.integers(0, 7, (B, T)), RNG.integers(0, 5, (B, 4))
    params = random_params(model, source, target)
    assert params["encoder"]["l0"]["w_hh"].shape == params["decoder"]["l0"]["w_hh"].shape == (3, 2, 6)
    expected = jax.jit(model.clone(blocks=1).apply)({"params": mapped(whole, params)}, source, target)
    assert_close(jax.jit(model.apply)({"params": params}, source, target), expected)
    grujax.save(tmp_path / "m.safetensors", model, {"params": params})
    loaded, variables = grujax.load(tmp_path / "m.safetensors")
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, variables, {"params": params})


TO = {
    "torch": (torch.to_torch, torch.from_torch, {}),
    "onnx": (onnx.to_onnx, onnx.from_onnx, {}),
    "keras": (keras.to_keras, keras.from_keras, {}),
    "flax": (flax.to_flax, flax.from_flax, {}),
    "haiku": (haiku.to_haiku, haiku.from_haiku, {"reset_after": False, "update": "take"}),
    "equinox": (equinox.to_equinox, equinox.from_equinox, {}),
}


@pytest.mark.filterwarnings("ignore:.*stored as their sum:grujax.interop.ConversionWarning")
@pytest.mark.parametrize(
    "framework",  # interop/parts.py builds the matrix for all; slow in JAX, where `verify` compiles
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("flax", "haiku", "equinox"))) for name in TO],
)
def test_other_frameworks_get_the_dense_matrix_and_compute_the_same(framework):
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    write, read, fields = TO[framework]
    layer, x = GRU(H, blocks=BLOCKS, num_layers=2, **fields), X.astype(jnp.float32)
    params = random_params(layer, x)
    with pytest.warns(
        ConversionWarning, match=r"blocks=3: w_hh is written as a dense matrix, with zeros around its blocks"
    ):
        theirs = write(layer, {"params": params}, verify=True)
    model, dense = read(*theirs) if isinstance(theirs, tuple) else read(theirs)
    assert model.blocks == 1
    for name, of in params.items():
        np.testing.assert_array_equal(dense["params"][name]["w_hh"], whole(np.asarray(of["w_hh"])))


def test_a_model_of_blocks_refuses_a_dense_matrix():
    model = GRUModel(H, 2, blocks=BLOCKS, **F64)
    dense = mapped(whole, random_params(model, X))
    with refused("params/encoder/gru/l0/w_hh: expected shape (3, 2, 6), found shape (6, 18)"):
        model.apply({"params": dense}, X)
