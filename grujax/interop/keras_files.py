"""The files of Keras 3, read as plain layers. A `.keras` file is a zip of config.json and model.weights.h5; a
`.weights.h5` file is the latter alone.

Read with json and h5py, without Keras: nothing in a file is imported, built or run, and nothing is extracted.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require, require_package
from grujax.interop.adapters import check_archive
from grujax.interop.keras_layers import KINDS, Layer, described
from grujax.interop.weight_layouts import DTYPES, FLOATS, REMEDIES

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
LARGEST_CONFIG = 1 << 20
"""Bytes of a config.json that is still read; one layer takes two thousand."""


def load_keras(path: Path) -> list[Layer]:
    """The layers in a `.keras` file. Nothing is extracted: its two members are read into memory, checked before."""
    require(path.is_file(), "path", "a .keras file", f"no file at {path}")
    with _told("path", "a .keras file of Keras 3"):
        require(zipfile.is_zipfile(path), "path", "a .keras file of Keras 3, a zip", "another kind of file")
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            once = len(sizes) == len(archive.infolist())
            require(once and set(sizes) == MEMBERS, "path", f"the members {sorted(MEMBERS)}", str(sorted(sizes))[:200])
            small = sizes["config.json"] <= LARGEST_CONFIG
            require(small, "config.json", f"{LARGEST_CONFIG} bytes at most", sizes["config.json"])
            size = path.stat().st_size
            stored = sizes["model.weights.h5"] <= size
            require(stored, "model.weights.h5", f"{size} bytes at most, as in the file", sizes["model.weights.h5"])
            config, weights = archive.read("config.json"), archive.read("model.weights.h5")
        with _told("config.json", "JSON that Keras wrote"):
            layers = described(json.loads(config))
        return _with_weights(io.BytesIO(weights), len(weights), layers)


def load_weights(path: Path) -> list[Layer]:
    """The layers that a `.weights.h5` file of a Sequential or functional model tells.

    Weights and the order of layers are all there is, and of layers without weights their class. What no file tells is
    taken as Keras' default: tanh, sigmoid, merge_mode "concat"; and a Dense that follows a GRU reads its last state.
    """
    require(path.is_file(), "path", "a .weights.h5 file", f"no file at {path}")
    return _with_weights(path, path.stat().st_size, None)


def _with_weights(file: Path | io.BytesIO, size: int, layers: list[Layer] | None) -> list[Layer]:
    h5py = require_package("h5py", "keras")
    with _told("path", "a whole HDF5 file that Keras 3 wrote"), h5py.File(file, "r") as root:
        tree = _Tree(h5py, root)
        groups = tree.names("layers")
        told = layers is None
        layers = _told_by_groups(tree, groups) if layers is None else layers
        numbers: dict[str, int] = {}
        expected = {}
        for layer in layers:
            group, k = KINDS[layer.kind].group, numbers.get(layer.kind, 0)
            numbers[layer.kind] = k + 1
            expected[f"{group}_{k}" if k else group] = layer
        for name in groups:
            known = told or name in expected or re.fullmatch(r"input_layer(_\d+)?", name) is not None
            require(known, f"layers/{name}", f"only {sorted(expected)}", "this layer besides", "It would be lost.")
        found = {name: tree.datasets(f"layers/{name}", layer) for name, layer in expected.items() if layer.shapes}
        nbytes = sum(d.nbytes for cells in found.values() for cell in cells for d in cell.values())
        require(nbytes <= size, "path", f"weights of {size} bytes at most, as in the file", nbytes)
        return [
            layer._replace(weights=tuple({k: _array(d) for k, d in cell.items()} for cell in found.get(name, ())))
            for name, layer in expected.items()
        ]


class _Tree:
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

    def datasets(self, group: str, layer: Layer) -> list[dict[str, Any]]:
        """The weights of each direction, checked, not yet read."""
        inside = {"GRU": ["/cell"], "TimeDistributed": ["/layer"], "Dense": [""]}
        ways = inside.get(layer.kind, ["/forward_layer/cell", "/backward_layer/cell"])
        return [self.variables(f"{group}{way}/vars", layer.shapes) for way in ways]

    def variables(self, group: str, shapes: list[tuple[int | None, ...]]) -> dict[str, Any]:
        names, expected = self.names(group), [str(k) for k in range(len(shapes))]
        require(sorted(names) == expected, group, f"the variables {expected}", str(sorted(names))[:80])
        return {f"{group}/{k}": self.variable(f"{group}/{k}", shape) for k, shape in enumerate(shapes)}

    def variable(self, key: str, shape: tuple[int | None, ...]) -> Any:
        dataset = self.at(key, "Dataset")
        elsewhere = dataset.is_virtual or dataset.external
        require(not elsewhere, key, "values in the file itself", "HDF5's external or virtual storage")
        require(_dtype(dataset) in DTYPES, key, FLOATS, f"dtype {dataset.dtype}")
        fits = len(dataset.shape) == len(shape) and all(
            n in (None, m) for n, m in zip(shape, dataset.shape, strict=True)
        )
        units = (shape[-1] or 0) // 3
        remedy = REMEDIES.get(dataset.shape[-1] / units, "") if units and "/cell/" in key and dataset.shape else ""
        require(fits, key, f"shape {shape}".replace("None", "any"), dataset.shape, remedy)
        stored = dataset.id.get_storage_size()
        require(stored >= dataset.nbytes, key, f"{dataset.nbytes} bytes of values, not compressed", f"{stored} stored")
        return dataset


def _told_by_groups(tree: _Tree, groups: list[str]) -> list[Layer]:
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
            config = {"units": (tree.at(bias, "Dataset").shape or (0,))[0]}
        layers.append(Layer(kind, f"layers/{name}", config))
    recurrent = [k for k, layer in enumerate(layers) if layer.kind in order[:2]]
    if last_state and recurrent:
        layers[recurrent[-1]].config["return_sequences"] = False
    dropouts = [f"layers/{name}: weights tell no rate" for _, name in numbered.get("Dropout", ())]
    return [layer._replace(left=tuple(dropouts)) for layer in layers[:1]] + layers[1:]


def _dtype(dataset: Any) -> str:
    """Keras stores bfloat16 as two bytes without a meaning, and an attribute."""
    opaque = dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"
    return "bfloat16" if opaque else dataset.dtype.name


def _array(dataset: Any) -> NDArray:
    values, dtype = np.asarray(dataset[()]), jnp.dtype(_dtype(dataset))
    return values.view(dtype) if values.dtype.kind == "V" else values.astype(dtype)  # the machine's byte order


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
