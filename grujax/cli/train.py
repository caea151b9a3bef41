"""The command line: train, evaluate, predict, bench, doctor."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import shutil
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from grujax.bench import chart, costs
from grujax.bench.runner import PASSES, TABLE_WIDTH, Options, run, table
from grujax.data import Sequences, load, load_sequences
from grujax.errors import InputError, require
from grujax.kernels import explain
from grujax.saving import Saved, read, replacing, save
from grujax.training import Fitted, Scores, TrainConfig, baselines, fit, outputs_of, score
from grujax.training.plots import plot_confusion, plot_curves
from grujax.training.screen import Screen

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Train:
    """Train a GRU on a data set, evaluate it on the test split, save it."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[SOURCE]")] = "JapaneseVowels"
    """A data set that aeon carries, or a .ts or .npz file."""
    test: Path | None = None
    """The test file. None: the sibling _TEST file, else a stratified fifth."""
    output: Path | None = None
    """The folder to make for the model, metrics and pictures. None: a fresh runs/NAME-k."""
    quiet: bool = False
    """Print the result alone."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    def run(self, console: Console) -> int:
        data = load(self.data, test=self.test, seed=self.config.seed)
        with _output_folder(self.output, data.name) as folder:
            if not self.quiet:
                console.print(_about(data.name, data.train, data.test), soft_wrap=True, highlight=False)
            with (folder / "metrics.jsonl").open("w") as metrics, Screen(console, self.config.epochs, self.quiet) as s:

                def on_epoch(epoch) -> None:
                    print(json.dumps(epoch._asdict()), file=metrics, flush=True)
                    s.on_epoch(epoch)

                fitted = fit(self.config, data, on_compiled=s.on_compiled, on_epoch=on_epoch)
                if fitted.test is not None:
                    print(json.dumps({"test": _as_json(fitted.test)}), file=metrics)
            metadata = {
                "labels": fitted.labels,
                "data": data.name,
                "channels": data.train.channels,
                "training": dataclasses.asdict(self.config),
            }
            path = folder / MODEL_FILE
            save(path, fitted.model, fitted.variables, metadata)
            if fitted.test is None:
                console.print(
                    f"interrupted: the best model so far (epoch {fitted.best.epoch}) is saved in {path}", soft_wrap=True
                )
                return 130
            pictures = self._draw(folder, fitted)
            _print_scores(console, "test", fitted.test)
            if not self.quiet:
                _print_beside(console, fitted, baselines(data.train, data.test))
                _print_confused(console, fitted.test, fitted.labels)
                console.print(f"saved {path}, metrics.jsonl{pictures}", soft_wrap=True, highlight=False)
                console.print(
                    f"next:\n  grujax evaluate {path} {self.data}\n"
                    f"  grujax predict {path} {self.data} --output predictions.csv",
                    soft_wrap=True,
                    highlight=False,
                )
        return 0

    def _draw(self, folder: Path, fitted: Fitted) -> str:
        """The pictures' names for the end screen, or what is missing to draw them."""
        if importlib.util.find_spec("matplotlib") is None:
            return " (no pictures: pip install 'grujax[plot]')"
        plot_curves(folder / "curves.png", fitted.history, fitted.best)
        if fitted.test is None or fitted.test.confusion is None or fitted.labels is None:
            return ", curves.png"
        plot_confusion(folder / "confusion.png", fitted.test.confusion, fitted.labels)
        return ", curves.png, confusion.png"


@dataclass(frozen=True)
class Evaluate:
    """The figures of a trained model on labelled data."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A model.safetensors that `grujax train` wrote, or its folder."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A data set that aeon carries (its test split), or a .ts or .npz file."""

    def run(self, console: Console) -> int:
        saved = _trained(self.model)
        labels = saved.metadata["labels"]
        data = load_sequences(self.data, labels=labels, channels=saved.metadata["channels"])
        scores = score(outputs_of(_model(saved), saved.variables, data), data, saved.variables)
        _print_scores(console, "test", scores)
        _print_confused(console, scores, labels)
        return 0


