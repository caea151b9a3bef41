"""The GRU layer: layers, directions, lengths and dropout around one step or one fast sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import PrecisionLike
from jax.typing import ArrayLike, DTypeLike

from grujax.cell import GRUCell
from grujax.errors import require
from grujax.functional import check_inputs, gru, require_floating, valid_steps
from grujax.types import Array, Inputs, state_dtype


class GRU(nn.Module):
    """`torch.nn.GRU` with batch_first=True, as a Flax module: one or several layers, one or both directions.

    Layer k in direction d reads the output of layer k − 1, both directions joined on the last axis. The equations of
    one step are those of `GRUCell`; the parameter tree is `l{k}` and `l{k}_reverse`, each with `w_ih`, `w_hh`,
    `b_ih`, `b_hh`, whatever the implementation.

    Attributes:
      hidden_size: H.
      num_layers: L.
      bidirectional: a second pass over each sequence from its last valid step to its first.
      bias: False leaves both biases out.
      dropout: probability, on the output of every layer but the last, as torch has it; rng stream "dropout".
      reset_after: False is the GRU of Cho et al. 2014.
      initializer: "torch" or "flax", see `grujax.initializers`.
      implementation: None chooses the fastest; "reference" is `nn.scan` over `GRUCell`; further names as in
        `grujax.kernels.explain`.
      dtype: compute dtype and dtype of the output; None promotes inputs and parameters.
      param_dtype: dtype that parameters are stored in.
      precision: of the products; None follows `jax.default_matmul_precision`.

    >>> import jax, jax.numpy as jnp
    >>> layer = GRU(20, num_layers=2, bidirectional=True)
    >>> x = jnp.ones((3, 7, 10))
    >>> output, h_last = layer.apply(layer.init(jax.random.key(0), x), x)
    >>> output.shape, h_last.shape
    ((3, 7, 40), (4, 3, 20))

    Source: torch.nn.GRU.
    """

    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    dropout: float = 0.0
    reset_after: bool = True
    initializer: str = "torch"
    implementation: str | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = None

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @nn.compact
    def __call__(
        self, x: Inputs, h0: Array | None = None, *, lengths: ArrayLike | None = None, deterministic: bool = True
    ) -> tuple[Array, Array]:
        """Runs over whole sequences.

        Args:
          x: (B, T, I), or any other number of batch axes, none included.
          h0: (L*D, B, H), index `layer * D + direction`; zeros where None.
          lengths: integers (B,), how many steps of each sequence are valid; all where None.
          deterministic: True switches dropout off.

        Returns:
          output (B, T, D*H), exactly 0 at steps that are not valid, and h_last (L*D, B, H), the state after the
          last valid step of each direction, h0 for length 0.
        """
        require(self.num_layers > 0, "num_layers", "a positive integer", self.num_layers)
        require(0 <= self.dropout <= 1, "dropout", "a probability", self.dropout)
        x, lengths = check_inputs(x, None, lengths)
        if h0 is not None:
            expected = (self.num_layers * self.num_directions, *x.shape[:-2], self.hidden_size)
            require(h0.shape == expected, "h0", f"shape {expected}", h0.shape, "The first axis is layers * directions.")
            require_floating(h0, "h0")
        run = _scan_over_cell if self.implementation == "reference" else self._gru
        h_last = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
            outputs = []
            for reverse in (False, True)[: self.num_directions]:
                cell = GRUCell(
                    self.hidden_size,
                    self.bias,
                    self.reset_after,
                    self.initializer,
                    self.dtype,
                    self.param_dtype,
                    self.precision,
                    name=f"l{layer}{'_reverse' if reverse else ''}",
                )
                dtype = self.dtype or jnp.result_type(x, self.param_dtype)
                start = None if h0 is None else h0[len(h_last)]
                hs, h = run(cell, x, start, lengths, reverse)
                outputs.append(hs.astype(dtype))
                h_last.append(h)
            x = jnp.concatenate(outputs, axis=-1)
        return x, jnp.stack(h_last)

    def _gru(
        self, cell: GRUCell, x: Array, h0: Array | None, lengths: Array | None, reverse: bool
    ) -> tuple[Array, Array]:
        return gru(
            x,
            cell.weights(x.shape[-1]),
            h0,
            lengths=lengths,
            reverse=reverse,
            reset_after=self.reset_after,
            implementation=self.implementation,
            dtype=self.dtype,
            precision=self.precision,
        )


def _scan_over_cell(
    cell: GRUCell, x: Array, h0: Array | None, lengths: Array | None, reverse: bool
) -> tuple[Array, Array]:
    """The layer as everybody writes it, `nn.scan` over the cell: what the fast path must equal."""
    batch, n_steps = x.shape[:-2], x.shape[-2]
    time = len(batch)
    valid = jnp.broadcast_to(True, (*batch, n_steps))
    if lengths is not None:
        valid = valid_steps(n_steps, lengths)
    x = jnp.where(valid[..., None], x, 0)
    h0 = cell.initialize_carry(jax.random.key(0), x.shape[:-2] + x.shape[-1:]) if h0 is None else h0
    h0 = h0.astype(state_dtype(cell.dtype or jnp.result_type(x, cell.param_dtype)))

    def one_step(cell: GRUCell, h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        x, valid = inputs
        h = jnp.where(valid[..., None], cell(h, x)[0], h)
        return h, h

    scan = nn.scan(
        one_step,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=time,
        out_axes=time,
        reverse=reverse,
    )
    h_last, hs = scan(cell, h0, (x, valid))
    return jnp.where(valid[..., None], hs, 0), h_last
