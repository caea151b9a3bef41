"""Pooling: one vector for each row, or for each segment where rows hold several sequences."""

from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from grujax.core.config import POOLINGS, EncoderConfig, Pooling
from grujax.core.inputs import Steps, check_integers, from_rows
from grujax.core.stack import LayerRun, merged
from grujax.errors import require
from grujax.types import Array, state_dtype


class Segments(NamedTuple):
    """The sequence, 0 to `number` − 1, to which each step belongs: ids (*batch, T), −1 for none."""

    ids: Array
    number: int


def pooled(encoder: EncoderConfig, run: LayerRun, segments: Segments | None, dense: Callable[..., Array]) -> Array:
    """Pools the output of a run: (*batch, F), with segments (number, F), with `pooling=None` (*batch, T, F).

    `dense(name, x, width, bias=True)` computes W x + b with the parameters `name`.
    """
    pooling, time_major = encoder.pooling, encoder.time_major
    if pooling is None:
        return from_rows(run.output, run.batch, time_major)
    output = run.output if time_major else run.output.swapaxes(0, 1)
    valid = jnp.broadcast_to(True, output.shape[:2]) if run.valid is None else run.valid
    if callable(pooling):
        rows = [from_rows(a.swapaxes(0, 1), run.batch, False) for a in (output, valid[..., None])]
        return pooling(rows[0], rows[1][..., 0])
    if segments is not None:
        ids, number = segments
        ids = (ids if time_major else jnp.moveaxis(ids, -1, 0)).reshape(output.shape[:2])
        segments = Segments(jnp.where(valid & (ids >= 0) & (ids < number), ids, number), number)
    if pooling == "last":
        states = [*run.h_last[-encoder.num_directions :]]
        states = states if segments is None else last_of_segments(run, *segments, encoder)
        features = merged(encoder, states).astype(output.dtype)
    else:
        scores = None
        if pooling == "attention":  # u · tanh(W output + b)
            inside = dense("attention", output, output.shape[-1])
            scores = dense("attention_score", jnp.tanh(inside), 1, bias=False)[..., 0]
        if segments is None:
            features = pool(output, valid, pooling, scores)
        else:
            features = pool_segments(output, *segments, pooling, scores)
    return features if segments is not None else features.reshape(*run.batch, features.shape[-1])


def pool(output: Array, valid: Array, pooling: str, scores: Array | None = None) -> Array:
    """Pools output (T, B, F), zero where `valid` (T, B) is False, to (B, F); 0 for a row without a valid step.

    "mean" and "max" pool over the valid steps; "attention" takes their mean weighted by softmax(scores (T, B)).
    """
    wide, any_valid = state_dtype(output.dtype), valid.any(0)
    if pooling == "mean":
        counts = jnp.maximum(valid.sum(0), 1)[:, None].astype(wide)
        return (output.sum(0, dtype=wide) / counts).astype(output.dtype)
    if pooling == "max":
        largest = jnp.where(valid[..., None], output, -jnp.inf).max(0, initial=-jnp.inf)
        return jnp.where(any_valid[:, None], largest, 0)
    assert pooling == "attention" and scores is not None
    # in a row without a valid step, scores of 0 keep softmax and its gradient finite, and the output is 0 already
    scores = jnp.where(valid, scores.astype(wide), jnp.where(any_valid, -jnp.inf, 0)[None])
    weights = jax.nn.softmax(scores, axis=0)
    return (weights[..., None] * output.astype(wide)).sum(0).astype(output.dtype)


def pool_segments(output: Array, ids: Array, count: int, pooling: str, scores: Array | None = None) -> Array:
    """Pools each segment as `pool` pools a row: output (T, B, F) -> (count, F).

    ids (T, B) are the segments 0 to count − 1, or count for steps in no segment.
    """
    flat, ids = output.reshape(-1, output.shape[-1]), ids.reshape(-1)
    wide = state_dtype(output.dtype)

    def total(a: Array) -> Array:
        return jax.ops.segment_sum(a, ids, count + 1)

    has_steps = (total(jnp.ones_like(ids)) > 0)[:, None]
    if pooling == "max":
        result = jnp.where(has_steps, jax.ops.segment_max(flat, ids, count + 1), 0)
    else:
        weights = jnp.ones(ids.shape, wide)
        if scores is not None:
            scores = scores.reshape(-1).astype(wide)
            largest = jax.ops.segment_max(jax.lax.stop_gradient(scores), ids, count + 1)
            weights = jnp.exp(scores - largest[ids])
        mass = jnp.where(has_steps, total(weights)[:, None], 1)
        result = total(weights[:, None] * flat.astype(wide)) / mass
    return result[:count].astype(output.dtype)


def last_of_segments(run: LayerRun, ids: Array, count: int, encoder: EncoderConfig) -> list[Array]:
    """Returns the last state (count, H) of each segment, one array for each direction.

    It is the state at the segment's last step, or at its first in a backward direction; the initial state for a segment
    without steps.
    """
    ids, last = ids.reshape(-1), []
    index = jnp.arange(ids.size)
    has_steps = jax.ops.segment_sum(jnp.ones_like(ids), ids, count + 1)[:count] > 0
    for direction, (hs, backward) in enumerate(zip(run.directions, encoder.backwards, strict=True)):
        last_read = jax.ops.segment_min if backward else jax.ops.segment_max
        start = jnp.zeros(hs.shape[-1], hs.dtype)
        if run.initial is not None:
            start = run.initial[direction - len(run.directions)].astype(hs.dtype)
        hs = hs if encoder.time_major else hs.swapaxes(0, 1)
        states = jnp.concatenate([hs.reshape(ids.size, hs.shape[-1]), start[None]])
        last.append(states[jnp.where(has_steps, last_read(index, ids, count + 1)[:count], ids.size)])
    return last


def check_segments(
    pooling: Pooling, steps: Steps, segments: ArrayLike | None, num_segments: int | None, steps_per_frame: int = 1
) -> Segments | None:
    """Returns the checked segments, or None if there are none; `InputError` if they do not fit steps or pooling."""
    shown = "a function" if callable(pooling) else repr(pooling)
    if segments is None:
        require(num_segments is None, "num_segments", None, num_segments, rule="num_segments needs segments")
        clear = steps.resets is None or pooling is None
        remedy = "A row has several sequences: pass segments and num_segments, or pooling=None."
        rule = f"resets with pooling={shown} need segments"
        require(clear, "pooling", None, shown, remedy, rule=rule)
        return None
    remedy = "Apply unpack_sequences to the output of every step."
    rule = "segments need a pooling by name"
    require(isinstance(pooling, str), "pooling", f"one of {list(POOLINGS)}", shown, remedy, rule=rule)
    rule, remedy = f"segments need steps_per_frame=1, not {steps_per_frame}", "A frame cannot hold two sequences."
    require(steps_per_frame == 1, "segments", None, "an array", remedy, rule=rule)
    remedy = "It sets the shape of the result, which is fixed at compilation."
    known = isinstance(num_segments, Integral)
    found = "a traced value" if isinstance(num_segments, Tracer) else repr(num_segments)
    require(known, "num_segments", "an integer", found, remedy, rule="segments need num_segments")
    assert num_segments is not None
    require(num_segments >= 0, "num_segments", "0 or more", num_segments)
    bounds, bounded = (-1, num_segments - 1), f"-1 to num_segments - 1 = {num_segments - 1}"
    return Segments(check_integers(segments, "segments", steps.x.shape[:-1], "step", bounds, bounded), num_segments)
