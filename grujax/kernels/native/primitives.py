"""The native kernel as JAX sees it: three primitives under one derivative rule.

forward: hs, h_last and what the derivative needs, in C++. tangent: their tangents, linear in those of the arguments, by
`kernels/derivative.py`. transpose: the transpose of that, all gradients at once, in C++. Each is plain JAX too: where it
is differentiated again, batched over weights, exported, or lowered for another platform than CPU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from grujax.kernels.derivative import tangent
from grujax.kernels.native import library
from grujax.kernels.order import as_read, held, in_time, resets_read
from grujax.kernels.xla import program
from grujax.types import Array, Control, Gates, GRUSpec, GRUWeights, Recurrence, Result, state_dtype


class Call(NamedTuple):
    """What is fixed when a call is compiled."""

    spec: GRUSpec
    reverse: tuple[bool, ...]  # of each direction
    time_major: bool
    saved: bool  # the gates are returned

    @property
    def outputs(self) -> int:
        """How many arrays the forward primitive returns for a direction."""
        return 3 if self.saved else 2


class Given(NamedTuple):
    """The arrays of one direction, in the order in which ffi.cpp reads them; () for one that is not given."""

    x: Any
    h0: Any
    w_ih: Any
    w_hh: Any
    b_ih: Any
    b_hh: Any
    h_reset: Any
    valid: Any
    reset: Any
    state_mask: Any
    hold: Any


MOVED = 7
"""The first so many of `Given` have a derivative."""
N = len(Given._fields)


def given(recurrence: Recurrence, call: Call) -> Given:
    """The arrays of a recurrence in the dtypes of the kernel."""
    x, weights, h0, (valid, reset, h_reset, state_mask, hold) = recurrence
    dtype = state_dtype(weights.w_hh.dtype)
    if h0 is None:
        h0 = jnp.zeros((x.shape[1 if call.time_major else 0], weights.w_hh.shape[0]), dtype)
    state_mask, hold = (None if a is None else lax.stop_gradient(a) for a in (state_mask, hold))
    x, w_ih, w_hh = (a.astype(weights.w_hh.dtype) for a in (x, weights.w_ih, weights.w_hh))
    reals = (h0, weights.b_ih, weights.b_hh, h_reset, state_mask, hold)
    h0, b_ih, b_hh, h_reset, state_mask, hold = (_or_empty(a, dtype) for a in reals)
    return Given(
        x, h0, w_ih, w_hh, b_ih, b_hh, h_reset, _or_empty(valid, bool), _or_empty(reset, bool), state_mask, hold
    )


def _or_empty(a: Array | None, dtype: Any) -> Array:
    return jnp.zeros(0, dtype) if a is None else a.astype(dtype)


def recurrence_of(arrays: Sequence[Any]) -> Recurrence:
    """The inverse of `given`."""
    x, h0, w_ih, w_hh, b_ih, b_hh, h_reset, valid, reset, state_mask, hold = (
        None if a.shape == (0,) else a for a in arrays
    )
    return Recurrence(x, GRUWeights(w_ih, w_hh, b_ih, b_hh), h0, Control(valid, reset, h_reset, state_mask, hold))


def by_direction(arrays: Sequence[Any], n: int) -> list[Sequence[Any]]:
    return [arrays[i : i + n] for i in range(0, len(arrays), n)]


# ---- in C++
def _called(target: str, arrays: Sequence[Array], outputs: Sequence[Any], call: Call) -> list[Array]:
    options = {
        "directions": np.int64(len(call.reverse)),
        "reverse": np.int64(sum(1 << d for d, backwards in enumerate(call.reverse) if backwards)),
        "time_major": call.time_major,
        "reset_after": call.spec.reset_after,
        "keep": call.spec.update == "keep",
        "with_saved": call.saved,
    }
    return list(jax.ffi.ffi_call(target, [jax.ShapeDtypeStruct(*of) for of in outputs])(*arrays, **options))


def _with_resets_read(arrays: Sequence[Array], call: Call) -> list[Array]:
    """All directions' `Given`, `reset` as the direction reads it."""
    every = []
    for backwards, of in zip(call.reverse, by_direction(arrays, N), strict=True):
        of = Given(*of)
        valid, reset = (None if a.shape == (0,) else a for a in (of.valid, of.reset))
        every += of._replace(reset=_or_empty(resets_read(reset, valid, backwards), bool))
    return every


