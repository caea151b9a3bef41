"""Counts the operations of a step, compiled for an H100 and a TPU v5e: `python benchmarks/programs.py [NAME ...]`.

NAME is an implementation. No device is needed, only the compilers: pip install nvidia-cuda-nvcc-cu12 libtpu and
jax-cuda12-plugin in jax's own version. The counts say what each step of a loop launches, but not how long it takes. The
result is in docs/decisions/gpu-and-tpu-programs.md.
"""

import os
import re
import sys
from collections.abc import Iterator
from functools import partial

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu queries a cloud service for the machine
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table
from targets import compiled_for

from grujax.bench.cases import CASES
from grujax.kernels import run
from grujax.types import Array, GRUWeights, Recurrence

TARGETS = {"gpu": "H100", "tpu": "v5e"}
CASE = CASES["medium"]


def hs(x: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array, h0: Array, name: str | None) -> Array:
    (result,) = run([Recurrence(x, GRUWeights(w_ih, w_hh, b_ih, b_hh), h0)], implementation=name)
    return result.hs


def gradient(*arrays: Array, name: str | None) -> tuple[Array, ...]:
    return jax.grad(lambda *a: jnp.square(hs(*a, name=name)).sum(), argnums=(0, 1, 2, 3, 4))(*arrays)


def program(target: str, name: str | None, function: str) -> str:
    """Returns the text of the compiled program of `hs` or `gradient`."""
    jax.clear_caches()
    T, B, I, H = CASE.T, CASE.B, CASE.I, CASE.H
    shapes = [(T, B, I), (I, 3 * H), (H, 3 * H), (3 * H,), (3 * H,), (B, H)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    f = {"hs": hs, "gradient": gradient}[function]
    return compiled_for(TARGETS[target], partial(f, name=name), *arrays).as_text() or ""


def launched(text: str) -> Iterator[tuple[int, int, int]]:
    """Counts, for each loop, what one step launches: products, other fusions over (B, H) or more, and copies."""
    computations = {name: block for block in text.split("\n\n") for name in re.findall(r"^%([\w.-]+) \(", block, re.M)}
    for body in re.findall(r"body=%([\w.-]+)", text):
        lines = [line for line in computations[body].splitlines() if not re.search(r"= [a-z0-9]+\[\]", line)]
        fusions = [
            computations[called] for line in lines for called in re.findall(r" fusion\(.*calls=%([\w.-]+)", line)
        ]
        bare = sum(bool(re.search(r" (dot|convolution|custom-call)\(", line)) for line in lines)
        fused = sum(bool(re.search(r" (dot|convolution)\(", fusion)) for fusion in fusions)
        moved = sum(bool(re.search(r"ROOT \S+ = \S+ dynamic-update-slice\(.*copy", fusion)) for fusion in fusions)
        copies = sum(" copy(" in line for line in lines) + moved
        if not bare + fused:
            raise RuntimeError(f"no product found in the loop {body}: XLA's format of programs has changed")
        yield bare + fused, len(fusions) - fused - moved, copies


def main() -> None:
    table = Table("for", "loop", "forward", "differentiated", "backward", title="products, other fusions, copies")
    for target in TARGETS:
        jax.default_backend = lambda target=target: target  # all that grujax queries about the machine
        for name in sys.argv[1:] or ("xla", "autodiff"):
            loops = [loop for f in ("hs", "gradient") for loop in launched(program(target, name, f))]
            if len(loops) != 3:
                raise RuntimeError(f"{name}: expected 3 loops, one of hs and two of its gradient, found {len(loops)}")
            table.add_row(target, name, *(f"{p}, {f}, {c}" for p, f, c in loops))
    console = Console()
    console.print(f"per step of {CASE.B} rows, I {CASE.I}, H {CASE.H}; jax {jax.__version__}", table, sep="\n")


if __name__ == "__main__":
    main()
