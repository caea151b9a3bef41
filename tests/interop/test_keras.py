"""Against live Keras: outputs both ways, weights there and back, files of both kinds, and files that are none."""

import functools
import io
import json
import os
import re
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from grujax import GRU, GRUCell, GRUEncoder, GRUModel, InputError
from grujax.interop.adapters import compare
from grujax.interop.keras import ADAPTER, WEIGHTS_ADAPTER, from_keras, to_keras
from grujax.interop.keras_files import load_keras, load_weights
from grujax.interop.keras_layers import ACTIVATIONS as ours_by_theirs
from grujax.interop.keras_live import runner
from grujax.interop.model_parts import ConversionWarning
from grujax.kernels.step import ACTIVATIONS
from grujax.testing import assert_close

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
L = keras.layers
I, H, T, B = 3, 4, 5, 2
ZEROS = {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}  # all weights are drawn anew
Gru = functools.partial(L.GRU, H, **ZEROS)
Steps = functools.partial(Gru, return_sequences=True)
ADAPTERS = {"keras": ADAPTER, "keras-weights": WEIGHTS_ADAPTER}


def plain(call, *args, **options):
    """Keras as it expects JAX to be; what is tested sees to that itself."""
    lifted = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.enable_x64(False)
    with lifted[0], lifted[1], lifted[2], warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # Keras' variables
        return call(*args, **options)


def quick(function):
    """`jax.jit` for what runs once: XLA compiles it in a third of the time."""
    return jax.jit(
        function, compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    )


def run(layer, *given, **options):
    """What a layer of Keras gives, a list of NumPy arrays."""
    return [np.asarray(a) for a in jax.tree.leaves(plain(quick(lambda *a: layer(*a, **options)), *given))]


def Both(merge="concat", **options):
    return L.Bidirectional(Gru(**options), merge_mode=merge)


def drawn(layer, seed=0):
    """The layer built, all its weights random, biases among them."""
    rng = np.random.default_rng(seed)
    if not layer.built:
        plain(layer.build, (B, I) if isinstance(layer, L.GRUCell) else (B, T, I))
    plain(layer.set_weights, [rng.normal(size=v.shape, scale=0.6).astype(v.dtype) for v in layer.weights])
    return layer


def chain(*layers, seed=0):
    return drawn(plain(keras.Sequential, [keras.Input((None, I)), *layers]), seed)


def functional(*layers):
    x = start = keras.Input((None, I))
    for layer in layers:
        x = plain(layer, x)
    return drawn(plain(keras.Model, start, x))


def weights_of(layer):
    return [np.asarray(v.value) for v in layer.weights]


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


# -- outputs and weights -----------------------------------------------------------------------------------------------

CASES = {
    "after": (lambda: drawn(Steps(return_state=True)), GRU(H)),
    "before": (lambda: drawn(Steps(return_state=True, reset_after=False)), GRU(H, reset_after=False)),
    "no bias": (lambda: drawn(Gru(use_bias=False)), GRU(H, bias=False)),
    "before, no bias": (
        lambda: drawn(Steps(use_bias=False, reset_after=False)),
        GRU(H, bias=False, reset_after=False),
    ),
    "cell": (lambda: drawn(L.GRUCell(H, **ZEROS)), GRUCell(H)),
    "cell before": (lambda: drawn(L.GRUCell(H, reset_after=False, **ZEROS)), GRUCell(H, reset_after=False)),
    "both ways": (lambda: drawn(Both(return_sequences=True)), GRU(H, bidirectional=True)),
    "apart": (lambda: drawn(Both(None, return_sequences=True)), GRU(H, bidirectional=True, merge=None)),
    "two layers": (
        lambda: chain(*[Both("sum", return_sequences=True) for _ in range(2)]),
        GRU(H, num_layers=2, bidirectional=True, merge="sum"),
    ),
    "last": (
        lambda: chain(Steps(), L.Dropout(0.2), Gru(), L.Dropout(0.2), L.Dense(2)),
        GRUModel(H, 2, num_layers=2, dropout=0.2),
    ),
    "last of both": (lambda: chain(Both("mul"), L.Dense(2)), GRUModel(H, 2, bidirectional=True, merge="mul")),
    "mean": (
        lambda: functional(Both(return_sequences=True), L.GlobalAveragePooling1D(), L.Dense(2)),
        GRUModel(H, 2, bidirectional=True, pooling="mean"),
    ),
    "max": (
        lambda: chain(Steps(activation="relu", dropout=0.1), L.GlobalMaxPooling1D(), L.Dense(2)),
        GRUModel(H, 2, activation="relu", input_dropout=0.1, pooling="max"),
    ),
    "every step": (
        lambda: chain(Both("ave", return_sequences=True), L.Dense(2)),
        GRUModel(H, 2, bidirectional=True, merge="mean", pooling=None),
    ),
}


