"""Runs a trained model on other data: evaluate, predict."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from grujax.cli.show import say, show_confused, show_scores
from grujax.cli.streams import check_free, told
from grujax.data import DataWarning, load_sequences
from grujax.errors import InputError
from grujax.linen import GRUEnsemble, GRUModel
from grujax.saving import Saved, read
from grujax.saving.atomic import replacing
from grujax.saving.model_file import find_model_file
from grujax.training import outputs_of, score


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained model on labelled data."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A model.safetensors that `grujax train` wrote, or its folder."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The name of a data set that comes with aeon (its test split), or a .csv, .parquet, .npz or .ts file."""

    def run(self, console: Console) -> int:
        model, saved = _trained(self.model)
        labels = saved.metadata["labels"]
        with told(DataWarning):
            data = load_sequences(self.data, labels=labels, **_as_in_training(saved))
        quantiles = tuple(saved.metadata.get("training", {}).get("quantiles", ()))
        scores = score(outputs_of(model, saved.variables, data), data, saved.variables, quantiles=quantiles)
        show_scores(console, Path(self.data).name, scores)
        show_confused(console, scores, labels)
        return 0


@dataclass(frozen=True)
class Predict:
    """Predict each sequence with a trained model, as CSV: row, label and its probability, or row and values; where the
    model was trained on a label or target a step, a line a step."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A model.safetensors that `grujax train` wrote, or its folder."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The name of a data set that comes with aeon (its test split), or a .csv, .parquet, .npy, .npz or .ts file, whose
    labels are ignored."""
    output: Path | None = None
    """The CSV file, in UTF-8. None: standard output."""
    overwrite: bool = False
    """Replace a file that exists."""

    def run(self, console: Console) -> int:
        if self.output is not None:
            check_free("--output", self.output, self.overwrite)
        model, saved = _trained(self.model)
        with told(DataWarning):
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


def _as_csv(outputs: np.ndarray, lengths: np.ndarray, labels: list[str] | None) -> str:
    text = io.StringIO(newline="")
    table = csv.writer(_Lines(text), lineterminator="\r\n")
    names, places = ["row"], [[row] for row in range(len(outputs))]
    if outputs.ndim == 3:
        valid = np.arange(outputs.shape[1]) < lengths[:, None]
        names, places, outputs = ["row", "step"], np.argwhere(valid).tolist(), outputs[valid]
    if labels is None:
        count = outputs.shape[1]
        table.writerow([*names, *(["value"] if count == 1 else [f"value {k}" for k in range(count)])])
        lines = zip(places, outputs.tolist(), strict=True)
        table.writerows([*place, *(f"{value:.7g}" for value in values)] for place, values in lines)
    else:
        from scipy.special import softmax

        probabilities = softmax(outputs.astype(np.float64), axis=1)
        table.writerow([*names, "label", "probability"])
        lines = zip(places, probabilities, strict=True)
        table.writerows([*place, labels[p.argmax()], f"{p.max():.6f}"] for place, p in lines)
    return text.getvalue()


class _Lines:
    """Ends lines with a line feed. `csv` quotes carriage returns only where it ends lines with them."""

    def __init__(self, text: io.StringIO) -> None:
        self._text = text

    def write(self, line: str, /) -> int:
        return self._text.write(line.removesuffix("\r\n") + "\n")


def _trained(path: Path) -> tuple[GRUModel | GRUEnsemble, Saved]:
    saved = read(find_model_file(path))
    wrong = [key for key, fits in ABOUT.items() if not fits(saved.metadata.get(key, ...))]
    wrong += [] if "statistics" in saved.variables else ["statistics"]
    if not isinstance(saved.model, (GRUModel, GRUEnsemble)) or wrong:
        found = f"{type(saved.model).__name__} in {path}" + (f" without {' and '.join(wrong)}" if wrong else "")
        raise InputError("model", "a model that grujax train saved", found)
    return saved.model, saved


def _is_list(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(element, kind) for element in value)


ABOUT: dict[str, Callable[[Any], bool]] = {
    "labels": lambda value: value is None or _is_list(str, value),
    "channels": lambda value: isinstance(value, int),
    "gap": lambda value: value in (..., None) or (type(value) in (int, float) and 0 < value < float("inf")),
    "training": lambda value: value is ... or (isinstance(value, dict) and _is_list(float, value.get("quantiles", []))),
}
"""What the metadata of a model hold, ... where they lack it: a file may come from anywhere. `fill` is checked later."""
