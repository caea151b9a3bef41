"""Finds the GRUs of larger models, takes them out, compares them with the original, tunes and puts them back."""

import io
import json
import os
import warnings
import zipfile

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import applied
from drawn import drawn
from flax.serialization import msgpack_restore, to_bytes
from refusals import refused

from grujax import GRU, GRUCell, InputError
from grujax.interop import find, load, replace
from grujax.interop.flax import from_flax
from grujax.testing import assert_close

os.environ.setdefault("KERAS_BACKEND", "jax")
torch = pytest.importorskip("torch", reason="torch is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
I, H = 3, 4


@pytest.fixture(autouse=True)
def numerics_of_other_libraries():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Speech(torch.nn.Module):
    """A convolution, two different GRUs, a GRU cell and an LSTM; a second output bypasses all but the convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.front = torch.nn.Conv1d(I, H, 3, padding=1)
        self.encoder = torch.nn.ModuleDict({"rnn": torch.nn.GRU(H, H, 2, bidirectional=True, batch_first=True)})
        self.between, self.norm = torch.nn.LSTM(2 * H, 5, batch_first=True), torch.nn.LayerNorm(5)
        self.decoder = torch.nn.GRU(5, 6, bias=False, batch_first=True)
        self.cell = torch.nn.GRUCell(6, 7)

    def forward(self, x):
        front = self.front(x.swapaxes(1, 2)).swapaxes(1, 2)
        y = self.norm(self.between(self.encoder["rnn"](front)[0])[0])
        return self.cell(self.decoder(y)[0][:, -1]), front.mean(1)


NAMES = {"encoder.rnn": (H, H, 2, True), "decoder": (5, 6, 1, False), "cell": (6, 7, 1, False)}


def sizes(grus):
    return {gru.name: (gru.input_size, gru.hidden_size, gru.num_layers, gru.bidirectional) for gru in grus}


def moved(variables):
    """Changes every weight, as training does."""
    return jax.tree.map(lambda a: a + jnp.asarray(0.25, a.dtype), variables)


def torch_file(kind, module, folder):
    path = folder / f"speech.{kind}"
    state = {f"model.{key}": a for key, a in module.state_dict().items()}
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path, metadata={"format": "pt", "note": "kept"})
    elif kind == "npz":
        np.savez(path, **{key: a.numpy() for key, a in state.items()})
    else:
        torch.save({"epoch": 7, "state_dict": state, "optimizer": {"lr": [1, 2]}}, path)
    return path


@pytest.mark.parametrize("kind", ["pt", "ckpt", "safetensors", "npz"])
def test_the_grus_of_a_file_of_torch_are_listed_taken_tuned_and_put_back(kind, tmp_path):
    module = Speech()
    path = torch_file(kind, module, tmp_path)
    grus = find(path)
    assert sizes(grus) == {f"model.{name}": of for name, of in NAMES.items()}
    assert all(gru.reset_after and gru.where == "state dict" for gru in grus)
    with refused("find lists the GRUs", path.name):
        load(path)
    with refused("prefix", "model.decoder", "'decoder'"):
        load(path, prefix="decoder")
    with refused("prefix takes out a GRU, which has no pooling", "'mean'"):
        load(path, prefix="model.decoder", pooling="mean")
    taken = {gru.name: load(path, prefix=gru.name) for gru in grus}
    assert taken["model.decoder"][0] == GRU(6, bias=False) and taken["model.cell"][0] == GRUCell(7)
    x = torch.randn(2, 5, H)
    model, variables = taken["model.encoder.rnn"]
    assert_close(applied(model, variables, x.numpy())[0], module.encoder["rnn"](x)[0].detach().numpy())
    tuned = {name: (model, moved(variables)) for name, (model, variables) in taken.items() if name != "model.decoder"}
    replace(path, tuned, tmp_path / f"tuned.{kind}")
    for name, (_, variables) in taken.items():
        found = load(tmp_path / f"tuned.{kind}", prefix=name)[1]
        expected = tuned[name][1] if name in tuned else variables
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    before, after = (raw(tmp_path / f"{name}.{kind}") for name in ("speech", "tuned"))
    assert list(before) == list(after)
    changed = {key for key, a in before.items() if not np.array_equal(a, after[key])}
    assert changed == {key for key in before if "encoder" in key or "cell" in key}
    replace(path, {}, tmp_path / f"same.{kind}")
    assert raw(tmp_path / f"same.{kind}").keys() == before.keys()
    if kind in ("pt", "ckpt"):
        again = torch.load(tmp_path / f"tuned.{kind}", weights_only=True)
        assert (again["epoch"], again["optimizer"]) == (7, {"lr": [1, 2]})
    if kind == "safetensors":
        from safetensors import safe_open

        with safe_open(tmp_path / "tuned.safetensors", "np") as file:
            assert file.metadata() == {"format": "pt", "note": "kept"}


def raw(path):
    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    return {key: a.numpy() for key, a in torch.load(path, weights_only=True)["state_dict"].items()}


def test_weights_of_other_shapes_options_or_names_are_not_put_back(tmp_path):
    path = torch_file("pt", Speech(), tmp_path)
    model, variables = load(path, prefix="model.decoder")
    wrong = {
        "another name": ({"decoder": (model, variables)}, ["prefix", "'decoder'"]),
        "other units": ({"model.cell": (model, variables)}, ["model.cell", "a model like"]),
        "other options": ({"model.decoder": (model.clone(reset_after=False), variables)}, ["model.decoder"]),
        "other inputs": (
            {"model.decoder": (model, jax.tree.map(lambda a: a[:3] if a.shape[0] == 5 else a, variables))},
            ["model.decoder.weight_ih_l0", "(18, 5)", "(18, 3)"],
        ),
    }
    for tuned, parts in wrong.values():
        with refused(*parts):
            replace(path, tuned, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_a_live_module_of_torch(tmp_path):
    module = Speech()
    assert sizes(find(module)) == NAMES
    assert {gru.where for gru in find(module)} == {"torch.nn.GRU", "torch.nn.GRUCell"}
    from grujax.interop.torch import from_torch

    model, variables = from_torch(module, prefix="decoder")
    assert model == GRU(6, bias=False)
    jax.tree.map(np.testing.assert_array_equal, variables, from_torch(module.decoder)[1])
    with refused("front", "nn.Conv1d", "find lists the GRUs"):
        from_torch(module)
    before = {key: a.clone() for key, a in module.state_dict().items()}
    replace(module, {"decoder": (model, moved(variables))}, tmp_path / "tuned.pt")
    again = torch.load(tmp_path / "tuned.pt", weights_only=True)
    for key, a in before.items():
        assert torch.equal(again[key], a + 0.25 if key.startswith("decoder") else a), key
        assert torch.equal(module.state_dict()[key], a), key


# -- ONNX --------------------------------------------------------------------------------------------------------------


def speech_graph(inside_if=False):
    """A convolution, two GRUs, a skip, two outputs, by torch's exporter. inside_if: puts the second GRU in an `If`."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.front = torch.nn.Conv1d(I, I, 3, padding=1)
            self.first = torch.nn.GRU(I, H, bidirectional=True, batch_first=True)
            self.second = torch.nn.GRU(2 * H, I, batch_first=True)

        def forward(self, x):
            front = self.front(x.swapaxes(1, 2)).swapaxes(1, 2)
            hs, _ = self.first(front)
            y, h = self.second(hs)
            return y + front, h

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "b", 1: "t"}}
        torch.onnx.export(
            Net().eval(), (torch.randn(2, 5, I),), file, dynamo=False, input_names=["x"], dynamic_axes=axes
        )
    proto = onnx.load_model_from_string(file.getvalue())
    if inside_if:
        node = [n for n in proto.graph.node if n.op_type == "GRU"][1]
        info, names = onnx.helper.make_tensor_value_info, list(node.output)
        bodies = {}
        for branch in ("then_branch", "else_branch"):
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.output[:] = [f"{branch}_{k}" for k in range(2)]
            copy.name = f"gru_{branch}"
            outs = [info(out, onnx.TensorProto.FLOAT, None) for out in copy.output]
            bodies[branch] = onnx.helper.make_graph([copy], branch, [], outs)
        made = onnx.helper.make_node("If", ["yes"], names, name="choose", **bodies)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
        at = list(proto.graph.node).index(node)
        nodes = [*proto.graph.node[:at], made, *proto.graph.node[at + 1 :]]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
    return proto


