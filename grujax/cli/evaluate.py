"""`grujax evaluate` and `grujax predict`: run a trained model on other data."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from grujax.cli.show import say, show_confusions, show_scores
from grujax.cli.streams import check_free, print_warnings
from grujax.data import DataWarning, load_sequences
from grujax.data.checks import shown
from grujax.data.targets import named
from grujax.errors import InputError, require
from grujax.linen import GRUEnsemble, GRUModel
from grujax.saving import Saved, read
from grujax.saving.atomic import replacing
from grujax.saving.model_file import find_model_file
from grujax.training import TrainConfig, outputs_of, score


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained model on labelled data."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A model.safetensors file written by `grujax train`, or its folder."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The name of a data set included in aeon (its test split), or a .csv, .parquet, .npz or .ts file."""

    def run(self, console: Console) -> int:
        model, saved = _trained(self.model)
        labels = saved.metadata["labels"]
        with print_warnings(DataWarning):
            data = load_sequences(self.data, labels=labels, **_as_in_training(saved))
        training = saved.metadata.get("training", {})
        options: dict[str, Any] = {"quantiles": tuple(training.get("quantiles", ()))}
        options["head_weights"] = TrainConfig(head_weights=training.get("head_weights", ())).head_weights
        scores = score(outputs_of(model, saved.variables, data), data, saved.variables, **options)
        show_scores(console, Path(self.data).name, scores)
        for head, head_scores in scores.each.items():
            show_confusions(console, head_scores, named(labels)[head], head)
        return 0


@dataclass(frozen=True)
class Predict:
    """Predict each sequence with a trained model and write a CSV: row, label and probability, or row and values.

    A model trained with a label or target per step gives one line per step, with the step's number. With several heads
    the columns have the names of the heads."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A model.safetensors file written by `grujax train`, or its folder."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The name of a data set included in aeon (its test split), or a .csv, .parquet, .npy, .npz or .ts file.
    Its labels are ignored."""
    output: Path | None = None
    """The CSV file, in UTF-8. None: standard output."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self, console: Console) -> int:
        if self.output is not None:
            check_free("--output", self.output, self.overwrite)
        model, saved = _trained(self.model)
        with print_warnings(DataWarning):
            data = load_sequences(self.data, need_labels=False, **_as_in_training(saved))
        text = _as_csv(outputs_of(model, saved.variables, data), data.lengths, saved.metadata["labels"])
        if self.output is None:
            console.file.write(text)
            return 0
        with replacing(self.output) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        say(console, f"saved {len(data)} predictions in {self.output}")
        return 0


def _as_in_training(saved: Saved) -> dict[str, Any]:
    about = saved.metadata
    return {"channels": about["channels"], "fill": about.get("fill"), "gap": about.get("gap")}


def _as_csv(outputs: Any, lengths: np.ndarray, labels: Any) -> str:
    text = io.StringIO(newline="")
    table = csv.writer(_Lines(text), lineterminator="\r\n")
    by_head, classes = named(outputs), named(labels)
    first = next(iter(by_head.values()))
    names, places = PLACES[:1], [[row] for row in range(len(first))]
    if first.ndim == 3:
        valid = np.arange(first.shape[1]) < lengths[:, None]
        names, places = PLACES, np.argwhere(valid).tolist()
        by_head = {name: a[valid] for name, a in by_head.items()}
    require_free(by_head)
    columns = [column for name, a in by_head.items() for column in _columns(name, a, classes[name])]
    table.writerow([*names, *(name for name, _ in columns)])
    table.writerows([*place, *row] for place, *row in zip(places, *(values for _, values in columns), strict=True))
    return text.getvalue()


def require_free(heads: Iterable[str]) -> None:
    """Raises `InputError` for a head that has the name of a column in `PLACES`."""
    taken, remedy = [head for head in heads if head in PLACES], "Rename it: y_NAME in the file."
    require(not taken, "y", f"no head named {' or '.join(PLACES)}: predictions have such columns", shown(taken), remedy)


def _columns(head: str, outputs: np.ndarray, labels: list[str] | None) -> list[tuple[str, list[str]]]:
    """Returns (name, values) of each column of a head. Head names contain no slash, so column names are unique."""
    if labels is None:
        names = [head or "value"]
        if outputs.shape[1] > 1:
            names = [f"{head}/{k}" if head else f"value {k}" for k in range(outputs.shape[1])]
        return [(name, [f"{v:.7g}" for v in values.tolist()]) for name, values in zip(names, outputs.T, strict=True)]
    from scipy.special import softmax

    probabilities = softmax(outputs.astype(np.float64), axis=1)
    predicted = [labels[k] for k in probabilities.argmax(1)]
    largest = [f"{p:.6f}" for p in probabilities.max(1)]
    return [(head or "label", predicted), (f"{head}/probability".strip("/"), largest)]


PLACES = "row", "step"
"""The columns that give the sequence and the step of a prediction."""


class _Lines:
    """Ends lines with a line feed. `csv` is set to "\\r\\n" because only then does it quote carriage returns."""

    def __init__(self, text: io.StringIO) -> None:
        self._text = text

    def write(self, line: str, /) -> int:
        return self._text.write(line.removesuffix("\r\n") + "\n")


def _trained(path: Path) -> tuple[GRUModel | GRUEnsemble, Saved]:
    saved = read(find_model_file(path))
    wrong = [key for key, fits in METADATA.items() if not fits(saved.metadata.get(key, ...))]
    wrong += [] if "statistics" in saved.variables else ["statistics"]
    model = saved.model.model if isinstance(saved.model, GRUEnsemble) else saved.model
    if isinstance(model, GRUModel) and not wrong:
        widths = {name: layers[-1][1] for name, layers in model.heads.items()}
        labels = named(saved.metadata["labels"])
        fits = labels.keys() == widths.keys()
        fits = fits and all(names is None or len(names) == widths[head] for head, names in labels.items())
        wrong += [] if fits else ["labels of its heads"]
    if not isinstance(saved.model, (GRUModel, GRUEnsemble)) or wrong:
        found = f"{type(saved.model).__name__} in {path}" + (f" without valid {' and '.join(wrong)}" if wrong else "")
        raise InputError("model", "a model that grujax train saved", found)
    return saved.model, saved


def _is_list(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(element, kind) for element in value)


METADATA: dict[str, Callable[[Any], bool]] = {
    "labels": lambda value: all(names is None or _is_list(str, names) for names in named(value).values()),
    "channels": lambda value: isinstance(value, int),
    "gap": lambda value: value in (..., None) or (type(value) in (int, float) and 0 < value < float("inf")),
    "training": lambda value: value is ... or (isinstance(value, dict) and _is_list(float, value.get("quantiles", []))),
}
"""Checks of a model's metadata, since a file may come from anywhere. A missing key is checked as `...`; `fill` is
checked later."""
