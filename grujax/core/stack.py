"""The loop over layers and directions, with dropout, connections and merging around the recurrence.

Every recurrent module runs it. It does not import Flax: parameters, random draws and Flax's scan come as `Hooks`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from grujax.core.config import MERGES, LayerConfig
from grujax.core.initializers import drawn
from grujax.core.inputs import Steps, check_state, from_rows, to_rows, with_states_axis
from grujax.kernels import run
from grujax.kernels.order import resets_read
from grujax.kernels.step import cast
from grujax.types import Array, Control, Gates, GRUWeights, Recurrence, Result, Valid, state_dtype


class Cell(Protocol):
    """One direction of one layer: its parameters, and one step, which uses `weights` in place of them if given."""

    def weights(self, input_size: int, /) -> GRUWeights: ...

    def __call__(
        self, carry: Array, x: Array, /, *, weights: GRUWeights | None = None, state_mask: Array | None = None
    ) -> tuple[Array, Array]: ...


class Noise(NamedTuple):
    """The random draws of training; each call draws anew."""

    dropout: Callable[[Array, float], Array]  # applies dropout to an array at a rate
    key: Callable[[], Array]  # returns a new key


class Hooks(NamedTuple):
    """The parts of a module that the loop over its layers needs."""

    cell: Callable[[str], Cell]  # by name: "l0", "l0_reverse", "l1", ...
    highway: Callable[[str, Array], Array]  # computes W x + b, by name: "l1_highway", ...
    scan: Callable[[Callable, bool], Callable]  # scans a function (cell, h, inputs) -> (h, h), in reverse if True
    initial: Array | None  # (L*D, H), the learned initial state, if there is one
    noise: Noise | None  # None in evaluation
    sow: Callable[[str, Gates | None], Any] | None = None  # stores gates by name; None: they are not computed


class LayerRun(NamedTuple):
    """The result of a layer, with one batch axis."""

    output: Array  # (T, B, F) if the layer is time-major, else (B, T, F)
    directions: list[Array]  # (T, B, H) or (B, T, H) each: the last layer's outputs before they are merged
    h_last: Array  # (L*D, B, H)
    initial: Array | None  # (L*D, H), the learned initial state, if there is one
    valid: Valid | None  # (T, B)
    batch: tuple[int, ...]  # the batch axes of x
    h0_dtype: DTypeLike | None = None  # the dtype of h0, if one was passed

    @property
    def states(self) -> Array:
        """h_last with the batch axes of x, (L*D, *batch, H), in the dtype of h0, so that it fits a scan."""
        states = self.h_last.reshape(self.h_last.shape[0], *self.batch, self.h_last.shape[-1])
        return states if self.h0_dtype is None else states.astype(self.h0_dtype)


def run_layers(layer: LayerConfig, steps: Steps, h0: ArrayLike | None, hooks: Hooks) -> LayerRun:
    """Runs all layers in all directions from h0 (L*D, *batch, H); None: zeros, or the learned state."""
    expected = (layer.num_states, *steps.batch, layer.hidden_size)
    h0 = check_state(with_states_axis(h0, expected), "h0", expected, "The first axis is layers * directions.")
    x, valid, reset = to_rows(steps)
    options = {"reverse": layer.backwards, "with_gates": hooks.sow is not None, "time_major": layer.time_major}
    last, outputs = [], []
    for k, names in enumerate(layer.cell_names):
        dtype = layer.dtype or jnp.result_type(x, layer.param_dtype)
        layer_input = x
        if k > 0:
            x = dropped(x, layer.dropout, hooks.noise)
        x = dropped(x, layer.input_dropout, hooks.noise, locked_axes=(0 if layer.time_major else 1,))
        cells, recurrences = [hooks.cell(name) for name in names], []
        for index, cell in enumerate(cells, start=len(last)):
            initial, start = (None if states is None else states[index] for states in (hooks.initial, h0))
            recurrences.append(_recurrence(layer, hooks, cell, x, start, Control(valid, reset, initial)))
        if layer.implementation == "reference":
            scan = partial(_scan_over_cell, hooks, layer.time_major)
            results = list(map(scan, cells, recurrences, layer.backwards))
        else:
            results = run(recurrences, layer.spec, layer.implementation, **options)
        if hooks.sow is not None:  # the reference returns no gates
            with_gates = results if results[0].gates is not None else run(recurrences, layer.spec, **options)
            for name, result in zip(names, with_gates, strict=True):
                hooks.sow(f"{name}_gates", result.gates)
        outputs = [result.hs.astype(dtype) for result in results]
        last += [result.h_last for result in results]
        if layer.merge is not None or not layer.bidirectional:
            x = merged(layer, outputs)
        if k > 0:
            x = _connect(layer, hooks, f"l{k}_highway", layer_input, x)
    return LayerRun(x, outputs, jnp.stack(last), hooks.initial, valid, steps.batch, None if h0 is None else h0.dtype)


def _recurrence(
    layer: LayerConfig, hooks: Hooks, cell: Cell, x: Array, h0: Array | None, control: Control
) -> Recurrence:
    """Returns the recurrence of one direction of one layer, in the compute dtype.

    h0 is (*batch, H); None: zeros, or the learned state.
    """
    n_steps, n_rows = x.shape[:2] if layer.time_major else (x.shape[1], x.shape[0])
    if h0 is not None:
        h0 = h0.reshape(n_rows, layer.hidden_size)
    elif control.h_reset is not None:
        h0 = jnp.broadcast_to(control.h_reset[None], (n_rows, layer.hidden_size))
    weights = cell.weights(x.shape[-1])
    weights = weights._replace(w_hh=dropped(weights.w_hh, layer.weight_dropout, hooks.noise))
    dtype = jnp.dtype(layer.dtype or jnp.result_type(x, weights.w_ih))
    state_mask, hold = _masks(layer, n_steps, n_rows, dtype, hooks.noise)
    control = control._replace(state_mask=state_mask, hold=hold)
    return Recurrence(x.astype(dtype), cast(weights, dtype), h0, control)


def returned(layer: LayerConfig, run: LayerRun) -> tuple[Array, Array]:
    """Returns output and h_last in the layout of x. With `merge=None` the directions are stacked, not merged."""
    if layer.merge is None and layer.bidirectional:
        return jnp.stack([from_rows(hs, run.batch, layer.time_major) for hs in run.directions]), run.states
    return from_rows(run.output, run.batch, layer.time_major), run.states


def merged(layer: LayerConfig, directions: list[Array]) -> Array:
    """Merges the outputs of both directions; returns a single direction unchanged."""
    return MERGES[layer.merge or "concat"](*directions) if layer.bidirectional else directions[0]


def dropped(x: Array, rate: float, noise: Noise | None, locked_axes: tuple[int, ...] = ()) -> Array:
    """Applies dropout: kept elements are divided by the probability of keeping them, the others become 0.

    The mask is the same along `locked_axes`. It is multiplied, whereas Flax's `Dropout` selects, because under explicit
    sharding the sharding of the mask differs from that of x.
    """
    if noise is None or not rate:
        return x
    shape = [1 if axis in locked_axes else size for axis, size in enumerate(x.shape)]
    return x * drawn(lambda flat: noise.dropout(jnp.ones(flat, x.dtype), rate), shape)


def _masks(
    layer: LayerConfig, n_steps: int, n_rows: int, dtype: jnp.dtype, noise: Noise | None
) -> tuple[Array | None, Array | None]:
    """Draws state_mask (B, H) for recurrent dropout and hold (T, B, H) for zoneout; None for one that is not used."""
    wide = state_dtype(dtype)
    state_mask = hold = None
    if layer.recurrent_dropout and noise is not None:
        state_mask = dropped(jnp.ones((n_rows, layer.hidden_size), wide), layer.recurrent_dropout, noise)
    if layer.zoneout:
        hold = rates = jnp.full((n_steps, n_rows, layer.hidden_size), layer.zoneout, wide)
        if noise is not None:
            hold = drawn(lambda flat: jax.random.bernoulli(noise.key(), rates.reshape(flat)), rates.shape).astype(wide)
    return state_mask, hold


def _connect(layer: LayerConfig, hooks: Hooks, name: str, x: Array, output: Array) -> Array:
    """Combines a layer's input and output by its residual or highway connection."""
    if layer.connection == "residual":
        return x + output
    if layer.connection == "highway":
        t = jax.nn.sigmoid(hooks.highway(name, x))
        return t * output + (1 - t) * x
    return output


