"""Compared with Keras: outputs in both directions, weights there and back, and options that only act in training."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import applied
from keras_models import (
    CASES,
    PROVED,
    ZEROS,
    B,
    Both,
    Gru,
    H,
    I,
    L,
    Steps,
    T,
    assert_same_bits,
    case,
    chain,
    drawn,
    keras,
    ours,
    plain,
    random_variables,
    run,
    weights_of,
)
from refusals import refused

from grujax import GRU, GRUCell, GRUModel
from grujax.interop.keras import FRAMEWORK, from_keras, to_keras, to_layers
from grujax.interop.keras_layers import ACTIVATIONS as ours_by_theirs
from grujax.interop.parts import ConversionWarning
from grujax.interop.prove import compare
from grujax.kernels.step import ACTIVATIONS
from grujax.testing import assert_close


@pytest.mark.parametrize("name", CASES)
def test_from_keras_gives_the_same_outputs(name):
    _, expected, given, theirs, (model, variables) = case(name)
    assert model == expected
    found = ours(model, variables, given)
    if name == "no bias":  # this layer only returns its last state
        found = found[1:]
    for a, b in zip(found, theirs, strict=False):
        assert_close(a, b, name=name)
        assert np.abs(b).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - PROVED))
def test_from_keras_proves_the_other_cases_too(name):
    make, expected = CASES[name]
    assert from_keras(make())[0] == expected


@pytest.mark.parametrize("name", CASES)
def test_to_keras_gives_the_same_outputs_and_the_same_bits(name):
    source, _, given, _, (model, variables) = case(name)
    made = plain(to_keras, model, variables)
    assert isinstance(made, L.GRUCell if isinstance(model, GRUCell) else keras.Sequential)
    assert_same_bits(weights_of(made), weights_of(source))
    found, back = from_keras(made, verify=False)  # the outputs are compared below
    assert found == model
    assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))
    for a, b in zip(ours(model, variables, given), run(made, *given), strict=False):
        assert_close(a, b, name=name)


def test_layers_as_plain_data_stay_apart_whatever_their_weights_are_called():
    model = GRU(H, num_layers=2, bidirectional=True)
    variables = random_variables(model)
    found, same = from_keras(to_layers(model, variables))
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)


@pytest.mark.parametrize("way", ["forward", "both"])
def test_states_and_masks_mean_the_same(way):
    """At steps that are not valid Keras keeps the state, and repeats its output."""
    source = drawn(Steps(return_state=True) if way == "forward" else Both(return_sequences=True, return_state=True))
    model, variables = from_keras(source)
    rng = np.random.default_rng(3)
    x, lengths = rng.normal(size=(B, T, I)).astype("float32"), np.array([2, T])
    h0 = rng.normal(size=(model.num_directions, B, H)).astype("float32")
    valid = np.arange(T) < lengths[:, None]
    output, *last = run(lambda x, *h: source(x, initial_state=list(h), mask=jnp.asarray(valid)), x, *h0)
    found, h_last = applied(model, variables, x, h0, lengths=lengths)
    assert_close(found, output * valid[..., None])
    assert_close(h_last, np.stack(last))


OURS = {
    "take": GRU(H, num_layers=2, update="take"),
    "float64": GRUModel(H, 2, bidirectional=True, merge="sum", param_dtype=jnp.float64),
    "bfloat16": GRUModel(H, 2, pooling=None, param_dtype=jnp.bfloat16),
    "mixed": GRU(H, dtype=jnp.bfloat16),
    "cell": GRUCell(H, update="take", activation="softsign", gate_activation="hard_sigmoid"),
}


@pytest.mark.parametrize("name", OURS)
def test_keras_computes_what_grujax_does_from_any_state_and_length(name):
    model = OURS[name]
    variables = random_variables(model)
    made = to_keras(model, variables)
    there = FRAMEWORK.run(made, model)
    assert there.takes_h0 and there.takes_lengths == (name != "cell")
    assert compare(model, variables, there).tolerances <= 1
    found, back = from_keras(made)
    assert found == model.clone(update="keep")
    if model.update == "keep":
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))


def test_verify_runs_keras_and_sees_what_differs(caplog, monkeypatch):
    source = case("mean")[0]
    with caplog.at_level("INFO", "grujax.interop"):
        from_keras(source, verify=True)
    assert "largest difference" in caplog.text
    monkeypatch.setitem(ours_by_theirs, "tanh", "softsign")
    with refused("source", "a difference of"):
        from_keras(source, verify=True)


def test_the_split_of_the_biases_is_lost_where_keras_has_their_sum():
    model = GRU(H, reset_after=False)
    variables = random_variables(model)
    with pytest.warns(ConversionWarning, match="b_ih and b_hh are stored as their sum"):
        made = to_keras(model, variables, verify=True)
    found, back = from_keras(made)
    assert found == model
    params, again = variables["params"]["l0"], back["params"]["l0"]
    assert_same_bits([again["b_ih"]], [params["b_ih"] + params["b_hh"]])
    assert_same_bits([again["b_hh"]], [np.zeros(3 * H, np.float32)])


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "hard_tanh", "hard_sigmoid", "softsign", "elu", "linear"])
def test_activations_of_one_name_are_one_function(name):
    source = drawn(L.GRUCell(H, activation=name, recurrent_activation=name, **ZEROS))
    model, _ = from_keras(source)
    assert model.activation == model.gate_activation == name.replace("linear", "identity")
    a = np.linspace(-8, 8, 999).astype("float32")
    theirs = plain(keras.activations.get(name), jnp.asarray(a))
    assert_close(ACTIVATIONS[model.activation](jnp.asarray(a)), np.asarray(theirs))


def test_a_head_without_bias_has_zeros_and_says_so():
    with pytest.warns(ConversionWarning, match="the head has no bias"):
        model, variables = from_keras(chain(Gru(), L.Dense(2, use_bias=False)))
    assert model == GRUModel(H, 2) and not variables["params"]["head"]["bias"].any()


def test_a_live_layer_is_run_itself(monkeypatch):
    """A subclass or a changed attribute may compute something else than the config says."""
    source = drawn(Steps())
    call = source.call
    monkeypatch.setattr(source, "call", lambda x, **options: 2 * call(x, **options))
    with refused("source", "a difference of"):
        from_keras(source)
    from_keras(source, verify=False)


# -- options that only act in training ---------------------------------------------------------------------------------

LEFT = {
    "dropout at the input": (
        lambda: chain(L.Dropout(0.3), Gru(), L.Dense(2)),
        GRUModel(H, 2),
        "dropout.*no dropout at",
    ),
    "dropouts that differ": (
        lambda: chain(Steps(), L.Dropout(0.3), Gru(), L.Dropout(0.2), L.Dense(2)),
        GRUModel(H, 2, num_layers=2),
        "dropout.*no dropout at this place",
    ),
    "noise_shape": (
        lambda: chain(Steps(), L.Dropout(0.3, noise_shape=(None, 1, H)), Gru()),
        GRU(H, num_layers=2),
        "noise_shape",
    ),
    "a mask a direction": (
        lambda: drawn(Both(dropout=0.2)),
        GRU(H, bidirectional=True),
        "dropout.*only acts in training",
    ),
    "a mask a gate": (
        lambda: drawn(Gru(dropout=0.2, recurrent_dropout=0.1)),
        GRU(H),
        "recurrent_dropout.*a mask per gate",
    ),
    "regularizer": (lambda: drawn(Gru(kernel_regularizer="l2")), GRU(H), "kernel_regularizer"),
    "constraint": (lambda: drawn(Both(bias_constraint="non_neg")), GRU(H, bidirectional=True), "bias_constraint"),
    "frozen": (lambda: drawn(Gru(trainable=False)), GRU(H), "trainable"),
    "cell": (lambda: drawn(L.GRUCell(H, dropout=0.5, **ZEROS)), GRUCell(H), "dropout"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_acts_in_training_alone_is_left_with_a_warning(name):
    make, expected, match = LEFT[name]
    source = make()
    with pytest.warns(ConversionWarning) as found:
        assert from_keras(source, verify=name == "dropout at the input")[0] == expected
    assert any(re.search(match, str(w.message)) for w in found)


def test_what_keras_drops_otherwise_is_left_with_a_warning():
    model = GRU(H, bidirectional=True, input_dropout=0.1, weight_dropout=0.2)
    with pytest.warns(ConversionWarning) as found:
        to_keras(model, random_variables(model))
    assert {str(w.message).split("=")[0] for w in found} == {"Keras: input_dropout", "Keras: weight_dropout"}


def test_a_model_of_keras_starts_anew_as_keras_does():
    made = to_keras(GRUModel(H, 2), random_variables(GRUModel(H, 2)))
    gru, dense = made.layers
    found = [gru.kernel_initializer, gru.recurrent_initializer, dense.kernel_initializer]
    assert [type(i).__name__ for i in found] == ["GlorotUniform", "Orthogonal", "GlorotUniform"]


@pytest.mark.parametrize("shape", [(None, 6, 3), (2, None, 3), (2, 6, 3)], ids=str)
def test_a_model_of_fixed_sizes_is_run_at_these(shape):
    given = keras.Input(batch_shape=shape)
    theirs = plain(lambda: keras.Model(given, L.GRU(4)(L.GRU(4, return_sequences=True)(given))))
    model, variables = from_keras(theirs)
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype("f")
    assert_close(applied(model, variables, x)[1][-1], run(theirs, x)[0])
