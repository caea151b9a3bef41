"""The recurrence as `lax.scan`, the input projected beforehand: always right, on every platform."""

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
    """The results of `grujax.kernels.run`; `ruled`: differentiated by kernels/derivative.py, else by JAX."""
    read = [as_read(of, backwards, time_major) for of, backwards in zip(recurrences, reverse, strict=True)]
    results = under_the_rule(loop, read, spec, with_gates, chunks) if ruled else loop(read, spec, with_gates)
    return [
        in_time(result, of.control.valid, backwards, time_major)
        for result, of, backwards in zip(results, read, reverse, strict=True)
    ]


def loop(recurrences: Sequence[Recurrence], spec: GRUSpec, with_gates: bool) -> list[Result]:
    """One scan after the other, the gates from three products with the state, or, not on CPU, from one.

    XLA for TPUs leaves three products apart, and XLA for GPUs joins the weights again at every call. XLA for CPUs
    splits the one product in a pass of its own. docs/decisions/gpu-and-tpu-programs.md counts.
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
    bias = input_bias(weights)  # added inside the loop, where it costs nothing: outside it is a pass over memory

    def gates_of(products: Array | Sequence[Array]) -> list[Array]:
        return add_bias(split_gates(products) if isinstance(products, Array) else products, bias)

    products = dot(x, weights.w_ih, spec) if one_product else input_products(x, weights, spec)
    body = scan_body(recurrence, gates_of, state_products(weights, spec, one_product), spec, with_gates)
    h_last, (hs, gates, m) = lax.scan(body, h0, (products, control.valid, control.reset, control.hold))
    return Result(hs, h_last, gates, m)
