"""The distributions of the initial parameters."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grujax import GRU, GRUCell, GRUModel, InputError
from grujax.core.initializers import PRESETS, gatewise, preset

KEY = jax.random.key(0)
HIDDEN = 64


def params(initializer, dtype=jnp.float32, **sizes):
    model = GRUModel(HIDDEN, 9, initializer=initializer, param_dtype=dtype, **sizes)
    return jax.device_get(jax.jit(model.init)(KEY, np.zeros((1, 2, 48), dtype)))["params"]


def weights(initializer, dtype=jnp.float32, **fields):
    """The initial parameters of one cell, without running a step."""
    cell = GRUCell(HIDDEN, initializer=initializer, param_dtype=dtype, **fields)
    return cell.init(KEY, 48, method="weights")["params"]


def is_uniform_within(a, bound):
    a = np.asarray(a, np.float64).ravel()
    spread = bound / np.sqrt(3 * a.size)  # the standard deviation of the mean of a.size draws
    return np.abs(a).max() <= bound and np.abs(a).max() > bound * (1 - 20 / a.size) and abs(a.mean()) < 5 * spread


def test_torch_is_uniform_within_one_over_root_hidden_and_the_head_within_root_of_its_inputs():
    tree = params("torch", bidirectional=True)
    for tensor in jax.tree.leaves(tree["encoder"]):
        assert is_uniform_within(tensor, HIDDEN**-0.5)
        assert abs(np.std(tensor) / (HIDDEN**-0.5 / 3**0.5) - 1) < 0.15
    assert is_uniform_within(tree["head"]["kernel"], (2 * HIDDEN) ** -0.5)
    assert np.abs(tree["head"]["bias"]).max() <= (2 * HIDDEN) ** -0.5 and np.std(tree["head"]["bias"]) > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 5e-2)])
def test_flax_is_orthogonal_gate_by_gate_with_zero_biases(dtype, tolerance):
    cell = params("flax", dtype)["encoder"]["gru"]["l0"]
    assert all(a.dtype == dtype for a in cell.values())
    gates = np.split(np.asarray(cell["w_hh"], np.float64), 3, axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate.T @ gate, np.eye(HIDDEN), atol=tolerance)
    assert not np.allclose(gates[0], gates[1], atol=0.1) and not np.allclose(gates[1], gates[2], atol=0.1)
    assert not cell["b_ih"].any() and not cell["b_hh"].any()
    for gate in np.split(np.asarray(cell["w_ih"], np.float64), 3, axis=1):
        assert abs(gate.std() / 48**-0.5 - 1) < 0.1


@pytest.fixture(scope="module")
def keras_start():
    tree = jax.tree.map(np.asarray, params("keras"))
    return tree["encoder"]["gru"]["l0"], tree["head"]


def test_keras_is_glorot_uniform_with_orthonormal_recurrent_rows_and_zero_biases(keras_start):
    cell, head = keras_start
    for tensor, fans in ((cell["w_ih"], 48 + 3 * HIDDEN), (head["kernel"], HIDDEN + 9)):
        assert is_uniform_within(tensor, (6 / fans) ** 0.5)
        assert abs(np.std(tensor) / (2 / fans) ** 0.5 - 1) < 2.5 / np.sqrt(tensor.size)
    np.testing.assert_allclose(cell["w_hh"] @ cell["w_hh"].T, np.eye(HIDDEN), atol=1e-5)
    assert not any(np.any(bias) for bias in (cell["b_ih"], cell["b_hh"], head["bias"]))


def test_keras_is_what_keras_starts_from(keras_start):
    os.environ["KERAS_BACKEND"] = "jax"
    keras = pytest.importorskip("keras", reason="keras is not installed")
    cell, head = keras_start
    gru, dense = keras.layers.GRU(HIDDEN), keras.layers.Dense(9)
    keras.utils.set_random_seed(0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        gru.build((None, None, 48))
        dense.build((None, HIDDEN))
    w_ih, w_hh, bias = (np.asarray(v.value) for v in gru.weights)
    kernel, head_bias = (np.asarray(v.value) for v in dense.weights)
    for ours, theirs in ((cell["w_ih"], w_ih), (head["kernel"], kernel)):
        assert ours.shape == theirs.shape
        assert abs(np.std(ours) / np.std(theirs) - 1) < 3 / np.sqrt(ours.size)  # almost 5 standard deviations
        assert abs(np.abs(ours).max() / np.abs(theirs).max() - 1) < 20 / ours.size
    for gates in (cell["w_hh"], w_hh):
        assert gates.shape == (HIDDEN, 3 * HIDDEN)
        np.testing.assert_allclose(gates @ gates.T, np.eye(HIDDEN), atol=1e-5)
    np.testing.assert_array_equal(np.stack([cell["b_ih"], cell["b_hh"]]), bias)
    np.testing.assert_array_equal(head["bias"], head_bias)


@pytest.mark.parametrize("name", PRESETS)
def test_an_update_bias_is_added_to_the_update_gate_of_b_ih_alone(name):
    expected = weights(name)
    r, z, n = np.split(np.asarray(expected["b_ih"]), 3)
    expected["b_ih"] = np.concatenate([r, z + np.float32(1.5), n])
    jax.tree.map(np.testing.assert_array_equal, weights(name, update_bias=1.5), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_half_precision_parameters_are_drawn_in_all_presets(name):
    cell = weights(name, jnp.bfloat16)
    head = preset(name, HIDDEN, HIDDEN).head_kernel(KEY, (HIDDEN, 9), jnp.bfloat16)
    for tensor in (*cell.values(), head):
        assert tensor.dtype == jnp.bfloat16 and jnp.isfinite(tensor).all()
    assert np.std(np.asarray(cell["w_ih"], np.float64)) > 0.05 and np.std(np.asarray(head, np.float64)) > 0.05


@pytest.mark.parametrize(("name", "blocks"), [("flax", 3), ("keras", 1)])  # orthogonal gate by gate, or as one matrix
def test_half_precision_rounds_an_orthogonal_matrix_of_float32(name, blocks):
    half, wide = (weights(name, dtype)["w_hh"] for dtype in (jnp.bfloat16, jnp.float32))
    np.testing.assert_array_equal(half, wide.astype(jnp.bfloat16))
    half = np.asarray(half, np.float64)
    np.testing.assert_allclose(half @ half.T, blocks * np.eye(HIDDEN), atol=blocks * 2**-8)


def test_gates_are_drawn_apart_with_their_own_fans():
    drawn = gatewise(lambda key, shape, dtype=jnp.float32: jnp.full(shape, shape[1], dtype))(KEY, (2, 12))
    assert drawn.shape == (2, 12) and (drawn == 4).all()


def test_layers_and_directions_start_different():
    tree = GRU(8, num_layers=2, bidirectional=True).init(KEY, jnp.zeros((1, 2, 16), jnp.float32))["params"]
    starts = [np.asarray(tree[name]["w_hh"]) for name in ("l0", "l0_reverse", "l1", "l1_reverse")]
    assert len({a.tobytes() for a in starts}) == 4


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match=r"initializer: expected one of \['flax', 'keras', 'torch'\], found 'glorot'"):
        preset("glorot", 4)
