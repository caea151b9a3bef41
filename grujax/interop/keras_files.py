"""The files of Keras 3 and 2, read as plain layers. A `.keras` file is a zip of config.json and model.weights.h5; a
`.weights.h5` file is the latter alone; an `.h5` file has the config among its attributes.

Read with json and h5py, without Keras: nothing in a file is imported, built or run, and nothing is extracted.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import REMEDIES, require_floats
from grujax.errors import InputError, require, require_package
from grujax.interop.framework import check_archive
from grujax.interop.keras_layers import OUTPUTS, POOLINGS, READ, WEIGHTED, Layer, described
from grujax.interop.prove import FIND

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
LARGEST_CONFIG = 1 << 20
"""Bytes of a config.json that is still read; one layer takes two thousand."""


class Tree:
    """The groups and datasets of an HDF5 file, by paths that are known beforehand: no link is followed elsewhere."""

    def __init__(self, h5py: Any, root: Any) -> None:
        self.h5py, self.root = h5py, root

    def at(self, path: str, of: str) -> Any:
        """of: "Group" or "Dataset"."""
        node, names = self.root, path.split("/")
        for depth, name in enumerate(names):
            key = "/".join(names[: depth + 1])
            link = node.get(name, getlink=True) if name in node else None  # this opens nothing
            require(link is not None, key, "what Keras 3 writes", "none of that name")
            hard = isinstance(link, self.h5py.HardLink)
            require(hard, key, "what stands in the file itself", f"an HDF5 {type(link).__name__}")
            node = node[name]
            kind = of if depth == len(names) - 1 else "Group"
            require(isinstance(node, getattr(self.h5py, kind)), key, f"an HDF5 {kind}", type(node).__name__)
        return node

    def names(self, path: str) -> list[str]:
        return list(self.at(path, "Group"))

    def weights(self, group: str, layer: Layer, legacy: bool = False) -> list[dict[str, Any]]:
        """The weights of each direction, checked, not yet read. legacy: the group's attributes name them."""
        shapes, parts, keys = layer.shapes, WEIGHTED.get(layer.kind, ()), []
        for part in parts if not legacy else ():
            within = "/".join(filter(None, (group, *part.split("."), "vars")))
            names, expected = self.names(within), [str(k) for k in range(len(shapes))]
            require(sorted(names) == expected, within, f"the variables {expected}", str(sorted(names))[:80])
            keys += [f"{within}/{name}" for name in expected]
        if legacy:
            stored = self.at(group, "Group").attrs.get("weight_names", ())
            names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in stored]
            expected = len(shapes) * len(parts)
            require(len(names) == expected, group, f"{expected} weights", str(names)[:200])
            keys = [f"{group}/{name}" for name in names]
        of = [(key, self._variable(key, shapes[k % len(shapes)])) for k, key in enumerate(keys)]
        return [dict(of[k : k + len(shapes)]) for k in range(0, len(of), max(len(shapes), 1))]

    def _variable(self, key: str, shape: tuple[int | None, ...]) -> Any:
        dataset = self.at(key, "Dataset")
        elsewhere = dataset.is_virtual or dataset.external
        require(not elsewhere, key, "values in the file itself", "HDF5's external or virtual storage")
        require_floats(key, _dtype(dataset))
        there = dataset.shape
        fits = len(there) == len(shape) and all(n in (None, m) for n, m in zip(shape, there, strict=True))
        units = (shape[-1] or 0) // 3
        remedy = REMEDIES.get(there[-1] / units, "") if units and "/cell/" in key and there else ""
        require(fits, key, f"shape {shape}".replace("None", "any"), there, remedy)
        stored = dataset.id.get_storage_size()
        require(stored >= dataset.nbytes, key, f"{dataset.nbytes} bytes of values, not compressed", f"{stored} stored")
        return dataset


