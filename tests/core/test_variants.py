"""Every variant of the GRU: against the oracle, against other frameworks that have it, and in model files."""

import contextlib
import dataclasses
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import by_turns
from refusals import refused

import grujax
from grujax import GRU, GRUCell, GRUEncoder, GRUModel, GRUSpec, GRUWeights, equations, gru
from grujax.core.dialects import DIALECTS, arranged
from grujax.interop import ConversionWarning
from grujax.interop.parts import FREE, SIZES, TRAINING
from grujax.interop.torch import from_torch, to_torch
from grujax.kernels import explain
from grujax.testing import assert_close

T, B, I, H = 5, 4, 3, 6
LENGTHS = np.array([5, 0, 2, 4])
KEY = jax.random.key(0)


def scaled_tanh(a):
    return jnp.tanh(a) * 0.9


def steep_sigmoid(a):
    return jax.nn.sigmoid(a * 2)


FUNCTIONS = {  # the same functions for the oracle, each with its derivative
    "scaled_tanh": (lambda a: 0.9 * np.tanh(a), lambda a: 0.9 * (1 - np.tanh(a) ** 2)),
    "steep_sigmoid": (
        lambda a: equations.sigmoid(2 * a),
        lambda a: 2 * equations.sigmoid(2 * a) * equations.sigmoid(-2 * a),
    ),
}
VARIANTS = {
    "take": {"update": "take"},
    "take, before, no bias": {"update": "take", "reset_after": False, "bias": False},
    # every activation in both places, never the same one in both
    "tanh, relu": {"activation": "tanh", "gate_activation": "relu"},
    "sigmoid, identity": {"activation": "sigmoid", "gate_activation": "identity", "reset_after": False},
    "relu, hard_sigmoid, no bias": {"activation": "relu", "gate_activation": "hard_sigmoid", "bias": False},
    "hard_tanh, elu": {"activation": "hard_tanh", "gate_activation": "elu", "reset_after": False},
    "hard_sigmoid, softsign, take": {"activation": "hard_sigmoid", "gate_activation": "softsign", "update": "take"},
    "softsign, hard_tanh": {"activation": "softsign", "gate_activation": "hard_tanh", "reset_after": False},
    "elu, sigmoid": {"activation": "elu", "gate_activation": "sigmoid"},
    "identity, tanh": {"activation": "identity", "gate_activation": "tanh", "reset_after": False},
    "functions, clip": {"activation": scaled_tanh, "gate_activation": steep_sigmoid, "clip": 0.7},
    "clip, before": {"clip": 0.7, "reset_after": False},
    "layer norm": {"layer_norm": True},
    "layer norm, before": {"layer_norm": True, "reset_after": False},
    "layer norm and more": {"layer_norm": True, "bias": False, "update": "take", "clip": 0.9, "activation": "elu"},
}
WAYS = [("xla", "float64"), ("xla", "float32"), ("autodiff", "float64"), ("reference", "float64")]
"""They alternate over the variants; `kernels/test_contract.py` tests each kernel with all pairs of properties."""
TORCHED = ("layer norm", "layer norm, before")
"""Marked slow: compared with functions of PyTorch below, values and gradients."""
AGAIN = ("relu, hard_sigmoid, no bias", "softsign, hard_tanh", "elu, sigmoid", "identity, tanh", "take", "clip, before")
"""Marked slow: other cases have the same fields, and the test of the cell has every activation in both places."""
CELLS = ("l0", "l0_reverse", "l1", "l1_reverse")


@pytest.fixture
def drawn(problem, monkeypatch):
    """`drawn(options)` returns arrays by name, exact in float32: x, h0 and the weights that the variant has."""

    def make(options):
        given, rng = problem(T, B, I, H), np.random.default_rng(1)
        grows = options.get("gate_activation") in ("relu", "elu", "identity")
        given["x"] *= 0.5 if grows else 2  # reach all pieces of the activations, without growth from step to step
        if options.get("layer_norm"):
            given |= {name: rng.normal(size=3 * H) for name in ("scale_ih", "scale_hh")}
        if not options.get("bias", True):
            del given["b_ih"], given["b_hh"]
        return {name: a.astype(np.float32).astype(np.float64) for name, a in given.items()}

    for name, pair in FUNCTIONS.items():
        monkeypatch.setitem(equations.ACTIVATIONS, name, pair)
    return make


