"""The GRU layers of a Keras model or file, each to be taken out and put back alone; nested models are gone through."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from grujax.errors import InputError, require, require_package
from grujax.interop.found import Opened, record
from grujax.interop.keras import from_keras
from grujax.interop.keras_files import checked_members, version_of
from grujax.interop.keras_layers import RECURRENT, Layer, described
from grujax.interop.keras_live import package
from grujax.interop.keras_tree import Tree, as_array, told
from grujax.interop.keras_write import to_layers


def in_layer(source: Any) -> Opened:
    """Of a live layer or model."""
    keras, grus = package(), []
    served = (keras.layers.GRU, keras.layers.GRUCell, keras.layers.Bidirectional)

    def through(layer: Any) -> None:
        if isinstance(layer, served):
            try:
                model, variables = from_keras(layer, verify=False)
            except InputError:  # an LSTM in a Bidirectional
                return
            grus.append(record(layer.name, type(layer).__name__, model, variables, lambda: from_keras(layer), _fixed))
            return
        for inner in layer._flatten_layers(recursive=False, include_self=False):
            through(inner)

    through(source)
    return Opened(grus, None)


def _fixed(model: nn.Module, variables: Mapping) -> None:
    raise InputError("source", "a file", "a live layer", "layer.set_weights takes the weights of to_keras.")


def in_file(path: Path) -> Opened:
    """Of a `.keras` or `.h5` file: the configs name the layers and say what they compute."""
    h5py = require_package("h5py", "keras")
    with told("path", "a whole file of Keras"):
        zipped = zipfile.is_zipfile(path)
        members = checked_members(path) if zipped else {}
        content = members.get("model.weights.h5", b"") if zipped else path.read_bytes()
        with h5py.File(io.BytesIO(content), "r") as root:
            if zipped:
                version = version_of(json.loads(members["metadata.json"])["keras_version"], "metadata.json")
                config = json.loads(members["config.json"])
            else:
                remedy = "Weights alone do not say what computes; find needs the .keras or .h5 file."
                require("model_config" in root.attrs, "path", "a file with a config", "weights alone", remedy)
                version = version_of(root.attrs.get("keras_version"), "keras_version")
                config = json.loads(root.attrs["model_config"])
            tree = Tree(h5py, root)
            named = _zipped(config, "", version) if zipped else _legacy(config, version, tree)
            layers = {}
            for name, layer, where in named:
                keys = where(tree)
                weights = tuple({key: as_array(tree.at(key, "Dataset")) for key in cell} for cell in keys)
                layers[name] = layer._replace(weights=weights)
    changed: dict[str, Any] = {}

    def store(target: Path) -> None:
        file = io.BytesIO(content)
        with h5py.File(file, "r+") as root:
            for key, a in changed.items():
                root[key][...] = a.view("V2") if root[key].dtype.kind == "V" else a
        if not zipped:
            target.write_bytes(file.getvalue())
            return
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in (members | {"model.weights.h5": file.getvalue()}).items():
                archive.writestr(name, data)

    grus = []
    for name, layer in layers.items():
        model, variables = from_keras([layer])

        def put(model: nn.Module, variables: Mapping, layer: Layer = layer) -> None:
            (new, *_) = to_layers(model, variables)
            for old, own in zip(layer.weights, new.weights, strict=True):
                for key, a in zip(old, own.values(), strict=True):
                    same = (old[key].shape, old[key].dtype) == (a.shape, a.dtype)
                    require(same, key, f"{old[key].dtype} {old[key].shape}", f"{a.dtype} {a.shape}")
                    changed[key] = a

        kind = f"keras.layers.{layer.kind}"
        grus.append(record(name, kind, model, variables, lambda layer=layer: from_keras([layer]), put))
    return Opened(grus, store)


def _gru(saved: Any, version: int) -> Layer | None:
    """The GRU that a config describes; None for another layer, or a GRU that grujax has not."""
    if not isinstance(saved, Mapping) or saved.get("class_name") not in RECURRENT:
        return None
    try:
        return described(saved, version)[0]
    except InputError:
        return None


def _inside(saved: Any) -> list[Any]:
    config = saved.get("config") if isinstance(saved, Mapping) else None
    layers = config if isinstance(config, list) else config.get("layers") if isinstance(config, Mapping) else None
    return (
        layers if isinstance(layers, list) and saved.get("class_name") in ("Sequential", "Functional", "Model") else []
    )


def _zipped(saved: Any, at: str, version: int) -> Any:
    """(name, layer, keys of its weights) of each GRU; groups are named by classes and numbered, model by model."""
    numbers: dict[str, int] = {}
    for one in _inside(saved):
        kind = str(one.get("class_name"))
        snake = _snake(kind)
        k = numbers[snake] = numbers.get(snake, -1) + 1
        group = f"{at}layers/{snake}_{k}" if k else f"{at}layers/{snake}"
        layer = _gru(one, version)
        if layer is not None:
            yield (
                layer.name,
                layer,
                lambda tree, group=group, layer=layer: [list(d) for d in tree.datasets(group, layer)],
            )
        yield from _zipped(one, f"{group}/", version)


def _snake(name: str) -> str:
    """As Keras names its groups."""
    from re import sub

    name = sub(r"\W+", "", name)
    return sub("([a-z])([A-Z])", r"\1_\2", sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


def _legacy(saved: Any, version: int, tree: Tree, at: str = "model_weights") -> Any:
    for one in _inside(saved):
        layer = _gru(one, version)
        if layer is not None:
            yield (
                layer.name,
                layer,
                lambda tree, layer=layer: [list(d) for d in tree.named(f"{at}/{layer.name}", layer)],
            )
