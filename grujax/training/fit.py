"""Trains a `GRUModel` on a data set: what `grujax train` calls."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from grujax.data import (
    Batch,
    Dataset,
    Sequences,
    batches,
    bucket_boundaries,
    padding_share,
    stratified_split,
)
from grujax.errors import require, require_package
from grujax.linen import GRUEnsemble, GRUModel
from grujax.saving.checkpoints import Checkpoints
from grujax.signals import terminable, uninterrupted
from grujax.training.choices import chosen
from grujax.training.config import HeadWeights, TrainConfig
from grujax.training.devices import Devices
from grujax.training.evaluate import Scores, outputs_of, score
from grujax.training.rows import constants_of, ensemble_of, fingerprint, model_for, row_weights, weighed
from grujax.training.run import Epoch, Run
from grujax.training.step import Draws, draw, end_epoch, initial_state, make_optimizer, train_step


class Compiled(NamedTuple):
    """How the training step is compiled, once for each padded length: what `fit` hands to `on_compiled`."""

    shapes: tuple[tuple[int, ...], ...]  # (B, T, C) of each batch
    seconds: tuple[float, ...]  # one for each shape that is compiled already
    padding: float  # the share of padded steps, from 0 to 1


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns."""

    model: GRUModel | GRUEnsemble  # an ensemble where `members` is more than 1
    variables: dict[str, Any]  # "params" of the best epoch, "statistics" of the rows that were trained on
    labels: Any  # class names, a tuple; None for regression; of several heads a dict by name
    best: Epoch  # that of the smallest validation loss; the last where no rows are held out
    history: tuple[Epoch, ...]
    compiled: Compiled
    test: Scores | None = None  # None where training was interrupted, none is there, or `evaluate_test` is False
    interrupted: bool = False
    quantiles: tuple[float, ...] = ()  # of a regression; the model gives the quantiles of a target side by side
    head_weights: HeadWeights = ()  # of several heads

    def outputs(self, data: Sequences) -> Any:
        """The model's outputs (N, output_size) on data that is padded as the training split was; see `outputs_of`."""
        boundaries = tuple(sorted(shape[1] for shape in self.compiled.shapes))
        rows = self.compiled.shapes[0][0]
        return outputs_of(self.model, self.variables, data, batch_size=rows, boundaries=boundaries)

    def scores(self, data: Sequences) -> Scores:
        """The figures of the model on labelled data."""
        outputs = self.outputs(data)
        return score(outputs, data, self.variables, quantiles=self.quantiles, head_weights=self.head_weights)


