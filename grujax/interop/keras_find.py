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


def in_object(source: Any) -> Opened:
    """Of a live layer or model; a model is saved with other weights, and then has its own again."""
    keras, grus, tuned = keras_live.package(), [], []
    served = (keras.layers.GRU, keras.layers.GRUCell, keras.layers.Bidirectional)

    def through(layer: Any) -> None:
        if not isinstance(layer, served):
            for inner in layer._flatten_layers(recursive=False, include_self=False):
                through(inner)
            return
        try:
            given, (own,) = from_keras(layer, verify=False), keras_live.layers_of(layer)
        except InputError:  # an LSTM in a Bidirectional
            return

        def put(model: nn.Module, variables: Mapping) -> None:
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
        named = list(_through(config, "" if members else None, version))
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


def _through(saved: Any, at: str | None, version: int) -> Iterator[tuple[Layer, str]]:
    """Each GRU with its group in HDF5, model by model. at: the group of this one; None in the older files."""
    config = saved.get("config") if isinstance(saved, Mapping) else None
    layers: Any = config if isinstance(config, list) else config.get("layers") if isinstance(config, Mapping) else None
    if not isinstance(layers, list) or saved.get("class_name") not in ("Sequential", "Functional", "Model"):
        return
    layers = [one for one in layers if isinstance(one, Mapping)]
    kinds = [one.get("class_name") for one in layers]
    for one, kind, group in zip(layers, kinds, keras_files.groups_of(kinds), strict=True):
        if kind in RECURRENT:
            with suppress(InputError):  # one that grujax has not
                (layer,) = described(one, version)
                yield layer, f"model_weights/{layer.name}" if at is None else f"{at}layers/{group}"
        elif at is not None:
            yield from _through(one, f"{at}layers/{group}/", version)
