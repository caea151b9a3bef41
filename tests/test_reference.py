"""Tests the reference for sequences against `equations` with lengths and against finite differences."""

import numpy as np
from reference import layers, one_direction, pieces_of, pooled
from sequence_problem import B, H, I, L, T, random_layers, random_weights

from grujax import equations
from grujax.testing import assert_close

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")


def test_a_row_is_cut_where_a_sequence_begins_and_steps_that_are_not_valid_are_left_out():
    valid = np.array([1, 1, 0, 1, 0, 1, 1], bool)
    resets = np.array([1, 0, 1, 0, 0, 1, 1], bool)
    assert [piece.tolist() for piece in pieces_of(valid, resets)] == [[0, 1, 3], [5], [6]]
    assert pieces_of(~valid & valid, resets) == []


def test_without_resets_it_is_the_equations_with_lengths():
    rng = np.random.default_rng(0)
    weights, x, h0 = random_weights(rng), rng.normal(size=(B, T, I)), rng.normal(size=(B, H))
    dhs, dh_last, lengths = rng.normal(size=(B, T, H)), rng.normal(size=(B, H)), np.array([T, 0, 3, 1])
    valid = np.arange(T) < lengths[:, None]
    given = (x.swapaxes(0, 1), h0, *(weights[name] for name in WEIGHTS))
    for reverse in (False, True):
        hs, h_last, backward = one_direction(x, h0, np.zeros(H), weights, valid, np.zeros_like(valid), reverse)
        expected = equations.sequence(*given, lengths=lengths, reverse=reverse)
        assert_close(hs, expected.hs.swapaxes(0, 1))
        assert_close(h_last, expected.h_last)
        d = {"dhs": (dhs * valid[..., None]).swapaxes(0, 1), "dh_last": dh_last}
        right = equations.sequence_backward(*given, **d, lengths=lengths, reverse=reverse)
        found = backward(dhs, dh_last)
        assert_close(found["x"], right.x.swapaxes(0, 1), "gradient")
        for name in ("h0", *WEIGHTS):
            assert_close(found[name], getattr(right, name), "gradient", name=name)


def test_the_state_before_a_reset_goes_no_further():
    """By hand, in both directions: two pieces are separate runs, and h0 enters the piece that is read first."""
    rng = np.random.default_rng(1)
    weights, x, h0, start = random_weights(rng), rng.normal(size=(1, 5, I)), rng.normal(size=(1, H)), rng.normal(size=H)
    resets = np.array([[False, False, False, True, False]])
    for reverse in (False, True):
        hs, h_last, _ = one_direction(x, h0, start, weights, np.ones_like(resets), resets, reverse)
        for steps, h, is_last in (
            (slice(0, 3), start[None] if reverse else h0, reverse),
            (slice(3, 5), h0 if reverse else start[None], not reverse),
        ):
            for t in range(5)[steps][:: -1 if reverse else 1]:
                h = equations.step(x[:, t], h, *(weights[name] for name in WEIGHTS)).h
                assert_close(hs[:, t], h)
            if is_last:
                assert_close(h_last, h)


def differences(loss, arrays, step=1e-6):
    """Returns central differences of loss() in one random element of each array; it changes the arrays in place."""
    rng, found = np.random.default_rng(2), []
    for a in arrays:
        at = tuple(rng.integers(n) for n in a.shape)
        a[at] += step
        above = loss()
        a[at] -= 2 * step
        found.append((at, (above - loss()) / (2 * step)))
        a[at] += step
    return found


def test_the_gradients_of_layers_are_those_of_finite_differences():
    rng = np.random.default_rng(3)
    params, h0 = random_layers(rng, input_size=2 * H)
    x, (valid, resets) = rng.normal(size=(B, T, 2 * H)), rng.random((2, B, T)) < 0.6
    d_output, d_last = rng.normal(size=(B, T, 2 * H)), rng.normal(size=h0.shape)
    for start in (h0, None):

        def run(start=start):
            return layers(params, x, start, valid, resets, residual=True)

        def loss(run=run):
            output, h_last, _ = run()
            return (output * d_output * valid[..., None]).sum() + (h_last * d_last).sum()

        gradients, dx, dh0 = run()[2](d_output * valid[..., None], d_last)
        pairs = [(x, dx), *([(h0, dh0)] if start is not None else []), (params["h0"], gradients["h0"])]
        pairs += [(params[name][w], gradients[name][w]) for name in ("l0", "l0_reverse", "l1") for w in WEIGHTS]
        for (_, gradient), (at, expected) in zip(pairs, differences(loss, [a for a, _ in pairs]), strict=True):
            np.testing.assert_allclose(gradient[at], expected, rtol=1e-5, atol=1e-7)
    assert len(params) == 2 * L + 1


def test_the_gradients_of_pooling_are_those_of_finite_differences():
    rng = np.random.default_rng(4)
    output, last, d = rng.normal(size=(T, H)), rng.normal(size=H), rng.normal(size=H)
    params = {
        "attention": {"kernel": rng.normal(size=(H, 3)), "bias": rng.normal(size=3)},
        "attention_score": {"kernel": rng.normal(size=(3, 1))},
    }
    for pooling in ("last", "mean", "max", "attention"):

        def loss(pooling=pooling):
            return pooled(pooling, output, last, params)[0] @ d

        d_output, d_last, d_params = pooled(pooling, output, last, params)[1](d)
        pairs = [(output, d_output), (last, d_last)]
        if pooling == "attention":
            pairs += [(params[of][name], d_params[of][name]) for of in params for name in params[of]]
        for (_, gradient), (at, expected) in zip(pairs, differences(loss, [a for a, _ in pairs]), strict=True):
            np.testing.assert_allclose(gradient[at], expected, rtol=1e-5, atol=1e-7)
