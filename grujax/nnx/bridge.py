"""From a module of Flax NNX to one of Flax Linen and back, bit for bit."""

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
    """(model, variables) of Flax Linen with the same fields and values, as `grujax.save` and `to_torch` take them.

    Raises `InputError` for a module of another class.

    >>> from flax import nnx
    >>> module = GRU(10, 20, rngs=nnx.Rngs(0))
    >>> model, variables = to_linen(module)
    >>> x = jnp.ones((3, 7, 10))
    >>> bool((model.apply(variables, x)[0] == module(x)[0]).all())
    True
    """
    found = type(module).__name__
    known = MODULES.get(found) is type(module)
    expected, found_in = f"one of {sorted(MODULES)} of grujax.nnx", f"{type(module).__module__}.{found}"
    require(known, "module", expected, found_in, instead_of(module))
    of = MODELS[found]
    variables = {"params": nnx.to_pure_dict(nnx.state(module, nnx.Param))}
    statistics = nnx.to_pure_dict(nnx.state(module, Statistic))
    return of(**module.fields_of(of)), variables | ({"statistics": statistics} if statistics else {})


def from_linen(model: nn.Module, variables: Mapping[str, Any], *, rngs: nnx.Rngs) -> Any:
    """The module of the same name here, with the fields of `model` and the values of `variables`, bit for bit.

    Args:
      model: a `grujax.GRU`, `GRUCell`, `GRUEncoder` or `GRUModel`.
      variables: its variables, "params" and, of a trained `GRUModel`, "statistics".
      rngs: dropout draws from its stream "dropout".

    Raises:
      InputError: the model has another class, or the variables do not fit it.

    >>> import grujax, jax
    >>> from flax import nnx
    >>> model, x = grujax.GRU(20), jnp.ones((3, 7, 10))
    >>> variables = model.init(jax.random.key(0), x)
    >>> module = from_linen(model, variables, rngs=nnx.Rngs(0))
    >>> bool((model.apply(variables, x)[0] == module(x)[0]).all())
    True
    """
    own = require_own(model)
    require(isinstance(variables, Mapping), "variables", "a dict", f"a {type(variables).__name__}")
    of, params = MODULES[type(own).__name__], _flat(variables.get("params", {}))
    sizes = [a.shape[0] for path, a in params.items() if path in ("w_ih", "l0/w_ih") or path.endswith("/l0/w_ih")]
    require(len(sizes) == 1, "variables", "parameters w_ih of the first layer", sorted(params))
    module = of(input_size=input_size_of(own, sizes[0]), **own.fields_of(of), rngs=rngs)
    fill(module, variables["params"])
    for name, a in _flat(variables.get("statistics", {}), "statistics").items():
        require_one_of(name, statistics_of(module), f"statistics/{name}")
        setattr(module, name, Statistic(jnp.asarray(a)))
    return module


def fill(module: nnx.Module, params: Mapping[str, Any]) -> None:
    """Puts `params`, as Linen nests them, into a module; `InputError` unless paths, shapes and dtypes are its own."""
    ours, theirs = _flat(nnx.to_pure_dict(nnx.state(module, nnx.Param))), _flat(params)
    for path in sorted(ours.keys() | theirs.keys()):
        expected, given = (f"{a[path].dtype} {a[path].shape}" if path in a else "none" for a in (ours, theirs))
        require_equal(given, expected, f"params/{path}")
    values = {path: jnp.asarray(a) for path, a in theirs.items()}
    nnx.update(module, nnx.State(unflatten_dict(values, sep="/")))


def _flat(tree: Any, name: str = "params") -> dict[str, Any]:
    require(isinstance(tree, Mapping), name, "a dict", type(tree).__name__)
    return flatten_dict(dict(tree), sep="/")
