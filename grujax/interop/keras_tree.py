"""The HDF5 tree of a Keras file, read by paths that are known beforehand, every array checked before it is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import REMEDIES, require_floats
from grujax.errors import InputError, require
from grujax.interop.keras_layers import Layer


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

    def datasets(self, group: str, layer: Layer) -> list[dict[str, Any]]:
        """The weights of each direction, checked, not yet read."""
        inside = {"GRU": ["/cell"], "TimeDistributed": ["/layer"], "Dense": [""]}
        ways = inside.get(layer.kind, ["/forward_layer/cell", "/backward_layer/cell"])
        return [self.variables(f"{group}{way}/vars", layer.shapes) for way in ways]

    def named(self, group: str, layer: Layer) -> list[dict[str, Any]]:
        """The same where the group's attributes name them, in the older files."""
        names = [_text(name) for name in self.at(group, "Group").attrs.get("weight_names", ())]
        shapes = layer.shapes
        expected = len(shapes) * (1 + (layer.kind == "Bidirectional"))
        require(len(names) == expected, group, f"{expected} weights", str(names)[:200])
        keys = [f"{group}/{name}" for name in names]
        of = [(key, self.variable(key, shapes[k % len(shapes)])) for k, key in enumerate(keys)]
        return [dict(of[k : k + len(shapes)]) for k in range(0, len(of), max(len(shapes), 1))]

    def variables(self, group: str, shapes: list[tuple[int | None, ...]]) -> dict[str, Any]:
        names, expected = self.names(group), [str(k) for k in range(len(shapes))]
        require(sorted(names) == expected, group, f"the variables {expected}", str(sorted(names))[:80])
        return {f"{group}/{k}": self.variable(f"{group}/{k}", shape) for k, shape in enumerate(shapes)}

    def variable(self, key: str, shape: tuple[int | None, ...]) -> Any:
        dataset = self.at(key, "Dataset")
        elsewhere = dataset.is_virtual or dataset.external
        require(not elsewhere, key, "values in the file itself", "HDF5's external or virtual storage")
        require_floats(key, _dtype(dataset))
        fits = len(dataset.shape) == len(shape) and all(
            n in (None, m) for n, m in zip(shape, dataset.shape, strict=True)
        )
        units = (shape[-1] or 0) // 3
        remedy = REMEDIES.get(dataset.shape[-1] / units, "") if units and "/cell/" in key and dataset.shape else ""
        require(fits, key, f"shape {shape}".replace("None", "any"), dataset.shape, remedy)
        stored = dataset.id.get_storage_size()
        require(stored >= dataset.nbytes, key, f"{dataset.nbytes} bytes of values, not compressed", f"{stored} stored")
        return dataset


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _dtype(dataset: Any) -> str:
    """Keras stores bfloat16 as two bytes without a meaning, and an attribute."""
    opaque = dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"
    return "bfloat16" if opaque else dataset.dtype.name


def as_array(dataset: Any) -> NDArray:
    values, dtype = np.asarray(dataset[()]), jnp.dtype(_dtype(dataset))
    return values.view(dtype) if values.dtype.kind == "V" else values.astype(dtype)  # the machine's byte order


@contextmanager
def told(argument: str, expected: str) -> Iterator[None]:
    """Errors as `InputError`, in one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, json and h5py have no one class of errors for what is not theirs
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(argument, expected, found) from error
