"""Layers x directions x lengths x resets x dropout, around one fast sequence or one step.

The loop of every recurrent module, without Flax: parameters, randomness and Flax's scan are handed in (`Parts`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from grujax.core.config import MERGES, LayerSettings
from grujax.core.inputs import Steps, check_state, from_rows, to_rows
from grujax.core.sequence import Directed, Direction, directions, resets_in_reverse
from grujax.kernels.step import GateValues
from grujax.types import Array, Control, GRUWeights, Valid, state_dtype


class Cell(Protocol):
    """One direction of one layer: its parameters, and one step with `weights` in their place."""

    def weights(self, input_size: int, /) -> GRUWeights: ...

    def __call__(
        self, carry: Array, x: Array, /, *, weights: GRUWeights | None = None, state_mask: Array | None = None
    ) -> tuple[Array, Array]: ...


class Noise(NamedTuple):
    """What training draws, each time anew."""

    dropout: Callable[[Array, float], Array]  # Flax's, of an array at a rate
    key: Callable[[], Array]


class Parts(NamedTuple):
    """What a layer's loop asks of the module whose parameters it runs."""

    cell: Callable[[str], Cell]  # by its name, "l0", "l0_reverse", "l1", ...
    highway: Callable[[str, Array], Array]  # W x + b by its name, "l1_highway", ...
    scan: Callable[[Callable, bool], Callable]  # of a function (cell, h, inputs, weights) -> (h, h), in reverse or not
    initial: Array | None  # (L*D, H), where it is learned
    noise: Noise | None  # None in evaluation
    sow: Callable[[str, GateValues], Any] | None = None  # takes the gates by their name; None does not ask for them


class LayerRun(NamedTuple):
    """What a layer gives, time-major with one batch axis."""

    output: Array  # (T, B, F)
    directions: list[Array]  # (T, B, H) each, of the last layer, before they are merged
    h_last: Array  # (L*D, B, H)
    initial: Array | None  # (L*D, H), where it is learned
    valid: Valid | None  # (T, B)
    batch: tuple[int, ...]
    h0_dtype: DTypeLike | None = None  # where h0 was given

    @property
    def states(self) -> Array:
        """h_last with the batch axes that x had, (L*D, *batch, H), in the dtype of h0: a scan may carry it."""
        states = self.h_last.reshape(self.h_last.shape[0], *self.batch, self.h_last.shape[-1])
        return states if self.h0_dtype is None else states.astype(self.h0_dtype)


def run_layers(layer: LayerSettings, steps: Steps, h0: ArrayLike | None, parts: Parts) -> LayerRun:
    """All layers in all directions; h0 (L*D, *batch, H), the initial state where None."""
    expected = (layer.num_states, *steps.batch, layer.hidden_size)
    h0 = check_state(h0, "h0", expected, "The first axis is layers * directions.")
    x, valid, reset, batch = to_rows(steps)
    n_rows = x.shape[1]
    last, first, outputs = [], None, []
    for k in range(layer.num_layers):
        dtype = layer.dtype or jnp.result_type(x, layer.param_dtype)
        layer_input = x
        if k > 0:
            x = dropped(x, layer.dropout, parts.noise)
        x = dropped(x, layer.input_dropout, parts.noise, locked_axes=(0,))
        names = [f"l{k}{way}" for way in ("", "_reverse")[: layer.num_directions]]
        given = []
        for name in names:
            cell = parts.cell(name)
            index = len(last) + len(given)
            start, h_reset = None, None if parts.initial is None else parts.initial[index]
            if h0 is not None:
                start = h0[index].reshape(n_rows, layer.hidden_size)
            elif h_reset is not None:
                start = jnp.broadcast_to(h_reset[None], (n_rows, layer.hidden_size))
            weights = cell.weights(x.shape[-1])
            weights = weights._replace(w_hh=dropped(weights.w_hh, layer.weight_dropout, parts.noise))
            control = Control(valid, reset, h_reset, *_masks(layer, x.shape, dtype, parts.noise))
            given.append((cell, Direction(weights, start, control)))
        runs = _directions(layer, x, given, parts)
        for name, run in zip(names, runs, strict=True):
            if parts.sow is not None and run.gates is not None:
                parts.sow(f"{name}_gates", run.gates)
        outputs = [run.hs.astype(dtype) for run in runs]
        last += [run.h_last for run in runs]
        first = runs[-1].h_first
        if layer.merge is not None or not layer.bidirectional:
            x = merged(layer, outputs)
        if k > 0:
            x = _connect(layer, parts, f"l{k}_highway", layer_input, x)
    if layer.include_initial:
        assert first is not None
        x = jnp.concatenate([first.astype(x.dtype)[None], x])
    return LayerRun(x, outputs, jnp.stack(last), parts.initial, valid, batch, None if h0 is None else h0.dtype)