def forward_shapes(arrays: Sequence[Any], call: Call) -> list[tuple[tuple[int, ...], Any]]:
    """hs, h_last and, where asked, what is saved, of each direction."""
    shapes = []
    for x, h0, *_ in by_direction(arrays, N):
        n_steps, n_rows = x.shape[:2] if call.time_major else (x.shape[1], x.shape[0])
        shapes += [((*x.shape[:2], h0.shape[1]), h0.dtype), (h0.shape, h0.dtype)]
        shapes += [((n_steps, n_rows, 4 * h0.shape[1]), h0.dtype)] if call.saved else []
    return shapes


def native_forward(*arrays: Array, call: Call) -> list[Array]:
    return _called("grujax_forward", _with_resets_read(arrays, call), forward_shapes(arrays, call), call)


def native_transpose(*arrays: Array, call: Call) -> list[Array]:
    """The gradients of the first `MOVED` arrays of each direction, from `Given`, hs, saved, dhs and dh_last of each."""
    D = len(call.reverse)
    primals, others = arrays[: D * N], by_direction(arrays[D * N :], D)
    by_rows = zip(by_direction(_with_resets_read(primals, call), N), *others, strict=True)
    inputs = [a for of, *more in by_rows for a in (*of, *more)]
    outputs = []
    for of in map(lambda a: Given(*a), by_direction(primals, N)):
        wide, columns = of.h0.dtype, (of.w_hh.shape[1],)
        outputs += [(of.x.shape, of.x.dtype), (of.h0.shape, wide), (of.w_ih.shape, wide), (of.w_hh.shape, wide)]
        outputs += [(columns, wide), (columns, wide), ((of.w_hh.shape[0],), wide)]
    gradients = _called("grujax_backward", inputs, outputs, call)
    moved = [a for of in by_direction(primals, N) for a in of[:MOVED]]
    return [
        gradient.astype(a.dtype) if a.shape == gradient.shape else jnp.zeros(a.shape, a.dtype)
        for gradient, a in zip(gradients, moved, strict=True)
    ]


# ---- the same in plain JAX
def plain_forward(*arrays: Array, call: Call) -> list[Array]:
    recurrences = [recurrence_of(of) for of in by_direction(arrays, N)]
    options = {"reverse": call.reverse, "time_major": call.time_major}
    outputs = []
    for result in program(recurrences, call.spec, with_gates=call.saved, **options):
        outputs += [result.hs, result.h_last]
        if result.gates is not None:
            m = jnp.zeros_like(result.gates.r) if result.m is None else result.m
            outputs.append(jnp.concatenate([*result.gates, m], axis=-1))
    return outputs


def plain_tangent(*arrays: Array, call: Call) -> list[Array]:
    """dhs and dh_last of each direction, linear in the last `MOVED` arrays of each."""
    D = len(call.reverse)
    primals, results, moved = arrays[: D * N], arrays[D * N : D * (N + 2)], arrays[D * (N + 2) :]
    rows = zip(
        call.reverse, by_direction(primals, N), results[:D], results[D:], by_direction(moved, MOVED), strict=True
    )
    outputs = []
    for backwards, of, hs, saved, d_of in rows:

        def read(moving: Sequence[Array], of=of, backwards=backwards) -> Recurrence:
            return as_read(recurrence_of([*moving, *of[MOVED:]]), backwards, call.time_major)

        recurrence, d_recurrence = jax.jvp(read, (of[:MOVED],), (d_of,))
        d_control = Control(h_reset=d_recurrence.control.h_reset)
        d_recurrence = d_recurrence._replace(control=d_control)
        valid = recurrence.control.valid
        hs = hs if call.time_major else hs.swapaxes(0, 1)
        hs, saved = (jnp.flip(a, 0) if backwards else a for a in (hs, saved))
        r, z, n, m = jnp.split(saved, 4, axis=-1)
        kept = Result(held(hs, recurrence.h0, valid), hs, Gates(r, z, n), m if call.spec.reset_after else None)
        dhs, dh_last = tangent(recurrence, d_recurrence, kept, call.spec, None)
        done = in_time(Result(dhs, dh_last), valid, backwards, call.time_major)
        outputs += [done.hs, done.h_last]
    return outputs


