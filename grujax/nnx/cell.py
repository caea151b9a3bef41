"""One step of the GRU as a Flax NNX cell, and the arguments that only NNX modules have."""

import dataclasses
from typing import Never

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from grujax.core.cell import check_step, run_cell, weights_of
from grujax.core.config import CellConfig
from grujax.core.keywords import explained, refuse_others
from grujax.errors import InputError, require_count, require_equal
from grujax.types import Array, GRUWeights

Rngs = nnx.Rngs | nnx.RngStream


@dataclasses.dataclass(eq=False, repr=False)
class Sized:
    """The two arguments that every module of `grujax.nnx` has and Linen's modules lack.

    Attributes:
      input_size: the number of input features, I; the first argument.
      rngs: the random streams: parameters are drawn from "params", dropout from "dropout".
    """

    input_size: int
    _: dataclasses.KW_ONLY
    rngs: dataclasses.InitVar[nnx.Rngs]


@explained
@dataclasses.dataclass(eq=False, repr=False)
class GRUCell(CellConfig, Sized, nnx.RNNCellBase):
    """One step of the GRU: `carry, y = cell(carry, x)`, where both results are the new state h'.

    The constructor is `GRUCell(input_size, hidden_size, *, ..., rngs)`.

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    These are the equations of `torch.nn.GRUCell`, with the bias b_hn that `flax.nnx.GRUCell` lacks. Attributes and
    parameters are those of `grujax.GRUCell`. The cell works wherever an NNX cell does: `nnx.RNN`, `nnx.Bidirectional`,
    `nnx.scan`.

    >>> from flax import nnx
    >>> rnn = nnx.RNN(GRUCell(10, 20, rngs=nnx.Rngs(0)))
    >>> rnn(jnp.ones((3, 7, 10))).shape
    (3, 7, 20)
    """

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        require_count(self.input_size, "input_size")
        self.check()
        for name, (init, shape) in self.parameters(self.input_size).items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape, self.param_dtype)))

    def weights(self, input_size: int) -> GRUWeights:
        """Returns the parameters, with w_hh as (H, 3H) for any number of blocks; checks the input size."""
        require_equal(input_size, self.input_size, "input_size")
        return weights_of(self, {name: getattr(self, name)[...] for name in GRUWeights._fields if hasattr(self, name)})

    def __call__(
        self,
        carry: Array,
        x: Array,
        *,
        weights: GRUWeights | None = None,
        state_mask: Array | None = None,
        **others: Never,
    ) -> tuple[Array, Array]:
        """Computes one step: carry (..., H), x (..., I) -> h' (..., H) twice.

        Arguments, dtypes and errors are those of `grujax.GRUCell`.
        """
        refuse_others(self, others)
        carry, x = check_step(self, carry, x, self.input_size)
        return run_cell(self, carry, x, self.weights(x.shape[-1]) if weights is None else weights, state_mask)

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Rngs | None = None, carry_init: Initializer | None = None
    ) -> Array:
        """Returns the initial state (..., H) for inputs of shape (..., I): zeros, or drawn by `carry_init`."""
        shape = (*input_shape[:-1], self.hidden_size)
        if carry_init is None:
            return jnp.zeros(shape, self.carry_dtype)
        return carry_init(stream_of(rngs, "carry")(), shape, self.carry_dtype)

    @property
    def num_feature_axes(self) -> int:
        return 1


def stream_of(rngs: Rngs | None, name: str) -> nnx.RngStream:
    """Returns the random stream `name` of `rngs`, or its default stream; a single stream is returned as it is."""
    if isinstance(rngs, nnx.RngStream):
        return rngs
    if not isinstance(rngs, nnx.Rngs) or not {name, "default"} & {*rngs}:
        found = f"streams {[*rngs]}" if isinstance(rngs, nnx.Rngs) else repr(rngs)
        raise InputError("rngs", f'an nnx.Rngs with a stream "{name}"', found, f"Pass nnx.Rngs(0, {name}=1).")
    return rngs[name]