def returned(layer: LayerSettings, run: LayerRun) -> tuple[Array, Array] | tuple[tuple[Array, Array], Array]:
    """The run in the layout of x: output, with `merge=None` that of each direction, and h_last."""
    if layer.merge is None and layer.bidirectional:
        forward, backward = (from_rows(hs, run.batch, layer.time_major) for hs in run.directions)
        return (forward, backward), run.states
    return from_rows(run.output, run.batch, layer.time_major), run.states


def merged(layer: LayerSettings, directions: list[Array]) -> Array:
    """Both directions as one output; the one there is."""
    return MERGES[layer.merge or "concat"](*directions) if layer.bidirectional else directions[0]


def dropped(x: Array, rate: float, noise: Noise | None, locked_axes: tuple[int, ...] = ()) -> Array:
    """x where it survives, over the probability to: one mask for all of each of `locked_axes`.

    A product, where Flax's `Dropout` selects: under explicit sharding the mask is sharded otherwise than x.
    """
    if noise is None or not rate:
        return x
    shape = [1 if axis in locked_axes else size for axis, size in enumerate(x.shape)]
    return x * noise.dropout(jnp.ones(shape, x.dtype), rate)


def _masks(
    layer: LayerSettings, shape: tuple[int, ...], dtype: DTypeLike, noise: Noise | None
) -> tuple[Array | None, Array | None]:
    """state_mask (B, H) and hold (T, B, H) for x of `shape` (T, B, I); None where nothing is dropped or held."""
    (n_steps, n_rows, _), wide = shape, state_dtype(dtype)
    state_mask = hold = None
    if layer.recurrent_dropout and noise is not None:
        state_mask = dropped(jnp.ones((n_rows, layer.hidden_size), wide), layer.recurrent_dropout, noise)
    if layer.zoneout:
        hold = jnp.full((n_steps, n_rows, layer.hidden_size), layer.zoneout, wide)
        if noise is not None:
            hold = jax.random.bernoulli(noise.key(), hold).astype(wide)
    return state_mask, hold


def _directions(layer: LayerSettings, x: Array, given: list[tuple[Cell, Direction]], parts: Parts) -> list[Directed]:
    ways, all_given = (False, True)[: len(given)], [direction for _, direction in given]
    dtype = jnp.dtype(layer.dtype or jnp.result_type(x, all_given[0].weights.w_ih))
    sown, reference = parts.sow is not None, layer.implementation == "reference"
    runs: list[Directed] = []
    if sown or not reference:
        name = None if reference else layer.implementation
        time_major = layer.time_major or layer.include_initial
        runs = directions(x, all_given, ways, layer.spec, name, dtype, sown, time_major=time_major)
    if not reference:
        return runs
    scans = [
        _scan_over_cell(layer, parts.scan, cell, x, *of, reverse)
        for (cell, of), reverse in zip(given, ways, strict=True)
    ]
    gates = [run.gates for run in runs] or [None] * len(scans)
    return [Directed(*scan, of) for scan, of in zip(scans, gates, strict=True)]


def _connect(layer: LayerSettings, parts: Parts, name: str, x: Array, output: Array) -> Array:
    if layer.connection == "residual":
        return x + output
    if layer.connection == "highway":
        t = jax.nn.sigmoid(parts.highway(name, x))
        return t * output + (1 - t) * x
    return output


def _scan_over_cell(
    layer: LayerSettings,
    scan: Callable[[Callable, bool], Callable],
    cell: Cell,
    x: Array,
    weights: GRUWeights,
    h0: Array | None,
    control: Control,
    reverse: bool,
) -> tuple[Array, Array, Array]:
    """The layer as everybody writes it, Flax's scan over the cell: what the fast path must equal."""
    valid = jnp.broadcast_to(True, x.shape[:2]) if control.valid is None else control.valid
    x = jnp.where(valid[..., None], x, 0)
    dtype = state_dtype(layer.dtype or jnp.result_type(x, layer.param_dtype))
    start = jnp.zeros((x.shape[1], layer.hidden_size), dtype) if h0 is None else h0.astype(dtype)
    start = start + jnp.zeros_like(x.sum((0, 2)), dtype)[:, None]  # takes x's varying axes and sharding
    h_reset = (
        jnp.zeros_like(start)
        if control.h_reset is None
        else jnp.zeros_like(start) + control.h_reset.astype(dtype)[None]
    )
    reset = control.reset
    if reset is not None:
        reset = (resets_in_reverse(reset, valid) if reverse else reset) & valid

    def one_step(cell: Cell, h: Array, inputs: tuple, weights: GRUWeights) -> tuple[Array, Array]:
        x, valid, reset, hold = inputs
        if reset is not None:
            h = jnp.where(reset[:, None], h_reset, h)
        new = cell(h, x, weights=weights, state_mask=control.state_mask)[0]
        if hold is not None:
            new = hold * h + (1 - hold) * new
        h = jnp.where(valid[:, None], new, h)
        return h, h

    h_last, hs = scan(one_step, reverse)(cell, start, (x, valid, reset, control.hold), weights)
    return jnp.where(valid[..., None], hs, 0), h_last, start
