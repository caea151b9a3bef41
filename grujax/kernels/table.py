"""Which implementation runs the recurrence, and why: one row each. Only here are platforms and thresholds known."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import NamedTuple, TypeAlias

import jax

from grujax.errors import InputError, require_one_of
from grujax.kernels.checks import check_spec
from grujax.kernels.cpu_loops import brief, columns, in_place
from grujax.kernels.derivative import Chunks, Loop
from grujax.kernels.products import one_product_serves
from grujax.kernels.xla import xla
from grujax.types import GRUSpec

Sizes: TypeAlias = tuple[int | None, int | None, int | None]
"""T, B and H; None for one that is not known while compiling."""

Region: TypeAlias = Mapping[str, tuple[float, float]]
"""Least and greatest value of some of T, B, H, B*H, T*B*H and H/B. An unknown size is in no region that names it."""


class Kernel(NamedTuple):
    """An implementation: what runs, what it is, why it cannot serve a call, and where None chooses it."""

    loop: Loop
    about: str
    one_product_elsewhere: Loop | None = None
    """The loop on other platforms than CPU, for equations that one product serves; None: the same loop."""
    refuses: Callable[[GRUSpec], str | None] = lambda spec: None
    """Why it cannot serve; None where it can."""
    ruled: bool = True
    """Differentiated by kernels/derivative.py; False leaves it to JAX."""
    cpu_only: bool = False
    """None chooses it on CPU only; by its name it runs everywhere."""
    regions: Sequence[Region] = ({},)
    """Sizes at which it was measured to be fastest; `{}` is all sizes."""

    def loop_elsewhere(self, spec: GRUSpec) -> Loop:
        return self.one_product_elsewhere if self.one_product_elsewhere and one_product_serves(spec) else self.loop


def _needs_one_product(spec: GRUSpec) -> str | None:
    if one_product_serves(spec):
        return None
    if spec.layer_norm:
        return "it has no layer normalisation"
    return "it takes r, z and n from one product, which is reset_after=True"


def _ruled_out(spec: GRUSpec) -> str | None:
    return "the linear derivative rule has no layer normalisation" if spec.layer_norm else None


KERNELS: dict[str, Kernel] = {
    # Measured: docs/decisions/one-step-calls.md, '"brief" against the linear rule';
    # "streaming" of benchmarks/results/20261125T204426-95b0e1a.json.
    "brief": Kernel(
        brief,
        "lax.scan, one product of the input and one of the state a step, differentiated by JAX",
        refuses=_needs_one_product,
        ruled=False,
        cpu_only=True,
        regions=[{"T": (1, 2)}],
    ),
    # Measured: docs/decisions/cpu-loops.md, '"columns" and "joint"', 1024 rows;
    # "rl" of benchmarks/results/20261125T204426-95b0e1a.json.
    "joint": Kernel(
        in_place,
        "lax.scan, one product of the input and one of the state a step, under the linear derivative rule",
        refuses=_needs_one_product,
        cpu_only=True,
        regions=[{"T*B*H": (2**22, inf), "B": (513, inf)}],
    ),
    # Measured: docs/decisions/cpu-loops.md, '"halves"': half the rows are work enough for a core, and the weights fit
    # into its own cache; from 256 units on four steps unrolled beat two. "small" and "medium" of
    # benchmarks/results/20261125T173950-641de9e.json.
    "halves": Kernel(
        partial(in_place, halved=True, unroll=lambda hidden_size: 4 if hidden_size >= 256 else 2),
        "as joint; the batch of one direction alone is split in two halves that advance in one loop body",
        refuses=_needs_one_product,
        cpu_only=True,
        regions=[
            {"H": (128, 511), "B*H": (2048, inf), "B": (1, 64)},
            {"H": (64, 127), "B": (256, 512)},
        ],
    ),
    # Measured: docs/decisions/cpu-loops.md, '"columns" and "joint"' (two steps unrolled as well);
    # "large" of benchmarks/results/20261125T204426-95b0e1a.json.
    "columns": Kernel(
        partial(columns, unroll=2),
        "lax.scan with the rows of the batch as columns, projecting in the loop, under the linear derivative rule",
        refuses=_needs_one_product,
        cpu_only=True,
        regions=[
            {"B*H": (4096, inf), "H/B": (8, inf)},
            {"T*B*H": (2**22, inf), "B": (8, 512)},
        ],
    ),
    # One product elsewhere: counted, not timed, in docs/decisions/gpu-and-tpu-programs.md by benchmarks/programs.py.
    "xla": Kernel(
        xla,
        "lax.scan, the input projected beforehand, under the linear derivative rule",
        one_product_elsewhere=partial(xla, one_product=True),
        refuses=_ruled_out,
    ),
    "autodiff": Kernel(xla, "the loop of xla, differentiated by JAX", ruled=False),
}
"""In the order in which None tries them."""

# Measured: docs/decisions/derivative-rule.md, "Chunks of steps"; benchmarks/results/20261125T204426-95b0e1a.json.
CHUNKED_FROM = 2**19
"""Elements of a (T, B, H) array from which on the derivative works in chunks of steps, which stay in the cache, where
the default backend is the CPU."""
CHUNK, SHORTEST = 2**17, 16
"""Elements of such an array in a chunk, and the fewest steps of a chunk."""
LONG_FROM = 2**23
"""Elements from which on the chunks keep only the input and the states, and compute the gates again."""
LONG_CHUNK = 2**18


def chunks_of(sizes: Sizes, backend: str) -> Chunks:
    """The chunks in which the derivative takes the steps of a sequence.

    Where the default backend is a GPU the loop does not return its gates: each array that a step fills costs a launch
    there, and the gates of all steps at once are a few products.
    """
    at_once = Chunks(None, kept=backend != "gpu")
    n_steps, n_rows, hidden_size = sizes
    if n_steps is None or n_rows is None or hidden_size is None:
        return at_once
    step = n_rows * hidden_size
    if n_steps * step >= LONG_FROM:
        return Chunks(max(1, LONG_CHUNK // step), kept=False)
    if n_steps * step < CHUNKED_FROM or backend != "cpu":
        return at_once
    most = max(SHORTEST, CHUNK // step)
    without_rest = (steps for steps in range(most, most // 2, -1) if n_steps % steps == 0)
    return Chunks(next(without_rest, most), kept=True)


class Explanation(NamedTuple):
    """What would run and why, as `explain` returns it; its `str()` is a sentence."""

    implementation: str  # a name of `KERNELS`
    reason: str

    def __str__(self) -> str:
        return f"{self.implementation}: {KERNELS[self.implementation].about} ({self.reason})"


def explain(
    *,
    spec: GRUSpec = GRUSpec(),
    implementation: str | None = None,
    sizes: Sizes = (None, None, None),
    platform: str | None = None,
) -> Explanation:
    """Which implementation `grujax.kernels.run` takes for a call with these arguments, and why.

    Args:
      spec, implementation: as `run` takes them.
      sizes: (T, B, H); None for one that is not known while compiling.
      platform: "cpu", "gpu" or "tpu"; JAX's default where None. On another platform another one may run.

    Raises:
      InputError: the spec or the implementation has an unknown name, or the implementation cannot serve the spec.

    >>> [explain(sizes=(100, 32, H), platform="cpu").implementation for H in (64, 256, 512)]
    ['xla', 'halves', 'columns']
    >>> explain(sizes=(100, 32, 512), platform="gpu").implementation
    'xla'
    >>> explain(implementation="autodiff").reason
    'named by the caller'
    >>> found = explain(spec=GRUSpec(layer_norm=True), platform="cpu")
    >>> found.implementation, found.reason
    ('autodiff', 'xla cannot serve: the linear derivative rule has no layer normalisation')
    """
    check_named(spec, implementation)
    if implementation is None:
        return choice(spec, sizes, platform or jax.default_backend())
    return Explanation(implementation, "named by the caller")


def check_named(spec: GRUSpec, implementation: str | None) -> None:
    """Raises `InputError` as `explain` does."""
    check_spec(spec)
    if implementation is None:
        return
    remedy = '"reference" is Flax\'s scan over GRUCell: only the layers (GRU, GRUEncoder, GRUModel) have it.'
    remedy = remedy if implementation == "reference" else ""
    require_one_of(implementation, (*sorted(KERNELS), None), "implementation", remedy)
    if (why := KERNELS[implementation].refuses(spec)) is not None:
        rule = f"implementation={implementation!r} cannot serve this call: {why}"
        raise InputError("implementation", "another or None", repr(implementation), "Pass None.", rule)


def choice(spec: GRUSpec, sizes: Sizes, platform: str) -> Explanation:
    """The first that can serve, is for this platform and is fastest at these sizes."""
    passed = []
    for name, kernel in KERNELS.items():
        if (kernel.cpu_only and platform != "cpu") or not any(inside(region, sizes) for region in kernel.regions):
            continue
        if (why := kernel.refuses(spec)) is None:
            known = "fastest measured on CPU at these sizes" if platform == "cpu" else "nothing faster is known"
            return Explanation(name, "; ".join(passed) or f"the default on {platform}: {known}")
        passed.append(f"{name} cannot serve: {why}")
    raise AssertionError("autodiff serves everything")


def inside(region: Region, sizes: Sizes) -> bool:
    """Whether sizes are in a region.

    >>> inside({"B*H": (4096, inf), "H/B": (8, inf)}, (None, 8, 512)), inside({"T": (1, 2)}, (None, 8, 512))
    (True, False)
    """
    T, B, H = (float("nan") if size is None else size for size in sizes)  # no comparison with NaN holds
    measures = {"T": T, "B": B, "H": H, "B*H": B * H, "T*B*H": T * B * H, "H/B": H / B if B else inf}
    return all(low <= measures[name] <= high for name, (low, high) in region.items())
