"""Against ONNX Runtime: graphs written, graphs read, and graphs and files that are refused."""

import functools
import io
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from refusals import refused

from grujax import GRU, GRUCell, GRUEncoder, GRUModel, InputError
from grujax.interop.adapters import require_equal
from grujax.interop.model_parts import ConversionWarning
from grujax.interop.onnx import ADAPTER, from_onnx, runner, to_onnx
from grujax.interop.onnx_tensors import load
from grujax.kernels.step import ACTIVATIONS
from grujax.saving import declared
from grujax.testing import assert_close

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper, FLOAT, INT32, INT64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64
I, H, O = 3, 4, 2


def drawn(model, seed=0, n_inputs=I, statistics=""):
    """The model's variables, all of them random and none zero; `statistics` of "input", "output", or both."""
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


# -- writing -----------------------------------------------------------------------------------------------------------

BOTH = {"num_layers": 2, "bidirectional": True}
MODELS = {
    "gru": (GRU(H), ""),
    "reset before": (GRU(H, reset_after=False), ""),
    "no bias": (GRU(H, bias=False, **BOTH), ""),
    "two layers, both directions": (GRU(H, **BOTH), ""),
    "clip": (GRU(H, clip=0.7, bidirectional=True), ""),
    "clip, before": (GRU(H, clip=0.3, reset_after=False, num_layers=2), ""),
    "take": (GRU(H, update="take", **BOTH), ""),
    "take, before": (GRU(H, update="take", reset_after=False), ""),
    "sum": (GRU(H, merge="sum", **BOTH), ""),
    "mean": (GRU(H, merge="mean", reset_after=False, **BOTH), ""),
    "mul": (GRU(H, merge="mul", **BOTH), ""),
    "head": (GRUModel(H, O), "input output"),
    "head, both directions": (GRUModel(H, O, **BOTH), "input"),
    "head, sum": (GRUModel(H, O, merge="sum", **BOTH), ""),
    "mean pooled": (GRUModel(H, O, pooling="mean", **BOTH), "input output"),
    "max pooled": (GRUModel(H, O, pooling="max", merge="mul", **BOTH), ""),
    "every step": (GRUModel(H, O, pooling=None, **BOTH), "input output"),
    "every step, take": (GRUModel(H, O, pooling=None, update="take"), ""),
}


def fed(model, n_rows, n_steps, seed=1):
    """Every input; lengths of 0 and of all steps among them, NaN in the padding."""
    rng = np.random.default_rng(seed)
    x, lengths = rng.normal(size=(n_rows, n_steps, I)), np.array([n_steps, 0, 1, n_steps - 1, 0], np.int32)[:n_rows]
    x[np.arange(n_steps) >= lengths[:, None]] = np.nan
    h0 = rng.normal(size=(model.num_states, n_rows, H))
    return {"x": x.astype(np.float32), "h0": h0.astype(np.float32), "lengths": lengths}


@pytest.mark.parametrize("case", MODELS)
def test_the_runtime_computes_what_the_model_computes(case):
    """With and without lengths and state; and the graph is read again, bit for bit."""
    model, statistics = MODELS[case]
    variables = drawn(model, statistics=statistics)
    for lengths, state in ((True, True), (True, False), (False, True), (False, False)):
        proto = to_onnx(model, variables, lengths=lengths, state=state)
        feed = fed(model, 5, 6)
        if not lengths:
            feed |= {"lengths": np.full(5, 6, np.int32), "x": np.nan_to_num(feed["x"], nan=0.3)}
        if not state:
            feed["h0"] = 0 * feed["h0"]
        found = session(proto).run(None, {of.name: feed[of.name] for of in proto.graph.input})
        assert len(proto.graph.input) == 1 + lengths + state and len(found) == 1 + state
        for a, e in zip(found, ours(model, variables, **feed), strict=False):
            assert_close(a, e)
    back, again = from_onnx(proto)
    assert back == model
    same(again, variables)


@pytest.mark.parametrize("case", ["max pooled", "every step"])
def test_one_session_runs_every_batch_and_time(case):
    model, statistics = MODELS[case]
    variables = drawn(model, statistics=statistics)
    run = session(to_onnx(model, variables))
    for sizes in ((5, 6), (2, 9)):
        for a, e in zip(run.run(None, fed(model, *sizes)), ours(model, variables, **fed(model, *sizes)), strict=True):
            assert_close(a, e)


