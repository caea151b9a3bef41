"""Trains a `GRUModel` on a data set: what `grujax train` calls."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from grujax.data import Dataset, Sequences
from grujax.errors import require, require_package
from grujax.saving.checkpoints import Checkpoints
from grujax.signals import terminable, uninterrupted
from grujax.training.config import TrainConfig
from grujax.training.devices import outside_of_meshes
from grujax.training.loop import Compiled, Fitted, Training
from grujax.training.run import Epoch


@outside_of_meshes
def fit(
    config: TrainConfig,
    data: Dataset,
    *,
    on_compiled: Callable[[Compiled], None] = lambda compiled: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_best: Callable[[Fitted], None] = lambda fitted: None,
    stream: Iterable[Sequences] | None = None,
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
      on_compiled: called before the training step is compiled for the shapes of `data.train`, and after it.
      on_epoch: called after each epoch.
      on_best: called before `on_epoch`, where the epoch is the best so far, with what `fit` would return.
      stream: the rows of each epoch in turn, each `Sequences` of as many rows as `data.train`: an iterator that need
        not end. Statistics, classes and the rows held out then come from `data.train`, which is not trained on;
        balanced class weights are those of each epoch. All rows are padded to one length, which doubles where a
        row is longer; `buckets` is not read. A run that goes on from a checkpoint skips the epochs before it: give
        the stream from its beginning. Where it ends too early or fails, a checkpoint is saved first, but not of several
        processes. Those must all be given the same rows, which is checked.
      evaluate_test: False leaves `data.test` out: `Fitted.scores` evaluates it later.
      checkpoints: a folder. Every `checkpoint_period` seconds, at the end, and where Ctrl-C, SIGTERM or SIGHUP ends
        training, the run is saved there; from the last checkpoint in it training goes on, and on the same machine ends
        with the same bits as without a break. `on_epoch` is called for the epochs before it too. A checkpoint that
        cannot be written is a `CheckpointWarning`.
      checkpoint_period: seconds between two checkpoints, which are written beside the training.
      mesh: the devices to train on: `jax.make_mesh((8,), ("data",))`. Each takes its share of the rows of a batch, and
        all hold the weights; their number divides `batch_size`. A second axis shares out the columns of the GRUs'
        weights. None: the default device. A mesh that the caller has set is not read, callbacks included. A run may go
        on with another mesh; its figures are then equal to rounding. Along one axis the devices may be those of all
        processes that `jax.distributed.initialize` joined: then all call `fit` alike, with `checkpoints` where all can
        read and write. A signal to one ends all, 16 steps later at most. Each process validates for itself.
      variables: of a model of the same fields that `fit` trained: training begins with its weights, and keeps its
        statistics. None: random weights, by the seed.

    Raises:
      InputError: too few rows to hold some out, a stream that ends or has other rows, a loss that is not finite,
        variables of another model, or a checkpoint of other settings, other data or another format.

    >>> from grujax.data import Dataset, sequences
    >>> x = [[[float(i % 2)]] * 5 for i in range(40)]
    >>> split = sequences(x, ["even", "odd"] * 20)
    >>> fitted = fit(TrainConfig(hidden_size=8, epochs=20), Dataset("parity", split, split))
    >>> fitted.test.accuracy
    1.0
    """
    remedy = 'Dataset("name", train, test) makes one of `Sequences`.'
    require(isinstance(data, Dataset), "data", "a `Dataset`", type(data).__name__, remedy)
    training = Training(config, data, stream, mesh, variables)
    if data.test is not None and evaluate_test:
        require_package("sklearn.metrics", "data")  # for its scores
    with contextlib.ExitStack() as ending:
        saved = None
        if checkpoints is not None:
            saved = Checkpoints(checkpoints, training.about, checkpoint_period, asdict(TrainConfig()))
            ending.callback(saved.close)
            ending.enter_context(terminable())
            saved.check()
        ending.callback(training.forget)
        training.begin(saved)
        training.compile(on_compiled)

        def save() -> None:
            if saved is not None:
                saved.save(*training.run.checkpoint)

        several = training.devices.several_processes  # a signal to one must not part it from the others
        interrupted = None
        try:
            with uninterrupted() if several else contextlib.nullcontext([]) as held_back:
                if training.run.history:
                    on_best(training.fitted())
                for epoch in training.run.history:
                    on_epoch(epoch)
                while not training.over:
                    try:
                        rows = training.next_rows()
                    except Exception:
                        if not several:  # others may not have come to an end
                            save()
                        raise
                    while (epoch := training.epoch(rows, saved, held_back)) is None:
                        pass  # the handler of a signal lets the run go on
                    if epoch.best:
                        on_best(training.fitted())
                    on_epoch(epoch)
        except KeyboardInterrupt as signal:
            interrupted = signal
        save()
        if interrupted is not None and not training.run.history:
            raise interrupted
    fitted = training.fitted()
    if interrupted is not None:
        return replace(fitted, interrupted=True)
    if data.test is None or not evaluate_test:
        return fitted
    return replace(fitted, test=fitted.scores(data.test))