def run(proto, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize("inside_if", [False, True])
def test_the_gru_nodes_of_a_graph_are_listed_proved_tuned_and_put_back(inside_if, tmp_path):
    proto, path = speech_graph(inside_if), tmp_path / "speech.onnx"
    path.write_bytes(proto.SerializeToString())
    grus = find(path)
    second = ["gru_then_branch", "gru_else_branch"] if inside_if else ["/second/GRU"]
    assert sizes(grus) == {"/first/GRU": (I, H, 1, True)} | dict.fromkeys(second, (2 * H, I, 1, False))
    assert sizes(find(proto)) == sizes(grus)
    with refused("find"):
        load(path)
    taken = {name: load(path, prefix=name) for name in sizes(grus)}
    assert taken["/first/GRU"][0] == GRU(H, bidirectional=True)
    x = np.random.default_rng(0).normal(size=(2, 6, I)).astype("f")
    # The rest of the graph, computed here: with the GRUs taken out, it must give the same outputs.
    conv = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    front = torch.nn.functional.conv1d(
        torch.tensor(x).swapaxes(1, 2), *(torch.tensor(conv[f"front.{k}"]) for k in ("weight", "bias")), padding=1
    )

    def by_hand(taken):
        a = front.swapaxes(1, 2).numpy()
        hs, _ = applied(*taken["/first/GRU"], a)
        y, h = applied(*taken[second[0]], hs)
        return np.asarray(y) + a, np.asarray(h)

    for found, expected in zip(by_hand(taken), run(proto, x), strict=True):
        assert_close(found, expected)
    tuned = {name: (model, moved(variables)) for name, (model, variables) in taken.items()}
    replace(path, tuned, tmp_path / "tuned.onnx")
    again = onnx.load(tmp_path / "tuned.onnx")
    for found, expected in zip(by_hand(tuned), run(again, x), strict=True):
        assert_close(found, expected)
    kept = [t.SerializeToString() for t in again.graph.initializer if t.name.startswith("front")]
    assert kept == [t.SerializeToString() for t in proto.graph.initializer if t.name.startswith("front")]
    replace(path, {}, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == proto


@pytest.mark.parametrize("name", ["out.onnx", "out.npz", "out.keras", "out.weights.h5"])
def test_a_file_is_not_replaced_under_the_name_of_another_format(name, tmp_path):
    path = torch_file("pt", Speech(), tmp_path)
    for source in (path, Speech(), Speech().state_dict()):
        with refused("path", "'.pt', '.pth'", name):
            replace(source, {}, tmp_path / name)
    replace(path, {}, tmp_path / "out.ckpt")
    replace(path, {}, tmp_path / "out")
    assert not (tmp_path / name).exists() and len(find(tmp_path / "out", "torch")) == 3


def test_what_stands_beside_a_gru_is_not_judged():
    state = {f"rnn.{key}": a for key, a in torch.nn.GRU(I, H).state_dict().items()}
    state |= {"sparse": torch.ones(3, 3).to_sparse(), "meta": torch.ones(2, device="meta"), "n": torch.arange(3)}
    conv = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv1d(2, 2, 3))
    state |= {f"conv.{key}": a for key, a in conv.state_dict().items()}
    state |= {"attention.weight_v": torch.ones(2), "other.weight_hh_l0_orig": torch.ones(12, 4)}
    assert sizes(find(state)) == {"rnn": (I, H, 1, False)}


def test_weights_that_two_nodes_share_are_put_back_for_one(tmp_path):
    from onnx_graphs import X, graph, gru, weights

    proto = graph([gru(), gru("x W R B", "Y2 Y_h2")], X, {"Y": 4, "Y2": 4}, weights())
    (tmp_path / "two.onnx").write_bytes(proto.SerializeToString())
    first, second = (gru.name for gru in find(proto))
    model, variables = load(tmp_path / "two.onnx", prefix=second)
    replace(tmp_path / "two.onnx", {second: (model, moved(variables))}, tmp_path / "out.onnx")
    for name, expected in ((first, variables), (second, moved(variables))):
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "out.onnx", prefix=name)[1], expected)


