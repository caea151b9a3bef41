"""One model file: weights, input statistics, configuration. Safetensors, so nothing in it can run.

Keys are Flax paths (`params/encoder/gru/l0/w_ih`, `statistics/input_mean`); one metadata key, `grujax`, holds a JSON
with the format version, the model's class and fields, and what the caller adds. The same model gives the same bytes.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from grujax.errors import InputError, require
from grujax.linen import MODELS, GRUCell, GRUModel
from grujax.saving.atomic import replacing

FORMAT = 1
MODEL_FILE = "model.safetensors"


class Saved(NamedTuple):
    """What a model file holds. `metadata` is what `save` was given, and `versions`."""

    model: nn.Module
    variables: dict[str, Any]
    metadata: dict[str, Any]


def save(path: str | Path, model: nn.Module, variables: Mapping, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes `model.safetensors`: whole or not at all (a temporary name, flushed, then renamed).

    Args:
      path: where to; an earlier file there is replaced once the new one is complete.
      model: a `GRU`, `GRUCell`, `GRUEncoder` or `GRUModel`.
      variables: its variables, "params" and, of a trained `GRUModel`, "statistics".
      metadata: anything that JSON can hold, read again by `read`.

    Raises:
      InputError: a model of another class, variables that do not fit it. OSError: the file cannot be written.

    >>> import jax, jax.numpy as jnp, tempfile, grujax
    >>> model = grujax.GRUModel(hidden_size=20, output_size=5)
    >>> variables = model.init(jax.random.key(0), jnp.ones((3, 7, 10)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     grujax.save(f"{folder}/model.safetensors", model, variables)
    ...     model == grujax.load(f"{folder}/model.safetensors")[0]
    True
    """
    import safetensors.numpy

    found = type(model).__name__
    require(type(model) in MODELS.values(), "model", f"one of {sorted(MODELS)}", found)
    # Contiguous: safetensors writes the memory behind a view, not the view.
    tensors = {key: np.ascontiguousarray(a) for key, a in sorted(flatten_dict(dict(variables), sep="/").items())}
    _check_tensors(model, tensors, "variables")
    header = {
        **(metadata or {}),
        "format": FORMAT,
        "model": {"class": found, **_fields(model)},
        "input_size": _input_size(tensors, "variables"),
        "versions": {name: version(name) for name in ("grujax", "jax", "flax")},
    }
    content = safetensors.numpy.save(tensors, {"grujax": json.dumps(header, sort_keys=True, default=_number)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """(model, variables) from a file that `save` wrote, ready for `model.apply(variables, x)`.

    Raises `InputError` for a file that is not there, truncated, foreign, or whose tensors are not the model's.
    """
    saved = read(path)
    return saved.model, saved.variables


def find_model_file(path: Path) -> Path:
    """The file itself; of a folder that `grujax train` made, the model in it."""
    return path / MODEL_FILE if path.is_dir() else path


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file open for reading; whatever is wrong with it is an `InputError`."""
    import safetensors

    require(path.is_file(), "model", "a model.safetensors file", f"no file at {path}", "grujax train writes one.")
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            yield file
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, MemoryError) as error:
        raise InputError("model", "a whole safetensors file", f"{path}: {error}") from error


def read(path: str | Path) -> Saved:
    """As `load`, with the metadata."""
    path = Path(path)
    with opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    remedy = "grujax.interop.load reads files of other frameworks."
    found = f"{path} without the metadata key 'grujax'"
    require("grujax" in metadata, "model", "a file that grujax saved", found, remedy)
    try:
        header = json.loads(metadata["grujax"])
        require(header.pop("format") == FORMAT, "model", f"format {FORMAT}", f"another in {path}", "Update grujax.")
        fields = header.pop("model")
        model = MODELS[fields.pop("class")](**_from_json(fields))
        header.pop("input_size")
        _check_tensors(model, tensors, str(path))
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(error.argument, error.expected, f"{error.found} in {path}", error.remedy) from error
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        found = f"{path}: {type(error).__name__} {str(error).splitlines()[:1]}"
        raise InputError("model", "grujax's metadata", found) from error
    return Saved(model, unflatten_dict({key: jnp.asarray(a) for key, a in tensors.items()}, sep="/"), header)


def _fields(model: nn.Module) -> dict[str, Any]:
    """The model's fields as JSON; a dtype by its name, a precision by its own."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("parent", "name")}
    for key in ("dtype", "param_dtype"):
        fields[key] = None if fields[key] is None else jnp.dtype(fields[key]).name
    if isinstance(fields["precision"], jax.lax.Precision):
        fields["precision"] = fields["precision"].name.lower()
    for key, value in fields.items():
        require(not callable(value), key, "a name, which a file can hold", f"the function {value!r}", "Save by hand.")
    if isinstance(fields.get("output_size"), Mapping):
        fields["output_size"] = dict(fields["output_size"])
    return fields


def _number(value: Any) -> int | float:
    """A number of NumPy as JSON's own."""
    require(isinstance(value, np.generic), "model", "fields that JSON can hold", repr(value), "Save by hand.")
    return value.item()


def _from_json(fields: dict[str, Any]) -> dict[str, Any]:
    dtypes = {key: getattr(jnp, fields[key]) for key in ("dtype", "param_dtype") if fields.get(key) is not None}
    tuples = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return {**fields, **dtypes, **tuples}


def _input_size(tensors: Mapping[str, np.ndarray], source: str) -> int:
    key = next((k for k in tensors if k.endswith(("l0/w_ih", "params/w_ih"))), None)
    if key is None or tensors[key].ndim != 2:
        raise InputError("model", "a tensor w_ih (I, 3H) of the first layer", f"none in {source}")
    return tensors[key].shape[0]


def declared(model: nn.Module, input_size: int) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shape and dtype of every variable that the model declares for inputs of that size, by path."""
    x = jax.ShapeDtypeStruct((1, 1, input_size), model.param_dtype)  # pyright: ignore[reportAttributeAccessIssue]
    given = (x,)
    if isinstance(model, GRUCell):
        given = (jax.ShapeDtypeStruct((1, 1, model.hidden_size), model.param_dtype), x)
    flat: dict[tuple[str, ...], Any] = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), *given))
    return flat


def _check_tensors(model: nn.Module, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Every tensor that the model declares, in shape and dtype, and no other but its statistics."""
    n_inputs = _input_size(tensors, source)
    flat = {"/".join(path): a for path, a in declared(model, n_inputs).items()}
    expected = {key: (a.shape, a.dtype) for key, a in flat.items()}
    if isinstance(model, GRUModel):
        sizes = {"input": n_inputs} | ({} if isinstance(model.output_size, Mapping) else {"output": model.output_size})
        for which, size in sizes.items():
            if any(key.startswith(f"statistics/{which}_") for key in tensors):
                expected |= {f"statistics/{which}_{s}": ((size,), jnp.dtype("float32")) for s in ("mean", "std")}
    for key in sorted(expected.keys() | tensors.keys()):
        require(key in tensors, key, "a tensor in the file", f"none in {source}")
        require(key in expected, key, "only the model's tensors", f"an extra one in {source}")
        found = (tensors[key].shape, tensors[key].dtype)
        wide = found[1] == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64
        require(not wide, key, "float32 or narrower", "float64", 'Set jax.config.update("jax_enable_x64", True).')
        require(found == expected[key], key, _shown(expected[key]), f"{_shown(found)} in {source}")


def _shown(tensor: tuple) -> str:
    return f"{tensor[1]} {tensor[0]}"
