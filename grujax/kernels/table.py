"""The table of implementations, and the rules that choose one for a call.

No other module knows platforms or thresholds.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from grujax.errors import InputError, require_one_of
from grujax.kernels import native, xla
from grujax.kernels.calls.program import program
from grujax.kernels.checks import check_spec
from grujax.kernels.derivative import WHOLE, Chunks
from grujax.kernels.resident import plan
from grujax.kernels.tpu.limits import tpu_refuses
from grujax.types import GRUSpec, Result

Sizes: TypeAlias = tuple[int | None, int | None, int | None]
"""T, B and H; None for a size that is not known at compile time."""


class Asked(NamedTuple):
    """The properties of a call that decide which implementations can serve it."""

    spec: GRUSpec
    dtype: DTypeLike  # of the matrix products
    sizes: Sizes
    control: frozenset[str]  # the fields of `Control` that are not None


class Kernel(NamedTuple):
    """An implementation: its program, its description, and the calls that it does not serve."""

    program: Callable[..., list[Result]]
    """(recurrences, spec, *, reverse, with_gates, time_major, chunks) -> results."""
    about: str
    refuses: Callable[[Asked], str | None] = lambda asked: None
    """Why it cannot serve a call; None if it can."""
    platform: str | None = None
    """The only platform on which it runs; None: every platform."""
    not_chosen: Callable[[Asked], str | None] = lambda asked: None
    """Why `implementation=None` does not choose it although it could serve the call; None if it may be chosen."""
    chunks: Callable[[Sizes, str], Chunks] = lambda sizes, backend: WHOLE
    """(sizes, JAX's default backend) -> how its derivative divides the sequence."""


def _not_whole(asked: Asked) -> str | None:
    """Why no kernel that runs all steps in one call can serve; None if one can."""
    if asked.spec.layer_norm:
        return "it has no layer normalisation"
    if (asked.spec.activation, asked.spec.gate_activation, asked.spec.clip) != ("tanh", "sigmoid", None):
        return "it supports only tanh and sigmoid, without clip"
    return None


def _not_in_cpp(asked: Asked) -> str | None:
    if isinstance(why := native.library(), str):
        return why
    if why := _not_whole(asked):
        return why
    if jnp.dtype(asked.dtype).name not in ("float32", "float64", "bfloat16"):
        return f"it multiplies in float32, float64 and bfloat16, not in {jnp.dtype(asked.dtype).name}"
    return None


def _not_resident(asked: Asked) -> str | None:
    if jax.__version_info__[:2] < plan.JAX:
        return f"it needs jax {'.'.join(map(str, plan.JAX))}, and this is {jax.__version__}"
    if (found := _capability()) not in (None, plan.CAPABILITY):
        return f"it is compiled for GPUs of compute capability {plan.CAPABILITY} (Hopper), and this one has {found}"
    if why := _not_whole(asked):
        return why
    if not asked.spec.reset_after:
        return "it supports only reset_after=True"
    if "hold" in asked.control:
        return "it has no zoneout"
    return plan.refuses(asked.sizes[2], asked.dtype, asked.spec.precision)


def _capability() -> str | None:
    """The compute capability of this machine's GPU; None without one, when a program is lowered for another machine."""
    return getattr(jax.devices()[0], "compute_capability", None) if jax.default_backend() == "gpu" else None


def _not_measured(asked: Asked) -> str | None:
    if _capability() is None:
        return "no GPU is available"
    if why := _sizes_unknown(asked):
        return why
    _, n_rows, hidden_size = asked.sizes
    assert n_rows is not None and hidden_size is not None
    return plan.not_measured(n_rows, hidden_size, asked.dtype, asked.spec.precision)


def _sizes_unknown(asked: Asked) -> str | None:
    return "the sizes are not known at compile time" if None in asked.sizes else None


def _ruled_out(asked: Asked) -> str | None:
    return "the linear derivative rule has no layer normalisation" if asked.spec.layer_norm else None


# Measured: docs/decisions/derivative-rule.md, "Chunks of steps"; benchmarks/results/20261125T204426-95b0e1a.json.
CHUNKED_FROM = 2**19
"""From this many elements of a (T, B, H) array on, the derivative works in chunks of steps, which stay in the cache, if
the CPU is the default backend."""
CHUNK, SHORTEST = 2**17, 16
"""The elements of a (T, B, H) array in a chunk, and the minimum number of steps of a chunk."""
LONG = {"cpu": (2**23, 2**18)}
"""By backend: the number of elements from which on chunks keep only the input and the states and recompute the gates,
and the elements of such a chunk."""
LONG_ELSEWHERE = (2**28, 2**24)
"""The same for an accelerator: it has more memory, and on an H100 chunks of one or two steps took up to 2.1 times as
long as `lax.scan` (docs/decisions/gpu-kernel.md). These sizes follow from that and were not timed."""


def xla_chunks(sizes: Sizes, backend: str) -> Chunks:
    """The chunks in which the derivative of XLA's loop processes a sequence.

    If the default backend is a GPU, the loop does not return its gates: each array that a step writes costs a launch
    there, while the gates of all steps together take only a few products.
    """
    at_once = Chunks(None, kept=backend != "gpu")
    n_steps, n_rows, hidden_size = sizes
    if n_steps is None or n_rows is None or hidden_size is None:
        return at_once
    step = n_rows * hidden_size
    long, chunk = LONG.get(backend, LONG_ELSEWHERE)
    if n_steps * step >= long:
        return Chunks(max(1, chunk // step), kept=False)
    if n_steps * step < CHUNKED_FROM or backend != "cpu":
        return at_once
    most = max(SHORTEST, CHUNK // step)
    without_rest = (steps for steps in range(most, most // 2, -1) if n_steps % steps == 0)
    return Chunks(next(without_rest, most), kept=True)


# Measured: docs/decisions/native-kernel.md, "Long sequences".
NATIVE_LONG_FROM = 2**26
"""From this many elements of a (T, B, H) array on, the native kernel recomputes the gates, a chunk at a time: in
float32 the gates of all steps would take 1 GiB."""
NATIVE_CHUNK = 2**21
"""The elements of a (T, B, H) array in a chunk."""


def native_chunks(sizes: Sizes, backend: str) -> Chunks:
    """The chunks in which the derivative of the native kernel processes a sequence."""
    n_steps, n_rows, hidden_size = sizes
    if n_steps is None or n_rows is None or hidden_size is None:
        return WHOLE
    step = n_rows * hidden_size
    if n_steps * step < NATIVE_LONG_FROM:
        return WHOLE
    steps = max(1, NATIVE_CHUNK // step)
    return Chunks(steps, kept=False) if steps < n_steps else WHOLE


KERNELS: dict[str, Kernel] = {
    # Measured: docs/decisions/native-kernel.md.
    "native": Kernel(
        partial(program, kernel="native"),
        "C++, all steps in one call, with its own backward pass",
        refuses=_not_in_cpp,
        platform="cpu",
        not_chosen=_sizes_unknown,
        chunks=native_chunks,
    ),
    # Measured: docs/decisions/gpu-kernel.md.
    "resident": Kernel(
        partial(program, kernel="resident"),
        "all steps in one launch, the weights in shared memory or registers, with its own backward pass",
        refuses=_not_resident,
        platform="cuda",
        not_chosen=_not_measured,
    ),
    # Compiled and interpreted, but never run on a TPU: docs/decisions/tpu-kernel.md.
    "tpu": Kernel(
        partial(program, kernel="tpu"),
        "one launch for each direction, the weights and the state in VMEM, with its own backward pass",
        refuses=lambda asked: _not_whole(asked) or tpu_refuses(asked.spec, asked.dtype, asked.sizes[2]),
        platform="tpu",
        not_chosen=lambda asked: "it was never run on a TPU",
    ),
    "xla": Kernel(
        xla.program,
        "lax.scan, the input projected beforehand, under the linear derivative rule",
        refuses=_ruled_out,
        chunks=xla_chunks,
    ),
    "autodiff": Kernel(partial(xla.program, ruled=False), "the loop of xla, differentiated by JAX"),
}
"""The implementations by name, in the order in which `implementation=None` tries them."""


class Explanation(NamedTuple):
    """The implementation that `explain` names, and the reason; `str()` makes a sentence of it."""

    implementation: str  # a key of `KERNELS`
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
    control: Collection[str] = (),
) -> Explanation:
    """Says which implementation `grujax.kernels.run` uses for a call with these arguments, and why.

    Args:
      spec, implementation: the arguments of `run`.
      sizes: (T, B, H); None for a size that is not known at compile time.
      dtype: the dtype of the matrix products.
      platform: "cpu", "gpu" or "tpu"; None: JAX's default. The answer depends on the platform.
      control: the fields of `grujax.types.Control` that the call passes, such as "valid".

    Raises:
      InputError: the spec or the implementation has an unknown name, or the implementation cannot serve the call.

    >>> explain(sizes=(100, 32, 512), platform="gpu").implementation
    'xla'
    >>> explain(sizes=(None, 32, 512), platform="cpu").implementation
    'xla'
    >>> explain(implementation="autodiff").reason
    'named by the caller'
    >>> found = explain(spec=GRUSpec(layer_norm=True), platform="gpu")
    >>> found.implementation, found.reason.split("; ")[-1]
    ('autodiff', 'xla cannot serve: the linear derivative rule has no layer normalisation')
    """
    asked = Asked(spec, dtype, sizes, frozenset(control))
    check_named(asked, implementation)
    if implementation is None:
        return choice(asked, platform or jax.default_backend())
    return Explanation(implementation, "named by the caller")


def check_named(asked: Asked, implementation: str | None) -> None:
    """Raises `InputError` for an unknown name, or for a named implementation that cannot serve the call."""
    check_spec(asked.spec)
    if implementation is None:
        return
    remedy = '"reference" is Flax\'s scan over GRUCell: only the layers (GRU, GRUEncoder, GRUModel) support it.'
    remedy = remedy if implementation == "reference" else ""
    require_one_of(implementation, (*sorted(KERNELS), None), "implementation", remedy)
    if (why := KERNELS[implementation].refuses(asked)) is not None:
        rule = f"implementation={implementation!r} cannot serve this call: {why}"
        raise InputError("implementation", "another or None", repr(implementation), "Pass None.", rule)


def choice(asked: Asked, platform: str) -> Explanation:
    """Chooses the first implementation that runs on this platform and can serve the call."""
    passed = []
    for name, kernel in KERNELS.items():
        if kernel.platform not in (None, "cuda" if platform == "gpu" else platform):
            continue
        if (why := kernel.refuses(asked) or kernel.not_chosen(asked)) is None:
            known = "nothing faster is known" if kernel.platform is None else "the fastest that was measured"
            return Explanation(name, "; ".join(passed) or f"the default on {platform}: {known}")
        passed.append(f"{name} cannot serve: {why}")
    raise AssertionError("autodiff serves everything")