def test_a_file_is_replaced_in_its_own_place_or_left_whole(tmp_path, monkeypatch):
    path = tmp_path / "speech.onnx"
    path.write_bytes(speech_graph().SerializeToString())
    model, variables = load(path, prefix="/second/GRU")
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            replace(path, {"/second/GRU": (model, moved(variables))}, path)
    assert path.read_bytes() == before
    replace(path, {"/second/GRU": (model, moved(variables))}, path)
    jax.tree.map(np.testing.assert_array_equal, load(path, prefix="/second/GRU")[1], moved(variables))


# -- trees of JAX ------------------------------------------------------------------------------------------------------


def params_of(module, n_inputs):
    return jax.tree.map(np.asarray, drawn(module, np.ones((1, 2, n_inputs), np.float32))["params"])


def tree_of_net():
    """The tree of a module with layers as attributes, among them a cell without an RNN."""

    def rnn(units, cell=linen.GRUCell):
        return linen.RNN(cell(units))

    both = linen.Bidirectional(rnn(5), rnn(5))
    tree = {
        "both": params_of(both, H),
        "lstm": params_of(rnn(6, linen.OptimizedLSTMCell), 10),
        "dense": params_of(linen.Dense(H), I),
    }
    return {"params": tree | {"mine": params_of(rnn(7), 6)["cell"]}}


