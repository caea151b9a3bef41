"""The fields of a model as JSON and back; what JSON of a foreign file may stand in none is refused."""

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
    """The model's fields as JSON; a dtype by its name, a precision by its own."""
    fields = {f.name: getattr(model, f.name) for f in own_fields(type(model))}
    for key in ("dtype", "param_dtype"):
        fields[key] = None if fields[key] is None else jnp.dtype(fields[key]).name
    fields["precision"] = jax.tree.map(  # one, or a pair of them
        lambda p: p.name.lower() if isinstance(p, jax.lax.Precision) else p, fields["precision"]
    )
    for key, value in fields.items():
        if type(value) in PARAMETRIC.values():
            fields[key] = {type(value).__name__: dataclasses.asdict(value)}
            continue
        require(not callable(value), key, "a name, which a file can hold", f"the function {value!r}", "Save by hand.")
    if isinstance(fields.get("output_size"), Mapping):
        fields["output_size"] = dict(fields["output_size"])
    return fields


def number(value: Any) -> int | float:
    """A number of NumPy as JSON's own."""
    require(isinstance(value, np.generic), "model", "fields that JSON can hold", repr(value), "Save by hand.")
    return value.item()


def from_json(cls: type[nn.Module], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `cls` that JSON's `fields` stand for. Raises InputError for those that cannot be its own."""
    hints = {f.name: f.type for f in own_fields(cls)}
    for key, value in fields.items():
        require(key in hints, key, f"a field of {cls.__name__}", "an unknown name")
        known = _is(value, hints[key]) or (key.endswith("activation") and _is_parametric(value))
        require(known, key, f"a value of {hints[key]}", short(value))
    return {key: _argument(key, value) for key, value in fields.items()}


def _argument(key: str, value: Any) -> Any:
    """What a field that JSON may hold stands for."""
    if key in ("dtype", "param_dtype") and value is not None:
        return getattr(jnp, jnp.dtype(value).name)
    if key.endswith("activation") and isinstance(value, dict):
        ((name, of),) = value.items()
        return PARAMETRIC[name](**of)
    return tuple(value) if isinstance(value, list) else value


def _is_parametric(value: Any) -> bool:
    """Whether JSON's `value` is an activation with parameters, {class: {field: number}}."""
    if type(value) is not dict or len(value) != 1 or not value.keys() <= PARAMETRIC.keys():
        return False
    (name, of), *_ = value.items()
    names = {f.name for f in dataclasses.fields(PARAMETRIC[name])}
    return type(of) is dict and of.keys() == names and all(_is(number, float) for number in of.values())


def _is(value: Any, hint: Any) -> bool:
    """Whether JSON's `value` may stand in a field of the type `hint`; functions and dtypes are there by their names."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if isinstance(hint, typing.TypeVar):
        return any(_is(value, of) for of in hint.__constraints__)
    if kind in (types.UnionType, typing.Union):
        return any(_is(value, of) for of in inner)
    if kind is tuple:
        return type(value) is list and all(_is(each, inner[0]) for each in value)
    if kind is Mapping:
        return type(value) is dict and all(_is(each, inner[1]) for each in value.values())
    if kind is float:
        return type(value) in (int, float) and abs(value) <= float(np.finfo(np.float32).max)
    return kind in (int, bool, str, type(None)) and type(value) is kind


def short(value: Any) -> str:
    """The start of a value of a foreign file, however long or deep it is."""
    return reprlib.repr(value)
