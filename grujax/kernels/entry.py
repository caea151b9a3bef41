"""The entry point of the recurrence kernels."""

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
    """Runs one or several recurrences of one shape, such as both directions of a layer.

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    An implementation may run several in one loop, where their products need not wait for each other.

    Args:
      recurrences: `Recurrence`s of one shape. x (T, B, I), all else as in `grujax.types`. x is ignored at
        steps that are not valid, also where it is NaN; such a step never resets. state_mask and hold have no
        derivative.
      spec: what is fixed at compile time, see `GRUSpec`.
      implementation: a name of `grujax.kernels.table.KERNELS`, or None, which chooses; see `explain`.
      reverse: for each recurrence, whether it reads its valid steps from the last to the first; None: none does. In
        reverse the state that enters valid step t is h_reset where `reset` at the next valid step after t.
      with_gates: also return the gates of every step, time-major.
      time_major: False where x is (B, T, I), and hs will be (B, T, H). All else has the same shapes.

    Returns:
      A `Result` for each recurrence: hs in time order, exactly 0 at steps that are not valid, and h_last (B, H), the
      state after the step read last, both in float32 at least; the gates, 0 at steps that are not valid, where asked.

    Raises:
      InputError: a shape or dtype that does not fit, or an implementation that cannot serve the call.

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
        for name, of in (("x", lambda a: a.x), ("w_hh", lambda a: a.weights.w_hh)):
            require_equal(of(recurrence).shape, of(recurrences[0]).shape, name, "All of a call have one shape.")
    check_named(_asked(recurrences[0], spec, time_major), implementation)
    ways = (False,) * len(recurrences) if reverse is None else tuple(reverse)
    return _run(list(recurrences), spec, implementation, ways, with_gates, time_major, jax.default_backend())


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
    recurrences = [of._replace(weights=jax.tree.map(whole, of.weights)) for of in recurrences]
    asked = _asked(recurrences[0], spec, time_major)
    given = {"spec": spec, "reverse": reverse, "with_gates": with_gates, "time_major": time_major}

    def program(name: str):
        return partial(KERNELS[name].program, chunks=KERNELS[name].chunks(asked.sizes, backend), **given)

    if implementation is not None:
        return program(implementation)(recurrences)
    cpu, cuda, elsewhere = (choice(asked, place).implementation for place in ("cpu", "cuda", "elsewhere"))
    own = {place: program(name) for place, name in (("cpu", cpu), ("cuda", cuda)) if name != elsewhere}
    if not own:
        return program(elsewhere)(recurrences)
    return lax.platform_dependent(recurrences, **own, default=program(elsewhere))


def _asked(recurrence: Recurrence, spec: GRUSpec, time_major: bool) -> Asked:
    given = frozenset(name for name, a in recurrence.control._asdict().items() if a is not None)
    return Asked(spec, recurrence.weights.w_hh.dtype, _known_sizes(recurrence, time_major), given)


def _known_sizes(recurrence: Recurrence, time_major: bool) -> Sizes:
    """T, B of each device, and H; None for one that is not known while compiling, and for B where arrays are split
    otherwise than by rows among devices."""
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
