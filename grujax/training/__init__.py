"""Trains and evaluates models on data sets: `fit`, its settings `TrainConfig`, `score` and `baselines`."""

from grujax.training.choices import chosen
from grujax.training.config import TrainConfig
from grujax.training.evaluate import Scores, baselines, outputs_of, score
from grujax.training.fit import fit
from grujax.training.loop import Compiled, Fitted
from grujax.training.run import Epoch

__all__ = ["Compiled", "Epoch", "Fitted", "Scores", "TrainConfig", "baselines", "chosen", "fit", "outputs_of", "score"]