@pytest.mark.parametrize("kind", ["tree", "msgpack"])
def test_the_grus_of_a_tree_of_flax(kind, tmp_path):
    variables = tree_of_net()
    moments = {"count": np.int32(3), "mu": variables["params"]}  # Adam's moments are not GRUs
    whole = {"step": 3, "params": variables["params"], "opt_state": {"0": moments}}
    path = tmp_path / "net.msgpack"
    path.write_bytes(to_bytes(whole))
    grus = find(whole if kind == "tree" else path)
    assert sizes(grus) == {"params/both": (H, 5, 1, True), "params/mine": (6, 7, 1, False)}
    taken = {gru.name: gru.take() for gru in grus}
    assert taken["params/both"][0] == GRU(5, bidirectional=True)
    expected = from_flax({"params": variables["params"]["both"]})[1]
    jax.tree.map(np.testing.assert_array_equal, taken["params/both"][1], expected)
    with refused("found also", "net.msgpack"):
        load(path)
    model, weights = taken["params/both"]
    weights = jax.tree.map(lambda a: a * 2, weights)  # the r and z parts of b_hh, which Flax lacks, stay 0
    replace(path, {"params/both": (model, weights)}, tmp_path / "tuned.msgpack")
    again = msgpack_restore((tmp_path / "tuned.msgpack").read_bytes())
    both = again["params"].pop("both")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), both, variables["params"]["both"])
    expected = {**whole, "params": {key: a for key, a in variables["params"].items() if key != "both"}}
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_a_tree_in_memory_is_not_written():
    assert find(tree_of_net())
    with refused("source", "can be written again"):
        replace(tree_of_net(), {}, "out")


def test_a_tree_one_level_up_is_read_and_layers_with_something_between_stay_apart():
    cell = linen.GRUCell(H)
    variables = drawn(cell, np.ones((1, H), np.float32), np.ones((1, I), np.float32))
    for tree in ({"GRUCell_0": variables["params"]}, {"params": {"net": {"GRUCell_0": variables["params"]}}}):
        assert from_flax(tree)[0] == GRUCell(H)
    net = linen.Sequential((linen.RNN(linen.GRUCell(H)), linen.Dense(5), linen.RNN(linen.GRUCell(6))))
    tree = drawn(net, np.ones((1, 2, I), np.float32))
    assert sizes(find(tree)) == {"params/layers_0": (I, H, 1, False), "params/layers_2": (5, 6, 1, False)}


