"""Any two arguments of an interop function work together or are refused; none is silently ignored."""

import inspect
import logging
import os
import shutil
from importlib import import_module
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from drawn import drawn
from refusals import refused

from grujax import GRU, GRUCell, GRUModel, interop
from grujax.core import dialects
from grujax.interop import FORMATS, convert, find, load, replace, save
from grujax.interop.flax import ORBAX, from_flax, to_flax
from grujax.interop.haiku import to_haiku
from grujax.interop.onnx import from_onnx, to_onnx
from grujax.interop.stablehlo import to_stablehlo
from grujax.interop.torch import from_torch, to_torch

os.environ.setdefault("KERAS_BACKEND", "jax")
torch = pytest.importorskip("torch", reason="torch is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("keras", reason="keras is not installed")
pytest.importorskip("haiku", reason="haiku is not installed")
I, H, O = 3, 4, 2
FUNCTIONS = {name: getattr(interop, name) for name in ("convert", "find", "fold_statistics", "load", "replace", "save")}
for framework in ("equinox", "flax", "haiku", "keras", "nnx", "onnx", "stablehlo", "torch"):
    names = [name for name in (f"from_{framework}", f"to_{framework}") if name != "from_stablehlo"]
    FUNCTIONS |= {name: getattr(import_module(f"grujax.interop.{framework}"), name) for name in names}


@pytest.fixture(autouse=True)
def numerics_of_other_libraries():
    """Allows the promotions of dtypes and ranks that Keras relies on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def variables_of(model):
    x = np.ones((1, 1, I), np.float32)
    variables = drawn(model, *((np.ones((1, H), np.float32), x[0]) if isinstance(model, GRUCell) else (x,)))
    if model.initializer == "flax":
        variables["params"]["l0"]["b_hh"] = np.zeros(3 * H, np.float32)  # Flax's sum of the biases then loses nothing
    return variables


MODEL, LAYER, CELL = GRUModel(H, O), GRU(H, initializer="flax"), GRUCell(H)
BEFORE = LAYER.clone(reset_after=False)
WEIGHTS = {model: variables_of(model) for model in (MODEL, LAYER, CELL, BEFORE)}
NET = torch.nn.ModuleDict({"rnn": torch.nn.GRU(I, H), "fc": torch.nn.Linear(H, O)})
STATE, LABELS = NET.state_dict(), ["yes", "no"]


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Writes own, a model that standardises its inputs, and net, a state dict with a Linear. No format has .any."""
    monkeypatch.chdir(tmp_path)
    statistics = {f"input_{s}": jnp.full(I, 2.0, jnp.float32) for s in ("mean", "std")}
    save("own.safetensors", MODEL, WEIGHTS[MODEL] | {"statistics": statistics})
    shutil.copy("own.safetensors", "own.any")
    torch.save(STATE, "net.pt")
    shutil.copy("net.pt", "net.any")


def gives(call, **fields):
    """Asserts that `call` returns a model with these fields. layer=True: it is a GRU without a head."""
    found = call()
    model = found.model if hasattr(found, "model") else found[0]
    assert isinstance(model, GRU) == fields.pop("layer", False)
    assert {key: getattr(model, key) for key in fields} == fields
    return found


def refuses(argument, call):
    with refused(argument):
        call()


def compares(call):
    """Asserts that `call` verifies: it finds a difference if the order of the gates is wrong."""
    right = dialects.DIALECTS
    with pytest.MonkeyPatch.context() as patch:
        for of, gates in (("torch", "zrn"), ("haiku", "rzn"), ("flax", "zrn")):
            patch.setitem(right, of, right[of]._replace(gates=gates))
        refuses("the same outputs from both sides", call)


def names_of(graph):
    return [of.name for of in (*graph.graph.input, *graph.graph.output)]


def labels_of(source):
    proto = onnx.load(source) if isinstance(source, str) else source
    return any(prop.key == "labels" and "yes" in prop.value for prop in proto.metadata_props)


def of_net(*given, source="net.pt", target="out.onnx", **options):
    return lambda: convert(source, target, *given, **options)


def of_own(*given, source="own.safetensors", target="out.onnx", **options):
    return lambda: convert(source, target, *given, **options)


def true(found):
    assert found


def onnx_of(model, **options):
    return to_onnx(model, WEIGHTS[model], **options)


def flax_of(model):
    return to_flax(model, WEIGHTS[model])


PAIRS = {
    "convert": {
        "source_format target_format": lambda: true(
            of_net("torch", "numpy", source="net.any", target="out.any")()[1:3] == ("torch", "numpy")
        ),
        "source_format prefix": lambda: gives(of_net("torch", source="net.any", prefix="rnn"), layer=True),
        "source_format pooling": lambda: gives(of_net("torch", source="net.any", pooling="mean"), pooling="mean"),
        "source_format fold": lambda: true(
            of_own("grujax", source="own.any", target="out.pt", fold=True)().folded is not None
        ),
        "source_format probabilities": lambda: gives(
            of_own("grujax", source="own.any", probabilities=True), output_activation="softmax"
        ),
        "source_format labels": lambda: true(
            of_own("grujax", source="own.any", labels=LABELS)() and labels_of("out.onnx")
        ),
        "target_format prefix": lambda: gives(of_net(None, "numpy", target="out.any", prefix="rnn"), layer=True),
        "target_format pooling": lambda: gives(of_net(None, "onnx", target="out.any", pooling="max"), pooling="max"),
        "target_format fold": lambda: true(of_own(None, "torch", target="out.any", fold=True)().folded is not None),
        "target_format probabilities": lambda: refuses(
            "output_activation", of_own(None, "torch", target="out.any", fold=True, probabilities=True)
        ),
        "target_format labels": lambda: refuses("labels", of_own(None, "keras", target="out.any", labels=LABELS)),
        "prefix pooling": lambda: refuses("pooling", of_net(prefix="rnn", pooling="mean")),
        "prefix fold": lambda: true(gives(of_net(prefix="rnn", fold=True), layer=True).folded is None),
        "prefix probabilities": lambda: refuses("probabilities", of_net(prefix="rnn", probabilities=True)),
        "prefix labels": lambda: refuses("labels", of_net(prefix="rnn", labels=LABELS)),
        "pooling fold": lambda: true(gives(of_net(pooling="mean", fold=True), pooling="mean").folded is None),
        "pooling probabilities": lambda: gives(
            of_net(pooling="mean", probabilities=True), pooling="mean", output_activation="softmax"
        ),
        "pooling labels": lambda: true(
            gives(of_net(pooling="mean", labels=LABELS), pooling="mean") and labels_of("out.onnx")
        ),
        "fold probabilities": lambda: true(
            gives(of_own(target="out.keras", fold=True, probabilities=True), output_activation="softmax").folded
        ),
        "fold labels": lambda: true(of_own(fold=True, labels=LABELS)().folded is None and labels_of("out.onnx")),
        "probabilities labels": lambda: true(
            gives(of_own(probabilities=True, labels=LABELS), output_activation="softmax") and labels_of("out.onnx")
        ),
    },
    "load": {
        "format prefix": lambda: gives(lambda: load("net.any", "torch", prefix="rnn"), layer=True),
        "format pooling": lambda: gives(lambda: load("net.any", "torch", pooling="max"), pooling="max"),
        "format verify": lambda: compares(lambda: load("net.any", "torch", verify=True)),
        "prefix pooling": lambda: refuses("pooling", lambda: load("net.pt", prefix="rnn", pooling="last")),
        "prefix verify": lambda: compares(lambda: load("net.pt", prefix="rnn", verify=True)),
        "pooling verify": lambda: gives(lambda: load("net.pt", pooling="mean", verify=True), pooling="mean"),
    },
    "save": {
        "format verify": lambda: compares(lambda: save("out.any", LAYER, WEIGHTS[LAYER], "torch", verify=True)),
    },
    "from_flax": {
        "variables verify": lambda: compares(lambda: from_flax(*flax_of(LAYER), verify=True)),
    },
    "to_haiku": {
        "name verify": lambda: compares(lambda: to_haiku(BEFORE, WEIGHTS[BEFORE], "net/gru", verify=True)),
    },
    "from_onnx": {
        "prefix verify": lambda: gives(lambda: from_onnx(onnx_of(MODEL), prefix="GRU_3", verify=True), layer=True),
    },
    "to_onnx": {
        "lengths state": lambda: true(names_of(onnx_of(LAYER, lengths=False, state=False)) == ["x", "output"]),
        "lengths labels": lambda: true(
            names_of(found := onnx_of(MODEL, lengths=False, labels=LABELS)) == ["x", "h0", "y", "h_last"]
            and labels_of(found)
        ),
        "lengths verify": lambda: true(
            names_of(onnx_of(CELL, lengths=False, verify=True)) == names_of(onnx_of(CELL)) == ["x", "h0", "h"]
        ),
        "state labels": lambda: true(
            names_of(found := onnx_of(MODEL, state=False, labels=LABELS)) == ["x", "lengths", "y"] and labels_of(found)
        ),
        "state verify": lambda: true(names_of(onnx_of(CELL, state=False, verify=True)) == ["x", "h"]),
        "labels verify": lambda: true(labels_of(onnx_of(MODEL, labels=LABELS, verify=True))),
    },
    "to_stablehlo": {
        "lengths state": lambda: true(axes_of(LAYER, lengths=False, state=False) == [3]),
    },
    "from_torch": {
        "pooling prefix": lambda: refuses("pooling", lambda: from_torch(STATE, pooling="mean", prefix="rnn")),
        "pooling verify": lambda: gives(lambda: from_torch(STATE, pooling=None, verify=True), pooling=None),
        "prefix verify": lambda: compares(lambda: from_torch(NET, prefix="rnn", verify=True)),
    },
    "to_torch": {
        "gru head": lambda: true({*to_torch(MODEL, WEIGHTS[MODEL], "rnn", "fc")} == {*STATE}),
        "gru verify": lambda: compares(lambda: to_torch(MODEL, WEIGHTS[MODEL], gru="rnn", verify=True)),
        "head verify": lambda: compares(lambda: to_torch(MODEL, WEIGHTS[MODEL], head="fc", verify=True)),
    },
}


def axes_of(model, **options):
    program = jax.export.deserialize(bytearray(to_stablehlo(model, WEIGHTS[model], **options)))
    return [len(a.shape) for a in program.in_avals]


def pairs_of(function):
    optional = [name for name, of in inspect.signature(function).parameters.items() if of.default is not of.empty]
    return {" ".join(pair) for pair in combinations(optional, 2)}


def test_the_table_has_every_pair_of_arguments():
    assert {name: pairs for name in FUNCTIONS if (pairs := pairs_of(FUNCTIONS[name]))} == {
        name: {*of} for name, of in PAIRS.items()
    }


@pytest.mark.parametrize("case", [f"{name}: {pair}" for name, of in PAIRS.items() for pair in of])
def test_two_arguments_act_together_or_are_refused(case):
    name, pair = case.split(": ")
    PAIRS[name][pair]()


def tree(path):
    ORBAX.write(Path(path), flax_of(LAYER))
    return path


SOURCES = {
    "find, format of an object": lambda: refuses("format", lambda: find(NET, "onnx")),
    "replace, format of an object": lambda: refuses("format", lambda: replace(NET, {}, "out.pt", "onnx")),
    "find, format of a folder": lambda: true(find(tree("tree"), "flax") == find("tree")),
    "find, another format of a folder": lambda: refuses("a file", lambda: find(tree("tree"), "torch")),
    "load, format of a folder": lambda: gives(lambda: load(tree("tree"), "flax"), layer=True),
    "load, another format of a folder": lambda: refuses("a file", lambda: load(tree("tree"), "torch", prefix="")),
    "from_torch, pooling of a GRU": lambda: refuses("pooling", lambda: from_torch(NET["rnn"], pooling="mean")),
    "from_torch, pooling of its state": lambda: refuses(
        "pooling", lambda: from_torch(NET["rnn"].state_dict(), pooling="mean")
    ),
    "from_torch, pooling of a module without a head": lambda: refuses(
        "pooling", lambda: from_torch(torch.nn.Sequential(NET["rnn"]), pooling=None)
    ),
    "from_torch, a pooling that needs weights": lambda: refuses(
        "pooling", lambda: from_torch(STATE, pooling="attention")
    ),
    "from_torch, the empty prefix": lambda: refuses("prefix", lambda: from_torch(NET, prefix="")),
    "to_torch, gru of a layer": lambda: refuses("gru", lambda: to_torch(LAYER, WEIGHTS[LAYER], gru="rnn")),
    "to_torch, head of a layer": lambda: refuses("head", lambda: to_torch(LAYER, WEIGHTS[LAYER], head="fc")),
    "to_stablehlo, state of a cell": lambda: true(axes_of(CELL, state=False) == [2] and axes_of(CELL) == [2, 2]),
    "from_flax, variables of a tree": lambda: refuses(
        "module", lambda: from_flax(flax_of(LAYER)[1], flax_of(LAYER)[1])
    ),
}


@pytest.mark.parametrize("case", SOURCES)
def test_an_argument_that_a_source_has_no_use_for_is_refused(case):
    SOURCES[case]()


FILES = {"torch": "m.pt", "safetensors": "m.safetensors", "numpy": "m.npz", "keras-weights": "m.weights.h5"}
FILES |= {"grujax": "own.safetensors", "keras": "m.keras", "onnx": "m.onnx", "flax": "m.msgpack"}


READ = [name for name in FORMATS if name != "stablehlo"]


@pytest.mark.parametrize("name", [name for name in READ if not FORMATS[name].assumes])
def test_load_refuses_a_pooling_by_name_where_the_format_tells_it(name):
    model = LAYER if name == "flax" else MODEL
    save(FILES[name], model, WEIGHTS[model], name)
    refuses(f"{name} files contain it", lambda: load(FILES[name], name, pooling="mean"))


@pytest.mark.parametrize("name", [name for name in READ if FORMATS[name].assumes])
def test_load_takes_a_pooling_where_the_format_does_not_tell_it(name, caplog):
    """verify=True runs the other framework with the given pooling."""
    model = LAYER if name == "flax" else MODEL
    save(FILES[name], model, WEIGHTS[model], name)
    for pooling in ("last", "mean", "max", None):
        gives(lambda: load(FILES[name], name, pooling=pooling, verify=True), pooling=pooling)  # noqa: B023
    refuses("pooling", lambda: load(FILES[name], name, pooling="attention"))
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "grujax.interop"):
        gives(lambda: load(FILES[name], name), pooling="last")
    assert "read as: Linear on the last state" in caplog.text