def weights_of(given):
    return {name: given[name] for name in GRUWeights._fields if name in given}


def spec_of(options):
    return {name: value for name, value in options.items() if name not in ("bias", "layer_norm")}


def for_oracle(given, options):
    """h0 and the weights, with zeros for a missing bias, and the variant."""
    arrays = {"b_ih": np.zeros(3 * H), "b_hh": np.zeros(3 * H), "scale_ih": None, "scale_hh": None} | given
    fields = {name: value.__name__ if callable(value) else value for name, value in spec_of(options).items()}
    return [arrays[name] for name in ("h0", *GRUWeights._fields)], equations.Variant(**fields)


def run(given, options, implementation=None, lengths=LENGTHS):
    if implementation != "reference":
        weights = GRUWeights(**weights_of(given))
        return gru(given["x"], weights, given["h0"], lengths=lengths, implementation=implementation, **spec_of(options))
    layer = GRU(H, implementation=implementation, param_dtype=given["w_ih"].dtype, **options)
    params = {"params": {"l0": weights_of(given)}}
    output, h_last = layer.apply(params, given["x"], given["h0"][None], lengths=lengths)
    return output, h_last[0]


def values_and_gradients(run, given, dhs, dh_last):
    """The values (hs, h_last) of `run(given)`, and the gradients of their sum weighted by dhs and dh_last."""

    def loss(given):
        hs, h_last = run(given)
        return (hs * dhs).sum() + (h_last * dh_last).sum(), (hs, h_last)

    dhs, dh_last = (a.astype(given["x"].dtype) for a in (dhs, dh_last))
    (_, values), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
    return values, gradients


def cotangents():
    rng = np.random.default_rng(2)
    return rng.normal(size=(B, T, H)), rng.normal(size=(B, H))


def as_jax(given, dtype="float64"):
    return {name: jax.device_put(a.astype(dtype)) for name, a in given.items()}


# -- against the oracle ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "run_by"),
    [
        pytest.param(*of.values, marks=pytest.mark.slow if of.values[0] in (*TORCHED, *AGAIN) else of.marks)
        for of in by_turns(VARIANTS, WAYS, quick=1)
    ],
)
def test_values_and_gradients_equal_the_oracle(drawn, case, run_by):
    options, (dhs, dh_last), (implementation, dtype) = VARIANTS[case], cotangents(), run_by
    if options.get("layer_norm") and implementation == "xla":
        implementation = None  # None chooses "autodiff"
    given = drawn(options)
    arrays, variant = for_oracle(given, options)
    x = given["x"].swapaxes(0, 1)
    hs, h_last, _ = equations.sequence(x, *arrays, lengths=LENGTHS, variant=variant)
    cotangent = {"dhs": dhs.swapaxes(0, 1), "dh_last": dh_last}
    expected = equations.sequence_backward(x, *arrays, **cotangent, lengths=LENGTHS, variant=variant)._asdict()

    found = as_jax(given, dtype)
    values, gradients = values_and_gradients(lambda g: run(g, options, implementation), found, dhs, dh_last)
    assert_close(values[0], hs.swapaxes(0, 1))
    assert_close(values[1], h_last)
    expected["x"] = expected["x"].swapaxes(0, 1)
    assert set(gradients) == set(given)
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], "gradient", name=name)


@pytest.mark.parametrize(("case", "dtype"), by_turns(VARIANTS, ["float64", "float32"], quick=1))
def test_a_step_of_the_cell_equals_the_oracle(drawn, case, dtype):
    options, given = VARIANTS[case], drawn(VARIANTS[case])
    arrays, variant = for_oracle(given, options)
    found, cell = as_jax(given, dtype), GRUCell(H, **options)
    for h in jax.jit(lambda g: cell.apply({"params": weights_of(g)}, g["h0"], g["x"][:, 0]))(found):
        assert_close(h, equations.step(given["x"][:, 0], *arrays, variant=variant).h, dtype=dtype)


