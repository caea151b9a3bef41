"""Conversion between the Flax NNX and the Flax Linen modules, bit for bit."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from grujax.core.config import input_size_of
from grujax.core.heads import statistics_of
from grujax.errors import require, require_equal, require_one_of
from grujax.linen import MODELS, Module, instead_of, require_own
from grujax.nnx.cell import GRUCell
from grujax.nnx.layer import GRU
from grujax.nnx.model import GRUEncoder, GRUModel, Statistic

MODULES = {cls.__name__: cls for cls in (GRU, GRUCell, GRUEncoder, GRUModel)}


def to_linen(module: GRU | GRUCell | GRUEncoder | GRUModel) -> tuple[Module, dict[str, Any]]:
    """Converts a module to Flax Linen: (model, variables), as `grujax.save` and `to_torch` take them, bit for bit.

    Args:
      module: a `GRU`, `GRUCell`, `GRUEncoder` or `GRUModel` of `grujax.nnx`.

    Raises:
      InputError: the module has another class.

    >>> from flax import nnx
    >>> module = GRU(10, 20, rngs=nnx.Rngs(0))
    >>> model, variables = to_linen(module)
    >>> x = jnp.ones((3, 7, 10))
    >>> bool((model.apply(variables, x)[0] == module(x)[0]).all())
    True
    """
    name = type(module).__name__
    known = MODULES.get(name) is type(module)
    expected, found = f"one of {sorted(MODULES)} of grujax.nnx", f"{type(module).__module__}.{name}"
    require(known, "module", expected, found, instead_of(module))
    cls = MODELS[name]
    variables = {"params": nnx.to_pure_dict(nnx.state(module, nnx.Param))}
    statistics = nnx.to_pure_dict(nnx.state(module, Statistic))
    return cls(**module.fields_of(cls)), variables | ({"statistics": statistics} if statistics else {})


def from_linen(model: nn.Module, variables: Mapping[str, Any], *, rngs: nnx.Rngs) -> Any:
    """Converts a Linen model to the module of the same name in `grujax.nnx`, with the same fields and values.

    Args:
      model: a `grujax.GRU`, `GRUCell`, `GRUEncoder` or `GRUModel`.
      variables: its variables: "params", and for a trained `GRUModel` also "statistics".
      rngs: the random streams of the new module; dropout draws from "dropout".

    Raises:
      InputError: the model has another class, or the variables do not fit the model.

    >>> import grujax, jax
    >>> from flax import nnx
    >>> model, x = grujax.GRU(20), jnp.ones((3, 7, 10))
    >>> variables = model.init(jax.random.key(0), x)
    >>> module = from_linen(model, variables, rngs=nnx.Rngs(0))
    >>> bool((model.apply(variables, x)[0] == module(x)[0]).all())
    True
    """
    linen = require_own(model)
    require(isinstance(variables, Mapping), "variables", "a dict", f"a {type(variables).__name__}")
    cls, params = MODULES[type(linen).__name__], _flat(variables.get("params", {}))
    sizes = [a.shape[0] for path, a in params.items() if path in ("w_ih", "l0/w_ih") or path.endswith("/l0/w_ih")]
    require(len(sizes) == 1, "variables", "parameters w_ih of the first layer", sorted(params))
    module = cls(input_size=input_size_of(linen, sizes[0]), **linen.fields_of(cls), rngs=rngs)
    fill(module, variables["params"])
    for name, a in _flat(variables.get("statistics", {}), "statistics").items():
        require_one_of(name, statistics_of(module), f"statistics/{name}")
        setattr(module, name, Statistic(jnp.asarray(a)))
    return module


def fill(module: nnx.Module, params: Mapping[str, Any]) -> None:
    """Copies Linen's nested `params` into a module; `InputError` unless all paths, shapes and dtypes match."""
    declared, values = _flat(nnx.to_pure_dict(nnx.state(module, nnx.Param))), _flat(params)
    for path in sorted(declared.keys() | values.keys()):
        expected, found = (f"{a[path].dtype} {a[path].shape}" if path in a else "none" for a in (declared, values))
        require_equal(found, expected, f"params/{path}")
    arrays = {path: jnp.asarray(a) for path, a in values.items()}
    nnx.update(module, nnx.State(unflatten_dict(arrays, sep="/")))


def _flat(tree: Any, name: str = "params") -> dict[str, Any]:
    require(isinstance(tree, Mapping), name, "a dict", type(tree).__name__)
    return flatten_dict(dict(tree), sep="/")
