"""A range test for the learning rate: it records the loss while the rate grows with every step."""

import itertools
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grujax.data import Batch, Sequences, batches, bucket_boundaries
from grujax.errors import require
from grujax.linen.model import GRUModel
from grujax.training.choices import chosen
from grujax.training.config import TrainConfig
from grujax.training.devices import outside_of_meshes
from grujax.training.rows import constants_of, model_for, row_weights, weighed
from grujax.training.step import Draws, draw, gradient, new_parameters

LOWEST, HIGHEST = 1e-5, 1.0


class Rates(NamedTuple):
    """The result of `learning_rates`."""

    rates: np.ndarray  # (n_steps,), each a constant times the one before
    losses: np.ndarray  # (n_steps,), smoothed; n_steps is less than `steps` if the test ended early
    suggestion: float  # a third of the rate with the lowest loss


@outside_of_meshes
def learning_rates(config: TrainConfig, train: Sequences, steps: int = 100, smoothing: float = 0.9) -> Rates:
    """Trains for `steps` steps at rates that grow from 1e-5 to 1, and suggests a peak for `TrainConfig.learning_rate`.

    The losses are training losses, with dropout and mixup, smoothed by an exponential moving average. The test ends
    early when the average reaches four times its minimum. The suggestion is a third of the rate with the lowest loss,
    without the first tenth of the steps, where the average covers few of them. `accumulate`, `members` and the caller's
    mesh are ignored. The trained weights are discarded.

    Args:
      config: the training settings; `chosen` fills in each None.
      train: the rows to train on.
      steps: the number of steps, at least 10.
      smoothing: the weight of the previous average at each step, from 0 to below 1.

    Raises:
      InputError: `steps` or `smoothing` out of range, or settings that do not fit the data.

    Source: Smith 2017, arXiv 1506.01186, section 3.3. The rule for the suggestion is not from there.

    >>> from grujax.data import sequences
    >>> train = sequences([[[float(i % 2)]] * 5 for i in range(40)], ["even", "odd"] * 20)
    >>> result = learning_rates(TrainConfig(hidden_size=8), train)
    >>> 1e-3 < result.suggestion < 1
    True
    """
    require(steps >= 10, "steps", "10 or more", steps)
    require(0 <= smoothing < 1, "smoothing", "from 0 to below 1", smoothing)
    config = replace(chosen(config, train)[0], members=1)
    constants = constants_of(train, config.quantiles)
    weights = row_weights(train, config)
    model, boundaries = model_for(config, train, constants), bucket_boundaries(train.lengths, config.buckets)
    params = new_parameters(model, train.channels, jax.random.key(config.seed))
    state, step_config = (params, _optimizer(config, steps).init(params)), replace(config, seed=0)
    rng = np.random.default_rng(config.seed)
    epochs = (batches(train, config.batch_size, boundaries, rng) for _ in itertools.count())
    average, losses = 0.0, []
    for number, batch in enumerate(itertools.islice(itertools.chain.from_iterable(epochs), steps)):
        state, loss = _step(model, step_config, steps, state, constants, weighed(batch, weights), draw(config, number))
        average = smoothing * average + (1 - smoothing) * float(loss)
        losses.append(average / (1 - smoothing ** (number + 1)))
        if not losses[-1] < 4 * min(losses):  # NaN too
            break
    kept, settled = np.array(losses), min(steps // 10, len(losses) - 1)
    rates = LOWEST * (HIGHEST / LOWEST) ** (np.arange(len(kept)) / (steps - 1))
    least = settled + np.nanargmin(kept[settled:])
    return Rates(rates, kept, float(f"{rates[least] / 3:.1g}"))


def _optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    rate = optax.exponential_decay(LOWEST, steps - 1, HIGHEST / LOWEST)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adamw(rate, weight_decay=config.weight_decay))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _step(
    model: GRUModel, config: TrainConfig, steps: int, state: Any, constants: Any, batch: Batch, draws: Draws
) -> tuple[Any, jax.Array]:
    params, moments = state
    gradients, total = gradient(model, config, params, constants, batch, draws)
    updates, moments = _optimizer(config, steps).update(gradients, moments, params)
    return (optax.apply_updates(params, updates), moments), total / jnp.sum(jnp.asarray(batch.rows) >= 0)
