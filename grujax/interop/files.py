"""Reads, writes, converts and verifies model files of every format."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from grujax import saving
from grujax.core.config import Pooling
from grujax.errors import InputError, MissingPackage, require, require_one_of
from grujax.interop import flax, keras, keras_weights, onnx, stablehlo, torch_files
from grujax.interop.framework import Framework
from grujax.interop.parts import ConversionWarning, require_alone
from grujax.interop.prove import Difference, Runner, compare, computed, require_agreement
from grujax.interop.statistics import fold_statistics
from grujax.linen import GRUModel, require_own
from grujax.saving.atomic import replacing
from grujax.saving.model_file import opened

LARGEST = 4 << 30
"""The most bytes of a file that is read."""


def _own(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads one model; an ensemble is refused, because no other framework and no grujax program takes one."""
    model, variables = saving.load(path)
    return require_own(model), variables


OWN = Framework(
    "grujax",
    lambda own: own,
    lambda *own: own,
    lambda own, model: Runner(lambda *given: computed(*own, *given), takes_lengths=True),
    load=_own,
    write=lambda path, own: saving.save(path, *own),
    endings=(".safetensors",),
    keeps_statistics=True,
)  # first, so that it wins over torch's safetensors, which have the same ending
ALL = (OWN, torch_files.TORCH, torch_files.SAFETENSORS, torch_files.NUMPY, keras.FRAMEWORK, keras_weights.WEIGHTS)
FORMATS = {framework.name: framework for framework in (*ALL, onnx.FRAMEWORK, flax.FRAMEWORK, stablehlo.FRAMEWORK)}
"""The formats that `load`, `save` and `convert` know, by name."""


class Converted(NamedTuple):
    """The result of a conversion.

    left_behind: sentences on what the target cannot store, and its outputs do not depend on.
    difference: the largest between the outputs of both sides; None if it could not be measured because `missing`, the
    package that runs the target, is not installed.
    folded: the largest difference of the outputs before and after the statistics were folded; None if they were not.
    read_as: an assumption that was made because the source does not contain the answer; None if there was none.
    """

    model: nn.Module
    source_format: str
    target_format: str
    left_behind: list[str]
    difference: float | None
    missing: str | None
    folded: float | None
    read_as: str | None = None


def load(
    path: str | Path,
    format: str | None = None,
    *,
    prefix: str | None = None,
    pooling: Pooling | EllipsisType = ...,
    verify: bool = False,
) -> tuple[nn.Module, dict]:
    """Reads (model, variables) from a file of any format. No code in the file is run.

    Args:
      format: a key of `FORMATS`. By default the file's ending decides; the metadata distinguish grujax's safetensors
        files from torch's.
      prefix: the name of the GRU to take out of a larger model; `grujax.interop.find` lists the names.
      pooling: what the head of a state dict reads, since the file does not contain it; see `from_torch`. A
        `.weights.h5` file contains it if it has a pooling layer or a `TimeDistributed`.
      verify: also run the file, or the weights of the one GRU, in its own framework, and raise if the outputs differ.

    Raises:
      InputError: the file cannot be read as a model; the message is one line that names the file and the reason.

    >>> import grujax, jax, jax.numpy as jnp, tempfile
    >>> model = grujax.GRU(20)
    >>> variables = model.init(jax.random.key(0), jnp.ones((3, 7, 10)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/gru.pt", model, variables)
    ...     load(f"{folder}/gru.pt")[0] == model
    True
    """
    path = Path(path)
    framework = framework_of(path, format, reading=True)
    options: dict[str, Any] = {} if pooling is ... else {"pooling": pooling}
    remedy = f"{framework.name} files contain it: leave pooling out."
    require(not options or framework.assumes, "pooling", "none", repr(pooling), remedy)
    require_alone(prefix, pooling)
    try:
        if prefix is not None:
            from grujax.interop.find import take

            model, variables = take(path, prefix, format)
            if verify:
                require_agreement(model, variables, framework.run(framework.build(model, variables), model), "path")
        else:
            source = framework.load(path if framework is flax.ORBAX else readable(path))
            model, variables = framework._replace(argument="path").imported(source, verify, **options)
        for key, a in flatten_dict(variables, sep="/").items():
            require(bool(np.isfinite(np.asarray(a).astype(np.float64)).all()), key, "finite weights", "NaN or Inf")
    except InputError as error:
        if str(path) in str(error):
            raise
        found = f"{error.found} in {path}"
        raise type(error)(error.argument, error.expected, found, error.remedy, error.rule) from error
    return model, variables


