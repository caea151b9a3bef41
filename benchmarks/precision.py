"""Measures the error of each choice of dtypes against the float64 oracle: `python benchmarks/precision.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax import GRUWeights, equations, gru
from grujax.types import state_dtype

DTYPES = (
    ("float64", "float64"),
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
)
"""The compute dtype, and the dtype in which parameters and inputs are stored."""

COLUMNS = ("hs", "h_last", "dx", "dw_ih", "dw_hh", "db")
B, T, I, H = 8, 64, 16, 32


def problem() -> tuple[dict[str, NDArray], NDArray]:
    """Returns the arrays of one layer by name, none of them zero, and the lengths of the rows, 1 to T steps."""
    rng = np.random.default_rng(0)
    limit = H**-0.5
    arrays = {
        "x": rng.normal(size=(B, T, I)),
        "h0": rng.uniform(-1, 1, (B, H)),
        "w_ih": rng.uniform(-limit, limit, (I, 3 * H)),
        "w_hh": rng.uniform(-limit, limit, (H, 3 * H)),
        "b_ih": rng.uniform(-limit, limit, 3 * H),
        "b_hh": rng.uniform(-limit, limit, 3 * H),
        "dhs": rng.normal(size=(B, T, H)),
        "dh_last": rng.normal(size=(B, H)),
    }
    return arrays, np.array([T, 1, T // 2, T - 1, 7, T, 40, 23])


def expected() -> dict[str, NDArray]:
    arrays, lengths = problem()
    inputs = [arrays["x"].swapaxes(0, 1), *(arrays[name] for name in ("h0", "w_ih", "w_hh", "b_ih", "b_hh"))]
    hs, h_last, _ = equations.sequence(*inputs, lengths=lengths)
    d = {"dhs": arrays["dhs"].swapaxes(0, 1), "dh_last": arrays["dh_last"]}
    gradients = equations.sequence_backward(*inputs, **d, lengths=lengths)
    return {
        "hs": hs.swapaxes(0, 1),
        "h_last": h_last,
        "dx": gradients.x.swapaxes(0, 1),
        "dw_ih": gradients.w_ih,
        "dw_hh": gradients.w_hh,
        "db": np.stack([gradients.b_ih, gradients.b_hh]),
    }


def found(dtype: str, param_dtype: str, implementation: str | None = None) -> dict[str, NDArray]:
    arrays, lengths = problem()

    def loss(x, weights, h0, dhs, dh_last):
        hs, h_last = gru(x, weights, h0, lengths=lengths, dtype=dtype, implementation=implementation)
        return (hs * dhs.astype(hs.dtype)).sum() + (h_last * dh_last.astype(h_last.dtype)).sum(), (hs, h_last)

    with jax.enable_x64(True):
        stored = {name: jnp.asarray(a, param_dtype) for name, a in arrays.items()}
        weights = GRUWeights(*(stored[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")))
        cotangents = jnp.asarray(arrays["dhs"]), jnp.asarray(arrays["dh_last"])
        h0 = stored["h0"].astype(state_dtype(param_dtype))  # h_last has the dtype of h0
        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, (hs, h_last)), (dx, dw) = run(stored["x"], weights, h0, *cotangents)
        values = (hs, h_last, dx, dw.w_ih, dw.w_hh, jnp.stack([dw.b_ih, dw.b_hh]))
        return dict(zip(COLUMNS, (np.asarray(a).astype(np.float64) for a in values), strict=True))


def measure() -> dict[tuple[str, str], dict[str, float]]:
    """Returns for each pair of dtypes and each column the largest error divided by the RMS of the expected values."""
    exact = expected()
    scale = {name: np.sqrt(np.mean(a**2)) for name, a in exact.items()}
    return {
        pair: {name: float(np.abs(a - exact[name]).max() / scale[name]) for name, a in found(*pair).items()}
        for pair in DTYPES
    }


def table(errors: dict[tuple[str, str], dict[str, float]]) -> str:
    """Returns the figures as a Markdown table."""
    rows = [["compute / stored", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for pair, row in errors.items():
        rows.append([" / ".join(pair), *(f"{row[name]:.1e}" for name in COLUMNS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table(measure()))
