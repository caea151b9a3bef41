"""Graphs that compute more than a GRU, or something else, are refused by name."""

import sys

import numpy as np
import pytest
from onnx_graphs import (
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
    drawn,
    edited,
    graph,
    gru,
    helper,
    node,
    onnx,
    stacked,
    tensor,
    weights,
)
from refusals import refused

from grujax import GRU, GRUModel
from grujax.interop.onnx import from_onnx, to_onnx


def behind(*nodes, outputs=None, constants=None, **options):
    """A plain GRU with nodes after it."""
    return lambda: graph([gru(), *nodes], X, outputs or {"y": 2}, weights() | HEAD | (constants or {}), **options)


def two_layers(reads="all", **attributes):
    nodes = [gru(), *CONCAT, gru(f"{reads} W1 R1 B1", "Y1 Y_h1", **attributes)]
    return graph(nodes, X, {"Y1": 4}, weights() | weights(1, I if reads == "x" else H, 1, k="1") | JOINED)


def relu_on_our_own():
    proto = to_onnx(GRU(H), drawn(GRU(H)), lengths=False, state=False)
    proto.graph.node[-1].output[0] = "before"
    proto.graph.node.append(node("Relu", "before", "output"))
    return proto


def other_weights_in(name):
    """A graph of grujax with other values in a tensor that does not affect its shapes."""
    proto = to_onnx(GRUModel(H, O, pooling="max"), drawn(GRUModel(H, O)))
    array = onnx.numpy_helper.to_array(tensor(proto, name)).copy()
    array[...] = 7
    tensor(proto, name).CopyFrom(onnx.numpy_helper.from_array(array, name))
    return proto


def loop():
    body = helper.make_graph([], "body", [], [])
    return graph([gru(), helper.make_node("If", ["x"], ["y"], then_branch=body)], X, {"y": 2}, weights())


def function():
    made = helper.make_function("mine", "f", ["a"], ["b"], [node("Relu", "a", "b")], [helper.make_opsetid("", 14)])
    nodes = [gru(), node("f", "Y_h", "y", domain="mine")]
    return graph(nodes, X, {"y": 3}, weights(), functions=[made], opsets=[helper.make_opsetid("mine", 1)])


def sized(**shapes):
    return lambda: graph([gru()], X, PLAIN, weights() | {k: np.ones(s, "f") for k, s in shapes.items()})


A_BYTE = onnx.numpy_helper.from_array(np.zeros(1, bool))  # as many values in a quarter of the memory of float32
pytestmark = pytest.mark.usefixtures("apart")

