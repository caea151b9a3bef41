"""Activations with parameters: compared with torch and with the equations in NumPy, and stored in model files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn
from refusals import refused

import grujax
from grujax import GRU, GRUModel, equations
from grujax.testing import assert_close
from grujax.types import (
    PARAMETRIC,
    Affine,
    Elu,
    GRUWeights,
    HardSigmoid,
    LeakyRelu,
    ScaledTanh,
    Softplus,
    ThresholdedRelu,
)

GIVEN = [
    HardSigmoid(),
    HardSigmoid(0.3, 0.4),
    LeakyRelu(0.2),
    Elu(0.7),
    ScaledTanh(1.7, 0.6),
    ThresholdedRelu(0.3),
    Affine(0.4, -0.1),
    Softplus(),
]
TORCH = {
    "LeakyRelu": lambda F, a, of: F.leaky_relu(a, of.alpha),
    "Elu": lambda F, a, of: F.elu(a, of.alpha),
    "ThresholdedRelu": lambda F, a, of: F.threshold(a, of.alpha, 0.0),
    "Softplus": lambda F, a, of: F.softplus(a),
    "HardSigmoid": lambda F, a, of: (of.alpha * a + of.beta).clamp(0, 1),
    "ScaledTanh": lambda F, a, of: of.alpha * (of.beta * a).tanh(),
    "Affine": lambda F, a, of: of.alpha * a + of.beta,
}


def test_each_has_a_row():
    assert {type(of).__name__ for of in GIVEN} == set(PARAMETRIC) == set(equations.PARAMETRIC)


@pytest.mark.parametrize("of", GIVEN, ids=str)
def test_it_is_the_function_of_its_name_and_so_is_its_slope(of):
    """Compared with torch's own function where it has one; slopes are compared with finite differences too."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    a = np.linspace(-7, 7, 401) + 1e-3
    f, slope = equations.function(of)
    assert_close(of(jnp.asarray(a)), f(a))
    assert_close(f(a), TORCH[type(of).__name__](torch.nn.functional, torch.tensor(a), of).numpy())
    assert_close(jax.vmap(jax.grad(of))(jnp.asarray(a)), slope(a))
    np.testing.assert_allclose(slope(a), (f(a + 1e-6) - f(a - 1e-6)) / 2e-6, atol=1e-8)


@pytest.mark.parametrize("of", GIVEN, ids=str)
def test_a_gru_with_it_is_that_of_the_equations_values_and_gradients(of, problem):
    p = problem(seed=3)
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    variant = equations.Variant(activation=of, gate_activation=of)
    expected = equations.sequence(p["x"].swapaxes(0, 1), p["h0"], *(p[k] for k in names), variant=variant)
    dhs = np.random.default_rng(0).normal(size=expected.hs.shape)
    slopes = equations.sequence_backward(
        p["x"].swapaxes(0, 1),
        p["h0"],
        *(p[k] for k in names),
        dhs=dhs,
        dh_last=np.zeros_like(p["h0"]),
        variant=variant,
    )

    def loss(weights, x):
        hs, _ = grujax.gru(x, GRUWeights(**weights), p["h0"], activation=of, gate_activation=of)
        return (hs * dhs.swapaxes(0, 1)).sum(), hs

    given = {k: jnp.asarray(p[k]) for k in names}
    (_, hs), (found, dx) = jax.value_and_grad(loss, (0, 1), has_aux=True)(given, jnp.asarray(p["x"]))
    assert_close(hs, expected.hs.swapaxes(0, 1))
    assert_close(dx, slopes.x.swapaxes(0, 1), "gradient")
    for k in names:
        assert_close(found[k], getattr(slopes, k), "gradient", name=k)


@pytest.mark.parametrize("of", GIVEN, ids=str)
def test_a_model_file_holds_it(of, tmp_path):
    model = GRUModel(4, 2, activation=of, gate_activation=of, head_hidden=(3,), head_activation=of)
    variables = drawn(model, np.ones((1, 2, 3), np.float32))
    grujax.save(tmp_path / "m.safetensors", model, variables)
    again, _ = grujax.load(tmp_path / "m.safetensors")
    assert again == model and hash(again) == hash(model) and type(again.activation) is type(of)
    assert model != model.clone(activation=Affine(0.5, 0.5))


WRONG = [
    {"HardSigmoid": {"alpha": 0.2}},
    {"HardSigmoid": {"alpha": "0.2", "beta": 0.5}},
    {"HardSigmoid": {"alpha": 0.2, "beta": 0.5}, "Softplus": {}},
    {"system": {}},
    {},
    ["HardSigmoid"],
]


@pytest.mark.parametrize("value", WRONG, ids=json.dumps)
def test_a_model_file_that_names_another_is_refused(value):
    from grujax.saving.fields import from_json

    with refused("activation"):
        from_json(GRU, {"activation": value})


def test_they_are_values():
    assert HardSigmoid(0.2, 0.5) == HardSigmoid() != HardSigmoid(0.2, 0.6)
    assert HardSigmoid(1.0, 0.0) != Affine(1.0, 0.0)
    assert all(hash(of) == hash(dataclasses.replace(of)) for of in GIVEN)
