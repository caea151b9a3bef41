"""The GRUs that are measured, each written as its own documentation has a user write it.

A peer is one `build`, which makes the calls that are timed. A JAX peer is one layer in one direction, and one
`convert`, which turns grujax's weights into its own; `_stacked` stacks layers and directions for all of them alike.
`convert` is linear, so its transpose brings the peer's gradients back: no second mapping to get wrong.
All take batch-major input (ONNX Runtime's CPU kernel knows time-major only and is given it, which spares it the
transposes that the others pay for). Weights, input and cotangent are arguments of every compiled call, never constants.
Where a library knows no lengths (Equinox, Haiku, a scan over Flax's cell) it runs over the padding, as its users do.
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
from grujax.bench.oracle import Gradients
from grujax.core.sequence import gru
from grujax.data.packing import pack_sequences, unpack_sequences
from grujax.linen.layer import GRU
from grujax.types import Array, GRUWeights

Thunk = Callable[[], Any]
Params = Any  # a peer's own weights of one layer and direction, a tree of arrays
Convert = Callable[[GRUWeights], Params]
Layer = Callable[..., Array]
"""(params, x (B, T, I), h0 (B, H), reverse, lengths (B,), resets (B, T)) -> hs (B, T, H) in time order."""


class Unavailable(Exception):
    """Why a library that is installed cannot run here."""


class Runs(NamedTuple):
    """The calls that are timed, which return when their result is there, and how to read what they return."""

    forward: Thunk
    read_hs: Callable[[Any], NDArray]  # -> (B, T, D*H), anything at steps that are not valid
    gradients: Thunk | None = None
    read_gradients: Callable[[Any], Gradients] | None = None


class Peer(NamedTuple):
    """`modules` must be importable; `reset_after` says which of the two GRUs the peer computes.

    `lacks`: the reason why it has no time for a case of that trait (`Case.traits`; "gpu": on a GPU).
    """

    build: Callable[[Arrays, int], Runs]  # arrays, threads
    modules: tuple[str, ...] = ()
    reset_after: bool = True
    lacks: dict[str, str] = {}  # noqa: RUF012, nobody writes to it

    def missing(self) -> str | None:
        """What is not installed, in words; None where all is there."""
        absent = [name for name in self.modules if find_spec(name) is None]
        return f"not installed ({', '.join(absent)})" if absent else None

    def refuses(self, traits: tuple[str, ...]) -> str | None:
        """Why it cannot run a case of these traits; None where it can."""
        return next((self.lacks[trait] for trait in traits if trait in self.lacks), None)


def _converted(convert: Convert, a: Arrays) -> tuple[list[Params], Callable[..., Gradients]]:
    """The peer's weights, and the function that reads its gradients (dparams, dx, dh0)."""
    given = [GRUWeights(*map(jnp.asarray, weights)) for weights in a.weights]
    params, transpose = jax.vjp(lambda all_weights: [convert(w) for w in all_weights], given)

    def read(gradients: tuple[list[Params], Any, Any]) -> Gradients:
        dparams, dx, dh0 = gradients
        (found,) = transpose(jax.tree.map(jnp.asarray, dparams))
        return Gradients(np.asarray(dx), np.asarray(dh0), tuple(tuple(map(np.asarray, w[:4])) for w in found))  # pyright: ignore[reportArgumentType]

    return params, read


def _stacked(layer: Layer, a: Arrays) -> Callable[..., Array]:
    """(params of all layers and directions, x, h0, (lengths, resets)) -> the output of the last layer."""
    L, D = a.num_layers, a.num_directions

    def function(params: list[Params], x: Array, h0: Array, control: Any) -> Array:
        h0 = jnp.broadcast_to(h0, (L * D, len(x), h0.shape[-1]))
        for first in range(0, L * D, D):
            outputs = [layer(params[first + d], x, h0[first + d], d == 1, *control) for d in range(D)]
            x = jnp.concatenate(outputs, axis=-1).astype(x.dtype)
        return x

    return function


def _jax_runs(layer: Layer, convert: Convert, a: Arrays) -> Runs:
    """Runs of a JAX peer that has layers in one direction."""
    return _runs(_stacked(layer, a), convert, a)


