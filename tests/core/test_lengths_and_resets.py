"""Lengths, masks and resets, in one layer and in two, against separate runs of the pieces of each row."""

from functools import cache

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import WEIGHTS, layers, one_direction
from sequence_problem import (
    DRAWN,
    EDGES,
    FLAGS,
    SEEDS,
    B,
    H,
    I,
    T,
    as_jax,
    compiled_layers,
    poisoned,
    random_layers,
    random_weights,
    said,
    valid_steps,
)

from grujax import GRUWeights, equations, gru
from grujax.testing import assert_close, assert_trees_close

STEERED = {  # (by, reverse, steering): (implementation, reset_after); each implementation has each steering
    ("lengths", False, "nothing"): ("xla", True),
    ("lengths", True, "nothing"): ("autodiff", False),
    ("mask", False, "nothing"): ("autodiff", True),
    ("mask", True, "nothing"): ("xla", False),
    ("lengths", False, "resets"): ("autodiff", False),
    ("lengths", True, "resets"): ("xla", False),
    ("mask", False, "resets"): ("xla", True),
    ("mask", True, "resets"): ("autodiff", True),
    ("lengths", False, "resets to h_reset"): ("xla", False),
    ("lengths", True, "resets to h_reset"): ("autodiff", True),
    ("mask", False, "resets to h_reset"): ("autodiff", False),
    ("mask", True, "resets to h_reset"): ("xla", True),
    ("neither", False, "resets"): ("xla", True),
    ("neither", True, "resets to h_reset"): ("xla", False),
}


@cache
def compiled_gru(by, steering, **options):
    """Compiles a function (arrays, valid, resets, dhs, dh_last) -> the gradients of all arrays, hs and h_last."""

    def loss(inputs, valid, resets, dhs, dh_last):
        steer = {} if by == "neither" else {by: valid}
        steer |= {"resets": resets, "h_reset": inputs["h_reset"]}
        for name in {"nothing": ("resets", "h_reset"), "resets": ("h_reset",)}.get(steering, ()):
            del steer[name]
        weights = GRUWeights(*(inputs[name] for name in WEIGHTS))
        hs, h_last = gru(inputs["x"], weights, inputs["h0"], **steer, **options)
        return (hs * dhs).sum() + (h_last * dh_last).sum(), (hs, h_last)

    return jax.jit(jax.grad(loss, has_aux=True))