def test_what_stands_past_the_length_is_zero_and_h_last_of_an_empty_row_is_h0():
    """To the bit, in both directions and all layers."""
    model, rng = GRU(H, **BOTH), np.random.default_rng(0)
    lengths = np.array([0, 2, 5, 0], np.int32)
    feed = {"x": rng.normal(size=(4, 5, I)).astype(np.float32), "h0": rng.normal(size=(4, 4, H)).astype(np.float32)}
    output, h_last = session(to_onnx(model, drawn(model))).run(None, feed | {"lengths": lengths})
    assert not output[np.arange(5) >= lengths[:, None]].any()
    np.testing.assert_array_equal(h_last[:, [0, 3]], feed["h0"][:, [0, 3]])
    assert output[1, :2].all() and output[2].all()


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize(
    "model", [GRUCell(H), GRUCell(H, reset_after=False, update="take", clip=0.5), GRUCell(H, bias=False)]
)
def test_a_cell_is_one_step(model, state):
    variables, rng = drawn(model), np.random.default_rng(0)
    proto = to_onnx(model, variables, state=state)
    run = session(proto)
    for n_rows in (3, 5):
        feed = {"x": rng.normal(size=(n_rows, I)).astype(np.float32)}
        h0 = rng.normal(size=(n_rows, H)).astype(np.float32)
        (h,) = run.run(None, feed | ({"h0": h0} if state else {}))
        assert_close(h, model.apply(variables, jnp.asarray(h0 if state else 0 * h0), feed["x"])[0])
    back, again = from_onnx(proto, verify=True)
    assert back == model
    same(again, variables)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"hard_tanh"}))
def test_each_activation_is_the_same_function(name, reset_after):
    """At both places, where its argument is large and small."""
    gates, candidate = ("hard_sigmoid", name) if reset_after else (name, "softsign")
    model = GRU(H, activation=candidate, gate_activation=gates, clip=2.5, reset_after=reset_after)
    variables, feed = drawn(model), fed(model, 5, 6)
    proto = to_onnx(model, variables)
    feed["x"] *= 3
    for a, e in zip(session(proto).run(None, feed), ours(model, variables, **feed), strict=True):
        assert_close(a, e)
    assert from_onnx(proto)[0] == model


def test_float16_is_held_to_its_row():
    model = GRUModel(H, O, pooling="max", param_dtype=jnp.float16, **BOTH)
    variables = drawn(model, statistics="input output")
    back, again = from_onnx(to_onnx(model, variables, verify=True))
    assert back == model
    same(again, variables)


def test_the_graph_is_named_and_open_in_batch_and_time():
    def shown(proto):
        values = (*proto.graph.input, *proto.graph.output)
        dims = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        assert all(v.type.tensor_type.elem_type == (INT32 if v.name == "lengths" else FLOAT) for v in values)
        return dims

    model = GRU(H, **BOTH)
    x, h0 = ["batch", "time", I], [4, "batch", H]
    expected = {"x": x, "lengths": ["batch"], "h0": h0, "output": ["batch", "time", 2 * H], "h_last": h0}
    assert shown(to_onnx(model, drawn(model))) == expected
    model = GRUModel(H, O)
    assert shown(to_onnx(model, drawn(model), lengths=False, state=False)) == {"x": x, "y": ["batch", O]}
    expected = {"x": ["batch", I], "h0": ["batch", H], "h": ["batch", H]}
    assert shown(to_onnx(GRUCell(H), drawn(GRUCell(H)))) == expected


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = GRUModel(H, O, pooling="mean", **BOTH)
    for name in ("a.onnx", "b.onnx"):
        ADAPTER.store(tmp_path / name, to_onnx(model, drawn(model, statistics="input output")))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    proto = load(tmp_path / "a.onnx")
    assert proto.producer_name == "grujax"
    assert from_onnx(proto)[0] == model


def test_what_acts_in_training_alone_is_left_behind_with_a_warning():
    model = GRUModel(H, O, dropout=0.5)
    with pytest.warns(ConversionWarning, match=r"dropout=0\.5"):
        proto = to_onnx(model, drawn(model))
    assert from_onnx(proto)[0] == GRUModel(H, O)


