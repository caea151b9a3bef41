"""Model files of every format: which framework a file is of, reading, writing, converting, each proving itself."""

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
"""Bytes of a file that is still read."""


def _own(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """One model; no other framework, and no program here, takes an ensemble."""
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
)  # before torch's dialect, whose ending is the same
ALL = (OWN, torch_files.TORCH, torch_files.SAFETENSORS, torch_files.NUMPY, keras.FRAMEWORK, keras_weights.WEIGHTS)
FORMATS = {of.name: of for of in (*ALL, onnx.FRAMEWORK, flax.FRAMEWORK, stablehlo.FRAMEWORK)}
"""The formats that `load`, `save` and `convert` know, by name."""


class Converted(NamedTuple):
    """What a conversion did.

    left_behind: what the target has no place for, though the outputs are the same. difference: the largest between both
    sides, None where `missing`, the package that would run the target, is not installed. folded: that of the weights
    with the statistics folded in. read_as: what was taken for granted of a source that does not tell it.
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
    """(model, variables) from a file of any format.

    Args:
      format: a name of `FORMATS`; None goes by the file's ending, and tells grujax's safetensors from torch's by their
        metadata.
      prefix: the name of the GRU that is taken out of a larger model, as `grujax.interop.find` lists them.
      pooling: what the head of a state dict reads, which its file does not tell; see `from_torch`. A `.weights.h5` file
        tells it where a pooling layer or a `TimeDistributed` is in it.
      verify: run the other framework on the file too, or on the weights of the one GRU, and raise where the two differ.

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
    framework = framework_of(path, format, reading=True)
    options: dict[str, Any] = {} if pooling is ... else {"pooling": pooling}
    told = f"{framework.name} files tell it: leave pooling out."
    require(not options or framework.assumes, "pooling", "none", repr(pooling), told)
    require_alone(prefix, pooling)
    try:
        if prefix is not None:
            from grujax.interop.find import take

            model, variables = take(path, prefix, format)
            if verify:
                require_agreement(model, variables, framework.run(framework.build(model, variables), model), "path")
        else:
            theirs = framework.load(path if framework is flax.ORBAX else readable(path))
            model, variables = framework._replace(argument="path").ours(theirs, verify, **options)
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
    """Writes a file of any format, whole or not at all; formats as in `load`, and "stablehlo".

    verify: load the file again, run the framework that it is for, and raise where the two differ; then nothing is
    written. The difference is returned.
    """
    return _written(path, framework_of(Path(path), format, reading=False), model, variables, verify)


def _written(
    path: str | Path, framework: Framework, model: nn.Module, variables: Mapping, verify: bool
) -> Difference | None:
    theirs = framework.build(model, variables)
    with replacing(Path(path)) as temporary:
        framework.write(temporary, theirs)
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
      fold: put what standardises inputs and targets into the weights, where the target has no place for it
        (`fold_statistics`); else that is refused.
      probabilities: of classes come out, `model.clone(output_activation="softmax")`.
      labels: names of classes that an ONNX graph keeps; see `to_onnx`.
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
            require(writes is onnx.FRAMEWORK, "labels", "none", list(labels), "Only ONNX has a place for them.")
            writes = writes._replace(build=partial(writes.build, labels=labels))
        if fold and "statistics" in variables and not writes.keeps_statistics:
            raw, variables = variables, fold_statistics(model, variables)
            folded = compare(model, raw, OWN.run((model, variables), model)).largest
        try:
            difference = _written(target, writes, model, variables, verify=True)
        except MissingPackage as error:
            missing = error.argument  # what runs it; where that is also what writes it, the next line raises again
            _written(target, writes, model, variables, verify=False)
    for one in caught:
        if not issubclass(one.category, ConversionWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    left = [str(w.message) for w in caught if issubclass(w.category, ConversionWarning)]
    guessed = reads.assumes and isinstance(model, GRUModel) and pooling is ... and model.pooling == "last"
    read_as = "Linear on the last state" if guessed else None
    largest = None if difference is None else difference.largest
    return Converted(model, reads.name, writes.name, list(dict.fromkeys(left)), largest, missing, folded, read_as)


def _with_softmax(model: Any, variables: Mapping) -> Any:
    """The model that gives probabilities of classes; `InputError` for one that has none."""
    require(isinstance(model, GRUModel), "probabilities", "False of a model without a head", True)
    rule, activation = "probabilities are a softmax of the outputs of a classifier", model.output_activation
    require(activation in (None, "softmax"), "output_activation", None, repr(activation), rule=rule)
    regression = "output_mean" in variables.get("statistics", {})
    require(not regression, "statistics", "none of the targets", "output_mean, of a regression", rule=rule)
    return model.clone(output_activation="softmax")


def framework_of(path: Path, name: str | None, reading: bool) -> Framework:
    """The framework of a file, by its ending or by name."""
    require_one_of(name, (*FORMATS, None), "format")
    if reading and path.is_dir() and name in (None, "flax"):
        return flax.ORBAX
    if name is not None:
        return FORMATS[name]
    frameworks = list(reversed(FORMATS.values()))
    endings = {ending: of for of in frameworks for ending in (*of.endings, *(of.reads if reading else ()))}
    ending = max((e for e in endings if path.name.endswith(e)), key=len, default=None)
    if ending is None:
        raise InputError("path", f"one of {sorted(endings)}", str(path), "Or name the format.")
    if reading and ending == ".safetensors" and path.is_file():
        with opened(path) as file:
            return OWN if "grujax" in (file.metadata() or {}) else torch_files.SAFETENSORS
    return endings[ending]


def readable(path: Path) -> Path:
    require(path.is_file(), "path", "a file", f"none at {path}")
    size = path.stat().st_size
    require(0 < size <= LARGEST, "path", f"1 to {LARGEST} bytes", f"{size} in {path}")
    return path
