"""`torch.nn.GRU`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.bench.oracle import Gradients
from grujax.bench.peers.in_jax import converted
from grujax.bench.peers.peer import Runs, Thunk, Unavailable
from grujax.core.dialects import DIALECTS, arranged
from grujax.kernels.products import precision_asked


def torch_device() -> tuple[str, Thunk]:
    """Returns torch's device, of the same kind as JAX's, and the call that waits for it.

    On a GPU float32 products follow `jax.default_matmul_precision`: full float32 if it is "highest", else TF32.
    """
    import torch

    if jax.default_backend() == "cpu":
        return "cpu", lambda: None
    if not torch.cuda.is_available():
        raise Unavailable("torch without CUDA")
    rounded = precision_asked(None) != "highest"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = rounded
    return "cuda", torch.cuda.synchronize


def torch_tensors(a: Arrays, threads: int) -> tuple[Callable[[Any], Any], dict[str, Any], Thunk]:
    """Returns a function from arrays to tensors, their dtype and device, and the call that waits for the device."""
    import torch

    torch.set_num_threads(threads)
    device, synchronise = torch_device()
    like = {"dtype": getattr(torch, a.x.dtype.name), "device": device}
    return lambda v: torch.tensor(np.asarray(v, np.float32)).to(**like), like, synchronise


def layers(a: Arrays, threads: int) -> Runs:
    """Runs `torch.nn.GRU`. Ragged sequences are packed inside the call, as users do it."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    tensor, like, synchronise = torch_tensors(a, threads)
    params, read_gradients = converted(lambda w: arranged(w, DIALECTS["torch"]), a)
    (n_rows, n_steps, n_features), L, D = a.x.shape, a.num_layers, a.num_directions
    module = torch.nn.GRU(n_features, a.hidden_size, L, batch_first=True, bidirectional=D == 2).to(**like)
    weights = list(module.parameters())  # weight_ih, weight_hh, bias_ih, bias_hh of each layer and direction
    with torch.no_grad():
        for parameter, value in zip(weights, jax.tree.leaves(params), strict=True):
            parameter.copy_(tensor(value))
    x, h0, cotangent = tensor(a.x), tensor(a.h0), tensor(a.cotangent)
    lengths = None if a.lengths is None else torch.tensor(a.lengths, dtype=torch.int64)
    x_leaf, h0_leaf = x.clone().requires_grad_(), h0.clone().requires_grad_()

    def run(x: Any, h0: Any) -> Any:
        h0 = h0.expand(-1, n_rows, -1).contiguous()
        if lengths is None:
            return module(x, h0)[0]
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(module(packed, h0)[0], batch_first=True, total_length=n_steps)[0]

    def forward() -> Any:
        with torch.no_grad():
            hs = run(x, h0)
        synchronise()
        return hs

    def gradients() -> Any:
        loss = (run(x_leaf, h0_leaf) * cotangent).sum()
        result = torch.autograd.grad(loss, [*weights, x_leaf, h0_leaf])
        synchronise()
        return result

    def array(t: Any) -> NDArray:
        return t.float().cpu().numpy().astype(a.x.dtype)

    def read(result: Any) -> Gradients:
        *dparams, dx, dh0 = map(array, result)
        return read_gradients((jax.tree.unflatten(jax.tree.structure(params), dparams), dx, dh0))

    return Runs(forward, array, gradients, read)