@functools.cache
def case(name):
    """A source, what it gives for x, its conversion, and that back: once a process."""
    make, expected = CASES[name]
    source = make()
    x = np.random.default_rng(1).normal(size=(B, T, I)).astype("float32")
    h = np.random.default_rng(2).normal(size=(2, B, H)).astype("float32")
    given = (x[:, 0], [h[0]]) if isinstance(source, L.GRUCell) else (x,)
    return source, expected, given, run(source, *given), from_keras(source)


def ours(model, variables, given):
    """What Keras returns of the same, as a list."""
    if isinstance(model, GRUCell):
        given = (given[1][0], given[0])
    found = jax.tree.leaves(quick(model.apply)(variables, *given))
    return found if len(found) == 1 or isinstance(model, GRUCell) else [*found[:-1], *found[-1]]


@pytest.mark.parametrize("name", CASES)
def test_from_keras_gives_the_same_outputs(name):
    _, expected, given, theirs, (model, variables) = case(name)
    assert model == expected
    found = ours(model, variables, given)
    if name == "no bias":  # which returns the last state alone
        found = found[1:]
    for a, b in zip(found, theirs, strict=False):
        assert_close(a, b, name=name)
        assert np.abs(b).max() > 0.05


@pytest.mark.parametrize("name", CASES)
def test_to_keras_gives_the_same_outputs_and_the_same_bits(name):
    source, _, given, _, (model, variables) = case(name)
    made = plain(to_keras, model, variables)
    assert isinstance(made, L.GRUCell if isinstance(model, GRUCell) else keras.Sequential)
    assert_same_bits(weights_of(made), weights_of(source))
    found, back = from_keras(made)
    assert found == model
    assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))
    for a, b in zip(ours(model, variables, given), run(made, *given), strict=False):
        assert_close(a, b, name=name)


@pytest.mark.parametrize("way", ["forward", "both"])
def test_states_and_masks_mean_the_same(way):
    """The state that enters, and steps that are not valid: Keras holds the state there, and repeats its output."""
    source = drawn(Steps(return_state=True) if way == "forward" else Both(return_sequences=True, return_state=True))
    model, variables = from_keras(source)
    rng = np.random.default_rng(3)
    x, lengths = rng.normal(size=(B, T, I)).astype("float32"), np.array([2, T])
    h0 = rng.normal(size=(model.num_directions, B, H)).astype("float32")
    valid = np.arange(T) < lengths[:, None]
    output, *last = run(lambda x, *h: source(x, initial_state=list(h), mask=jnp.asarray(valid)), x, *h0)
    found, h_last = model.apply(variables, jnp.asarray(x), jnp.asarray(h0), lengths=lengths)
    assert_close(found, output * valid[..., None])
    assert_close(h_last, np.stack(last))


def random_variables(model, seed=0):
    x = jnp.zeros((1, 2, I), model.param_dtype)
    args = (jnp.zeros((1, H), model.param_dtype), x[:, 0]) if isinstance(model, GRUCell) else (x,)
    tree, rng = jax.eval_shape(model.init, jax.random.key(0), *args), np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape, scale=0.6)).astype(a.dtype), tree)


OURS = {
    "take": GRU(H, num_layers=2, update="take"),
    "float64": GRUModel(H, 2, bidirectional=True, merge="sum", param_dtype=jnp.float64),
    "bfloat16": GRUModel(H, 2, pooling=None, param_dtype=jnp.bfloat16),
    "mixed": GRU(H, dtype=jnp.bfloat16),
    "cell": GRUCell(H, update="take", activation="softsign", gate_activation="hard_sigmoid"),
}


@pytest.mark.parametrize("name", OURS)
def test_keras_computes_what_grujax_does_from_any_state_and_length(name):
    model = OURS[name]
    variables = random_variables(model)
    made = to_keras(model, variables)
    there = runner(made, model)
    assert there.takes_h0 and there.takes_lengths == (name != "cell")
    assert compare(model, variables, there).tolerances <= 1
    found, back = from_keras(made)
    assert found == model.clone(update="keep")
    if model.update == "keep":
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))


def test_verify_runs_keras_and_sees_what_differs(caplog, monkeypatch):
    source = case("mean")[0]
    with caplog.at_level("INFO", "grujax.interop"):
        from_keras(source, verify=True)
    assert "largest difference" in caplog.text
    monkeypatch.setitem(ours_by_theirs, "tanh", "softsign")
    with refused("source", "a difference of"):
        from_keras(source, verify=True)


