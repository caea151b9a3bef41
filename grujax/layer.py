"""The GRU layer: layers, directions, sequences and regularisation around one step or one fast sequence."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from grujax.cell import CellSettings, GRUCell
from grujax.errors import require, require_count
from grujax.functional import Directed, Direction, directions, resets_in_reverse
from grujax.inputs import check_include_initial, check_inputs, check_state, from_rows, to_rows
from grujax.types import Array, Control, GRUWeights, Inputs, Valid, state_dtype

MERGES = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": lambda forward, backward: forward + backward,
    "mean": lambda forward, backward: (forward + backward) / 2,
    "mul": lambda forward, backward: forward * backward,
}
CONNECTIONS = (None, "residual", "highway")
INITIAL_STATES = ("zeros", "learned")
RATES = ("dropout", "input_dropout", "recurrent_dropout", "weight_dropout", "zoneout")


class LayerSettings(CellSettings):
    """What a layer and a model have in common, beside the attributes of `CellSettings`.

    Attributes:
      num_layers: L. Layer k reads the output of layer k − 1.
      bidirectional: a second pass over each sequence from its last valid step to its first.
      merge: how both directions of a layer become one output: "concat" (torch), "sum", "mean", "mul"; None returns
        them apart, a pair, from a single layer.
      connection: from the second layer on, "residual" adds a layer's input to its output; "highway" weighs the two by
        t = σ(W x + b), t ⊙ output + (1 − t) ⊙ input (Srivastava et al. 2015, arXiv 1505.00387), b −1 at the start.
      initial_state: what a sequence starts from where no h0 is given, and after a reset: "zeros", or "learned", a
        parameter `h0 (L*D, H)`, zero at the start.
      time_major: time is the first axis of x, mask, resets and output.
      include_initial: the last layer's h0 stands in front of the output, T + 1 steps in all; one direction only.
      dropout: probability, on the output of every layer but the last (torch.nn.GRU).
      input_dropout: probability, on the input of every layer, one mask for all steps of a sequence (Gal and
        Ghahramani 2016, arXiv 1512.05287).
      recurrent_dropout: probability, on the state where the products with w_hh read it, one mask for all steps (ibid.).
      weight_dropout: probability, on w_hh itself, one mask for all sequences and steps: DropConnect (Merity et al.
        2018, arXiv 1708.02182).
      zoneout: probability that a unit keeps its state for a step; in evaluation every unit moves by its mean,
        h' = zoneout h + (1 − zoneout) h~ (Krueger et al. 2017, arXiv 1606.01305).
      implementation: None chooses the fastest; "reference" is `nn.scan` over `GRUCell`; further names as in
        `grujax.kernels.explain`.

    All five are off unless `deterministic=False`, zoneout's mean apart, and draw from the rng stream "dropout".
    """

    _: dataclasses.KW_ONLY
    num_layers: int = 1
    bidirectional: bool = False
    merge: str | None = "concat"
    connection: str | None = None
    initial_state: str = "zeros"
    time_major: bool = False
    include_initial: bool = False
    dropout: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout: float = 0.0
    implementation: str | None = None

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1


class LayerRun(NamedTuple):
    """What a layer gives, time-major with one batch axis."""

    output: Array  # (T, B, F)
    directions: list[Array]  # (T, B, H) each, of the last layer, before they are merged
    h_last: Array  # (L*D, B, H)
    initial: Array | None  # (L*D, H), where it is learned
    valid: Valid | None  # (T, B)
    batch: tuple[int, ...]

    @property
    def states(self) -> Array:
        """h_last with the batch axes that x had: (L*D, *batch, H)."""
        return self.h_last.reshape(self.h_last.shape[0], *self.batch, self.h_last.shape[-1])


def merged(layer: LayerSettings, directions: list[Array]) -> Array:
    """Both directions as one output; the one there is."""
    return MERGES[layer.merge or "concat"](*directions) if layer.bidirectional else directions[0]


class GRU(LayerSettings):
    """`torch.nn.GRU` with batch_first=True, as a Flax module: one or several layers, one or both directions.

    The equations of one step are those of `GRUCell`; the attributes those of `LayerSettings` and `CellSettings`. The
    parameter tree is `l{k}` and `l{k}_reverse`, each as `GRUCell` has it, whatever the implementation; beside them
    `h0` where the initial state is learned and `l{k}_highway`.

    >>> import jax, jax.numpy as jnp
    >>> layer = GRU(20, num_layers=2, bidirectional=True)
    >>> x = jnp.ones((3, 7, 10))
    >>> output, h_last = layer.apply(layer.init(jax.random.key(0), x), x)
    >>> output.shape, h_last.shape
    ((3, 7, 40), (4, 3, 20))

    With `mutable=["intermediates"]` the gates of every step are sown: `l{k}[_reverse]_gates`, r, z and n (T, B, H).

    Source: torch.nn.GRU.
    """

    num_layers: int = 1

    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, Array] | tuple[tuple[Array, Array], Array]:
        """Runs over whole sequences.

        Args:
          x: (B, T, I), or any other number of batch axes, none included.
          h0: (L*D, B, H), index `layer * D + direction`; the initial state where None.
          lengths: integers (B,), how many steps of each sequence are valid; all where None.
          mask: bool (B, T) instead of `lengths`, which steps are valid.
          resets: bool (B, T), at which steps a new sequence begins: nothing passes from one to the next, in neither
            direction.
          deterministic: True switches the regularisation off.

        Returns:
          output (B, T, D*H), exactly 0 at steps that are not valid, and h_last (L*D, B, H), the state after the
          last valid step of each direction, h0 for length 0; with resets the last sequence's, in reverse the first's.
        """
        run = self.run(x, h0, lengths=lengths, mask=mask, resets=resets, deterministic=deterministic)
        if self.merge is None and self.bidirectional:
            forward, backward = (from_rows(hs, run.batch, self.time_major) for hs in run.directions)
            return (forward, backward), run.states
        return from_rows(run.output, run.batch, self.time_major), run.states

    @nn.compact
    def run(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> "LayerRun":
        """As `__call__`, time-major with one batch axis, and what pooling needs besides."""
        _check(self)
        steps = check_inputs(x, None, lengths, mask, resets, self.time_major)
        n_states = self.num_layers * self.num_directions
        expected = (n_states, *steps.batch, self.hidden_size)
        h0 = check_state(h0, "h0", expected, "The first axis is layers * directions.")
        x, valid, reset, batch = to_rows(steps)
        n_rows = x.shape[1]
        learned = None
        if self.initial_state == "learned":
            learned = self.param("h0", nn.initializers.zeros, (n_states, self.hidden_size), self.param_dtype)
        last, first, outputs = [], None, []
        for layer in range(self.num_layers):
            dtype = self.dtype or jnp.result_type(x, self.param_dtype)
            layer_input = x
            if layer > 0:
                x = dropout(x, self.dropout, deterministic)
            x = dropout(x, self.input_dropout, deterministic, locked_axes=(0,))
            names = [f"l{layer}{way}" for way in ("", "_reverse")[: self.num_directions]]
            given = []
            for name in names:
                cell = GRUCell(**self.settings(GRUCell), name=name)
                index = len(last) + len(given)
                start, h_reset = None, None if learned is None else learned[index]
                if h0 is not None:
                    start = h0[index].reshape(n_rows, self.hidden_size)
                elif h_reset is not None:
                    start = jnp.broadcast_to(h_reset[None], (n_rows, self.hidden_size))
                weights = cell.weights(x.shape[-1])
                weights = weights._replace(w_hh=dropout(weights.w_hh, self.weight_dropout, deterministic))
                control = Control(valid, reset, h_reset, *self._masks(x.shape, dtype, deterministic))
                given.append((cell, Direction(weights, start, control)))
            runs = self._directions(x, given)
            for name, run in zip(names, runs, strict=True):
                if run.gates is not None:
                    self.sow("intermediates", f"{name}_gates", run.gates)
            outputs = [run.hs.astype(dtype) for run in runs]
            last += [run.h_last for run in runs]
            first = runs[-1].h_first
            if self.merge is not None or not self.bidirectional:
                x = merged(self, outputs)
            if layer > 0:
                x = self._connect(layer, layer_input, x)
        if self.include_initial:
            assert first is not None
            x = jnp.concatenate([first.astype(x.dtype)[None], x])
        return LayerRun(x, outputs, jnp.stack(last), learned, valid, batch)

    def _masks(self, shape: tuple[int, ...], dtype, deterministic: bool) -> tuple[Array | None, Array | None]:
        """state_mask (B, H) and hold (T, B, H) for x of `shape` (T, B, I); None where nothing is dropped or held."""
        (n_steps, n_rows, _), wide = shape, state_dtype(dtype)
        state_mask = hold = None
        if self.recurrent_dropout and not deterministic:
            state_mask = dropout(jnp.ones((n_rows, self.hidden_size), wide), self.recurrent_dropout, deterministic)
        if self.zoneout:
            hold = jnp.full((n_steps, n_rows, self.hidden_size), self.zoneout, wide)
            if not deterministic:
                hold = jax.random.bernoulli(self.make_rng("dropout"), hold).astype(wide)
        return state_mask, hold

    def _directions(self, x: Array, given: list[tuple[GRUCell, Direction]]) -> list[Directed]:
        ways, all_given = (False, True)[: len(given)], [direction for _, direction in given]
        dtype = jnp.dtype(self.dtype or jnp.result_type(x, all_given[0].weights.w_ih))
        sown = self.is_mutable_collection("intermediates") and not self.is_initializing()
        reference = self.implementation == "reference"
        runs: list[Directed] = []
        if sown or not reference:
            name = None if reference else self.implementation
            runs = directions(x, all_given, ways, self.spec, name, dtype, sown)
        if not reference:
            return runs
        scans = [_scan_over_cell(cell, x, *of, reverse) for (cell, of), reverse in zip(given, ways, strict=True)]
        gates = [run.gates for run in runs] or [None] * len(scans)
        return [Directed(*scan, of) for scan, of in zip(scans, gates, strict=True)]

    def _connect(self, layer: int, x: Array, output: Array) -> Array:
        if self.connection == "residual":
            return x + output
        if self.connection == "highway":
            t = nn.Dense(
                output.shape[-1],
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                precision=self.precision,
                bias_init=nn.initializers.constant(-1.0),
                name=f"l{layer}_highway",
            )(x)
            t = jax.nn.sigmoid(t)
            return t * output + (1 - t) * x
        return output


def dropout(x: Array, rate: float, deterministic: bool, locked_axes: tuple[int, ...] = ()) -> Array:
    """x where it survives, over the probability to: one mask for all of each of `locked_axes`. Stream "dropout".

    A product, where `nn.Dropout` selects: under explicit sharding the mask is sharded otherwise than x.
    """
    if deterministic or not rate:
        return x
    shape = [1 if axis in locked_axes else size for axis, size in enumerate(x.shape)]
    return x * nn.Dropout(rate, deterministic=False)(jnp.ones(shape, x.dtype))


def _check(layer: LayerSettings) -> None:
    layer.check()
    require_count(layer.num_layers, "num_layers")
    for name in RATES:
        rate = getattr(layer, name)
        require(0 <= rate <= 1, name, "a probability", rate)
    merges = [*MERGES, None]
    require(layer.merge in merges, "merge", f"one of {merges}", repr(layer.merge))
    remedy = "There is nothing to merge: leave it out."
    require(layer.bidirectional or layer.merge == "concat", "merge", '"concat" in one direction', layer.merge, remedy)
    if layer.merge is None:
        remedy = "The next layer reads one input: name how they become one."
        require(
            layer.num_layers == 1, "merge", "None for a single layer alone", f"num_layers={layer.num_layers}", remedy
        )
    require(layer.connection in CONNECTIONS, "connection", f"one of {list(CONNECTIONS)}", repr(layer.connection))
    states = list(INITIAL_STATES)
    require(layer.initial_state in states, "initial_state", f"one of {states}", repr(layer.initial_state))
    check_include_initial(layer.include_initial, layer.bidirectional)


def _scan_over_cell(
    cell: GRUCell, x: Array, weights: GRUWeights, h0: Array | None, control: Control, reverse: bool
) -> tuple[Array, Array, Array]:
    """The layer as everybody writes it, `nn.scan` over the cell: what the fast path must equal."""
    valid = jnp.broadcast_to(True, x.shape[:2]) if control.valid is None else control.valid
    x = jnp.where(valid[..., None], x, 0)
    dtype = state_dtype(cell.dtype or jnp.result_type(x, cell.param_dtype))
    start = cell.initialize_carry(jax.random.key(0), x.shape[1:]) if h0 is None else h0
    start = start.astype(dtype) + jnp.zeros_like(x.sum((0, 2)), dtype)[:, None]  # takes x's varying axes and sharding
    h_reset = (
        jnp.zeros_like(start)
        if control.h_reset is None
        else jnp.zeros_like(start) + control.h_reset.astype(dtype)[None]
    )
    reset = control.reset
    if reset is not None:
        reset = (resets_in_reverse(reset, valid) if reverse else reset) & valid

    def one_step(cell: GRUCell, h: Array, inputs: tuple, weights: GRUWeights) -> tuple[Array, Array]:
        x, valid, reset, hold = inputs
        if reset is not None:
            h = jnp.where(reset[:, None], h_reset, h)
        new = cell(h, x, weights=weights, state_mask=control.state_mask)[0]
        if hold is not None:
            new = hold * h + (1 - hold) * new
        h = jnp.where(valid[:, None], new, h)
        return h, h

    scan = nn.scan(
        one_step,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType], a tuple is documented
        reverse=reverse,
    )
    h_last, hs = scan(cell, start, (x, valid, reset, control.hold), weights)
    return jnp.where(valid[..., None], hs, 0), h_last, start