def with_statistics(**statistics):
    return GRUModel(H, O), drawn(GRUModel(H, O)) | {"statistics": statistics}


def plain(model):
    return model, drawn(model)


ONES = jnp.ones(I, jnp.float32)
TO = {
    "bfloat16": (lambda: plain(GRU(H, param_dtype=jnp.bfloat16)), ["variables", "bfloat16", "cast"]),
    "float64": (lambda: plain(GRU(H, param_dtype=jnp.float64)), ["variables", "float64", "cast"]),
    "hard tanh": (lambda: plain(GRU(H, activation="hard_tanh")), ["activation", "'hard_tanh'"]),
    "function": (lambda: plain(GRU(H, gate_activation=jnp.cos)), ["gate_activation", "cos"]),
    "attention": (lambda: plain(GRUModel(H, O, pooling="attention")), ["pooling", "'attention'", "'max'"]),
    "learned": (lambda: plain(GRU(H, initial_state="learned")), ["initial_state", "'learned'"]),
    "layer norm": (lambda: plain(GRU(H, layer_norm=True)), ["layer_norm", "True"]),
    "zoneout": (lambda: plain(GRU(H, zoneout=0.5)), ["zoneout", "0.5"]),
    "residual": (lambda: plain(GRU(H, num_layers=2, connection="residual")), ["connection", "'residual'"]),
    "apart": (lambda: plain(GRU(H, bidirectional=True, merge=None)), ["merge", "None"]),
    "heads": (lambda: plain(GRUModel(H, {"a": 2, "b": 3})), ["output_size", "one head"]),
    "deep head": (lambda: plain(GRUModel(H, O, head_hidden=(5,))), ["head_hidden", "(5,)"]),
    "encoder": (lambda: plain(GRUEncoder(H)), ["model", "GRUEncoder"]),
    "statistics of a layer": (
        lambda: (GRU(H), drawn(GRU(H)) | {"statistics": {"input_mean": ONES}}),
        ["statistics", "GRUModel"],
    ),
    "half the statistics": (lambda: with_statistics(input_mean=ONES), ["statistics/input_std", "none"]),
    "statistics of another size": (
        lambda: with_statistics(input_mean=ONES[:1], input_std=ONES[:1]),
        ["statistics/input_mean", "(3,)", "(1,)"],
    ),
    "other statistics": (lambda: with_statistics(median=ONES), ["statistics/median"]),
    "another collection": (lambda: (GRU(H), drawn(GRU(H)) | {"cache": {}}), ["cache"]),
}


@pytest.mark.parametrize("case", TO)
def test_what_onnx_has_no_place_for_is_refused(case):
    make, parts = TO[case]
    with refused(*parts):
        to_onnx(*make())


# -- reading what others wrote -----------------------------------------------------------------------------------------


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
    """inputs: shape by name; `lengths` is int32. outputs: number of axes by name."""
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
    """Two nodes, both directions, time-major, a state that is cut into its layers, lengths as int64."""
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
        require_equal(model, variables, run, "proto")


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
    torch = pytest.importorskip("torch")
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
    torch = pytest.importorskip("torch")
    options = {"batch_first": True, "bidirectional": True, "last": lambda torch, output, h_n: output[:, -1]}
    with refused("/fc/Gemm", "reverse direction has read one step"):
        from_onnx(exported(torch, **options)[2])


# -- graphs that are refused -------------------------------------------------------------------------------------------


def behind(*nodes, outputs=None, constants=None, **options):
    """A plain GRU with nodes behind it."""
    return lambda: graph([gru(), *nodes], X, outputs or {"y": 2}, weights() | HEAD | (constants or {}), **options)


def two_layers(reads="all", **attributes):
    nodes = [gru(), *CONCAT, gru(f"{reads} W1 R1 B1", "Y1 Y_h1", **attributes)]
    return graph(nodes, X, {"Y1": 4}, weights() | weights(1, I if reads == "x" else H, 1, k="1") | JOINED)


def edited(change, make=None):
    proto = (make or attributes_of())()
    change(proto)
    return proto


def tensor(proto, name):
    return next(t for t in proto.graph.initializer if t.name == name)


