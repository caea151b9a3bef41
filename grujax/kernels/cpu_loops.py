"""Four loops that are faster on CPU at some sizes (docs/decisions/cpu-loops.md); they need one product for all gates.

All project the input inside the loop. "joint" and "halves" also write the states into their array, so that batch-major
arrays are not transposed; "columns" has the batch on the last axis.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from grujax.kernels.products import add_bias, along, candidate_bias, dot, input_bias, slice_gates, state_products
from grujax.kernels.step import kept, masked_step, scan_body, step
from grujax.types import Array, GRUSpec, Recurrence, Result, State, States, state_dtype

Carry: TypeAlias = tuple[list[State], States]
"""The states of each half of the rows (or of all), and the array that they are written into."""


def brief(
    recurrences: Sequence[Recurrence], spec: GRUSpec, with_gates: bool = False, time_axis: int = 0
) -> list[Result]:
    """A `lax.scan` over x for each recurrence; nothing is computed before the loop."""
    results = []
    for recurrence in recurrences:
        x, _, h0, control = recurrence
        assert h0 is not None
        (body,) = _bodies(recurrence, [slice(None)], spec, with_gates)
        h_last, (hs, gates, m) = lax.scan(body, h0, (x, control.valid, control.reset, control.hold))
        results.append(Result(hs, h_last, gates, m))
    return results


def in_place(
    recurrences: Sequence[Recurrence],
    spec: GRUSpec,
    with_gates: bool = False,
    time_axis: int = 0,
    *,
    halved: bool = False,
    unroll: Callable[[int], int] = lambda hidden_size: 1,
) -> list[Result]:
    """x is read and hs written in place: "joint", a loop for each recurrence; "halves", one loop for all.

    time_axis: 1 where x and hs are batch-major arrays with their axes swapped; swapping them again costs nothing.
    halved: all recurrences run in one loop; the batch of a single one is split in two halves that advance in one loop
    body. Products that do not wait for each other run in parallel, for XLA on CPU gives one core to a product of this
    size.
    unroll: from H to the number of steps in a loop body.
    """
    n_steps, n_rows, _ = recurrences[0].x.shape
    if n_steps == 0:
        return brief(recurrences, spec, with_gates)
    split = [slice(n_rows // 2), slice(n_rows // 2, None)] if halved and len(recurrences) == 1 else [slice(None)]
    results = []
    for group in [recurrences] if halved else [[recurrence] for recurrence in recurrences]:
        xs = [recurrence.x.swapaxes(0, time_axis) for recurrence in group]
        bodies = [_bodies(recurrence, split, spec, with_gates) for recurrence in group]

        def body(carries: list[Carry], inputs: tuple, xs=xs, bodies=bodies) -> tuple[list[Carry], list]:
            t, controls = inputs
            new, handed_out = [], []
            for (states, hs), x, control, of_shares in zip(carries, xs, controls, bodies, strict=True):
                given = (lax.dynamic_index_in_dim(x, t, time_axis, keepdims=False), *control)
                done = []
                for run, rows, h in zip(of_shares, split, states, strict=True):
                    done.append(run(h, jax.tree.map(lambda a, rows=rows: a[rows], given)))
                h, *more = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(out for _, out in done))
                new.append(([h for h, _ in done], lax.dynamic_update_index_in_dim(hs, h, t, time_axis)))
                handed_out.append(more)
            return new, handed_out

        starts = [_start(recurrence, split, n_steps, time_axis) for recurrence in group]
        controls = [(control.valid, control.reset, control.hold) for *_, control in group]
        trips = _unrolled(recurrences[0], unroll(recurrences[0].weights.w_hh.shape[0]))
        last, handed_out = lax.scan(body, starts, (jnp.arange(n_steps), controls), unroll=trips)
        for (h_last, hs), more in zip(last, handed_out, strict=True):
            results.append(Result(hs.swapaxes(0, time_axis), jnp.concatenate(h_last), *more))
    return results


def columns(
    recurrences: Sequence[Recurrence], spec: GRUSpec, with_gates: bool = False, time_axis: int = 0, unroll: int = 1
) -> list[Result]:
    """The rows of the batch as columns, all recurrences in one loop.

    W (3H, H) is the left factor of the product with the state (H, B). XLA on CPU packs the right factor again at every
    step, and here that is the small one; the parts r, z and n of the product are contiguous.
    """
    bodies = [_columns_body(recurrence, spec, with_gates) for recurrence in recurrences]

    def body(states: list[State], inputs: list) -> tuple[list[State], list]:
        done = []
        for run, h, x in zip(bodies, states, inputs, strict=True):
            done.append(run(h, x))
        return [h for h, *_ in done], jax.tree.map(jnp.transpose, done)

    starts = [recurrence.h0.T for recurrence in recurrences]  # pyright: ignore[reportOptionalMemberAccess]
    xs = [(x, control.valid, control.reset, control.hold) for x, _, _, control in recurrences]
    last, outputs = lax.scan(body, starts, xs, unroll=_unrolled(recurrences[0], unroll))
    return [Result(hs, h_last.T, gates, m) for h_last, (hs, gates, m) in zip(last, outputs, strict=True)]


def _bodies(
    recurrence: Recurrence, shares: Sequence[slice], spec: GRUSpec, with_gates: bool
) -> list[Callable[[State, tuple], tuple[State, tuple]]]:
    """The step of each share of the rows, r, z and n from one product of the input and one of the state."""
    _, weights, h0, control = recurrence
    assert h0 is not None
    bias, multiply = input_bias(weights), state_products(weights, spec, one_product=True)

    def gates_of(x: Array) -> list[Array]:
        return add_bias(slice_gates(dot(x, weights.w_ih, spec)), bias)

    bodies = []
    for rows in shares:
        state_mask = None if control.state_mask is None else control.state_mask[rows]
        own = recurrence._replace(h0=h0[rows], control=control._replace(state_mask=state_mask))
        bodies.append(scan_body(own, gates_of, multiply, spec, with_gates))
    return bodies


def _start(recurrence: Recurrence, shares: Sequence[slice], n_steps: int, time_axis: int) -> Carry:
    """The states before the first step, and the array that all later ones are written into."""
    h0 = recurrence.h0
    assert h0 is not None
    shape = list(h0.shape)
    shape.insert(time_axis, n_steps)
    return [h0[rows] for rows in shares], jnp.broadcast_to(jnp.expand_dims(jnp.zeros_like(h0), time_axis), shape)


def _columns_body(recurrence: Recurrence, spec: GRUSpec, with_gates: bool) -> Callable[[State, tuple], tuple]:
    """(h (H, B), inputs) -> h, gates and m, (H, B) each."""
    _, weights, h0, control = recurrence
    assert h0 is not None
    w_ih, w_hh, zeros = weights.w_ih.T, weights.w_hh.T, jnp.zeros_like(h0.T)
    bias, b_n = input_bias(weights), candidate_bias(weights)
    h_reset = zeros if control.h_reset is None else control.h_reset[:, None] + zeros
    state_mask = None if control.state_mask is None else control.state_mask.T

    def products(w: Array, a: Array, axis: int) -> list[Array]:
        """w (3H, K) times a, which has its K on `axis`: r, z and n, (H, B) each."""
        product = lax.dot_general(
            w,
            a.astype(w.dtype),
            (((1,), (axis,)), ((), ())),
            precision=spec.precision,
            preferred_element_type=state_dtype(w.dtype),
        )
        return jnp.split(product, 3)

    def multiply(a: Array, gates: str) -> Sequence[Array]:
        assert gates == "rzn"
        p_r, p_z, p_n = products(w_hh, a, axis=0)
        return p_r, p_z, p_n if b_n is None else p_n + along(b_n, p_n, axis=0)

    def body(h: State, inputs: tuple) -> tuple:
        x, valid, reset, hold = inputs
        gates_x = add_bias(products(w_ih, x, axis=1), bias, axis=0)
        one_step = partial(step, gates_x=gates_x, multiply=multiply, spec=spec, state_mask=state_mask)
        valid, reset = (None if flags is None else flags[None] for flags in (valid, reset))
        h, gates, m = masked_step(one_step, h, h_reset, valid, reset, None if hold is None else hold.T)
        return h, *kept(gates, m, spec, with_gates)

    return body


def _unrolled(recurrence: Recurrence, steps: int) -> int:
    """JAX unrolls only loops of known length."""
    return steps if isinstance(recurrence.x.shape[0], int) else 1
