"""Truncated backpropagation through time: a stream longer than memory, a window at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike

from grujax.linen.model import GRUModel
from grujax.types import Array


class StreamState(NamedTuple):
    """What one window hands to the next."""

    params: Any
    optimizer: optax.OptState
    h: Array  # (L, B, H), the state after the last step


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def stream_step(
    model: GRUModel,
    loss: Callable[[Array, Array], Array],
    optimizer: optax.GradientTransformation,
    state: StreamState,
    x: Array,
    y: Array,
    resets: ArrayLike | None = None,
) -> tuple[StreamState, Array]:
    """One step of the optimizer on a window of B streams. The state is carried on; no gradient leaves the window.

    With a window as long as the stream it is full backpropagation (Williams and Peng 1990, Neural Computation 2).

    Args:
      model: in one direction, `pooling=None`, without dropout.
      loss: of outputs (B, T, output_size) and y, a scalar.
      optimizer: of optax.
      state: of the window before; its buffers are taken. Of the first, `model.initialize_carry` makes h.
      x: (B, T, I), the next T steps of each stream.
      y: what `loss` takes.
      resets: booleans (B, T), where another sequence begins.

    Returns:
      The next state, and the loss () before the step.

    >>> import jax.numpy as jnp
    >>> model, optimizer = GRUModel(4, 1, pooling=None), optax.adam(1e-2)
    >>> x = jnp.ones((2, 50, 3))
    >>> params, h = model.init(jax.random.key(0), x)["params"], model.initialize_carry(jax.random.key(0), x[:, 0].shape)
    >>> state, squared = StreamState(params, optimizer.init(params), h), lambda outputs, y: jnp.mean((outputs - y) ** 2)
    >>> for window in jnp.split(x, 5, axis=1):
    ...     state, value = stream_step(model, squared, optimizer, state, window, window[..., :1])
    >>> state.h.shape, bool(value < 1)
    ((1, 2, 4), True)
    """

    def of(params: Any) -> tuple[Array, Array]:
        found: Any = model.apply({"params": params}, x, state.h, resets=resets, return_state=True)
        outputs, h = found
        return loss(outputs, y), h

    (value, h), gradient = jax.value_and_grad(of, has_aux=True)(state.params)
    updates, moments = optimizer.update(gradient, state.optimizer, state.params)
    return StreamState(optax.apply_updates(state.params, updates), moments, h), value