def test_the_split_of_the_biases_is_lost_where_keras_has_their_sum():
    model = GRU(H, reset_after=False)
    variables = random_variables(model)
    with pytest.warns(ConversionWarning, match="b_ih and b_hh are stored as their sum"):
        made = to_keras(model, variables, verify=True)
    found, back = from_keras(made)
    assert found == model
    params, again = variables["params"]["l0"], back["params"]["l0"]
    assert_same_bits([again["b_ih"]], [params["b_ih"] + params["b_hh"]])
    assert_same_bits([again["b_hh"]], [np.zeros(3 * H, np.float32)])


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "hard_tanh", "hard_sigmoid", "softsign", "elu", "linear"])
def test_activations_of_one_name_are_one_function(name):
    source = drawn(L.GRUCell(H, activation=name, recurrent_activation=name, **ZEROS))
    model, _ = from_keras(source)
    assert model.activation == model.gate_activation == name.replace("linear", "identity")
    a = np.linspace(-8, 8, 999).astype("float32")
    theirs = plain(keras.activations.get(name), jnp.asarray(a))
    assert_close(ACTIVATIONS[model.activation](jnp.asarray(a)), np.asarray(theirs))


# -- what acts in training alone ---------------------------------------------------------------------------------------

LEFT = {
    "dropout at the input": (lambda: chain(L.Dropout(0.3), Gru(), L.Dense(2)), GRUModel(H, 2), "dropout.*another"),
    "dropouts that differ": (
        lambda: chain(Steps(), L.Dropout(0.3), Gru(), L.Dropout(0.2), L.Dense(2)),
        GRUModel(H, 2, num_layers=2),
        "dropout.*another place",
    ),
    "noise_shape": (
        lambda: chain(Steps(), L.Dropout(0.3, noise_shape=(None, 1, H)), Gru()),
        GRU(H, num_layers=2),
        "noise_shape",
    ),
    "a mask a direction": (lambda: drawn(Both(dropout=0.2)), GRU(H, bidirectional=True), "dropout.*in training alone"),
    "a mask a gate": (
        lambda: drawn(Gru(dropout=0.2, recurrent_dropout=0.1)),
        GRU(H),
        "recurrent_dropout.*a mask a gate",
    ),
    "regularizer": (lambda: drawn(Gru(kernel_regularizer="l2")), GRU(H), "kernel_regularizer"),
    "constraint": (lambda: drawn(Both(bias_constraint="non_neg")), GRU(H, bidirectional=True), "bias_constraint"),
    "frozen": (lambda: drawn(Gru(trainable=False)), GRU(H), "trainable"),
    "cell": (lambda: drawn(L.GRUCell(H, dropout=0.5, **ZEROS)), GRUCell(H), "dropout"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_acts_in_training_alone_is_left_with_a_warning(name):
    make, expected, match = LEFT[name]
    source = make()
    with pytest.warns(ConversionWarning) as found:
        assert from_keras(source, verify=name == "dropout at the input")[0] == expected
    assert any(re.search(match, str(w.message)) for w in found)


def test_what_keras_drops_otherwise_is_left_with_a_warning():
    model = GRU(H, bidirectional=True, input_dropout=0.1, weight_dropout=0.2)
    with pytest.warns(ConversionWarning) as found:
        to_keras(model, random_variables(model))
    assert {str(w.message).split("=")[0] for w in found} == {"Keras: input_dropout", "Keras: weight_dropout"}


def test_a_model_of_keras_starts_anew_as_keras_does():
    made = to_keras(GRUModel(H, 2), random_variables(GRUModel(H, 2)))
    gru, dense = made.layers
    found = [gru.kernel_initializer, gru.recurrent_initializer, dense.kernel_initializer]
    assert [type(i).__name__ for i in found] == ["GlorotUniform", "Orthogonal", "GlorotUniform"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def tanh(a):
    """Keras serialises a function of the user's by its name alone."""
    return a


class OwnGRU(L.GRU):
    pass


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.gru = L.GRU(H, **ZEROS)

    def call(self, x):
        return self.gru(x)


def subclassed():
    model = Subclassed()
    plain(model, np.ones((B, T, I), "float32"))
    return model


def shared():
    x, gru = keras.Input((None, H)), L.GRU(H, return_sequences=True, **ZEROS)
    return plain(lambda: keras.Model(x, gru(gru(x))))


def branched():
    x = keras.Input((None, I))
    return plain(lambda: keras.Model(x, L.Add()([Steps()(x), Steps()(x)])))


def stated():
    x = keras.Input((None, I))
    return plain(lambda: keras.Model(x, Gru()(x, initial_state=Gru()(x))))


def two_outputs():
    x = keras.Input((None, I))
    return plain(lambda: keras.Model(x, [h := Steps()(x), Gru()(h)]))


FROM = {
    "lstm": (lambda: drawn(L.LSTM(H, **ZEROS)), ["lstm", "GRU", "found LSTM"]),
    "simple rnn": (lambda: drawn(L.SimpleRNN(H, **ZEROS)), ["simple_rnn", "found SimpleRNN"]),
    "rnn of a cell": (lambda: drawn(L.RNN(L.GRUCell(H, **ZEROS))), ["found RNN", "keras.layers.GRU"]),
    "lstm inside": (lambda: drawn(L.Bidirectional(L.LSTM(H, **ZEROS))), ["lstm", "found LSTM"]),
    "own class": (lambda: drawn(OwnGRU(H, **ZEROS)), ["own_gru", "found OwnGRU"]),
    "subclassed": (subclassed, ["Subclassed: ", "GlobalAveragePooling1D"]),
    "own function": (lambda: drawn(Gru(activation=tanh)), ["activation", "Keras' own tanh", "by its name"]),
    "other function": (lambda: drawn(Gru(recurrent_activation="gelu")), ["recurrent_activation", "'gelu'"]),
    "backwards": (lambda: drawn(Gru(go_backwards=True)), ["go_backwards", "found True", "Reverse"]),
    "stateful": (lambda: drawn(Gru(stateful=True)), ["stateful", "found True"]),
    "not built": (lambda: Gru(), ["gru", "a built layer", "Call it on data"]),
    "masking": (lambda: chain(L.Masking(-1.0), Gru()), ["masking", "mask=(x != mask_value).any(-1)"]),
    "embedding": (lambda: drawn(L.Embedding(9, I)), ["embedding", "found Embedding"]),
    "activation of the head": (
        lambda: chain(Gru(), L.Dense(2, activation="softmax")),
        ["dense", "activation", "'softmax'", "linear"],
    ),
    "softmax layer": (lambda: chain(Gru(), L.Dense(2), L.Softmax()), ["softmax", "found Softmax"]),
    "two heads": (lambda: chain(Gru(), L.Dense(2), L.Dense(2)), ["dense", "one Dense", "a Dense here"]),
    "dense first": (lambda: chain(L.Dense(H), Gru()), ["gru", "one Dense", "a GRU here"]),
    "head without bias": (lambda: chain(Gru(), L.Dense(2, use_bias=False)), ["use_bias", "zeros"]),
    "pooling alone": (lambda: chain(Steps(), L.GlobalMaxPooling1D()), ["a Dense behind pooling", "GRUEncoder"]),
    "kept axis": (
        lambda: chain(Steps(), L.GlobalMaxPooling1D(keepdims=True), L.Dense(2)),
        ["keepdims", "found True"],
    ),
    "one way, both ways": (lambda: chain(Steps(), Both()), ["bidirectional", "expected GRU", "one by one"]),
    "merges that differ": (
        lambda: chain(Both("sum", return_sequences=True), Both("mul")),
        ["merge_mode", "'sum'", "'mul'"],
    ),
    "resets that differ": (lambda: chain(Steps(), Gru(reset_after=False)), ["reset_after", "True", "False"]),
    "sizes that differ": (lambda: chain(Steps(), L.GRU(5, **ZEROS)), ["4 hidden units", "found 5"]),
    "directions that differ": (
        lambda: drawn(L.Bidirectional(Gru(), backward_layer=Gru(activation="relu", go_backwards=True))),
        ["both directions alike", "relu"],
    ),
    "no gru": (lambda: chain(L.Dense(2)), ["source", "a GRU"]),
    "nested": (lambda: chain(chain(Steps()), L.Dense(2)), ["sequential", "Put its layers into one"]),
    "branches": (branched, ["add", "found Add"]),
    "shared layer": (shared, ["gru", "to read", "alone"]),
    "initial state": (stated, ["chains of layers alone"]),
    "two outputs": (two_outputs, ["output_layers", "alone"]),
    "neither": (lambda: 3, ["source", "a layer or model of Keras", "int"]),
    "a list": (lambda: [3], ["source", "layers that `load` read"]),
}


@pytest.mark.parametrize("name", FROM)
def test_what_is_no_gru_is_refused_by_name(name):
    make, parts = FROM[name]
    source = make()
    with refused(*parts):
        from_keras(source)


TO = {
    "function": (GRU(H, activation=tanh), ["activation", "tanh", "Keras"]),
    "clip": (GRU(H, clip=1.0), ["clip", "Keras has no such thing"]),
    "residual": (GRU(H, num_layers=2, connection="residual"), ["connection", "'residual'"]),
    "learned": (GRU(H, initial_state="learned"), ["initial_state", "'learned'"]),
    "zoneout": (GRU(H, zoneout=0.1), ["zoneout", "0.1"]),
    "attention": (GRUModel(H, 2, pooling="attention"), ["pooling", "'attention'", "'mean'"]),
    "heads": (GRUModel(H, {"a": 2, "b": 3}), ["output_size", "one head"]),
    "encoder": (GRUEncoder(H), ["model", "GRUEncoder"]),
}


@pytest.mark.parametrize("name", TO)
def test_what_keras_has_no_place_for_is_refused(name):
    model, parts = TO[name]
    with refused(*parts):
        to_keras(model, random_variables(model))


UNTOLD = {
    "activation": GRU(H, activation="relu"),
    "gate_activation": GRU(H, gate_activation="hard_sigmoid"),
    "merge": GRU(H, bidirectional=True, merge="sum"),
    "bias": GRU(H, bias=False),
}


@pytest.mark.parametrize("field", UNTOLD)
def test_what_weights_do_not_tell_is_refused_a_file_of_weights(field):
    with refused(field, "write a .keras file"):
        WEIGHTS_ADAPTER.theirs(UNTOLD[field], random_variables(UNTOLD[field]))


def test_without_keras_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with refused("keras", "pip install 'grujax[keras]'"):
        from_keras(object())
    with refused("keras", "pip install 'grujax[keras]'"):
        to_keras(GRU(H), random_variables(GRU(H)))


# -- files -------------------------------------------------------------------------------------------------------------

FILES = {
    "last": ("keras", "keras-weights"),
    "mean": ("keras", "keras-weights"),
    "max": ("keras",),
    "every step": ("keras",),
    "two layers": ("keras",),
    "no bias": ("keras",),
    "after": ("keras", "keras-weights"),
    "before": ("keras-weights",),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in FILES.items() for kind in kinds])
@pytest.mark.filterwarnings("ignore::grujax.interop.model_parts.ConversionWarning")  # dropout, in files of weights
def test_files_hold_the_same_bits(name, kind, tmp_path):
    """Files of Keras read here, files of grujax read here and by Keras."""
    source, _, _, _, (model, variables) = case(name)
    adapter = ADAPTERS[kind]
    ending = adapter.endings[0]
    told = model if kind == "keras" else model.clone(dropout=0.0)
    if isinstance(source, keras.Model):
        theirs = tmp_path / f"theirs{ending}"
        plain(source.save if kind == "keras" else source.save_weights, theirs)
        found, back = adapter.ours(adapter.load(theirs))
        assert found == told
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))
    path = tmp_path / f".temporary{ending}"
    path.write_bytes(b"something else")
    adapter.store(path, adapter.theirs(model, variables))
    assert [p.name for p in tmp_path.iterdir() if "theirs" not in p.name] == [path.name]
    found, back = adapter.ours(adapter.load(path))
    assert found == told
    assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))
    if kind == "keras":
        there = plain(keras.saving.load_model, path)
    else:
        there = drawn(to_keras(model, variables))
        plain(there.load_weights, path)
    assert_same_bits(weights_of(there), weights_of(source))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype_comes_back_from_either_file(dtype, tmp_path):
    model = GRUModel(H, 2, pooling=None, param_dtype=getattr(jnp, dtype))
    variables = random_variables(model)
    for adapter in ADAPTERS.values():
        path = tmp_path / f"model{adapter.endings[0]}"
        adapter.store(path, adapter.theirs(model, variables))
        found, back = adapter.ours(adapter.load(path))
        assert found == model
        assert_same_bits(jax.tree.leaves(back), jax.tree.leaves(variables))