@pytest.mark.parametrize("pooling", ["last", "mean", "max", None])
def test_a_file_of_weights_that_tells_its_pooling_takes_no_other(pooling, caplog):
    model = MODEL.clone(pooling=pooling)
    save("m.weights.h5", model, WEIGHTS[MODEL])
    with caplog.at_level(logging.WARNING, "grujax.interop"):
        found = convert("m.weights.h5", "out.onnx")
    assert found.model == model
    assert (found.read_as is not None) == bool(caplog.records) == (pooling == "last")
    if pooling != "last":
        refuses("pooling", lambda: load("m.weights.h5", pooling="last"))


def test_probabilities_are_of_classifiers():
    sigmoid = MODEL.clone(output_activation="sigmoid")
    save("s.safetensors", sigmoid, WEIGHTS[MODEL])
    refuses("output_activation", lambda: convert("s.safetensors", "out.onnx", probabilities=True))
    statistics = {f"output_{s}": np.ones(O, np.float32) for s in ("mean", "std")}
    save("r.safetensors", MODEL, WEIGHTS[MODEL] | {"statistics": statistics})
    refuses("regression", lambda: convert("r.safetensors", "out.onnx", probabilities=True))


OPTIONS = {"--from": ["torch"], "--to": ["onnx"], "--prefix": ["rnn"], "--pooling": ["mean"], "--overwrite": []}


