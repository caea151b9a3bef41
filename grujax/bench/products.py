"""The limit of a case: its matrix products alone, without gates and their derivatives, timed in each installed library.

Forward: the input projection of all steps at once, and the product with w_hh of each step. Backward: the product with
w_hh transposed of each step, and dx, dw_ih and dw_hh for all steps at once. Ended sequences are not computed.
"""

from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from grujax.bench.cases import Arrays
from grujax.bench.peers.peer import Thunk, Unavailable
from grujax.bench.peers.torch import torch_tensors

Products = tuple[Thunk, Thunk]  # forward, forward + backward


def products(a: Arrays, threads: int) -> dict[str, Products]:
    """Returns the calls to time, by library; the fastest is the limit. Values are random: they do not affect times."""
    calls = {}
    if jax.default_backend() == "cpu" and a.x.dtype == np.float32:  # NumPy has no fast bfloat16 product
        calls["numpy"] = _eager(a, np.asarray, np.empty, np.matmul, lambda: None)
    if a.lengths is None:
        calls["jax"] = _jax(a)
    if find_spec("torch"):
        with suppress(Unavailable):  # torch without CUDA
            calls["torch"] = _torch(a, threads)
    return calls


def _torch(a: Arrays, threads: int) -> Products:
    import torch

    tensor, like, synchronise = torch_tensors(a, threads)
    return _eager(a, tensor, lambda shape, dtype: torch.empty(shape, **like), torch.mm, synchronise)


def _eager(
    a: Arrays, array: Callable, empty: Callable, mm: Callable[..., Any], synchronise: Callable[[], Any]
) -> Products:
    """Makes one call per product, with the result written to memory that is allocated beforehand."""
    ends = np.cumsum(a.valid.sum(0)).tolist()  # the valid rows are stored step by step
    steps = [slice(*bounds) for bounds in zip([0, *ends[:-1]], ends, strict=True)]
    n, H = ends[-1], a.hidden_size
    forward, backward = [], []
    for numpy_ih, numpy_hh, *_ in a.weights:
        w_ih, w_hh = array(numpy_ih), array(numpy_hh)
        I = len(numpy_ih)
        x, h, d_gates = (array(_random(a, n, size)) for size in (I, H, 3 * H))
        gates, dh, dx, dw_ih, dw_hh = (
            empty(shape, a.x.dtype) for shape in ((n, 3 * H), (n, H), (n, I), (I, 3 * H), (H, 3 * H))
        )
        forward.append((x, w_ih, gates))
        forward += [(h[step], w_hh, gates[step]) for step in steps]
        backward += [(d_gates[step], w_hh.T, dh[step]) for step in steps]
        backward += [(d_gates, w_ih.T, dx), (x.T, d_gates, dw_ih), (h.T, d_gates, dw_hh)]

    def run(plan: list[tuple[Any, Any, Any]]) -> None:
        for left, right, out in plan:
            mm(left, right, out=out)
        synchronise()

    both = forward + backward
    return lambda: run(forward), lambda: run(both)


def _jax(a: Arrays) -> Products:
    """Compiles one loop over the steps of each direction."""
    (B, T, _), H = a.x.shape, a.hidden_size
    parts = [
        (*map(jnp.asarray, (w_ih, w_hh, *(_random(a, T, B, size) for size in (len(w_ih), H, 3 * H)))),)
        for w_ih, w_hh, *_ in a.weights
    ]

    def each_step(rows: Any, w: Any) -> Any:
        return lax.map(lambda step_rows: step_rows @ w, rows)

    def forward(parts: Any) -> Any:
        return [(x @ w_ih, each_step(h, w_hh)) for w_ih, w_hh, x, h, _ in parts]

    def both(parts: Any) -> Any:
        flat = "tbi,tbj->ij"
        backward = [
            (each_step(d, w_hh.T), d @ w_ih.T, jnp.einsum(flat, x, d), jnp.einsum(flat, h, d))
            for w_ih, w_hh, x, h, d in parts
        ]
        return forward(parts), backward

    compiled = [jax.jit(function) for function in (forward, both)]
    run_forward, run_both = (lambda f=f: jax.block_until_ready(f(parts)) for f in compiled)
    return run_forward, run_both


def _random(a: Arrays, *shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(a.x.dtype)
