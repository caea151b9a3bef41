"""Distributes a run over several devices, in one process or in several."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grujax.errors import InputError, require
from grujax.types import GRUWeights

P = ParamSpec("P")
T = TypeVar("T")
EVERY = 16
"""The most steps in one call of the compiled program. After so many steps, several processes agree whether to save and
whether to end: each sends two bytes."""


HEARTBEAT = 30
"""Seconds without a heartbeat after which a process counts as dead, and JAX ends the others."""


def first_devices(count: int) -> Mesh:
    """Returns a mesh of the first `count` devices, for `fit(mesh=)`. Raises InputError if JAX has fewer."""
    available = len(jax.devices())
    require(1 <= count <= available, "--devices", f"1 to {available}, the number of devices that JAX has", count)
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def joined(count: int) -> Mesh:
    """Joins the other processes of the launcher and returns a mesh of the devices of all processes.

    Raises InputError if JAX finds no launcher, or if the launcher started another number of processes than `count`.
    Must be called before any computation.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would replace the command's handler of SIGTERM
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        expected = "a process started by SLURM, Open MPI, Kubernetes or on a TPU pod"
        remedy = "Start the command by one of these, or leave --distributed out."
        raise InputError("--distributed", expected, str(error).rstrip("."), remedy) from error
    found, remedy = f"{jax.process_count()} by the launcher", "Give the number of processes that the launcher starts."
    require(jax.process_count() == count, "--distributed", f"{count} processes", found, remedy)
    return Mesh(np.array(jax.devices()), ("data",))


def outside_of_meshes(function: Callable[P, T]) -> Callable[P, T]:
    """Returns `function` so that it runs without the mesh that its caller has set: it places its arrays itself."""

    @functools.wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        with jax.set_mesh(Mesh(np.empty((), object), ())):
            return function(*arguments, **options)

    return run


class Devices:
    """Places arrays on the devices of a mesh, and makes the processes of these devices decide alike.

    mesh: None is the default device; otherwise a mesh with one axis, over the rows of a batch, or two, the second over
      the hidden units.
    Raises InputError for another number of axes, and for a number of devices that does not divide the size of its axis.
    """

    def __init__(self, mesh: Mesh | None, batch_size: int, hidden_size: int = 1) -> None:
        self.several_processes, self.axis = False, None
        self._rows: NamedSharding | None = None
        if mesh is None:
            return
        expected = "one axis, over the rows, or a second one over the hidden units"
        require(len(mesh.axis_names) in (1, 2), "mesh", expected, f"axes {mesh.axis_names}")
        rows, hidden = (*mesh.devices.shape, 1)[:2]
        for name, whole, parts in (("batch_size", batch_size, rows), ("3 * hidden_size", 3 * hidden_size, hidden)):
            rule, expected = f"{name}={whole} needs a number of devices that divides it", f"a divisor of {whole}"
            require(whole % parts == 0, "mesh", expected, f"{parts} devices", "Change one of the two.", rule=rule)
        processes = {device.process_index for device in mesh.devices.flat}
        self.several_processes = processes != {jax.process_index()}
        names = mesh.axis_names[: 1 if hidden == 1 else 2]  # a second axis of one device splits nothing
        of_all = not self.several_processes or (len(processes) == jax.process_count() and len(names) == 1)
        expected = f"devices of this process alone, or of all {jax.process_count()} processes along one axis"
        require(of_all, "mesh", expected, f"axes {mesh.axis_names} over {len(processes)} processes")
        # `step.by_rows` splits the model by rows; XLA partitions all else, and everything where rows are not split
        self._mesh = Mesh(mesh.devices.reshape(mesh.devices.shape[: len(names)]), names)
        self.axis: str | None = names[0] if rows > 1 else None
        self._rows = NamedSharding(self._mesh, PartitionSpec(None, names[0]))
        self._whole = NamedSharding(self._mesh, PartitionSpec())

    def context(self) -> contextlib.AbstractContextManager[object]:
        """A context manager that sets the mesh under which the step is compiled."""
        return contextlib.nullcontext() if self._rows is None else jax.set_mesh(self._mesh)

    def rows(self, tree: Any) -> Any:
        """Splits each array (S, B, ...) by rows over the devices; each process places the rows of its own devices."""
        return tree if self._rows is None else self._placed(tree, self._rows)

    def whole(self, tree: Any) -> Any:
        """Places each array whole on every device."""
        return tree if self._rows is None else self._placed(tree, self._whole)

    def weights(self, tree: Any) -> Any:
        """Splits the columns of GRU weights and of their moments along the second axis; places other arrays whole."""
        if self._rows is None or len(self._mesh.axis_names) == 1:
            return self.whole(tree)

        def sharding(path: tuple[Any, ...], array: Any) -> NamedSharding:
            of_gates = getattr(path[-1], "key", None) in GRUWeights._fields
            axes = [None] * (array.ndim - 1) + [self._mesh.axis_names[1]] if of_gates else []
            return NamedSharding(self._mesh, PartitionSpec(*axes))

        return jax.device_put(tree, jax.tree_util.tree_map_with_path(sharding, tree))

    def restored(self, tree: Any) -> Any:
        """Returns the arrays of a checkpoint, not bound to a device, like those of a new run.

        orbax binds them to a device, and the step would be compiled again for such arrays.
        """
        return jax.tree.map(lambda a: jax.device_put(np.asarray(a)), tree) if self._rows is None else tree

    def here(self, tree: Any) -> Any:
        """Returns the copies on one device of this process, which then runs its own kernel.

        Under a mesh with two axes, which splits the arrays, they stay where they are.
        """
        one_axis = self._rows is not None and len(self._mesh.axis_names) == 1
        return jax.tree.map(lambda a: a.addressable_data(0), tree) if one_axis else tree

    def memory(self) -> int | None:
        """The peak memory use of a device of this process, in bytes; None if no device reports it."""
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
        return max((peak for peak in peaks if peak is not None), default=None)

    def agreed(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether to stop and whether to save, the same on all processes.

        All stop if any process wants to; all save if the first one wants to. Several processes agree on it every
        `EVERY` steps only.
        """
        if not self.several_processes:
            return stop, save
        if step % EVERY:
            return False, False
        wishes = multihost_utils.process_allgather(np.array([stop, save]))
        return bool(wishes[:, 0].any()), bool(wishes[0, 1])

    def check_same(self, argument: str, *values: object) -> None:
        """Raises InputError on all processes if their values differ."""
        digest = np.frombuffer(hashlib.sha256(repr(values).encode()).digest(), np.uint8)
        digests = multihost_utils.process_allgather(digest)
        others = np.flatnonzero((digests != digests[0]).any(1)).tolist()
        require(not others, argument, "the same on all processes", f"others on processes {others} than on 0")

    def _placed(self, tree: Any, sharding: NamedSharding) -> Any:
        if not self.several_processes:
            return jax.device_put(tree, sharding)

        def placed(array: Any) -> jax.Array:
            if isinstance(array, jax.Array) and not array.is_fully_addressable:
                return jax.device_put(array, sharding)
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(placed, tree)
