"""`grujax convert`, `find` and `export`: model files of other frameworks. Each written file is checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Column, Table

from grujax.cli.show import say
from grujax.cli.streams import check_free
from grujax.interop import Converted, convert, find
from grujax.interop.stablehlo import LOADER
from grujax.saving.model_file import find_model_file, read

EXPORTS = {
    "onnx": "model.onnx",
    "stablehlo": "model.stablehlo",
    "torch": "model.pt",
    "keras": "model.keras",
    "safetensors": "model-torch.safetensors",
}
"""The formats of `export`, each with the default file name, beside the model."""


@dataclass(frozen=True)
class Convert:
    """Convert a model file to another framework, exactly or not at all, then run both models and compare them."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """The file to read: .pt, .pth, .ckpt, .bin, .npz, .keras, .h5, .weights.h5, .onnx, .msgpack or .safetensors.
    Or the folder of a training run or of an Orbax checkpoint."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """The file to write. Its ending gives the format; .safetensors is grujax's own format unless --to safetensors."""
    source_format: Annotated[str | None, tyro.conf.arg(name="from", metavar="FORMAT")] = None
    """The format of SOURCE: grujax, torch, safetensors, numpy, keras, keras-weights, onnx, flax. None: by ending."""
    target_format: Annotated[str | None, tyro.conf.arg(name="to", metavar="FORMAT")] = None
    """The format of TARGET: one of the same, or stablehlo. None: by ending."""
    prefix: str | None = None
    """The name of a GRU to extract from a larger model. `grujax find SOURCE` lists the names."""
    pooling: Literal["last", "mean", "max", "none"] | None = None
    """The input of the head, if a state dict or .weights.h5 file does not say it. none: every step.
    None: the last state."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self, console: Console) -> int:
        check_free("TARGET", self.target, self.overwrite)
        source = model_file(self.source)
        pooling = {} if self.pooling is None else {"pooling": None if self.pooling == "none" else self.pooling}
        options: dict[str, Any] = {"prefix": self.prefix, **pooling}
        result = convert(source, self.target, self.source_format, self.target_format, **options)
        _report(console, result, source, self.target)
        return 0


@dataclass(frozen=True)
class Find:
    """List every GRU in a model file, with the name that `convert --prefix` takes."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The file or folder to read, as SOURCE of `convert`."""
    source_format: Annotated[str | None, tyro.conf.arg(name="from", metavar="FORMAT")] = None
    """The format of FILE, as --from of `convert`. None: by ending."""

    def run(self, console: Console) -> int:
        grus = find(model_file(self.source), self.source_format)
        # folded, never truncated, since `convert --prefix` needs the whole name
        name, where = (Column(header, overflow="fold") for header in ("name", "where"))
        table = Table(name, "inputs", "units", "layers", "directions", "reset", where)
        for gru in grus:
            numbers = (gru.input_size, gru.hidden_size, gru.num_layers, 1 + gru.bidirectional)
            table.add_row(gru.name or '""', *map(str, numbers), "after" if gru.reset_after else "before", gru.where)
        console.print(table if grus else f"no GRU in {self.source}", highlight=False)
        return 0


@dataclass(frozen=True)
class Export:
    """Write a trained model for other programs, then load it, run both and print the largest difference."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A model.safetensors file written by grujax, or the folder of a training run."""
    to: Literal["onnx", "stablehlo", "torch", "keras", "safetensors"]
    """onnx, stablehlo: a program that standardises its inputs.
    torch, keras, safetensors (torch's keys): weights with the standardisation folded in."""
    output: Path | None = None
    """The file to write. None, beside the model:
    model.onnx, model.stablehlo, model.pt, model.keras or model-torch.safetensors."""
    probabilities: bool = False
    """Output class probabilities instead of logits. For classifiers, with onnx or keras."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self, console: Console) -> int:
        source = find_model_file(self.model)
        target = source.with_name(EXPORTS[self.to]) if self.output is None else self.output
        check_free("--output", target, self.overwrite)
        labels = read(source).metadata.get("labels") if self.to == "onnx" else None
        options: dict[str, Any] = {"probabilities": self.probabilities, "labels": labels}
        result = convert(source, target, "grujax", self.to, fold=True, **options)
        _report(console, result, source, target)
        if self.to == "stablehlo":
            loader = LOADER.replace(EXPORTS[self.to], target.as_posix())
            say(console, f"to run it without grujax:\n{loader}")
        return 0


def model_file(source: Path) -> Path:
    """Returns the model in `source` if that is the folder of a training run, else `source` itself."""
    path = find_model_file(source)
    return path if path.exists() else source


def _report(console: Console, result: Converted, source: Path, target: Path) -> None:
    if result.read_as is not None:
        say(console, f"read as: {result.read_as}; use --pooling to change this")
    for sentence in result.left_behind:
        say(console, f"left behind: {sentence}")
    if result.folded is not None:
        say(console, f"standardisation folded into the weights (largest difference {result.folded:.3g})")
    say(console, f"saved {target} ({result.target_format}), from {source} ({result.source_format})")
    if result.difference is None:
        say(console, f"not compared: {result.missing} is not installed")
    else:
        say(
            console, f"loaded again and compared with grujax on random data: largest difference {result.difference:.3g}"
        )
