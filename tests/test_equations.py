"""Tests the oracle itself, against numbers computed by hand and against finite differences."""

import math

import numpy as np
import pytest

from grujax.equations import ACTIVATIONS, Variant, sequence, sequence_backward, sigmoid, step

N_STEPS, N_ROWS, INPUTS, HIDDEN = 4, 3, 2, 5
LENGTHS = np.array([4, 0, 2])


def arguments(seed=0, hidden=HIDDEN):
    rng = np.random.default_rng(seed)
    shapes = [(N_STEPS, N_ROWS, INPUTS), (N_ROWS, hidden), (INPUTS, 3 * hidden), (hidden, 3 * hidden)]
    return [rng.normal(size=s) for s in [*shapes, (3 * hidden,), (3 * hidden,)]]


def scalar_sigmoid(a):
    return 1 / (1 + math.exp(-a))


@pytest.mark.parametrize("update", ["keep", "take"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_one_step_of_one_unit_by_hand(reset_after, update):
    r = scalar_sigmoid(0.5 * 2 + 0.1 + (-0.3) * 0.7 + 0.2)
    z = scalar_sigmoid(-0.4 * 2 - 0.2 + 0.6 * 0.7 + 0.05)
    inside = r * (0.9 * 0.7 + 0.25) if reset_after else 0.9 * (r * 0.7) + 0.25
    n = math.tanh(0.3 * 2 + 0.15 + inside)
    w_ih, w_hh = np.array([[0.5, -0.4, 0.3]]), np.array([[-0.3, 0.6, 0.9]])
    b_ih, b_hh = np.array([0.1, -0.2, 0.15]), np.array([0.2, 0.05, 0.25])
    h = step(np.array([2.0]), np.array([0.7]), w_ih, w_hh, b_ih, b_hh, variant=Variant(reset_after, update)).h
    expected = {"keep": (1 - z) * n + z * 0.7, "take": (1 - z) * 0.7 + z * n}[update]
    np.testing.assert_allclose(h, [expected], rtol=1e-15)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_clipped_step_of_one_unit_by_hand(reset_after):
    # before the activation r is -0.91, z is 1.07, n is about -0.1: one below, one above, one within the clip
    r, z = scalar_sigmoid(-0.8), scalar_sigmoid(0.8)
    inside = r * (0.9 * 0.7 + 0.25) if reset_after else 0.9 * (r * 0.7) + 0.25
    n = math.tanh(0.3 * -2 + 0.15 + inside)
    w_ih, w_hh = np.array([[0.5, -0.4, 0.3]]), np.array([[-0.3, 0.6, 0.9]])
    b_ih, b_hh = np.array([0.1, -0.2, 0.15]), np.array([0.2, 0.05, 0.25])
    weights, variant = (w_ih, w_hh, b_ih, b_hh), Variant(reset_after, clip=0.8)
    found = step(np.array([-2.0]), np.array([0.7]), *weights, variant=variant)
    np.testing.assert_allclose([found.r, found.z, found.n], [[r], [z], [n]], rtol=1e-15)
    np.testing.assert_allclose(found.h, [(1 - z) * n + z * 0.7], rtol=1e-15)
    large = [found.n for found in (step(np.array([x]), np.zeros(1), *weights, variant=variant) for x in (-9.0, 9.0))]
    np.testing.assert_allclose(large, [[math.tanh(-0.8)], [math.tanh(0.8)]], rtol=1e-15)  # n is clipped too


def normalised(products, scales):
    mean = sum(products) / len(products)
    variance = sum((p - mean) ** 2 for p in products) / len(products)
    return [s * (p - mean) / math.sqrt(variance + 1e-5) for p, s in zip(products, scales, strict=True)]


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_layer_normalised_step_of_two_units_by_hand(reset_after):
    w_ih, w_hh = [0.5, -0.4, 0.3, 0.8, -0.7, 0.2], [[-0.3, 0.6, 0.9, 0.1, 0.4, -0.5], [0.7, -0.2, 0.3, -0.6, 0.8, 0.15]]
    b_ih, b_hh = [0.1, -0.2, 0.15, 0.3, -0.05, 0.25], [0.2, 0.05, 0.25, -0.1, 0.35, -0.15]
    scale_ih, scale_hh = [1.5, 0.5, -1.2, 0.8, 0.9, 2.0], [0.6, 1.1, 0.7, -0.4, 1.3, 0.75]
    x, h = 2.0, [0.7, -0.4]

    def recurrent(columns, h):
        return [h[0] * w_hh[0][i] + h[1] * w_hh[1][i] for i in columns]

    from_x = normalised([x * w for w in w_ih[:4]], scale_ih[:4]) + normalised([x * w for w in w_ih[4:]], scale_ih[4:])
    from_h = normalised(recurrent(range(4), h), scale_hh[:4])
    gates = [scalar_sigmoid(from_x[i] + b_ih[i] + from_h[i] + b_hh[i]) for i in range(4)]
    r, z = gates[:2], gates[2:]
    read = h if reset_after else [r[0] * h[0], r[1] * h[1]]
    from_h_n = normalised(recurrent([4, 5], read), scale_hh[4:])
    n, expected = [], []
    for i in range(2):
        inside = from_h_n[i] + b_hh[4 + i]
        n.append(math.tanh(from_x[4 + i] + b_ih[4 + i] + (r[i] * inside if reset_after else inside)))
        expected.append((1 - z[i]) * n[i] + z[i] * h[i])
    arrays = [np.array(a) for a in ([w_ih], w_hh, b_ih, b_hh, scale_ih, scale_hh)]
    found = step(np.array([x]), np.array(h), *arrays, variant=Variant(reset_after))
    np.testing.assert_allclose([found.r, found.z, found.n, found.h], [r, z, n, expected], rtol=1e-14)


@pytest.mark.parametrize("update", ["keep", "take"])
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_masked_state_is_not_read_and_a_held_one_stays(reset_after, update):
    x, h, w_ih, w_hh, b_ih, b_hh = arguments(4)
    x, options = x[0], {"variant": Variant(reset_after, update)}
    mask = np.array([1.0, 0, 1, 0, 0])
    unread = step(x, h, w_ih, mask[:, None] * w_hh, b_ih, b_hh, **options).h
    found = step(x, h, w_ih, w_hh, b_ih, b_hh, **options, state_mask=np.broadcast_to(mask, h.shape)).h
    np.testing.assert_allclose(found, unread, rtol=1e-14)
    hold = np.broadcast_to([0.0, 1, 0.25, 0, 1], h.shape)
    found = step(x, h, w_ih, w_hh, b_ih, b_hh, **options, hold=hold).h
    new = step(x, h, w_ih, w_hh, b_ih, b_hh, **options).h
    np.testing.assert_allclose(found, hold * h + (1 - hold) * new, rtol=1e-14)
    np.testing.assert_array_equal(found[:, [1, 4]], h[:, [1, 4]])


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


def assert_equals_finite_differences(given, **options):
    """Compares the gradients of x, h0, the weights and, if given, the scales."""
    rng = np.random.default_rng(2)
    dhs, dh_last = rng.normal(size=(N_STEPS, *given[1].shape)), rng.normal(size=given[1].shape)

    def value(values):
        hs, h_last, _ = sequence(*values, **options)
        return np.sum(dhs * hs) + np.sum(dh_last * h_last)

    gradients = sequence_backward(*given, dhs=dhs, dh_last=dh_last, **options)
    for i, gradient in enumerate(gradients[: len(given)]):
        numeric, eps = np.zeros_like(given[i]), 1e-6
        for where in np.ndindex(given[i].shape):
            moved = [a.copy() for a in given]
            moved[i][where] += eps
            up = value(moved)
            moved[i][where] -= 2 * eps
            numeric[where] = (up - value(moved)) / (2 * eps)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-7, atol=1e-8, err_msg=gradients._fields[i])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_the_backward_pass_equals_finite_differences(reset_after, reverse, lengths):
    given = arguments(1)
    assert_equals_finite_differences(given, lengths=lengths, reverse=reverse, variant=Variant(reset_after))


PIECES = {  # for activations with a kink: tells from an output on which side of the kink it is
    "relu": lambda y: y > 0,
    "hard_tanh": lambda y: np.abs(y) < 1,
    "hard_sigmoid": lambda y: (y > 0) & (y < 1),
    "softsign": lambda y: y > 0,
    "elu": lambda y: y > 0,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("role", ["activation", "gate_activation"])
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_the_backward_pass_of_every_activation_equals_finite_differences(reset_after, role, name):
    given, variant = arguments(10, hidden=3), Variant(reset_after, **{role: name})
    reach = 1.2 if name in ("hard_tanh", "hard_sigmoid") else 0.25  # reaches every piece, without growth over the steps
    given[2:] = [reach * w for w in given[2:]]
    steps = sequence(*given, variant=variant).steps
    inside = np.array([s.n for s in steps] if role == "activation" else [(s.r, s.z) for s in steps])
    assert name not in PIECES or 0.1 < PIECES[name](inside).mean() < 0.9
    assert_equals_finite_differences(given, variant=variant)


DRAW = np.random.default_rng(6)
SCALES = [DRAW.normal(size=9), DRAW.normal(size=9)]
STATE_MASK, HOLD = DRAW.choice([0.0, 1.25], (N_ROWS, 3)), DRAW.uniform(size=(N_STEPS, N_ROWS, 3))
EXTRAS = {  # fields of the variant, scales of layer normalisation, further arguments
    "take": ({"update": "take"}, [], {}),
    "clip": ({"clip": 1.0}, [], {}),
    "layer norm": ({}, SCALES, {}),
    "state mask": ({}, [], {"state_mask": STATE_MASK}),
    "hold": ({}, [], {"hold": HOLD}),
    "resets": ({}, [], {"valid": DRAW.random((N_STEPS, N_ROWS)) < 0.7, "reset": DRAW.random((N_STEPS, N_ROWS)) < 0.4}),
    "all": (
        {"update": "take", "clip": 1.2},
        SCALES,
        {"state_mask": STATE_MASK, "hold": HOLD, "lengths": LENGTHS, "reverse": True},
    ),
}


VALID, RESET = DRAW.random((N_STEPS, N_ROWS)) < 0.7, DRAW.random((N_STEPS, N_ROWS)) < 0.5
RESET[1, 0], VALID[1, 0] = True, True


def test_a_reset_begins_anew_and_has_a_gradient_of_its_own():
    """Two sequences in one row equal separate ones; the gradient by finite differences; invalid steps never reset."""
    x, h0, *weights = arguments(8, hidden=3)
    h_reset = np.array([0.3, -0.5, 0.8])
    begins = np.zeros((N_STEPS, N_ROWS), bool)
    begins[2] = True
    whole = sequence(x, h0, *weights, reset=begins, h_reset=h_reset)
    second = sequence(x[2:], np.broadcast_to(h_reset, h0.shape), *weights)
    np.testing.assert_allclose(whole.hs, np.concatenate([sequence(x[:2], h0, *weights).hs, second.hs]), rtol=1e-14)
    steps = {"valid": VALID, "reset": RESET}
    held = sequence(x, h0, *weights, **steps, h_reset=h_reset)
    np.testing.assert_array_equal(
        held.hs, sequence(x, h0, *weights, valid=VALID, reset=RESET & VALID, h_reset=h_reset).hs
    )
    dhs, dh_last = DRAW.normal(size=held.hs.shape), DRAW.normal(size=h0.shape)

    def value(h_reset):
        hs, h_last, _ = sequence(x, h0, *weights, **steps, h_reset=h_reset)
        return (dhs * hs).sum() + (dh_last * h_last).sum()

    found = sequence_backward(x, h0, *weights, dhs=dhs, dh_last=dh_last, **steps, h_reset=h_reset).h_reset
    numeric = [(value(h_reset + e) - value(h_reset - e)) / 2e-6 for e in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(found, numeric, rtol=1e-7, atol=1e-8)
    assert np.abs(found).min() > 1e-3


@pytest.mark.parametrize("case", EXTRAS)
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_the_backward_pass_of_every_variant_equals_finite_differences(reset_after, case):
    fields, scales, options = EXTRAS[case]
    given = [*arguments(7, hidden=3), *scales]
    assert_equals_finite_differences(given, variant=Variant(reset_after, **fields), **options)