REFUSED = {
    "lstm": (
        lambda: graph([gru(op="LSTM", linear_before_reset=None)], X, PLAIN, weights(gates=4)),
        ["a GRU node", "LSTM"],
    ),
    "no GRU": (lambda: graph([node("Relu", "x", "y")], X, {"y": 3}, {}), ["a GRU node", "Relu"]),
    "lstm in disguise": (sized(R=(1, 4 * H, H)), ["R", "(12, 4)", "(16, 4)", "LSTM"]),
    "activation": (behind(*LAST, node("Relu", "last", "y", name="act")), ["act", "Relu"]),
    "lstm behind": (
        behind(
            node("Squeeze", "Y one", "Y3"),
            node("LSTM", "Y3 W R", "y", name="other", hidden_size=H),
            constants={"one": [1]},
        ),
        ["other", "LSTM"],
    ),
    "dropout": (behind(*LAST, node("Dropout", "last", "y", name="drop")), ["drop", "Dropout"]),
    "if": (loop, ["then_branch", "control flow"]),
    "function": (function, ["function", "'f'"]),
    "custom domain": (
        lambda: graph(
            [gru(), node("Magic", "Y_h", "y", name="m", domain="mine")],
            X,
            {"y": 3},
            weights(),
            opsets=[helper.make_opsetid("mine", 1)],
        ),
        ["m:", "Magic of 'mine'"],
    ),
    "side by side": (lambda: two_layers("x"), ["W1", "4 input features", "interop.find"]),
    "reset modes": (
        lambda: two_layers(linear_before_reset=0),
        ["gru_Y1", "reset_after=True, as the GRU"],
    ),
    "backwards": (
        lambda: graph(
            [node("Slice", "x from to zero step", "back"), gru("back W R B")],
            X,
            PLAIN,
            weights() | {"from": [-1], "to": [-(2**31)], "zero": [0], "step": [-1]},
        ),
        ["another function"],
    ),
    "the last hundred steps": (
        lambda: graph(
            [node("Slice", "x from to steps", "some"), gru("some W R B")],
            X,
            PLAIN,
            weights() | {"from": [-100], "to": [2**63 - 1], "steps": [0]},
        ),
        ["another function"],
    ),
    "the first fifty rows": (
        lambda: graph(
            [node("Slice", "x from to rows", "some"), gru("some W R B")],
            X,
            PLAIN,
            weights() | {"from": [0], "to": [50], "rows": [1]},
        ),
        ["another function"],
    ),
    "more steps than are run": (
        lambda: graph(
            [node("Slice", "x from to steps", "some"), gru("some W R B")],
            X,
            PLAIN,
            weights() | {"from": [0], "to": [5000], "steps": [0]},
        ),
        ["some", "numbers up to 1024", "5000"],
    ),
    "features apart": (
        lambda: graph(
            [node("Slice", "x from to two", "some"), gru("some W R B")],
            X,
            PLAIN,
            weights(1, 2) | {"from": [0], "to": [2], "two": [2]},
        ),
        ["ONNX Runtime"],
    ),
    "functions apart": (
        lambda: graph(
            [gru(direction="bidirectional", activations=["Sigmoid", "Tanh", "Sigmoid", "Relu"])], X, PLAIN, weights(2)
        ),
        ["the_gru", "the same activations"],
    ),
    "too few functions": (attributes_of(activations=["Sigmoid"]), ["the_gru", "2 activations"]),
    "attribute": (attributes_of(output_sequence=1), ["output_sequence"]),
    "clip of 0": (attributes_of(clip=0.0), ["the_gru", "a clip above 0"]),
    "layout": (attributes_of(layout=2), ["the_gru", "layout 0 or 1", "2"]),
    "x of one sequence": (
        lambda: graph(
            [node("Unsqueeze", "x one", "rows"), gru("rows W R B")], {"x": ["t", I]}, PLAIN, weights() | {"one": [1]}
        ),
        ["x", "3 axes, found 2", "interop.find"],
    ),
    "a size below 0": (lambda: graph([gru()], {"x": [-1, 5, I]}, PLAIN, weights()), ["x", "not negative", "-1"]),
    "more rows than memory": (lambda: graph([gru()], {"x": [2 * 10**4] * 2 + [I]}, PLAIN, weights()), ["x", "values"]),
    "hidden_size": (attributes_of(hidden_size=7), ["the_gru", "hidden_size 4", "7"]),
    "W": (sized(W=(1, 11, I)), ["W", "(12, 3)", "(11, 3)"]),
    "two directions of one": (sized(W=(2, 12, I)), ["W", "direction forward", "(2, 12, 3)"]),
    "B": (sized(B=(1, 23)), ["B", "(1, 24)", "(1, 23)"]),
    "axes": (sized(W=(12, I)), ["W", "three axes", "(12, 3)"]),
    "computed weights": (
        lambda: graph([gru("x W2 R B")], X | {"W2": [1, 12, I]}, PLAIN, weights()),
        ["W2", "input"],
    ),
    "weights of the input": (
        lambda: graph(
            [node("Transpose", "x", "W2", perm=[1, 0, 2]), gru("x W2 R B")], {"x": [12, 1, I]}, PLAIN, weights()
        ),
        ["W2", "constant weights", "computed"],
    ),
    "scaled weights of other units": (
        lambda: graph([node("Mul", "W W", "W2", name="scale"), gru("x W2 R B")], X, PLAIN, weights(hidden=8)),
        ["the_gru", "hidden_size 8", "4"],
    ),
    "scaled outputs": (
        behind(node("Mul", "Y_h K0", "y", name="scale"), outputs={"y": 3}, constants={"K0": np.float32(2)}),
        ["scale", "Mul"],
    ),
    "compared values": (
        behind(
            node("Less", "Y_h K0", "y0", name="less"),
            node("Cast", "y0", "y", to=1),
            outputs={"y": 3},
            constants={"K0": np.float32(2)},
        ),
        ["less", "Less"],
    ),
    "another activation": (attributes_of(activations=["Sigmoid", "Sine"]), ["the_gru", "'sine'"]),
    "a state of its own for each row": (
        lambda: graph([gru("x W R B  h")], {"x": [6, 2, I]}, PLAIN, weights() | {"h": np.eye(2, H, dtype="f")[None]}),
        ["another function"],
    ),
    "states exchanged": (
        lambda: edited(lambda p: p.graph.node[1].output.__setitem__(slice(None), ["h_b", "h_a"]), stacked),
        ["another function"],
    ),
    "lengths fixed": (
        lambda: graph([gru("x W R B n")], {"x": [6, 2, I]}, PLAIN, weights() | {"n": np.int32([6, 3])}),
        ["another function"],
    ),
    "an input besides": (
        lambda: graph([gru(), node("Identity", "extra", "y")], X | {"extra": [2]}, PLAIN | {"y": 1}, weights()),
        ["extra", "another input"],
    ),
    "gate": (behind(node("Mul", "Y_h Y_h", "y", name="gate"), outputs={"y": 3}), ["gate", "Mul"]),
    "residual": (
        behind(node("Add", "Y_h Y_h", "y", name="add"), outputs={"y": 3}),
        ["add", "only an Add of the head's bias"],
    ),
    "two heads": (
        behind(*GEMM, node("Gemm", "last K b", "y2", name="second"), outputs={"y": 2, "y2": 2}),
        ["second", "one dense head"],
    ),
    "alpha": (behind(*LAST, node("Gemm", "last K b", "y", name="g", alpha=2.0)), ["g:", "alpha 1"]),
    "bias of one number": (behind(*GEMM, constants={"b": np.ones(1, "f")}), ["bias of shape (2,)", "(1,)"]),
    "other head": (behind(*GEMM, constants={"K": np.ones((5, O), "f")}), ["4 input features", "5"]),
    "head on the first step": (
        behind(
            node("Gather", "Y first", "one"),
            *[node("Squeeze", "one axis", "last")],
            GEMM[1],
            constants={"first": np.array(0)},
        ),
        ["another function"],
    ),
    "the first step": (
        behind(node("Gather", "Y first", "y"), outputs={"y": 3}, constants={"first": np.array(0)}),
        ["y", "another function"],
    ),
    "step 4 of an open T": (
        behind(
            node("Gather", "Y fourth", "one"),
            node("Squeeze", "one axis", "last"),
            GEMM[1],
            constants={"fourth": np.array(4)},
        ),
        ["another function", "Linear on"],
    ),
    "a constant output": (behind(node("Identity", "b", "y"), outputs={"y": 1}), ["y", "another function"]),
    "half": (
        behind(node("Cast", "Y_h", "y", name="cast", to=onnx.TensorProto.DOUBLE), outputs={"y": 3}),
        ["cast", "Cast"],
    ),
    "a mixture": (
        behind(
            node("Concat", "Y_h z", "y", name="cat", axis=0),
            outputs={"y": 3},
            constants={"z": np.zeros((1, 3, H), "f")},
        ),
        ["y", "another function"],
    ),
    "does not fit": (behind(node("Squeeze", "Y two", "y", name="sq"), constants={"two": [2]}), ["sq", "Squeeze"]),
    "huge": (
        behind(node("ConstantOfShape", "n", "z", name="big"), *GEMM, constants={"n": np.array([2**40, 2**40])}),
        ["big", "values"],
    ),
    "many that are large": (
        lambda: graph(
            [*(node("ConstantOfShape", "n", f"z{k}", value=A_BYTE) for k in range(9)), gru()],
            X,
            PLAIN,
            weights() | {"n": np.array([2**25])},
        ),
        ["z8", "values in all"],
    ),
    "expanded": (
        behind(node("Expand", "Y_h n", "y", name="big"), outputs={"y": 3}, constants={"n": np.array([2**30, 1, 1])}),
        ["big", "values"],
    ),
    "float64": (
        lambda: graph([gru()], X, PLAIN, {k: v.astype("d") for k, v in weights().items()}),
        ["source", "ONNX Runtime"],
    ),
    "changed file of our own": (relu_on_our_own, ["Relu"]),
    "changed mask of our own": (lambda: other_weights_in("lowest"), ["Where"]),
    "nodes out of order": (
        lambda: graph([gru("x W2 R B"), node("Identity", "W", "W2")], X, PLAIN, weights()),
        ["topologically sorted", "W2"],
    ),
    "an output of no node": (
        lambda: edited(lambda proto: setattr(proto.graph.output[1], "name", "other")),
        ["other"],
    ),
    "state without effect": (
        lambda: graph(
            [node("Shape", "h", "n"), node("ConstantOfShape", "n", "z"), gru("x W R B  z")],
            X | {"h": [1, "b", H]},
            PLAIN,
            weights(),
        ),
        ["another function"],
    ),
    "neither": (lambda: 3, ["source", "ModelProto", "int"]),
    "nothing": (onnx.ModelProto, ["source", "a graph of nodes"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_graph_that_is_more_than_a_gru_is_refused(case):
    make, parts = REFUSED[case]
    with refused(*parts):
        from_onnx(make())


def test_a_reading_that_is_not_what_the_runtime_computes_is_refused(monkeypatch):
    """The two biases are swapped when the graph is read; the proof must detect this."""
    from grujax.interop import onnx_graph

    read = onnx_graph.read
    monkeypatch.setattr(onnx_graph, "read", lambda *of: (c := read(*of))._replace(b_ih=c.b_hh, b_hh=c.b_ih))
    with refused("Y", "another function"):
        from_onnx(graph([gru()], X, PLAIN, weights()))


def test_without_the_packages_the_message_says_what_to_install(monkeypatch):
    theirs = graph([gru()], X, PLAIN, weights())
    own = to_onnx(GRU(H), drawn(GRU(H)))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert from_onnx(own)[0] == GRU(H)  # it is not run, because grujax would write the same graph again
    with refused("onnxruntime", "pip install 'grujax[onnx]'"):
        from_onnx(theirs)
    with refused("onnxruntime", "pip install 'grujax[onnx]'"):
        from_onnx(own, verify=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (lambda: from_onnx(own), lambda: to_onnx(GRU(H), drawn(GRU(H)))):
        with refused("onnx", "pip install 'grujax[onnx]'"):
            call()
