"""The JAX primitives of a kernel that runs all steps in one call.

- forward: hs, h_last and the residuals of the derivative, computed by the kernel.
- tangent: the tangents of hs and h_last, linear in the tangents of the arguments; by the kernel or by
  `kernels/derivative.py`.
- transpose: all gradients at once, by the kernel.

Each also has an implementation in plain JAX, for calls that are differentiated again, exported, or split among devices
by XLA, and for the tangent and the transpose under a `vmap` that shares the weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from grujax.errors import InputError, warn_user
from grujax.kernels.calls.arrays import MOVED, Call, Given, N, by_direction, forward_shapes, rows_at
from grujax.kernels.calls.plain import plain_forward, plain_tangent, plain_transpose
from grujax.types import Array


class Handlers(NamedTuple):
    """The platform of a kernel, and the module and names of its functions. A `tangent` of None means plain JAX."""

    platform: str
    module: str
    forward: str
    transpose: str
    tangent: str | None = None

    def of(self, name: str, plain: Callable) -> Callable:
        function = getattr(self, name)  # imported late: a CPU needs no Pallas
        return getattr(import_module(self.module), function) if function else plain


PLACES = {"cpu": "CPU", "cuda": "NVIDIA GPUs", "tpu": "TPUs"}
HANDLERS = {
    "native": Handlers("cpu", "grujax.kernels.native.handlers", "native_forward", "native_transpose", "native_tangent"),
    "resident": Handlers("cuda", "grujax.kernels.resident.call", "resident_forward", "resident_transpose"),
    "tpu": Handlers("tpu", "grujax.kernels.tpu.call", "tpu_forward", "tpu_transpose"),
}


def _primitive(handler: str, plain: Callable, types: Callable) -> Primitive:
    primitive = Primitive(f"grujax_{handler}")
    primitive.multiple_results = True

    @primitive.def_impl
    def evaluated(*arrays: Array, call: Call) -> list[Array]:
        with jax.disable_jit(False):  # under a user's `jax.disable_jit()` this would recurse without end
            return jax.jit(partial(primitive.bind, call=call))(*arrays)

    primitive.def_abstract_eval(types)

    def lowering(ctx: Any, *arrays: Any, call: Call) -> Any:
        # An exported program contains the plain loop, because its reader lacks our library. So does a program that XLA
        # splits among devices: there the kernel would gather all rows first.
        module, run = ctx.module_context, plain
        exported, split = module.lowering_parameters.for_export, _split_by_xla(module.axis_context)
        if split and not exported:
            what = f'The loop of "xla" runs in place of {call.kernel!r}: XLA splits this call among the devices itself.'
            remedy = "Split x by rows over an Explicit axis, as a mesh of jax.make_mesh has, or use jax.shard_map."
            warn_user(f"{what} {remedy}")
        if not (exported or split):
            platform = HANDLERS[call.kernel].platform
            if platform not in module.platforms:
                rule = f"implementation={call.kernel!r} cannot serve this call: it runs only on {PLACES[platform]}"
                raise InputError("implementation", "another or None", repr(call.kernel), "Pass None.", rule)
            run = HANDLERS[call.kernel].of(handler, plain)
            # Pallas lowers for one platform at a time, and its kernels know no mesh: keep only shapes and dtypes.
            types = [ShapedArray(a.shape, a.dtype) for a in ctx.avals_in]
            ctx = ctx.replace(module_context=module.replace(platforms=(platform,)), avals_in=types)
        return mlir.lower_fun(run, multiple_results=True)(ctx, *arrays, call=call)

    mlir.register_lowering(primitive, lowering)
    return primitive


def _split_by_xla(axes: Any) -> bool:
    if (mesh := getattr(axes, "mesh", None)) is not None:  # inside shard_map
        return set(axes.manual_axes) != set(mesh.axis_names)
    return getattr(axes, "num_devices", 1) > 1


def _like(a: Any, shape: Sequence[int], dtype: Any) -> Any:
    """The abstract array of this shape and dtype, varying over the same mesh axes as `a`, which has the same rank."""
    assert len(a.shape) == len(shape)
    return a.update(shape=tuple(shape), dtype=jnp.dtype(dtype), weak_type=False)


def _forward_types(*arrays: Any, call: Call) -> list[Any]:
    x, h0 = arrays[:2]
    return [_like(h0 if len(shape) == 2 else x, shape, dtype) for shape, dtype in forward_shapes(arrays, call)]


def _tangent_types(*arrays: Any, call: Call) -> list[Any]:
    every = by_direction(arrays[: len(call.reverse) * N], N)
    hs = arrays[len(call.reverse) * N :]
    return [_like(a, a.shape, a.dtype) for h, of in zip(hs, every, strict=False) for a in (h, of[1])]


def _transpose_types(*arrays: Any, call: Call) -> list[Any]:
    every = by_direction(arrays[: len(call.reverse) * N], N)
    return [_like(a, a.shape, a.dtype) for of in every for a in of[:MOVED]]


forward_p = _primitive("forward", plain_forward, _forward_types)
tangent_p = _primitive("tangent", plain_tangent, _tangent_types)
transpose_p = _primitive("transpose", plain_transpose, _transpose_types)


def _jvp_of(plain: Callable) -> Callable:
    def rule(primals: Sequence[Any], tangents: Sequence[Any], call: Call) -> Any:
        return jax.jvp(partial(plain, call=call), tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents))

    return rule


def _tangent_jvp(primals: Sequence[Any], tangents: Sequence[Any], call: Call) -> Any:
    """The primitive is linear in its tangent arguments: if only they move, its tangent is the primitive itself."""
    first = len(call.reverse) * (N + 2)
    if not all(type(t) is ad.Zero for t in tangents[:first]):
        return _jvp_of(plain_tangent)(primals, tangents, call)
    moved = [ad.instantiate_zeros(t) for t in tangents[first:]]
    return tangent_p.bind(*primals, call=call), tangent_p.bind(*primals[:first], *moved, call=call)


def _tangent_transpose(cotangents: Sequence[Any], *arrays: Any, call: Call) -> list[Any]:
    first = len(call.reverse) * (N + 2)
    cotangents = [ad.instantiate_zeros(c) for c in cotangents]
    needed = [ad.is_undefined_primal(a) for a in arrays[first:]]
    call = call._replace(dx=any(needed[::MOVED]))
    gradients = transpose_p.bind(*arrays[:first], *cotangents[::2], *cotangents[1::2], call=call)
    return [None] * first + [gradient if used else None for gradient, used in zip(gradients, needed, strict=True)]


ad.primitive_jvps[forward_p] = _jvp_of(plain_forward)
ad.primitive_jvps[transpose_p] = _jvp_of(plain_transpose)
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose


# ---- vmap
WEIGHTS = tuple(Given._fields.index(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "h_reset"))


def _mapped(primitive: Primitive, plain: Callable) -> Callable:
    """The batching rule: with batched weights, one kernel call after the other; otherwise plain JAX under `vmap`."""

    def rule(arrays: Sequence[Any], axes: Sequence[Any], call: Call) -> tuple[list[Any], list[int]]:
        run = partial(primitive.bind, call=call)
        if all(axes[d * N + i] is None for d in range(len(call.reverse)) for i in WEIGHTS):
            outputs = jax.vmap(partial(plain, call=call), tuple(axes))(*arrays)
            return outputs, [0] * len(outputs)
        moving = [jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True) if axis is not None]

        def call_once(slices: Sequence[Any]) -> list[Any]:
            remaining = iter(slices)
            return run(*(a if axis is None else next(remaining) for a, axis in zip(arrays, axes, strict=True)))

        outputs = lax.map(call_once, moving)
        return outputs, [0] * len(outputs)

    return rule


def _folded(arrays: Sequence[Any], axes: Sequence[Any], call: Call) -> tuple[list[Any], list[int]]:
    """Folds the axis of `vmap` into the rows of the batch where the weights are shared."""
    D = len(call.reverse)
    if any(axes[d * N + i] is not None for d in range(D) for i in WEIGHTS):
        return _mapped(forward_p, plain_forward)(arrays, axes, call)
    size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
    rows = rows_at(call.time_major)

    def fold(a: Any, axis: int | None, at: int | None) -> Any:
        if at is None or (a.shape == (0,) or a.shape == (size, 0)):
            return a if axis is None else jnp.zeros(0, a.dtype)
        a = (
            jnp.broadcast_to(jnp.expand_dims(a, at), (*a.shape[:at], size, *a.shape[at:]))
            if axis is None
            else jnp.moveaxis(a, axis, at)
        )
        return a.reshape(*a.shape[:at], size * a.shape[at + 1], *a.shape[at + 2 :])

    flat = [fold(a, axis, at) for a, axis, at in zip(arrays, axes, rows * D, strict=True)]
    outputs = []
    for of in by_direction(forward_p.bind(*flat, call=call), call.outputs):
        for a, at in zip(of, (rows.x, 0, 1), strict=False):
            split = a.reshape(*a.shape[:at], size, a.shape[at] // size, *a.shape[at + 1 :])
            outputs.append(jnp.moveaxis(split, at, 0))
    return outputs, [0] * len(outputs)


batching.primitive_batchers[forward_p] = _folded
batching.primitive_batchers[tangent_p] = _mapped(tangent_p, plain_tangent)
batching.primitive_batchers[transpose_p] = _mapped(transpose_p, plain_transpose)