def _dtype(dataset: Any) -> str:
    """Keras stores bfloat16 as two bytes without a meaning, and an attribute."""
    opaque = dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"
    return "bfloat16" if opaque else dataset.dtype.name


def as_array(dataset: Any) -> NDArray:
    values, dtype = np.asarray(dataset[()]), jnp.dtype(_dtype(dataset))
    return values.view(dtype) if values.dtype.kind == "V" else values.astype(dtype)  # the machine's byte order


class Opened(NamedTuple):
    """A file: its members where it is a zip, its config where it has one, the version that wrote it, its HDF5 tree."""

    members: dict[str, bytes]
    config: Any
    version: int
    tree: Tree


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """A file of any of the three kinds; all that is wrong with it is an `InputError` in one line."""
    require(path.is_file(), "path", f"a {''.join(path.suffixes)} file", f"no file at {path}")
    h5py, members, config, version = require_package("h5py", "keras"), {}, None, 3
    with _told("path", "a whole HDF5 file that Keras wrote"):
        if path.name.endswith(".keras"):
            members = _members(path)
            with _told("metadata.json", "JSON that Keras wrote"):
                version = _version(json.loads(members["metadata.json"])["keras_version"], "metadata.json")
            with _told("config.json", "JSON that Keras wrote"):
                config = json.loads(members["config.json"])
        with h5py.File(io.BytesIO(members["model.weights.h5"]) if members else path, "r") as root:
            if path.name.endswith(".h5") and not path.name.endswith(".weights.h5"):
                remedy = "Weights alone: name it .weights.h5, or save the model."
                require("model_config" in root.attrs, "model_config", "the attribute that Keras writes", "none", remedy)
                version = _version(root.attrs.get("keras_version"), "keras_version")
                config = json.loads(root.attrs["model_config"])
            yield Opened(members, config, version, Tree(h5py, root))


@contextmanager
def _told(argument: str, expected: str) -> Iterator[None]:
    """Errors as `InputError`, in one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, json and h5py have no one class of errors for what is not theirs
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(argument, expected, found) from error


def _members(path: Path) -> dict[str, bytes]:
    """The members of a `.keras` file, each of the size that it may have; read into memory, none extracted."""
    require(zipfile.is_zipfile(path), "path", "a .keras file of Keras 3, a zip", "another kind of file")
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        once = len(sizes) == len(archive.infolist())
        require(once and set(sizes) == MEMBERS, "path", f"the members {sorted(MEMBERS)}", str(sorted(sizes))[:200])
        limits = dict.fromkeys(MEMBERS, LARGEST_CONFIG) | {"model.weights.h5": path.stat().st_size}
        for name, limit in limits.items():
            require(sizes[name] <= limit, name, f"{limit} bytes at most", sizes[name])
        return {name: archive.read(name) for name in archive.namelist()}


def _version(stated: Any, argument: str) -> int:
    """2 or 3: functions of one name differ in them."""
    stated = stated.decode("utf-8", "replace") if isinstance(stated, bytes) else stated
    known = isinstance(stated, str) and stated[:2] in ("2.", "3.")
    require(known, argument, "keras_version 2 or 3", repr(stated)[:80])
    return int(stated[0])


def load(path: Path) -> list[Layer]:
    """The layers in a file.

    Of a `.weights.h5` file weights and the order of layers are all there is, and of layers without weights their class.
    What it does not tell is taken as Keras' default: tanh, sigmoid, merge_mode "concat"; and a Dense that follows a GRU
    reads its last state.
    """
    with opened(path) as (members, config, version, tree):
        legacy = bool(config) and not members
        at = "model_weights" if legacy else "layers"
        groups = tree.names(at)
        layers = _told_by_groups(tree, groups) if config is None else described(config, version)
        numbered = groups_of([{"class_name": layer.kind} for layer in layers], f"{at}/")
        expected = {
            f"{at}/{layer.name}" if legacy else group: layer for group, layer in zip(numbered, layers, strict=True)
        }
        for name in groups:
            known = f"{at}/{name}" in expected or re.fullmatch(r"input_layer(_\d+)?|top_level_model_weights", name)
            known = known or config is None or (legacy and not tree.names(f"{at}/{name}"))
            served, remedy = f"only {sorted(expected)}", f"It would be lost. {FIND}"
            require(bool(known), f"{at}/{name}", served, "this layer besides", remedy)
        found = [tree.weights(group, layer, legacy) for group, layer in expected.items()]
        nbytes, size = sum(d.nbytes for cells in found for cell in cells for d in cell.values()), path.stat().st_size
        require(nbytes <= size, "path", f"weights of {size} bytes at most, as in the file", nbytes)
        return [with_arrays(layer, cells) for layer, cells in zip(layers, found, strict=True)]


def with_arrays(layer: Layer, cells: list[dict[str, Any]]) -> Layer:
    return layer._replace(weights=tuple({key: as_array(dataset) for key, dataset in cell.items()} for cell in cells))


def groups_of(saved: list[Mapping], at: str) -> list[str]:
    """The groups of a model's layers: the name of the class in small letters, numbered."""
    numbers, groups = {}, []
    for one in saved:
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", str(one.get("class_name"))))
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        k = numbers[name] = numbers.get(name, -1) + 1
        groups.append(f"{at}{name}_{k}" if k else f"{at}{name}")
    return groups


