"""The distributions that parameters start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grujax import GRU, GRUModel, InputError
from grujax.initializers import gatewise, preset

KEY = jax.random.key(0)
HIDDEN = 64


def params(initializer, dtype=jnp.float32, **sizes):
    model = GRUModel(HIDDEN, 9, initializer=initializer, param_dtype=dtype, **sizes)
    return model.init(KEY, jnp.zeros((1, 2, 48), dtype))["params"]


def is_uniform_within(a, bound):
    a = np.asarray(a, np.float64).ravel()
    spread = bound / np.sqrt(3 * a.size)  # of the mean of a.size draws
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
