"""The contenders of gpu.py: grujax's implementations, a plain scan, cuDNN, and torchrl's Triton kernel."""

from functools import partial
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from grujax.bench.cases import Arrays
from grujax.bench.oracle import Gradients
from grujax.bench.peers import NO_RESETS, ours, torch
from grujax.bench.peers.in_jax import converted, layer_runs
from grujax.bench.peers.peer import Peer, Runs, Unavailable
from grujax.core.dialects import DIALECTS, arranged
from grujax.kernels.products import precision_asked
from grujax.types import Array, GRUWeights


def plain_scan(a: Arrays, threads: int) -> Runs:
    """Runs the common implementation: input projected before the loop, one product per step, differentiated by JAX."""

    def layer(w: GRUWeights, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Array:
        assert w.b_ih is not None and w.b_hh is not None
        b_hh = w.b_hh

        def step(h: Array, inputs: Any) -> tuple[Array, Array]:
            gates, reset = inputs
            h = h if reset is None else jnp.where(reset[:, None], jnp.zeros_like(h), h)
            (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(gates, 3, -1), jnp.split(h @ w.w_hh + b_hh, 3, -1)
            n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
            h = n + jax.nn.sigmoid(x_z + h_z) * (h - n)
            return h, h

        gates = x.swapaxes(0, 1) @ w.w_ih + w.b_ih
        return lax.scan(step, h0, (gates, None if resets is None else resets.T))[1].swapaxes(0, 1)

    return layer_runs(layer, lambda w: w, a)


def packed(a: Arrays, threads: int) -> Runs:
    """Runs `torch.nn.GRU` over packed sequences that all have T steps: the same work as dense sequences."""
    n_rows, n_steps, _ = a.x.shape
    return torch.layers(a._replace(lengths=np.full(n_rows, n_steps, np.int32)), threads)


ONE_AT_A_TIME = Lock()
"""Triton's autotuner stores the arguments of a call in itself, so calls must not run in parallel."""


def torchrl(a: Arrays, threads: int) -> Runs:
    """Runs the kernel of `torchrl.modules.GRUModule(recurrent_backend="triton")` without the module around it.

    All its arrays are float32. float32 products are computed as TF32; bfloat16 applies to the products with w_hh.
    """
    try:
        import torch
        from torchrl.modules.tensordict_module import _rnn_triton  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Unavailable(f"not imported: {error}") from None
    if precision_asked(None) == "highest":
        raise Unavailable("exact float32 does not use the tensor cores: not timed")
    if a.hidden_size >= 512:
        raise Unavailable("one launch per step from H 512 on: not timed")

    def tensor(v: Any) -> Any:
        return torch.tensor(np.asarray(v, np.float32), device="cuda")

    params, read_gradients = converted(lambda w: arranged(w, DIALECTS["torch"]), a)
    weights = [tensor(v).requires_grad_() for v in jax.tree.leaves(params)]  # weight_ih, weight_hh, bias_ih, bias_hh
    resets = np.zeros(a.x.shape[:2], bool) if a.resets is None else a.resets
    x, h0, cotangent, starts = tensor(a.x), tensor(a.h0[0]), tensor(a.cotangent), torch.tensor(resets, device="cuda")
    hidden = torch.zeros((*a.x.shape[:2], a.hidden_size), device="cuda")  # the state that a reset at a step sets
    from_h0 = ~starts[:, :1]  # rows that begin with a reset start with zeros, the others with h0
    hidden[:, 0] = h0 * from_h0
    leaves = [x.clone().requires_grad_(), hidden.clone().requires_grad_()]
    compute = getattr(torch, a.x.dtype.name)

    def run(x: Any, hidden: Any) -> Any:
        return _rnn_triton.gru_triton(x, hidden, *weights, starts, compute, input_precision="tf32")[0]

    def forward() -> Any:
        with ONE_AT_A_TIME, torch.no_grad():
            hs = run(x, hidden)
        torch.cuda.synchronize()
        return hs

    def gradients() -> Any:
        with ONE_AT_A_TIME:
            result = torch.autograd.grad((run(*leaves) * cotangent).sum(), [*weights, *leaves])
        torch.cuda.synchronize()
        return result

    def read(result: Any) -> Gradients:
        *dparams, dx, dhidden = result
        arrays = [v.cpu().numpy().astype(a.x.dtype) for v in (*dparams, dx, (dhidden[:, 0] * from_h0)[None])]
        return read_gradients((jax.tree.unflatten(jax.tree.structure(params), arrays[:4]), *arrays[4:]))

    return Runs(forward, lambda hs: hs.cpu().numpy(), gradients, read)


def forget_tuning() -> None:
    """Makes the next call tune torchrl's kernels again, since Triton tuned them while other processes computed."""
    from torchrl.modules.tensordict_module import _rnn_triton  # pyright: ignore[reportMissingImports]

    for kernel in ("_gru_fwd_kernel", "_gru_bwd_kernel"):
        getattr(_rnn_triton, kernel).cache.clear()


OURS = ("resident", "xla")
CONTENDERS = {
    **{name: Peer(partial(ours.implementation, name)) for name in OURS},
    "lax.scan": Peer(plain_scan),
    "cuDNN": Peer(torch.layers, ("torch",), lacks=NO_RESETS),
    "cuDNN packed": Peer(packed, ("torch",), lacks=NO_RESETS),
    "torchrl": Peer(torchrl, ("torch", "torchrl", "triton"), lacks={"cpu": "GPU only"}),
}