def test_other_frameworks_of_jax():
    from flax import nnx

    module = nnx.Dict(a=nnx.Linear(I, H, rngs=nnx.Rngs(0)), b=nnx.RNN(nnx.GRUCell(H, 5, rngs=nnx.Rngs(0))))
    assert sizes(find(module)) == {"b": (H, 5, 1, False)}
    haiku = {"net/~/gru": {"w_i": np.ones((I, 12), "f"), "w_h": np.ones((4, 12), "f"), "b": np.ones(12, "f")}}
    (gru,) = find(haiku | {"net/linear": {"w": np.ones((4, 2), "f")}})
    assert (gru.name, gru.reset_after, gru.where) == ("net/~/gru", False, "hk.GRU")
    assert gru.take()[0] == GRU(4, reset_after=False, update="take")


def test_a_folder_of_orbax_is_read(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax is not installed")
    variables = tree_of_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save((tmp_path / "net").absolute(), variables)
            checkpointer.save((tmp_path / "both").absolute(), {"params": variables["params"]["both"]})
        assert sizes(find(tmp_path / "net"))["params/both"] == (H, 5, 1, True)
        model, found = load(tmp_path / "both")
    jax.tree.map(np.testing.assert_array_equal, found, from_flax(variables["params"]["both"])[1])
    assert model == GRU(5, bidirectional=True)
    for step in ("9", "10"):  # the folders of a CheckpointManager
        (tmp_path / "run" / step).mkdir(parents=True)
    with refused("path", f"Name a step of it, {tmp_path / 'run' / '10'}"):
        find(tmp_path / "run")


def test_a_folder_of_orbax_is_put_back(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax is not installed")
    variables = tree_of_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save((tmp_path / "net").absolute(), variables)
        model, weights = load(tmp_path / "net", prefix="params/both")
        tuned = jax.tree.map(lambda a: 2 * a, weights)  # the r and z parts of b_hh, which Flax lacks, stay 0
        replace(tmp_path / "net", {"params/both": (model, tuned)}, tmp_path / "tuned")
        with ocp.PyTreeCheckpointer() as checkpointer:
            again = checkpointer.restore((tmp_path / "tuned").absolute())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["net", "tuned"]
    both = again["params"].pop("both")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), both, variables["params"]["both"])
    expected = {key: a for key, a in variables["params"].items() if key != "both"}
    jax.tree.map(np.testing.assert_array_equal, again["params"], expected)
    with refused("path", "a folder that does not exist yet"):
        replace(tmp_path / "net", {}, tmp_path / "tuned")


def test_shards_are_put_back_as_one_file(tmp_path):
    from safetensors.torch import load_file, save_file

    state = {f"rnn.{key}": a for key, a in torch.nn.GRU(I, H).state_dict().items()} | {"more": torch.ones(2)}
    names = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    parts = [{key: a for key, a in state.items() if ("weight" in key) == first} for first in (True, False)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / name, metadata={"format": "pt"})
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    model, variables = load(tmp_path / names[0], prefix="rnn")
    with refused("path", "the name of a whole file"):
        replace(tmp_path / names[0], {"rnn": (model, moved(variables))}, tmp_path / names[1])
    replace(tmp_path / names[0], {"rnn": (model, moved(variables))}, tmp_path / "tuned.safetensors")
    again = load_file(tmp_path / "tuned.safetensors")
    assert again.keys() == state.keys()
    for key, a in state.items():
        assert torch.equal(again[key], a if key == "more" else a + 0.25), key


