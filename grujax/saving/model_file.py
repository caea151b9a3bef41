"""The model file: weights, statistics and configuration in one safetensors file, which cannot contain code.

Keys are Flax paths (`params/encoder/gru/l0/w_ih`, `statistics/input_mean`). The metadata key `grujax` holds JSON: the
format version, the model's class and fields, the caller's metadata, and the SHA-256 of all this and of the tensors.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from grujax.arrays import as_array
from grujax.core.config import input_size_of
from grujax.core.heads import output_of
from grujax.errors import InputError, require
from grujax.linen import MODELS, GRUCell, GRUEnsemble, GRUModel, Module, require_own
from grujax.saving.atomic import replacing
from grujax.saving.fields import as_json, from_json, number, short
from grujax.seq2seq import Seq2Seq

Savable: TypeAlias = Module | Seq2Seq
SAVABLE: dict[str, type[Savable]] = {**MODELS, "Seq2Seq": Seq2Seq}
"""The model classes that a file can store, by the name that it stores."""

FORMAT = 1
MODEL_FILE = "model.safetensors"
RESERVED = {"format", "model", "ensemble", "input_size", "sha256"}
"""Keys of the JSON that the caller's metadata must not have."""


class Saved(NamedTuple):
    """The contents of a model file, as `read` returns them.

    Attributes:
      model: a `GRU`, `GRUCell`, `GRUEncoder`, `GRUModel`, `GRUEnsemble` or `grujax.seq2seq.Seq2Seq`.
      variables: its variables, "params" and for a trained `GRUModel` "statistics"; JAX arrays in the saved dtypes.
      metadata: the metadata passed to `save`, and "versions" of grujax, jax and flax.
    """

    model: Savable | GRUEnsemble
    variables: dict[str, Any]
    metadata: dict[str, Any]