def test_a_file_that_was_read_runs_in_keras(tmp_path):
    """`runner` takes what `load` gives; a model that was trained has an optimizer in its file besides."""
    source, _, _, _, (model, variables) = case("mean")
    plain(source.compile, "adam", "mse")
    plain(source.optimizer.build, source.trainable_variables)
    plain(source.save, tmp_path / "model.keras")
    loaded = load_keras(tmp_path / "model.keras")
    assert compare(model, variables, runner(loaded, model)).tolerances <= 1
    assert_same_bits(jax.tree.leaves(from_keras(loaded)[1]), jax.tree.leaves(variables))


def test_files_are_read_without_keras_and_a_cell_has_none(tmp_path, monkeypatch):
    path = saved(tmp_path, ".keras")
    with refused("model", "GRUCell", "models alone"):
        ADAPTER.store(path, to_keras(GRUCell(H), random_variables(GRUCell(H))))
    monkeypatch.setitem(sys.modules, "keras", None)
    assert from_keras(load_keras(path))[0] == GRUModel(H, 2)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refused("h5py", "pip install 'grujax[keras]'"):
        load_keras(path)


# -- files that are none -----------------------------------------------------------------------------------------------


@functools.cache
def whole(ending):
    """The bytes of a file that Keras wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{ending}"
        model = chain(Gru(name="gru"), L.Dense(2))
        plain(model.save if ending == ".keras" else model.save_weights, path)
        return path.read_bytes()


def saved(folder, ending):
    path = folder / f"model{ending}"
    path.write_bytes(whole(ending))
    return path


def with_members(change, **options):
    """The `.keras` file with `change(members: dict of bytes by name)` made."""
    with zipfile.ZipFile(io.BytesIO(whole(".keras"))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_config(change):
    """... with `change(layers: the list in config.json)` made."""

    def changed(members):
        config = json.loads(members["config.json"])
        change(config["config"]["layers"])
        members["config.json"] = json.dumps(config).encode()

    return with_members(changed)


def with_tree(change, data=None):
    """The `.weights.h5` file with `change(root: h5py.File)` made."""
    file = io.BytesIO(whole(".weights.h5") if data is None else data)
    with h5py.File(file, "r+") as root:
        change(root)
    return file.getvalue()


CELL = "layers/gru/cell/vars"


def replaced(key, make):
    """`change` for `with_tree`: `make(group, name)` in the place of what `key` names."""

    def change(root):
        group, name = key.rsplit("/", 1)
        del root[key]
        make(root[group], name)

    return change


def option(layer, key, value):
    return lambda: with_config(lambda layers: layers[layer]["config"].update({key: value}))


def of_layer(layer, **saved):
    return lambda: with_config(lambda layers: layers[layer].update(saved))


def dataset(**options):
    return lambda group, name: group.create_dataset(name, **options)


def virtual(group, name):
    layout = h5py.VirtualLayout((H, 3 * H), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "a", (H, 3 * H))
    group.create_virtual_dataset(name, layout)


def unfolding(members):
    members["model.weights.h5"] = bytes(30 << 20)


def twice():
    file = io.BytesIO(whole(".keras"))
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, of the name that is there twice
        archive.writestr("config.json", b"{}")
    return file.getvalue()


def flipped():
    """One bit of the first weight, which the zip's checksum tells."""
    data = bytearray(whole(".keras"))
    with zipfile.ZipFile(io.BytesIO(whole(".keras"))) as archive:
        tree = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(tree, "r") as root:
        data[data.index(root[f"{CELL}/0"][()].tobytes())] ^= 1
    return bytes(data)


