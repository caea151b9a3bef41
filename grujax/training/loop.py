"""The run behind `fit`: what is trained, how, and where it stands."""

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
from grujax.errors import require, require_equal
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
"""Bytes that the steps which are given at once take; a single one may take more."""


SHORT = 0.1
"""Seconds. Where the steps that are given at once, and making the next, take less, they become more, else fewer: a
signal waits for their end."""


class Compiled(NamedTuple):
    """How the training step is compiled, for each padded length, in one program: what `fit` hands to `on_compiled`."""

    shapes: tuple[tuple[int, ...], ...]  # (B, T, C) of each batch
    seconds: tuple[float, ...]  # of each program: that of the training rows, then one for each longer row of a stream
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
        """The model's outputs on data that is padded as the training split was, as `outputs_of` returns them: an array
        (N, output_size) or, without pooling, (N, T, output_size); of several heads a dict of such by name."""
        boundaries = tuple(sorted(shape[1] for shape in self.compiled.shapes))
        rows = self.compiled.shapes[0][0]
        return outputs_of(self.model, self.variables, data, batch_size=rows, boundaries=boundaries)

    def scores(self, data: Sequences) -> Scores:
        """The figures of the model on labelled data."""
        outputs = self.outputs(data)
        return score(outputs, data, self.variables, quantiles=self.quantiles, head_weights=self.head_weights)


class Given(NamedTuple):
    """Steps that the devices are given at once."""

    boundaries: tuple[int, ...]
    n_steps: int
    steps: Steps


