"""A training problem that is learnt in seconds: to predict the mean level of a sequence, or its sign."""

from dataclasses import replace

import jax
import numpy as np

from grujax.data import Dataset, batches, sequences
from grujax.training import TrainConfig, fit
from grujax.training.rows import constants_of
from grujax.training.step import draw, ended, initial_state, make_optimizer, new_parameters, train_step

SMALL = TrainConfig(hidden_size=8, epochs=8, batch_size=16, learning_rate=0.02, validation=0.1, seed=3, buckets=1)
SMALL = replace(SMALL, bidirectional=False)  # compiles faster; tests/cli train both directions


def ragged(count, seed, regression=False):
    """Sequences of 3 to 12 steps and 2 channels, not standardised; the target is their level or its sign."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(-1, 1, count)
    rows = [100 + 30 * (level + 0.1 * rng.normal(size=(rng.integers(3, 13), 2))) for level in levels]
    return sequences(rows, levels if regression else np.where(levels > 0, "up", "down"))


END = jax.jit(ended, static_argnums=(0, 1))
"""`ended` as one program instead of one for each operation."""

DATA = Dataset("levels", ragged(80, 0), ragged(40, 1))
TARGETS = Dataset("levels", ragged(120, 0, True), ragged(40, 1, True))


def assert_fit_takes_the_steps_of_train_step(config, data):
    """Runs `train_step` on all batches in order: the averaged weights are those of `fit`, up to rounding."""
    fitted, step = fit(config, data), 0
    boundaries = tuple(shape[1] for shape in fitted.compiled.shapes)
    per_epoch = len(list(batches(data.train, config.batch_size, boundaries)))
    num_steps, constants = config.epochs * per_epoch, constants_of(data.train)
    first = new_parameters(fitted.model, data.train.channels, jax.random.key(config.seed))
    state = initial_state(first, make_optimizer(config, num_steps), config)
    for number in range(1, config.epochs + 1):
        rng = np.random.default_rng((config.seed, number, 1))
        for batch in batches(data.train, config.batch_size, boundaries, rng):
            state = train_step(fitted.model, config, num_steps, state, constants, batch, draw(config, step))
            step += 1
    average = END(config, num_steps, state).average
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), fitted.variables["params"], average
    )