def _told_by_groups(tree: Tree, groups: list[str]) -> list[Layer]:
    """The layers that the groups tell, GRUs first, then pooling, then the Dense."""
    kinds = dict(zip(groups_of([{"class_name": kind} for kind in READ], ""), READ, strict=True))
    del kinds["gru_cell"]
    numbered: dict[str, list[tuple[int, str]]] = {}
    for name in groups:
        match = re.fullmatch(r"(.*?)(?:_(\d{1,6}))?", name, re.DOTALL)
        group, number = match.groups() if match else (name, None)
        require(group in kinds, f"layers/{name}", f"one of {sorted(kinds)}", "this layer")
        numbered.setdefault(kinds[group], []).append((int(number or 0), name))
    left = tuple(f"layers/{name}: weights tell no rate" for _, name in numbered.get("Dropout", ()))
    pooled, last = {*POOLINGS, "TimeDistributed"} & numbered.keys(), None
    layers: list[Layer] = []
    for kind in ("GRU", "Bidirectional", *POOLINGS, "Dense", "TimeDistributed"):
        for _, name in sorted(numbered.get(kind, ())):
            parts = [
                f"layers/{name}/{part.replace('.', '/')}/vars".replace("//", "/") for part in WEIGHTED.get(kind, ())
            ]
            config: dict[str, Any] = {}
            if kind in ("GRU", "Bidirectional"):
                bias, remedy = "2" in tree.names(parts[0]), "Convert the .keras file, which tells."
                require(bias, f"{parts[0]}/2", "a bias, whose shape tells reset_after", "none of that name", remedy)
                config = {"units": (tree.at(f"{parts[0]}/1", "Dataset").shape or (0,))[0], "use_bias": True}
                config |= {"activation": "tanh", "recurrent_activation": "sigmoid", "dropout": 0.0}
                config |= {"reset_after": len(tree.at(f"{parts[0]}/2", "Dataset").shape) == 2}
                config |= {"return_sequences": True, "recurrent_dropout": 0.0}
                config |= {"merge_mode": "concat"} if kind == "Bidirectional" else {}
                last = config
            elif parts:
                config = {"units": (tree.at(f"{parts[0]}/1", "Dataset").shape or (0,))[0]}
                config |= {"activation": next(iter(OUTPUTS)), "use_bias": True}
            layers.append(Layer(kind, f"layers/{name}", config))
    if last is not None and "Dense" in numbered and not pooled:
        last["return_sequences"] = False
    return [layer._replace(left=left) for layer in layers[:1]] + layers[1:]