def test_layer_normalisation_runs_as_autodiff_and_is_refused_by_xla():
    found = explain(spec=GRUSpec(layer_norm=True))
    assert found.implementation == "autodiff" and "xla cannot serve" in found.reason
    assert "layer normalisation" in found.reason
    weights = GRUWeights(*(np.ones(shape) for shape in ((I, 3 * H), (H, 3 * H), *[(3 * H,)] * 4)))
    for call in (
        lambda: explain(spec=GRUSpec(layer_norm=True), implementation="xla"),
        lambda: gru(jnp.ones((B, T, I)), weights, implementation="xla"),
        lambda: GRU(H, layer_norm=True, implementation="xla", param_dtype=jnp.float64).init(KEY, np.ones((B, T, I))),
    ):
        with refused("implementation='xla' cannot serve this call", "no layer normalisation"):
            call()


# -- against other frameworks ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_numerics():
    """The promotion rules of JAX that other packages expect."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def stored(given, dialect, update="keep"):
    """w_ih, w_hh and the biases in the layout of another framework."""
    return arranged(GRUWeights(**weights_of(given)), DIALECTS[dialect], update)


def test_haiku_is_reset_before_and_take(drawn):
    reason = "dm-haiku is not installed"
    hk = pytest.importorskip("haiku", reason=reason)
    options, (dhs, dh_last) = {"reset_after": False, "update": "take"}, cotangents()

    def unroll(x, h0):
        return hk.dynamic_unroll(hk.GRU(H), x, h0, time_major=False)

    def theirs(given):
        params = dict(zip(("w_i", "w_h", "b"), stored(given, "haiku", "take"), strict=True))
        return hk.without_apply_rng(hk.transform(unroll)).apply({"gru": params}, given["x"], given["h0"])

    given = as_jax(drawn(options))
    with plain_numerics():
        expected, expected_gradients = values_and_gradients(theirs, given, dhs, dh_last)
    found, gradients = values_and_gradients(lambda g: run(g, options, lengths=None), given, dhs, dh_last)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name], "gradient", name=name)


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    return pytest.importorskip("keras", reason="keras is not installed")


def keras_weights(given, reset_after=True):
    return list(stored(given, "keras" if reset_after else "keras, reset before"))


def run_keras(layer, weights, x, states):
    """Runs a Keras layer. Tests use float32, to which Keras's tanh rounds float64."""
    with plain_numerics():
        layer.build((B, T, I))
        others = [v.value for v in layer.non_trainable_variables]
        return jax.jit(lambda w, x, s: layer.stateless_call(w, others, x, initial_state=s)[0])(weights, x, states)


ELSEWHERE = {"after": {}, "before": {"reset_after": False}} | {
    case: {name: options[name] for name in ("activation", "gate_activation", "reset_after") if name in options}
    for case, options in VARIANTS.items()
    if isinstance(options.get("gate_activation"), str)
}
"""Variants for Keras and ONNX Runtime: both values of `reset_after`, and the activations of `VARIANTS`."""


def once(cases):
    """Marks the cases in AGAIN as slow; the others have each activation in at least one place."""
    return [pytest.param(case, marks=[pytest.mark.slow] * (case in AGAIN)) for case in cases]


