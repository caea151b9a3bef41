"""Reads the files of Keras 3 and 2 as plain layers. A `.keras` file is a zip of metadata.json, config.json and
model.weights.h5; a `.weights.h5` file is the latter alone; an `.h5` file has the config among its attributes.

They are read with json and h5py, without Keras: nothing in a file is imported, built, run or extracted.
"""

import io
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import REMEDIES, require_floats
from grujax.errors import InputError, require, require_package
from grujax.interop.framework import check_archive
from grujax.interop.keras_layers import OUTPUTS, POOLINGS, READ, RECURRENT, WEIGHTED, Layer, described
from grujax.interop.prove import FIND

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
LARGEST_CONFIG = 1 << 20
"""The most bytes of a config.json that is read; one layer takes two thousand."""


class Tree:
    """The groups and datasets of an HDF5 file, by path. Soft and external links are refused."""

    def __init__(self, h5py: Any, root: Any) -> None:
        self.h5py, self.root = h5py, root

    def at(self, path: str, kind: str) -> Any:
        """The node at a path. kind: "Group" or "Dataset"."""
        node, key = self.root, ""
        for name in path.split("/"):
            key = f"{key}/{name}".removeprefix("/")
            expected = kind if key == path else "Group"
            link = node.get(name, getlink=True) if name in node else None  # does not open the node
            require(link is not None, key, f"an HDF5 {expected}", "none of that name")
            hard = isinstance(link, self.h5py.HardLink)
            require(hard, key, "a node in the file itself", f"an HDF5 {type(link).__name__}")
            node = node[name]
            require(isinstance(node, getattr(self.h5py, expected)), key, f"an HDF5 {expected}", type(node).__name__)
        return node

    def names(self, path: str) -> list[str]:
        return list(self.at(path, "Group"))

    def weights(self, group: str, layer: Layer, legacy: bool = False) -> list[dict[str, Any]]:
        """The datasets of each direction, checked but not yet read. legacy: the group's attributes name them."""
        shapes, parts, keys = layer.shapes, WEIGHTED.get(layer.kind, ()), []
        if legacy:
            names = list(map(_text, self.at(group, "Group").attrs.get("weight_names", ())))
            require(len(names) == len(shapes) * len(parts), group, f"{len(shapes) * len(parts)} weights", names)
            keys = [f"{group}/{name}" for name in names]
        for part in parts if not legacy else ():
            within, expected = variables_of(group, part), [str(k) for k in range(len(shapes))]
            names = sorted(self.names(within))
            require(names == expected, within, f"the variables {expected}", names)
            keys += [f"{within}/{name}" for name in expected]
        pairs = [(key, self._variable(key, shapes[k % len(shapes)])) for k, key in enumerate(keys)]
        return [dict(pairs[k : k + len(shapes)]) for k in range(0, len(pairs), max(len(shapes), 1))]

    def _variable(self, key: str, shape: tuple[int | None, ...]) -> Any:
        dataset = self.at(key, "Dataset")
        elsewhere = dataset.is_virtual or dataset.external
        require(not elsewhere, key, "values in the file itself", "HDF5's external or virtual storage")
        require_floats(key, _dtype(dataset))
        found, units = dataset.shape, (shape[-1] or 0) // 3
        fits = len(found) == len(shape) and all(n in (None, m) for n, m in zip(shape, found, strict=True))
        remedy = REMEDIES.get(found[-1] / units, "") if units and "/cell/" in key and found else ""
        require(fits, key, f"shape {shape}".replace("None", "any"), found, remedy)
        stored = dataset.id.get_storage_size()
        require(stored >= dataset.nbytes, key, f"{dataset.nbytes} bytes of values, not compressed", f"{stored} stored")
        return dataset


def variables_of(group: str, part: str) -> str:
    """The HDF5 group with the variables of a part of a layer."""
    return "/".join(filter(None, (group, *part.split("."), "vars")))


def _text(stored: Any) -> str:
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)


def _dtype(dataset: Any) -> str:
    """The name of a dataset's dtype. Keras stores bfloat16 as two opaque bytes with an attribute."""
    opaque = dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"
    return "bfloat16" if opaque else dataset.dtype.name


def with_arrays(layer: Layer, cells: list[dict[str, Any]]) -> Layer:
    """Reads the datasets of the cells; returns the layer with their values."""

    def array(dataset: Any) -> NDArray:
        values, dtype = np.asarray(dataset[()]), jnp.dtype(_dtype(dataset))
        return values.view(dtype) if values.dtype.kind == "V" else values.astype(dtype)  # the machine's byte order

    return layer._replace(weights=tuple({key: array(dataset) for key, dataset in cell.items()} for cell in cells))


class Opened(NamedTuple):
    """An open file. members: of a zip, else empty. config: None if it has none. version: of the Keras that wrote it."""

    members: dict[str, bytes]
    config: Any
    version: int
    tree: Tree


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Opens a file of any of the three kinds; raises `InputError` for anything that is wrong with it."""
    require(path.is_file(), "path", f"a {''.join(path.suffixes)} file", f"no file at {path}")
    h5py, members, config, version = require_package("h5py", "keras"), {}, None, 3
    with _errors_as_input_errors("path", "a whole HDF5 file that Keras wrote"):
        if path.name.endswith(".keras"):
            members = _members(path)
            with _errors_as_input_errors("metadata.json", "JSON that Keras wrote"):
                version = _version(json.loads(members["metadata.json"])["keras_version"], "metadata.json")
            with _errors_as_input_errors("config.json", "JSON that Keras wrote"):
                config = json.loads(members["config.json"])
        with h5py.File(io.BytesIO(members["model.weights.h5"]) if members else path, "r") as root:
            if path.name.endswith(".h5") and not path.name.endswith(".weights.h5"):
                remedy = "If it contains only weights, name it .weights.h5; or save the whole model."
                require("model_config" in root.attrs, "model_config", "the attribute that Keras writes", "none", remedy)
                version = _version(root.attrs.get("keras_version"), "keras_version")
                config = json.loads(root.attrs["model_config"])
            yield Opened(members, config, version, Tree(h5py, root))


@contextmanager
def _errors_as_input_errors(argument: str, expected: str) -> Iterator[None]:
    """Turns any error into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, json and h5py have no common class of errors for damaged files
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(argument, expected, found) from error


