"""The recurrence as a `lax.scan` after a projection of all inputs; it serves every call on every platform."""

from collections.abc import Callable, Sequence
from functools import partial

from jax import lax

from grujax.kernels.derivative import WHOLE, Chunks, under_the_rule
from grujax.kernels.order import as_read, in_time
from grujax.kernels.products import (
    add_bias,
    dot,
    input_bias,
    input_products,
    one_product_serves,
    split_gates,
    state_products,
)
from grujax.kernels.step import scan_body
from grujax.types import Array, GRUSpec, Recurrence, Result


def program(
    recurrences: Sequence[Recurrence],
    spec: GRUSpec,
    *,
    reverse: Sequence[bool],
    with_gates: bool,
    time_major: bool,
    chunks: Chunks = WHOLE,
    ruled: bool = True,
) -> list[Result]:
    """Returns the results of `grujax.kernels.run`.

    ruled: differentiate by the rule of kernels/derivative.py; False: by JAX.
    """
    read = [
        as_read(recurrence, backwards, time_major) for recurrence, backwards in zip(recurrences, reverse, strict=True)
    ]
    results = under_the_rule(loop, read, spec, with_gates, chunks) if ruled else loop(read, spec, with_gates)
    return [
        in_time(result, recurrence.control.valid, backwards, time_major)
        for result, recurrence, backwards in zip(results, read, reverse, strict=True)
    ]


def loop(recurrences: Sequence[Recurrence], spec: GRUSpec, with_gates: bool) -> list[Result]:
    """Runs one scan after the other. The gates come from three products with the state on CPU, elsewhere from one.

    XLA for TPUs keeps three products separate, and XLA for GPUs joins the weights again in every call. XLA for CPUs
    splits one product in a separate pass. docs/decisions/gpu-and-tpu-programs.md has the counts.
    """
    scans: list[Callable] = [partial(_scan, spec=spec, with_gates=with_gates)]
    if one_product_serves(spec):
        scans.append(partial(scans[0], one_product=True))
        scan = partial(lax.platform_dependent, cpu=scans[0], default=scans[1])
    else:
        scan = scans[0]
    return [scan(recurrence) for recurrence in recurrences]


def _scan(recurrence: Recurrence, spec: GRUSpec, with_gates: bool, one_product: bool = False) -> Result:
    x, weights, h0, control = recurrence
    assert h0 is not None
    bias = input_bias(weights)  # added inside the loop, where it is free; outside, it costs a pass over memory

    def gates_of(products: Array | Sequence[Array]) -> list[Array]:
        return add_bias(split_gates(products) if isinstance(products, Array) else products, bias)

    products = dot(x, weights.w_ih, spec) if one_product else input_products(x, weights, spec)
    body = scan_body(recurrence, gates_of, state_products(weights, spec, one_product), spec, with_gates)
    h_last, (hs, gates, m) = lax.scan(body, h0, (products, control.valid, control.reset, control.hold))
    return Result(hs, h_last, gates, m)
