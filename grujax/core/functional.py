"""The GRU layer as a function of a nested dict of arrays, for larger models and for modules of other frameworks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike

from grujax.core.cell import run_cell, weights_of
from grujax.core.config import CellConfig, LayerConfig
from grujax.core.initializers import HIGHWAY, preset
from grujax.core.inputs import Steps
from grujax.core.stack import Hooks, LayerRun, Noise, run_layers
from grujax.errors import require_equal
from grujax.kernels.products import along
from grujax.types import Array, GRUWeights

Table: TypeAlias = dict[str, Any]
"""Parameters by name: an (initialiser, shape) pair, or a nested table."""


def dense_table(
    layer: CellConfig, inputs: int, width: int, *, kernel_init: Initializer | None = None, bias_init: Any = None
) -> Table:
    """Returns the parameters of W x + b, with the names that Flax's dense layers use."""
    init = preset(layer.initializer, layer.hidden_size, inputs)
    kernel = kernel_init or init.head_kernel, (inputs, width)
    return {"kernel": kernel, "bias": (bias_init or init.head_bias, (width,))}


def layer_table(layer: LayerConfig, input_size: int) -> Table:
    """Returns the parameters of a layer, with the names that `grujax.GRU` uses."""
    table: Table = {}
    if layer.initial_state == "learned":
        table["h0"] = (jax.nn.initializers.zeros, (layer.num_states, layer.hidden_size))
    for k, names in enumerate(layer.cell_names):
        size = input_size if k == 0 else layer.width
        table |= {name: layer.parameters(size) for name in names}
        if k > 0 and layer.connection == "highway":
            table[f"l{k}_highway"] = dense_table(layer, size, size, **HIGHWAY)
    return table


def drawn(table: Table, key: Array, dtype: DTypeLike) -> dict[str, Any]:
    """Draws the initial arrays of a table."""
    keys = jax.random.split(key, len(table))
    return {
        name: row[0](k, row[1], dtype) if isinstance(row, tuple) else drawn(row, k, dtype)
        for (name, row), k in zip(table.items(), keys, strict=True)
    }


def dense(layer: CellConfig, params: Mapping[str, Array], x: Array) -> Array:
    """Computes W x + b in the compute dtype."""
    dtype = jnp.dtype(layer.dtype or jnp.result_type(x, params["kernel"]))
    y = jnp.dot(x.astype(dtype), params["kernel"].astype(dtype), precision=layer.precision)
    return y + along(params["bias"].astype(dtype), y)


def noise_of(key: Callable[[], Array]) -> Noise:
    """Returns the random draws of dropout, from a function that returns a new key at each call."""

    def dropout(x: Array, rate: float) -> Array:
        kept = jax.random.bernoulli(key(), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate) if rate < 1 else x, 0)

    return Noise(dropout, key)


class ArrayCell(NamedTuple):
    """A cell with its parameters."""

    config: CellConfig
    params: Mapping[str, Array]

    def weights(self, input_size: int) -> GRUWeights:
        require_equal(input_size, self.params["w_ih"].shape[0], "input_size")
        return weights_of(self.config, self.params)

    def __call__(
        self, carry: Array, x: Array, *, weights: GRUWeights | None = None, state_mask: Array | None = None
    ) -> tuple[Array, Array]:
        return run_cell(self.config, carry, x, self.weights(x.shape[-1]) if weights is None else weights, state_mask)


def run_on_arrays(
    layer: LayerConfig, params: Mapping[str, Any], steps: Steps, h0: ArrayLike | None, noise: Noise | None = None
) -> LayerRun:
    """Runs the layers with parameters `params`, which have the structure of `layer_table`."""
    hooks = Hooks(
        cell=lambda name: ArrayCell(layer, params[name]),
        highway=lambda name, x: dense(layer, params[name], x),
        scan=lambda one_step, reverse: lambda cell, h, x: lax.scan(partial(one_step, cell), h, x, reverse=reverse),
        initial=params.get("h0"),
        noise=noise,
    )
    return run_layers(layer, steps, h0, hooks)
