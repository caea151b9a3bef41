"""The HDF5 tree of a Keras file, read by paths that are known beforehand, every array checked before it is read."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import REMEDIES, require_floats
from grujax.errors import require
from grujax.interop.keras_layers import WEIGHTED, Layer


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
