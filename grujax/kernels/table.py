"""Which implementation runs the recurrence, and why. The only file that knows the implementations and the platforms."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from jax import lax

from grujax.errors import InputError, require_one_of
from grujax.kernels.checks import check, prepared
from grujax.kernels.columns import columns
from grujax.kernels.derivative import Chunks, Forward, with_derivative
from grujax.kernels.step import GateValues, check_spec
from grujax.kernels.xla import halves, joint, merged, scan
from grujax.types import (
    Array,
    Control,
    Gates,
    GRUSpec,
    Projection,
    Ran,
    Recurrence,
    Recurrent,
    State,
    States,
    Valid,
)


class Sizes(NamedTuple):
    """What the choice depends on; a size that is not known while compiling is None."""

    n_steps: int | None  # T
    n_rows: int | None  # B; None too where explicit sharding splits them among devices
    hidden_size: int | None  # H


class Kernel(NamedTuple):
    """An implementation: what runs, what it is, why it cannot serve a call, and where it is known to be fastest."""

    run: Forward  # the forward loop
    about: str
    refuses: Callable[[GRUSpec, bool], str | None] = lambda spec, projected: None
    """From the spec, and whether the caller has projected the input already; None where the kernel can serve."""
    differentiated: bool = True
    """By kernels/derivative.py; False leaves it to JAX."""
    on_cpu: bool | None = None
    """Chosen unasked on CPU alone; elsewhere alone; or, None, wherever it wins."""
    wins: Callable[[Sizes], bool] = lambda sizes: True
    """Where it was measured to be fastest (benchmarks/NOTES.md); or, nothing being timed there, to launch least."""
    batch_major: Forward | None = None
    """`run` for a caller whose own x and hs are batch-major; None where that is the same."""


def _refused_by_one_product(spec: GRUSpec, projected: bool) -> str | None:
    if spec.layer_norm:
        return "it has no layer normalisation"
    return None if spec.reset_after else "it takes r, z and n from one product, which is reset_after=True"


def _refused_by_projecting(spec: GRUSpec, projected: bool) -> str | None:
    by_gates = "it projects the input itself and was given gates" if projected else None
    return _refused_by_one_product(spec, projected) or by_gates


LARGE = 2**22
"""Elements of a (T, B, H) array from which on it pays, on CPU, not to make the gates of all steps at once."""


def _wide(sizes: Sizes) -> bool:
    n_steps, n_rows, hidden_size = sizes
    if n_rows is None or hidden_size is None:
        return False
    large = n_steps is not None and n_steps * n_rows * hidden_size >= LARGE
    return 4096 / hidden_size <= n_rows <= hidden_size / 8 or (large and 8 <= n_rows <= 512)


def _halved(sizes: Sizes) -> bool:
    """Where half the rows are work enough for a core, and the weights fit into its own cache."""
    _, n_rows, hidden_size = sizes
    if n_rows is None or hidden_size is None:
        return False
    few = 128 <= hidden_size < 512 and 2048 / hidden_size <= n_rows <= 64
    return few or (64 <= hidden_size < 128 and 256 <= n_rows <= 512)


def _tall(sizes: Sizes) -> bool:
    n_steps, n_rows, hidden_size = sizes
    if n_steps is None or n_rows is None or hidden_size is None:
        return False
    return n_steps * n_rows * hidden_size >= LARGE and n_rows > 512


KERNELS: dict[str, Kernel] = {
    "brief": Kernel(
        partial(scan, joint=True),
        "lax.scan, one product of the input and one of the state a step, differentiated by JAX",
        _refused_by_projecting,
        differentiated=False,
        on_cpu=True,
        wins=lambda sizes: sizes.n_steps in (1, 2),
    ),
    "joint": Kernel(
        joint,
        "lax.scan, one product of the input and one of the state a step, under the linear derivative rule",
        _refused_by_projecting,
        on_cpu=True,
        wins=_tall,
        batch_major=partial(joint, time_axis=1),
    ),
    "halves": Kernel(
        halves,
        "as joint, one direction alone as two recurrences of half the rows, which run side by side",
        _refused_by_projecting,
        on_cpu=True,
        wins=_halved,
        batch_major=partial(halves, time_axis=1),
    ),
    "columns": Kernel(
        columns,
        "lax.scan with the rows of the batch as columns, projecting in the loop, under the linear derivative rule",
        _refused_by_projecting,
        on_cpu=True,
        wins=_wide,
    ),
    "merged": Kernel(
        merged,
        "lax.scan, the input projected beforehand, one product of the state a step, under the linear derivative rule",
        _refused_by_one_product,
        on_cpu=False,
    ),
    "fused": Kernel(
        scan,
        "lax.scan, each gate's product fused with its elementwise work, under the linear derivative rule",
        lambda spec, projected: "the linear derivative rule has no layer normalisation" if spec.layer_norm else None,
    ),
    "scan": Kernel(scan, "lax.scan, differentiated by JAX", differentiated=False),
}
"""In the order in which None tries them."""

CHUNKED_FROM = 2**19
"""From so many elements of a (T, B, H) array on, the derivative works, where the default backend is the CPU, in chunks
of steps, which stay in the cache."""
CHUNK, SHORTEST = 2**17, 16
"""Elements of such an array in a chunk, and the fewest steps."""
LONG_FROM = 2**23
"""From so many elements on, the chunks keep the input and the states alone and make the gates anew."""
LONG_CHUNK = 2**18


def chunks_of(sizes: Sizes) -> Chunks:
    """The chunks in which the derivative takes the steps of a sequence.

    Where the default backend is a GPU the steps do not hand out their gates: each array that they fill is one more
    launch a step there, and the gates of all steps at once are a few products.
    """
    platform = jax.default_backend()
    at_once = Chunks(None, emitted=platform != "gpu")
    n_steps, n_rows, hidden_size = sizes
    if n_steps is None or n_rows is None or hidden_size is None:
        return at_once
    step = n_rows * hidden_size
    if n_steps * step >= LONG_FROM:
        return Chunks(max(1, LONG_CHUNK // step), emitted=False)
    if n_steps * step < CHUNKED_FROM or platform != "cpu":
        return at_once
    most = max(SHORTEST, CHUNK // step)
    without_rest = (steps for steps in range(most, most // 2, -1) if n_steps % steps == 0)
    return Chunks(next(without_rest, most), emitted=True)


class Explanation(NamedTuple):
    """What would run and why; `str()` of it reads as a sentence."""

    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.implementation}: {KERNELS[self.implementation].about} ({self.reason})"


def explain(
    *,
    spec: GRUSpec = GRUSpec(),
    implementation: str | None = None,
    sizes: tuple[int | None, int | None, int | None] = (None, None, None),
    projected: bool = False,
    platform: str | None = None,
) -> Explanation:
    """Which implementation `gru_sequence` takes for a call with these arguments, and why.

    sizes: (T, B, H); None for one that is not known while compiling.
    projected: the caller hands over gates, not the input.
    platform: "cpu", "gpu", "tpu"; JAX's default where None. Compiled elsewhere, another may run.

    >>> [explain(sizes=(100, 32, H), platform="cpu").implementation for H in (64, 256, 512)]
    ['fused', 'halves', 'columns']
    >>> explain(sizes=(100, 32, 512), platform="gpu").implementation
    'merged'
    >>> explain(implementation="scan").reason
    'named by the caller'
    >>> print(explain(spec=GRUSpec(layer_norm=True), platform="cpu"))
    scan: lax.scan, differentiated by JAX (fused cannot serve: the linear derivative rule has no layer normalisation)

    Raises `InputError` where the spec names what is not there, or the named implementation does not exist or cannot
    serve the call.
    """
    check_spec(spec)
    if implementation is None:
        return _choice(spec, Sizes(*sizes), projected, platform or jax.default_backend())
    remedy = '"reference" is Flax\'s scan over GRUCell: only the layers (GRU, GRUEncoder, GRUModel) have it.'
    remedy = remedy if implementation == "reference" else ""
    require_one_of(implementation, (*sorted(KERNELS), None), "implementation", remedy)
    if (why := KERNELS[implementation].refuses(spec, projected)) is not None:
        rule = f"implementation={implementation!r} cannot serve this call: {why}"
        raise InputError("implementation", "another or None", repr(implementation), "Pass None.", rule)
    return Explanation(implementation, "named by the caller")


def _choice(spec: GRUSpec, sizes: Sizes, projected: bool, platform: str) -> Explanation:
    """The first that can serve, is for this platform and wins at these sizes."""
    passed = []
    for name, kernel in KERNELS.items():
        why = kernel.refuses(spec, projected)
        if kernel.on_cpu not in (None, platform == "cpu") or not kernel.wins(sizes):
            continue
        if why is None:
            known = "fastest measured on CPU at these sizes" if platform == "cpu" else "nothing faster is known"
            return Explanation(name, "; ".join(passed) or f"the default on {platform}: {known}")
        passed.append(f"{name} cannot serve: {why}")
    raise AssertionError("scan serves everything")


def gru_sequence(
    gates_x: Gates | Projection,
    h0: State,
    w_hh: Array,
    b_hn: Array,
    *,
    scale_hh: Array | None = None,
    valid: Valid | None = None,
    reset: Valid | None = None,
    h_reset: Array | None = None,
    state_mask: Array | None = None,
    hold: Array | None = None,
    spec: GRUSpec = GRUSpec(),
    implementation: str | None = None,
    with_gates: bool = False,
) -> tuple[States, State] | tuple[States, State, GateValues]:
    """The recurrence alone: the narrow door through which every implementation is reached.

    Args:
      gates_x: (T, B, 3H), the projected input r | z | n with `b_ih` and the r, z parts of `b_hh` added; or a
        `Projection` of the input, from which the implementation makes them where that is fastest.
      h0: (B, H), the state before the first step.
      w_hh: (H, 3H). Products with it run in its dtype and are summed in float32 at least.
      b_hn: (H,), the bias inside the candidate's recurrent product.
      scale_hh: (3H,), of layer normalisation, where `spec.layer_norm` and only there.
      valid: (T, B) bool; where False the state is held. None: every step is valid.
      reset: (T, B) bool; where True the state that enters the step is `h_reset`. A step that is not valid never resets.
      h_reset: (H,), zeros where None.
      state_mask: (B, H), multiplies the state where the products read it. No derivative.
      hold: (T, B, H), 0 to 1, the share of each unit that stays as it was. No derivative.
      spec: what is fixed at compile time, see `GRUSpec`.
      implementation: a name of `KERNELS`, or None, which chooses; see `explain`.
      with_gates: hand out r, z and n of every step too.

    Returns:
      hs (T, B, H), the state after every step, and h_last (B, H), both in float32 at least; `GateValues`, (T, B, H)
      each, where asked.

    Raises:
      InputError: a shape or dtype that does not fit, or an implementation that cannot serve the call.

    >>> import jax.numpy as jnp
    >>> hs, h_last = gru_sequence(jnp.ones((5, 2, 9)), jnp.zeros((2, 3)), jnp.ones((3, 9)), jnp.ones(3))
    >>> hs.shape, bool((hs[-1] == h_last).all())
    ((5, 2, 3), True)
    """
    projection = gates_x if isinstance(gates_x, Projection) else Projection(gates_x)
    control = Control(valid, reset, h_reset, state_mask, hold)
    recurrence = Recurrence(projection, h0, Recurrent(w_hh, b_hn, scale_hh), control)
    (ran,) = gru_sequences([recurrence], spec=spec, implementation=implementation, with_gates=with_gates)
    return ran[:2] if ran.emitted is None else (*ran[:2], GateValues(*ran.emitted[:3]))


def gru_sequences(
    recurrences: Sequence[Recurrence],
    *,
    spec: GRUSpec = GRUSpec(),
    implementation: str | None = None,
    with_gates: bool = False,
    time_major: bool = True,
) -> list[Ran]:
    """`gru_sequence` for several recurrences of one shape, such as both directions of a layer.

    An implementation may run them in one loop, where their products need not wait for each other.

    time_major: False where x is a batch-major array, with its axes swapped, and hs will be. All shapes stay the same.
    """
    for recurrence in recurrences:
        check(*recurrence, spec)
    projection, h0, *_ = recurrences[0]
    projected = projection.w_ih is None
    explain(spec=spec, implementation=implementation, projected=projected)
    sizes = Sizes(*(size if isinstance(size, int) else None for size in (projection.x.shape[0], *h0.shape)))
    if jax.typeof(projection.x).sharding.spec[1] is not None:
        sizes = sizes._replace(n_rows=None)
    places = ("cpu", "elsewhere")
    names = [implementation or _choice(spec, sizes, projected, place).implementation for place in places]
    names = tuple(dict.fromkeys(names))
    time_major = time_major or not any(KERNELS[name].batch_major for name in names)
    return _run(list(recurrences), spec, names, chunks_of(sizes), with_gates, time_major)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _run(recurrences, spec, names, chunks, emit, time_major):
    recurrences = [prepared(*recurrence) for recurrence in recurrences]
    if len({KERNELS[name].differentiated for name in names}) == 1:
        return _program(names, time_major, spec, chunks, emit)(recurrences)
    programs = [_program((name,), time_major, spec, chunks, emit) for name in names]
    return _on_platform(programs, recurrences)


def _program(names: tuple[str, ...], time_major: bool, spec: GRUSpec, chunks: Chunks, emit: bool) -> Callable:
    """What runs `names`, with its derivative, which is one for them all."""
    if not KERNELS[names[0]].differentiated:
        return _loop(names[0], time_major, spec, emit)
    return lambda recurrences: _under_the_rule(names, time_major)(recurrences, spec, emit, chunks)


def _loop(name: str, time_major: bool, spec: GRUSpec, emit: bool) -> Callable:
    kernel = KERNELS[name]
    run = kernel.run if time_major or kernel.batch_major is None else kernel.batch_major
    return lambda recurrences: run(recurrences, spec, emit)


def _on_platform(programs: Sequence[Callable], recurrences: Any) -> Any:
    """The one there is; or, of two, the first on CPU and the second elsewhere."""
    first, *others = programs
    return lax.platform_dependent(recurrences, cpu=first, default=others[0]) if others else first(recurrences)


@cache
def _under_the_rule(names: tuple[str, ...], time_major: bool) -> Callable:
    def forward(recurrences, spec, emit):
        return _on_platform([_loop(name, time_major, spec, emit) for name in names], recurrences)

    # The derivative reads the states time-major: where it is wanted, they are written so.
    return with_derivative(forward, None if time_major else _under_the_rule(names, True))
