"""The cell: one step against the oracle, and Flax's RNN, Bidirectional and scan of cells against the layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn

from grujax import GRU, GRUCell, InputError, equations
from grujax.testing import assert_close

RNG = np.random.default_rng(0)
X, H0 = jax.device_put((RNG.normal(size=(4, 6, 3)), RNG.normal(size=(1, 4, 5))))
LENGTHS = np.array([6, 1, 3, 5])


@pytest.fixture(scope="module")
def variables():
    return drawn(GRU(5, bidirectional=True, param_dtype=jnp.float64), X)


@pytest.mark.parametrize("reset_after", [True, False])
def test_one_step_equals_the_oracle(variables, reset_after):
    params = variables["params"]["l0"]
    cell = GRUCell(5, reset_after=reset_after, param_dtype=jnp.float64)
    x, h = np.asarray(X)[:, 0], np.asarray(H0)[0]
    carry, y = jax.jit(cell.apply)({"params": params}, h, x)
    weights = [np.asarray(params[name]) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    expected = equations.step(x, h, *weights, variant=equations.Variant(reset_after)).h
    assert_close(carry, expected)
    assert_close(y, expected)


def test_rnn_and_bidirectional_equal_the_layer(variables):
    cells = [GRUCell(5, param_dtype=jnp.float64) for _ in range(2)]
    flax = nn.Bidirectional(nn.RNN(cells[0]), nn.RNN(cells[1]))
    l0, l0_reverse = (variables["params"][name] for name in ("l0", "l0_reverse"))
    params = {"forward_rnn": {"cell": l0}, "backward_rnn": {"cell": l0_reverse}}
    output = jax.jit(flax.apply)({"params": params}, X, seq_lengths=LENGTHS)
    layer = GRU(5, bidirectional=True, param_dtype=jnp.float64)
    expected, _ = jax.jit(layer.apply)(variables, X, lengths=LENGTHS)
    valid = (np.arange(6) < LENGTHS[:, None])[..., None]
    assert_close(np.where(valid, output, 0.0), expected)


def test_scan_equals_the_layer(variables):
    scan = nn.scan(GRUCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    params = {"params": variables["params"]["l0"]}
    h_last, hs = scan(5, param_dtype=jnp.float64).apply(params, H0[0], X)
    output, last = GRU(5, param_dtype=jnp.float64).apply({"params": {"l0": params["params"]}}, X, H0)
    assert_close(hs, output)
    assert_close(h_last, last[0])


def test_a_half_precision_cell_carries_float32():
    cell = GRUCell(5, dtype=jnp.bfloat16)
    carry = cell.initialize_carry(jax.random.key(0), (4, 3))
    (carry, y), _ = cell.init_with_output(jax.random.key(0), carry, X[:, 0].astype(jnp.float32))
    assert (carry.dtype, y.dtype, carry.shape) == (jnp.float32, jnp.bfloat16, (4, 5))


def test_parameters_of_another_size_are_refused(variables):
    with pytest.raises(InputError, match=r"params/l0/w_ih: expected shape \(3, 21\), found shape \(3, 15\)\. Use"):
        GRU(7, param_dtype=jnp.float64).apply(variables, X)


def test_a_call_outside_jit_traces_no_initialiser(variables, monkeypatch):
    """Flax's `param` does so at every call, which takes longer than the step."""
    layer = GRU(5, param_dtype=jnp.float64)
    expected = layer.apply(variables, X)
    monkeypatch.setattr(jax, "eval_shape", lambda *_: pytest.fail("an initialiser was traced"))
    jax.tree.map(np.testing.assert_array_equal, layer.apply(variables, X), expected)
