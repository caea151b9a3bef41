"""Model files of every format: which adapter a file is for, reading, writing, converting, each proving itself."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from grujax import saving
from grujax.errors import InputError, MissingPackage, require
from grujax.interop import flax, keras, onnx, safetensors, stablehlo, torch
from grujax.interop.adapters import Adapter, Difference, Runner, compare, outputs, require_agreement
from grujax.interop.model_parts import ConversionWarning
from grujax.interop.statistics import fold_statistics
from grujax.saving.atomic import replacing
from grujax.saving.model_file import opened

LARGEST = 4 << 30
"""Bytes of a file that is still read."""


def _store_own(path: Path, own: tuple[nn.Module, Mapping]) -> None:
    saving.save(path, *own)


def _run_own(own: tuple[nn.Module, Mapping], model: nn.Module) -> Runner:
    return Runner(lambda x, h0, lengths: outputs(*own, x, h0, lengths), takes_lengths=True)


OWN = Adapter(
    "grujax", (".safetensors",), saving.load, lambda own: own, lambda *own: own, _store_own, _run_own, True
)  # before torch's dialect, whose ending is the same
FORMATS = {
    adapter.name: adapter
    for adapter in (
        OWN,
        torch.ADAPTER,
        safetensors.ADAPTER,
        keras.ADAPTER,
        keras.WEIGHTS_ADAPTER,
        onnx.ADAPTER,
        flax.ADAPTER,
        stablehlo.ADAPTER,
    )
}


class Converted(NamedTuple):
    """What a conversion did.

    left_behind: what the target has no place for, and without which the outputs are the same. difference: the largest
    between both sides on random data, None where `missing`, the package that would run the target, is not installed.
    folded: that of the weights with the statistics folded in, where they were.
    """

    model: nn.Module
    source_format: str
    target_format: str
    left_behind: list[str]
    difference: float | None
    missing: str | None
    folded: float | None


def load(path: str | Path, format: str | None = None, *, verify: bool = False) -> tuple[nn.Module, dict]:
    """(model, variables) from a file of any format.

    Args:
      format: a name of `FORMATS`: "grujax", "torch", "safetensors" (torch's keys), "keras", "keras-weights", "onnx",
        "flax". None goes by the file's ending, and tells grujax's safetensors from torch's by their metadata.
      verify: run the other framework on the file too, and raise where the two differ.

    Raises:
      InputError: one line that names the file and what is wrong with it. Nothing in a file is run.

    >>> import grujax, jax, jax.numpy as jnp, tempfile
    >>> model = grujax.GRU(20)
    >>> variables = model.init(jax.random.key(0), jnp.ones((3, 7, 10)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/gru.pt", model, variables)
    ...     load(f"{folder}/gru.pt")[0] == model
    True
    """
    path = Path(path)
    adapter = _adapter(path, format, reading=True)
    require(path.is_file(), "path", "a file", f"none at {path}")
    size = path.stat().st_size
    require(0 < size <= LARGEST, "path", f"1 to {LARGEST} bytes", f"{size} in {path}")
    try:
        foreign = adapter.load(path)
        model, variables = adapter.ours(foreign)
        for key, a in flatten_dict(variables, sep="/").items():
            require(bool(np.isfinite(np.asarray(a).astype(np.float64)).all()), key, "finite weights", "NaN or Inf")
        if verify:
            require_agreement(model, variables, adapter.runner(foreign, model), "path")
    except InputError as error:
        if str(path) in str(error):
            raise
        found = f"{error.found} in {path}"
        raise InputError(error.argument, error.expected, found, error.remedy, error.rule) from error
    return model, variables


def save(
    path: str | Path, model: nn.Module, variables: Mapping, format: str | None = None, *, verify: bool = False
) -> Difference | None:
    """Writes a file of any format, whole or not at all; formats as in `load`, and "stablehlo".

    Args:
      verify: load the file again, run the framework that it is for, and raise where the two differ; then nothing is
        written. The difference is returned.

    Raises:
      InputError: the framework has no place for something that the outputs depend on. OSError: it cannot be written.
    """
    path = Path(path)
    adapter = _adapter(path, format, reading=False)
    theirs = adapter.theirs(model, variables)
    with replacing(path) as temporary:
        adapter.store(temporary, theirs)
        if not verify:
            return None
        return require_agreement(model, variables, adapter.runner(adapter.load(temporary), model), "path")


def convert(
    source: str | Path,
    target: str | Path,
    source_format: str | None = None,
    target_format: str | None = None,
    *,
    fold: bool = False,
) -> Converted:
    """Reads one file and writes another, which is loaded again and run beside grujax on random data.

    Args:
      source_format, target_format: as `format` of `load` and `save`.
      fold: put what standardises inputs and targets into the weights, where the target has no place for it
        (`fold_statistics`); else that is refused.

    Raises:
      InputError: as `load` and `save` do; the target is written whole or not at all.
    """
    reads, writes = _adapter(Path(source), source_format, True), _adapter(Path(target), target_format, False)
    model, variables = load(source, reads.name)
    folded = missing = difference = None
    if fold and "statistics" in variables and not writes.keeps_statistics:
        raw, variables = variables, fold_statistics(model, variables)
        folded = compare(model, raw, OWN.runner((model, variables), model)).largest
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConversionWarning)
        try:
            difference = save(target, model, variables, writes.name, verify=True)
        except MissingPackage as error:
            missing = error.argument  # what runs it; where that is also what writes it, the next line raises again
            save(target, model, variables, writes.name)
    left = [str(w.message) for w in caught if issubclass(w.category, ConversionWarning)]
    largest = None if difference is None else difference.largest
    return Converted(model, reads.name, writes.name, list(dict.fromkeys(left)), largest, missing, folded)


def _adapter(path: Path, name: str | None, reading: bool) -> Adapter:
    if name is not None:
        require(name in FORMATS, "format", f"one of {list(FORMATS)}", repr(name))
        return FORMATS[name]
    endings = {ending: adapter for adapter in reversed(FORMATS.values()) for ending in adapter.endings}
    ending = max((e for e in endings if path.name.endswith(e)), key=len, default=None)
    if ending is None:
        raise InputError("path", f"one of {sorted(endings)}", str(path), "Or name the format.")
    if reading and ending == ".safetensors" and path.is_file():
        with opened(path) as file:
            return OWN if "grujax" in (file.metadata() or {}) else safetensors.ADAPTER
    return endings[ending]
