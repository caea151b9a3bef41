"""Conversion of a model's fields to JSON and back, with checks of every value in an untrusted file."""

import dataclasses
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from grujax.core.config import own_fields
from grujax.errors import require
from grujax.types import PARAMETRIC


def as_json(model: nn.Module) -> dict[str, Any]:
    """Returns the model's fields as JSON. Dtypes and precisions are stored by name.

    Raises:
      InputError: a field is a function.
    """
    fields = {f.name: getattr(model, f.name) for f in own_fields(type(model))}
    for key in ("dtype", "param_dtype"):
        fields[key] = None if fields[key] is None else jnp.dtype(fields[key]).name
    fields["precision"] = jax.tree.map(  # a single precision or a pair
        lambda p: p.name.lower() if isinstance(p, jax.lax.Precision) else p, fields["precision"]
    )
    for key, value in fields.items():
        if type(value) in PARAMETRIC.values():
            fields[key] = {type(value).__name__: dataclasses.asdict(value)}
            continue
        expected, remedy = "a name, since a file cannot store a function", "Save the variables yourself."
        require(not callable(value), key, expected, f"the function {value!r}", remedy)
    if isinstance(fields.get("output_size"), Mapping):
        fields["output_size"] = dict(fields["output_size"])
    return fields


def number(value: Any) -> int | float:
    """Converts a NumPy number for JSON; `InputError` for any other value."""
    require(
        isinstance(value, np.generic),
        "model",
        "fields that JSON can store",
        repr(value),
        "Save the variables yourself.",
    )
    return value.item()


def from_json(cls: type[nn.Module], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `cls` from JSON `fields`. Raises InputError for an unknown field or a wrong type."""
    hints = {f.name: f.type for f in own_fields(cls)}
    for key, value in fields.items():
        require(key in hints, key, f"a field of {cls.__name__}", "an unknown name")
        known = _is(value, hints[key]) or (key.endswith("activation") and _is_parametric(value))
        require(known, key, f"a value of {hints[key]}", short(value))
    return {key: _argument(key, value) for key, value in fields.items()}


def _argument(key: str, value: Any) -> Any:
    """Converts the JSON value of a field, which has been checked, to the argument of the constructor."""
    if key in ("dtype", "param_dtype") and value is not None:
        return getattr(jnp, jnp.dtype(value).name)
    if key.endswith("activation") and isinstance(value, dict):
        ((name, parameters),) = value.items()
        return PARAMETRIC[name](**parameters)
    return tuple(value) if isinstance(value, list) else value


def _is_parametric(value: Any) -> bool:
    """Whether a JSON value is an activation with parameters, {class: {field: number}}."""
    if type(value) is not dict or len(value) != 1 or not value.keys() <= PARAMETRIC.keys():
        return False
    (name, parameters), *_ = value.items()
    names = {f.name for f in dataclasses.fields(PARAMETRIC[name])}
    return type(parameters) is dict and parameters.keys() == names and all(_is(a, float) for a in parameters.values())


def _is(value: Any, hint: Any) -> bool:
    """Whether a JSON value is allowed in a field of the type `hint`; functions and dtypes are stored by name."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if isinstance(hint, typing.TypeVar):
        return any(_is(value, constraint) for constraint in hint.__constraints__)
    if kind in (types.UnionType, typing.Union):
        return any(_is(value, option) for option in inner)
    if kind is tuple:
        return type(value) is list and all(_is(each, inner[0]) for each in value)
    if kind is Mapping:
        return type(value) is dict and all(_is(each, inner[1]) for each in value.values())
    if kind is float:
        return type(value) in (int, float) and abs(value) <= float(np.finfo(np.float32).max)
    return kind in (int, bool, str, type(None)) and type(value) is kind


def short(value: Any) -> str:
    """Returns an abbreviated text of a value from an untrusted file, which may be long or deeply nested."""
    return reprlib.repr(value)
