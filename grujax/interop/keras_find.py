"""The GRU layers of a Keras model or file, each to be taken out and put back alone; nested models are gone through."""

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
"""Where a config lists what it holds, under the same name as the file does."""
WRAPPED = {"TimeDistributed": [("layer", "layer")], "RNN": [("cell", "cell")]}
WRAPPED["Bidirectional"] = [("layer", "forward_layer"), ("backward_layer", "backward_layer")]
"""(Key of a config, group of the file) of what a wrapper holds; without "backward_layer" both directions are alike."""


def in_object(source: Any) -> Opened:
    """Of a live layer or model; a model is saved with other weights, and then has its own again."""
    keras, grus, tuned = keras_live.package(), [], []
    served = (keras.layers.GRU, keras.layers.GRUCell, keras.layers.Bidirectional)

    def through(layer: Any) -> None:
        given = own = None
        if isinstance(layer, served):
            with suppress(InputError):  # one that grujax has not, or a Bidirectional of another layer
                given, (own,) = from_keras(layer, verify=False), keras_live.layers_of(layer)
        if given is None or own is None:
            held = () if isinstance(layer, served[:2]) else layer._flatten_layers(recursive=False, include_self=False)
            for inner in held:
                through(inner)
            return

        def put(model: nn.Module, variables: Mapping, own: Layer = own) -> None:
            tuned.append((layer, [a for _, a in _changed(own, model, variables)], own))

        grus.append(record(layer.name, own.kind, *given, partial(from_keras, layer), put))

    def store(target: Path) -> None:
        kept = [[a for cell in own.weights for a in cell.values()] for _, _, own in tuned]
        with keras_live.numerics(tuned[0][2].dtype if tuned else "float32"):
            try:
                for layer, new, _ in tuned:
                    layer.set_weights(new)
                FRAMEWORK.write(target, source)
            finally:
                for (layer, *_), old in zip(tuned, kept, strict=True):
                    layer.set_weights(old)

    through(source)
    return Opened(grus, store if isinstance(source, keras.Model) else None, endings=(".keras",))


def _changed(own: Layer, model: nn.Module, variables: Mapping) -> Iterator[tuple[str, NDArray]]:
    """The weights of a model by the names that a layer has for them; `InputError` unless they have its shapes."""
    for old, new in zip(own.weights, to_layers(model, variables)[0].weights, strict=True):
        for (key, a), b in zip(old.items(), new.values(), strict=True):
            require_same(key, a, b)
            yield key, b


def in_file(path: Path) -> Opened:
    """Of a `.keras` or `.h5` file: the configs name the layers and say what they compute."""
    h5py = require_package("h5py", "keras")
    with keras_files.opened(path) as (members, config, version, tree):
        remedy = "Weights alone do not say what computes; find needs the .keras or .h5 file."
        require(config is not None, "path", "a file with a config", "weights alone", remedy)
        named = list(_through(config, "", version) if members else _of_older(config, version))
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

        kind, given = f"keras.layers.{layer.kind}", from_keras([layer])
        grus.append(record(layer.name, kind, *given, partial(from_keras, [layer]), put))
    return Opened(grus, store)


def _through(saved: Any, at: str, version: int) -> Iterator[tuple[Layer, str]]:
    """Each GRU in what a config describes, with its group in HDF5, below `at`."""
    if sum(group.endswith("ward_layer") for group in at.split("/")) > 1:
        return  # Keras has no Bidirectional in a Bidirectional; a hostile config of n of them would be read 2^n times
    kind, config = (saved.get("class_name"), saved.get("config")) if isinstance(saved, Mapping) else (None, None)
    if kind in RECURRENT:
        with suppress(InputError):  # one that grujax has not, or a Bidirectional of another layer
            (layer,) = described(saved, version)
            yield layer, at
            return
    for inner, group in _inside(kind, config):
        yield from _through(inner, f"{at}/{group}".removeprefix("/"), version)


def _inside(kind: Any, config: Any) -> list[tuple[Any, str]]:
    """What a model or a wrapper holds, each with its group below that of the holder."""
    config = {"layers": config} if isinstance(config, list) else config if isinstance(config, Mapping) else {}
    if kind not in LISTS:
        return [(config.get(key, config.get("layer")), group) for key, group in WRAPPED.get(kind, ())]
    found = config.get(LISTS[kind])
    found = [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
    groups = keras_files.groups_of([one.get("class_name") for one in found])
    return [(one, f"{LISTS[kind]}/{group}") for one, group in zip(found, groups, strict=True)]


def _of_older(config: Any, version: int) -> Iterator[tuple[Layer, str]]:
    """The same of an `.h5` file with a config: its layers have groups by their names, those of models within none."""
    for inner, _ in _inside(*(config.get(key) for key in ("class_name", "config"))):
        if inner.get("class_name") in RECURRENT:
            yield from ((layer, f"model_weights/{layer.name}") for layer, _ in _through(inner, "", version))
