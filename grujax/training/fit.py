"""Trains a `GRUModel` on a data set: what `grujax train` calls."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from grujax.data import Dataset, Sequences, batches, bucket_boundaries, padding_share, statistics, stratified_split
from grujax.errors import require
from grujax.linen.model import GRUModel
from grujax.training.config import TrainConfig
from grujax.training.evaluate import Scores, outputs_of, score
from grujax.training.step import draw_share, initial_state, make_optimizer, train_step


class Epoch(NamedTuple):
    """The figures of one epoch: what `fit` hands to `on_epoch`, and one line of `metrics.jsonl`."""

    epoch: int  # from 1
    loss: float  # mean over the training rows, with dropout and noise
    validation_loss: float  # the same loss of the held-out rows, without dropout and noise
    metric: str  # the name of the next figure: "accuracy" or "rmse"
    validation_metric: float
    sequences_per_second: float
    seconds: float  # without compilation
    best: bool  # the smallest validation loss so far


class Compiled(NamedTuple):
    """How the training step is compiled, once for each padded length: what `fit` hands to `on_compiled`."""

    shapes: tuple[tuple[int, ...], ...]  # (B, T, C) of each batch
    seconds: tuple[float, ...]  # one for each shape that is compiled already
    padding: float  # the share of padded steps, from 0 to 1


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns."""

    model: GRUModel
    variables: dict[str, Any]  # "params" of the best epoch, "statistics" of the rows that were trained on
    labels: tuple[str, ...] | None  # class names; None for regression
    best: Epoch  # that of the smallest validation loss
    history: tuple[Epoch, ...]
    compiled: Compiled
    test: Scores | None = None  # None where training was interrupted, or `evaluate_test` is False
    interrupted: bool = False

    def scores(self, data: Sequences) -> Scores:
        """The figures of the model on labelled data, padded as the training split was."""
        boundaries = tuple(sorted(shape[1] for shape in self.compiled.shapes))
        rows = self.compiled.shapes[0][0]
        outputs = outputs_of(self.model, self.variables, data, batch_size=rows, boundaries=boundaries)
        return score(outputs, data, self.variables)


def fit(
    config: TrainConfig,
    data: Dataset,
    *,
    on_compiled: Callable[[Compiled], None] = lambda compiled: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_best: Callable[[Fitted], None] = lambda fitted: None,
    evaluate_test: bool = True,
) -> Fitted:
    """Trains a `GRUModel` on `data.train` and evaluates it on `data.test` once, at the end.

    A stratified share of the training split is held out for validation; inputs (and targets of a regression) are
    standardised by the rest. The averaged weights are evaluated after each epoch, and those of the smallest validation
    loss are kept. The same config and data give the same numbers on the same machine. A `KeyboardInterrupt` (Ctrl-C)
    after the first epoch ends training with the best so far.

    Args:
      config: how to train.
      data: from `grujax.data.load`, or a `Dataset` of two `grujax.data.sequences`.
      on_compiled: called before the training step is compiled for the first shape, and after each.
      on_epoch: called after each epoch.
      on_best: called before `on_epoch`, where the validation loss is the smallest so far, with what `fit` would return.
      evaluate_test: False leaves `data.test` out: `Fitted.scores` evaluates it later.

    Raises:
      InputError: too few rows to hold some out, or a loss that is not finite.

    >>> from grujax.data import Dataset, sequences
    >>> x = [[[float(i % 2)]] * 5 for i in range(40)]
    >>> split = sequences(x, ["even", "odd"] * 20)
    >>> fitted = fit(TrainConfig(hidden_size=8, epochs=20), Dataset("parity", split, split))
    >>> fitted.test.accuracy
    1.0
    """
    train, held = stratified_split(data.train, config.validation, config.seed)
    model = GRUModel(
        config.hidden_size,
        1 if train.labels is None else len(train.labels),
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        dropout=config.dropout,
        pooling=config.pooling,
        reset_after=config.reset_after,
    )
    constants = jax.device_put(_statistics(train))
    boundaries = bucket_boundaries(train.lengths, config.buckets)
    rng = np.random.default_rng(config.seed)
    steps_per_epoch = sum(1 for _ in batches(train, config.batch_size, boundaries))
    num_steps = config.epochs * steps_per_epoch
    step_config = replace(config, seed=0)  # the step does not read it: runs with other seeds share its programs
    init_key, key = jax.random.split(jax.random.key(config.seed))
    params = model.init(init_key, np.zeros((1, 1, train.channels), np.float32))["params"]
    state = initial_state(params, make_optimizer(config, num_steps), config, key)

    of_each_shape = {batch.x.shape: batch for batch in batches(train, config.batch_size, boundaries)}
    compiled = Compiled(tuple(of_each_shape), (), padding_share(train.lengths, tuple(boundaries)))
    on_compiled(compiled)
    executables = {}
    for shape, batch in of_each_shape.items():
        began = time.perf_counter()
        share = np.ones(config.batch_size, np.float32)
        executables[shape] = train_step.lower(model, step_config, num_steps, state, constants, batch, share).compile()
        compiled = compiled._replace(seconds=(*compiled.seconds, time.perf_counter() - began))
        on_compiled(compiled)

    history: list[Epoch] = []
    fitted, average = None, None
    try:
        for number in range(1, config.epochs + 1):
            began, totals = time.perf_counter(), []
            for batch in batches(train, config.batch_size, boundaries, rng):
                share = draw_share(rng, config)
                state, average, total = executables[batch.x.shape](state, constants, batch, share)
                totals.append(total)
            loss = float(sum(map(float, totals))) / len(train)
            seconds = time.perf_counter() - began
            variables = {"params": average, "statistics": constants}
            outputs = outputs_of(model, variables, held, batch_size=config.batch_size, boundaries=boundaries)
            finite = bool(np.isfinite(loss) and np.isfinite(outputs).all())
            require(finite, "loss", "a finite number", f"{loss} in epoch {number}", "Lower --learning-rate.")
            scores = score(outputs, held, variables, config.label_smoothing)
            name, value = scores.metric
            is_best = fitted is None or scores.loss < fitted.best.validation_loss
            epoch = Epoch(number, loss, scores.loss, name, value, len(train) / seconds, seconds, is_best)
            history.append(epoch)
            if is_best:
                fitted = Fitted(model, variables, train.labels, epoch, tuple(history), compiled)
                on_best(fitted)
            on_epoch(epoch)
    except KeyboardInterrupt:
        if fitted is None:
            raise
        return replace(fitted, history=tuple(history), interrupted=True)
    assert fitted is not None
    fitted = replace(fitted, history=tuple(history))
    return replace(fitted, test=fitted.scores(data.test)) if evaluate_test else fitted


def _statistics(train: Sequences) -> dict[str, np.ndarray]:
    """Mean and standard deviation of the inputs (I,) and, in regression, of the targets (1,)."""
    mean, std = statistics(train)
    constants = {"input_mean": mean, "input_std": std}
    if train.labels is None:
        assert train.y is not None
        y_std = train.y.std(dtype=np.float64) or 1.0
        constants |= {
            "output_mean": np.array([train.y.mean(dtype=np.float64)], np.float32),
            "output_std": np.array([y_std], np.float32),
        }
    return constants
