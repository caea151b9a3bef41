"""The devices that a run is shared out over."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grujax.errors import require


def first_devices(count: int) -> Mesh:
    """A mesh of the first `count` devices of this process, for `fit(mesh=)`."""
    there = len(jax.devices())
    require(1 <= count <= there, "--devices", f"1 to {there}, which JAX sees here", count)
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def placing(mesh: Mesh | None, batch_size: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """What puts arrays on the devices of the mesh: their rows shared out, and whole on each."""
    if mesh is None:
        return lambda tree: tree, lambda tree: tree
    require(len(mesh.axis_names) == 1, "mesh", "one axis, over the rows", f"axes {mesh.axis_names}")
    size = mesh.size
    rule, remedy = f"batch_size={batch_size} needs devices that divide it", "Change either."
    require(batch_size % size == 0, "mesh", f"a divisor of {batch_size}", f"{size} devices", remedy, rule=rule)
    mesh = Mesh(mesh.devices, mesh.axis_names)  # XLA shares the work out, also where the axis is Explicit
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (mesh.axis_names, ()))
    return lambda tree: jax.device_put(tree, rows), lambda tree: jax.device_put(tree, whole)
