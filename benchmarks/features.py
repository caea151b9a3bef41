"""Runs the other libraries and prints the rows marked * in docs/features.md: `python benchmarks/features.py`."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import equinox
import flax.linen as nn
import haiku
import jax
import jax.numpy as jnp
import keras
import numpy as np
import onnx
import onnxruntime
import torch

B, T, I, H = 4, 6, 3, 5
X = np.random.default_rng(0).normal(size=(B, T, I)).astype(np.float32)
LENGTHS = np.array([6, 0, 2, 5], np.int32)
VALID = np.arange(T) < LENGTHS[:, None]
POISONED = np.where(VALID[..., None], X, np.nan).astype(np.float32)


class Peer:
    """One layer of a peer: `run(params, x) -> hs`, and `padded(params, x) -> (hs, h_last)` if it has lengths."""

    def __init__(self, params: Any, run: Callable, padded: Callable | None, half: Callable):
        self.params, self.run, self.padded, self.half = params, run, padded, half


def flax_peer() -> Peer:
    rnn = nn.RNN(nn.GRUCell(H), return_carry=True)
    half = nn.RNN(nn.GRUCell(H, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    return Peer(
        rnn.init(jax.random.key(0), X),
        lambda p, x: rnn.apply(p, x)[1],
        lambda p, x: rnn.apply(p, x, seq_lengths=LENGTHS)[::-1],
        lambda: half.init(jax.random.key(0), X.astype(jnp.bfloat16)),
    )


def keras_peer() -> Peer:
    layer = keras.layers.GRU(H, return_sequences=True, return_state=True)
    layer(X)
    others = [v.value for v in layer.non_trainable_variables]
    return Peer(
        [v.value for v in layer.trainable_variables],
        lambda p, x: layer.stateless_call(p, others, x)[0][0],
        lambda p, x: layer.stateless_call(p, others, x, mask=VALID)[0],
        lambda: keras.layers.GRU(H, dtype="bfloat16")(X),
    )


def haiku_peer() -> Peer:
    def run(x):
        return haiku.dynamic_unroll(haiku.GRU(H), x, jnp.zeros((x.shape[0], H), x.dtype), time_major=False)[0]

    pure = haiku.without_apply_rng(haiku.transform(run))
    half = X.astype(jnp.bfloat16)
    return Peer(pure.init(jax.random.key(0), X), pure.apply, None, lambda: pure.init(jax.random.key(0), half))


def equinox_peer() -> Peer:
    cell = equinox.nn.GRUCell(I, H, key=jax.random.key(0))

    def run(cell, x):
        return jax.vmap(lambda row: jax.lax.scan(lambda h, x: (cell(x, h),) * 2, jnp.zeros(H), row)[1])(x)

    return Peer(cell, run, None, lambda: equinox.nn.GRUCell(I, H, dtype=jnp.bfloat16, key=jax.random.key(0)))


def with_lengths(use: Callable[[np.ndarray, np.ndarray], bool]) -> Callable[[Peer], str]:
    """Returns a probe that checks the outputs and the last state of a batch with `LENGTHS`."""

    def probe(peer: Peer) -> str:
        if peer.padded is None:
            return "no lengths"
        return "yes" if use(*map(np.asarray, peer.padded(peer.params, X))) else "no"

    return probe


def poison(peer: Peer) -> str:
    if (padded := peer.padded) is None:
        return "no lengths"

    def loss(params):
        return jnp.where(VALID[..., None], padded(params, POISONED)[0], 0).sum()

    return "yes" if all(jnp.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(peer.params))) else "no"


def runs(attempt: Callable[[Peer], Any]) -> Callable[[Peer], str]:
    def probe(peer: Peer) -> str:
        try:
            attempt(peer)
        except Exception as error:
            return f"no ({type(error).__name__})"
        return "yes"

    return probe


def mesh_of(kind: jax.sharding.AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((1,), ("data",), axis_types=(kind,))


def under_shard_map(peer: Peer) -> None:
    spec = jax.P("data")
    run = jax.shard_map(
        lambda x: peer.run(peer.params, x), mesh=mesh_of(jax.sharding.AxisType.Auto), in_specs=spec, out_specs=spec
    )
    jax.jit(run)(X)


def explicitly_sharded(peer: Peer) -> None:
    mesh = mesh_of(jax.sharding.AxisType.Explicit)
    with jax.set_mesh(mesh):
        jax.jit(peer.run)(peer.params, jax.device_put(X, jax.NamedSharding(mesh, jax.P("data"))))


PEERS = {"Keras": keras_peer, "Flax": flax_peer, "Haiku": haiku_peer, "Equinox": equinox_peer}
PROBES = {
    "outputs past the end are 0": with_lengths(lambda hs, h_last: not hs[~VALID].any()),
    "length 0 gives h0": with_lengths(lambda hs, h_last: not h_last[1].any()),
    "finite gradients with NaN in the padding": poison,
    "bfloat16 parameters can be initialised": runs(lambda peer: peer.half()),
    "forward mode (jvp)": runs(lambda peer: jax.jvp(lambda x: peer.run(peer.params, x), (X,), (X,))),
    "Hessian products": runs(
        lambda peer: jax.jvp(jax.grad(lambda x: jnp.square(peer.run(peer.params, x)).sum()), (X,), (X,))
    ),
    "shard_map with its default checks": runs(under_shard_map),
    "explicit sharding": runs(explicitly_sharded),
}


def torch_rows() -> dict[str, str]:
    """Returns torch's column. torch has no masks; it packs rows, and refuses rows of length 0."""
    layer, lengths = torch.nn.GRU(I, H, batch_first=True), torch.tensor([6, 1, 2, 5])

    def packed(x: np.ndarray) -> torch.Tensor:
        rows = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), lengths, True, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(layer(rows)[0], batch_first=True)[0]

    past = ~(np.arange(T) < lengths.numpy()[:, None])
    poisoned = X.copy()
    poisoned[past] = np.nan
    packed(poisoned).sum().backward()
    finite = all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters() if p.grad is not None)
    try:
        torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(X), torch.tensor(LENGTHS).long(), True, False)
        empty = "yes"
    except RuntimeError:
        empty = "refused"
    try:
        torch.func.jvp(lambda x: layer(x)[0], (torch.tensor(X),), (torch.tensor(X),))
        forward = "yes"
    except (RuntimeError, NotImplementedError) as error:
        forward = f"no ({type(error).__name__})"
    zero = not packed(X).detach().numpy()[past].any()
    torch.nn.GRU(I, H, dtype=torch.bfloat16)
    return dict(zip(PROBES, ["yes" if zero else "no", empty, "yes" if finite else "no", "yes", forward], strict=False))


