"""Weights from Haiku and back: the parameters of `hk.GRU`, and of several in an `hk.DeepRNN`.

A module has `w_i` (I, 3H), `w_h` (H, 3H) and `b` (3H,), the sum of both biases, columns z | r | a. r multiplies the
state before the product, and z weighs the candidate, as in `grujax.GRU(reset_after=False, update="take")`, whose
weights are the same. For a model with update="keep", the columns of z are negated.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from grujax.core.dialects import DIALECTS
from grujax.errors import require, require_package
from grujax.interop.framework import Framework
from grujax.interop.parts import Place, to_jax
from grujax.interop.prove import FIND, Runner
from grujax.interop.trees import Layer, Layout, array, jax_runner, read_tree, written_tree
from grujax.linen import GRU, GRUCell

PLACE = Place("hk.GRU", models=(GRU, GRUCell), only={"reset_after": False, "bidirectional": False})


def from_haiku(params: Mapping, *, verify: bool = False) -> tuple[nn.Module, dict]:
    """Returns the `grujax.GRU` of {module name: {"w_i", "w_h", "b"}}, and its variables. See `grujax.interop`.

    Args:
      params: of one `hk.GRU`, or of the layers of a stack as `hk.DeepRNN` runs them, numbered by Haiku: `gru`, `gru_1`
        and so on. Leave out all other modules.

    >>> import numpy as np
    >>> tensors = {"w_i": np.ones((10, 60)), "w_h": np.ones((20, 60)), "b": np.ones(60)}
    >>> from_haiku({"gru": {key: a.astype(np.float32) for key, a in tensors.items()}})[0].update
    'take'
    """
    return FRAMEWORK.imported(params, verify)


def to_haiku(model: nn.Module, variables: Mapping, name: str = "gru", *, verify: bool = False) -> dict:
    """Returns the parameters of the `hk.GRU`s of a `GRUCell`, or a `GRU` of one direction, with reset_after=False.

    name: of the first layer's module; "net/~/gru" if `Net.__init__` makes the `hk.GRU`. Further layers are numbered.

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20, num_layers=2, reset_after=False, initializer="flax")
    >>> list(to_haiku(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10)))))
    ['gru', 'gru_1']
    """
    return FRAMEWORK.exported(model, variables, verify, name=name)


def _read(params: Any) -> tuple[nn.Module, dict]:
    require(isinstance(params, Mapping), "params", "{module name: tensors}", type(params).__name__)
    names, flat = _stack(params), {}
    for name in names:
        require(isinstance(params[name], Mapping), name, "a mapping of tensors", type(params[name]).__name__)
        for key in DIALECTS["haiku"].tensors:
            require(key in params[name], f"{name}/{key}", "this key, as in an hk.GRU", "no such key")
        flat |= {f"{name}/{key}": array(a, f"{name}/{key}") for key, a in params[name].items()}
    layout = Layout({f"{name}/": None for name in names}, fields={"reset_after": False, "update": "take"})
    return read_tree(flat, layout, DIALECTS["haiku"], "take")


def _build(model: nn.Module, variables: Mapping, name: str = "gru") -> dict:
    cells = written_tree(model, variables, PLACE, DIALECTS["haiku"], [""] * getattr(model, "num_layers", 1))
    names = [f"{name}_{k}" if k else name for k in range(len(cells))]
    return {n: {key: to_jax(a, key) for key, a in cell.items()} for n, cell in zip(names, cells, strict=True)}


def _run(params: Mapping, model: Any) -> Runner:
    """Runs Haiku, with one `hk.GRU` per module."""
    hk = require_package("haiku", "haiku")

    def transformed(name: str, run: Any) -> Any:
        call = hk.without_apply_rng(hk.transform(lambda x, h: run(hk.GRU(model.hidden_size, name="gru"), x, h))).apply
        return lambda x, h: call({"gru": params[name]}, x, h)

    def unrolled(core: Any, x: jax.Array, h0: jax.Array) -> Any:
        output, last = hk.dynamic_unroll(core, x, h0[0], time_major=False)
        return output, last[None]

    names = _stack(params)
    layers: list[Layer] = [transformed(name, unrolled) for name in names]
    return jax_runner(model, transformed(names[0], lambda core, x, h: core(x, h)[0]), layers)


def _stack(params: Mapping) -> list[str]:
    """The modules in the order of their layers."""
    require(bool(params), "params", "the parameters of an hk.GRU", "none")
    for name in params:
        require(isinstance(name, str), "params", "names of modules", repr(name)[:80])
    first = min(params, key=len)
    expected = [first, *(f"{first}_{k}" for k in range(1, len(params)))]
    remedy = f"Pass GRUs that are not layers of one stack one by one, {{name: params[name]}}. {FIND}"
    served = first if len(params) == 1 else f"{first} to {expected[-1]}, layers as Haiku numbers them"
    for name in params:
        require(name in expected, name, served, "this extra module", remedy)
    return expected


FRAMEWORK = Framework("haiku", _read, _build, _run, "params")
