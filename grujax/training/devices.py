"""The devices that a run is shared out over, in one process or in several."""

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
"""The most steps that the devices are given at once; after so many, several processes agree whether to save and whether
to end: an exchange of two bytes each."""


HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as dead, and JAX ends the others."""


def first_devices(count: int) -> Mesh:
    """A mesh of the first `count` devices of this process, for `fit(mesh=)`."""
    there = len(jax.devices())
    require(1 <= count <= there, "--devices", f"1 to {there}, which JAX sees here", count)
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def joined(count: int) -> Mesh:
    """Joins the other processes of the launcher; a mesh of the devices of all.

    Raises InputError where JAX finds no launcher, or its processes are not `count`. Must come before any computation.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from the handler of the command
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        expected = "to be started by SLURM, Open MPI, Kubernetes or on a TPU pod"
        raise InputError(
            "--distributed", expected, str(error).rstrip("."), "Start it there, or leave --distributed out."
        ) from error
    found, remedy = f"{jax.process_count()} of the launcher", "Give the number of processes that the launcher starts."
    require(jax.process_count() == count, "--distributed", f"{count} processes", found, remedy)
    return Mesh(np.array(jax.devices()), ("data",))


def outside_of_meshes(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which places its arrays itself, outside of a mesh that its caller has set."""

    @functools.wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        with jax.set_mesh(Mesh(np.empty((), object), ())):
            return function(*arguments, **options)

    return run


class Devices:
    """Puts arrays on the devices of a mesh, and lets the processes that they belong to decide alike."""

    def __init__(self, mesh: Mesh | None, batch_size: int, hidden_size: int = 1) -> None:
        self.several_processes, self.axis = False, None
        self._rows: NamedSharding | None = None
        if mesh is None:
            return
        expected = "one axis, over the rows, or two, the second over the hidden units"
        require(len(mesh.axis_names) in (1, 2), "mesh", expected, f"axes {mesh.axis_names}")
        rows, hidden = (*mesh.devices.shape, 1)[:2]
        for name, whole, parts in (("batch_size", batch_size, rows), ("3 * hidden_size", 3 * hidden_size, hidden)):
            rule = f"{name}={whole} needs devices that divide it"
            require(
                whole % parts == 0, "mesh", f"a divisor of {whole}", f"{parts} devices", "Change either.", rule=rule
            )
        processes = {device.process_index for device in mesh.devices.flat}
        self.several_processes = processes != {jax.process_index()}
        names = mesh.axis_names[: 1 if hidden == 1 else 2]  # a second axis of one device splits nothing
        of_all = not self.several_processes or (len(processes) == jax.process_count() and len(names) == 1)
        expected = f"devices of this process, or along one axis those of all {jax.process_count()}"
        require(of_all, "mesh", expected, f"axes {mesh.axis_names} over {len(processes)} processes")
        # XLA shares out what is not the model's, as where there are no rows to share out: see `step.by_rows`
        self._mesh = Mesh(mesh.devices.reshape(mesh.devices.shape[: len(names)]), names)
        self.axis: str | None = names[0] if rows > 1 else None
        self._rows = NamedSharding(self._mesh, PartitionSpec(None, names[0]))
        self._whole = NamedSharding(self._mesh, PartitionSpec())

    def context(self) -> contextlib.AbstractContextManager[object]:
        """The mesh under which the step is compiled."""
        return contextlib.nullcontext() if self._rows is None else jax.set_mesh(self._mesh)

    def rows(self, tree: Any) -> Any:
        """The rows of each array (S, B, ...) shared out; of several processes each places its own."""
        return tree if self._rows is None else self._placed(tree, self._rows)

    def whole(self, tree: Any) -> Any:
        """Each array whole on every device."""
        return tree if self._rows is None else self._placed(tree, self._whole)

    def weights(self, tree: Any) -> Any:
        """Weights of GRUs and their moments with the columns shared out along the second axis; others whole."""
        if self._rows is None or len(self._mesh.axis_names) == 1:
            return self.whole(tree)

        def sharding(path: tuple[Any, ...], array: Any) -> NamedSharding:
            of_gates = getattr(path[-1], "key", None) in GRUWeights._fields
            axes = [None] * (array.ndim - 1) + [self._mesh.axis_names[1]] if of_gates else []
            return NamedSharding(self._mesh, PartitionSpec(*axes))

        return jax.device_put(tree, jax.tree_util.tree_map_with_path(sharding, tree))

    def restored(self, tree: Any) -> Any:
        """The arrays of a checkpoint, as a new run has them. orbax binds arrays to one device, for which the step would
        be compiled again."""
        return jax.tree.map(lambda a: jax.device_put(np.asarray(a)), tree) if self._rows is None else tree

    def here(self, tree: Any) -> Any:
        """The arrays on one device of this process, which then runs its own kernel; all devices hold them whole.

        Of a mesh with two axes, over which they are split, they stay where they are.
        """
        one_axis = self._rows is not None and len(self._mesh.axis_names) == 1
        return jax.tree.map(lambda a: a.addressable_data(0), tree) if one_axis else tree

    def memory(self) -> int | None:
        """The most bytes that a device of this process has had in use; None where it does not tell."""
        found = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
        return max((bytes_ for bytes_ in found if bytes_ is not None), default=None)

    def agreed(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether to stop, which any process may ask for, and to save, as the first decides: alike on all."""
        if not self.several_processes:
            return stop, save
        if step % EVERY:
            return False, False
        found = multihost_utils.process_allgather(np.array([stop, save]))
        return bool(found[:, 0].any()), bool(found[0, 1])

    def check_same(self, argument: str, *values: object) -> None:
        """Raises InputError on all processes where their values differ."""
        digest = np.frombuffer(hashlib.sha256(repr(values).encode()).digest(), np.uint8)
        found = multihost_utils.process_allgather(digest)
        others = np.flatnonzero((found != found[0]).any(1)).tolist()
        require(not others, argument, "the same on all processes", f"another on {others} than on 0")

    def _placed(self, tree: Any, sharding: NamedSharding) -> Any:
        if not self.several_processes:
            return jax.device_put(tree, sharding)

        def placed(array: Any) -> jax.Array:
            if isinstance(array, jax.Array) and not array.is_fully_addressable:
                return jax.device_put(array, sharding)
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(placed, tree)
