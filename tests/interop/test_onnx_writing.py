"""Exported graphs compute in ONNX Runtime what the model computes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from applied import applied
from onnx_graphs import BOTH, FLOAT, INT32, H, I, O, drawn, onnx, ours, same, session
from pairs import by_turns
from refusals import refused

from grujax import GRU, GRUCell, GRUEncoder, GRUModel
from grujax.errors import InputError
from grujax.interop.flax import to_flax
from grujax.interop.keras import to_layers
from grujax.interop.onnx import FRAMEWORK, from_onnx, to_onnx
from grujax.interop.onnx_tensors import load
from grujax.interop.parts import ConversionWarning
from grujax.kernels.step import ACTIVATIONS
from grujax.testing import assert_close
from grujax.types import Affine, Elu, HardSigmoid, LeakyRelu, ScaledTanh, Softplus, ThresholdedRelu

GIVEN = [HardSigmoid(), HardSigmoid(0.3, 0.4), LeakyRelu(0.2), Elu(0.7), ScaledTanh(0.7, 0.6), ThresholdedRelu(0.3)]
GIVEN += [Affine(0.4, 0.1), Softplus()]

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
    "backwards": (GRU(H, reverse=True, num_layers=2), ""),
    "probabilities": (GRUModel(H, O, output_activation="softmax", **BOTH), "input"),
    "probabilities of every step": (GRUModel(H, O, pooling=None, output_activation="sigmoid"), ""),
    "every step": (GRUModel(H, O, pooling=None, **BOTH), "input output"),
    "every step, take": (GRUModel(H, O, pooling=None, update="take"), ""),
}


def fed(model, n_rows, n_steps, seed=1):
    """All inputs. The lengths include 0 and all steps, and the padding is NaN."""
    rng = np.random.default_rng(seed)
    x, lengths = rng.normal(size=(n_rows, n_steps, I)), np.array([n_steps, 0, 1, n_steps - 1, 0], np.int32)[:n_rows]
    x[np.arange(n_steps) >= lengths[:, None]] = np.nan
    h0 = rng.normal(size=(model.num_states, n_rows, H))
    return {"x": x.astype(np.float32), "h0": h0.astype(np.float32), "lengths": lengths}


INPUTS = {"both or none": ((True, True), (False, False)), "one of them": ((True, False), (False, True))}
"""Whether the graph has inputs for lengths and for the state."""


@pytest.mark.parametrize(("case", "inputs"), by_turns(MODELS, [*INPUTS], quick=1))
def test_the_runtime_computes_what_the_model_computes(case, inputs):
    """With and without lengths and state. Reading the graph again restores the weights bit for bit."""
    model, statistics = MODELS[case]
    variables = drawn(model, statistics=statistics)
    for lengths, state in INPUTS[inputs]:
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


LEARNED = [GRU(H, **BOTH), GRUModel(H, O, pooling="mean"), GRUModel(H, O, steps_per_frame=2)]


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("model", LEARNED, ids=["layer", "mean", "frames"])
def test_a_learned_initial_state_starts_every_row_where_none_is_given(model, state):
    """It is also h_last of an empty row. A given state replaces it. Reading the graph again restores the model."""
    model = model.clone(initial_state="learned")
    variables, feed = drawn(model), fed(model, 5, 6)
    proto, h0 = to_onnx(model, variables, state=state), feed.pop("h0")
    found = session(proto).run(None, feed)
    for a, e in zip(found, ours(model, variables, h0=None, **feed), strict=False):
        assert_close(a, e)
    assert not state or np.ptp(found[1][:, 1], axis=-1).all()
    if state:
        for a, e in zip(
            session(proto).run(None, feed | {"h0": h0}), ours(model, variables, h0=h0, **feed), strict=False
        ):
            assert_close(a, e)
    back, again = from_onnx(proto, verify=True)
    assert back == model
    same(again, variables)


@pytest.mark.parametrize("shape", [(1, 2, H), (1, 0, H), (1, 1, H + 1)])
def test_a_graph_of_ours_with_another_initial_state_is_refused(shape):
    """The initializer of h0 was changed after the export."""
    model = GRU(H, initial_state="learned")
    proto = to_onnx(model, drawn(model), state=False)
    (tensor,) = (of for of in proto.graph.initializer if of.name == "h0")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(shape, np.float32), "h0"))
    with pytest.raises(InputError):
        from_onnx(proto)


@pytest.mark.parametrize("case", ["max pooled", "every step"])
def test_one_session_runs_every_batch_and_time(case):
    model, statistics = MODELS[case]
    variables = drawn(model, statistics=statistics)
    run = session(to_onnx(model, variables))
    for sizes in ((5, 6), (2, 9)):
        for a, e in zip(run.run(None, fed(model, *sizes)), ours(model, variables, **fed(model, *sizes)), strict=True):
            assert_close(a, e)


def test_what_stands_past_the_length_is_zero_and_h_last_of_an_empty_row_is_h0():
    """Exactly, in both directions and all layers."""
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
        assert_close(h, applied(model, variables, h0 if state else 0 * h0, feed["x"])[0])
    back, again = from_onnx(proto, verify=True)
    assert back == model
    same(again, variables)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"hard_tanh"}))
def test_each_activation_is_the_same_function(name, reset_after):
    """As the candidate's activation and as the gates', with large and small arguments."""
    gates, candidate = ("hard_sigmoid", name) if reset_after else (name, "softsign")
    model = GRU(H, activation=candidate, gate_activation=gates, clip=2.5, reset_after=reset_after)
    variables, feed = drawn(model), fed(model, 5, 6)
    proto = to_onnx(model, variables)
    feed["x"] *= 3
    for a, e in zip(session(proto).run(None, feed), ours(model, variables, **feed), strict=True):
        assert_close(a, e)
    assert from_onnx(proto)[0] == model


@pytest.mark.parametrize("of", GIVEN, ids=str)
def test_activations_with_parameters_are_the_same_functions(of):
    """The arguments are clipped; otherwise the state may grow without bound."""
    both = {"activation": of, "gate_activation": of, "reset_after": False, "bidirectional": True}
    for options in ({"gate_activation": of}, both):
        model = GRU(H, clip=0.4, **options)
        variables, feed = drawn(model), fed(model, 5, 6)
        proto = to_onnx(model, variables)
        for a, e in zip(session(proto).run(None, feed), ours(model, variables, **feed), strict=True):
            assert_close(a, e)
        back, again = from_onnx(proto)
        assert back == model
        same(again, variables)


MIRRORED = ["sigmoid", "hard_sigmoid", HardSigmoid(0.3, 0.5), Affine(0.2, 0.5)]


@pytest.mark.parametrize("gate", [*MIRRORED, "tanh", "relu", HardSigmoid(0.3, 0.4), Affine(0.2, 0.0)], ids=str)
def test_z_weighs_the_other_term_of_gates_that_are_mirrored_alone(gate):
    model = GRU(H, update="take", gate_activation=gate)
    variables = drawn(model)
    if gate in MIRRORED:
        to_onnx(model, variables, verify=True)
    else:
        for to in (to_onnx, to_flax, to_layers):
            with refused("update='take' needs a gate with 1 - f(a) = f(-a)", "gate_activation"):
                to(model.clone(gate_activation="tanh") if to is not to_onnx else model, variables)


def test_class_names_are_kept_and_must_be_as_many_as_outputs():
    model = GRUModel(H, O)
    proto = to_onnx(model, drawn(model), labels=["yes", "no"])
    assert json.loads(next(p.value for p in proto.metadata_props if p.key == "labels")) == ["yes", "no"]
    assert from_onnx(proto)[0] == model
    with refused("labels", "2 names"):
        to_onnx(model, drawn(model), labels=["yes"])


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
        FRAMEWORK.write(tmp_path / name, to_onnx(model, drawn(model, statistics="input output")))
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