ZIPS = {
    "empty": (lambda: b"", ["path", "a zip"]),
    "text": (lambda: b"no zip at all" * 99, ["path", "a zip"]),
    "truncated": (lambda: whole(".keras")[:-100], ["path", "a zip"]),
    "flipped bit": (flipped, ["path", "model.weights.h5", "checksum"]),
    "weights renamed": (lambda: whole(".weights.h5"), ["path", "a zip"]),
    "another zip": (lambda: with_members(lambda m: m.pop("config.json")), ["the members", "config.json"]),
    "member outside": (
        lambda: with_members(lambda m: m.update({"../evil": b"x"})),
        ["stay in their folder", "../evil"],
    ),
    "member besides": (lambda: with_members(lambda m: m.update({"evil.py": b"x"})), ["the members", "evil.py"]),
    "member twice": (twice, ["the members"]),
    "bomb": (lambda: with_members(unfolding, compression=zipfile.ZIP_DEFLATED), ["path", "31457280 bytes"]),
    "compressed": (
        lambda: with_members(lambda m: m.update({"metadata.json": b""}), compression=zipfile.ZIP_DEFLATED),
        ["model.weights.h5", "at most"],
    ),
    "large config": (
        lambda: with_members(lambda m: m.update({"config.json": b" " * (2 << 20)})),
        ["config.json", "1048576 bytes at most"],
    ),
    "no json": (lambda: with_members(lambda m: m.update({"config.json": b"{"})), ["config.json", "JSON"]),
    "deep json": (
        lambda: with_members(lambda m: m.update({"config.json": b"[" * 200_000})),
        ["config.json", "RecursionError"],
    ),
    "json list": (lambda: with_members(lambda m: m.update({"config.json": b"[]"})), ["config.json", "serialises"]),
    "no layers": (
        lambda: with_members(lambda m: m.update({"config.json": b'{"module": "keras", "class_name": "Sequential"}'})),
        ["config.json", "serialises"],
    ),
    "lambda": (of_layer(1, class_name="Lambda"), ["gru", "found Lambda"]),
    "registered": (of_layer(1, registered_name="Evil>GRU"), ["gru", "keras.layers.GRU"]),
    "other module": (of_layer(1, module="os"), ["gru", "a GRU of os"]),
    "class of a list": (of_layer(1, class_name=["GRU"]), ["gru", "['GRU']"]),
    "config of a list": (of_layer(1, config=[]), ["layer", "serialises"]),
    "function": (option(1, "activation", {"class_name": "__lambda__"}), ["gru.activation", "str", "Keras' own"]),
    "no such function": (option(1, "activation", "os.system"), ["gru.activation", "'os.system'"]),
    "units": (option(1, "units", 5), ["layers/gru/cell/vars/0", "(any, 15)", "(3, 12)"]),
    "no units": (option(1, "units", 0), ["gru.units", "a positive integer"]),
    "units of a bool": (option(1, "units", True), ["gru.units", "int", "True"]),
    "huge units": (option(1, "units", 10**30), ["layers/gru/cell/vars/0", "(3, 12)"]),
    "dropout": (option(1, "dropout", 1.5), ["gru.dropout", "a probability"]),
    "other reset": (option(1, "reset_after", False), ["layers/gru/cell/vars/2", "(12,)", "(2, 12)"]),
    "no bias": (option(1, "use_bias", False), ["layers/gru/cell/vars", "['0', '1']", "'2'"]),
    "every step": (option(1, "return_sequences", "yes"), ["gru.return_sequences", "bool", "'yes'"]),
    "quantised": (option(1, "dtype", "mixed_int4"), ["gru.dtype", "int4"]),
    "layer lost": (lambda: with_config(lambda layers: layers.pop(2)), ["layers/dense", "It would be lost"]),
    "layer missing": (lambda: with_config(lambda layers: layers.append(layers[1])), ["layers/gru_1", "none of that"]),
}
TREES = {
    "empty": (lambda: b"", ["path", "HDF5"]),
    "text": (lambda: b"no tree at all" * 99, ["path", "HDF5"]),
    "truncated": (lambda: whole(".weights.h5")[:-100], ["path", "HDF5", "truncated"]),
    "keras renamed": (lambda: whole(".keras"), ["path", "HDF5"]),
    "no layers": (lambda: with_tree(lambda root: root.pop("layers")), ["layers", "none of that name"]),
    "lstm": (lambda: with_tree(lambda root: root.move("layers/gru", "layers/lstm")), ["layers/lstm", "this layer"]),
    "lstm in disguise": (
        lambda: with_tree(replaced(f"{CELL}/0", dataset(data=np.ones((I, 4 * H), "f4")))),
        [f"{CELL}/0", "(any, 12)", "(3, 16)", "LSTM"],
    ),
    "gap": (lambda: with_tree(lambda root: root.move("layers/gru", "layers/gru_3")), ["layers/gru:", "none of that"]),
    "variable missing": (lambda: with_tree(lambda root: root.pop(f"{CELL}/1")), [f"{CELL}/1", "none of that name"]),
    "bias missing": (lambda: with_tree(lambda root: root.pop(f"{CELL}/2")), [f"{CELL}/2", "reset_after", ".keras"]),
    "variable besides": (
        lambda: with_tree(lambda root: root.create_dataset(f"{CELL}/3", data=1.0)),
        [CELL, "the variables", "'3'"],
    ),
    "group for a variable": (
        lambda: with_tree(replaced(f"{CELL}/1", lambda group, name: group.create_group(name))),
        [f"{CELL}/1", "HDF5 Dataset", "Group"],
    ),
    "shape": (
        lambda: with_tree(replaced(f"{CELL}/2", dataset(data=np.ones((3, 3 * H), "f4")))),
        [f"{CELL}/2", "(2, 12)", "(3, 12)"],
    ),
    "no axes": (lambda: with_tree(replaced(f"{CELL}/1", dataset(data=1.0))), [f"{CELL}/0", "(any, 0)"]),
    "transposed": (
        lambda: with_tree(replaced(f"{CELL}/1", dataset(data=np.ones((3 * H, H), "f4")))),
        [f"{CELL}/0", "(any, 36)"],
    ),
    "integers": (
        lambda: with_tree(replaced(f"{CELL}/1", dataset(data=np.ones((H, 3 * H), "i4")))),
        [f"{CELL}/1", "float32", "int32"],
    ),
    "objects": (
        lambda: with_tree(replaced(f"{CELL}/1", dataset(shape=(H, 3 * H), dtype=h5py.string_dtype()))),
        [f"{CELL}/1", "object"],
    ),
    "dtypes that differ": (
        lambda: with_tree(replaced("layers/dense/vars/1", dataset(data=np.ones(2, "f8")))),
        ["layers/dense/vars/0", "float32", "float64"],
    ),
    "never written": (
        lambda: with_tree(replaced(f"{CELL}/1", dataset(shape=(H, 3 * H), dtype="f4"))),
        [f"{CELL}/1", "192 bytes", "0 stored"],
    ),
    "huge and empty": (
        lambda: with_tree(replaced(f"{CELL}/0", dataset(shape=(1 << 40, 3 * H), dtype="f4", chunks=(64, 3 * H)))),
        [f"{CELL}/0", "0 stored"],
    ),
    "compressed": (
        lambda: with_tree(replaced(f"{CELL}/0", dataset(data=np.zeros((9999, 3 * H), "f4"), compression="gzip"))),
        [f"{CELL}/0", "not compressed"],
    ),
    "soft link": (
        lambda: with_tree(replaced(f"{CELL}/1", lambda g, n: g.update({n: h5py.SoftLink(f"/{CELL}/0")}))),
        [f"{CELL}/1", "SoftLink"],
    ),
    "external link": (
        lambda: with_tree(replaced(f"{CELL}/1", lambda g, n: g.update({n: h5py.ExternalLink("/absent/a.h5", "/a")}))),
        [f"{CELL}/1", "ExternalLink"],
    ),
    "linked group": (
        lambda: with_tree(replaced("layers/gru/cell", lambda g, n: g.update({n: h5py.ExternalLink("a.h5", "/")}))),
        ["layers/gru/cell", "ExternalLink"],
    ),
    "external storage": (
        lambda: with_tree(
            replaced(f"{CELL}/1", dataset(shape=(H, 3 * H), dtype="f4", external=[("/etc/passwd", 0, 4 * H * 3 * H)]))
        ),
        [f"{CELL}/1", "external or virtual"],
    ),
    "virtual": (lambda: with_tree(replaced(f"{CELL}/1", virtual)), [f"{CELL}/1", "external or virtual"]),
    "one array many times": (
        lambda: with_tree(lambda root: [root["layers"].update({f"gru_{k}": root["layers/gru"]}) for k in range(1, 99)]),
        ["path", "bytes at most"],
    ),
    "circle": (
        lambda: with_tree(replaced("layers/gru/cell/vars", lambda g, n: g.update({n: g.parent}))),
        ["layers/gru/cell/vars", "reset_after"],
    ),
}


