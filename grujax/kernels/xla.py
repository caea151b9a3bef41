"""The recurrence as `lax.scan`, the input projected beforehand: always right, on every platform."""

from collections.abc import Sequence

from jax import lax

from grujax.kernels.products import (
    add_bias,
    dot,
    input_bias,
    input_products,
    split_gates,
    state_products,
)
from grujax.kernels.step import scan_body
from grujax.types import Array, GRUSpec, Recurrence, Result


def xla(
    recurrences: Sequence[Recurrence],
    spec: GRUSpec,
    with_gates: bool = False,
    time_axis: int = 0,
    one_product: bool = False,
) -> list[Result]:
    """One loop after the other; `time_axis` makes no difference.

    one_product: r, z and n come from one product of the state a step and, beforehand, one of the input at all steps.
    XLA for TPUs leaves three products apart, and XLA for GPUs joins the weights again at every call.
    """
    results = []
    for recurrence in recurrences:
        x, weights, h0, control = recurrence
        assert h0 is not None
        bias = input_bias(weights)  # added inside the loop, where it costs nothing: outside it is a pass over memory

        def gates_of(products: Array | Sequence[Array], bias: Array | None = bias) -> list[Array]:
            return add_bias(split_gates(products) if isinstance(products, Array) else products, bias)

        products = dot(x, weights.w_ih, spec) if one_product else input_products(x, weights, spec)
        body = scan_body(recurrence, gates_of, state_products(weights, spec, one_product), spec, with_gates)
        h_last, (hs, gates, m) = lax.scan(body, h0, (products, control.valid, control.reset, control.hold))
        results.append(Result(hs, h_last, gates, m))
    return results
