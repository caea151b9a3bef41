"""ONNX graphs for the tests, built node by node as other exporters write them, and functions that run models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from grujax import GRUModel
from grujax.saving.model_file import declared

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
helper, FLOAT, INT32, INT64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64
I, H, O = 3, 4, 2


def drawn(model, seed=0, n_inputs=I, statistics=""):
    """Random variables of the model, none of them 0. statistics: "input", "output", or both with a space between."""
    rng, shapes = np.random.default_rng(seed), unflatten_dict(declared(model, n_inputs))
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.6, a.dtype), shapes)
    of = {"input": n_inputs, "output": getattr(model, "output_size", 0)}
    found = {f"{which}_mean": rng.normal(size=of[which]) for which in statistics.split()}
    found |= {f"{which}_std": rng.uniform(0.5, 2, of[which]) for which in statistics.split()}
    return variables | ({"statistics": {k: jnp.float32(a) for k, a in found.items()}} if found else {})


def session(proto):
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@functools.partial(jax.jit, static_argnums=0)
def ours(model, variables, x, h0, lengths):
    options = {"return_state": True} if isinstance(model, GRUModel) else {}
    return model.apply(variables, x, h0, lengths=lengths, **options)


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)
    assert jax.tree.map(jnp.dtype, tree) == jax.tree.map(jnp.dtype, other)


BOTH = {"num_layers": 2, "bidirectional": True}


def weights(directions=1, n_inputs=I, seed=0, k="", gates=3, hidden=H):
    rng = np.random.default_rng(seed)
    shapes = {"W": (gates * hidden, n_inputs), "R": (gates * hidden, hidden), "B": (2 * gates * hidden,)}
    return {f"{name}{k}": rng.normal(size=(directions, *shape)).astype("f") * 0.5 for name, shape in shapes.items()}


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(" "), outputs.split(" "), **attributes)


def gru(inputs="x W R B", outputs="Y Y_h", op="GRU", **attributes):
    return node(
        op,
        inputs,
        outputs,
        name="the_gru" if outputs == "Y Y_h" else f"gru_{outputs}",
        **({"hidden_size": H, "linear_before_reset": 1} | attributes),
    )


def graph(nodes, inputs, outputs, constants, opset=14, **options):
    """inputs: shapes by name; `lengths` is int32, `long` int64, others float32. outputs: numbers of axes by name."""
    value = helper.make_tensor_value_info
    dtypes = {"lengths": INT32, "long": INT64}
    made = helper.make_graph(
        nodes,
        "theirs",
        [value(name, dtypes.get(name, FLOAT), shape) for name, shape in inputs.items()],
        [value(name, FLOAT, [None] * n_axes) for name, n_axes in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), *options.pop("opsets", [])]
    return helper.make_model(made, opset_imports=opsets, ir_version=8, **options)


X = {"x": ["t", "b", I]}
PLAIN = {"Y": 4, "Y_h": 3}
CONCAT = [node("Transpose", "Y", "beside", perm=[0, 2, 1, 3]), node("Reshape", "beside joined", "all")]
JOINED = {"joined": np.array([0, 0, -1])}
LAST = [node("Squeeze", "Y_h axis", "last")]
HEAD = {"K": np.float32(np.arange(H * O).reshape(H, O) / 7 - 0.4), "b": np.float32([0.3, -0.8]), "axis": np.array([0])}
GEMM = [*LAST, node("Gemm", "last K b", "y")]


def stacked():
    """Two bidirectional nodes, time-major; h0 is split into the layers, and lengths are int64."""
    nodes = [
        node("Cast", "long", "lengths32", to=INT32),
        node("Split", "h0 parts", "h_a h_b"),
        gru("x W R B lengths32 h_a", direction="bidirectional"),
        *CONCAT,
        gru("all W1 R1 B1 lengths32 h_b", "Y1 Y_h1", direction="bidirectional"),
        node("Concat", "Y_h Y_h1", "h_n", axis=0),
    ]
    constants = weights(2) | weights(2, 2 * H, 1, k="1") | JOINED | {"parts": np.array([2, 2])}
    return graph(nodes, X | {"h0": [4, "b", H], "long": ["b"]}, {"Y1": 4, "h_n": 3}, constants)


def attributes_of(**attributes):
    return lambda: graph([gru(**attributes)], X, PLAIN, weights())


def edited(change, make=None):
    proto = (make or attributes_of())()
    change(proto)
    return proto


def tensor(proto, name):
    return next(t for t in proto.graph.initializer if t.name == name)
