"""Where a run stands, and how a checkpoint holds it."""

from typing import Any, NamedTuple

from grujax.training.step import TrainState


class Epoch(NamedTuple):
    """The figures of one epoch: what `fit` hands to `on_epoch`, and one line of `metrics.jsonl`."""

    epoch: int  # from 1
    loss: float  # mean over the training rows, with dropout and noise
    validation_loss: float | None  # the same loss of the held-out rows, without dropout and noise; None: none are held
    metric: str  # the name of the next figure: "accuracy" or "rmse", of several heads the first's; "": none held out
    validation_metric: float | None
    sequences_per_second: float
    seconds: float  # of training and waiting for rows, without validation and the compilation before the first epoch
    best: bool  # the smallest validation loss so far; always where no rows are held out
    steps_per_second: float = 0.0  # time steps of the sequences; padding is not counted
    data_seconds: float = 0.0  # in which batches were made, while the device computes: the first of the next epoch too
    validation_seconds: float = 0.0  # besides `seconds`; the first time with compilation
    memory: int | None = None  # bytes, the most that a device had in use so far; None where it does not tell (a CPU)
    validation_metrics: dict[str, float] | None = None  # of several heads the figure of each, as `Scores.metrics`


class Run(NamedTuple):
    """Where a run stands: all that is needed to go on from there. What is drawn at random follows from `step`."""

    step: int
    state: TrainState
    best: Any  # parameters
    history: tuple[Epoch, ...]

    @property
    def checkpoint(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """What `Checkpoints` save: the step, the arrays, and the history as JSON can hold it."""
        history = [list(epoch) for epoch in self.history]
        return self.step, {"state": self.state, "best": self.best}, {"history": history}
