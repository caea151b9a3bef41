"""Train, save, and only then show: whatever fails after the model is on disk is a warning."""

import contextlib
import dataclasses
import importlib.util
import os
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from grujax.cli.evaluate import require_free
from grujax.cli.run_folder import CHECKPOINTS, SETTINGS, Kept, Metrics, Settings, can_go_on, clear, finished, new_folder
from grujax.cli.show import say, show_beside, show_confused, show_data, show_rates, show_scores
from grujax.cli.signals import stop
from grujax.cli.streams import tell, told, warned
from grujax.cli.tensorboard import Events
from grujax.data import Dataset, DataWarning, load
from grujax.data.targets import named
from grujax.errors import InputError, require, require_package
from grujax.saving.checkpoints import CheckpointWarning
from grujax.saving.model_file import MODEL_FILE
from grujax.training import Epoch, Fitted, Scores, TrainConfig, baselines, chosen, fit
from grujax.training.devices import first_devices, joined
from grujax.training.plots import plot_confusion, plot_curves
from grujax.training.progress import Screen
from grujax.training.rates import learning_rates


@dataclass(frozen=True)
class Options(TrainConfig):
    """The options that are settings of the training: all but one, which only a forecaster has figures for."""

    head_weights: tuple[tuple[str, float], ...] = ()
    """What the loss of one of several heads counts in their sum, by its name: --head-weights value 0.1. Else 1."""
    quantiles: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()


