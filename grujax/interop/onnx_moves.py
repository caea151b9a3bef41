"""The operators of a graph that only move values, in NumPy; and the arithmetic on shapes that exporters leave in."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from grujax.errors import require

LARGEST = 2**26
"""The most values of any array while a graph is followed."""
SMALL = 64
"""The most values in arithmetic on shapes."""

ARITHMETIC: dict[str, Callable] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Equal": np.equal,
    "Where": np.where,
}


def _reshape(name: str, attributes: dict, a: NDArray, shape: NDArray) -> NDArray:
    keeps = not attributes.get("allowzero")
    return a.reshape([a.shape[i] if n == 0 and keeps else int(n) for i, n in enumerate(shape)])


def _unsqueeze(name: str, attributes: dict, a: NDArray, axes: NDArray | None = None) -> NDArray:
    return np.expand_dims(a, tuple(int(axis) for axis in (attributes["axes"] if axes is None else axes)))


def _squeeze(name: str, attributes: dict, a: NDArray, axes: NDArray | None = None) -> NDArray:
    axes = attributes.get("axes") if axes is None else axes
    return np.squeeze(a, None if axes is None else tuple(int(axis) for axis in axes))


def _slice(name: str, attributes: dict, a: NDArray, *given: NDArray | None) -> NDArray:
    starts, ends, axes, steps = [
        *(given or (attributes["starts"], attributes["ends"], attributes.get("axes"))),
        *[None] * 2,
    ][:4]
    cut = [slice(None)] * a.ndim
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = i if axes is None else int(axes[i]), 1 if steps is None else int(steps[i])
        # NumPy takes an end past the front of the array as one from its back.
        past = step < 0 and end < -a.shape[axis]
        cut[axis] = slice(int(start), None if past else int(end), step)
    return a[tuple(cut)]


def _gather(name: str, attributes: dict, a: NDArray, indices: NDArray) -> NDArray:
    axis = attributes.get("axis", 0)
    bound(name, a.size // max(a.shape[axis], 1) * indices.size)
    return np.take(a, indices, axis=axis)


def _split(name: str, attributes: dict, a: NDArray, sizes: NDArray | None = None) -> list[NDArray]:
    axis, sizes = attributes.get("axis", 0), attributes.get("split") if sizes is None else sizes
    if sizes is None:
        count = attributes["outputs"]
        each = -(-a.shape[axis] // count)
        return np.split(a, [each * i for i in range(1, count)], axis)
    whole = sum(map(int, sizes)) == a.shape[axis]
    require(whole, name, f"parts of {a.shape[axis]} in all", [int(n) for n in sizes])
    return np.split(a, np.cumsum(sizes)[:-1], axis)


def _concat(name: str, attributes: dict, *arrays: NDArray) -> NDArray:
    bound(name, sum(a.size for a in arrays))
    return np.concatenate(arrays, attributes["axis"])


def _expand(name: str, attributes: dict, a: NDArray, shape: NDArray) -> NDArray:
    whole = np.broadcast_shapes(a.shape, tuple(int(n) for n in shape))
    bound(name, math.prod(whole))
    return np.broadcast_to(a, whole)


def _flatten(name: str, attributes: dict, a: NDArray) -> NDArray:
    axis = attributes.get("axis", 1)
    return a.reshape(math.prod(a.shape[:axis]), -1)


MOVES: dict[str, Callable] = {
    "Identity": lambda name, attributes, a: a,
    "Cast": lambda name, attributes, a: a,
    "Transpose": lambda name, attributes, a: a.transpose(attributes.get("perm")),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
    "Concat": _concat,
    "Expand": _expand,
}


def bound(name: str, count: int) -> None:
    require(0 <= count <= LARGEST, name, f"at most {LARGEST} values", count)