# -- Keras -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_the_grus_of_a_file_of_keras(ending, tmp_path):
    from keras_models import B, L, drawn, keras, plain, run

    x = keras.Input((None, I))
    inner = plain(
        keras.Sequential, [keras.Input((None, 5)), L.GRU(6, return_sequences=True, name="deep")], name="inner"
    )
    y = plain(L.Conv1D(5, 3, padding="same"), x)
    both = plain(L.Bidirectional(L.GRU(H, return_sequences=True, recurrent_activation="hard_sigmoid"), name="both"), y)
    outputs = [plain(L.LSTM(3), both)] if ending == ".h5" else [plain(L.LSTM(3), both), plain(inner, y)]
    model = drawn(plain(keras.Model, x, outputs))
    path = tmp_path / f"net{ending}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain(model.save, path)
    expected = {"both": (5, H, 1, True)} | ({} if ending == ".h5" else {"deep": (5, 6, 1, False)})
    assert sizes(find(path)) == expected
    assert sizes(find(model)) == expected
    taken = {name: load(path, prefix=name) for name in expected}
    assert taken["both"][0] == GRU(H, bidirectional=True, gate_activation="hard_sigmoid")
    a = np.random.default_rng(0).normal(size=(B, 4, 5)).astype("f")
    layer = model.get_layer("both")
    assert_close(applied(*taken["both"], a)[0], run(layer, a)[0])
    tuned = {name: (of, moved(variables)) for name, (of, variables) in taken.items()}
    untuned = {name: variables for name, (_, variables) in taken.items()}
    replace(path, tuned, tmp_path / f"tuned{ending}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = plain(keras.saving.load_model, tmp_path / f"tuned{ending}")
    found = run(there.get_layer("both"), a)[0]
    assert_close(applied(*tuned["both"], a)[0], found)
    for one, other in zip(there.layers, model.layers, strict=True):
        if one.name not in ("both", "inner"):
            for v, w in zip(one.weights, other.weights, strict=True):
                np.testing.assert_array_equal(np.asarray(v.value), np.asarray(w.value))
    replace(model, tuned, tmp_path / "live.keras")  # the live model is not changed
    for name, (_, expected) in tuned.items():
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "live.keras", prefix=name)[1], expected)
    jax.tree.map(np.testing.assert_array_equal, {gru.name: gru.take()[1] for gru in find(model)}, untuned)
    if ending == ".keras":
        with zipfile.ZipFile(path) as before, zipfile.ZipFile(tmp_path / "tuned.keras") as after:
            assert before.read("config.json") == after.read("config.json")
            jax.tree.map(
                np.testing.assert_array_equal, load(tmp_path / "tuned.keras", prefix="deep")[1], tuned["deep"][1]
            )
    with pytest.raises(InputError) as error:
        load(path)
    assert "find lists" in str(error.value)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_folders_and_sources_that_are_something_else(tmp_path):
    (tmp_path / "tf").mkdir()
    (tmp_path / "tf" / "saved_model.pb").write_bytes(b"x")
    for call in (find, load):
        with refused("a SavedModel of TensorFlow", "tf2onnx"):
            call(tmp_path / "tf")
        with refused("path"):
            call(tmp_path / "absent.pt")
    with refused("source", "a path, a module", "int"):
        find(3)
    with refused("path", "a file of another framework"):
        from grujax.interop import save

        model = GRU(H)
        save(tmp_path / "m.safetensors", model, drawn(model, np.ones((1, 2, I), np.float32)))
        find(tmp_path / "m.safetensors")
    assert find({"a": np.ones(3)}) == [] and find(torch.nn.LSTM(3, 4)) == []


# -- other kinds of sources --------------------------------------------------------------------------------------------


def checkpoint():
    state = {f"net.{key}": a for key, a in torch.nn.GRU(I, H).state_dict().items()}
    return {"state_dict": state, "epoch": 3, "optimizer": {"lr": [1, 2]}}


def test_a_checkpoint_in_memory_is_written_whole_and_stays_as_it_is(tmp_path):
    source = checkpoint()
    (gru,) = find(source)
    model, variables = gru.take()
    replace(source, {"net": (model, moved(variables))}, tmp_path / "tuned.pt")
    found = torch.load(tmp_path / "tuned.pt", weights_only=True)
    assert (found["epoch"], found["optimizer"]) == (3, {"lr": [1, 2]})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "tuned.pt")[1], moved(variables))
    jax.tree.map(np.testing.assert_array_equal, find(source)[0].take()[1], variables)


