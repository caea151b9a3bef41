"""Streams that are read in chunks, and truncated backpropagation."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from reference import dense, layers
from sequence_problem import (
    DRAWN,
    FLAGS,
    LEARNED,
    SEEDS,
    B,
    H,
    I,
    L,
    T,
    as_jax,
    poisoned,
    random_params,
    valid_steps,
)

from grujax import GRUModel
from grujax.testing import assert_close, assert_trees_close

STREAM = GRUModel(H, 2, num_layers=L, pooling=None, **LEARNED)


@jax.jit
def stream(params, x, h, lengths, resets):
    return STREAM.apply({"params": params}, x, h, lengths=lengths, resets=resets, return_state=True)


@jax.jit
def stream_in_scan(params, x, h, valid, resets):
    """Runs one step at a time; the state is the carry of the scan."""

    def one_step(h, inputs):
        x, valid, resets = inputs
        y, h = stream(params, x[:, None], h, valid.astype(int), resets[:, None])
        return h, y[:, 0]

    h, ys = jax.lax.scan(one_step, h, jax.tree.map(lambda a: a.swapaxes(0, 1), (x, valid, resets)))
    return ys.swapaxes(0, 1), h


@given(SEEDS, valid_steps(holes=False), FLAGS)
@settings(max_examples=6, **DRAWN)
def test_a_stream_of_chunks_equals_the_whole(seed, valid, resets):
    rng = np.random.default_rng(seed)
    params, x = random_params(STREAM, rng), poisoned(rng.normal(size=(B, T, I)), valid)
    handed, lengths, learned = as_jax(params), valid.sum(1), params["encoder"]["gru"]["h0"]
    start = jnp.asarray(np.repeat(learned[:, None], B, 1))
    output, expected_last, _ = layers(params["encoder"]["gru"], x, None, valid, resets, 1)
    expected = np.where(valid[..., None], dense(params["head"], output), 0)

    def chunk(at, size, h, rows=slice(None)):
        steps, still = slice(at, at + size), np.clip(lengths - at, 0, min(size, T - at))
        return stream(handed, *as_jax((x[rows, steps], h, still[rows], resets[rows, steps])))

    def in_chunks(size, h):
        ys = []
        for at in range(0, T, size):
            y, h = chunk(at, size, h)
            ys.append(y)
        return jnp.concatenate(ys, 1), h

    runs = {
        "the whole": chunk(0, T, None),
        "chunks of 1": in_chunks(1, start),
        "chunks of 3": in_chunks(3, None),
        "a scan": stream_in_scan(handed, *as_jax((x, start, valid, resets))),
    }
    for name, (y, h_last) in runs.items():
        assert_close(y, expected, name=name)
        assert_close(h_last, expected_last, name=f"h_last of {name}")
        assert not np.asarray(y)[~valid].any()
        np.testing.assert_array_equal(h_last[:, lengths == 0], start[:, lengths == 0])
    _, h = chunk(0, 3, None)
    backwards = slice(None, None, -1)
    y, _ = chunk(3, 3, jax.tree.map(lambda a: a[:, backwards], h), backwards)
    assert_close(y, expected[backwards, 3:6], name="rows in another order from there on")


def test_truncated_backpropagation_stops_at_the_chunk():
    rng, cut = np.random.default_rng(6), 4
    params, x, resets = random_params(STREAM, rng), rng.normal(size=(B, T, I)), rng.random((B, T)) < 0.2
    d = rng.normal(size=(B, T - cut, 2))

    @jax.jit
    def gradients(params, x, resets):
        def loss(params):
            _, h = STREAM.apply({"params": params}, x[:, :cut], resets=resets[:, :cut], return_state=True)
            h = jax.lax.stop_gradient(h)
            return (STREAM.apply({"params": params}, x[:, cut:], h, resets=resets[:, cut:]) * d).sum(), h

        return jax.grad(loss, has_aux=True)(params)

    def expected(x, h0, resets):
        """The gradients of a loss on the last T - cut outputs of a run over x from h0."""
        output, h_last, backward = layers(params["encoder"]["gru"], x, h0, np.ones_like(resets), resets, 1)
        d_output = np.zeros_like(output)
        d_output[:, cut - T :] = d @ params["head"]["kernel"].T
        d_kernel = np.einsum("bti,bto->io", output[:, cut - T :], d)
        of_layers = backward(d_output, 0 * h_last)[0]
        return {"encoder": {"gru": of_layers}, "head": {"kernel": d_kernel, "bias": d.sum((0, 1))}}

    found, h = gradients(*as_jax((params, x, resets)))
    assert_trees_close(found, expected(x[:, cut:], np.asarray(h), resets[:, cut:]), "gradient")
    of_whole = expected(x, None, resets)["encoder"]["gru"]
    for name, d_weights in found["encoder"]["gru"]["l0"].items():
        assert np.abs(d_weights - of_whole["l0"][name]).max() > 1e-2