@pytest.mark.parametrize("case", once(ELSEWHERE))
def test_keras_computes_the_same(drawn, keras, case):
    options = ELSEWHERE[case]
    given, reset_after = as_jax(drawn(options), "float32"), options.get("reset_after", True)
    roles = {"activation": ("activation", "tanh"), "recurrent_activation": ("gate_activation", "sigmoid")}
    names = {role: options.get(*of).replace("identity", "linear") for role, of in roles.items()}
    layer = keras.layers.GRU(H, return_sequences=True, return_state=True, reset_after=reset_after, **names)
    expected = run_keras(layer, keras_weights(given, reset_after), given["x"], given["h0"])
    for a, b in zip(jax.jit(lambda g: run(g, options, lengths=None))(given), expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(("merge", "theirs"), [("concat", "concat"), ("sum", "sum"), ("mul", "mul"), ("mean", "ave")])
def test_keras_merges_both_directions_alike(drawn, keras, merge, theirs):
    given = as_jax(drawn({}), "float32")
    other = {name: np.flip(a, 0) for name, a in given.items()}
    layer = keras.layers.Bidirectional(keras.layers.GRU(H, return_sequences=True), merge_mode=theirs)
    weights, states = [*keras_weights(given), *keras_weights(other)], [given["h0"], other["h0"]]
    expected = run_keras(layer, weights, given["x"], states)
    params = {"l0": weights_of(given), "l0_reverse": weights_of(other)}
    layer = GRU(H, bidirectional=True, merge=merge)
    output, _ = jax.jit(layer.apply)({"params": params}, given["x"], np.stack(states))
    assert_close(output, expected)


IN_ONNX = {  # the function's name, alpha and beta
    "tanh": ("Tanh", [], []),
    "sigmoid": ("Sigmoid", [], []),
    "relu": ("Relu", [], []),
    "hard_sigmoid": ("HardSigmoid", [1 / 6], [0.5]),
    "softsign": ("Softsign", [], []),
    "elu": ("Elu", [1.0], []),
    "identity": ("Affine", [1.0], [0.0]),
}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def onnx_gru(given, lengths, options, direction):
    """Y (T, D, B, H) and Y_h (D, B, H) of a model with one GRU node; `given`: float32 arrays for each direction."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    helper, float32, count = onnx.helper, onnx.TensorProto.FLOAT, len(given)
    functions = [IN_ONNX[options.get(*of)] for of in (("gate_activation", "sigmoid"), ("activation", "tanh"))] * count
    names, *parameters = zip(*functions, strict=True)
    alphas, betas = ([a for of_one in all_of for a in of_one] for all_of in parameters)
    attributes = {"activation_alpha": alphas, "activation_beta": betas, "clip": options.get("clip")}
    node = helper.make_node(
        "GRU",
        ["X", "W", "R", "B", "sequence_lens", "initial_h"],
        ["Y", "Y_h"],
        hidden_size=H,
        direction=direction,
        activations=list(names),
        linear_before_reset=int(options.get("reset_after", True)),
        **{name: value for name, value in attributes.items() if value},
    )
    weights = [stored(g, "onnx") for g in given]
    constants = {
        "W": [w[0] for w in weights],
        "R": [w[1] for w in weights],
        "B": [np.concatenate(w[2:]) for w in weights],
    }
    shapes = {"X": (T, B, I), "initial_h": (count, B, H), "Y": (T, count, B, H), "Y_h": (count, B, H)}
    x, h0, y, y_h = [helper.make_tensor_value_info(name, float32, shape) for name, shape in shapes.items()]
    lens = helper.make_tensor_value_info("sequence_lens", onnx.TensorProto.INT32, (B,))
    arrays = [onnx.numpy_helper.from_array(np.stack(a), name) for name, a in constants.items()]
    graph = helper.make_graph([node], "gru", [x, lens, h0], [y, y_h], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"X": given[0]["x"].swapaxes(0, 1), "sequence_lens": lengths.astype(np.int32)}
    feed["initial_h"] = np.stack([g["h0"] for g in given])
    return session.run(None, {name: np.ascontiguousarray(a) for name, a in feed.items()})


ONNX_CASES = {
    "reverse": ({}, "reverse"),
    "reverse, before": ({"reset_after": False}, "reverse"),
    "bidirectional": ({}, "bidirectional"),
    "bidirectional, before, clip": (
        {"reset_after": False, "clip": 0.5, "activation": "softsign", "gate_activation": "hard_sigmoid"},
        "bidirectional",
    ),
    "clip": ({"clip": 0.7}, "forward"),
    "clip, before": ({"clip": 0.7, "reset_after": False}, "forward"),
    **{case: (options, "forward") for case, options in ELSEWHERE.items() if set(options.values()) <= {*IN_ONNX, False}},
}


@pytest.mark.parametrize("case", once(ONNX_CASES))
def test_onnx_runtime_computes_the_same(drawn, case):
    options, direction = ONNX_CASES[case]
    given = [as_jax(drawn(options), "float32")]
    given += [{name: np.flip(a, 0) for name, a in given[0].items()}][: len(DIRECTIONS[direction]) - 1]
    lengths = np.array([5, 1, 2, 4])  # for a row without steps the runtime returns 0 in Y_h, not initial_h
    hs, h_last = onnx_gru([jax.tree.map(np.asarray, g) for g in given], lengths, options, direction)
    for i, reverse in enumerate(DIRECTIONS[direction]):
        weights = GRUWeights(**weights_of(given[i]))
        found = jax.jit(partial(gru, lengths=lengths, reverse=reverse, **options))(
            given[0]["x"], weights, given[i]["h0"]
        )
        assert_close(found[0], hs[:, i].swapaxes(0, 1))
        assert_close(found[1], h_last[i])


@pytest.mark.parametrize("reset_after", [True, False])
def test_layer_normalisation_equals_torch_functions(drawn, reset_after):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    options, (dhs, dh_last) = {"layer_norm": True, "reset_after": reset_after}, cotangents()
    given = drawn(options)
    x, h, w_ih, w_hh, b_ih, b_hh, scale_ih, scale_hh = leaves = [
        torch.tensor(given[name], requires_grad=True) for name in ("x", "h0", *GRUWeights._fields)
    ]

    def normed(product, scale):
        return torch.nn.functional.layer_norm(product, product.shape[-1:], scale, eps=1e-5)

    n, hs = slice(2 * H, None), []
    for x_t in x.unbind(1):
        both = normed(x_t @ w_ih[:, : 2 * H], scale_ih[: 2 * H]) + normed(h @ w_hh[:, : 2 * H], scale_hh[: 2 * H])
        r, z = torch.sigmoid(both + b_ih[: 2 * H] + b_hh[: 2 * H]).chunk(2, -1)
        inner = normed((h if reset_after else r * h) @ w_hh[:, n], scale_hh[n]) + b_hh[n]
        outer = normed(x_t @ w_ih[:, n], scale_ih[n]) + b_ih[n]
        h = (1 - z) * torch.tanh(outer + (r * inner if reset_after else inner)) + z * h
        hs.append(h)
    hs = torch.stack(hs, 1)
    loss = (hs * torch.tensor(dhs)).sum() + (h * torch.tensor(dh_last)).sum()
    expected = dict(zip(("x", "h0", *GRUWeights._fields), torch.autograd.grad(loss, leaves), strict=True))

    found, gradients = values_and_gradients(lambda g: run(g, options, lengths=None), as_jax(given), dhs, dh_last)
    assert_close(found[0], hs.detach().numpy())
    assert_close(found[1], h.detach().numpy())
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name].numpy(), "gradient", name=name)


# -- layers ------------------------------------------------------------------------------------------------------------

MERGED = {
    "concat": lambda forward, backward: np.concatenate([forward, backward], -1),
    "sum": lambda forward, backward: forward + backward,
    "mean": lambda forward, backward: 0.5 * (forward + backward),
    "mul": lambda forward, backward: forward * backward,
}


def random_params(model, x):
    """Random parameters, because some of the initial ones are zero."""
    rng, shapes = np.random.default_rng(3), jax.eval_shape(model.init, KEY, x)["params"]
    return jax.tree.map(lambda a: jax.device_put((rng.normal(size=a.shape) * 0.5).astype(a.dtype)), shapes)


def both_directions(params, layer, x, h0):
    """The oracle's hs (B, T, H) and h_last of layer number `layer`, forward and backward."""
    found = []
    for name, reverse, h in ((f"l{layer}", False, h0[0]), (f"l{layer}_reverse", True, h0[1])):
        arrays = [np.asarray(params[name][w]) for w in ("w_ih", "w_hh", "b_ih", "b_hh")]
        one = equations.sequence(x.swapaxes(0, 1), h, *arrays, lengths=LENGTHS, reverse=reverse)
        found.append((one.hs.swapaxes(0, 1), one.h_last))
    return tuple(zip(*found, strict=True))


@pytest.fixture
def rows(problem):
    """`rows(n_features=I)` returns x, with NaN in the padding, and h0 of one layer in two directions."""

    def make(n_features=I):
        x, h0 = problem(T, B, n_features, H)["x"], np.random.default_rng(4).normal(size=(2, B, H))
        return np.where((np.arange(T) < LENGTHS[:, None])[..., None], x, np.nan), h0

    return make


@pytest.mark.parametrize("merge", [*MERGED, None])
def test_both_directions_are_merged(rows, merge):
    x, h0 = rows()
    layer = GRU(H, bidirectional=True, merge=merge, param_dtype=jnp.float64)
    params = random_params(layer, x)
    output, h_last = jax.jit(partial(layer.apply, lengths=LENGTHS))({"params": params}, x, h0)
    hs, last = both_directions(params, 0, x, h0)
    assert_close(h_last, np.stack(last))
    if merge is None:
        assert_close(output, np.stack(hs))
    else:
        assert_close(output, MERGED[merge](*hs))
        encoder = GRUEncoder(**layer.fields_of(GRUEncoder))
        pooled = jax.jit(partial(encoder.apply, lengths=LENGTHS))({"params": {"gru": params}}, x, h0)
        assert_close(pooled, MERGED[merge](*last))


@pytest.mark.parametrize(
    ("connection", "merge", "n_features"),  # the first layer has none, even if its input is as wide as its output
    [("residual", "concat", I), ("residual", "sum", H), ("highway", "concat", I), ("highway", "mean", H)],
)
def test_connections_join_the_input_of_a_layer_to_its_output(rows, connection, merge, n_features):
    x, h0 = rows(n_features)
    fields = {"num_layers": 3, "bidirectional": True, "merge": merge, "param_dtype": jnp.float64}
    layer, h0 = GRU(H, connection=connection, **fields), np.concatenate([h0, h0 + 1, h0 - 1])
    params = random_params(layer, x)
    output, h_last = jax.jit(partial(layer.apply, lengths=LENGTHS))({"params": params}, x, h0)
    expected, last = x, []
    for k in range(3):
        hs, states = both_directions(params, k, expected, h0[2 * k : 2 * k + 2])
        joined = MERGED[merge](*hs)
        last += states
        if k > 0 and connection == "residual":
            joined = joined + expected
        elif k > 0:
            dense = jax.tree.map(np.asarray, params[f"l{k}_highway"])
            t = equations.sigmoid(expected @ dense["kernel"] + dense["bias"])
            joined = t * joined + (1 - t) * expected
        expected = joined
    assert_close(output, expected)
    assert_close(h_last, np.stack(last))
    assert not np.asarray(output)[np.arange(T) >= LENGTHS[:, None]].any()


def test_a_highway_starts_at_minus_one_and_the_first_layer_has_none(rows):
    layer = GRU(H, num_layers=2, bidirectional=True, connection="highway", param_dtype=jnp.float64)
    assert set(jax.eval_shape(layer.init, KEY, rows()[0])["params"]) == {*CELLS, "l1_highway"}
    highway = jax.jit(lambda key: layer.init(key, rows()[0])["params"]["l1_highway"])(KEY)  # jit draws nothing else
    assert (highway["bias"] == -1).all() and highway["kernel"].shape == (2 * H, 2 * H)


# -- model files, and PyTorch's ----------------------------------------------------------------------------------------

SAVED = {
    "cell": {"update": "take", "reset_after": False, "activation": "softsign", "clip": 2.5},
    "norm": {
        "layer_norm": True,
        "blocks": 3,
        "bias": False,
        "gate_activation": "hard_sigmoid",
        "param_dtype": jnp.float64,
    },
    "start": {"initializer": "keras", "update_bias": 1.5, "initial_state": "learned", "dtype": jnp.bfloat16},
    "layers": {"num_layers": 2, "bidirectional": True, "merge": "mean", "connection": "highway", "precision": "high"},
    "steps": {"pooling": None, "time_major": True, "implementation": "autodiff", "reverse": True},
    "drops": {
        **{"dropout": 0.1, "input_dropout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.4, "zoneout": 0.5},
        **{"implementation": "reference", "pooling": "attention"},
    },
    "heads": {
        "output_size": {"y": 2, "a": 3},
        "head_hidden": (4, 7),
        "head_activation": "elu",
        "output_activation": "softmax",
        "steps_per_frame": 3,
    },
}
FIELDS = {f.name: f.default for f in dataclasses.fields(GRUModel) if f.name not in ("parent", "name")}


def test_every_field_is_saved_away_from_its_default():
    assert {field for fields in SAVED.values() for field in fields} | {"hidden_size"} == set(FIELDS)
    assert all(value != FIELDS[field] for fields in SAVED.values() for field, value in fields.items())


@pytest.mark.parametrize("case", SAVED)
def test_a_saved_variant_is_the_same_again(tmp_path, case):
    model = GRUModel(**{"hidden_size": H, "output_size": 2} | SAVED[case])
    x = np.random.default_rng(5).normal(size=(B, T, I)).astype(model.param_dtype)
    variables = {"params": random_params(model, x)}
    grujax.save(tmp_path / "m.safetensors", model, variables)
    loaded, again = grujax.load(tmp_path / "m.safetensors")
    assert loaded == model
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), again, variables)
    one, other = (jax.jit(m.apply).lower(v, x).as_text() for m, v in ((model, variables), (loaded, again)))
    assert one == other  # the same program on the same arrays need not be run


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip", np.float32(2.5)),
        ("num_layers", np.int64(2)),
        ("head_hidden", (np.int32(4),)),
        ("precision", ("high",) * 2),
        ("precision", jax.lax.Precision.HIGH),
        ("precision", (jax.lax.Precision.HIGH, jax.lax.Precision.DEFAULT)),
    ],
)
def test_numbers_of_numpy_and_pairs_are_saved(tmp_path, field, value):
    model, x = GRUModel(**{"hidden_size": H, "output_size": 2, field: value}), np.ones((B, T, I), np.float32)
    variables = {"params": random_params(model, x)}
    grujax.save(tmp_path / "m.safetensors", model, variables)
    loaded, again = grujax.load(tmp_path / "m.safetensors")
    if field == "precision":  # a precision is saved by its name
        model = model.clone(precision=jax.tree.map(lambda p: getattr(p, "name", p).lower(), value))
    assert loaded == model
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), again, variables)
    one, other = (jax.jit(m.apply).lower(v, x).as_text() for m, v in ((model, variables), (loaded, again)))
    assert one == other


