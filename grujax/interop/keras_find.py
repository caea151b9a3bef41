"""Finds the GRU layers of a Keras model or file, also in nested models, takes single ones out and puts them back."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
from numpy.typing import NDArray

from grujax.errors import InputError, require, require_package
from grujax.interop import keras_files, keras_live
from grujax.interop.found import Opened, record, require_same
from grujax.interop.keras import FRAMEWORK, from_keras, to_layers
from grujax.interop.keras_layers import RECURRENT, Layer, described

LISTS = {"Sequential": "layers", "Functional": "layers", "Model": "layers", "StackedRNNCells": "cells"}
"""Classes with a list of layers: its key in their config, which is also its group in the file."""
WRAPPED = {"TimeDistributed": [("layer", "layer")], "RNN": [("cell", "cell")]}
WRAPPED["Bidirectional"] = [("layer", "forward_layer"), ("backward_layer", "backward_layer")]
"""(Key in the config, group in the file) of the layers in a wrapper. "backward_layer" is optional in a config."""


def in_object(source: Any) -> Opened:
    """Opens a live layer or model. To write a model, its weights are replaced, and restored after it is saved."""
    keras, grus, tuned = keras_live.package(), [], []
    served = (keras.layers.GRU, keras.layers.GRUCell, keras.layers.Bidirectional)

    def visit(layer: Any) -> None:
        model = plain = None
        if isinstance(layer, served):
            with suppress(InputError):  # a GRU that grujax does not have, or a Bidirectional of another layer
                model, (plain,) = from_keras(layer, verify=False), keras_live.layers_of(layer)
        if model is None or plain is None:
            held = () if isinstance(layer, served[:2]) else layer._flatten_layers(recursive=False, include_self=False)
            for inner in held:
                visit(inner)
            return

        def put(model: nn.Module, variables: Mapping, plain: Layer = plain) -> None:
            tuned.append((layer, [a for _, a in _changed(plain, model, variables)], plain))

        grus.append(record(layer.name, plain.kind, *model, partial(from_keras, layer), put))

    def store(target: Path) -> None:
        kept = [[a for cell in plain.weights for a in cell.values()] for _, _, plain in tuned]
        with keras_live.numerics(tuned[0][2].dtype if tuned else "float32"):
            try:
                for layer, new, _ in tuned:
                    layer.set_weights(new)
                FRAMEWORK.write(target, source)
            finally:
                for (layer, *_), old in zip(tuned, kept, strict=True):
                    layer.set_weights(old)

    visit(source)
    return Opened(grus, store if isinstance(source, keras.Model) else None, endings=(".keras",))


def _changed(layer: Layer, model: nn.Module, variables: Mapping) -> Iterator[tuple[str, NDArray]]:
    """The weights of a model under the names of a layer's weights; raises `InputError` if shapes or dtypes differ."""
    for old, new in zip(layer.weights, to_layers(model, variables)[0].weights, strict=True):
        for (key, a), b in zip(old.items(), new.values(), strict=True):
            require_same(key, a, b)
            yield key, b


def in_file(path: Path) -> Opened:
    """Opens a `.keras` or `.h5` file, whose config describes the layers."""
    h5py = require_package("h5py", "keras")
    with keras_files.opened(path) as (members, config, version, tree):
        remedy = "Weights do not show which layers compute what: pass the .keras or .h5 file."
        require(config is not None, "path", "a file with a config", "only weights", remedy)
        named = list(_through(config, "", version) if members else _in_h5(config, version))
        layers = [keras_files.with_arrays(layer, tree.weights(at, layer, not members)) for layer, at in named]
    content, changed, grus = members.get("model.weights.h5") or path.read_bytes(), {}, []

    def store(target: Path) -> None:
        file = io.BytesIO(content)
        with h5py.File(file, "r+") as root:
            for key, a in changed.items():
                root[key][...] = a.view("V2") if root[key].dtype.kind == "V" else a
        if not members:
            target.write_bytes(file.getvalue())
            return
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in (members | {"model.weights.h5": file.getvalue()}).items():
                archive.writestr(name, data)

    for layer in layers:

        def put(model: nn.Module, variables: Mapping, layer: Layer = layer) -> None:
            changed.update(_changed(layer, model, variables))

        take = partial(from_keras, [layer])
        grus.append(record(layer.name, f"keras.layers.{layer.kind}", *take(), take, put))
    return Opened(grus, store)


def _through(saved: Any, at: str, version: int) -> Iterator[tuple[Layer, str]]:
    """Each GRU that a config describes, and its HDF5 group below `at`."""
    if sum(group.endswith("ward_layer") for group in at.split("/")) > 1:
        return  # Keras has no Bidirectional in a Bidirectional; a hostile config of n of them would be read 2^n times
    kind, config = (saved.get("class_name"), saved.get("config")) if isinstance(saved, Mapping) else (None, None)
    if kind in RECURRENT:
        with suppress(InputError):  # a GRU that grujax does not have, or a Bidirectional of another layer
            (layer,) = described(saved, version)
            yield layer, at
            return
    for inner, group in _inside(kind, config):
        yield from _through(inner, f"{at}/{group}".removeprefix("/"), version)


def _inside(kind: Any, config: Any) -> list[tuple[Any, str]]:
    """The configs of the layers in a model or wrapper, each with its group below the group of that model or wrapper."""
    config = {"layers": config} if isinstance(config, list) else config if isinstance(config, Mapping) else {}
    if kind not in LISTS:
        return [(config.get(key, config.get("layer")), group) for key, group in WRAPPED.get(kind, ())]
    layers = config.get(LISTS[kind])
    layers = [layer for layer in layers if isinstance(layer, Mapping)] if isinstance(layers, list) else []
    groups = keras_files.groups_of([layer.get("class_name") for layer in layers])
    return [(layer, f"{LISTS[kind]}/{group}") for layer, group in zip(layers, groups, strict=True)]


def _in_h5(config: Any, version: int) -> Iterator[tuple[Layer, str]]:
    """`_through` for an `.h5` file, whose groups are named like the layers; layers of nested models have no group."""
    for inner, _ in _inside(*(config.get(key) for key in ("class_name", "config"))):
        if inner.get("class_name") in RECURRENT:
            yield from ((layer, f"model_weights/{layer.name}") for layer, _ in _through(inner, "", version))
