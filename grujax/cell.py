"""One step of the GRU as a Flax Linen cell."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import PrecisionLike
from jax.typing import DTypeLike

from grujax.errors import require, require_count
from grujax.initializers import preset, with_update_bias
from grujax.inputs import require_floating
from grujax.step import cast, check_spec, project, projection, recurrent, split, step
from grujax.types import Activation, Array, GRUSpec, GRUWeights, state_dtype


class CellSettings(nn.Module):
    """What a cell, a layer and a model have in common. All but `hidden_size` by keyword alone.

    Attributes:
      hidden_size: H.
      bias: False leaves both biases out.
      reset_after: True is n = tanh(... + r ⊙ (W_hn h + b_hn)), as torch and Keras 3 have it; False
        n = tanh(... + W_hn (r ⊙ h) + b_hn), as Cho et al. 2014 and Haiku.
      update: "keep" is h' = (1 − z) ⊙ n + z ⊙ h, as torch and Keras have it; "take" h' = (1 − z) ⊙ h + z ⊙ n, as Cho
        et al. 2014 and Haiku.
      activation, gate_activation: of n, and of r and z; a name of `grujax.step.ACTIVATIONS` or an elementwise function.
      clip: clips what stands inside every activation to ±clip (ONNX); None does not.
      layer_norm: normalises the products with w_ih and with w_hh, each r and z together and n apart, before the
        biases, with learned scales `scale_ih` and `scale_hh` (Ba et al. 2016, arXiv 1607.06450, appendix).
      initializer: "torch", "flax" or "keras", see `grujax.initializers`.
      update_bias: added to the update gate's part of `b_ih` at the start; with update="keep" a positive one remembers.
      dtype: compute dtype of the products and dtype of the output; None promotes inputs and parameters. The state is
        carried in float32 at least.
      param_dtype: dtype that parameters are stored in.
      precision: of the products; None follows `jax.default_matmul_precision`.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    bias: bool = True
    reset_after: bool = True
    update: str = "keep"
    activation: Activation = "tanh"
    gate_activation: Activation = "sigmoid"
    clip: float | None = None
    layer_norm: bool = False
    initializer: str = "torch"
    update_bias: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = None

    @property
    def spec(self) -> GRUSpec:
        """The static part of the equations, as the kernels and `grujax.kernels.explain` take it."""
        return GRUSpec(
            self.reset_after,
            self.precision,
            self.update,
            self.activation,
            self.gate_activation,
            self.clip,
            self.layer_norm,
        )

    @nn.nowrap
    def check(self) -> None:
        """Raises `InputError` for a field that cannot be served."""
        require_count(self.hidden_size, "hidden_size")
        check_spec(self.spec)
        for name, dtype in (("dtype", self.dtype), ("param_dtype", self.param_dtype)):
            require(dtype is None or jnp.issubdtype(dtype, jnp.floating), name, "a floating dtype", dtype)
        remedy = "The update gate has no bias to add it to."
        require(self.bias or self.update_bias == 0, "update_bias", "0 with bias=False", self.update_bias, remedy)

    @nn.nowrap
    def settings(self, of: type[nn.Module]) -> dict[str, Any]:
        """The fields that this module and `of` have in common, to make the one from the other."""
        mine = {f.name for f in dataclasses.fields(self)} - {"parent", "name"}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(of) if f.name in mine}


class GRUCell(CellSettings, nn.RNNCellBase):
    """One step: `carry, y = cell(carry, x)`, both the new state h'.

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    The equations of `torch.nn.GRUCell`; the switches to others are the attributes of `CellSettings`. It works
    wherever a Linen cell does: `nn.RNN`, `nn.Bidirectional`, `nn.scan`, `nn.vmap`, `nn.remat`.

    Parameters: `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, columns r | z | n; with `layer_norm` also
    `scale_ih (3H,)` and `scale_hh (3H,)`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> x = jnp.ones((3, 7, 10))
    >>> rnn = nn.RNN(GRUCell(20))
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (3, 7, 20)
    """

    @nn.compact
    def weights(self, input_size: int) -> GRUWeights:
        """Declares the parameters and returns them: the one place that knows their names and shapes."""
        self.check()
        init, columns = preset(self.initializer, self.hidden_size), 3 * self.hidden_size
        first = with_update_bias(init.bias, self.update_bias) if self.update_bias else init.bias
        declared = {
            "w_ih": (init.w_ih, (input_size, columns)),
            "w_hh": (init.w_hh, (self.hidden_size, columns)),
            **({"b_ih": (first, (columns,)), "b_hh": (init.bias, (columns,))} if self.bias else {}),
            **(dict.fromkeys(("scale_ih", "scale_hh"), (nn.initializers.ones, (columns,))) if self.layer_norm else {}),
        }
        return GRUWeights(**{name: self.param(name, *of, self.param_dtype) for name, of in declared.items()})

    def __call__(
        self, carry: Array, x: Array, *, weights: GRUWeights | None = None, state_mask: Array | None = None
    ) -> tuple[Array, Array]:
        """carry (..., H), x (..., I) -> the new state twice: in float32 at least, and in the compute dtype.

        `weights` stand in for the cell's own (weight dropout); `state_mask` (..., H) multiplies the state where the
        products read it (recurrent dropout).
        """
        expected = (*x.shape[:-1], self.hidden_size)
        require(carry.shape == expected, "carry", f"shape {expected}", carry.shape)
        require_floating(carry, "carry")
        require_floating(x, "x")
        self.check()
        weights = self.weights(x.shape[-1]) if weights is None else weights
        dtype = jnp.dtype(self.dtype or jnp.result_type(x, weights.w_ih))
        weights = cast(weights, dtype)
        joint = self.reset_after and not self.layer_norm
        gates_x = project(projection(x, weights), self.spec, joint=joint)
        carry = carry.astype(state_dtype(dtype))
        h = step(gates_x, carry, split(recurrent(weights), joint), self.spec, state_mask)
        return h, h.astype(dtype)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The zero state for inputs of shape (..., I): (..., H). `rng` is not used."""
        del rng
        return jnp.zeros((*input_shape[:-1], self.hidden_size), state_dtype(self.dtype or self.param_dtype))

    @property
    def num_feature_axes(self) -> int:
        return 1
