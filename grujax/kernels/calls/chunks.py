"""A recurrence in chunks of steps: what the derivative of a chunk reads is gone before that of the next is made.

Of the forward pass only the states between chunks are kept; each chunk runs forward again before it runs backward.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from grujax.kernels.calls.arrays import Call, Given, N, by_direction, time_at
from grujax.types import Array


def chunks_serve(arrays: Sequence[Array], call: Call) -> bool:
    """Not where the gates are asked for, nor where resets are read backwards, across the edges of chunks."""
    if call.chunk is None or call.saved:
        return False
    resets = [Given(*of).reset.shape != (0,) for of in by_direction(arrays, N)]
    return not any(there and way for there, way in zip(resets, call.reverse, strict=True))


def in_chunks(kernel: Callable[[list[Array]], list[Array]], arrays: Sequence[Array], call: Call) -> list[Array]:
    """hs and h_last of each direction: whole chunks of `call.chunk` steps in a scan, then the steps that are left.

    A direction that reads backwards begins with the last chunk.
    """
    assert call.chunk is not None
    every, steps = [Given(*of) for of in by_direction(arrays, N)], call.chunk
    at = time_at(call.time_major)
    axes = at._asdict()
    n_chunks, left = divmod(every[0].x.shape[at.x], steps)

    def divided(a: Array, axis: int, backwards: bool) -> tuple[Array, Array]:
        """The whole chunks on a new first axis, in the order in which they are read; and the rest."""
        whole, rest = jnp.split(a, [left if backwards else n_chunks * steps], axis)[:: -1 if backwards else 1]
        whole = jnp.moveaxis(whole.reshape(*a.shape[:axis], n_chunks, steps, *a.shape[axis + 1 :]), axis, 0)
        return jnp.flip(whole, 0) if backwards else whole, rest

    def joined(hs: Array, rest: Array, backwards: bool) -> Array:
        hs = jnp.moveaxis(jnp.flip(hs, 0) if backwards else hs, 0, at.x)
        whole = hs.reshape(*hs.shape[: at.x], n_chunks * steps, *hs.shape[at.x + 2 :])
        return jnp.concatenate([whole, rest][:: -1 if backwards else 1], at.x)

    def run(states: Sequence[Array], timed: Sequence[dict[str, Array]]) -> tuple[list[Array], list[Array]]:
        chunk = [a for of, h, some in zip(every, states, timed, strict=True) for a in of._replace(h0=h, **some)]
        outputs = kernel(chunk)
        return outputs[1::2], outputs[::2]

    pairs = [
        {
            name: divided(a, axis, way)
            for name, a in of._asdict().items()
            if (axis := axes[name]) is not None and a.shape != (0,)
        }
        for of, way in zip(every, call.reverse, strict=True)
    ]
    whole, rest = ([{name: pair[i] for name, pair in of.items()} for of in pairs] for i in (0, 1))
    states, hs = lax.scan(jax.checkpoint(run, prevent_cse=False), [of.h0 for of in every], whole)
    states, last = run(states, rest)
    hs = [joined(*of) for of in zip(hs, last, call.reverse, strict=True)]
    return [a for pair in zip(hs, states, strict=True) for a in pair]