def save(
    path: str | Path, model: nn.Module, variables: Mapping, format: str | None = None, *, verify: bool = False
) -> Difference | None:
    """Writes a file of any format, whole or not at all. The formats are those of `load`, and "stablehlo".

    verify: before the file gets its name, load it again, run it in its own framework, and raise if the outputs differ.

    Returns:
      the largest difference of the outputs with `verify`, else None.
    """
    return _written(path, framework_of(Path(path), format, reading=False), model, variables, verify)


def _written(
    path: str | Path, framework: Framework, model: nn.Module, variables: Mapping, verify: bool
) -> Difference | None:
    target = framework.build(model, variables)
    with replacing(Path(path)) as temporary:
        framework.write(temporary, target)
        if not verify:
            return None
        return require_agreement(model, variables, framework.run(framework.load(temporary), model), "path")


def convert(
    source: str | Path,
    target: str | Path,
    source_format: str | None = None,
    target_format: str | None = None,
    *,
    prefix: str | None = None,
    pooling: Pooling | EllipsisType = ...,
    fold: bool = False,
    probabilities: bool = False,
    labels: Sequence[str] | None = None,
) -> Converted:
    """Reads one file and writes another, which is loaded again and run beside grujax on random data.

    Args:
      source_format, target_format, prefix, pooling: as in `load` and `save`.
      fold: if the target cannot store the statistics that standardise inputs and targets, fold them into the weights
        (`fold_statistics`) instead of refusing the model.
      probabilities: write a classifier that returns probabilities, `model.clone(output_activation="softmax")`.
      labels: names of the classes, which an ONNX file stores; see `to_onnx`.

    Raises:
      InputError: the source cannot be read, the target cannot store the model, or the outputs of both differ.
    """
    reads = framework_of(Path(source), source_format, True)
    writes = framework_of(Path(target), target_format, False)
    folded = missing = difference = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConversionWarning)
        model, variables = load(source, source_format, prefix=prefix, pooling=pooling)
        if probabilities:
            model = _with_softmax(model, variables)
        if labels is not None:
            require(writes is onnx.FRAMEWORK, "labels", "none", list(labels), "Only ONNX files store labels.")
            writes = writes._replace(build=partial(writes.build, labels=labels))
        if fold and "statistics" in variables and not writes.keeps_statistics:
            raw, variables = variables, fold_statistics(model, variables)
            folded = compare(model, raw, OWN.run((model, variables), model)).largest
        try:
            difference = _written(target, writes, model, variables, verify=True)
        except MissingPackage as error:
            missing = error.argument  # the package that runs it; if it also writes it, the next line raises again
            _written(target, writes, model, variables, verify=False)
    for warning in caught:
        if not issubclass(warning.category, ConversionWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    left = [str(w.message) for w in caught if issubclass(w.category, ConversionWarning)]
    guessed = reads.assumes and isinstance(model, GRUModel) and pooling is ... and model.pooling == "last"
    read_as = "Linear on the last state" if guessed else None
    largest = None if difference is None else difference.largest
    return Converted(model, reads.name, writes.name, list(dict.fromkeys(left)), largest, missing, folded, read_as)


def _with_softmax(model: Any, variables: Mapping) -> Any:
    """The model with a softmax behind its head; raises `InputError` unless it is a classifier."""
    require(isinstance(model, GRUModel), "probabilities", "False for a model without a head", True)
    rule, activation = "probabilities are a softmax of the outputs of a classifier", model.output_activation
    require(activation in (None, "softmax"), "output_activation", None, repr(activation), rule=rule)
    regression = "output_mean" in variables.get("statistics", {})
    require(not regression, "statistics", "none of the targets", "output_mean, as in a regression", rule=rule)
    return model.clone(output_activation="softmax")


def framework_of(path: Path, name: str | None, reading: bool) -> Framework:
    """The framework of a file, by the format's name or by the file's ending."""
    require_one_of(name, (*FORMATS, None), "format")
    if reading and path.is_dir() and name in (None, "flax"):
        return flax.ORBAX
    if name is not None:
        return FORMATS[name]
    frameworks = list(reversed(FORMATS.values()))
    endings = {e: framework for framework in frameworks for e in framework.endings + framework.reads * reading}
    ending = max((e for e in endings if path.name.endswith(e)), key=len, default=None)
    if ending is None:
        raise InputError("path", f"one of {sorted(endings)}", str(path), "Or name the format.")
    if reading and ending == ".safetensors" and path.is_file():
        with opened(path) as file:
            return OWN if "grujax" in (file.metadata() or {}) else torch_files.SAFETENSORS
    return endings[ending]


def readable(path: Path) -> Path:
    """The path of an existing file of a size that is read; raises `InputError` for any other."""
    require(path.is_file(), "path", "a file", f"none at {path}")
    size = path.stat().st_size
    require(0 < size <= LARGEST, "path", f"1 to {LARGEST} bytes", f"{size} in {path}")
    return path
