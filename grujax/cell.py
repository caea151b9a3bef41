"""One step of the GRU as a Flax Linen cell."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import PrecisionLike
from jax.typing import DTypeLike

from grujax.errors import require
from grujax.functional import require_floating
from grujax.initializers import preset
from grujax.step import candidate_bias, project, split_gates, step
from grujax.types import Array, GRUSpec, GRUWeights, state_dtype


class GRUCell(nn.RNNCellBase):
    """One step: `carry, y = cell(carry, x)`, both the new state h'.

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    The equations of `torch.nn.GRUCell`; `reset_after=False` is the cell of Cho et al. 2014. It works wherever a
    Linen cell does: `nn.RNN`, `nn.Bidirectional`, `nn.scan`, `nn.vmap`, `nn.remat`.

    Parameters: `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, columns r | z | n.

    Attributes:
      hidden_size: H.
      bias: False leaves both biases out.
      reset_after: see above.
      initializer: "torch" or "flax", see `grujax.initializers`.
      dtype: compute dtype of the products; None promotes inputs and parameters. The carry is float32 at least.
      param_dtype: dtype that parameters are stored in.
      precision: of the products; None follows `jax.default_matmul_precision`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> x = jnp.ones((3, 7, 10))
    >>> rnn = nn.RNN(GRUCell(20))
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (3, 7, 20)
    """

    hidden_size: int
    bias: bool = True
    reset_after: bool = True
    initializer: str = "torch"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = None

    @nn.compact
    def weights(self, input_size: int) -> GRUWeights:
        """Declares the four parameters and returns them: the one place that knows their names and shapes."""
        require(self.hidden_size > 0, "hidden_size", "a positive integer", self.hidden_size)
        init, columns = preset(self.initializer, self.hidden_size), 3 * self.hidden_size
        w_ih = self.param("w_ih", init.w_ih, (input_size, columns), self.param_dtype)
        w_hh = self.param("w_hh", init.w_hh, (self.hidden_size, columns), self.param_dtype)
        if not self.bias:
            return GRUWeights(w_ih, w_hh)
        b_ih = self.param("b_ih", init.bias, (columns,), self.param_dtype)
        b_hh = self.param("b_hh", init.bias, (columns,), self.param_dtype)
        return GRUWeights(w_ih, w_hh, b_ih, b_hh)

    def __call__(self, carry: Array, x: Array) -> tuple[Array, Array]:
        """carry (..., H), x (..., I) -> the new state twice: in float32 at least, and in the compute dtype."""
        expected = (*x.shape[:-1], self.hidden_size)
        require(carry.shape == expected, "carry", f"shape {expected}", carry.shape)
        require_floating(x, "x")
        weights = self.weights(x.shape[-1])
        dtype = self.dtype or jnp.result_type(x, weights.w_ih)
        spec = GRUSpec(self.reset_after, self.precision)
        w_ih, w_hh = weights.w_ih.astype(dtype), weights.w_hh.astype(dtype)
        gates_x = project(x, w_ih, weights.b_ih, weights.b_hh, spec)
        h = step(
            split_gates(gates_x),
            carry.astype(state_dtype(dtype)),
            split_gates(w_hh),
            candidate_bias(weights.b_hh, w_hh),
            spec,
        )
        return h, h.astype(dtype)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The zero state for inputs of shape (..., I): (..., H). `rng` is not used."""
        del rng
        return jnp.zeros((*input_shape[:-1], self.hidden_size), state_dtype(self.dtype or self.param_dtype))

    @property
    def num_feature_axes(self) -> int:
        return 1
