"""Truncated backpropagation through time: trains on streams longer than memory, one window at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike

from grujax.linen.model import GRUModel
from grujax.types import Array


class StreamState(NamedTuple):
    """The state that one window passes to the next."""

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
    """Takes one optimizer step on a window of B streams. The GRU's state is carried on; no gradient leaves the window.

    With a window as long as the stream this is full backpropagation (Williams and Peng 1990, Neural Computation 2).

    Args:
      model: a model that reads in one direction, with `pooling=None` and without dropout.
      loss: a function of the outputs (B, T, output_size) and y that returns a scalar.
      optimizer: an optax optimizer.
      state: the state after the previous window; its buffers are donated. For the first window,
        `model.initialize_carry` makes h.
      x: (B, T, I), the next T steps of each stream.
      y: the second argument of `loss`.
      resets: booleans (B, T), True where a new sequence begins.

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

    def loss_of(params: Any) -> tuple[Array, Array]:
        result: Any = model.apply({"params": params}, x, state.h, resets=resets, return_state=True)
        outputs, h = result
        return loss(outputs, y), h

    (value, h), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, moments = optimizer.update(gradient, state.optimizer, state.params)
    return StreamState(optax.apply_updates(state.params, updates), moments, h), value
