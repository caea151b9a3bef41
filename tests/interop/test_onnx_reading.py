"""Graphs from other exporters, including torch, are read as the model that they compute."""

import io
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_graphs import (
    BOTH,
    CONCAT,
    GEMM,
    HEAD,
    JOINED,
    LAST,
    PLAIN,
    H,
    I,
    O,
    X,
    attributes_of,
    edited,
    graph,
    gru,
    helper,
    node,
    onnx,
    ours,
    same,
    session,
    stacked,
    weights,
)
from refusals import refused

from grujax import GRU, GRUModel
from grujax.interop.hypotheses import last_output
from grujax.interop.onnx import from_onnx
from grujax.testing import assert_close
from grujax.types import Affine, Elu, HardSigmoid, LeakyRelu, Softplus, ThresholdedRelu

TWO = GRU(H, bidirectional=True)
THEIRS = {
    "plain": (attributes_of(), GRU(H)),
    "reset before": (attributes_of(linear_before_reset=0), GRU(H, reset_after=False)),
    "defaults": (
        lambda: graph([node("GRU", "x W R B", "Y Y_h", hidden_size=H)], X, PLAIN, weights()),
        GRU(H, reset_after=False),
    ),
    "no bias": (lambda: graph([gru("x W R")], X, PLAIN, weights()), GRU(H, bias=False)),
    "both directions": (lambda: graph([gru(direction="bidirectional")], X, PLAIN, weights(2)), TWO),
    "clip and functions": (
        attributes_of(clip=0.5, activations=["hardsigmoid", "Elu"], activation_alpha=[1 / 6], activation_beta=[0.5]),
        GRU(H, clip=0.5, activation="elu", gate_activation="hard_sigmoid"),
    ),
    "HardSigmoid of ONNX": (
        attributes_of(activations=["HardSigmoid", "Tanh"]),
        GRU(H, gate_activation=HardSigmoid(0.2, 0.5)),
    ),
    "functions with parameters": (
        attributes_of(activations=["Affine", "LeakyRelu"], activation_alpha=[0.3, 0.2], activation_beta=[0.4]),
        GRU(H, gate_activation=Affine(0.3, 0.4), activation=LeakyRelu(0.2)),
    ),
    "functions with defaults": (
        attributes_of(activations=["Sigmoid", "Elu"], activation_alpha=[0.5]),
        GRU(H, activation=Elu(0.5)),
    ),
    "Softplus": (
        attributes_of(activations=["Softplus", "ThresholdedRelu"], activation_alpha=[0.1], clip=0.3),
        GRU(H, clip=0.3, gate_activation=Softplus(), activation=ThresholdedRelu(0.1)),
    ),
    "reverse": (attributes_of(direction="reverse"), GRU(H, reverse=True)),
    "scaled weights": (
        lambda: graph([node("Mul", "W two", "W2"), gru("x W2 R B")], X, PLAIN, weights() | {"two": np.float32(2)}),
        GRU(H),
    ),
    "head without bias": (
        lambda: graph([gru(), *LAST, node("MatMul", "last K", "y")], X, {"y": 2}, weights() | HEAD),
        GRUModel(H, O),
    ),
    "softmax": (
        lambda: graph(
            [gru(), *GEMM[:-1], node("Gemm", "last K b", "logits"), node("Softmax", "logits", "y", axis=-1)],
            X,
            {"y": 2},
            weights() | HEAD,
        ),
        GRUModel(H, O, output_activation="softmax"),
    ),
    "sigmoid, mean over time": (
        lambda: graph(
            [
                gru(),
                node("Squeeze", "Y one", "all"),
                node("ReduceMean", "all", "pooled", axes=[0], keepdims=0),
                node("Gemm", "pooled K b", "logits"),
                node("Sigmoid", "logits", "y"),
            ],
            X,
            {"y": 2},
            weights() | HEAD | {"one": [1]},
        ),
        GRUModel(H, O, pooling="mean", output_activation="sigmoid"),
    ),
    "outputs without shapes": (
        lambda: edited(lambda p: [o.type.tensor_type.ClearField("shape") for o in p.graph.output]),
        GRU(H),
    ),
    "weights named as inputs": (
        lambda: graph([gru()], X | {name: a.shape for name, a in weights().items()}, PLAIN, weights()),
        GRU(H),
    ),
    "state": (lambda: graph([gru("x W R B  h")], X | {"h": [1, "b", H]}, PLAIN, weights()), GRU(H)),
    "state without names": (
        lambda: graph([gru("x W R B  h")], {"x": [None, None, I], "h": [None] * 3}, PLAIN, weights()),
        GRU(H),
    ),
    "zeros": (
        lambda: graph([gru("x W R B  z")], {"x": [6, 2, I]}, PLAIN, weights() | {"z": np.zeros((1, 2, H), "f")}),
        GRU(H),
    ),
    "lengths": (
        lambda: graph([gru("x W R B lengths")], X | {"lengths": ["b"]}, PLAIN, weights()),
        GRU(H),
    ),
    "state alone": (lambda: graph([gru(outputs=" Y_h")], X, {"Y_h": 3}, weights()), GRU(H)),
    "batch first": (
        lambda: graph(
            [node("Transpose", "x", "x_t", perm=[1, 0, 2]), gru("x_t W R B")], {"x": ["b", "t", I]}, PLAIN, weights()
        ),
        GRU(H),
    ),
    "constants as nodes": (
        lambda: graph(
            [
                helper.make_node("Constant", [], ["W"], value=onnx.numpy_helper.from_array(weights()["W"])),
                node("Identity", "W", "W_"),
                gru("x W_ R B"),
            ],
            X,
            PLAIN,
            {k: v for k, v in weights().items() if k != "W"},
        ),
        GRU(H),
    ),
    "stacked": (stacked, GRU(H, **BOTH)),
    "head": (lambda: graph([gru(), *GEMM], X, {"y": 2}, weights() | HEAD), GRUModel(H, O)),
    "head on the last step": (
        lambda: graph(
            [
                gru(),
                node("Squeeze", "Y one", "all"),
                node("Slice", "all from to zero", "cut"),
                node("Reshape", "cut flat", "last"),
                node("MatMul", "last K", "product"),
                node("Add", "b product", "y"),
            ],
            X,
            {"y": 2},
            weights() | HEAD | {"one": [1], "from": [-1], "to": [2**31], "zero": [0], "flat": np.array([-1, H])},
        ),
        GRUModel(H, O),
    ),
    "last step of the head on every step": (
        lambda: graph(
            [
                gru(),
                node("Squeeze", "Y one", "all"),
                node("MatMul", "all K", "product"),
                node("Add", "product b", "ys"),
                node("Gather", "ys last", "y", axis=0),
            ],
            X,
            {"y": 2},
            weights() | HEAD | {"one": [1], "last": np.array(-1)},
        ),
        GRUModel(H, O),
    ),
    "head on every step and the state": (
        lambda: graph(
            [gru(direction="bidirectional"), *CONCAT, node("MatMul", "all K", "p"), node("Add", "p b", "y")],
            X,
            {"y": 3, "Y_h": 3},
            weights(2) | JOINED | HEAD | {"K": np.float32(np.arange(2 * H * O).reshape(2 * H, O) / 9 - 0.5)},
        ),
        GRUModel(H, O, pooling=None, bidirectional=True),
    ),
    "Gemm by rows of a matrix": (
        lambda: graph(
            [gru(), *LAST, node("Gemm", "last K b", "y", transB=1)],
            X,
            {"y": 2},
            weights() | HEAD | {"K": HEAD["K"].T.copy()},
        ),
        GRUModel(H, O),
    ),
    "opset 11": (
        lambda: graph(
            [gru(), node("Squeeze", "Y_h", "last", axes=[0]), node("Gemm", "last K b", "y")],
            X,
            {"y": 2},
            weights() | HEAD,
            opset=11,
        ),
        GRUModel(H, O),
    ),
}


