"""Loss, optimizer and one training step."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from grujax.data import Batch
from grujax.model import GRUModel
from grujax.training.config import TrainConfig
from grujax.types import Array


class TrainState(NamedTuple):
    params: Any
    optimizer: optax.OptState
    key: Array


def make_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm; the learning rate rises linearly, then falls as a cosine to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, round(config.warmup * num_steps)), max(2, num_steps)
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.adamw(schedule, weight_decay=config.weight_decay)
    )


def row_losses(outputs: Array, y: Array, statistics: Mapping[str, Array], label_smoothing: float = 0.0) -> Array:
    """(B,): cross-entropy of logits (B, K) and classes y (B,) integers; squared error, in units of the training
    targets' variance, of outputs (B, 1) and targets y (B,) floats."""
    if jnp.issubdtype(y.dtype, jnp.integer):
        targets = optax.smooth_labels(jax.nn.one_hot(y, outputs.shape[-1], dtype=outputs.dtype), label_smoothing)
        return optax.softmax_cross_entropy(outputs, targets)
    return optax.squared_error(outputs[:, 0] / statistics["output_std"], y / statistics["output_std"])


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3,))
def train_step(
    model: GRUModel,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    state: TrainState,
    statistics: Mapping[str, Array],
    batch: Batch,
) -> tuple[TrainState, Array]:
    """One step: the new state, and the sum of the batch's losses over its rows of weight 1."""
    key, noise_key, dropout_key = jax.random.split(state.key, 3)
    noise = jax.random.normal(noise_key, batch.x.shape, batch.x.dtype) * statistics["input_std"][None, None]
    x = batch.x + config.input_noise * noise if config.input_noise else batch.x

    def loss(params: Any) -> tuple[Array, Array]:
        outputs: Any = model.apply(
            {"params": params, "statistics": statistics},
            x,
            lengths=batch.lengths,
            deterministic=False,
            rngs={"dropout": dropout_key},
        )
        losses = row_losses(outputs, jnp.asarray(batch.y), statistics, config.label_smoothing)
        total = jnp.sum(losses * batch.weight)
        return total / jnp.sum(batch.weight), total

    gradients, total = jax.grad(loss, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    return TrainState(optax.apply_updates(state.params, updates), optimizer_state, key), total


@partial(jax.jit, static_argnums=0)
def forward(model: GRUModel, variables: Mapping[str, Any], x: Array, lengths: Array) -> Array:
    """The model without dropout: x (B, T, I), lengths (B,) -> (B, output_size)."""
    outputs: Any = model.apply(variables, x, lengths=lengths)
    return outputs
