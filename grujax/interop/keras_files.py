"""The files of Keras 3 and 2, read as plain layers. A `.keras` file is a zip of config.json and model.weights.h5; a
`.weights.h5` file is the latter alone; an `.h5` file has the config among its attributes.

Read with json and h5py, without Keras: nothing in a file is imported, built or run, and nothing is extracted.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from grujax.errors import require, require_package
from grujax.interop.framework import check_archive
from grujax.interop.keras_layers import KINDS, Layer, described
from grujax.interop.keras_tree import Tree, as_array, told
from grujax.interop.prove import FIND

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
LARGEST_CONFIG = 1 << 20
"""Bytes of a config.json that is still read; one layer takes two thousand."""


def load_keras(path: Path) -> list[Layer]:
    """The layers in a `.keras` file of Keras 3 or 2, or in the `.h5` file that both wrote before.

    Nothing is extracted: members are read into memory, checked before.
    """
    require(path.is_file(), "path", "a .keras file", f"no file at {path}")
    if path.name.endswith(".h5") and not path.name.endswith(".weights.h5"):
        return _load_legacy(path)
    with told("path", "a .keras file of Keras 3"):
        members = checked_members(path)
        with told("metadata.json", "JSON that Keras wrote"):
            version = version_of(json.loads(members["metadata.json"])["keras_version"], "metadata.json")
        with told("config.json", "JSON that Keras wrote"):
            layers = described(json.loads(members["config.json"]), version)
        weights = members["model.weights.h5"]
        return _with_weights(io.BytesIO(weights), len(weights), layers)


def checked_members(path: Path) -> dict[str, bytes]:
    """The members of a `.keras` file, each of the size that it may have."""
    require(zipfile.is_zipfile(path), "path", "a .keras file of Keras 3, a zip", "another kind of file")
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        once = len(sizes) == len(archive.infolist())
        require(once and set(sizes) == MEMBERS, "path", f"the members {sorted(MEMBERS)}", str(sorted(sizes))[:200])
        for name in ("config.json", "metadata.json"):
            require(sizes[name] <= LARGEST_CONFIG, name, f"{LARGEST_CONFIG} bytes at most", sizes[name])
        size = path.stat().st_size
        stored = sizes["model.weights.h5"] <= size
        require(stored, "model.weights.h5", f"{size} bytes at most, as in the file", sizes["model.weights.h5"])
        return {name: archive.read(name) for name in archive.namelist()}


def version_of(stated: Any, argument: str) -> int:
    """2 or 3: functions of one name differ in them."""
    stated = stated.decode("utf-8", "replace") if isinstance(stated, bytes) else stated
    known = isinstance(stated, str) and stated[:2] in ("2.", "3.")
    require(known, argument, "keras_version 2 or 3", repr(stated)[:80])
    return int(stated[0])


def _load_legacy(path: Path) -> list[Layer]:
    """The layers in an `.h5` file: attributes hold version and config, weights go by their layers' names."""
    h5py, size = require_package("h5py", "keras"), path.stat().st_size
    with told("path", "a whole HDF5 file of a model that Keras wrote"), h5py.File(path, "r") as root:
        remedy = "Weights alone: name it .weights.h5, or save the model."
        require("model_config" in root.attrs, "model_config", "the attribute that Keras writes", "none", remedy)
        version, config = version_of(root.attrs.get("keras_version"), "keras_version"), root.attrs["model_config"]
        layers, tree = described(json.loads(config), version), Tree(h5py, root)
        stored, found = [name for name in tree.names("model_weights") if name != "top_level_model_weights"], []
        for layer in layers:
            group = f"model_weights/{layer.name}"
            stored = [name for name in stored if name != layer.name]
            found.append(tree.named(group, layer))
        stored = [name for name in stored if tree.names(f"model_weights/{name}")]
        require(
            not stored,
            f"model_weights/{', '.join(stored)[:80]}",
            "only the layers",
            "these besides",
            "They would be lost.",
        )
        nbytes = sum(d.nbytes for cells in found for cell in cells for d in cell.values())
        require(nbytes <= size, "path", f"weights of {size} bytes at most, as in the file", nbytes)
        pairs = zip(layers, found, strict=True)
        return [
            one._replace(weights=tuple({k: as_array(d) for k, d in c.items()} for c in cells)) for one, cells in pairs
        ]


