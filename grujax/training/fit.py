"""`fit`, which trains a `GRUModel` on a data set. `grujax train` calls it."""

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
    """Trains a `GRUModel` on `data.train`. If there is a test split, the model is evaluated on it once, at the end.

    From a large training split a stratified share is held out for validation; inputs (and the targets of a regression)
    are standardised with the statistics of the other rows. After each epoch the averaged weights are evaluated, and the
    ones with the smallest validation loss are kept. A small training split is used whole, and the last averaged weights
    are kept. The same config and data give the same numbers on the same machine. A `KeyboardInterrupt` (Ctrl-C) after
    the first epoch ends training and returns the best model so far.

    Args:
      config: the training settings; `chosen` fills in each None.
      data: from `grujax.data.load`, or a `Dataset` of one or two `grujax.data.sequences`. The model has one head for
        each head of y; with several heads the loss is the sum of their losses.
      on_compiled: called before and after the training step is compiled for the shapes of `data.train`.
      on_epoch: called after each epoch.
      on_best: called before `on_epoch` if the epoch is the best so far, with the result up to this epoch.
      stream: an iterable, possibly infinite, of the rows of each epoch: `Sequences` with as many rows as `data.train`.
        Statistics, classes and the held-out rows then come from `data.train`, which is not trained on; balanced class
        weights are computed for each epoch. All rows are padded to one length, which doubles when a row is longer;
        `buckets` is ignored. A run that resumes from a checkpoint skips the epochs before it: pass the stream from its
        beginning. If the stream ends too early or fails, a checkpoint is saved first, except with several processes.
        All processes must be given the same rows, which is checked.
      evaluate_test: False skips the evaluation on `data.test`; `Fitted.scores` can do it later.
      checkpoints: a folder. The run is saved there every `checkpoint_period` seconds, at the end, and when Ctrl-C,
        SIGTERM or SIGHUP ends training. If the folder has a checkpoint, training resumes from the last one, and on the
        same machine ends with the same bits as an uninterrupted run. `on_epoch` is called for the epochs before the
        checkpoint too. A checkpoint that cannot be written causes a `CheckpointWarning`.
      checkpoint_period: seconds between two checkpoints, which are written in the background.
      mesh: the devices to train on, such as `jax.make_mesh((8,), ("data",))`. The rows of each batch are split over
        them, so their number must divide `batch_size`; each device holds all weights. A second axis splits the columns
        of the GRUs' weights. None: the default device. A mesh that the caller has set has no effect, not even in
        callbacks. A run may resume with another mesh; its figures are then equal up to rounding. A mesh with one axis
        may hold the devices of all processes that `jax.distributed.initialize` joined. Every process then calls `fit`
        with the same arguments and with `checkpoints` in a folder that all can read and write. A signal to one process
        ends all of them, at most 16 steps later. Each process computes the validation itself.
      variables: those of a model with the same fields that `fit` trained. Training starts from its weights and keeps
        its statistics. None: random weights from the seed.

    Raises:
      InputError: too few rows to hold some out, a stream that ends too early or whose rows do not match `data.train`, a
        loss that is not finite, variables of another model, or a checkpoint with other settings, other data or another
        format.

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

        several = training.devices.several_processes  # a signal to one process must not separate it from the others
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
                        if not several:  # saving needs all processes, and the stream may have failed in this one alone
                            save()
                        raise
                    while (epoch := training.epoch(rows, saved, held_back)) is None:
                        pass  # a signal arrived, and its handler lets the run go on
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