def _runs(function: Callable[..., Array], convert: Convert, a: Arrays) -> Runs:
    """Runs of a JAX peer; `function` as `_stacked` gives it."""
    params, read_gradients = _converted(convert, a)
    x, h0, cotangent = jnp.asarray(a.x), jnp.asarray(a.h0), jnp.asarray(a.cotangent)
    control = [None if v is None else jnp.asarray(v) for v in (a.lengths, a.resets)]

    def loss(params: list[Params], x: Array, h0: Array, control: Any, cotangent: Array) -> Array:
        return (function(params, x, h0, control) * cotangent).sum()

    forward, gradients = jax.jit(function), jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return Runs(
        lambda: jax.block_until_ready(forward(params, x, h0, control)),
        np.asarray,
        lambda: jax.block_until_ready(gradients(params, x, h0, control, cotangent)),
        read_gradients,
    )


def _merged(w: GRUWeights) -> tuple[Array, Array]:
    """Biases where the r and z parts exist once: (3H,) added to the input's side, and b_hn (H,)."""
    assert w.b_ih is not None and w.b_hh is not None
    hidden_size = w.w_hh.shape[0]
    return w.b_ih.at[: 2 * hidden_size].add(w.b_hh[: 2 * hidden_size]), w.b_hh[2 * hidden_size :]


def grujax(a: Arrays, threads: int, reset_after: bool = True) -> Runs:
    """The layer, `grujax.GRU`."""
    L, D, dtype = a.num_layers, a.num_directions, a.x.dtype
    module = GRU(
        a.hidden_size, num_layers=L, bidirectional=D == 2, reset_after=reset_after, dtype=dtype, param_dtype=dtype
    )
    names = [f"l{k}{way}" for k in range(L) for way in ("", "_reverse")[:D]]

    def function(params: list[GRUWeights], x: Array, h0: Array, control: Any) -> Any:
        variables = {
            name: {k: v for k, v in w._asdict().items() if v is not None} for name, w in zip(names, params, strict=True)
        }
        h0 = jnp.broadcast_to(h0, (L * D, len(x), a.hidden_size))
        return module.apply({"params": variables}, x, h0, lengths=control[0], resets=control[1])[0]

    return _runs(function, lambda w: w, a)


def grujax_before(a: Arrays, threads: int) -> Runs:
    """reset_after=False, the GRU that Haiku computes."""
    return grujax(a, threads, reset_after=False)


