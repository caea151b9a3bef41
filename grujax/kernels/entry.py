"""`run`, the entry point of the recurrence kernels."""

from collections.abc import Sequence
from functools import partial

import jax
from jax import lax

from grujax.arrays import whole
from grujax.errors import require_equal
from grujax.kernels.checks import check
from grujax.kernels.table import KERNELS, Asked, Sizes, check_named, choice
from grujax.types import GRUSpec, Recurrence, Result


def run(
    recurrences: Sequence[Recurrence],
    spec: GRUSpec = GRUSpec(),
    implementation: str | None = None,
    *,
    reverse: Sequence[bool] | None = None,
    with_gates: bool = False,
    time_major: bool = True,
) -> list[Result]:
    """Runs one or several recurrences of the same shapes, such as both directions of a layer.

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    An implementation may run several in one loop, so that their products need not wait for each other.

    Args:
      recurrences: `Recurrence`s of the same shapes: x (T, B, I), the other arrays as in `grujax.types`. At steps that
        are not valid, x is ignored, even if it is NaN, and `reset` has no effect. state_mask and hold have no
        derivative.
      spec: the options that are fixed at compile time; see `GRUSpec`.
      implementation: a key of `grujax.kernels.table.KERNELS`; None chooses one, see `explain`.
      reverse: for each recurrence, whether it reads its valid steps from the last to the first; None: none does. In
        reverse, the state that enters valid step t is h_reset if `reset` is set at the next valid step after t.
      with_gates: also return the gates of every step, time-major.
      time_major: False: x is (B, T, I) and hs is (B, T, H). The other shapes do not change.

    Returns:
      A `Result` for each recurrence: hs in time order, exactly 0 at steps that are not valid, and h_last (B, H), the
      state after the step read last, both at least float32; with `with_gates`, the gates, 0 at steps that are not
      valid.

    Raises:
      InputError: a shape or dtype does not fit, or the implementation cannot serve the call.

    >>> import jax.numpy as jnp
    >>> from grujax.types import GRUWeights
    >>> weights = GRUWeights(w_ih=jnp.ones((4, 9)), w_hh=jnp.ones((3, 9)), b_ih=jnp.ones(9), b_hh=jnp.ones(9))
    >>> (result,) = run([Recurrence(jnp.ones((5, 2, 4)), weights)])
    >>> result.hs.shape, bool((result.hs[-1] == result.h_last).all())
    ((5, 2, 3), True)

    Source: torch.nn.GRU; Cho et al. 2014, arXiv 1406.1078.
    """
    for recurrence in recurrences:
        check(recurrence, spec, time_major)
        for name, array_of in (("x", lambda a: a.x), ("w_hh", lambda a: a.weights.w_hh)):
            expected = array_of(recurrences[0]).shape
            require_equal(array_of(recurrence).shape, expected, name, "All recurrences of a call need the same shapes.")
    check_named(_asked(recurrences[0], spec, time_major), implementation)
    reverse = (False,) * len(recurrences) if reverse is None else tuple(reverse)
    return _run(list(recurrences), spec, implementation, reverse, with_gates, time_major, jax.default_backend())


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))
def _run(
    recurrences: list[Recurrence],
    spec: GRUSpec,
    implementation: str | None,
    reverse: tuple[bool, ...],
    with_gates: bool,
    time_major: bool,
    backend: str,
) -> list[Result]:
    recurrences = [recurrence._replace(weights=jax.tree.map(whole, recurrence.weights)) for recurrence in recurrences]
    asked = _asked(recurrences[0], spec, time_major)
    options = {"spec": spec, "reverse": reverse, "with_gates": with_gates, "time_major": time_major}

    def program(name: str):
        return partial(KERNELS[name].program, chunks=KERNELS[name].chunks(asked.sizes, backend), **options)

    if implementation is not None:
        return program(implementation)(recurrences)
    cpu, cuda, default = (choice(asked, platform).implementation for platform in ("cpu", "cuda", "elsewhere"))
    programs = {platform: program(name) for platform, name in (("cpu", cpu), ("cuda", cuda)) if name != default}
    if not programs:
        return program(default)(recurrences)
    return lax.platform_dependent(recurrences, **programs, default=program(default))


def _asked(recurrence: Recurrence, spec: GRUSpec, time_major: bool) -> Asked:
    given = frozenset(name for name, a in recurrence.control._asdict().items() if a is not None)
    return Asked(spec, recurrence.weights.w_hh.dtype, _known_sizes(recurrence, time_major), given)


def _known_sizes(recurrence: Recurrence, time_major: bool) -> Sizes:
    """T, B on each device, and H; None for a size that is not known at compile time.

    B is None also where arrays are split among devices other than by rows.
    """
    n_steps, n_rows, _ = recurrence.x.shape if time_major else (recurrence.x.shape[i] for i in (1, 0, 2))
    sharding = jax.typeof(recurrence.x).sharding
    split = [axis for axis, name in enumerate(sharding.spec) if name is not None]
    weights = [name for a in jax.tree.leaves(recurrence.weights) for name in jax.typeof(a).sharding.spec]
    by_rows = split in ([], [1 if time_major else 0]) and not any(weights)
    hidden_size = recurrence.weights.w_hh.shape[0]
    T, B, H = (size if isinstance(size, int) else None for size in (n_steps, n_rows, hidden_size))
    if B is not None and by_rows and split:
        B = sharding.shard_shape(recurrence.x.shape)[split[0]]
    return T, B if by_rows else None, H
