"""A training problem that is learnt in seconds: the sign, or the value, of a sequence's mean level."""

import numpy as np

from grujax.data import Dataset, sequences
from grujax.training import TrainConfig

SMALL = TrainConfig(hidden_size=8, epochs=8, batch_size=16, learning_rate=0.02, validation=0.1, seed=3, buckets=1)


def ragged(count, seed, regression=False):
    """Sequences whose mean sign (or mean) is the target, 3 to 12 steps, 2 channels far from standard."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(-1, 1, count)
    rows = [100 + 30 * (level + 0.1 * rng.normal(size=(rng.integers(3, 13), 2))) for level in levels]
    return sequences(rows, levels if regression else np.where(levels > 0, "up", "down"))


DATA = Dataset("levels", ragged(80, 0), ragged(40, 1))
TARGETS = Dataset("levels", ragged(120, 0, True), ragged(40, 1, True))
