"""The reference for sequences. It needs no masks and no resets, because it runs each piece of a row separately.

A row is cut into pieces where a sequence begins. `equations` runs each piece, and the gradients are put together.
All arrays are NumPy float64, batch-major.
"""

import jax
import numpy as np

from grujax import equations

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")
AFTER = equations.Variant()


def pieces_of(valid, resets):
    """Returns the valid steps of one row, cut before each step at which a sequence begins."""
    steps = np.flatnonzero(valid)
    return [piece for piece in np.split(steps, np.flatnonzero(resets[steps])) if piece.size]


def one_direction(x, h0, h_reset, weights, valid, resets, reverse, variant=AFTER):
    """Maps x (B, T, I) to hs (B, T, H), h_last (B, H) and backward(dhs, dh_last), which gives gradients by name."""
    hs, h_last, runs = np.zeros((*valid.shape, h0.shape[-1])), h0.copy(), []
    options = {"reverse": reverse, "variant": variant}
    for row in range(len(x)):
        pieces = pieces_of(valid[row], resets[row])
        for piece in pieces[:: -1 if reverse else 1]:
            continues = piece is pieces[-1] if reverse else not resets[row, piece[0]]
            start = h0[row] if continues else h_reset
            arguments = (x[row, piece][:, None], start[None], *(weights[name] for name in WEIGHTS))
            run = equations.sequence(*arguments, **options)
            hs[row, piece], h_last[row] = run.hs[:, 0], run.h_last[0]
            runs.append((row, piece, continues, piece is pieces[0 if reverse else -1], arguments))

    def backward(dhs, dh_last):
        total = {"x": np.zeros_like(x), "h0": np.where(valid.any(1)[:, None], 0, dh_last), "h_reset": 0 * h_reset}
        total |= {name: np.zeros_like(weights[name]) for name in WEIGHTS}
        for row, piece, continues, read_last, arguments in runs:
            d = {"dhs": dhs[row, piece][:, None], "dh_last": dh_last[row][None] * read_last}
            found = equations.sequence_backward(*arguments, **d, **options)
            total["x"][row, piece] = found.x[:, 0]
            if continues:
                total["h0"][row] += found.h0[0]
            else:
                total["h_reset"] += found.h0[0]
            for name in WEIGHTS:
                total[name] += getattr(found, name)
        return total

    return hs, h_last, backward


MERGES = {  # joins both directions, and the derivative of the join
    "concat": (lambda parts: np.concatenate(parts, -1), lambda d, n: np.split(d, n, -1)),
    "sum": (sum, lambda d, n: [d] * n),
}


def layers(params, x, h0, valid, resets, directions=2, merge="concat", residual=False, variant=AFTER):
    """`GRU` with a learned initial state: output (B, T, F), h_last (L*D, B, H), backward(d_output, d_last).

    `backward` returns the gradients of params, x and h0. With h0 None the learned state is used.
    """
    learned, names = params["h0"], sorted(set(params) - {"h0"})
    starts = np.broadcast_to(learned[:, None], (len(learned), len(x), learned.shape[-1])) if h0 is None else h0
    join, part = MERGES[merge]
    last, inner = [], []
    for first in range(0, len(names), directions):
        outputs = []
        for i, reverse in zip(range(first, first + directions), (False, True), strict=False):
            run = one_direction(x, starts[i], learned[i], params[names[i]], valid, resets, reverse, variant)
            for found, where in zip(run, (outputs, last, inner), strict=True):
                where.append(found)
        x = join(outputs) + (x if residual and first else 0)

    def backward(d_output, d_last):
        gradients, d_learned, dh0 = {}, np.zeros_like(learned), np.zeros_like(starts)
        for first in reversed(range(0, len(names), directions)):
            dx = d_output if residual and first else 0
            for i, d in enumerate(part(d_output, directions), first):
                found = inner[i](d, d_last[i])
                gradients[names[i]] = {name: found[name] for name in WEIGHTS}
                d_learned[i], dh0[i], dx = found["h_reset"], found["h0"], dx + found["x"]
            d_output = dx
        if h0 is None:
            d_learned += dh0.sum(1)
        return gradients | {"h0": d_learned}, d_output, dh0

    return x, np.stack(last), backward


def dense(params, features):
    return features @ params["kernel"] + params["bias"]


def pooled(pooling, output, last, params):
    """Maps output (n, F) and last (F,) of one sequence to its vector and backward(d) -> d_output, d_last, d_params."""
    if pooling == "last":
        return last, lambda d: (np.zeros_like(output), d, {})
    attention = pooling == "attention"
    none = {name: jax.tree.map(np.zeros_like, params[name]) for name in ("attention", "attention_score") if attention}
    if not len(output):
        return np.zeros(output.shape[1]), lambda d: (np.zeros_like(output), 0 * last, none)
    if not attention:
        share = np.full(output.shape, 1 / len(output)) if pooling == "mean" else 1.0 * (output == output.max(0))
        return (share * output).sum(0), lambda d: (share * d, 0 * last, none)
    kernel, score = params["attention"]["kernel"], params["attention_score"]["kernel"]
    inside = np.tanh(dense(params["attention"], output))
    share = np.exp(inside @ score)
    share = share / share.sum()
    value = (share * output).sum(0)

    def backward(d):
        d_scores = share * ((output - value) @ d)[:, None]
        d_inside = d_scores @ score.T * (1 - inside**2)
        d_params = {
            "attention": {"kernel": output.T @ d_inside, "bias": d_inside.sum(0)},
            "attention_score": {"kernel": inside.T @ d_scores},
        }
        return share * d + d_inside @ kernel.T, 0 * last, d_params

    return value, backward


def encoded(params, x, h0, valid, resets, pooling, directions=2, merge="concat", residual=False):
    """`GRUEncoder` row by row: features (B, F) and backward(d), which returns the gradients of params and x."""
    output, h_last, backward_layers = layers(params["gru"], x, h0, valid, resets, directions, merge, residual)
    join, part = MERGES[merge]
    rows = [
        pooled(pooling, output[row, valid[row]], join([state[row] for state in h_last[-directions:]]), params)
        for row in range(len(x))
    ]

    def backward(d):
        d_output, d_last, found = np.zeros_like(output), np.zeros_like(h_last), []
        for row, (_, backward_pooling) in enumerate(rows):
            d_output[row, valid[row]], d_top, d_params = backward_pooling(d[row])
            d_last[-directions:, row] = part(d_top, directions)
            found.append(d_params)
        gradients, dx, _ = backward_layers(d_output, d_last)
        return {"gru": gradients, **jax.tree.map(lambda *a: sum(a), *found)}, dx

    return np.stack([value for value, _ in rows]), backward