def onnxruntime_rows() -> dict[str, str]:
    shapes = {"x": (T, B, I), "h0": (1, B, H), "y": (T, 1, B, H), "y_h": (1, B, H)}
    info = {n: onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()}
    lengths = onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, (B,))
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n)
        for n, s in {"w": (1, 3 * H, I), "r": (1, 3 * H, H), "b": (1, 6 * H)}.items()
    ]
    node = onnx.helper.make_node("GRU", ["x", "w", "r", "b", "lengths", "h0"], ["y", "y_h"], hidden_size=H)
    graph = onnx.helper.make_graph([node], "gru", [info["x"], lengths, info["h0"]], [info["y"], info["y_h"]], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    h0 = np.ones((1, B, H), np.float32)
    y, y_h = (np.asarray(a) for a in session.run(None, {"x": X.swapaxes(0, 1), "lengths": LENGTHS, "h0": h0}))
    zero, empty = not y[:, 0].swapaxes(0, 1)[~VALID].any(), bool((y_h[0, 1] == 1).all())
    return dict(zip(PROBES, ["yes" if zero else "no", "yes" if empty else "no"], strict=False))


def main() -> None:
    names = ("torch", "keras", "flax", "dm-haiku", "equinox", "onnxruntime", "jax")
    print(", ".join(f"{name} {version(name)}" for name in names))
    columns = {"torch": torch_rows()}
    columns |= {name: {row: probe(make()) for row, probe in PROBES.items()} for name, make in PEERS.items()}
    columns["ONNX Runtime"] = onnxruntime_rows()
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in PROBES:
        print(f"| {row} | {' | '.join(column.get(row, '–') for column in columns.values())} |")


if __name__ == "__main__":
    main()