@pytest.mark.parametrize("field", ["activation", "gate_activation", "head_activation", "pooling"])
def test_a_function_is_not_saved(tmp_path, field):
    def function(a, valid=None):
        return jnp.tanh(a if valid is None else a[:, 0])

    model = GRUModel(H, 2, head_hidden=(3,), **{field: function})
    with refused(
        f"{field}: expected a name, since a file cannot store a function", "the function", "Save the variables"
    ):
        grujax.save(tmp_path / "m", model, {"params": random_params(model, np.ones((B, T, I), np.float32))})
    assert not list(tmp_path.iterdir())


NOT_IN_TORCH = {
    **{"reset_after": False, "activation": "relu", "gate_activation": "hard_sigmoid", "clip": 3.0},
    **{"layer_norm": True, "merge": "sum", "connection": "residual", "initial_state": "learned"},
    **{"zoneout": 0.1, "reverse": True},
    **{"pooling": "mean", "head_hidden": (4,), "head_activation": "tanh", "output_activation": "sigmoid"},
    "steps_per_frame": 2,
}


def test_every_field_is_converted_or_free_or_refused():
    assert sorted([*NOT_IN_TORCH, *SIZES, *TRAINING, *FREE]) == sorted([*FIELDS, "parent", "name"])


@pytest.mark.parametrize("field", NOT_IN_TORCH)
def test_torch_is_refused_what_it_has_not(field):
    pytest.importorskip("torch", reason="torch is not installed")
    for kind, sizes in ((GRU, {}), (GRUCell, {}), (GRUModel, {"output_size": 2})):
        if field in {f.name for f in dataclasses.fields(kind)}:
            model = kind(H, **sizes, **{field: NOT_IN_TORCH[field]})
            with refused(f"{field}: expected {FIELDS[field]!r}", f"found {NOT_IN_TORCH[field]!r}"):
                to_torch(model, {"params": {}})