def _members(path: Path) -> dict[str, bytes]:
    """The members of a `.keras` file, read into memory after their sizes were checked."""
    require(zipfile.is_zipfile(path), "path", "a .keras file of Keras 3, a zip", "another kind of file")
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        once = len(sizes) == len(archive.infolist())
        require(once and set(sizes) == MEMBERS, "path", f"the members {sorted(MEMBERS)}", str(sorted(sizes))[:200])
        limits = dict.fromkeys(MEMBERS, LARGEST_CONFIG) | {"model.weights.h5": path.stat().st_size}
        for name, limit in limits.items():
            require(sizes[name] <= limit, name, f"at most {limit} bytes", sizes[name])
        return {name: archive.read(name) for name in archive.namelist()}


def _version(stated: Any, argument: str) -> int:
    """2 or 3, in which functions of the same name differ."""
    known = stated is not None and _text(stated)[:2] in ("2.", "3.")
    require(known, argument, "keras_version 2 or 3", repr(stated)[:80])
    return int(_text(stated)[0])


def load(path: Path) -> list[Layer]:
    """Reads the layers in a file.

    A `.weights.h5` file only contains weights, the order of the layers, and the classes of layers without weights. For
    the rest, Keras' defaults are assumed: tanh, sigmoid, merge_mode "concat", and a Dense that reads the last state.
    """
    with opened(path) as (members, config, version, tree):
        legacy = bool(config) and not members
        at = "model_weights" if legacy else "layers"
        groups = tree.names(at)
        layers = _layers_of_groups(tree, groups) if config is None else described(config, version)
        names = [layer.name for layer in layers] if legacy else groups_of([layer.kind for layer in layers])
        for name in groups:
            known = name in names or re.fullmatch(r"input_layer(_\d+)?|top_level_model_weights", name)
            known = known or config is None or (legacy and not tree.names(f"{at}/{name}"))
            require(bool(known), f"{at}/{name}", f"only {names}", "this extra layer", f"It would be lost. {FIND}")
        datasets = [tree.weights(f"{at}/{name}", layer, legacy) for name, layer in zip(names, layers, strict=True)]
        nbytes, size = sum(d.nbytes for cells in datasets for cell in cells for d in cell.values()), path.stat().st_size
        require(nbytes <= size, "path", f"at most {size} bytes of weights, the size of the file", nbytes)
        return [with_arrays(layer, cells) for layer, cells in zip(layers, datasets, strict=True)]


def groups_of(kinds: Sequence[Any]) -> list[str]:
    """The group names of a model's layers: their class names in lower case, numbered."""
    numbers, groups = Counter(), []
    for kind in kinds:
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", str(kind)))
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        groups.append(f"{name}_{numbers[name]}" if numbers[name] else name)
        numbers[name] += 1
    return groups


def _layers_of_groups(tree: Tree, groups: list[str]) -> list[Layer]:
    """The layers that the names of groups imply: GRUs, then pooling, then the Dense."""
    kinds, numbered = dict(zip(groups_of([*READ]), READ, strict=True)), defaultdict(list)
    del kinds["gru_cell"]
    for name in groups:
        group, number = name, re.search(r"_(\d{1,6})\Z", name)
        if number is not None:
            group = name[: number.start()]
        require(group in kinds, f"layers/{name}", f"one of {sorted(kinds)}", "this layer")
        numbered[kinds[group]].append((int(number[1]) if number else 0, name))
    left = tuple(f"layers/{name}: the file does not contain its rate" for _, name in numbered["Dropout"])
    pooled = any(numbered[kind] for kind in (*POOLINGS, "TimeDistributed"))
    layers: list[Layer] = []
    for kind in ("GRU", "Bidirectional", *POOLINGS, "Dense", "TimeDistributed"):
        for _, name in sorted(numbered[kind]):
            group, config = f"layers/{name}", {}
            within = variables_of(group, WEIGHTED.get(kind, ("",))[0])
            if kind in RECURRENT:
                bias, remedy = "2" in tree.names(within), "Convert the .keras file, which contains reset_after."
                require(bias, f"{within}/2", "a bias, whose shape shows reset_after", "none of that name", remedy)
            if kind in WEIGHTED:
                config = {"units": (tree.at(f"{within}/1", "Dataset").shape or (0,))[0], "use_bias": True}
                config |= {"activation": next(iter(OUTPUTS))}
            if kind in RECURRENT:
                config |= {"activation": "tanh", "recurrent_activation": "sigmoid", "merge_mode": "concat"}
                config |= {"reset_after": len(tree.at(f"{within}/2", "Dataset").shape) == 2}
                config |= {"return_sequences": True, "dropout": 0.0, "recurrent_dropout": 0.0}
            layers.append(Layer(kind, group, config))
    recurrent = [layer for layer in layers if layer.kind in RECURRENT]
    if recurrent and numbered["Dense"] and not pooled:
        recurrent[-1].config["return_sequences"] = False
    return [layer._replace(left=left) for layer in layers[:1]] + layers[1:]