def plain_transpose(*arrays: Array, call: Call) -> list[Array]:
    D = len(call.reverse)
    kept, cotangents = arrays[: D * (N + 2)], arrays[D * (N + 2) :]
    moved = [a for of in by_direction(arrays[: D * N], N) for a in of[:MOVED]]
    paired = [a for pair in zip(cotangents[:D], cotangents[D:], strict=True) for a in pair]
    return list(jax.linear_transpose(lambda *t: plain_tangent(*kept, *t, call=call), *moved)(paired))


# ---- the primitives
def _primitive(name: str, plain: Callable, native: Callable, types: Callable) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(lambda *arrays, call: jax.jit(partial(primitive.bind, call=call))(*arrays))
    primitive.def_abstract_eval(types)
    plain_lowering, native_lowering = (mlir.lower_fun(f, multiple_results=True) for f in (plain, native))

    def lowering(ctx: Any, *arrays: Any, call: Call) -> Any:
        # An exported program holds the plain loop: its reader has no library. So does one that XLA splits among devices:
        # it would gather all rows before the call.
        module = ctx.module_context
        plain_asked = module.lowering_parameters.for_export or _split_by_xla(module.axis_context)
        return (plain_lowering if plain_asked else native_lowering)(ctx, *arrays, call=call)

    mlir.register_lowering(primitive, plain_lowering)
    mlir.register_lowering(primitive, lowering, platform="cpu")
    return primitive


def _split_by_xla(axes: Any) -> bool:
    if (mesh := getattr(axes, "mesh", None)) is not None:  # inside of shard_map
        return set(axes.manual_axes) != set(mesh.axis_names)
    return getattr(axes, "num_devices", 1) > 1


def _like(a: Any, shape: Sequence[int], dtype: Any) -> Any:
    """The abstract array of this shape that varies over the mesh axes over which `a` varies, of as many axes."""
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


forward_p = _primitive("grujax_forward", plain_forward, native_forward, _forward_types)
tangent_p = _primitive("grujax_tangent", plain_tangent, plain_tangent, _tangent_types)
transpose_p = _primitive("grujax_transpose", plain_transpose, native_transpose, _transpose_types)


def _jvp_of(plain: Callable) -> Callable:
    def rule(primals: Sequence[Any], tangents: Sequence[Any], call: Call) -> Any:
        return jax.jvp(partial(plain, call=call), tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents))

    return rule


def _tangent_jvp(primals: Sequence[Any], tangents: Sequence[Any], call: Call) -> Any:
    """Where only the tangents move, the tangent of what is linear in them is itself."""
    first = len(call.reverse) * (N + 2)
    if not all(type(t) is ad.Zero for t in tangents[:first]):
        return _jvp_of(plain_tangent)(primals, tangents, call)
    moved = [ad.instantiate_zeros(t) for t in tangents[first:]]
    return tangent_p.bind(*primals, call=call), tangent_p.bind(*primals[:first], *moved, call=call)


def _tangent_transpose(cotangents: Sequence[Any], *arrays: Any, call: Call) -> list[Any]:
    first = len(call.reverse) * (N + 2)
    given = [ad.instantiate_zeros(c) for c in cotangents]
    gradients = transpose_p.bind(*arrays[:first], *given[::2], *given[1::2], call=call)
    asked = [ad.is_undefined_primal(a) for a in arrays[first:]]
    return [None] * first + [gradient if asks else None for gradient, asks in zip(gradients, asked, strict=True)]


ad.primitive_jvps[forward_p] = _jvp_of(plain_forward)
ad.primitive_jvps[transpose_p] = _jvp_of(plain_transpose)
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose


# ---- vmap and explicit sharding
def rows_at(time_major: bool) -> Given:
    """The axis of the rows of the batch in each array; None where there is none."""
    return Given(1 if time_major else 0, 0, *[None] * 5, 1, 1, 0, 1)