@pytest.mark.parametrize(("ending", "name"), [(".keras", n) for n in ZIPS] + [(".weights.h5", n) for n in TREES])
def test_a_hostile_file_is_refused_in_one_line(ending, name, tmp_path):
    make, parts = (ZIPS if ending == ".keras" else TREES)[name]
    path = tmp_path / f"model{ending}"
    path.write_bytes(make())
    with refused(*parts):
        try:
            from_keras((load_keras if ending == ".keras" else load_weights)(path))
        except InputError as error:
            assert "\n" not in str(error)
            raise
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", TREES)
def test_a_hostile_tree_is_refused_in_a_keras_file_too(name, tmp_path):
    tree = TREES[name][0]()
    path = tmp_path / "model.keras"
    path.write_bytes(with_members(lambda members: members.update({"model.weights.h5": tree})))
    with refused():
        from_keras(load_keras(path))


def test_a_missing_file_is_named(tmp_path):
    for load, ending in ((load_keras, ".keras"), (load_weights, ".weights.h5")):
        with refused("path", f"no file at {tmp_path}"):
            load(tmp_path / f"none{ending}")


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_damage_anywhere_is_told_or_does_none(ending, tmp_path):
    """Bits flipped, tails cut: refused in one line, or read. Of weights alone, without a checksum, a bit may differ."""
    rng, data = np.random.default_rng(0), whole(ending)
    load, outcomes = load_keras if ending == ".keras" else load_weights, []
    path = tmp_path / f"model{ending}"
    expected = from_keras(load(saved(tmp_path, ending)))
    for k in range(120):
        damaged, at = bytearray(data), int(rng.integers(len(data)))
        if k % 2:
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged if k % 2 else damaged[:at]))
        try:
            found = from_keras(load(path))
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.append("refused")
            continue
        outcomes.append("read")
        assert k % 2 and found[0] == expected[0]
        if ending == ".keras":
            assert_same_bits(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]))
    assert outcomes.count("refused") >= 60