def save(
    path: str | Path, model: nn.Module | GRUEnsemble, variables: Mapping, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a model file, completely or not at all: under a temporary name, flushed, then renamed.

    Args:
      path: the file, usually `model.safetensors`. An existing file is replaced once the new one is complete.
      model: a `GRU`, `GRUCell`, `GRUEncoder`, `GRUModel`, `GRUEnsemble` or `grujax.seq2seq.Seq2Seq`.
      variables: its variables, "params" and for a trained `GRUModel` "statistics".
      metadata: a dict of values that JSON can store; `read` returns it.

    Raises:
      InputError: the model has another class, or a field that is a function; the variables are not arrays, do not fit
        the model or are not finite; the metadata uses a reserved key.
      OSError: the file cannot be written.

    >>> import jax, jax.numpy as jnp, tempfile, grujax
    >>> model = grujax.GRUModel(hidden_size=20, output_size=5)
    >>> variables = model.init(jax.random.key(0), jnp.ones((3, 7, 10)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     grujax.save(f"{folder}/model.safetensors", model, variables)
    ...     model == grujax.load(f"{folder}/model.safetensors")[0]
    True
    """
    import safetensors.numpy

    several = type(model) is GRUEnsemble
    member = require_own(model.model if several else model, SAVABLE)
    taken = sorted(RESERVED & set(metadata or {}))
    require(not taken, "metadata", f"other keys than {sorted(RESERVED)}", taken)
    tensors = _tensors(variables)
    n_inputs = _check_each(model, member, tensors)
    fields = json.loads(json.dumps(as_json(member), default=number))
    from_json(type(member), fields)  # raises for fields that could not be loaded again
    header = {
        **(metadata or {}),
        "format": FORMAT,
        "model": {"class": type(member).__name__, **fields},
        **({"ensemble": {"members": model.members, "classes": model.classes}} if several else {}),
        "input_size": n_inputs,
        "versions": {name: version(name) for name in ("grujax", "jax", "flax")},
    }
    header = json.loads(json.dumps(header, default=number))  # in the form in which it will be read, for the hash
    header = {**header, "sha256": _sha256(header, tensors)}
    # Sorted, so that the same model gives the same bytes. Deeper levels, such as heads, keep their order.
    text = json.dumps(dict(sorted(header.items())) | {"model": dict(sorted(header["model"].items()))})
    content = safetensors.numpy.save(tensors, {"grujax": text})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | Path) -> tuple[Savable | GRUEnsemble, dict[str, Any]]:
    """Reads a model file that `save` wrote, and returns (model, variables) for `model.apply(variables, x)`.

    Args:
      path: the file.

    Returns:
      A `GRU`, `GRUCell`, `GRUEncoder`, `GRUModel`, `GRUEnsemble` or `grujax.seq2seq.Seq2Seq`, and its variables as JAX
      arrays in the saved dtypes.

    Raises:
      InputError: the file is missing, truncated or damaged (a single changed bit is detected), was not written by
        `save`, or has a newer format; or its tensors do not fit the model or are not finite. Everything is checked
        before it is used.

    >>> import jax, jax.numpy as jnp, tempfile, grujax
    >>> model, x = grujax.GRU(20), jnp.ones((3, 7, 10))
    >>> variables = model.init(jax.random.key(0), x)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     grujax.save(f"{folder}/model.safetensors", model, variables)
    ...     loaded, values = grujax.load(f"{folder}/model.safetensors")
    >>> bool((loaded.apply(values, x)[0] == model.apply(variables, x)[0]).all())
    True
    """
    saved = read(path)
    return saved.model, saved.variables


def find_model_file(path: Path) -> Path:
    """Returns the path of the model file: `path` itself, or the model in it if it is a folder of `grujax train`."""
    return path / MODEL_FILE if path.is_dir() else path


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file for reading. Any error in it is raised as an `InputError`."""
    import safetensors

    try:
        found = f"a folder at {path}" if path.is_dir() else f"no file at {path}"
        require(path.is_file(), "model", "a model.safetensors file", found, "Train a model with grujax train.")
        with safetensors.safe_open(str(path), framework="np") as file:
            yield file
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise InputError("model", "a whole safetensors file", f"{path}: {error}") from error


def read(path: str | Path) -> Saved:
    """Reads a model file like `load`, and also returns the metadata that was passed to `save`.

    Raises:
      InputError: for the same reasons as `load`.

    >>> import jax, jax.numpy as jnp, tempfile, grujax
    >>> model = grujax.GRU(20)
    >>> variables = model.init(jax.random.key(0), jnp.ones((3, 7, 10)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model.safetensors", model, variables, {"data": "digits"})
    ...     read(f"{folder}/model.safetensors").metadata["data"]
    'digits'
    """
    path = Path(path)
    with opened(path) as file:
        metadata = file.metadata() or {}
        remedy = "Read files of other frameworks with grujax.interop.load."
        found = f"{path} without the metadata key 'grujax'"
        require("grujax" in metadata, "model", "a file that grujax saved", found, remedy)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    try:
        model, header = _checked(metadata["grujax"], tensors)
    except InputError as error:
        found = f"{error.found} in {path}"
        raise InputError(error.argument, error.expected, found, error.remedy, error.rule) from error
    except Exception as error:  # an untrusted header can cause any exception in JSON, JAX or the model
        raise InputError("model", "grujax's metadata", f"{path}: {type(error).__name__} {error}") from error
    return Saved(model, unflatten_dict({key: jnp.asarray(a) for key, a in tensors.items()}, sep="/"), header)


def _checked(text: str, tensors: Mapping[str, np.ndarray]) -> tuple[Savable | GRUEnsemble, dict[str, Any]]:
    """Returns the model that a file's metadata describes and the caller's metadata, checked against the tensors."""
    header = json.loads(text, object_pairs_hook=_distinct)
    stored = header["format"]
    require(type(stored) is int and stored >= 1, "model", f"format {FORMAT}", f"format {short(stored)}")
    newer = f"a file written by a newer grujax (format {short(stored)})"
    require(stored <= FORMAT, "model", f"format {FORMAT}", newer, "Update grujax.")
    fields, n_inputs = header["model"], header["input_size"]
    for key, value in fields.items():  # each entry stands for at least one tensor
        entries = len(value) if isinstance(value, (list, dict)) else 0
        require(entries <= len(tensors), key, f"{len(tensors)} entries or fewer, since each needs a tensor", entries)
    if "sha256" in header:  # early files have none
        written = header.pop("sha256")
        require(written == _sha256(header, tensors), "model", "the file as it was saved", "changed or damaged content")
    name = fields.pop("class")
    require(name in SAVABLE, "model", f"a class of {sorted(SAVABLE)}", short(name))
    member: Any = SAVABLE[name](**from_json(SAVABLE[name], fields))
    model: Any = GRUEnsemble(member, **header["ensemble"]) if "ensemble" in header else member
    expected = _check_each(model, member, tensors)
    require(n_inputs == expected, "input_size", f"{expected}, which follows from the tensors", short(n_inputs))
    return model, {key: value for key, value in header.items() if key not in RESERVED}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object as a dict; `InputError` if a key occurs twice."""
    require(len(dict(pairs)) == len(pairs), "model", "metadata with distinct keys", "a key that occurs twice")
    return dict(pairs)


def _sha256(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the metadata, as JSON reads it, and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key, a in sorted(tensors.items()):
        digest.update(json.dumps([key, a.dtype.name, a.shape]).encode())
        digest.update(a.tobytes())
    return digest.hexdigest()


def declared(model: nn.Module, input_size: int) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Returns shape and dtype, by path, of every variable that the model declares for inputs of that size."""
    module = require_own(model)
    sizes = (module.hidden_size, input_size) if isinstance(module, GRUCell) else (input_size,)
    inputs = (jax.ShapeDtypeStruct((1, 1, size), module.param_dtype) for size in sizes)
    flat: dict[tuple[str, ...], Any] = flatten_dict(_initial.eval_shape(module, *inputs))
    return flat


@partial(jax.jit, static_argnums=0)  # which remembers the models that it has traced
def _initial(module: nn.Module, *inputs: Any) -> Any:
    return module.init(jax.random.key(0), *inputs)


def _check_each(model: nn.Module | GRUEnsemble, member: Savable, tensors: Mapping[str, np.ndarray]) -> int | None:
    """Checks that the tensors are finite and exactly those that the model declares, in shape and dtype.

    `member` is the model of an ensemble's members, otherwise the model itself. Returns the number of inputs.
    """
    first, members = dict(tensors), ()
    if isinstance(model, GRUEnsemble):
        members = (model.members,)
        for key in (key for key in tensors if not key.startswith("statistics/")):
            found = f"shape {tensors[key].shape}"
            require(tensors[key].shape[:1] == members, key, f"a first axis of {short(model.members)} members", found)
            first[key] = tensors[key][0]
    declared_by_member, n_inputs = _expected(member, first)
    expected = {
        key: (shape if key.startswith("statistics/") else members + shape, dtype)
        for key, (shape, dtype) in declared_by_member.items()
    }
    for key in sorted(expected.keys() | tensors.keys()):
        require(key in tensors, key, "a tensor, because the model declares it", "none")
        require(key in expected, key, "only the model's tensors", "an extra one")
        a = tensors[key]
        wide = a.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64
        require(not wide, key, "float32 or narrower", "float64", 'Set jax.config.update("jax_enable_x64", True).')
        found = (a.shape, a.dtype)
        require(found == expected[key], key, _shown(expected[key]), _shown(found))
        require(bool(np.isfinite(a).all()), key, "finite numbers", "NaN or Inf")
        std = key.startswith("statistics/") and key.endswith("_std")
        require(not std or bool((a > 0).all()), key, "positive numbers", a.min() if a.size else None)
    return n_inputs


def _expected(model: Savable, tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, tuple], int | None]:
    """Returns the shape and dtype of every expected tensor, and the input size, which is None for a model of tokens.

    Expected are the parameters that the model declares, and the statistics that are present. The fields are compared
    with the tensors before the model is traced, because a small file could declare a million layers.
    """
    model.check()
    if isinstance(model, Seq2Seq):
        _require_count(4 * model.num_layers, tensors)
        table: dict[tuple, Any] = flatten_dict({"params": model.parameter_table()})
        return {"/".join(path): (shape, jnp.dtype(model.param_dtype)) for path, (_, shape) in table.items()}, None
    first = next((key for key in sorted(tensors) if key.endswith(("l0/w_ih", "params/w_ih"))), None)
    if first is None or tensors[first].ndim != 2:
        raise InputError("model", "a tensor w_ih (I, 3H) of the first layer", "none")
    (rows, width), size = tensors[first].shape, model.hidden_size
    n_inputs = input_size_of(model, rows)
    require(width == 3 * size, first, f"shape (I, {short(3 * size)})", f"{width} columns")
    heads = sum(map(len, model.heads.values())) if isinstance(model, GRUModel) else 0
    _require_count(2 * getattr(model, "num_states", 1) + heads, tensors)
    expected = {"/".join(path): (a.shape, a.dtype) for path, a in declared(model, n_inputs).items()}
    if isinstance(model, GRUModel):
        sizes = {"input": n_inputs} | {output_of(name): layers[-1][1] for name, layers in model.heads.items()}
        for prefix, size in sizes.items():
            pair = {f"statistics/{prefix}_{s}": ((size,), jnp.dtype("float32")) for s in ("mean", "std")}
            expected |= pair if pair.keys() & tensors.keys() else {}
    return expected, n_inputs


def _require_count(least: int, tensors: Mapping[str, np.ndarray]) -> None:
    require(least <= len(tensors), "model", f"{short(least)} tensors or more", len(tensors))


def _tensors(variables: Mapping) -> dict[str, np.ndarray]:
    """Returns the arrays by path, sorted."""
    remedy = "Use the result of model.init(...)."
    require(isinstance(variables, Mapping), "variables", "a dict of arrays", f"a {type(variables).__name__}", remedy)
    flat: dict[tuple, Any] = flatten_dict(dict(variables))
    for path in flat:
        require(all(isinstance(key, str) for key in path), "variables", "a dict whose keys are names", path)
    # Contiguous, because safetensors would write the memory behind a view, not the view itself.
    named = {"/".join(path): a for path, a in flat.items()}
    return {key: np.ascontiguousarray(as_array(named[key], key)) for key in sorted(named)}


def _shown(tensor: tuple) -> str:
    return f"{tensor[1]} {tensor[0]}"