@dataclass(frozen=True)
class Train:
    """Train a GRU on a data set, save it, evaluate it on the test split."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[SOURCE]")] = "JapaneseVowels"
    """The name of a data set that comes with aeon, or a .csv, .parquet, .npz or .ts file."""
    test: Path | None = None
    """The test file. None: the _TEST file beside SOURCE, or without one a stratified fifth of the rows."""
    missing: Literal["refuse", "mask"] = "refuse"
    """Missing values. mask: the last observed value, and whether and how long ago it was observed as channels."""
    output: Path | None = None
    """The folder to make for the model, metrics and pictures. None: a fresh runs/NAME-k."""
    quiet: bool = False
    """Print only the result."""
    resume: Path | None = None
    """The folder of a run that did not end: goes on from its last checkpoint, with its own data and settings."""
    checkpoint_period: float = 60.0
    """Seconds between two checkpoints, from which --resume goes on."""
    devices: int = 1
    """How many devices share the rows of each batch; it divides --batch-size."""
    distributed: int | None = None
    """How many processes a launcher starts (srun, mpirun, Kubernetes, a TPU pod), each with this command: all their
    devices share the rows of each batch. Needs --output or --resume, a folder that all see."""
    tensorboard: bool = False
    """Write the figures of each epoch as events into the run's folder too: `tensorboard --logdir runs`."""
    find_learning_rate: bool = False
    """Print the loss at learning rates from 1e-5 to 1 and a suggestion (Smith 2017), and end; nothing is saved."""
    config: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)

    def run(self, console: Console) -> int:
        settled = self if self.resume is None else self._resumed(self.resume)
        if self.find_learning_rate:
            show_rates(console, learning_rates(settled.config, settled._loaded().train))
            return 0
        if self.distributed is not None:
            return settled._run_together(console, self.distributed)
        return settled._run(console, None if self.devices == 1 else first_devices(self.devices))

    def _resumed(self, folder: Path) -> "Train":
        """This command with the settings of the run in a folder; `InputError` where it was given others."""
        settings = Settings.read(folder / SETTINGS)
        for name in ("data", "test", "missing", "output", "config"):
            given, default = getattr(self, name), getattr(Train(), name)
            remedy = "A run is resumed with its own data and settings."
            require(given == default, f"--{name}", "nothing beside --resume", given, remedy)
        test = None if settings.test is None else Path(settings.test)
        config = Options(**settings.training)
        return dataclasses.replace(self, data=settings.data, test=test, missing=settings.missing, config=config)

    def _run_together(self, console: Console, processes: int) -> int:
        """One of several processes: all train, the first writes and shows."""
        rule, folder = "--distributed needs --output or --resume", self.output or self.resume
        if folder is None:
            raise InputError("--output", "a folder that all processes see", None, rule=rule)
        require(self.devices == 1, "--devices", "nothing beside --distributed, which takes all", self.devices)
        mesh = joined(processes)
        try:
            return self._run_joined(console, mesh, folder)
        except BaseException as error:
            # at once: Python's own end would wait for the other processes, which wait for this one. They end as the
            # connection breaks, or as JAX misses the signs of life of this one
            if not isinstance(error, (InputError, OSError, KeyboardInterrupt)):
                traceback.print_exc()
            reason = (str(error) or type(error).__name__).rstrip(".")
            tell(f"process {jax.process_index()} of {processes}: {reason}. All processes end")
            with contextlib.suppress(OSError):
                console.file.flush()
            os._exit(stop.exit_code if isinstance(error, KeyboardInterrupt) else 2)

    def _run_joined(self, console: Console, mesh: Mesh, folder: Path) -> int:
        there = os.path.lexists(folder)
        multihost_utils.sync_global_devices("all have looked, before the first makes it")
        if jax.process_index() == 0:
            return self._run(console, mesh)
        require(self.resume is not None or not there, "--output", "a folder that does not exist yet", folder)
        saved = {"checkpoints": folder / CHECKPOINTS, "checkpoint_period": self.checkpoint_period}
        fitted = fit(self.config, self._loaded(), evaluate_test=False, mesh=mesh, **saved)
        return stop.exit_code if fitted.interrupted else 0

    def _loaded(self) -> Dataset:
        with told(DataWarning):
            return load(self.data, test=self.test, seed=self.config.seed, missing=self.missing)

    def _run(self, console: Console, mesh: Mesh | None) -> int:
        data = self._loaded()
        require_package("sklearn.metrics", "data")  # for the scores, after the training
        require_free(data.train.targets)
        config, why = chosen(self.config, data.train)
        training = dataclasses.asdict(config)
        about = {"data": data.name, "channels": data.train.channels, "training": training}
        about |= {"fill": None if data.train.fill is None else data.train.fill.tolist(), "gap": data.train.gap}
        with (
            new_folder(self.output, data.name) if self.resume is None else contextlib.nullcontext(self.resume) as folder
        ):
            test = None if self.test is None else str(self.test)
            settings = Settings(self.data, test, training, self.missing)
            if self.resume is not None:  # written the same again: a folder that takes no file is refused at once
                settings = Settings.read(folder / SETTINGS)
            settings.write(folder / SETTINGS)
            kept, metrics = Kept(folder / MODEL_FILE, about), Metrics(folder / "metrics.jsonl")
            try:
                fitted = self._train(console, config, why, data, kept, metrics, mesh)
            except BaseException:
                if kept.epoch is not None:
                    tell(f"the best model so far (epoch {kept.epoch}) is saved in {kept.path}")
                if can_go_on(folder):
                    tell(f"to go on: grujax train --resume {folder}")
                elif kept.epoch is None and self.resume is None:
                    clear(folder)
                raise
        if stop.number is not None or fitted.interrupted:
            tell(f"{stop.name}: the best model so far (epoch {kept.epoch}) is saved in {kept.path}")
            tell(f"to go on: grujax train --resume {folder}")
            return stop.exit_code
        try:
            code = self._show(console, data, kept, metrics, fitted)
        except KeyboardInterrupt:
            tell(f"{stop.name}: the model is saved in {kept.path}; grujax evaluate shows its figures")
            return stop.exit_code
        if getattr(console.file, "error", None) is not None:
            tell(f"standard output could not be written; the model is saved in {kept.path}")
        return code

    def _train(
        self,
        console: Console,
        config: TrainConfig,
        why: dict[str, str],
        data: Dataset,
        kept: Kept,
        metrics: Metrics,
        mesh: Mesh | None,
    ) -> Fitted:
        """A whole model is on disk from the first epoch on, and the best one when this returns or raises."""
        assert config.epochs is not None
        if not self.quiet:
            if self.resume is not None and finished(metrics.path):
                say(console, "already finished: nothing is left to train, the result is shown and written again")
            show_data(console, data)
            for reason in why.values():
                say(console, f"chosen: {reason}")
        with contextlib.ExitStack() as ending:
            screen = ending.enter_context(Screen(console, config.epochs, self.quiet))
            ending.enter_context(told(CheckpointWarning))
            events = None
            if self.tensorboard:
                events = ending.enter_context(contextlib.closing(Events(kept.path.parent / "events")))

            def on_epoch(epoch: Epoch) -> None:
                metrics.add(epoch._asdict())
                if events is not None:
                    events.add(epoch)
                kept.save_in_time()
                screen.on_epoch(epoch)
                stop.check()

            try:
                return fit(
                    config,
                    data,
                    on_compiled=screen.on_compiled,
                    on_best=kept.keep,
                    on_epoch=on_epoch,
                    evaluate_test=False,
                    checkpoints=kept.path.parent / CHECKPOINTS,
                    checkpoint_period=self.checkpoint_period,
                    mesh=mesh,
                )
            finally:
                kept.save()

    def _show(self, console: Console, data: Dataset, kept: Kept, metrics: Metrics, fitted: Fitted) -> int:
        assert data.test is not None  # `load` holds some rows out
        test = None
        with warned("the test split could not be evaluated"):
            test = fitted.scores(data.test)
            show_scores(console, "test", test)
            compiled = {"compile_seconds": sum(fitted.compiled.seconds), "padding": fitted.compiled.padding}
            metrics.add({"test": test.as_json(), **compiled})
        pictures = _draw(kept.path.parent, fitted, test)
        if not self.quiet:
            with warned("no table of baselines"):
                for head, of in ({} if test is None else test.each).items():
                    others = baselines(data.train.of_head(head), data.test.of_head(head))
                    show_beside(console, of, others, head)
                    show_confused(console, of, named(fitted.labels)[head], head)
            other = self.data if self.test is None else self.test
            say(console, f"saved {', '.join([str(kept.path), 'metrics.jsonl', *pictures])}\nnext:")
            say(console, f"  grujax evaluate {kept.path} {other}")
            say(console, f"  grujax predict {kept.path} {other} --output predictions.csv")
        return 0 if test is not None else 1


def _draw(folder: Path, fitted: Fitted, test: Scores | None) -> list[str]:
    """The names of the pictures that were drawn, or how to install what draws them."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["no pictures (pip install 'grujax[plot]')"]
    drawn = []
    with warned("no curves.png"):
        plot_curves(folder / "curves.png", fitted.history, fitted.best)
        drawn.append("curves.png")
    for head, of in ({} if test is None else test.each).items():
        if of.confusion is not None:
            picture = f"confusion-{head}.png" if head else "confusion.png"
            with warned(f"no {picture}"):
                plot_confusion(folder / picture, of.confusion, named(fitted.labels)[head])
                drawn.append(picture)
    return drawn