def fit(
    config: TrainConfig,
    data: Dataset,
    *,
    on_compiled: Callable[[Compiled], None] = lambda compiled: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_best: Callable[[Fitted], None] = lambda fitted: None,
    evaluate_test: bool = True,
    checkpoints: str | Path | None = None,
    checkpoint_period: float = 60.0,
    mesh: Mesh | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Fitted:
    """Trains a `GRUModel` on `data.train` and evaluates it on `data.test`, where there is one, once, at the end.

    Of a large training split a stratified share is held out for validation; inputs (and targets of a regression) are
    standardised by the rest. The averaged weights are evaluated after each epoch, and those of the smallest validation
    loss are kept. A small one is trained on whole, and the last averaged weights are kept. The same config and data
    give the same numbers on the same machine. A `KeyboardInterrupt` (Ctrl-C) after the first epoch ends training with
    the best so far.

    Args:
      config: how to train; `chosen` fills in what is None.
      data: from `grujax.data.load`, or a `Dataset` of one or two `grujax.data.sequences`. The model has the heads that
        its y has; the loss of several is the sum of theirs.
      on_compiled: called before the training step is compiled for the first shape, and after each.
      on_epoch: called after each epoch.
      on_best: called before `on_epoch`, where the epoch is the best so far, with what `fit` would return.
      evaluate_test: False leaves `data.test` out: `Fitted.scores` evaluates it later.
      checkpoints: a folder. Every `checkpoint_period` seconds, at the end, and where Ctrl-C, SIGTERM or SIGHUP ends
        training, the run is saved there; from the last checkpoint in it training goes on, and on the same machine ends
        with the same bits as without a break. `on_epoch` is called for the epochs before it too. A checkpoint that
        cannot be written is a `CheckpointWarning`.
      checkpoint_period: seconds between two checkpoints, which are written beside the training.
      mesh: the devices to train on: `jax.make_mesh((8,), ("data",))`. Each takes its share of the rows of a batch, and
        all hold the weights; their number divides `batch_size`. A second axis shares out the columns of the GRUs'
        weights. None: the default device. A run may go on with another mesh; its figures are then equal to rounding.
        Along one axis the devices may be those of all processes that `jax.distributed.initialize` joined: then all call
        `fit` alike, with `checkpoints` where all can read and write. A signal to one ends all, 16 steps later at most.
        Each process validates for itself.
      variables: of a model of the same fields that `fit` trained: training begins with its weights, and keeps its
        statistics. None: random weights, by the seed.

    Raises:
      InputError: too few rows to hold some out, a loss that is not finite, variables of another model, or a checkpoint
        of other settings, other data or another format.

    >>> from grujax.data import Dataset, sequences
    >>> x = [[[float(i % 2)]] * 5 for i in range(40)]
    >>> split = sequences(x, ["even", "odd"] * 20)
    >>> fitted = fit(TrainConfig(hidden_size=8, epochs=20), Dataset("parity", split, split))
    >>> fitted.test.accuracy
    1.0
    """
    config, _ = chosen(config, data.train)
    assert config.epochs is not None
    train, held = data.train, None
    if config.validation:
        train, held = stratified_split(data.train, config.validation, config.seed)
    rule = "patience needs validation"
    require(config.patience is None or held is not None, "patience", None, config.patience, "Hold rows out.", rule=rule)
    constants = constants_of(train, config.quantiles)
    model = model_for(config, train, constants)
    whole = ensemble_of(config, model, train)
    devices = Devices(mesh, config.batch_size, config.hidden_size)
    if devices.several_processes:
        devices.check_same("data and settings", config, fingerprint(data.train, variables))
    weights = row_weights(train, config)
    boundaries = bucket_boundaries(train.lengths, config.buckets)
    steps_per_epoch = sum(1 for _ in batches(train, config.batch_size, boundaries))
    num_steps = config.epochs * steps_per_epoch
    step_config = replace(config, seed=0)  # the step does not read it: runs with other seeds share its programs
    x = np.zeros((1, 1, train.channels), np.float32)
    if variables is not None:
        shapes = jax.eval_shape(lambda: whole.init(jax.random.key(0), x))
        new, given = (_shapes(tree) for tree in ({**shapes, "statistics": constants}, variables))
        odd = [name for name in sorted({*new, *given}) if new.get(name) != given.get(name)]
        require(not odd, "variables", f"those of {whole}", f"other shapes of {', '.join(odd)}")
        constants = variables["statistics"]
    if data.test is not None and evaluate_test:
        require_package("sklearn.metrics", "data")  # for its scores

    with contextlib.ExitStack() as ending:
        saved = None
        if checkpoints is not None:
            about = {**asdict(config), "data": fingerprint(data.train, variables)}
            saved = Checkpoints(checkpoints, about, checkpoint_period, asdict(TrainConfig()))
            ending.callback(saved.close)
            ending.enter_context(terminable())
            saved.check()
        if variables is None:
            params = whole.init(jax.random.key(config.seed), x)["params"]
        else:  # over the host, as they may be on another mesh; and copies: a step takes the buffers of its state
            params = jax.tree.map(lambda a: jax.numpy.array(np.asarray(a)), variables["params"])
        constants = devices.whole(jax.tree.map(lambda a: jax.numpy.asarray(np.asarray(a)), constants))
        state = devices.weights(initial_state(params, make_optimizer(config, num_steps), config))
        run = Run(0, state, devices.weights(jax.tree.map(jax.numpy.zeros_like, params)), ())
        run = run if saved is None else run.restored(saved)

        def arguments(batch: Batch, draws: Draws) -> tuple[Batch, Draws]:
            """On the devices, the rows shared out."""
            return devices.rows(weighed(batch, weights)), Draws(devices.rows(draws.share), devices.whole(draws.seed))

        of_each_shape = {batch.x.shape: batch for batch in batches(train, config.batch_size, boundaries)}
        compiled = Compiled(tuple(of_each_shape), (), padding_share(train.lengths, tuple(boundaries)))
        on_compiled(compiled)
        executables, draws = {}, draw(config, 0)
        for shape, batch in of_each_shape.items():
            began = time.perf_counter()
            given = arguments(batch, draws)
            executables[shape] = train_step.lower(model, step_config, num_steps, run.state, constants, *given).compile()
            compiled = compiled._replace(seconds=(*compiled.seconds, time.perf_counter() - began))
            on_compiled(compiled)

        def fitted() -> Fitted:
            best = [epoch for epoch in run.history if epoch.best][-1]
            variables = devices.here({"params": run.best, "statistics": constants})
            of = config.quantiles, config.head_weights
            return Fitted(whole, variables, train.labels, best, run.history, compiled, None, False, *of)

        held_back: list[int] = []
        holding = ending.enter_context(contextlib.ExitStack())
        try:
            if devices.several_processes:  # a signal to one must not part it from the others: they agree later
                held_back = holding.enter_context(uninterrupted())
            if run.history:
                on_best(fitted())
            for epoch in run.history:
                on_epoch(epoch)
            while len(run.history) < config.epochs and not run.tired(config.patience):
                number, began, data_seconds = len(run.history) + 1, time.perf_counter(), 0.0
                since = began
                rng = np.random.default_rng((config.seed, number, 1))  # (seed, step) are those of `draw`
                first, stop = run.step - (number - 1) * steps_per_epoch, False
                with uninterrupted() as waiting:  # a step takes the buffers of the state before it
                    for batch in islice(batches(train, config.batch_size, boundaries, rng), first, None):
                        given = arguments(batch, draw(config, run.step))
                        data_seconds += time.perf_counter() - since
                        run = run.after(devices.weights(executables[batch.x.shape](run.state, constants, *given)))
                        wants = bool(waiting or held_back), saved is not None and saved.due
                        stop, save = devices.agreed(run.step, *wants)
                        if save and saved is not None:
                            saved.begin(run.step, run.tree, run.notes())
                        if stop:
                            break
                        since = time.perf_counter()
                if stop and devices.several_processes:
                    raise KeyboardInterrupt
                if run.step < number * steps_per_epoch:  # the handler of the signal lets the run go on
                    continue
                epoch_ended = end_epoch(step_config, num_steps, run.state)
                loss, average = float(np.asarray(run.state.loss).mean()) / len(train), epoch_ended.average
                seconds = time.perf_counter() - began
                outputs = None
                averaged = devices.here({"params": average, "statistics": constants})
                if held is not None:
                    outputs = outputs_of(whole, averaged, held, batch_size=config.batch_size, boundaries=boundaries)
                finite = bool(epoch_ended.finite) and all(np.isfinite(a).all() for a in jax.tree.leaves(outputs))
                require(finite, "loss", "a finite number", f"{loss} in epoch {number}", "Lower --learning-rate.")
                validated, metrics, is_best = (None, "", None), None, True
                if held is not None and outputs is not None:
                    scores = score(
                        outputs, held, averaged, config.label_smoothing, config.quantiles, config.head_weights
                    )
                    validated, metrics = (scores.loss, *scores.metric), scores.metrics if scores.heads else None
                    before = [epoch.validation_loss for epoch in run.history if epoch.validation_loss is not None]
                    is_best = scores.loss < min(before, default=math.inf)
                share = 1 - first / steps_per_epoch  # of the epoch: the rest was trained before a break
                each_second = [count * share / seconds for count in (len(train), int(train.lengths.sum()))]
                timed = data_seconds, time.perf_counter() - began - seconds, devices.memory()
                epoch = Epoch(
                    number, loss, *validated, each_second[0], seconds, is_best, each_second[1], *timed, metrics
                )
                run = run.ended(epoch, epoch_ended)
                if is_best:
                    on_best(fitted())
                on_epoch(epoch)
            holding.close()
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):  # the signal that ended training
                holding.close()
            if saved is not None:
                saved.save(run.step, run.tree, run.notes())
            if not run.history:
                raise
            return replace(fitted(), interrupted=True)
        if saved is not None:
            saved.save(run.step, run.tree, run.notes())
    if data.test is None or not evaluate_test:
        return fitted()
    return replace(fitted(), test=fitted().scores(data.test))


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    """By the path of an array, as `params/encoder/gru/l0/w_hh`."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(a) for path, a in leaves}
