"""Train, evaluate, predict."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from grujax.data import Sequences, load, load_sequences
from grujax.errors import require
from grujax.saving import MODEL_FILE, Saved, find_model_file, read, replacing, save
from grujax.training import Fitted, Scores, TrainConfig, baselines, fit, outputs_of, score
from grujax.training.plots import plot_confusion, plot_curves
from grujax.training.progress import Screen


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
    saved = read(find_model_file(path))
    complete = {"labels", "channels"} <= saved.metadata.keys() and "statistics" in saved.variables
    require(complete, "model", "a model that grujax train saved", f"{path} without labels and statistics")
    return saved


def _model(saved: Saved) -> Any:
    return saved.model


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
            )