def grujax_packed(a: Arrays, threads: int) -> Runs:
    """Sequences end to end in rows of twice the longest, packed before the clock starts, as a data loader would."""
    assert a.lengths is not None
    n_features = a.x.shape[-1]
    both = np.concatenate([a.x, a.cotangent], axis=-1)  # packed together they stand in the same places
    packed = pack_sequences(
        [row[:length] for row, length in zip(both, a.lengths, strict=True)], length=2 * a.x.shape[1]
    )
    x, cotangent = np.split(packed.x, [n_features], axis=-1)
    rows = a._replace(x=x, cotangent=cotangent, lengths=packed.lengths, resets=packed.resets)

    def layer(w: GRUWeights, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Array:
        return gru(x, w, lengths=lengths, resets=resets, h_reset=h0[0], reverse=reverse)[0]

    runs = _jax_runs(layer, lambda w: w, rows)
    assert runs.read_gradients is not None
    read = runs.read_gradients

    def apart(values: NDArray) -> NDArray:
        found = np.zeros((*a.x.shape[:2], values.shape[-1]), values.dtype)
        for row, part in zip(found, unpack_sequences(packed, np.asarray(values)), strict=True):
            row[: len(part)] = part
        return found

    def read_gradients(gradients: Any) -> Gradients:
        found = read(gradients)
        return found._replace(x=apart(found.x))

    return runs._replace(read_hs=apart, read_gradients=read_gradients)


def torch_device() -> tuple[str, Thunk]:
    """Where torch runs, beside JAX, and the call that waits until it is done. Products in full float32 there."""
    import torch

    if jax.default_backend() == "cpu":
        return "cpu", lambda: None
    if not torch.cuda.is_available():
        raise Unavailable("torch without CUDA")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return "cuda", torch.cuda.synchronize


def torch(a: Arrays, threads: int) -> Runs:
    """Ragged sequences are packed inside the call, as a user does it."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(threads)
    device, synchronise = torch_device()
    like = {"dtype": getattr(torch, a.x.dtype.name), "device": device}

    def tensor(v: Any) -> Any:
        return torch.tensor(np.asarray(v, np.float32)).to(**like)

    params, read_gradients = _converted(lambda w: (w.w_ih.T, w.w_hh.T, w.b_ih, w.b_hh), a)
    (n_rows, n_steps, n_features), L, D = a.x.shape, a.num_layers, a.num_directions
    module = torch.nn.GRU(n_features, a.hidden_size, L, batch_first=True, bidirectional=D == 2).to(**like)
    weights = list(module.parameters())  # weight_ih, weight_hh, bias_ih, bias_hh of each layer and direction
    with torch.no_grad():
        for mine, given in zip(weights, jax.tree.leaves(params), strict=True):
            mine.copy_(tensor(given))
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
        found = torch.autograd.grad(loss, [*weights, x_leaf, h0_leaf])
        synchronise()
        return found

    def array(t: Any) -> NDArray:
        return t.float().cpu().numpy().astype(a.x.dtype)

    def read(found: Any) -> Gradients:
        *dparams, dx, dh0 = map(array, found)
        return read_gradients((jax.tree.unflatten(jax.tree.structure(params), dparams), dx, dh0))

    return Runs(forward, array, gradients, read)


def _flax_params(w: GRUWeights) -> Params:
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


def flax(a: Arrays, threads: int) -> Runs:
    """`nn.RNN`."""
    import flax.linen as nn

    rnn = nn.RNN(nn.GRUCell(a.hidden_size, dtype=a.x.dtype, param_dtype=a.x.dtype))

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Any:
        variables = {"params": {"cell": params}}
        return rnn.apply(variables, x, initial_carry=h0, seq_lengths=lengths, reverse=reverse, keep_order=True)

    return _jax_runs(layer, _flax_params, a)


def flax_scan(a: Arrays, threads: int) -> Runs:
    """`nn.scan` over `nn.GRUCell`, the carry set to zeros where a sequence begins."""
    import flax.linen as nn

    cell = nn.GRUCell(a.hidden_size, dtype=a.x.dtype, param_dtype=a.x.dtype)

    def one_step(cell: Any, h: Array, inputs: Any) -> Any:
        x, reset = inputs
        return cell(h if reset is None else jnp.where(reset[:, None], jnp.zeros_like(h), h), x)

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Any:
        scan = nn.scan(
            one_step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
            reverse=reverse,
        )
        return nn.apply(lambda cell: scan(cell, h0, (x, resets))[1], cell)({"params": params})

    return _jax_runs(layer, _flax_params, a)


def keras(a: Arrays, threads: int) -> Runs:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if keras.backend.backend() != "jax":
        raise Unavailable(f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=jax")
    n_rows, n_steps, n_features = a.x.shape
    modules = {}
    for size in {n_features, a.cotangent.shape[-1]}:
        for reverse in (False, True):
            module = keras.layers.GRU(
                a.hidden_size,
                return_sequences=True,
                reset_after=True,
                go_backwards=reverse,
                dtype=a.x.dtype.name,
                recurrent_initializer="zeros",  # never used; the default has no bfloat16
            )
            module.build((n_rows, n_steps, size))
            modules[size, reverse] = module, [v.value for v in module.non_trainable_variables]

    def convert(w: GRUWeights) -> Params:
        def z_first(p: Any) -> Array:
            r, z, n = jnp.split(p, 3, axis=-1)
            return jnp.concatenate([z, r, n], axis=-1)

        return [z_first(w.w_ih), z_first(w.w_hh), jnp.stack([z_first(w.b_ih), z_first(w.b_hh)])]

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Any:
        module, state = modules[x.shape[-1], reverse]
        mask = None if lengths is None else jnp.arange(n_steps)[None] < lengths[:, None]
        hs = module.stateless_call(params, state, x, initial_state=h0, mask=mask)[0]
        return jnp.flip(hs, 1) if reverse else hs

    return _jax_runs(layer, convert, a)


def equinox(a: Arrays, threads: int) -> Runs:
    import equinox as eqx

    def convert(w: GRUWeights) -> Params:
        return w.w_ih.T, w.w_hh.T, *_merged(w)

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Array:
        cell = eqx.filter_eval_shape(eqx.nn.GRUCell, x.shape[-1], a.hidden_size, key=jax.random.key(0))
        cell = eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n), cell, params)

        def one_step(h: Array, inputs: Any) -> tuple[Array, Array]:
            x, reset = inputs
            h = cell(x, h if reset is None else jnp.where(reset, jnp.zeros_like(h), h))
            return h, h

        def one_row(x: Array, h0: Array, resets: Any) -> Array:
            return jax.lax.scan(one_step, h0, (x, resets), reverse=reverse)[1]

        return jax.vmap(one_row)(x, h0, resets)

    return _jax_runs(layer, convert, a)


def haiku(a: Arrays, threads: int) -> Runs:
    """Reset before the product; its z takes the candidate, so that the z columns are negated."""
    import haiku as hk

    def unroll(x: Array, h0: Array, resets: Any, reverse: bool) -> Any:
        core = hk.GRU(a.hidden_size)
        if resets is None:
            return hk.dynamic_unroll(core, x, h0, time_major=False, reverse=reverse)[0]
        return hk.dynamic_unroll(hk.ResetCore(core), (x, resets), h0, time_major=False, reverse=reverse)[0]

    function = hk.without_apply_rng(hk.transform(unroll)).apply

    def convert(w: GRUWeights) -> Params:
        def mirrored(p: Any) -> Array:
            r, z, n = jnp.split(p, 3, axis=-1)
            return jnp.concatenate([-z, r, n], axis=-1)

        assert w.b_ih is not None and w.b_hh is not None
        return {"gru": {"w_i": mirrored(w.w_ih), "w_h": mirrored(w.w_hh), "b": mirrored(w.b_ih + w.b_hh)}}

    def layer(params: Params, x: Array, h0: Array, reverse: bool, lengths: Any, resets: Any) -> Any:
        return function(params, x, h0, resets, reverse)

    return _jax_runs(layer, convert, a)


def onnxruntime(a: Arrays, threads: int) -> Runs:
    """A GRU node a layer, forward only; weights and h0 are constants of the model, which lets the runtime pack them."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    (B, T, I), H, D = a.x.shape, a.hidden_size, a.num_directions

    def rows_z_first(p: NDArray) -> NDArray:
        r, z, n = np.split(p, 3, axis=-1)
        return np.ascontiguousarray(np.concatenate([z, r, n], axis=-1).T)

    constants: dict[str, NDArray] = {}
    nodes, reads = [], "X"
    for k in range(a.num_layers):
        here = slice(k * D, (k + 1) * D)
        of_layer = [[rows_z_first(w) for w in weights] for weights in a.weights[here]]
        constants[f"W{k}"], constants[f"R{k}"] = (np.stack([w[i] for w in of_layer]) for i in (0, 1))
        constants[f"B{k}"] = np.stack([np.concatenate(w[2:]) for w in of_layer])
        constants[f"h{k}"] = np.ascontiguousarray(np.broadcast_to(a.h0[here], (D, B, H)))
        if k:  # (T, D, B, H) -> (T, B, D*H)
            constants["joined"] = np.array([T, B, D * H])
            nodes.append(helper.make_node("Transpose", [reads], [f"beside{k}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"beside{k}", "joined"], [f"X{k}"]))
            reads = f"X{k}"
        inputs = [reads, f"W{k}", f"R{k}", f"B{k}", "" if a.lengths is None else "lengths", f"h{k}"]
        attributes = {"hidden_size": H, "linear_before_reset": 1, "direction": "bidirectional" if D == 2 else "forward"}
        reads = f"Y{k}"
        nodes.append(helper.make_node("GRU", inputs, [reads], **attributes))
    feed = {"X": np.ascontiguousarray(a.x.swapaxes(0, 1))}
    given = [helper.make_tensor_value_info("X", TensorProto.FLOAT, [T, B, I])]
    if a.lengths is not None:
        feed["lengths"] = a.lengths
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [B]))
    output = helper.make_tensor_value_info(reads, TensorProto.FLOAT, [T, D, B, H])
    graph = helper.make_graph(
        nodes, "gru", given, [output], [numpy_helper.from_array(v, name) for name, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Runs(lambda: session.run(None, feed)[0], lambda hs: hs.transpose(2, 0, 1, 3).reshape(B, T, D * H))


NO_RESETS = {"resets": "no resets"}

PEERS: dict[str, Peer] = {
    "grujax": Peer(grujax),
    "grujax-before": Peer(grujax_before, reset_after=False),
    "grujax-packed": Peer(grujax_packed, lacks={"dense": "not ragged"}),
    "torch": Peer(torch, ("torch",), lacks=NO_RESETS),
    "flax": Peer(flax, ("flax",), lacks=NO_RESETS),
    "flax-scan": Peer(flax_scan, ("flax",)),
    "keras": Peer(keras, ("keras",), lacks=NO_RESETS),
    "equinox": Peer(equinox, ("equinox",)),
    "haiku": Peer(haiku, ("haiku",), reset_after=False),
    "onnxruntime": Peer(
        onnxruntime,
        ("onnx", "onnxruntime"),
        lacks={**NO_RESETS, "bfloat16": "no bfloat16 on CPU", "gpu": "CPU only"},
    ),
}