def test_arrays_of_numpy_are_written_as_numpy_s_file(tmp_path):
    source = {key: a.numpy() for key, a in torch.nn.GRU(I, H).state_dict().items()} | {"note": np.array("kept")}
    model, variables = find(source)[0].take()
    with refused("path", ".npz"):
        replace(source, {}, tmp_path / "tuned.pt")
    replace(source, {"": (model, moved(variables))}, tmp_path / "tuned.npz")
    with np.load(tmp_path / "tuned.npz") as file:
        assert str(file["note"]) == "kept"
    jax.tree.map(np.testing.assert_array_equal, find(tmp_path / "tuned.npz")[0].take()[1], moved(variables))
    with refused("state_dict", "an array"):
        replace({"state_dict": source, "model": 3}, {}, tmp_path / "whole.npz")
    with refused("bias_hh_l0", "bfloat16"):
        replace(source | {"bias_hh_l0": np.ones(3 * H, jnp.bfloat16)}, {}, tmp_path / "whole.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuned.npz"]


def test_several_state_dicts_under_names_of_their_own_are_gone_through(tmp_path):
    torch.save(
        {"generator": torch.nn.GRU(I, H).state_dict(), "critic": torch.nn.GRU(2, 5).state_dict()}, tmp_path / "m.pt"
    )
    assert sizes(find(tmp_path / "m.pt")) == {"generator": (I, H, 1, False), "critic": (2, 5, 1, False)}
    assert load(tmp_path / "m.pt", prefix="critic")[0] == GRU(5)
    with refused("generator", "found OrderedDict", "Pass the state dict itself"):
        load(tmp_path / "m.pt")


def test_live_modules_are_listed_whatever_computes_their_weights(tmp_path):
    module = torch.nn.ModuleDict({"gru": torch.nn.GRU(I, H), "head": torch.nn.LazyLinear(2)})
    torch.nn.utils.parametrizations.orthogonal(module["gru"], "weight_hh_l0")
    (gru,) = find(module)
    model, variables = gru.take()
    np.testing.assert_array_equal(variables["params"]["l0"]["w_hh"], module["gru"].weight_hh_l0.detach().numpy().T)
    with refused("gru", "a module that computes them"):
        replace(module, {"gru": (model, variables)}, tmp_path / "m.pt")
    with torch.device("meta"):
        assert not find(torch.nn.GRU(I, H))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        program = torch.jit.script(torch.nn.Sequential(torch.nn.GRU(I, H)))
    with refused("source", "a TorchScript program", "state_dict()"):
        find(program)


def test_lists_in_a_checkpoint_are_gone_through_and_stay_lists(tmp_path):
    states = [torch.nn.GRU(I, H).state_dict(), torch.nn.GRU(I, H).state_dict()]
    torch.save({"members": states, "rates": [0.1, 0.2]}, tmp_path / "m.pt")
    assert [gru.name for gru in find(tmp_path / "m.pt")] == ["members/0", "members/1"]
    model, variables = load(tmp_path / "m.pt", prefix="members/1")
    replace(tmp_path / "m.pt", {"members/1": (model, moved(variables))}, tmp_path / "tuned.pt")
    found = torch.load(tmp_path / "tuned.pt", weights_only=True)
    assert found["rates"] == [0.1, 0.2] and torch.equal(found["members"][0]["bias_hh_l0"], states[0]["bias_hh_l0"])
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "tuned.pt", prefix="members/1")[1], moved(variables))


@pytest.mark.parametrize(
    "tuned", [[1], {"net": 3}, {"net": (GRU(H), None)}], ids=["a list", "a number", "no variables"]
)
def test_what_is_no_model_with_variables_is_not_put_back(tuned, tmp_path):
    with refused("expected", "(model, variables)" if tuned != {"net": (GRU(H), None)} else "variables"):
        replace(checkpoint(), tuned, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())
