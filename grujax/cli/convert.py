"""Model files of other frameworks: convert, export. Both check what they wrote."""

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
"""What `export` writes, and its name beside the model."""


@dataclass(frozen=True)
class Convert:
    """Convert a model file to another framework, exactly or not at all; both models are run and compared."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """A .pt, .pth, .ckpt, .bin, .npz, .keras, .h5, .weights.h5, .onnx, .msgpack or .safetensors file, or the folder of
    a training run or of orbax."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """The file to write; its ending names the format. .safetensors is grujax's own unless --to safetensors."""
    source_format: Annotated[str | None, tyro.conf.arg(name="from", metavar="FORMAT")] = None
    """The format of SOURCE: grujax, torch, safetensors, numpy, keras, keras-weights, onnx, flax. None: by ending"""
    target_format: Annotated[str | None, tyro.conf.arg(name="to", metavar="FORMAT")] = None
    """The format of TARGET: one of these, or stablehlo. None: by its ending."""
    prefix: str | None = None
    """The name of a GRU that is taken out of a larger model; `grujax find SOURCE` lists them."""
    pooling: Literal["last", "mean", "max", "none"] | None = None
    """What the head of a state dict or .weights.h5 file reads, where the file does not tell it; none: every step. None:
    the last state."""
    overwrite: bool = False
    """Replace a file that exists."""

    def run(self, console: Console) -> int:
        check_free("TARGET", self.target, self.overwrite)
        source = model_file(self.source)
        pooling = {} if self.pooling is None else {"pooling": None if self.pooling == "none" else self.pooling}
        options: dict[str, Any] = {"prefix": self.prefix, **pooling}
        found = convert(source, self.target, self.source_format, self.target_format, **options)
        _report(console, found, source, self.target)
        return 0


@dataclass(frozen=True)
class Find:
    """List every GRU in a model file, by the name that `convert --prefix` takes."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """As SOURCE of `convert`."""
    source_format: Annotated[str | None, tyro.conf.arg(name="from", metavar="FORMAT")] = None
    """Its format. None: by its ending."""

    def run(self, console: Console) -> int:
        grus = find(model_file(self.source), self.source_format)
        name, where = (Column(of, overflow="fold") for of in ("name", "where"))  # whole, as `convert --prefix` needs it
        table = Table(name, "inputs", "units", "layers", "directions", "reset", where)
        for gru in grus:
            numbers = (gru.input_size, gru.hidden_size, gru.num_layers, 1 + gru.bidirectional)
            table.add_row(gru.name or '""', *map(str, numbers), "after" if gru.reset_after else "before", gru.where)
        console.print(table if grus else f"no GRU in {self.source}", highlight=False)
        return 0


@dataclass(frozen=True)
class Export:
    """Write a trained model for other programs, load it again, run both and print the largest difference."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A model.safetensors that grujax wrote, or the folder of a training run."""
    to: Literal["onnx", "stablehlo", "torch", "keras", "safetensors"]
    """onnx, stablehlo: programs that standardise their inputs. torch, keras, safetensors (torch's keys): weights, into
    which the standardisation is folded."""
    output: Path | None = None
    """The file to write. None: model.onnx, model.stablehlo, model.pt, model.keras or model-torch.safetensors beside
    the model."""
    probabilities: bool = False
    """Of a classifier: probabilities of classes in the place of the values before softmax; onnx and keras."""
    overwrite: bool = False
    """Replace a file that exists."""

    def run(self, console: Console) -> int:
        source = find_model_file(self.model)
        target = source.with_name(EXPORTS[self.to]) if self.output is None else self.output
        check_free("--output", target, self.overwrite)
        labels = read(source).metadata.get("labels") if self.to == "onnx" else None
        options: dict[str, Any] = {"probabilities": self.probabilities, "labels": labels}
        found = convert(source, target, "grujax", self.to, fold=True, **options)
        _report(console, found, source, target)
        if self.to == "stablehlo":
            loader = LOADER.replace(EXPORTS[self.to], target.as_posix())
            say(console, f"run it, without grujax:\n{loader}")
        return 0


def model_file(source: Path) -> Path:
    """The model in the folder of a training run; any other file or folder itself."""
    found = find_model_file(source)
    return found if found.exists() else source


def _report(console: Console, found: Converted, source: Path, target: Path) -> None:
    if found.read_as is not None:
        say(console, f"read as: {found.read_as}; --pooling says otherwise")
    for sentence in found.left_behind:
        say(console, f"left behind: {sentence}")
    if found.folded is not None:
        say(console, f"folded into the weights: the standardisation (largest difference {found.folded:.3g})")
    say(console, f"saved {target} ({found.target_format}), from {source} ({found.source_format})")
    if found.difference is None:
        say(console, f"not compared, {found.missing} is not installed")
    else:
        say(console, f"loaded again and run beside grujax on random data: largest difference {found.difference:.3g}")