WEIGHTS = tuple(Given._fields.index(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "h_reset"))


def _mapped(primitive: Primitive, plain: Callable) -> Callable:
    """Batched weights: one call after the other, each at its full speed; else plain JAX, batched."""

    def rule(arrays: Sequence[Any], axes: Sequence[Any], call: Call) -> tuple[list[Any], list[int]]:
        run = partial(primitive.bind, call=call)
        if all(axes[d * N + i] is None for d in range(len(call.reverse)) for i in WEIGHTS):
            outputs = jax.vmap(partial(plain, call=call), tuple(axes))(*arrays)
            return outputs, [0] * len(outputs)
        moving = [jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True) if axis is not None]

        def one(some: Sequence[Any]) -> list[Any]:
            left = iter(some)
            return run(*(a if axis is None else next(left) for a, axis in zip(arrays, axes, strict=True)))

        outputs = lax.map(one, moving)
        return outputs, [0] * len(outputs)

    return rule


def _folded(arrays: Sequence[Any], axes: Sequence[Any], call: Call) -> tuple[list[Any], list[int]]:
    """Where the weights are shared, the batch of `vmap` becomes rows."""
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


# ---- the call
@partial(jax.custom_jvp, nondiff_argnums=(1,))
def under_primitives(arrays: list[Array], call: Call) -> list[Array]:
    """hs, h_last and, where `call.saved`, the gates of each direction."""
    return forward_p.bind(*arrays, call=call)


@partial(under_primitives.defjvp, symbolic_zeros=True)
def _rule(call: Call, primals: tuple[list[Array]], tangents: tuple[list[Any]]) -> tuple[list[Array], list[Array]]:
    (arrays,), (moved,) = primals, tangents
    zero = [isinstance(t, SymbolicZero) for t in moved]
    d_arrays = [
        jnp.zeros(a.shape, a.dtype) if is_zero else t for a, t, is_zero in zip(arrays, moved, zero, strict=True)
    ]
    saving = call._replace(saved=True)
    outputs = forward_p.bind(*arrays, call=saving)
    d_moved = [t for of in by_direction(d_arrays, N) for t in of[:MOVED]]
    d_outputs = tangent_p.bind(*arrays, *outputs[::3], *outputs[2::3], *d_moved, call=saving)
    every, d_every = [], []
    for (hs, h_last, saved), (dhs, dh_last) in zip(by_direction(outputs, 3), by_direction(d_outputs, 2), strict=True):
        every += [hs, h_last, saved][: call.outputs]
        d_every += [dhs, dh_last, saved][: call.outputs]
    if call.saved:  # the derivative of the gates themselves is rarely asked for
        float0 = [
            t if jnp.issubdtype(a.dtype, jnp.floating) else np.zeros(a.shape, jax.dtypes.float0)
            for a, t in zip(arrays, d_arrays, strict=True)
        ]
        d_every[2::3] = jax.jvp(partial(plain_forward, call=call), arrays, float0)[1][2::3]
    return every, d_every


def native(
    recurrences: Sequence[Recurrence],
    spec: GRUSpec,
    *,
    reverse: Sequence[bool],
    with_gates: bool,
    time_major: bool,
    **_: Any,
) -> list[Result]:
    """The results of `grujax.kernels.run`."""
    if isinstance(why := library(), str):
        raise AssertionError(why)
    call = Call(spec, tuple(reverse), time_major, with_gates)
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
    """Under explicit sharding each device runs its rows, by `shard_map`."""
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

    def of_device(arrays: list[Array]) -> list[Array]:
        return under_primitives(_varying_alike(arrays), call)

    return jax.shard_map(of_device, mesh=sharding.mesh, out_specs=out_specs)(arrays)


def _varying_alike(arrays: Sequence[Array]) -> list[Array]:
    """Inside of `shard_map` all arrays must vary over the same mesh axes; a sum with zeros that do brings it about."""
    zero = sum(jnp.zeros_like(a.sum(), jnp.float32) for a in arrays)
    return [a | (zero != 0) if a.dtype == bool else a + zero.astype(a.dtype) for a in arrays]
