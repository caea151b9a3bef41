"""The GRUs that are measured, each written as its own documentation has a user write it.

A peer is one `convert`, which turns grujax's weights into the peer's, and one `build`, which makes the calls that are
timed. `convert` is linear, so its transpose brings the peer's gradients back: no second mapping to get wrong.
All take batch-major input (ONNX Runtime's CPU kernel knows time-major only and is given it, which spares it the
transposes that the others pay for). Weights, input and cotangent are arguments of every compiled call, never constants.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import Arrays
from grujax.errors import require
from grujax.functional import gru
from grujax.types import Array, GRUWeights

Thunk = Callable[[], Any]
Params = Any  # a peer's own weights, a tree of arrays


class Gradients(NamedTuple):
    """Of sum(hs * cotangent), in the layout of `Arrays`."""

    x: NDArray
    h0: NDArray
    w_ih: NDArray
    w_hh: NDArray
    b_ih: NDArray
    b_hh: NDArray


class Runs(NamedTuple):
    """The calls that are timed, which return when their result is there, and how to read what they return."""

    forward: Thunk
    read_hs: Callable[[Any], NDArray]  # -> (B, T, H)
    gradients: Thunk | None = None
    read_gradients: Callable[[Any], Gradients] | None = None


class Peer(NamedTuple):
    """`modules` must be importable; `reset_after` says which of the two GRUs the peer computes."""

    build: Callable[[Arrays, int], Runs]  # arrays, threads
    modules: tuple[str, ...]
    reset_after: bool = True

    def missing(self) -> str | None:
        """What is not installed, in words; None where all is there."""
        absent = [name for name in self.modules if find_spec(name) is None]
        return f"not installed ({', '.join(absent)})" if absent else None


def _converted(convert: Callable[[GRUWeights], Params], a: Arrays) -> tuple[Params, Callable[..., Gradients]]:
    """The peer's weights, and the function that reads its gradients (dparams, dx, dh0)."""
    params, transpose = jax.vjp(convert, GRUWeights(*map(jnp.asarray, a.weights)))

    def read(gradients: tuple[Params, Any, Any]) -> Gradients:
        dparams, dx, dh0 = gradients
        (dweights,) = transpose(jax.tree.map(jnp.asarray, dparams))
        return Gradients(np.asarray(dx), np.asarray(dh0), *map(np.asarray, dweights[:4]))

    return params, read


def _jax_runs(
    function: Callable[[Params, Array, Array], Array], convert: Callable[[GRUWeights], Params], a: Arrays
) -> Runs:
    """Runs of a JAX peer: `function(params, x, h0)` gives hs."""
    params, read_gradients = _converted(convert, a)
    x, h0, cotangent = jnp.asarray(a.x), jnp.asarray(a.h0), jnp.asarray(a.cotangent)

    def loss(params: Params, x: Array, h0: Array, cotangent: Array) -> Array:
        return (function(params, x, h0) * cotangent).sum()

    forward, gradients = jax.jit(function), jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return Runs(
        lambda: jax.block_until_ready(forward(params, x, h0)),
        np.asarray,
        lambda: jax.block_until_ready(gradients(params, x, h0, cotangent)),
        read_gradients,
    )


def _merged(w: GRUWeights) -> tuple[Array, Array]:
    """Biases where the r and z parts exist once: (3H,) added to the input's side, and b_hn (H,)."""
    assert w.b_ih is not None and w.b_hh is not None
    hidden_size = w.w_hh.shape[0]
    return w.b_ih.at[: 2 * hidden_size].add(w.b_hh[: 2 * hidden_size]), w.b_hh[2 * hidden_size :]


def grujax(a: Arrays, threads: int, reset_after: bool = True) -> Runs:
    return _jax_runs(lambda w, x, h0: gru(x, w, h0, reset_after=reset_after)[0], lambda w: w, a)


def grujax_before(a: Arrays, threads: int) -> Runs:
    """reset_after=False, the GRU that Haiku computes."""
    return grujax(a, threads, reset_after=False)


def torch(a: Arrays, threads: int) -> Runs:
    import torch

    torch.set_num_threads(threads)
    params, read_gradients = _converted(lambda w: (w.w_ih.T, w.w_hh.T, w.b_ih, w.b_hh), a)
    layer = torch.nn.GRU(a.x.shape[-1], a.h0.shape[-1], batch_first=True)
    weights = list(layer.parameters())  # weight_ih, weight_hh, bias_ih, bias_hh
    with torch.no_grad():
        for mine, given in zip(weights, params, strict=True):
            mine.copy_(torch.tensor(np.asarray(given)))
    x, h0, cotangent = torch.tensor(a.x), torch.tensor(a.h0)[None], torch.tensor(a.cotangent)
    x_leaf, h0_leaf = x.clone().requires_grad_(), h0.clone().requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return layer(x, h0)[0]

    def gradients() -> Any:
        loss = (layer(x_leaf, h0_leaf)[0] * cotangent).sum()
        return torch.autograd.grad(loss, [*weights, x_leaf, h0_leaf])

    def read(found: Any) -> Gradients:
        *dparams, dx, dh0 = [g.numpy() for g in found]
        return read_gradients((tuple(dparams), dx, dh0[0]))

    return Runs(forward, lambda hs: hs.numpy(), gradients, read)


