"""Weights from Equinox and back: `equinox.nn.GRUCell`, one or a list of them, a layer each.

The cell has torch's matrices, `weight_ih` (3H, I) and `weight_hh` (3H, H), rows r | z | n; of the biases `bias` (3H,),
which holds the sums of r and z, and `bias_n` (H,), b_hn.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from grujax.core.dialects import DIALECTS
from grujax.errors import require, require_package
from grujax.interop.framework import Framework
from grujax.interop.parts import Place, to_jax
from grujax.interop.prove import Runner
from grujax.interop.trees import Layer, Layout, array, jax_runner, read_tree, written_tree
from grujax.linen import GRU, GRUCell

if TYPE_CHECKING:
    import equinox

PLACE = Place("equinox.nn.GRUCell", models=(GRU, GRUCell), only={"bidirectional": False})


def from_equinox(
    source: "equinox.nn.GRUCell | Sequence[equinox.nn.GRUCell]", *, verify: bool | None = None
) -> tuple[nn.Module, dict]:
    """Of a cell a `grujax.GRUCell`; of a list of cells a `grujax.GRU`, a layer each. See `grujax.interop`.

    >>> import equinox, jax
    >>> model, variables = from_equinox([equinox.nn.GRUCell(10, 20, key=jax.random.key(0))])
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (20, (10, 60))
    """
    return FRAMEWORK.ours(source, verify)


def to_equinox(
    model: nn.Module, variables: Mapping, *, verify: bool = False
) -> "equinox.nn.GRUCell | list[equinox.nn.GRUCell]":
    """Of a `GRUCell` a cell; of a `GRU` of one direction a list of cells, a layer each, for a loop such as

        for cell in cells:
            _, xs = jax.lax.scan(lambda h, x: (cell(x, h),) * 2, jnp.zeros(cell.hidden_size), xs)

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20, num_layers=2, initializer="flax")
    >>> cells = to_equinox(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> [cell.weight_ih.shape for cell in cells]
    [(60, 10), (60, 20)]
    """
    return FRAMEWORK.theirs(model, variables, verify)


def _read(source: Any) -> tuple[nn.Module, dict]:
    of = require_package("equinox", "equinox").nn.GRUCell
    single, flat = not isinstance(source, list | tuple), {}
    named = {"source": source} if single else {f"source[{k}]": cell for k, cell in enumerate(source)}
    require(bool(named), "source", "at least one cell", "none")
    for name, cell in named.items():
        remedy = "Pass its GRUCells, in a list, a layer each."
        require(type(cell) is of, name, "an equinox.nn.GRUCell", type(cell).__name__, remedy)
        names = DIALECTS["equinox"].tensors[: 4 if cell.use_bias else 2]
        flat |= {f"{name}.{tensor}": array(getattr(cell, tensor), f"{name}.{tensor}") for tensor in names}
    return read_tree(flat, Layout({f"{name}.": None for name in named}, single=single), DIALECTS["equinox"])


def _build(model: nn.Module, variables: Mapping) -> Any:
    equinox, cells = require_package("equinox", "equinox"), []
    for of in written_tree(model, variables, PLACE, DIALECTS["equinox"], [""] * getattr(model, "num_layers", 1)):
        tensors = {name: to_jax(a, name) for name, a in of.items()}
        sizes = {"input_size": of["weight_ih"].shape[1], "hidden_size": of["weight_hh"].shape[1]}
        sizes |= {"use_bias": "bias" in of, "dtype": tensors["weight_hh"].dtype}
        # Its shapes alone: random weights would be drawn to be replaced.
        cell = equinox.filter_eval_shape(equinox.nn.GRUCell, **sizes, key=jax.random.key(0))
        cells.append(equinox.tree_at(attrgetter(*tensors), cell, tuple(tensors.values())))
    return cells[0] if isinstance(model, GRUCell) else cells


def _run(source: Any, model: nn.Module) -> Runner:
    """Equinox itself, its cells over rows by `vmap` and over time by `lax.scan`."""
    cells = source if isinstance(source, list | tuple) else [source]
    return jax_runner(model, jax.vmap(cells[0]), [_scanned(jax.vmap(cell)) for cell in cells])


def _scanned(cell: Any) -> Layer:
    def layer(x: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
        h_last, hs = jax.lax.scan(lambda h, x: (cell(x, h),) * 2, h0[0], x.swapaxes(0, 1))
        return hs.swapaxes(0, 1), h_last[None]

    return layer


FRAMEWORK = Framework("equinox", _read, _build, _run, live=lambda source: True)
