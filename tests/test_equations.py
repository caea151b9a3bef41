"""The oracle itself: against numbers worked out by hand and against finite differences."""

import math

import numpy as np
import pytest

from grujax.equations import Variant, sequence, sequence_backward, sigmoid, step

N_STEPS, N_ROWS, INPUTS, HIDDEN = 4, 3, 2, 5
LENGTHS = np.array([4, 0, 2])


def arguments(seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(N_STEPS, N_ROWS, INPUTS), (N_ROWS, HIDDEN), (INPUTS, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN)]
    return [rng.normal(size=s) for s in [*shapes, (3 * HIDDEN,), (3 * HIDDEN,)]]


def scalar_sigmoid(a):
    return 1 / (1 + math.exp(-a))


@pytest.mark.parametrize("reset_after", [True, False])
def test_one_step_of_one_unit_by_hand(reset_after):
    r = scalar_sigmoid(0.5 * 2 + 0.1 + (-0.3) * 0.7 + 0.2)
    z = scalar_sigmoid(-0.4 * 2 - 0.2 + 0.6 * 0.7 + 0.05)
    inside = r * (0.9 * 0.7 + 0.25) if reset_after else 0.9 * (r * 0.7) + 0.25
    n = math.tanh(0.3 * 2 + 0.15 + inside)
    w_ih, w_hh = np.array([[0.5, -0.4, 0.3]]), np.array([[-0.3, 0.6, 0.9]])
    b_ih, b_hh = np.array([0.1, -0.2, 0.15]), np.array([0.2, 0.05, 0.25])
    h = step(np.array([2.0]), np.array([0.7]), w_ih, w_hh, b_ih, b_hh, variant=Variant(reset_after)).h
    np.testing.assert_allclose(h, [(1 - z) * n + z * 0.7], rtol=1e-15)


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_zero_in_the_output_holds_the_state_and_is_not_read(reverse):
    x, h0, *weights = arguments()
    x[LENGTHS[2] :, 2] = x[:, 1] = np.nan
    hs, h_last, _ = sequence(x, h0, *weights, lengths=LENGTHS, reverse=reverse)
    assert not hs[:, 1].any() and not hs[2:, 2].any()
    np.testing.assert_array_equal(h_last[1], h0[1])
    alone = sequence(x[:2, 2:], h0[2:], *weights, reverse=reverse)
    np.testing.assert_allclose(hs[:2, 2:], alone.hs, rtol=1e-14)
    np.testing.assert_allclose(h_last[2:], alone.h_last, rtol=1e-14)
    np.testing.assert_allclose(h_last[2], hs[0 if reverse else 1, 2], rtol=1e-14)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_the_backward_pass_equals_finite_differences(reset_after, reverse, lengths):
    given = arguments(1)
    rng = np.random.default_rng(2)
    dhs, dh_last = rng.normal(size=(N_STEPS, N_ROWS, HIDDEN)), rng.normal(size=(N_ROWS, HIDDEN))
    options = {"lengths": lengths, "reverse": reverse, "variant": Variant(reset_after)}

    def value(values):
        hs, h_last, _ = sequence(*values, **options)
        return np.sum(dhs * hs) + np.sum(dh_last * h_last)

    gradients = sequence_backward(*given, dhs=dhs, dh_last=dh_last, **options)
    for i, gradient in enumerate(gradients[:6]):
        numeric, eps = np.zeros_like(given[i]), 1e-6
        for where in np.ndindex(given[i].shape):
            moved = [a.copy() for a in given]
            moved[i][where] += eps
            up = value(moved)
            moved[i][where] -= 2 * eps
            numeric[where] = (up - value(moved)) / (2 * eps)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-7, atol=1e-8, err_msg=gradients._fields[i])
