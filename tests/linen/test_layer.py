"""The layer: layers and directions against the oracle, one tree for every path, dropout, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grujax import GRU, GRUSpec, InputError, equations
from grujax.kernels import explain
from grujax.kernels.table import KERNELS
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


def oracle(params, lengths, reset_after):
    """Output, h_last and the gradients of all inputs of two layers in both directions, time-major inside."""
    x, inputs, hs, last = X.swapaxes(0, 1), [], [], []
    weights = {name: [np.asarray(params[name][w]) for w in WEIGHTS] for name, _ in CELLS}
    for i, (name, reverse) in enumerate(CELLS):
        inputs.append(x)
        options = {"lengths": lengths, "reverse": reverse, "variant": equations.Variant(reset_after)}
        found = equations.sequence(x, H0[i], *weights[name], **options)
        hs.append(found.hs)
        last.append(found.h_last)
        if reverse:
            x = np.concatenate(hs[-2:], -1)
    gradients, dh0, d_out, dx = {}, [None] * 4, D_OUTPUT.swapaxes(0, 1), 0.0
    for i, (name, reverse) in reversed(list(enumerate(CELLS))):
        options = {"lengths": lengths, "reverse": reverse, "variant": equations.Variant(reset_after)}
        d = np.split(d_out, 2, -1)[reverse]
        g = equations.sequence_backward(inputs[i], H0[i], *weights[name], dhs=d, dh_last=D_LAST[i], **options)
        gradients[name], dh0[i] = {w: getattr(g, w) for w in WEIGHTS}, g.h0
        dx = dx + g.x
        if not reverse:
            d_out, dx = dx, 0.0
    return x.swapaxes(0, 1), np.stack(last), (gradients, d_out.swapaxes(0, 1), np.stack(dh0))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("implementation", [*KERNELS, "reference"])
def test_values_and_gradients_equal_the_oracle(implementation, reset_after, lengths):
    if implementation in KERNELS and KERNELS[implementation].refuses(GRUSpec(reset_after), False):
        with pytest.raises(InputError, match="reset_after=True"):
            explain(spec=GRUSpec(False), implementation=implementation)
        return
    model = layer(implementation=implementation, reset_after=reset_after)
    params = model.init(jax.random.key(0), jnp.asarray(X))["params"]
    x = X.copy()
    if lengths is not None:
        x[1], x[2, 2:], x[3, 5:] = np.nan, np.inf, 1e38

    @jax.jit
    def run(params, x, h0):
        def loss(params, x, h0):
            output, h_last = model.apply({"params": params}, x, h0, lengths=lengths)
            return (output * jnp.asarray(D_OUTPUT)).sum() + (h_last * jnp.asarray(D_LAST)).sum(), (output, h_last)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, h0)

    (_, (output, h_last)), gradients = run(params, jnp.asarray(x), jnp.asarray(H0))
    expected, expected_last, expected_gradients = oracle(params, lengths, reset_after)
    assert_close(output, expected)
    assert_close(h_last, expected_last)
    assert_trees_close(gradients, expected_gradients, "gradient")
    if lengths is not None:
        assert not np.asarray(output)[np.arange(T) >= lengths[:, None]].any()
        np.testing.assert_array_equal(h_last[:, 1], H0[:, 1])


def test_every_implementation_starts_from_the_same_tree_with_the_same_values():
    trees = [layer(implementation=i).init(jax.random.key(1), jnp.asarray(X)) for i in ("reference", "fused", "scan")]
    for tree in trees[1:]:
        jax.tree.map(np.testing.assert_array_equal, trees[0], tree)
    assert set(trees[0]["params"]) == {name for name, _ in CELLS} and set(trees[0]["params"]["l0"]) == set(WEIGHTS)


def test_calling_again_compiles_nothing():
    model = layer()
    variables = model.init(jax.random.key(0), jnp.asarray(X))
    model.apply(variables, jnp.asarray(X))
    events = []
    listener = lambda event, _duration, **_: events.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        model.apply(variables, jnp.asarray(X))
        assert not [event for event in events if event.endswith("backend_compile_duration")]
        model.apply(variables, jnp.asarray(X[:, :4]))
        assert [event for event in events if event.endswith("backend_compile_duration")]
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize("batch", [(), (2, 2)])
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_batch_axes_may_be_none_or_two(batch, implementation):
    model = layer(implementation=implementation)
    variables = model.init(jax.random.key(0), jnp.asarray(X))
    output, h_last = model.apply(variables, jnp.asarray(X), lengths=LENGTHS)
    rows = 4 if batch else 3  # unbatched: the last row alone
    pick = (lambda a: a.reshape(*batch, *a.shape[1:])) if batch else (lambda a: a[rows])
    found, last = model.apply(variables, jnp.asarray(pick(X)), lengths=pick(LENGTHS))
    assert_close(found, pick(output))
    assert_close(last, jnp.stack([pick(h) for h in h_last]))


@pytest.mark.parametrize("shape", [(4, 0, 3), (0, 6, 3)])
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_no_steps_and_no_rows(shape, implementation):
    model = layer(implementation=implementation)
    variables = model.init(jax.random.key(0), jnp.asarray(X))
    output, h_last = model.apply(variables, jnp.zeros(shape), jnp.ones((4, shape[0], H)))
    assert (output.shape, h_last.shape) == ((*shape[:2], 2 * H), (4, shape[0], H))
    assert (h_last == 1).all()


def test_dropout_falls_between_layers_only_and_not_when_deterministic():
    x = jnp.asarray(X)
    variables = layer().init(jax.random.key(0), x)
    plain, _ = layer().apply(variables, x)
    rngs = {"dropout": jax.random.key(3)}
    np.testing.assert_array_equal(layer(dropout=0.5).apply(variables, x)[0], plain)
    dropped, last = layer(dropout=0.5).apply(variables, x, deterministic=False, rngs=rngs)
    assert (jnp.abs(dropped - plain).max(axis=(1, 2)) > 1e-3).all() and (dropped != 0).all()
    np.testing.assert_array_equal(last[:2], layer().apply(variables, x)[1][:2])  # the first layer is left alone
    one = GRU(H, param_dtype=jnp.float64, dropout=0.9)
    single = one.init(jax.random.key(0), x)
    np.testing.assert_array_equal(one.apply(single, x, deterministic=False, rngs=rngs)[0], one.apply(single, x)[0])
    cut, _ = layer(dropout=1.0).apply(variables, x, deterministic=False, rngs=rngs)
    shifted, _ = layer(dropout=1.0).apply(variables, x + 1, deterministic=False, rngs=rngs)
    np.testing.assert_array_equal(cut, shifted)  # dropout of 1: nothing of x reaches the second layer


def test_half_precision_compute_gives_half_precision_output_and_a_float32_state():
    x = jnp.asarray(X, jnp.float32)
    model = GRU(H, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), x)
    output, h_last = model.apply(variables, x)
    assert (output.dtype, h_last.dtype) == (jnp.bfloat16, jnp.float32)
    assert variables["params"]["l0"]["w_hh"].dtype == jnp.float32
    assert_close(output, GRU(H).apply(variables, x)[0], dtype="bfloat16")
