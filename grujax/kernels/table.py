"""Which implementation runs the recurrence, and why: one row each. Only here are platforms and thresholds known."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from grujax.errors import InputError, require_one_of
from grujax.kernels import native, xla
from grujax.kernels.checks import check_spec
from grujax.kernels.derivative import Chunks
from grujax.kernels.native.program import program
from grujax.types import GRUSpec, Result

Sizes: TypeAlias = tuple[int | None, int | None, int | None]
"""T, B and H; None for one that is not known while compiling."""


class Kernel(NamedTuple):
    """An implementation: what runs, what it is, and why it cannot serve a call."""

    program: Callable[..., list[Result]]
    """(recurrences, spec, *, reverse, with_gates, time_major, chunks) -> results."""
    about: str
    refuses: Callable[[GRUSpec, DTypeLike], str | None] = lambda spec, dtype: None
    """Why it cannot serve a spec and a dtype of products; None where it can."""
    cpu_only: bool = False
    sizes_known: bool = False
    """None chooses it where all sizes are known while compiling."""


def _not_in_cpp(spec: GRUSpec, dtype: DTypeLike) -> str | None:
    if isinstance(why := native.library(), str):
        return why
    if spec.layer_norm:
        return "it has no layer normalisation"
    if (spec.activation, spec.gate_activation, spec.clip) != ("tanh", "sigmoid", None):
        return "it has tanh and sigmoid alone, without clip"
    if jnp.dtype(dtype).name not in ("float32", "float64", "bfloat16"):
        return f"it multiplies in float32, float64 and bfloat16, not in {jnp.dtype(dtype).name}"
    return None


def _ruled_out(spec: GRUSpec, dtype: DTypeLike) -> str | None:
    return "the linear derivative rule has no layer normalisation" if spec.layer_norm else None


KERNELS: dict[str, Kernel] = {
    # Measured: docs/decisions/native-kernel.md.
    "native": Kernel(
        program,
        "C++, all steps in one call, with a backward pass of its own",
        refuses=_not_in_cpp,
        cpu_only=True,
        sizes_known=True,
    ),
    "xla": Kernel(
        xla.program, "lax.scan, the input projected beforehand, under the linear derivative rule", refuses=_ruled_out
    ),
    "autodiff": Kernel(partial(xla.program, ruled=False), "the loop of xla, differentiated by JAX"),
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
    sizes: Sizes = (1, 1, 1),
    dtype: DTypeLike = jnp.float32,
    platform: str | None = None,
) -> Explanation:
    """Which implementation `grujax.kernels.run` takes for a call with these arguments, and why.

    Args:
      spec, implementation: as `run` takes them.
      sizes: (T, B, H); None for one that is not known while compiling.
      dtype: of the matrix products.
      platform: "cpu", "gpu" or "tpu"; JAX's default where None. On another platform another one may run.

    Raises:
      InputError: the spec or the implementation has an unknown name, or the implementation cannot serve the call.

    >>> explain(sizes=(100, 32, 512), platform="gpu").implementation
    'xla'
    >>> explain(sizes=(None, 32, 512), platform="cpu").implementation
    'xla'
    >>> explain(implementation="autodiff").reason
    'named by the caller'
    >>> found = explain(spec=GRUSpec(layer_norm=True), platform="gpu")
    >>> found.implementation, found.reason
    ('autodiff', 'xla cannot serve: the linear derivative rule has no layer normalisation')
    """
    check_named(spec, implementation, dtype)
    if implementation is None:
        return choice(spec, sizes, dtype, platform or jax.default_backend())
    return Explanation(implementation, "named by the caller")


def check_named(spec: GRUSpec, implementation: str | None, dtype: DTypeLike) -> None:
    """Raises `InputError` as `explain` does."""
    check_spec(spec)
    if implementation is None:
        return
    remedy = '"reference" is Flax\'s scan over GRUCell: only the layers (GRU, GRUEncoder, GRUModel) have it.'
    remedy = remedy if implementation == "reference" else ""
    require_one_of(implementation, (*sorted(KERNELS), None), "implementation", remedy)
    if (why := KERNELS[implementation].refuses(spec, dtype)) is not None:
        rule = f"implementation={implementation!r} cannot serve this call: {why}"
        raise InputError("implementation", "another or None", repr(implementation), "Pass None.", rule)


def choice(spec: GRUSpec, sizes: Sizes, dtype: DTypeLike, platform: str) -> Explanation:
    """The first that is for this platform and can serve."""
    passed = []
    for name, kernel in KERNELS.items():
        if kernel.cpu_only and platform != "cpu":
            continue
        why = kernel.refuses(spec, dtype)
        if why is None and kernel.sizes_known and None in sizes:
            why = "the sizes are not known while compiling"
        if why is None:
            known = "fastest measured on CPU" if platform == "cpu" else "nothing faster is known"
            return Explanation(name, "; ".join(passed) or f"the default on {platform}: {known}")
        passed.append(f"{name} cannot serve: {why}")
    raise AssertionError("autodiff serves everything")