def relu_on_our_own():
    proto = to_onnx(GRU(H), drawn(GRU(H)), lengths=False, state=False)
    proto.graph.node[-1].output[0] = "before"
    proto.graph.node.append(node("Relu", "before", "output"))
    return proto


def other_weights_in(name):
    """Our own file with one more number in a tensor that the graph does not need for its shapes."""
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
            node("LSTM", "Y3 W R", "y", name="other", hidden_size=H),
            node("Squeeze", "Y one", "Y3"),
            constants={"one": [1]},
        ),
        ["found"],
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
    "side by side": (lambda: two_layers("x"), ["gru_Y1", "GRUs in a row"]),
    "reset modes": (
        lambda: two_layers(linear_before_reset=0),
        ["gru_Y1", "reset_after=True, as the GRU"],
    ),
    "reverse": (attributes_of(direction="reverse"), ["the_gru", "bidirectional", "reverse"]),
    "backwards": (
        lambda: graph(
            [node("Slice", "x from to zero step", "back"), gru("back W R B")],
            X,
            PLAIN,
            weights() | {"from": [-1], "to": [-(2**31)], "zero": [0], "step": [-1]},
        ),
        ["the_gru", "another reading of 'x'"],
    ),
    "features apart": (
        lambda: graph(
            [node("Slice", "x from to two", "some"), gru("some W R B")],
            X,
            PLAIN,
            weights(1, 2) | {"from": [0], "to": [2], "two": [2]},
        ),
        ["the_gru", "another reading of 'x'"],
    ),
    "layout 1": (attributes_of(layout=1), ["the_gru", "layout 0", "Transpose"]),
    "hard sigmoid of ONNX": (attributes_of(activations=["HardSigmoid", "Tanh"]), ["the_gru", "HardSigmoid", "0.2"]),
    "elu": (
        attributes_of(activations=["Sigmoid", "Elu"], activation_alpha=[0.5]),
        ["the_gru", "Elu", "alpha (0.5,)"],
    ),
    "softplus": (attributes_of(activations=["Sigmoid", "Softplus"]), ["the_gru", "'Softplus'"]),
    "functions apart": (
        lambda: graph(
            [gru(direction="bidirectional", activations=["Sigmoid", "Tanh", "Sigmoid", "Relu"])], X, PLAIN, weights(2)
        ),
        ["the_gru", "the same activations"],
    ),
    "too few functions": (attributes_of(activations=["Sigmoid"]), ["the_gru", "2 activations"]),
    "attribute": (attributes_of(output_sequence=1), ["output_sequence"]),
    "clip of 0": (attributes_of(clip=0.0), ["the_gru", "a clip above 0"]),
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
        ["W2", "a constant", "computed"],
    ),
    "scaled weights": (
        lambda: graph([node("Mul", "W W", "W2", name="scale"), gru("x W2 R B")], X, PLAIN, weights(hidden=8)),
        ["scale", "Mul"],
    ),
    "state of ones": (
        lambda: graph([gru("x W R B  one")], {"x": [6, 2, I]}, PLAIN, weights() | {"one": np.ones((1, 2, H), "f")}),
        ["one", "zeros", "a constant"],
    ),
    "states exchanged": (
        lambda: edited(lambda p: p.graph.node[1].output.__setitem__(slice(None), ["h_b", "h_a"]), stacked),
        ["h0", "in their order"],
    ),
    "lengths fixed": (
        lambda: graph([gru("x W R B n")], {"x": [6, 2, I]}, PLAIN, weights() | {"n": np.int32([6, 3])}),
        ["the_gru", "sequence_lens"],
    ),
    "an input besides": (
        lambda: graph([gru(), node("Identity", "extra", "y")], X | {"extra": [2]}, PLAIN | {"y": 1}, weights()),
        ["extra", "an input besides"],
    ),
    "gate": (behind(node("Mul", "Y_h Y_h", "y", name="gate"), outputs={"y": 3}), ["gate", "Mul"]),
    "residual": (
        behind(node("Add", "Y_h Y_h", "y", name="add"), outputs={"y": 3}),
        ["add", "bias of the one dense head"],
    ),
    "no bias": (behind(*LAST, node("MatMul", "last K", "y", name="mm")), ["mm", "bias", "zeros"]),
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
        ["none such"],
    ),
    "the first step": (
        behind(node("Gather", "Y first", "y"), outputs={"y": 3}, constants={"first": np.array(0)}),
        ["y", "something else"],
    ),
    "step 4 of an open T": (
        behind(
            node("Gather", "Y fourth", "one"),
            node("Squeeze", "one axis", "last"),
            GEMM[1],
            constants={"fourth": np.array(4)},
        ),
        ["none such"],
    ),
    "a constant output": (behind(node("Identity", "b", "y"), outputs={"y": 1}), ["y", "something else"]),
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
        ["cat", "mixes"],
    ),
    "does not fit": (behind(node("Squeeze", "Y two", "y", name="sq"), constants={"two": [2]}), ["sq", "Squeeze"]),
    "huge": (
        behind(node("ConstantOfShape", "n", "z", name="big"), *GEMM, constants={"n": np.array([2**40, 2**40])}),
        ["big", "values"],
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
    "changed mask of our own": (lambda: other_weights_in("lowest"), ["Equal"]),
    "no open features": (
        lambda: graph([gru("x W2 R B"), node("Identity", "W", "W2")], {"x": ["t", "b", None]}, PLAIN, weights()),
        ["found"],
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
        ["h", "the states of all layers"],
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
    """The proof, with a reading made wrong."""
    from grujax.interop import onnx_node

    read = onnx_node.read
    monkeypatch.setattr(onnx_node, "read", lambda *of: (c := read(*of))._replace(b_ih=c.b_hh, b_hh=c.b_ih))
    with refused("Y", "ONNX Runtime", "a difference of"):
        from_onnx(graph([gru()], X, PLAIN, weights()))


def test_without_the_packages_the_message_says_what_to_install(monkeypatch):
    theirs = graph([gru()], X, PLAIN, weights())
    own = to_onnx(GRU(H), drawn(GRU(H)))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert from_onnx(own)[0] == GRU(H)  # proves itself: it would be written as it is
    with refused("onnxruntime", "pip install 'grujax[onnx]'"):
        from_onnx(theirs)
    with refused("onnxruntime", "pip install 'grujax[onnx]'"):
        from_onnx(own, verify=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (lambda: from_onnx(own), lambda: to_onnx(GRU(H), drawn(GRU(H)))):
        with refused("onnx", "pip install 'grujax[onnx]'"):
            call()


# -- files -------------------------------------------------------------------------------------------------------------


def external(folder, location="weights.bin", size=None, **changed):
    """A file whose W lies in another file of `size` bytes, whole where None; `changed` entries, None leaves one out."""
    proto, data = graph([gru()], X, PLAIN, weights()), weights()["W"].tobytes()
    w = tensor(proto, "W")
    w.ClearField("raw_data")
    w.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": "8", "length": str(len(data))} | changed
    for key, value in entries.items():
        if value is not None:
            w.external_data.add(key=key, value=value)
    beside = folder / "model"
    beside.mkdir()
    (beside / "weights.bin").write_bytes((bytes(8) + data)[:size])
    (folder / "outside.bin").write_bytes(bytes(8) + data)
    (beside / "link.bin").symlink_to(folder / "outside.bin")
    (beside / "linked").symlink_to(folder)
    (beside / "m.onnx").write_bytes(proto.SerializeToString())
    return beside / "m.onnx"


@pytest.mark.parametrize("options", [{}, {"location": "./weights.bin"}, {"length": None}])
def test_external_data_inside_the_folder_is_read(tmp_path, options):
    params = from_onnx(load(external(tmp_path, **options)))[1]
    same(params, from_onnx(graph([gru()], X, PLAIN, weights()))[1])


EXTERNAL = {
    "absolute": ({"location": "/etc/passwd"}, ["W", "inside the model's folder", "'/etc/passwd'"]),
    "upwards": ({"location": "../outside.bin"}, ["W", "inside the model's folder", "outside.bin"]),
    "upwards within": ({"location": "a/../../outside.bin"}, ["W", "inside the model's folder"]),
    "upwards in Windows": ({"location": "..\\outside.bin"}, ["W", "inside the model's folder"]),
    "drive": ({"location": "C:/outside.bin"}, ["W", "inside the model's folder"]),
    "link": ({"location": "link.bin"}, ["W", "a symbolic link", "link.bin"]),
    "link to a folder": ({"location": "linked/outside.bin"}, ["W", "a symbolic link"]),
    "nowhere": ({"location": None}, ["W", "inside the model's folder", "''"]),
    "itself a folder": ({"location": "."}, ["W", "no such file"]),
    "missing": ({"location": "other.bin"}, ["W", "'other.bin'", "no such file"]),
    "truncated": ({"size": 100}, ["W", "bytes 8 to 152", "100 bytes"]),
    "past the end": ({"offset": "9"}, ["W", "bytes 9 to 153", "152 bytes"]),
    "too short": ({"length": "140"}, ["W", "144 bytes", "140"]),
    "too long": ({"length": "148"}, ["W", "144 bytes", "148"]),
    "negative": ({"offset": "-8"}, ["W", "offset, a number", "'-8'"]),
    "no number": ({"length": "1e3"}, ["W", "length, a number", "'1e3'"]),
    "huge": ({"offset": "9" * 40}, ["W", "offset, a number"]),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_external_data_outside_the_folder_or_of_another_size_is_refused(case, tmp_path):
    options, parts = EXTERNAL[case]
    with refused(*parts):
        load(external(tmp_path, **options))


def test_external_data_is_never_read_behind_the_back_of_the_check(tmp_path):
    proto = onnx.load_model_from_string(external(tmp_path).read_bytes())
    with refused("W", "load(path)"):
        from_onnx(proto)


def resized(name, **changed):
    def change(proto):
        for key, value in changed.items():
            if key == "dims":
                tensor(proto, name).dims[:] = value
            else:
                setattr(tensor(proto, name), key, value)

    return lambda: edited(change).SerializeToString()


FILES = {
    "empty": (lambda: b"", ["path", "1 to"]),
    "text": (lambda: b"no model at all\n" * 9, ["path"]),
    "zeros": (lambda: bytes(100), ["path", "an ONNX model"]),
    "zip": (lambda: b"PK\x03\x04" + bytes(range(200)), ["path", "an ONNX model"]),
    "truncated": (lambda: stacked().SerializeToString()[:700], ["path", "an ONNX model"]),
    "fewer bytes": (resized("W", raw_data=bytes(100)), ["W", "144 bytes", "100"]),
    "more bytes": (resized("R", raw_data=bytes(1000)), ["R", "192 bytes", "1000"]),
    "huge dims": (resized("W", dims=[1, 2**40, 2**40]), ["W", "bytes"]),
    "negative dims": (resized("W", dims=[1, -12, -3]), ["W", "0 or more"]),
    "fewer axes": (resized("W", dims=[36]), ["W", "three axes", "(36,)"]),
    "complex": (resized("B", data_type=onnx.TensorProto.COMPLEX64, dims=[1, 12]), ["B", "FLOAT", "14"]),
    "integers": (resized("B", data_type=INT32), ["B", "float32", "int32"]),
    "no dtype": (resized("B", data_type=0), ["B", "FLOAT", "number 0"]),
    "dtypes apart": (
        resized("B", data_type=onnx.TensorProto.FLOAT16, raw_data=bytes(48)),
        ["B", "dtype float32", "float16"],
    ),
    "newer than the package": (
        lambda: edited(lambda proto: setattr(proto, "ir_version", 10**6)).SerializeToString(),
        ["source", "checker"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_refused_in_one_line(case, tmp_path):
    make, parts = FILES[case]
    (tmp_path / "m.onnx").write_bytes(make())
    with refused(*parts):
        from_onnx(load(tmp_path / "m.onnx"))


def test_the_size_is_checked_before_the_file_is_read(tmp_path):
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(2**31)
    with refused("path", f"{2**31} bytes"):
        load(tmp_path / "m.onnx")
    with refused("path", "no file at"):
        load(tmp_path / "none.onnx")


@pytest.mark.parametrize("make", [lambda: THEIRS["head"][0](), lambda: to_onnx(GRU(H), drawn(GRU(H)))])
def test_no_flipped_bit_and_no_cut_lets_another_error_out(make, tmp_path):
    data, draw = make().SerializeToString(), np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for cut in range(1, len(data), len(data) // 12):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError):
            from_onnx(load(path))
    for at in draw.integers(len(data), size=25):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            from_onnx(load(path))
        except InputError as error:
            assert "\n" not in str(error)