@dataclass(frozen=True)
class Predict:
    """A trained model's answer for each sequence, as CSV: row and label with its probability, or row and value."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A model.safetensors that `grujax train` wrote, or its folder."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A data set that aeon carries (its test split), or a .ts or .npz file; labels in it are not read."""
    output: Path | None = None
    """The CSV file. None: standard output."""

    def run(self, console: Console) -> int:
        saved = _trained(self.model)
        labels = saved.metadata["labels"]
        data = load_sequences(self.data, channels=saved.metadata["channels"], need_labels=False)
        outputs = outputs_of(_model(saved), saved.variables, data)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        if labels is None:
            table.writerow(["row", "value"])
            table.writerows([row, f"{value:.7g}"] for row, (value,) in enumerate(outputs.tolist()))
        else:
            from scipy.special import softmax

            probabilities = softmax(outputs.astype(np.float64), axis=1)
            table.writerow(["row", "label", "probability"])
            table.writerows([row, labels[p.argmax()], f"{p.max():.6f}"] for row, p in enumerate(probabilities))
        if self.output is None:
            print(text.getvalue(), end="")
            return 0
        with replacing(self.output) as temporary:
            temporary.write_text(text.getvalue())
        console.print(f"saved {len(data)} predictions in {self.output}", soft_wrap=True, highlight=False)
        return 0


@dataclass(frozen=True)
class Bench(Options):
    """grujax beside other GRUs on this machine: checked equal, timed in turns; and what else a GRU costs.

    A library that is not installed is shown as such; the extra `bench` brings them all. The exit code is 1 where grujax
    itself was found unequal to the equations.
    """

    save: tyro.conf.Suppress[bool] = False  # of benchmarks/run.py, which knows its folder; here it is --json
    costs: bool = True
    """Also compile time, memory, compilations for ragged data, import time, time to the first prediction."""
    chart: Path | None = Path("grujax-bench.png")
    """The picture to draw (extra `plot`); an earlier one of that name is replaced. None: none."""
    json: Path | None = None
    """The file for the report; the costs go beside it, into NAME-costs.json. None: none."""

    def run(self, console: Console) -> int:
        self._check()
        report = run(self, console.print)
        console.width = max(console.width, TABLE_WIDTH)
        for kind in PASSES:
            console.print(table(report, kind))
        console.print(chart.measured_on(report), soft_wrap=True, highlight=False)
        if self.json is not None:
            _save_json(console, self.json, report)
        if self.chart is not None:
            chart.draw(report, self.chart)
            console.print(f"drawn {self.chart}", soft_wrap=True, highlight=False)
        if self.costs:
            found = costs.measure(console.print)
            for one in costs.tables(found):
                console.print(one)
            if self.json is not None:
                _save_json(console, self.json.with_name(f"{self.json.stem}-costs.json"), found)
        return int(report.failed)

    def _check(self) -> None:
        """What would fail after minutes of measuring fails now."""
        for argument, path in (("--chart", self.chart), ("--json", self.json)):
            there = path is None or (path.parent.is_dir() and not path.is_dir())
            require(there, argument, "a file in a folder that exists", path, "Make the folder first.")
        if self.chart is not None:
            chart.require_matplotlib()
            require(self.chart.suffix == ".png", "--chart", "a name that ends in .png", self.chart)
            remedy = "The chart shows times relative to it: add it, or --chart None."
            require("grujax" in self.peers, "--peers", "grujax among them", list(self.peers), remedy)


