"""Calls a kernel that runs all steps in one call: flattens the recurrences and handles explicit sharding."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from grujax.kernels.calls.arrays import Call, by_direction, given, rows_at
from grujax.kernels.calls.rule import under_primitives
from grujax.kernels.derivative import WHOLE, Chunks
from grujax.types import Array, Gates, GRUSpec, Recurrence, Result


def program(
    recurrences: Sequence[Recurrence],
    spec: GRUSpec,
    *,
    reverse: Sequence[bool],
    with_gates: bool,
    time_major: bool,
    kernel: str,
    chunks: Chunks = WHOLE,
) -> list[Result]:
    """Returns the results of `grujax.kernels.run`. Of `chunks` only `steps` is used."""
    call = Call(spec, tuple(reverse), time_major, with_gates, kernel, chunk=chunks.steps)
    arrays = [a for recurrence in recurrences for a in given(recurrence, call)]
    outputs = _on_mesh(arrays, call)
    results = []
    for hs, h_last, *saved in by_direction(outputs, call.outputs):
        gates = m = None
        if saved:
            r, z, n, m = jnp.split(saved[0], 4, axis=-1)
            gates, m = Gates(r, z, n), m if spec.reset_after else None
        results.append(Result(hs, h_last, gates, m))
    return results


def _on_mesh(arrays: list[Array], call: Call) -> list[Array]:
    """Runs the call; under explicit sharding each device runs its own rows in a `shard_map`."""
    D, rows = len(call.reverse), rows_at(call.time_major)
    sharding = jax.typeof(arrays[0]).sharding
    if sharding.mesh.empty:
        return under_primitives(arrays, call)
    names = sharding.spec[rows.x]
    if names is None:
        return under_primitives(_varying_alike(arrays), call)

    def split(at: int | None, ndim: int) -> P:
        return P(*(names if axis == at else None for axis in range(ndim)))

    arrays = [
        a if a.shape == (0,) or at is None else jax.reshard(a, NamedSharding(sharding.mesh, split(at, a.ndim)))
        for a, at in zip(arrays, rows * D, strict=True)
    ]
    out_specs = [split(rows.x, 3), split(0, 2), split(1, 3)][: call.outputs] * D

    def on_device(arrays: list[Array]) -> list[Array]:
        return under_primitives(_varying_alike(arrays), call)

    # Mesh axes that XLA splits itself (Auto) stay Auto inside the shard_map.
    in_specs = [jax.typeof(a).sharding.spec for a in arrays]
    explicit = {
        name
        for name, kind in zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }
    run = jax.shard_map(on_device, mesh=sharding.mesh, in_specs=(in_specs,), out_specs=out_specs, axis_names=explicit)
    return run(arrays)


def _varying_alike(arrays: Sequence[Array]) -> list[Array]:
    """Makes all arrays vary over the same mesh axes, as `shard_map` requires, by adding zeros that vary over all."""
    zero = sum((jnp.zeros_like(a.sum(), jnp.float32) for a in arrays), jnp.float32(0))
    return [a | (zero != 0) if a.dtype == bool else a + zero.astype(a.dtype) for a in arrays]
