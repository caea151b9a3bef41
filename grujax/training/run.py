"""The state of a run, the figures of its epochs, and how a checkpoint stores them."""

from typing import Any, NamedTuple

from grujax.training.step import TrainState


class Epoch(NamedTuple):
    """The figures of one epoch: the argument of `on_epoch`, and one line of `metrics.jsonl`."""

    epoch: int  # from 1
    loss: float  # mean over the training rows, with dropout and noise
    validation_loss: float | None  # mean over the held-out rows, without dropout and noise; None: no rows held out
    metric: str  # name of the next figure, "accuracy" or "rmse", of the first head; "": no rows held out
    validation_metric: float | None
    sequences_per_second: float
    seconds: float  # of training and waiting for rows, without validation and the compilation before the first epoch
    best: bool  # whether the validation loss is the smallest so far; always True if no rows are held out
    steps_per_second: float = 0.0  # time steps of the sequences, without padding
    data_seconds: float = 0.0  # of making batches, also the first of the next epoch, while the device computes
    validation_seconds: float = 0.0  # not part of `seconds`; with compilation in the first epoch
    memory: int | None = None  # bytes, the peak use of a device so far; None if the device does not report it (a CPU)
    validation_metrics: dict[str, float] | None = None  # with several heads, the figure of each: `Scores.metrics`


class Run(NamedTuple):
    """The state of a run: everything that resuming needs. Random draws depend only on the seed and `step`."""

    step: int
    state: TrainState
    best: Any  # the parameters of the best epoch
    history: tuple[Epoch, ...]

    @property
    def checkpoint(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """The arguments of `Checkpoints.save`: the step, the arrays, and the history in types of JSON."""
        history = [list(epoch) for epoch in self.history]
        return self.step, {"state": self.state, "best": self.best}, {"history": history}