@pytest.mark.parametrize("case", THEIRS)
@pytest.mark.filterwarnings("ignore:.*the head has no bias:grujax.interop.ConversionWarning")
def test_a_graph_of_others_is_read(case):
    """ONNX Runtime and the model agree, at a size that the proof did not use (unless the graph fixes it)."""
    make, expected = THEIRS[case]
    proto = make()
    model, variables = from_onnx(proto)
    assert model == expected
    feed, given, order = {}, {}, {"x": "tbi", "h": "nbh", "h0": "nbh", "lengths": "b", "long": "b"}
    sizes, rng = {"b": 4, "t": 6, "i": I, "h": H, "n": model.num_states}, np.random.default_rng(3)
    dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    sizes |= {"t": dims["x"][0] or 6, "b": dims["x"][1] or 4} if case != "batch first" else {}
    for name in dims.keys() - {t.name for t in proto.graph.initializer}:
        shape = [sizes[axis] for axis in order[name]]
        a = rng.normal(size=shape).astype("f") if len(shape) > 1 else rng.integers(1, sizes["t"] + 1, shape)
        given[{"h": "h0", "long": "lengths"}.get(name, name)] = a
        a = a.swapaxes(0, 1) if case == "batch first" and name == "x" else a
        feed[name] = a.astype("i8" if name == "long" else "i4") if len(shape) == 1 else np.ascontiguousarray(a)
    theirs = session(proto).run(None, feed)
    found = ours(model, variables, given["x"].swapaxes(0, 1), given.get("h0"), given.get("lengths"))
    shown = {a.size: np.asarray(a) for a in jax.tree.leaves(found)}
    for a in theirs:  # Y is (T, D, B, H)
        if a.ndim == 4:
            a = a.transpose(2, 0, 1, 3).reshape(a.shape[2], a.shape[0], -1)
        elif a.ndim == 3 and isinstance(model, GRUModel) and a.shape[-1] == O:
            a = a.swapaxes(0, 1)
        assert_close(shown[a.size].reshape(a.shape), a)