def _scan_over_cell(hooks: Hooks, time_major: bool, cell: Cell, recurrence: Recurrence, reverse: bool) -> Result:
    """Runs one direction as Flax's scan over the cell: the reference that the fast implementations must equal."""
    x, weights, h0, control = recurrence
    x = x if time_major else x.swapaxes(0, 1)
    valid = jnp.broadcast_to(True, x.shape[:2]) if control.valid is None else control.valid
    x = jnp.where(valid[..., None], x, 0)
    dtype = state_dtype(weights.w_hh.dtype)
    zeros = jnp.zeros_like(x.sum((0, 2)), dtype)[:, None]  # takes x's varying axes and sharding
    zeros = zeros + jnp.zeros((x.shape[1], weights.w_hh.shape[0]), dtype)
    start = zeros if h0 is None else zeros + h0.astype(dtype)
    h_reset = zeros if control.h_reset is None else zeros + control.h_reset.astype(dtype)[None]
    reset = resets_read(control.reset, valid, reverse)

    def one_step(cell: Cell, h: Array, inputs: tuple) -> tuple[Array, Array]:
        x, valid, reset, hold = inputs
        if reset is not None:
            h = jnp.where(reset[:, None], h_reset, h)
        new = cell(h, x, weights=weights, state_mask=control.state_mask)[0]
        if hold is not None:
            new = hold * h + (1 - hold) * new
        h = jnp.where(valid[:, None], new, h)
        return h, h

    h_last, hs = hooks.scan(one_step, reverse)(cell, start, (x, valid, reset, control.hold))
    hs = jnp.where(valid[..., None], hs, 0)
    return Result(hs if time_major else hs.swapaxes(0, 1), h_last)