class Training:
    """A run of `fit`, whose arguments these are: rows, model and compiled steps, and in `run` where it stands."""

    run: Run
    ended: Ended  # as an epoch would that ends where the run stands

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
        require(config.patience is None or held, "patience", None, config.patience, "Hold rows out.", rule=rule)
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
        remedy = f"Else the weights would never move: the run has {self.num_steps} steps."
        require(
            config.accumulate <= self.num_steps, "accumulate", f"at most {self.num_steps}", config.accumulate, remedy
        )
        self.compiled = Compiled(self._shapes(self.boundaries), (), padding_share(self.train.lengths, self.boundaries))
        # The step does not read these: runs that differ in them share its programs.
        self.step_config = replace(config, seed=0, head_weights=())
        self.programs: dict[tuple[int, ...], Any] = {}  # by the boundaries of an epoch's rows
        self.at_once = EVERY if self.devices.several_processes else 1
        self.ahead: tuple[Given, Iterator[Given]] | None = None  # the next steps, and those of the epoch after them
        if variables is not None:
            self._check(variables)
            self.constants = variables["statistics"]

    @property
    def about(self) -> dict[str, Any]:
        """What the run is: a checkpoint of another is refused."""
        streamed = {} if self._stream is None else {"stream": True}
        return {**asdict(self.config), "data": fingerprint(self._sample, self._start), **streamed}

    def forget(self) -> None:
        """Lets go of the steps made ahead: they hold this object, which would outlive a run that ends early."""
        self.ahead = None

    @property
    def over(self) -> bool:
        """Whether all epochs are, or the last `patience` all had a larger validation loss than one before them."""
        history, patience = self.run.history, self.config.patience
        assert self.config.epochs is not None
        tired = patience is not None and len(history) > patience and not any(e.best for e in history[-patience:])
        return tired or len(history) >= self.config.epochs

    def begin(self, saved: Checkpoints | None) -> None:
        """At the first step, or where the last checkpoint stands."""
        if self._start is None:
            params = new_parameters(self.whole, self.train.channels, jax.random.key(self.config.seed))
        else:  # over the host, as they may be on another mesh; and copies: a step takes the buffers of its state
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

    def compile(self, tell: Callable[[Compiled], None]) -> None:
        """The program of the training rows."""
        tell(self.compiled)
        self._program(next(self._given(self.train, 1, 0)))
        self._data_seconds = 0.0
        tell(self.compiled)

    def next_rows(self) -> Sequences:
        """Those of the next epoch."""
        if self._stream is None:
            return self.train
        began, sample = time.perf_counter(), self._sample
        rows = next(self._stream, None)
        if self.devices.several_processes:
            self.devices.check_same("stream", fingerprint(rows) if isinstance(rows, Sequences) else type(rows))
        remedy = "Lower `epochs`, or let the stream go on."
        require(rows is not None, "stream", f"a stream of {self.config.epochs} epochs", "its end", remedy)
        require(isinstance(rows, Sequences), "stream", "`Sequences`", type(rows).__name__)
        assert rows is not None
        require_equal(len(rows), len(sample), "stream", "As many rows in each epoch as `data.train` has.")
        require_alike(sample, rows, "the stream")
        weights = ["rows without weights" if of.weight is None else "rows with weights" for of in (sample, rows)]
        require_equal(weights[1], weights[0], "stream", "As `data.train` has them.")
        self._data_seconds += time.perf_counter() - began
        return rows

    def epoch(self, rows: Sequences, saved: Checkpoints | None, held_back: Sequence[int]) -> Epoch | None:
        """An epoch over the rows, or what is left of it after a break, with the checkpoints that are due meanwhile.

        held_back: the signals that wait until all processes stop at the same step. None where a signal stopped the
        steps, and its handler lets the run go on.
        """
        number, begun = len(self.run.history) + 1, len(self.run.history) * self.steps_per_epoch
        share, stop = 1 - (self.run.step - begun) / self.steps_per_epoch, False
        began = time.perf_counter() - self._data_seconds  # waiting for the rows
        with uninterrupted() as waiting:  # a step takes the buffers of the state before it
            for _ in self._trained(rows, number):
                wants = bool(waiting or held_back), saved is not None and saved.due
                stop, save = self.devices.agreed(self.run.step, *wants)
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
        """The run as it stands."""
        best = [epoch for epoch in self.run.history if epoch.best][-1]
        variables, labels, config = self._variables(self.run.best), self.train.labels, self.config
        of = {"quantiles": config.quantiles, "head_weights": config.head_weights}
        return Fitted(self.whole, variables, labels, best, self.run.history, self.compiled, **of)

    def _validated(self, number: int, loss: float, finite: bool, average: Any) -> tuple[Scores | None, bool]:
        """The figures of the held-out rows with the averaged weights, and whether their loss is the least so far."""
        variables, outputs, config = self._variables(average), None, self.config
        if self.held is not None:
            sizes = {"batch_size": config.batch_size, "boundaries": self.boundaries}
            outputs = outputs_of(self.whole, variables, self.held, **sizes)
        finite = finite and all(np.isfinite(a).all() for a in jax.tree.leaves(outputs))
        require(finite, "loss", "a finite number", f"{loss} in epoch {number}", "Lower --learning-rate.")
        if outputs is None or self.held is None:
            return None, True
        how = config.label_smoothing, config.quantiles, config.head_weights
        scores = score(outputs, self.held, variables, *how)
        before = [epoch.validation_loss for epoch in self.run.history if epoch.validation_loss is not None]
        return scores, scores.loss < min(before, default=math.inf)

    def _variables(self, params: Any) -> dict[str, Any]:
        return self.devices.here({"params": params, "statistics": self.constants})

    def _shapes(self, boundaries: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple((self.config.batch_size, length, self.train.channels) for length in boundaries)

    def _trained(self, rows: Sequences, number: int) -> Iterator[None]:
        """Takes the steps that are left of an epoch, some at once; while the devices compute, the next are made."""
        end = number * self.steps_per_epoch
        while True:
            now, others = self.ahead or self._begun(rows, number, self.run.step)
            began, self.ahead = time.perf_counter(), None
            found = self._program(now)(self.run.state, self.constants, np.int32(now.n_steps), now.steps)
            state, self.ended = self.devices.weights(found)
            self.run = self.run._replace(step=self.run.step + now.n_steps, state=state)
            if self.run.step < end:
                self.ahead = next(others), others
                jax.block_until_ready(self.run.state)
                if not self.devices.several_processes:  # they take as many
                    short = time.perf_counter() - began < SHORT
                    self.at_once = min(2 * self.at_once, EVERY) if short else max(self.at_once // 2, 1)
            elif self._stream is None and end < self.num_steps:
                self.ahead = self._begun(rows, number + 1, end)
            yield  # after the last step without waiting: the figures of the epoch wait
            if self.run.step == end:
                return

    def _begun(self, rows: Sequences, number: int, step: int) -> tuple[Given, Iterator[Given]]:
        given = self._given(rows, number, step)
        return next(given), given

    def _given(self, rows: Sequences, number: int, step: int) -> Iterator[Given]:
        """The steps of an epoch from that one on, some at once, then 0 steps without end. The rows are shared out; what
        is not used is zeros."""
        began, batch_size = time.perf_counter(), self.config.batch_size
        boundaries, longest = self.boundaries, int(rows.lengths.max())
        while boundaries[-1] < longest:  # of a stream: by doubling, so that few programs are compiled
            boundaries = (*boundaries[:-1], 2 * boundaries[-1])
        each_step = sum(math.prod(target.y.shape[2:]) for target in rows.targets.values() if target.per_step)
        size = 4 * batch_size * boundaries[-1] * (rows.channels + each_step)
        most = max(1, min(EVERY, self.steps_per_epoch, LARGEST // size))
        weights = self.weights if rows is self.train else row_weights(rows, self.config)
        rng = np.random.default_rng((self.config.seed, number, 1))  # (seed, step) are those of `draw`
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
            yield Given(boundaries, len(taken), steps)
            began, step = time.perf_counter(), step + len(taken)

    def _program(self, now: Given) -> Any:
        """The compiled steps, one program for all of the same boundaries."""
        boundaries = now.boundaries
        if boundaries not in self.programs:
            began = time.perf_counter()
            static = self.model, self.step_config, self.num_steps, boundaries
            with self.devices.context():
                given = self.run.state, self.constants, np.int32(1), now.steps
                self.programs[boundaries] = train_steps.lower(*static, *given, self.devices.axis).compile()
            shapes, seconds, padding = self.compiled
            shapes = tuple(dict.fromkeys((*shapes, *self._shapes(boundaries))))
            self.compiled = Compiled(shapes, (*seconds, time.perf_counter() - began), padding)
        return self.programs[boundaries]

    def _check(self, variables: Mapping[str, Any]) -> None:
        """Raises InputError for those of another model."""
        params = jax.eval_shape(lambda: new_parameters(self.whole, self.train.channels, jax.random.key(0)))
        new, given = (_shapes(tree) for tree in ({"params": params, "statistics": self.constants}, variables))
        odd = [name for name in sorted({*new, *given}) if new.get(name) != given.get(name)]
        require(not odd, "variables", f"those of {self.whole}", f"other shapes of {', '.join(odd)}")


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    """By the path of an array, as `params/encoder/gru/l0/w_hh`."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(a) for path, a in leaves}