OF_OTHERS = [
    ("lengths", True, "nothing"),
    ("mask", False, "nothing"),
    ("lengths", False, "resets"),
    ("neither", False, "resets"),
]
"""Cases whose pairs of values are also in other cases; they are marked slow."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case in OF_OTHERS)) for case in STEERED],
    ids=lambda case: f"{case[0]}-{'reverse' if case[1] else 'forward'}-{case[2]}",
)
@given(st.data())
@settings(max_examples=12, **DRAWN)
def test_gru_equals_the_plain_runs_of_its_pieces(case, data):
    (by, reverse, steering), (implementation, reset_after) = case, STEERED[case]
    rng = np.random.default_rng(data.draw(SEEDS))
    valid = np.ones((B, T), bool) if by == "neither" else data.draw(valid_steps(holes=by == "mask"))
    resets = data.draw(FLAGS) & (steering != "nothing")
    inputs = {"x": rng.normal(size=(B, T, I)), "h0": rng.normal(size=(B, H)), **random_weights(rng)}
    h_reset = rng.normal(size=H) * (steering == "resets to h_reset")
    dhs, dh_last = rng.normal(size=(B, T, H)), rng.normal(size=(B, H))
    variant = equations.Variant(reset_after)
    expected_hs, expected_last, backward = one_direction(
        inputs["x"], inputs["h0"], h_reset, inputs, valid, resets, reverse, variant
    )
    expected = backward(dhs, dh_last)

    run = compiled_gru(by, steering, reverse=reverse, implementation=implementation, reset_after=reset_after)
    handed = as_jax(inputs | {"x": poisoned(inputs["x"], valid), "h_reset": h_reset})
    gradients, (hs, h_last) = run(handed, said(valid, by), *as_jax((resets, dhs, dh_last)))
    assert_close(hs, expected_hs, name="hs")
    assert_close(h_last, expected_last, name="h_last")
    if steering != "resets to h_reset":
        del gradients["h_reset"], expected["h_reset"]
    assert_trees_close(gradients, expected, "gradient")
    assert not np.asarray(hs)[~valid].any() and not np.asarray(gradients["x"])[~valid].any()
    empty = ~valid.any(1)
    np.testing.assert_array_equal(np.asarray(h_last)[empty], inputs["h0"][empty])


# Two layers, both directions, a learned initial state


def check_layers(rng, params, x, h0, valid, resets, by, h0_given, **options):
    """Compares values and gradients of two layers in both directions with the reference."""
    hidden_size = h0.shape[-1]
    d_output, d_last = rng.normal(size=(*valid.shape, 2 * hidden_size)), rng.normal(size=h0.shape)
    variant = equations.Variant(options.get("reset_after", True))
    expected, expected_last, backward = layers(params, x, h0 if h0_given else None, valid, resets, variant=variant)
    run = compiled_layers(by, h0_given, hidden_size, **options)
    handed = as_jax((params, poisoned(x, valid), h0))
    (*gradients, dh0), (output, h_last) = run(*handed, said(valid, by), *as_jax((resets, d_output, d_last)))
    assert_close(output, expected, name="output")
    assert_close(h_last, expected_last, name="h_last")
    *expected_gradients, expected_dh0 = backward(d_output, d_last)
    assert_trees_close(gradients, expected_gradients, "gradient")
    if h0_given:
        assert_close(dh0, expected_dh0, "gradient", name="h0")
    assert not np.asarray(output)[~valid].any() and not np.asarray(gradients[1])[~valid].any()
    starts = h0 if h0_given else np.broadcast_to(params["h0"][:, None], h0.shape)
    np.testing.assert_array_equal(np.asarray(h_last)[:, ~valid.any(1)], starts[:, ~valid.any(1)])


@pytest.mark.parametrize(
    ("implementation", "by", "h0_given", "reset_after"),
    [
        (None, "lengths", False, True),
        (None, "mask", True, False),
        pytest.param("autodiff", "lengths", True, False, marks=pytest.mark.slow),  # tested above; a layer passes it on
        ("reference", "mask", False, True),
    ],
)
@given(st.data())
@settings(max_examples=6, **DRAWN)
def test_layers_equal_the_plain_runs_of_their_pieces(implementation, by, h0_given, reset_after, data):
    rng = np.random.default_rng(data.draw(SEEDS))
    valid, resets = data.draw(valid_steps(holes=by == "mask")), data.draw(FLAGS)
    params, h0 = random_layers(rng)
    x = rng.normal(size=(B, T, I))
    options = {"implementation": implementation, "reset_after": reset_after}
    check_layers(rng, params, x, h0, valid, resets, by, h0_given, **options)


@pytest.mark.parametrize(  # also in test_pooling.py, without gradients, and in kernels/test_contract.py
    "edge", [pytest.param(edge, marks=[] if edge == "no steps" else pytest.mark.slow) for edge in EDGES]
)
def test_sizes_at_the_edge(edge):
    n_rows, n_steps, input_size, hidden_size = EDGES[edge]
    rng = np.random.default_rng(3)
    params, h0 = random_layers(rng, input_size, hidden_size, n_rows)
    x, (valid, resets) = rng.normal(size=EDGES[edge][:3]), rng.random((2, n_rows, n_steps)) < 0.7
    check_layers(rng, params, x, h0, valid, resets, "mask", False, implementation=None, reset_after=True)
