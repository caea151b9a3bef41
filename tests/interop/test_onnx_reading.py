"""Graphs that others wrote, torch among them, are read as the model they compute."""

import io
import warnings

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
    graph,
    gru,
    helper,
    node,
    onnx,
    ours,
    stacked,
    weights,
)
from refusals import refused

from grujax import GRU, GRUModel
from grujax.interop.adapters import require_agreement
from grujax.interop.onnx import from_onnx, runner
from grujax.testing import assert_close

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
def test_a_graph_of_others_is_read(case):
    """What the runtime gives against the model, on data of another size than the reading proved itself with."""
    make, expected = THEIRS[case]
    proto = make()
    model, variables = from_onnx(proto, verify=True)
    assert model == expected
    x = next(i for i in proto.graph.input if i.name == "x").type.tensor_type.shape.dim
    if not x[0].dim_value:
        run = runner(proto, model)
        assert (run.takes_lengths, run.takes_h0) == (
            case in ("lengths", "stacked"),
            case.startswith("sta") and case != "state alone",
        )
        require_agreement(model, variables, run, "proto")


def test_gates_biases_and_directions_stand_where_onnx_has_them():
    """Against the file's own tensors: z, r, h rows, both biases side by side, forward before backward."""
    given = weights(2)
    params = from_onnx(graph([gru(direction="bidirectional")], X, PLAIN, given))[1]["params"]
    for d, name in enumerate(("l0", "l0_reverse")):
        z, r, n = np.split(given["W"][d].T, 3, axis=1)
        np.testing.assert_array_equal(params[name]["w_ih"], np.concatenate([r, z, n], axis=1))
        z, r, n = np.split(given["B"][d][3 * H :], 3)
        np.testing.assert_array_equal(params[name]["b_hh"], np.concatenate([r, z, n]))


# -- reading what torch wrote ------------------------------------------------------------------------------------------


def exported(torch, bidirectional=False, last=None, given_state=False, fixed=False, dynamo=False, **options):
    """A module, its example and its graph by one of torch's exporters; `last` picks what an `nn.Linear` reads."""

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
    "the newer exporter": {"batch_first": True, "num_layers": 2, "bidirectional": True, "dynamo": True},
    "the newer exporter, last step": {
        "dynamo": True,
        "batch_first": True,
        "last": lambda torch, output, h_n: output[:, -1],
    },
    "every step": {"batch_first": True, "bidirectional": True, "last": lambda torch, output, h_n: output},
}


@pytest.mark.parametrize("case", TORCH)
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


def test_the_last_step_of_both_directions_is_not_their_last_state():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    options = {"batch_first": True, "bidirectional": True, "last": lambda torch, output, h_n: output[:, -1]}
    with refused("/fc/Gemm", "reverse direction has read one step"):
        from_onnx(exported(torch, **options)[2])