LAYOUTS = {
    "alone": (
        lambda: graph([gru(layout=1)], {"x": ["b", "t", I]}, PLAIN, weights()),
        GRU(H),
    ),
    "state, both directions": (
        lambda: graph(
            [gru("x W R B  h", layout=1, direction="bidirectional")],
            {"x": ["b", "t", I], "h": ["b", 2, H]},
            PLAIN,
            weights(2),
        ),
        TWO,
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_batch_first_nodes_are_read_which_the_runtime_itself_does_not_run(case):
    """Compared with the same weights in a time-major graph."""
    make, expected = LAYOUTS[case]
    model, variables = from_onnx(make())
    assert model == expected
    both = expected.bidirectional
    turned = graph([gru(direction="bidirectional" if both else "forward")], X, PLAIN, weights(1 + both))
    same(variables, from_onnx(turned)[1])


def test_gates_biases_and_directions_stand_where_onnx_has_them():
    """Compared with the graph's tensors: rows in the order z, r, h; both biases in one tensor; forward first."""
    given = weights(2)
    params = from_onnx(graph([gru(direction="bidirectional")], X, PLAIN, given))[1]["params"]
    for d, name in enumerate(("l0", "l0_reverse")):
        z, r, n = np.split(given["W"][d].T, 3, axis=1)
        np.testing.assert_array_equal(params[name]["w_ih"], np.concatenate([r, z, n], axis=1))
        z, r, n = np.split(given["B"][d][3 * H :], 3)
        np.testing.assert_array_equal(params[name]["b_hh"], np.concatenate([r, z, n]))


# -- graphs that torch exported ----------------------------------------------------------------------------------------


def exported(torch, bidirectional=False, last=None, given_state=False, fixed=False, dynamo=False, **options):
    """A module, its example inputs and its graph by one of torch's exporters. last: picks what an `nn.Linear` reads."""

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = torch.nn.GRU(I, H, bidirectional=bidirectional, **options)
            self.fc = torch.nn.Linear(H * (1 + bidirectional), O)

        def forward(self, x, h0=None):
            output, h_n = self.gru(x, h0)
            return (output, h_n) if last is None else self.fc(last(torch, output, h_n))

    torch.manual_seed(0)
    module, file = Module().eval(), io.BytesIO()
    n_states = options.get("num_layers", 1) * (1 + bidirectional)
    b, t = (0, 1) if options.get("batch_first") else (1, 0)
    x = torch.randn(6, 6, I) if fixed else torch.randn(3, 4, I)
    given = (x, torch.randn(n_states, x.shape[b], H)) if given_state else (x,)
    axes = {} if fixed else {"x": {b: "b", t: "t"}, **({"h0": {1: "b"}} if given_state else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is deprecated
        names = ["x", "h0"][: len(given)]
        if dynamo:
            open_sizes = {"x": {b: torch.export.Dim("b"), t: torch.export.Dim("t")}}
            made = torch.onnx.export(module, given, dynamo=True, verbose=False, dynamic_shapes=open_sizes)
            return module, given, made.model_proto
        torch.onnx.export(module, given, file, dynamo=False, input_names=names, dynamic_axes=axes)
    return module, given, onnx.load_model_from_string(file.getvalue())


TORCH = {
    "one layer": {"batch_first": True},
    "time first": {},
    "two layers, both directions, state": {"num_layers": 2, "bidirectional": True, "given_state": True},
    "the same, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False, "num_layers": 2, "given_state": True, "batch_first": True},
    "fixed sizes": {"fixed": True, "batch_first": True, "given_state": True, "num_layers": 2},
    "fixed sizes, time first": {"fixed": True},
    "last step": {"batch_first": True, "last": lambda torch, output, h_n: output[:, -1]},
    "last step, time first": {"num_layers": 2, "last": lambda torch, output, h_n: output[-1]},
    "last state": {"batch_first": True, "num_layers": 2, "last": lambda torch, output, h_n: h_n[-1]},
    "last states": {
        "batch_first": True,
        "num_layers": 2,
        "bidirectional": True,
        "last": lambda torch, output, h_n: torch.cat([h_n[-2], h_n[-1]], -1),
    },
    "the newer exporter, last states": {
        "dynamo": True,
        "batch_first": True,
        "num_layers": 2,
        "bidirectional": True,
        "last": lambda torch, output, h_n: torch.cat([h_n[-2], h_n[-1]], -1),
    },
    "every step": {"batch_first": True, "bidirectional": True, "last": lambda torch, output, h_n: output},
}


OF_OTHERS = {"one layer", "the same, batch first", "fixed sizes, time first", "last step"}
"""Slow cases: the other cases together cover every property of these."""


SLOW = OF_OTHERS | {"the newer exporter, last states"}  # takes seconds; a stored graph of it is read below


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in TORCH])
def test_a_graph_that_torch_exported_is_read(case):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    options = TORCH[case]
    if options.get("dynamo"):
        pytest.importorskip("onnxscript", reason="torch's newer exporter needs it")
    module, given, proto = exported(torch, **options)
    model, variables = from_onnx(proto)
    layout = {"num_layers": options.get("num_layers", 1), "bidirectional": options.get("bidirectional", False)}
    layout["bias"] = options.get("bias", True)
    pooling = None if case == "every step" else "last"
    assert model == (GRUModel(H, O, pooling=pooling, **layout) if "last" in options else GRU(H, **layout))
    with torch.no_grad():
        expected = module(*given)
    turned = not options.get("batch_first", False)
    x, h0 = (given[0].swapaxes(0, 1) if turned else given[0]).numpy(), given[1].numpy() if len(given) > 1 else None
    found = ours(model, variables, x, h0, None)
    if "last" in options:
        assert_close(found[0], expected.numpy())
    else:
        assert_close(found[0], (expected[0].swapaxes(0, 1) if turned else expected[0]).numpy())
        assert_close(found[1], expected[1].numpy())


def test_a_graph_of_torch_s_newer_exporter_is_read():
    """The graph of "the newer exporter, last states", written by torch 2.13, without its metadata."""
    proto = onnx.load(Path(__file__).parents[1] / "golden/of_the_newer_exporter.onnx")
    model, variables = from_onnx(proto)
    assert model == GRUModel(H, O, **BOTH)
    x = np.random.default_rng(0).normal(size=(3, 5, I)).astype("f")
    (expected,) = session(proto).run(None, {proto.graph.input[0].name: x})
    assert_close(ours(model, variables, x, None, None)[0], expected)


@pytest.mark.parametrize("layout", [{}, BOTH], ids=["one layer", "two layers, both directions"])
def test_an_initial_state_that_is_learned_is_read(layout):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    directions = 1 + layout.get("bidirectional", False)

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.gru = torch.nn.GRU(I, H, batch_first=True, **layout)
            self.start = torch.nn.Parameter(torch.randn(layout.get("num_layers", 1) * directions, 1, H))
            self.head = torch.nn.Linear(directions * H, O)

        def forward(self, x):
            h_n = self.gru(x, self.start.expand(-1, x.shape[0], -1))[1]
            return self.head(torch.cat([*h_n[-directions:]], -1))

    module, file = Learned(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "b", 1: "t"}}
        torch.onnx.export(module, (torch.randn(2, 5, I),), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    model, variables = from_onnx(onnx.load_model_from_string(file.getvalue()))
    assert model == GRUModel(H, O, initial_state="learned", **layout)
    h0 = variables["params"]["encoder"]["gru"]["h0"]
    np.testing.assert_array_equal(h0, module.start[:, 0].detach().numpy())
    x = np.random.default_rng(0).normal(size=(3, 6, I)).astype("f")
    assert_close(ours(model, variables, x, None, None)[0], module(torch.tensor(x)).detach().numpy())


def test_a_state_of_ones_is_read_as_one_that_is_learned():
    constants = weights() | {"one": np.ones((1, 2, H), "f")}
    model, variables = from_onnx(graph([gru("x W R B  one")], {"x": [6, 2, I]}, PLAIN, constants))
    assert model == GRU(H, initial_state="learned")
    np.testing.assert_array_equal(variables["params"]["h0"], np.ones((1, H)))


def test_the_last_step_of_both_directions_is_not_their_last_state():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    options = {"batch_first": True, "bidirectional": True, "last": lambda torch, output, h_n: output[:, -1]}
    module, given, proto = exported(torch, **options)
    model, variables = from_onnx(proto)
    assert model == GRUModel(H, O, bidirectional=True, pooling=last_output)
    assert_close(ours(model, variables, given[0].numpy(), None, None)[0], module(*given).detach().numpy())


def test_a_graph_that_ends_the_process_of_the_runtime_does_not_end_ours(monkeypatch, apart):
    """Nor does a graph that runs too long."""
    from grujax.interop import onnx_run

    for child, part in (("import os; os.abort()", "the end of its process"), ("while True: pass", "a run of")):
        monkeypatch.setattr(onnx_run, "CHILD", child)
        monkeypatch.setattr(onnx_run, "SECONDS", 0.2)
        with refused("source", "a graph that ONNX Runtime runs", part):
            from_onnx(graph([gru()], X, PLAIN, weights()))


def test_half_precision_with_a_head_is_read_and_does_not_end_the_process(apart):
    """As converters to float16 write it. With its default optimisations, ONNX Runtime 1.32 ends the process on it."""
    proto = graph(
        [gru(), *CONCAT, node("MatMul", "all K", "p"), node("Add", "p b", "y")], X, {"y": 3}, weights() | JOINED | HEAD
    )
    for tensor in proto.graph.initializer:
        a = onnx.numpy_helper.to_array(tensor)
        if a.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(a.astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model, variables = from_onnx(proto)
    assert model == GRUModel(H, O, pooling=None, param_dtype=jnp.float16)
    wide = from_onnx(
        graph(
            [gru(), *CONCAT, node("MatMul", "all K", "p"), node("Add", "p b", "y")],
            X,
            {"y": 3},
            weights() | JOINED | HEAD,
        )
    )
    x = np.random.default_rng(0).normal(size=(2, 5, I)).astype("f")
    found = ours(model, variables, x.astype(np.float16), None, None)[0]
    np.testing.assert_allclose(np.asarray(found, "f"), np.asarray(ours(*wide, x, None, None)[0]), atol=3e-3)
