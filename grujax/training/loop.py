"""`Training`, the loop behind `fit`, and `Fitted`, its result."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from grujax.data import Dataset, Sequences, bucket_boundaries, padding_share, stratified_split
from grujax.data.batches import batch_of, plan_of
from grujax.data.sequences import require_alike
from grujax.data.targets import padded
from grujax.errors import require
from grujax.linen import GRUEnsemble, GRUModel
from grujax.saving.checkpoints import Checkpoints
from grujax.signals import uninterrupted
from grujax.training.choices import chosen
from grujax.training.config import HeadWeights, TrainConfig
from grujax.training.devices import EVERY, Devices
from grujax.training.evaluate import Scores, outputs_of, score
from grujax.training.rows import constants_of, ensemble_of, fingerprint, model_for, row_weights, weighed
from grujax.training.run import Epoch, Run
from grujax.training.step import Draws, Ended, Steps, draw, initial_state, make_optimizer, new_parameters, train_steps

LARGEST = 2**24
"""The most bytes of the steps of one launch. A single step may take more."""


SHORT = 0.1
"""Seconds. If a launch, and making the next one, takes less time, the number of steps per launch is doubled, otherwise
halved: a signal waits for the end of the launch."""


class Compiled(NamedTuple):
    """The compilation of the training step: the argument of `on_compiled`. One program serves all padded lengths."""

    shapes: tuple[tuple[int, ...], ...]  # (B, T, C) for each padded length
    seconds: tuple[float, ...]  # of each program: first for the training rows, then for longer rows of a stream
    padding: float  # the share of padded steps, from 0 to 1


@dataclass(frozen=True)
class Fitted:
    """The result of `fit`."""

    model: GRUModel | GRUEnsemble  # an ensemble if `members` is more than 1
    variables: dict[str, Any]  # "params" of the best epoch, "statistics" of the training rows
    labels: Any  # class names, a tuple; None for regression; with several heads a dict by name
    best: Epoch  # the epoch with the smallest validation loss; the last one if no rows are held out
    history: tuple[Epoch, ...]
    compiled: Compiled
    test: Scores | None = None  # None if training was interrupted, without a test split, or with evaluate_test=False
    interrupted: bool = False
    quantiles: tuple[float, ...] = ()  # the levels; the outputs have each target's quantiles side by side
    head_weights: HeadWeights = ()  # with several heads, the factors of their losses

    def outputs(self, data: Sequences) -> Any:
        """Returns the model's outputs on `data`, padded as the training split was.

        As `outputs_of` returns them: an array (N, output_size) or, without pooling, (N, T, output_size); with several
        heads a dict of such arrays by name.
        """
        boundaries = tuple(sorted(shape[1] for shape in self.compiled.shapes))
        rows = self.compiled.shapes[0][0]
        return outputs_of(self.model, self.variables, data, batch_size=rows, boundaries=boundaries)

    def scores(self, data: Sequences) -> Scores:
        """Returns the figures of the model on data with labels or targets."""
        outputs = self.outputs(data)
        return score(outputs, data, self.variables, quantiles=self.quantiles, head_weights=self.head_weights)


class Launch(NamedTuple):
    """The steps of one call of the compiled program."""

    boundaries: tuple[int, ...]
    n_steps: int
    steps: Steps


class Training:
    """A run of `fit`, with its arguments: it holds the rows, the model, the compiled steps and in `run` its state."""

    run: Run
    ended: Ended  # of the last launch, as if the epoch ended with it

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        stream: Iterable[Sequences] | None,
        mesh: Mesh | None,
        variables: Mapping[str, Any] | None,
    ) -> None:
        config, _ = chosen(config, data.train)
        assert config.epochs is not None
        self.config, self.train, self.held = config, data.train, None
        self._sample, self._start = data.train, variables
        iterable = stream is None or isinstance(stream, Iterable)
        require(iterable, "stream", "an iterable of `Sequences`", type(stream).__name__)
        self._stream, self._data_seconds = None if stream is None else iter(stream), 0.0
        if config.validation:
            self.train, self.held = stratified_split(data.train, config.validation, config.seed)
        rule, held = "patience needs validation", self.held is not None
        remedy = "Set `validation` above 0."
        require(config.patience is None or held, "patience", None, config.patience, remedy, rule=rule)
        self.constants: Any = constants_of(self.train, config.quantiles)
        self.model = model_for(config, self.train, self.constants)
        self.whole = ensemble_of(config, self.model, self.train)
        self.devices = Devices(mesh, config.batch_size, config.hidden_size)
        if self.devices.several_processes:
            self.devices.check_same("data and settings", self.about)
        self.weights = row_weights(self.train, config)
        self.boundaries = bucket_boundaries(self.train.lengths, config.buckets if stream is None else 1)
        in_epoch = len(plan_of(self.train.lengths, config.batch_size, self.boundaries).rows)
        self.steps_per_epoch = in_epoch if stream is None else math.ceil(len(data.train) / config.batch_size)
        self.num_steps = config.epochs * self.steps_per_epoch
        remedy = f"With more the weights would never change: the run has {self.num_steps} steps."
        require(
            config.accumulate <= self.num_steps, "accumulate", f"at most {self.num_steps}", config.accumulate, remedy
        )
        self.compiled = Compiled(self._shapes(self.boundaries), (), padding_share(self.train.lengths, self.boundaries))
        # The step does not read these two settings, so runs that differ only in them share its programs.
        self.step_config = replace(config, seed=0, head_weights=())
        self.programs: dict[tuple[int, ...], Any] = {}  # by the boundaries of an epoch's rows
        self.at_once = EVERY if self.devices.several_processes else 1  # steps per launch
        self.ahead: tuple[Launch, Iterator[Launch]] | None = None  # the next launch, and the epoch's launches after it
        if variables is not None:
            self._check(variables)
            self.constants = variables["statistics"]

    @property
    def about(self) -> dict[str, Any]:
        """The settings and a fingerprint of the data: a checkpoint whose values differ is refused."""
        streamed = {} if self._stream is None else {"stream": True}
        return {**asdict(self.config), "data": fingerprint(self._sample, self._start), **streamed}

    def forget(self) -> None:
        """Drops the launches made ahead: their generator refers to this object and would keep it alive."""
        self.ahead = None

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or none of the last `patience` epochs was the best at its time."""
        history, patience = self.run.history, self.config.patience
        assert self.config.epochs is not None
        stalled = patience is not None and len(history) > patience and not any(e.best for e in history[-patience:])
        return stalled or len(history) >= self.config.epochs

    def begin(self, saved: Checkpoints | None) -> None:
        """Sets `run` to the state of the last checkpoint or, if there is none, to the state before the first step."""
        if self._start is None:
            params = new_parameters(self.whole, self.train.channels, jax.random.key(self.config.seed))
        else:  # through the host, as they may be on another mesh; copied, as a step donates the buffers of its state
            params = jax.tree.map(lambda a: jnp.array(np.asarray(a)), self._start["params"])
        self.constants = self.devices.whole(jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), self.constants))
        optimizer = make_optimizer(self.config, self.num_steps)
        state = self.devices.weights(initial_state(params, optimizer, self.config))
        run = Run(0, state, self.devices.weights(jax.tree.map(jnp.zeros_like, params)), ())
        found = None if saved is None else saved.restore(run.checkpoint[1])
        if found is not None:
            tree = self.devices.restored(found.tree)
            run = Run(found.step, **tree, history=tuple(Epoch(*epoch) for epoch in found.notes["history"]))
        self.run = run
        for _ in self.run.history:
            self.next_rows()

    def compile(self, on_compiled: Callable[[Compiled], None]) -> None:
        """Compiles the program for the training rows, and calls `on_compiled` before and after it."""
        on_compiled(self.compiled)
        self._program(next(self._launches(self.train, 1, 0)))
        self._data_seconds = 0.0
        on_compiled(self.compiled)

    def next_rows(self) -> Sequences:
        """Returns the rows of the next epoch. Raises InputError at the end of a stream and for rows of another task."""
        if self._stream is None:
            return self.train
        began, sample = time.perf_counter(), self._sample
        rows = next(self._stream, None)
        if self.devices.several_processes:
            self.devices.check_same("stream", fingerprint(rows) if isinstance(rows, Sequences) else type(rows))
        remedy = "Lower `epochs`, or pass a longer stream."
        require(rows is not None, "stream", f"a stream of {self.config.epochs} epochs", "the end of it", remedy)
        require(isinstance(rows, Sequences), "stream", "`Sequences`", type(rows).__name__)
        assert rows is not None
        expected = f"{len(sample)} rows in each epoch, as in `data.train`"
        require(len(rows) == len(sample), "stream", expected, len(rows))
        require_alike(sample, rows, "the stream")
        known, found = (f"rows {'without' if s.weight is None else 'with'} weights" for s in (sample, rows))
        require(found == known, "stream", f"{known}, as in `data.train`", found)
        self._data_seconds += time.perf_counter() - began
        return rows

    def epoch(self, rows: Sequences, saved: Checkpoints | None, held_back: Sequence[int]) -> Epoch | None:
        """Trains for one epoch, or for the rest of it after an interruption, and returns its figures.

        Returns None if a signal stopped the steps and its handler lets the run go on: call it again. Writes the
        checkpoints that are due during the epoch.

        held_back: the signals that wait until all processes stop at the same step.
        """
        number, begun = len(self.run.history) + 1, len(self.run.history) * self.steps_per_epoch
        share, stop = 1 - (self.run.step - begun) / self.steps_per_epoch, False
        began = time.perf_counter() - self._data_seconds  # includes the wait for the rows
        with uninterrupted() as waiting:  # a step donates the buffers of the state before it
            for _ in self._trained(rows, number):
                requests = bool(waiting or held_back), saved is not None and saved.due
                stop, save = self.devices.agreed(self.run.step, *requests)
                if save and saved is not None:
                    saved.begin(*self.run.checkpoint)
                if stop:
                    break
        data_seconds, self._data_seconds = self._data_seconds, 0.0
        if stop and self.devices.several_processes:
            raise KeyboardInterrupt
        if self.run.step < begun + self.steps_per_epoch:
            return None
        loss = float(np.asarray(self.run.state.loss).mean()) / len(rows)
        seconds = time.perf_counter() - began
        scores, is_best = self._validated(number, loss, bool(self.ended.finite), self.ended.average)
        validated = (None, "", None) if scores is None else (scores.loss, *scores.metric)
        metrics = scores.metrics if scores is not None and scores.heads else None
        each_second = [count * share / seconds for count in (len(rows), int(rows.lengths.sum()))]
        timed = data_seconds, time.perf_counter() - began - seconds, self.devices.memory()
        epoch = Epoch(number, loss, *validated, each_second[0], seconds, is_best, each_second[1], *timed, metrics)
        best = self.ended.average if is_best else self.run.best
        state = self.run.state._replace(loss=self.ended.loss)
        self.run = self.run._replace(state=state, best=best, history=(*self.run.history, epoch))
        return epoch

    def fitted(self) -> Fitted:
        """Returns the result of the epochs so far, without test figures."""
        best = [epoch for epoch in self.run.history if epoch.best][-1]
        variables, labels, config = self._variables(self.run.best), self.train.labels, self.config
        options = {"quantiles": config.quantiles, "head_weights": config.head_weights}
        return Fitted(self.whole, variables, labels, best, self.run.history, self.compiled, **options)

    def _validated(self, number: int, loss: float, finite: bool, average: Any) -> tuple[Scores | None, bool]:
        """Returns the figures of the held-out rows with the averaged weights, and whether the epoch is the best so far.

        Without held-out rows these are None and True. Raises InputError for values that are not finite.
        """
        variables, outputs, config = self._variables(average), None, self.config
        if self.held is not None:
            sizes = {"batch_size": config.batch_size, "boundaries": self.boundaries}
            outputs = outputs_of(self.whole, variables, self.held, **sizes)
        finite = finite and all(np.isfinite(a).all() for a in jax.tree.leaves(outputs))
        require(finite, "loss", "a finite number", f"{loss} in epoch {number}", "Lower --learning-rate.")
        if outputs is None or self.held is None:
            return None, True
        options = config.label_smoothing, config.quantiles, config.head_weights
        scores = score(outputs, self.held, variables, *options)
        before = [epoch.validation_loss for epoch in self.run.history if epoch.validation_loss is not None]
        return scores, scores.loss < min(before, default=math.inf)

    def _variables(self, params: Any) -> dict[str, Any]:
        return self.devices.here({"params": params, "statistics": self.constants})

    def _shapes(self, boundaries: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple((self.config.batch_size, length, self.train.channels) for length in boundaries)

    def _trained(self, rows: Sequences, number: int) -> Iterator[None]:
        """Takes the remaining steps of an epoch, and yields after each launch.

        The next launch is made while the devices compute.
        """
        end = number * self.steps_per_epoch
        while True:
            launch, later = self.ahead or self._first_launch(rows, number, self.run.step)
            began, self.ahead = time.perf_counter(), None
            result = self._program(launch)(self.run.state, self.constants, np.int32(launch.n_steps), launch.steps)
            state, self.ended = self.devices.weights(result)
            self.run = self.run._replace(step=self.run.step + launch.n_steps, state=state)
            if self.run.step < end:
                self.ahead = next(later), later
                jax.block_until_ready(self.run.state)
                if not self.devices.several_processes:  # all processes must take the same number of steps
                    short = time.perf_counter() - began < SHORT
                    self.at_once = min(2 * self.at_once, EVERY) if short else max(self.at_once // 2, 1)
            elif self._stream is None and end < self.num_steps:
                self.ahead = self._first_launch(rows, number + 1, end)
            yield  # the last launch is not waited for here: reading the figures of the epoch waits
            if self.run.step == end:
                return

    def _first_launch(self, rows: Sequences, number: int, step: int) -> tuple[Launch, Iterator[Launch]]:
        """Returns the first launch from that step on, and the iterator of the later ones."""
        launches = self._launches(rows, number, step)
        return next(launches), launches

    def _launches(self, rows: Sequences, number: int, step: int) -> Iterator[Launch]:
        """Yields the launches of epoch `number` from `step` on, then launches of 0 steps without end.

        The rows are split over the devices. The arrays of all launches have one size; unused entries are zeros.
        """
        began, batch_size = time.perf_counter(), self.config.batch_size
        boundaries, longest = self.boundaries, int(rows.lengths.max())
        while boundaries[-1] < longest:  # a longer row of a stream: doubled, so that few programs are compiled
            boundaries = (*boundaries[:-1], 2 * boundaries[-1])
        each_step = sum(math.prod(target.y.shape[2:]) for target in rows.targets.values() if target.per_step)
        size = 4 * batch_size * boundaries[-1] * (rows.channels + each_step)
        most = max(1, min(EVERY, self.steps_per_epoch, LARGEST // size))
        weights = self.weights if rows is self.train else row_weights(rows, self.config)
        rng = np.random.default_rng((self.config.seed, number, 1))  # `draw` takes the seeds (seed, step)
        plan, begun = plan_of(rows.lengths, batch_size, boundaries, rng), (number - 1) * self.steps_per_epoch
        while True:
            first, left = step - begun, min(self.at_once, most, EVERY - step % EVERY)
            bucket, taken = (a[first : first + left] for a in plan)
            drawn = [draw(self.config, step + number) for number in range(max(len(taken), 1))]
            share, seed = map(np.stack, zip(*drawn, strict=True))
            batch = weighed(batch_of(rows, taken, boundaries[-1]), weights)
            bucket, batch, share, seed = jax.tree.map(lambda a: padded(a, 0, most, 0), (bucket, batch, share, seed))
            draws = Draws(self.devices.rows(share), self.devices.whole(seed))
            steps = Steps(self.devices.whole(bucket), self.devices.rows(batch), draws)
            self._data_seconds += time.perf_counter() - began
            yield Launch(boundaries, len(taken), steps)
            began, step = time.perf_counter(), step + len(taken)

    def _program(self, launch: Launch) -> Any:
        """Returns the compiled program for the boundaries of the launch, and compiles it the first time."""
        boundaries = launch.boundaries
        if boundaries not in self.programs:
            began = time.perf_counter()
            static = self.model, self.step_config, self.num_steps, boundaries
            with self.devices.context():
                arrays = self.run.state, self.constants, np.int32(1), launch.steps
                self.programs[boundaries] = train_steps.lower(*static, *arrays, self.devices.axis).compile()
            shapes, seconds, padding = self.compiled
            shapes = tuple(dict.fromkeys((*shapes, *self._shapes(boundaries))))
            self.compiled = Compiled(shapes, (*seconds, time.perf_counter() - began), padding)
        return self.programs[boundaries]

    def _check(self, variables: Mapping[str, Any]) -> None:
        """Raises InputError for variables of another model."""
        params = jax.eval_shape(lambda: new_parameters(self.whole, self.train.channels, jax.random.key(0)))
        expected, found = (_shapes(tree) for tree in ({"params": params, "statistics": self.constants}, variables))
        odd = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
        require(not odd, "variables", f"variables of {self.whole}", f"other shapes for {', '.join(odd)}")


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array by its path, such as `params/encoder/gru/l0/w_hh`."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(a) for path, a in leaves}