@dataclass(frozen=True)
class Doctor:
    """What this installation is: versions, devices, which kernel would run, caches."""

    def run(self, console: Console) -> int:
        import jax

        table = Table("what", "found", title="grujax doctor")
        for name in ("grujax", "jax", "jaxlib", "flax", "optax", "numpy", "safetensors"):
            table.add_row(name, version(name))
        for extra, module in (("data", "aeon"), ("data", "sklearn"), ("plot", "matplotlib"), ("torch", "torch")):
            found = importlib.util.find_spec(module) is not None
            table.add_row(module, "installed" if found else f"not installed: pip install 'grujax[{extra}]'")
        table.add_row("python", sys.version.split()[0])
        table.add_row("devices", ", ".join(f"{d.platform} {d.device_kind}" for d in jax.devices()))
        table.add_row("kernel", str(explain()))
        cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        table.add_row(
            "compilation cache", str(cache or "none: set JAX_COMPILATION_CACHE_DIR to keep compiled programs")
        )
        console.print(table)
        return 0


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    console = Console()
    try:
        command = tyro.cli(Command, args=arguments, prog="grujax", description=__doc__)  # pyright: ignore
        return command.run(console)
    except KeyboardInterrupt:
        message, code = "interrupted before there was a model to save or the last table to show", 130
    except InputError as error:
        message, code = str(error), 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        message, code = f"{place}{error.strerror or error}. Nothing half-written was left behind.", 2
    print(f"grujax: {message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _output_folder(output: Path | None, name: str):
    """A folder made for this run; removed again where the run ends in an error."""
    if output is None:
        runs = Path("runs")
        runs.mkdir(exist_ok=True)
        number = 1
        while (runs / f"{name}-{number}").exists():
            number += 1
        output = runs / f"{name}-{number}"
    require(not output.exists(), "--output", "a folder that does not exist yet", str(output), "Name another.")
    output.mkdir(parents=True)
    try:
        yield output
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise


def _trained(path: Path) -> Saved:
    saved = read(path / MODEL_FILE if path.is_dir() else path)
    complete = {"labels", "channels"} <= saved.metadata.keys() and "statistics" in saved.variables
    require(complete, "model", "a model that grujax train saved", f"{path} without labels and statistics")
    return saved


def _model(saved: Saved) -> Any:
    return saved.model


def _save_json(console: Console, path: Path, found: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n")
    console.print(f"saved {path}", soft_wrap=True, highlight=False)


def _about(name: str, train: Sequences, test: Sequences) -> str:
    every = np.concatenate([train.lengths, test.lengths])
    lengths = f"{every.min()} to {every.max()} steps"
    what = "regression" if train.labels is None else f"{len(train.labels)} classes"
    return f"{name}: {len(train)} training and {len(test)} test sequences, {train.channels} channels, {lengths}, {what}"


def _as_json(scores: Scores) -> dict[str, Any]:
    kept = {key: value for key, value in scores._asdict().items() if value is not None}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in kept.items()}


def _print_scores(console: Console, split: str, scores: Scores) -> None:
    if scores.accuracy is not None and scores.interval is not None:
        low, high = scores.interval
        line = f"{split} accuracy {100 * scores.accuracy:.2f}% (95% interval {100 * low:.1f}–{100 * high:.1f})"
    else:
        r2 = "" if scores.r2 is None else f" (R² {scores.r2:.4f})"
        line = f"{split} RMSE {scores.rmse:.5g}{r2}"
    console.print(line, highlight=False, style="bold")


def _print_beside(console: Console, fitted: Fitted, others: dict[str, float]) -> None:
    assert fitted.test is not None
    name, value = fitted.test.metric
    percent = name == "accuracy"
    table = Table("on the same split", f"{name} %" if percent else name)
    for row, figure in {"grujax": value, **others}.items():
        table.add_row(row, f"{100 * figure:.2f}" if percent else f"{figure:.5g}")
    console.print(table)


def _print_confused(console: Console, scores: Scores, labels: tuple[str, ...] | None) -> None:
    """The three most frequent confusions, if there are any."""
    if scores.confusion is None or labels is None:
        return
    wrong = scores.confusion * (1 - np.eye(len(labels), dtype=int))
    for index in np.argsort(-wrong, axis=None, kind="stable")[:3]:
        true, predicted = np.unravel_index(index, wrong.shape)
        if wrong[true, predicted]:
            total = scores.confusion[true].sum()
            console.print(
                f"confused: {labels[true]} taken for {labels[predicted]}, {wrong[true, predicted]} of {total}",
                highlight=False,
                markup=False,
            )


if __name__ == "__main__":
    sys.exit(main())
