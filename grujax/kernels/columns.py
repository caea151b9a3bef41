"""The recurrence with the rows of the batch as columns, projecting inside the loop: for wide layers on CPU.

W (3H, H) stands to the left of the state (H, B). XLA on CPU packs the right operand of a product anew at every step,
which is then the small one; r, z and n come from one product whose parts are contiguous; and the input's part of the
gates is made where it is used, so that it never goes through memory. Both directions of a layer go round in one loop:
their products do not wait for each other.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from grujax.kernels.step import GateValues, add_bias, along, candidate, mix, reset_and_update, steered, steps_a_trip
from grujax.types import Array, Emitted, GRUSpec, Ran, Recurrence, State, state_dtype


def columns(recurrences: Sequence[Recurrence], spec: GRUSpec, emit: bool = False) -> list[Ran]:
    """As `scan`, all in one loop; reset_after=True, no layer normalisation, and the input itself, not its gates."""
    steps = [_one_step(recurrence, spec, emit) for recurrence in recurrences]

    def body(states: list[State], inputs: list) -> tuple[list[State], list]:
        done = [step(h, x) for step, h, x in zip(steps, states, inputs, strict=True)]
        return [h for h, _ in done], jax.tree.map(jnp.transpose, done)

    starts = [recurrence.h0.T for recurrence in recurrences]
    xs = [(r.projection.x, r.control.valid, r.control.reset, r.control.hold) for r in recurrences]
    last, outputs = lax.scan(body, starts, xs, unroll=steps_a_trip(recurrences[0], 2))
    return [Ran(hs, h_last.T, emitted) for h_last, (hs, emitted) in zip(last, outputs, strict=True)]


def _one_step(recurrence: Recurrence, spec: GRUSpec, emit: bool) -> Callable[[State, tuple], tuple]:
    """(h (H, B), inputs) -> h and what is emitted, (H, B) too."""
    projection, h0, recurrent, control = recurrence
    assert projection.w_ih is not None
    w_ih, w_hh, zeros = projection.w_ih.T, recurrent.w_hh.T, jnp.zeros_like(h0.T)
    h_start = zeros if control.h_reset is None else control.h_reset[:, None] + zeros
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

    def step(h: State, inputs: tuple) -> tuple[State, Emitted | None]:
        x, valid, reset, hold = inputs
        x_r, x_z, x_n = add_bias(products(w_ih, x, axis=1), projection.bias, axis=0)

        def new(h: State) -> tuple[State, Emitted]:
            p_r, p_z, p_n = products(w_hh, h if state_mask is None else state_mask * h, axis=0)
            r, z = reset_and_update((x_r, x_z), (p_r, p_z), spec)
            m = p_n + along(recurrent.b_hn, p_n, axis=0)
            gates = GateValues(r, z, candidate(x_n, r, m, spec))
            return mix(h, gates.z, gates.n, spec), Emitted(*gates, m)

        valid, reset = (None if mask is None else mask[None] for mask in (valid, reset))
        h, emitted = steered(new, h, h_start, valid, reset, None if hold is None else hold.T)
        return h, emitted if emit else None

    return step