def load_weights(path: Path) -> list[Layer]:
    """The layers that a `.weights.h5` file of a Sequential or functional model tells.

    Weights and the order of layers are all there is, and of layers without weights their class. What no file tells is
    taken as Keras' default: tanh, sigmoid, merge_mode "concat"; and a Dense that follows a GRU reads its last state.
    """
    require(path.is_file(), "path", "a .weights.h5 file", f"no file at {path}")
    return _with_weights(path, path.stat().st_size, None)


def _with_weights(file: Path | io.BytesIO, size: int, layers: list[Layer] | None) -> list[Layer]:
    h5py = require_package("h5py", "keras")
    with told("path", "a whole HDF5 file that Keras 3 wrote"), h5py.File(file, "r") as root:
        tree = Tree(h5py, root)
        groups = tree.names("layers")
        alone = layers is None
        layers = _told_by_groups(tree, groups) if layers is None else layers
        numbers: dict[str, int] = {}
        expected = {}
        for layer in layers:
            group, k = KINDS[layer.kind].group, numbers.get(layer.kind, 0)
            numbers[layer.kind] = k + 1
            expected[f"{group}_{k}" if k else group] = layer
        for name in groups:
            known = alone or name in expected or re.fullmatch(r"input_layer(_\d+)?", name) is not None
            require(
                known, f"layers/{name}", f"only {sorted(expected)}", "this layer besides", f"It would be lost. {FIND}"
            )
        found = {name: tree.datasets(f"layers/{name}", layer) for name, layer in expected.items() if layer.shapes}
        nbytes = sum(d.nbytes for cells in found.values() for cell in cells for d in cell.values())
        require(nbytes <= size, "path", f"weights of {size} bytes at most, as in the file", nbytes)
        return [
            layer._replace(weights=tuple({k: as_array(d) for k, d in cell.items()} for cell in found.get(name, ())))
            for name, layer in expected.items()
        ]


def _told_by_groups(tree: Tree, groups: list[str]) -> list[Layer]:
    """The layers that the groups tell, GRUs first, then pooling, then the Dense."""
    kinds = {kind.group: name for name, kind in KINDS.items() if name != "GRUCell"}
    numbered: dict[str, list[tuple[int, str]]] = {}
    for name in groups:
        group, number = re.fullmatch(r"(.*?)(?:_(\d{1,6}))?", name, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
        require(group in kinds, f"layers/{name}", f"one of {sorted(kinds)}", "this layer")
        numbered.setdefault(kinds[group], []).append((int(number or 0), name))
    order = ["GRU", "Bidirectional", "GlobalAveragePooling1D", "GlobalMaxPooling1D", "Dense", "TimeDistributed"]
    named = [(kind, name) for kind in order for _, name in sorted(numbered.get(kind, ()))]
    pooled = {kind for kind, _ in named if kind in order[2:4] or kind == "TimeDistributed"}
    last_state = not pooled and any(kind == "Dense" for kind, _ in named)
    layers = []
    for kind, name in named:
        config: dict[str, Any] = {}
        if kind in order[:2]:
            cell = f"layers/{name}/" + ("cell/vars" if kind == "GRU" else "forward_layer/cell/vars")
            bias = "2" in tree.names(cell)
            remedy = "Convert the .keras file, which tells."
            require(bias, f"{cell}/2", "a bias, whose shape tells reset_after", "none of that name", remedy)
            config = {"units": (tree.at(f"{cell}/1", "Dataset").shape or (0,))[0], "use_bias": True, "dropout": 0.0}
            config |= {"activation": "tanh", "recurrent_activation": "sigmoid", "recurrent_dropout": 0.0}
            config |= {"reset_after": len(tree.at(f"{cell}/2", "Dataset").shape) == 2, "return_sequences": True}
            config |= {"merge_mode": "concat"} if kind == "Bidirectional" else {}
        elif kind in order[4:]:
            bias = f"layers/{name}{'/layer' if kind == 'TimeDistributed' else ''}/vars/1"
            config = {"units": (tree.at(bias, "Dataset").shape or (0,))[0], "activation": "linear", "use_bias": True}
        layers.append(Layer(kind, f"layers/{name}", config))
    recurrent = [k for k, layer in enumerate(layers) if layer.kind in order[:2]]
    if last_state and recurrent:
        layers[recurrent[-1]].config["return_sequences"] = False
    dropouts = [f"layers/{name}: weights tell no rate" for _, name in numbered.get("Dropout", ())]
    return [layer._replace(left=tuple(dropouts)) for layer in layers[:1]] + layers[1:]