def test_what_acts_in_training_alone_is_left_behind_and_said():
    pytest.importorskip("torch", reason="torch is not installed")
    for field in TRAINING:
        model = GRU(H, **{field: 0.25})
        variables = {"params": random_params(model, np.ones((B, T, I), np.float32))}
        if field == "dropout":  # torch has dropout: no warning
            to_torch(model, variables)
        else:
            with pytest.warns(ConversionWarning, match=f"{field}=0.25: it only acts in training"):
                to_torch(model, variables)


def test_an_update_gate_that_takes_the_candidate_is_mirrored_for_torch():
    pytest.importorskip("torch", reason="torch is not installed")
    model, x = (
        GRU(H, bidirectional=True, update="take"),
        np.random.default_rng(0).normal(size=(B, T, I)).astype(np.float32),
    )
    variables = {"params": random_params(model, x)}
    kept, mirrored = from_torch(to_torch(model, variables, verify=True))
    assert kept == GRU(H, bidirectional=True)
    assert_close(jax.jit(kept.apply)(mirrored, x)[0], jax.jit(model.apply)(variables, x)[0])


def test_several_heads_are_refused_by_torch():
    pytest.importorskip("torch", reason="torch is not installed")
    model = GRUModel(H, {"y": 2, "a": 3})
    with refused("output_size: expected one head", "torch.nn.GRU models have one head"):
        to_torch(model, {"params": random_params(model, np.ones((B, T, I), np.float32))})