APART = ("--prefix", "--pooling")


def converted(pair, capsys):
    source, target = ("net.any" if "--from" in pair else "net.pt"), "out.any" if "--to" in pair else "out.onnx"
    if "--overwrite" in pair:
        Path(target).touch()
    options = [word for key in pair for word in (key, *OPTIONS[key])]
    return target, *run(capsys, "convert", source, target, *options)


def test_two_options_of_the_command_that_exclude_each_other_are_refused(capsys):
    _, code, _, err = converted(APART, capsys)
    assert code == 2 and "pooling" in err


@pytest.mark.parametrize("pair", [pair for pair in combinations(OPTIONS, 2) if pair != APART], ids=" ".join)
def test_two_options_of_the_command_act_together(pair, capsys):
    target, code, out, err = converted(pair, capsys)
    assert (code, err) == (0, "")
    model, _ = load(target, "onnx")
    assert isinstance(model, GRU) == ("--prefix" in pair)
    assert "--prefix" in pair or model.pooling == ("mean" if "--pooling" in pair else "last")
    assert ("read as: Linear on the last state" in out) == (not {"--prefix", "--pooling"} & {*pair})


def test_the_command_for_finding_takes_the_folder_of_a_run_as_the_one_for_converting_does(capsys):
    Path("run").mkdir()
    shutil.copy("own.safetensors", "run/model.safetensors")
    code, _, err = run(capsys, "find", "run")
    assert code == 2 and "grujax.load reads it" in err
