"""Runs a recurrence in chunks of steps, so that the residuals of only one chunk are in memory at a time.

The forward pass keeps only the states between chunks. In the backward pass each chunk runs forward again first.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from grujax.kernels.calls.arrays import Call, Given, N, by_direction, time_at
from grujax.types import Array


def chunks_serve(arrays: Sequence[Array], call: Call) -> bool:
    """Whether a call can run in chunks.

    It cannot where the gates are returned, nor where a direction with resets reads backwards: a reset then acts across
    the edge of a chunk.
    """
    if call.chunk is None or call.saved:
        return False
    resets = [Given(*direction).reset.shape != (0,) for direction in by_direction(arrays, N)]
    return not any(has_reset and backwards for has_reset, backwards in zip(resets, call.reverse, strict=True))


def in_chunks(kernel: Callable[[list[Array]], list[Array]], arrays: Sequence[Array], call: Call) -> list[Array]:
    """Returns hs and h_last of each direction: a scan over chunks of `call.chunk` steps, then the remaining steps.

    A direction that reads backwards begins with the last chunk.
    """
    assert call.chunk is not None
    directions, steps = [Given(*direction) for direction in by_direction(arrays, N)], call.chunk
    at = time_at(call.time_major)
    axes = at._asdict()
    n_chunks, left = divmod(directions[0].x.shape[at.x], steps)

    def divided(a: Array, axis: int, backwards: bool) -> tuple[Array, Array]:
        """Returns the whole chunks on a new first axis, in the order of reading, and the remaining steps."""
        whole, rest = jnp.split(a, [left if backwards else n_chunks * steps], axis)[:: -1 if backwards else 1]
        whole = jnp.moveaxis(whole.reshape(*a.shape[:axis], n_chunks, steps, *a.shape[axis + 1 :]), axis, 0)
        return jnp.flip(whole, 0) if backwards else whole, rest

    def joined(hs: Array, rest: Array, backwards: bool) -> Array:
        hs = jnp.moveaxis(jnp.flip(hs, 0) if backwards else hs, 0, at.x)
        whole = hs.reshape(*hs.shape[: at.x], n_chunks * steps, *hs.shape[at.x + 2 :])
        return jnp.concatenate([whole, rest][:: -1 if backwards else 1], at.x)

    def run(states: Sequence[Array], timed: Sequence[dict[str, Array]]) -> tuple[list[Array], list[Array]]:
        chunk = [
            a
            for direction, h, over_time in zip(directions, states, timed, strict=True)
            for a in direction._replace(h0=h, **over_time)
        ]
        outputs = kernel(chunk)
        return outputs[1::2], outputs[::2]

    pairs = [
        {
            name: divided(a, axis, backwards)
            for name, a in direction._asdict().items()
            if (axis := axes[name]) is not None and a.shape != (0,)
        }
        for direction, backwards in zip(directions, call.reverse, strict=True)
    ]
    whole, rest = ([{name: pair[i] for name, pair in timed.items()} for timed in pairs] for i in (0, 1))
    states, hs = lax.scan(jax.checkpoint(run, prevent_cse=False), [direction.h0 for direction in directions], whole)
    states, last = run(states, rest)
    hs = [joined(*parts) for parts in zip(hs, last, call.reverse, strict=True)]
    return [a for pair in zip(hs, states, strict=True) for a in pair]