def flax(a: Arrays, threads: int) -> Runs:
    import flax.linen as nn

    layer = nn.RNN(nn.GRUCell(a.h0.shape[-1]))

    def convert(w: GRUWeights) -> Params:
        bias, b_hn = _merged(w)
        (i_r, i_z, i_n), (h_r, h_z, h_n) = jnp.split(w.w_ih, 3, axis=1), jnp.split(w.w_hh, 3, axis=1)
        b_r, b_z, b_n = jnp.split(bias, 3)
        return {
            "ir": {"kernel": i_r, "bias": b_r},
            "iz": {"kernel": i_z, "bias": b_z},
            "in": {"kernel": i_n, "bias": b_n},
            "hr": {"kernel": h_r},
            "hz": {"kernel": h_z},
            "hn": {"kernel": h_n, "bias": b_hn},
        }

    def function(params: Params, x: Array, h0: Array) -> Any:
        return layer.apply({"params": {"cell": params}}, x, initial_carry=h0)

    return _jax_runs(function, convert, a)


def keras(a: Arrays, threads: int) -> Runs:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    require(keras.backend.backend() == "jax", "KERAS_BACKEND", "jax", keras.backend.backend(), "Set it before the run.")
    layer = keras.layers.GRU(a.h0.shape[-1], return_sequences=True, reset_after=True)
    layer.build(a.x.shape)
    state = [v.value for v in layer.non_trainable_variables]

    def convert(w: GRUWeights) -> Params:
        def z_first(p: Any) -> Array:
            r, z, n = jnp.split(p, 3, axis=-1)
            return jnp.concatenate([z, r, n], axis=-1)

        return [z_first(w.w_ih), z_first(w.w_hh), jnp.stack([z_first(w.b_ih), z_first(w.b_hh)])]

    def function(params: Params, x: Array, h0: Array) -> Any:
        return layer.stateless_call(params, state, x, initial_state=h0)[0]

    return _jax_runs(function, convert, a)


def equinox(a: Arrays, threads: int) -> Runs:
    import equinox as eqx

    cell = eqx.nn.GRUCell(a.x.shape[-1], a.h0.shape[-1], key=jax.random.key(0))

    def convert(w: GRUWeights) -> Params:
        return w.w_ih.T, w.w_hh.T, *_merged(w)

    def function(params: Params, x: Array, h0: Array) -> Array:
        mine = eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n), cell, params)

        def one_row(x: Array, h0: Array) -> Array:
            return jax.lax.scan(lambda h, x: (mine(x, h),) * 2, h0, x)[1]

        return jax.vmap(one_row)(x, h0)

    return _jax_runs(function, convert, a)


def haiku(a: Arrays, threads: int) -> Runs:
    """Reset before the product; its z takes the candidate, so that the z columns are negated."""
    import haiku as hk

    def unroll(x: Array, h0: Array) -> Any:
        return hk.dynamic_unroll(hk.GRU(h0.shape[-1]), x, h0, time_major=False)[0]

    layer = hk.without_apply_rng(hk.transform(unroll))

    def convert(w: GRUWeights) -> Params:
        def mirrored(p: Any) -> Array:
            r, z, n = jnp.split(p, 3, axis=-1)
            return jnp.concatenate([-z, r, n], axis=-1)

        assert w.b_ih is not None and w.b_hh is not None
        return {"gru": {"w_i": mirrored(w.w_ih), "w_h": mirrored(w.w_hh), "b": mirrored(w.b_ih + w.b_hh)}}

    return _jax_runs(layer.apply, convert, a)


def onnxruntime(a: Arrays, threads: int) -> Runs:
    """One GRU node, forward only; the weights are constants of the model, which lets the runtime pack them."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    (n_rows, n_steps, n_features), hidden_size = a.x.shape, a.h0.shape[-1]

    def rows_z_first(p: NDArray) -> NDArray:
        r, z, n = np.split(p, 3, axis=-1)
        return np.ascontiguousarray(np.concatenate([z, r, n], axis=-1).T[None])

    biases = np.concatenate([rows_z_first(a.b_ih), rows_z_first(a.b_hh)], axis=-1)
    constants = {"W": rows_z_first(a.w_ih), "R": rows_z_first(a.w_hh), "B": biases}
    shapes = {
        "X": [n_steps, n_rows, n_features],
        "h0": [1, n_rows, hidden_size],
        "Y": [n_steps, 1, n_rows, hidden_size],
    }
    x, h0, y = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    node = helper.make_node(
        "GRU", ["X", "W", "R", "B", "", "h0"], ["Y"], hidden_size=hidden_size, linear_before_reset=1
    )
    graph = helper.make_graph(
        [node], "gru", [x, h0], [y], [numpy_helper.from_array(v, name) for name, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"X": np.ascontiguousarray(a.x.swapaxes(0, 1)), "h0": a.h0[None]}
    return Runs(lambda: session.run(None, feed)[0], lambda hs: hs[:, 0].swapaxes(0, 1))


PEERS: dict[str, Peer] = {
    "grujax": Peer(grujax, ()),
    "grujax-before": Peer(grujax_before, (), reset_after=False),
    "torch": Peer(torch, ("torch",)),
    "flax": Peer(flax, ("flax",)),
    "keras": Peer(keras, ("keras",)),
    "equinox": Peer(equinox, ("equinox",)),
    "haiku": Peer(haiku, ("haiku",), reset_after=False),
    "onnxruntime": Peer(onnxruntime, ("onnx", "onnxruntime")),
}
