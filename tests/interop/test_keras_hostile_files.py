"""Hostile files, and files of other kinds, are refused in one line, and nothing is written."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from keras_models import H, I, h5py, whole
from refusals import refused

from grujax import InputError
from grujax.interop.keras import from_keras
from grujax.interop.keras_files import load


def with_members(change, **options):
    """The `.keras` file after `change(members)`; members: bytes by name."""
    with zipfile.ZipFile(io.BytesIO(whole(".keras"))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_config(change):
    """The `.keras` file after `change(layers)`; layers: the list in config.json."""

    def changed(members):
        config = json.loads(members["config.json"])
        change(config["config"]["layers"])
        members["config.json"] = json.dumps(config).encode()

    return with_members(changed)


def with_tree(change, data=None):
    """The `.weights.h5` file after `change(root)`; root: an h5py.File."""
    file = io.BytesIO(whole(".weights.h5") if data is None else data)
    with h5py.File(file, "r+") as root:
        change(root)
    return file.getvalue()


CELL = "layers/gru/cell/vars"


def replaced(key, make):
    """A `change` for `with_tree`: deletes `key` and calls `make(group, name)` in its place."""

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
        warnings.simplefilter("ignore")  # zipfile warns of the duplicate name
        archive.writestr("config.json", b"{}")
    return file.getvalue()


def flipped():
    """Flips one bit of the first weight, which the zip's checksum detects."""
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
        ["members inside their folder", "../evil"],
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
        ["config.json", "at most 1048576 bytes"],
    ),
    "no json": (lambda: with_members(lambda m: m.update({"config.json": b"{"})), ["config.json", "JSON"]),
    "deep json": (
        lambda: with_members(lambda m: m.update({"config.json": b"[" * 200_000})),
        ["config.json", "RecursionError"],
    ),
    "json list": (
        lambda: with_members(lambda m: m.update({"config.json": b"[]"})),
        ["config.json", "as Keras writes it"],
    ),
    "no layers": (
        lambda: with_members(lambda m: m.update({"config.json": b'{"module": "keras", "class_name": "Sequential"}'})),
        ["config.json", "as Keras writes it"],
    ),
    "lambda": (of_layer(1, class_name="Lambda"), ["gru", "found Lambda"]),
    "registered": (of_layer(1, registered_name="Evil>GRU"), ["gru", "keras.layers.GRU"]),
    "other module": (of_layer(1, module="os"), ["gru", "a GRU from os"]),
    "class of a list": (of_layer(1, class_name=["GRU"]), ["gru", "['GRU']"]),
    "config of a list": (of_layer(1, config=[]), ["layer", "as Keras writes it"]),
    "function": (
        option(1, "activation", {"class_name": "__lambda__"}),
        ["gru.activation", "str", "a function of Keras"],
    ),
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
        ["path", "at most"],
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
            from_keras(load(path))
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
        from_keras(load(path))
