"""Weights from Haiku and back: the parameters of `hk.GRU`, and of several in an `hk.DeepRNN`.

A module has `w_i` (I, 3H), `w_h` (H, 3H) and `b` (3H,), columns z | r | a. r multiplies the state before the product, z
takes the candidate: `grujax.GRU(reset_after=False, update="take")`, into which the weights go as they are. A model with
update="keep" has z's columns negated. b is the sum of both biases: the outputs are the same.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from grujax.core.weight_layouts import DIALECTS
from grujax.errors import require, require_package
from grujax.interop.layers import Layer, array, cell_runner, layers_runner, to_jax, written
from grujax.interop.parts import REMEDIES, Place, put_together, take_apart
from grujax.interop.prove import FIND, Runner, require_agreement
from grujax.interop.weight_layouts import read
from grujax.linen.cell import GRUCell
from grujax.linen.layer import GRU

PLACE = Place("hk.GRU", {"reset_after": (False,)}, (GRU, GRUCell))
TENSORS = DIALECTS["haiku"].tensors


def from_haiku(params: Mapping, *, verify: bool = False) -> tuple[nn.Module, dict]:
    """The `grujax.GRU` and variables that compute what the `hk.GRU`s of a parameter tree compute.

    Args:
      params: {module name: {"w_i", "w_h", "b"}}, of one `hk.GRU`, or of several that Haiku has numbered, `gru`,
        `gru_1`, ...: layers one over the other, as `hk.DeepRNN` runs them. What else a tree holds must be left out.
      verify: run both sides on random data; the largest difference is logged (logger "grujax.interop", INFO), and one
        past the tolerance table raises.

    Returns:
      The model is batch-major, x (B, T, I), where `hk.dynamic_unroll` is not unless it is told.

    Raises:
      InputError: naming the module or tensor that is no `hk.GRU`'s, or no layer of a stack.

    >>> import numpy as np
    >>> of_gru = {"w_i": np.ones((10, 60)), "w_h": np.ones((20, 60)), "b": np.ones(60)}
    >>> from_haiku({"gru": {key: a.astype(np.float32) for key, a in of_gru.items()}})[0].update
    'take'
    """
    require(isinstance(params, Mapping), "params", "{module name: tensors}", type(params).__name__)
    names = _stack(params)
    cells = {}
    for name in names:
        of, others = params[name], "only w_i, w_h and b, those of an hk.GRU"
        require(isinstance(of, Mapping), name, "a mapping of tensors", type(of).__name__)
        for key in (*TENSORS, *of):
            require(key in TENSORS, f"{name}/{key}", others, "this key besides", "Pass the modules of the GRU alone.")
            require(key in of, f"{name}/{key}", "this key", "no such key")
        tensors = {f"{name}/{key}": array(of[key], f"{name}/{key}") for key in TENSORS}
        cells[name] = read(tensors, DIALECTS["haiku"], "take")
    model, variables = put_together(cells, reset_after=False, update="take")
    if verify:
        require_agreement(model, variables, runner(params, model), "params")
    return model, variables


def to_haiku(model: nn.Module, variables: Mapping, name: str = "gru", *, verify: bool = False) -> dict:
    """The parameters of the `hk.GRU`s that compute what `model` computes: the inverse of `from_haiku`.

    Args:
      model: a `GRU` of one direction, or a `GRUCell`, with reset_after=False.
      variables: its variables, `{"params": ...}` alone.
      name: of the first layer's module, "net/~/gru" where the `hk.GRU` is made in `Net.__init__`; the others are
        numbered, `gru_1`, ...
      verify: see `from_haiku`.

    Warns:
      ConversionWarning: b_hh is not 0: its sum with b_ih is stored. With bias=False zeros are.

    Raises:
      InputError: what Haiku has no place for: `reset_after=True`, two directions, activations, a head.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRU
    >>> model = GRU(20, num_layers=2, reset_after=False, initializer="flax")
    >>> list(to_haiku(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10)))))
    ['gru', 'gru_1']
    """
    require(not getattr(model, "reset_after", False), "reset_after", "False", "True", REMEDIES["reset_after"])
    remedy = "Its modules do not tell directions; convert a GRU of each direction."
    require(not getattr(model, "bidirectional", False), "bidirectional", "False", "True", remedy)
    parts = take_apart(model, variables, PLACE, DIALECTS["haiku"])
    params: dict[str, dict[str, jax.Array]] = {}
    for layer, of in enumerate(written(model, parts, DIALECTS["haiku"])):
        module = f"{name}_{layer}" if layer else name
        params[module] = {key: to_jax(a, f"{module}/{key}") for key, a in of.items()}
    if verify:
        require_agreement(model, variables, runner(params, model), "model")
    return params


def runner(params: Mapping, model: nn.Module) -> Runner:
    """Haiku itself, an `hk.GRU` a module."""
    hk, hidden_size = require_package("haiku", "haiku"), model.hidden_size  # pyright: ignore[reportAttributeAccessIssue]

    def transformed(name: str, run: Any) -> Any:
        call = hk.without_apply_rng(hk.transform(lambda x, h: run(hk.GRU(hidden_size, name="gru"), x, h))).apply
        return lambda x, h: call({"gru": params[name]}, x, h)

    def layer(name: str) -> Layer:
        def run(core: Any, x: jax.Array, h0: jax.Array) -> Any:
            output, last = hk.dynamic_unroll(core, x, h0[0], time_major=False)
            return output, last[None]

        return transformed(name, run)

    names = _stack(params)
    if isinstance(model, GRUCell):
        return cell_runner(transformed(names[0], lambda core, x, h: core(x, h)[0]))
    return layers_runner([layer(name) for name in names])


def _stack(params: Mapping) -> list[str]:
    """The modules in the order of their layers."""
    require(bool(params), "params", "the parameters of an hk.GRU", "none")
    for name in params:
        require(isinstance(name, str), "params", "names of modules", repr(name)[:80])
    first = min(params, key=len)
    expected = [first, *(f"{first}_{k}" for k in range(1, len(params)))]
    remedy = f"Pass each that is no layer of one stack by itself, {{name: params[name]}}. {FIND}"
    for name in params:
        served = expected[0] if len(params) == 1 else f"{expected[0]} to {expected[-1]}, layers as Haiku numbers them"
        require(name in expected, name, served, "this module besides", remedy)
    return expected
