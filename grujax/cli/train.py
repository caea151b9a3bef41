"""`grujax train`: trains a model, saves it, then shows the results. An error after the model is saved is a warning."""

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
from grujax.cli.run_folder import (
    CHECKPOINTS,
    SETTINGS,
    BestModel,
    Metrics,
    Settings,
    can_resume,
    clear,
    finished,
    new_folder,
)
from grujax.cli.show import say, show_beside, show_confusions, show_data, show_rates, show_scores
from grujax.cli.signals import stop
from grujax.cli.streams import error_as_warning, print_to_stderr, print_warnings
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
    """`TrainConfig` as options of the command line, without `quantiles`, which only forecasters support."""

    head_weights: tuple[tuple[str, float], ...] = ()
    """With several heads, the weight of each head's loss in their sum: --head-weights NAME 0.1. Default: 1 each."""
    quantiles: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()


@dataclass(frozen=True)
class Train:
    """Train a GRU on a data set, save it and evaluate it on the test split."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[SOURCE]")] = "JapaneseVowels"
    """The name of a data set included in aeon, or a .csv, .parquet, .npz or .ts file."""
    test: Path | None = None
    """The test file. None: the _TEST file beside SOURCE if there is one, else a stratified fifth of the rows."""
    missing: Literal["refuse", "mask"] = "refuse"
    """Missing values. mask: repeat the last observed value; channels say whether and how long ago it was observed."""
    output: Path | None = None
    """The folder to create for the model, metrics and plots. None: a new runs/NAME-k."""
    quiet: bool = False
    """Print only the result."""
    resume: Path | None = None
    """The folder of an unfinished run, which continues from its last checkpoint with its own data and settings."""
    checkpoint_period: float = 60.0
    """Seconds between two checkpoints, from which --resume continues."""
    devices: int = 1
    """Number of devices that share the rows of each batch. It must divide --batch-size."""
    distributed: int | None = None
    """Number of processes that a launcher (srun, mpirun, Kubernetes, a TPU pod) starts, each with this command.
    All their devices share the rows of each batch. Needs --output or --resume with a folder that all processes see."""
    tensorboard: bool = False
    """Also write the metrics of each epoch as TensorBoard events into the run's folder: `tensorboard --logdir runs`."""
    find_learning_rate: bool = False
    """Print the loss at learning rates from 1e-5 to 1 and a suggestion (Smith 2017), then exit. Nothing is saved."""
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
        """Returns this command with the settings of the run in `folder`; raises `InputError` if others were passed."""
        settings = Settings.read(folder / SETTINGS)
        values, defaults = ({**vars(train), **vars(train.config)} for train in (self, Train()))
        for name in ("data", "test", "missing", "output", *vars(self.config)):
            argument = "SOURCE" if name == "data" else f"--{name.replace('_', '-')}"
            remedy = "A run is resumed with its own data and settings."
            require(values[name] == defaults[name], argument, "nothing beside --resume", values[name], remedy)
        test = None if settings.test is None else Path(settings.test)
        config = Options(**settings.training)
        return dataclasses.replace(self, data=settings.data, test=test, missing=settings.missing, config=config)

    def _run_together(self, console: Console, processes: int) -> int:
        """Runs one of several processes. All of them train; the first one writes and shows the results."""
        rule, folder = "--distributed needs --output or --resume", self.output or self.resume
        if folder is None:
            raise InputError("--output", "a folder that all processes see", None, rule=rule)
        require(self.devices == 1, "--devices", "nothing beside --distributed, which uses all devices", self.devices)
        mesh = joined(processes)
        try:
            return self._run_joined(console, mesh, folder)
        except BaseException as error:
            # os._exit: Python's normal exit would wait for the other processes, which wait for this one. They end when
            # the connection breaks or when JAX misses the heartbeat of this process
            if not isinstance(error, (InputError, OSError, KeyboardInterrupt)):
                traceback.print_exc()
            reason = (str(error) or type(error).__name__).rstrip(".")
            print_to_stderr(f"process {jax.process_index()} of {processes}: {reason}. All processes end.")
            with contextlib.suppress(OSError):
                console.file.flush()
            os._exit(stop.exit_code if isinstance(error, KeyboardInterrupt) else 2)

    def _run_joined(self, console: Console, mesh: Mesh, folder: Path) -> int:
        exists = os.path.lexists(folder)
        multihost_utils.sync_global_devices("every process checks the folder before the first creates it")
        if jax.process_index() == 0:
            return self._run(console, mesh)
        require(self.resume is not None or not exists, "--output", "a folder that does not exist yet", folder)
        saved = {"checkpoints": folder / CHECKPOINTS, "checkpoint_period": self.checkpoint_period}
        fitted = fit(self.config, self._loaded(), evaluate_test=False, mesh=mesh, **saved)
        return stop.exit_code if fitted.interrupted else 0

    def _loaded(self) -> Dataset:
        with print_warnings(DataWarning):
            return load(self.data, test=self.test, seed=self.config.seed, missing=self.missing)

    def _run(self, console: Console, mesh: Mesh | None) -> int:
        data = self._loaded()
        require_package("sklearn.metrics", "data")  # computes the scores after training
        require_free(data.train.targets)
        config, why = chosen(self.config, data.train)
        training = dataclasses.asdict(config)
        metadata = {"data": data.name, "channels": data.train.channels, "training": training}
        metadata |= {"fill": None if data.train.fill is None else data.train.fill.tolist(), "gap": data.train.gap}
        with (
            new_folder(self.output, data.name) if self.resume is None else contextlib.nullcontext(self.resume) as folder
        ):
            test = None if self.test is None else str(self.test)
            settings = Settings(self.data, test, training, self.missing)
            if self.resume is not None:  # rewritten unchanged, so that a read-only folder is refused at once
                settings = Settings.read(folder / SETTINGS)
            settings.write(folder / SETTINGS)
            best, metrics = BestModel(folder / MODEL_FILE, metadata), Metrics(folder / "metrics.jsonl")
            try:
                fitted = self._train(console, config, why, data, best, metrics, mesh)
            except BaseException:
                if best.epoch is not None:
                    print_to_stderr(f"the best model so far (epoch {best.epoch}) is saved in {best.path}")
                if can_resume(folder):
                    print_to_stderr(f"to resume: grujax train --resume {folder}")
                elif best.epoch is None and self.resume is None:
                    clear(folder)
                raise
        if stop.number is not None or fitted.interrupted:
            print_to_stderr(f"{stop.name}: the best model so far (epoch {best.epoch}) is saved in {best.path}")
            print_to_stderr(f"to resume: grujax train --resume {folder}")
            return stop.exit_code
        try:
            code = self._show(console, data, best, metrics, fitted)
        except KeyboardInterrupt:
            print_to_stderr(f"{stop.name}: the model is saved in {best.path}; grujax evaluate shows its scores")
            return stop.exit_code
        if getattr(console.file, "error", None) is not None:
            print_to_stderr(f"standard output could not be written; the model is saved in {best.path}")
        return code

    def _train(
        self,
        console: Console,
        config: TrainConfig,
        why: dict[str, str],
        data: Dataset,
        best: BestModel,
        metrics: Metrics,
        mesh: Mesh | None,
    ) -> Fitted:
        """Trains. A complete model is on disk after the first epoch, and the best one when this returns or raises."""
        assert config.epochs is not None
        if not self.quiet:
            if self.resume is not None and finished(metrics.path):
                say(console, "already finished: nothing is left to train; the result is shown and written again")
            show_data(console, data)
            for reason in why.values():
                say(console, f"chosen: {reason}")
        with contextlib.ExitStack() as ending:
            screen = ending.enter_context(Screen(console, config.epochs, self.quiet))
            ending.enter_context(print_warnings(CheckpointWarning))
            events = None
            if self.tensorboard:
                events = ending.enter_context(contextlib.closing(Events(best.path.parent / "events")))

            def on_epoch(epoch: Epoch) -> None:
                metrics.add(epoch._asdict())
                if events is not None:
                    events.add(epoch)
                best.save_if_due()
                screen.on_epoch(epoch)
                stop.check()

            try:
                return fit(
                    config,
                    data,
                    on_compiled=screen.on_compiled,
                    on_best=best.update,
                    on_epoch=on_epoch,
                    evaluate_test=False,
                    checkpoints=best.path.parent / CHECKPOINTS,
                    checkpoint_period=self.checkpoint_period,
                    mesh=mesh,
                )
            finally:
                best.save()

    def _show(self, console: Console, data: Dataset, best: BestModel, metrics: Metrics, fitted: Fitted) -> int:
        assert data.test is not None  # `load` always makes a test split
        test = None
        with error_as_warning("the test split could not be evaluated"):
            test = fitted.scores(data.test)
            show_scores(console, "test", test)
            compiled = {"compile_seconds": sum(fitted.compiled.seconds), "padding": fitted.compiled.padding}
            metrics.add({"test": test.as_json(), **compiled})
        pictures = _draw(best.path.parent, fitted, test)
        if not self.quiet:
            with error_as_warning("no table of baselines"):
                for head, scores in ({} if test is None else test.each).items():
                    others = baselines(data.train.of_head(head), data.test.of_head(head))
                    show_beside(console, scores, others, head)
                    show_confusions(console, scores, named(fitted.labels)[head], head)
            source = self.data if self.test is None else self.test
            say(console, f"saved {', '.join([str(best.path), 'metrics.jsonl', *pictures])}\nnext:")
            say(console, f"  grujax evaluate {best.path} {source}")
            say(console, f"  grujax predict {best.path} {source} --output predictions.csv")
        return 0 if test is not None else 1


def _draw(folder: Path, fitted: Fitted, test: Scores | None) -> list[str]:
    """Draws the plots. Returns their names, or how to install matplotlib if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["no plots (pip install 'grujax[plot]')"]
    drawn = []
    with error_as_warning("no curves.png"):
        plot_curves(folder / "curves.png", fitted.history, fitted.best)
        drawn.append("curves.png")
    for head, scores in ({} if test is None else test.each).items():
        if scores.confusion is not None:
            picture = f"confusion-{head}.png" if head else "confusion.png"
            with error_as_warning(f"no {picture}"):
                plot_confusion(folder / picture, scores.confusion, named(fitted.labels)[head])
                drawn.append(picture)
    return drawn
