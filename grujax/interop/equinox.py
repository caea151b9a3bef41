"""Weights from Equinox and back: one `equinox.nn.GRUCell`, or a list of them with one cell per layer.

The cell has torch's matrices, `weight_ih` (3H, I) and `weight_hh` (3H, H), rows r | z | n, and two biases: `bias`
(3H,), which stores the sums for r and z, and `bias_n` (H,), which is b_hn.
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
    """Converts a cell to a `grujax.GRUCell`, a list of cells to a `grujax.GRU` with one layer per cell.

    See `grujax.interop`.

    >>> import equinox, jax
    >>> model, variables = from_equinox([equinox.nn.GRUCell(10, 20, key=jax.random.key(0))])
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (20, (10, 60))
    """
    return FRAMEWORK.imported(source, verify)


def to_equinox(
    model: nn.Module, variables: Mapping, *, verify: bool = False
) -> "equinox.nn.GRUCell | list[equinox.nn.GRUCell]":
    """Converts a `GRUCell` to a cell, a `GRU` of one direction to a list with one cell per layer, for a loop such as

        for cell in cells:
            _, xs = jax.lax.scan(lambda h, x: (cell(x, h),) * 2, jnp.zeros(cell.hidden_size), xs)

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20, num_layers=2, initializer="flax")
    >>> cells = to_equinox(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> [cell.weight_ih.shape for cell in cells]
    [(60, 10), (60, 20)]
    """
    return FRAMEWORK.exported(model, variables, verify)


def _read(source: Any) -> tuple[nn.Module, dict]:
    cls = require_package("equinox", "equinox").nn.GRUCell
    single, flat = not isinstance(source, list | tuple), {}
    named = {"source": source} if single else {f"source[{k}]": cell for k, cell in enumerate(source)}
    require(bool(named), "source", "at least one cell", "none")
    for name, cell in named.items():
        remedy = "Pass its GRUCells in a list, one per layer."
        require(type(cell) is cls, name, "an equinox.nn.GRUCell", type(cell).__name__, remedy)
        names = DIALECTS["equinox"].tensors[: 4 if cell.use_bias else 2]
        flat |= {f"{name}.{tensor}": array(getattr(cell, tensor), f"{name}.{tensor}") for tensor in names}
    return read_tree(flat, Layout({f"{name}.": None for name in named}, single=single), DIALECTS["equinox"])


def _build(model: nn.Module, variables: Mapping) -> Any:
    equinox, cells = require_package("equinox", "equinox"), []
    for arrays in written_tree(model, variables, PLACE, DIALECTS["equinox"], [""] * getattr(model, "num_layers", 1)):
        tensors = {name: to_jax(a, name) for name, a in arrays.items()}
        sizes = {"input_size": arrays["weight_ih"].shape[1], "hidden_size": arrays["weight_hh"].shape[1]}
        sizes |= {"use_bias": "bias" in arrays, "dtype": tensors["weight_hh"].dtype}
        # Only its shapes: random weights would be drawn in vain.
        cell = equinox.filter_eval_shape(equinox.nn.GRUCell, **sizes, key=jax.random.key(0))
        cells.append(equinox.tree_at(attrgetter(*tensors), cell, tuple(tensors.values())))
    return cells[0] if isinstance(model, GRUCell) else cells


def _run(source: Any, model: nn.Module) -> Runner:
    """Runs Equinox: `vmap` of its cells over rows, `lax.scan` over time."""
    cells = source if isinstance(source, list | tuple) else [source]
    return jax_runner(model, jax.vmap(cells[0]), [_scanned(jax.vmap(cell)) for cell in cells])


def _scanned(cell: Any) -> Layer:
    def layer(x: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
        h_last, hs = jax.lax.scan(lambda h, x: (cell(x, h),) * 2, h0[0], x.swapaxes(0, 1))
        return hs.swapaxes(0, 1), h_last[None]

    return layer


FRAMEWORK = Framework("equinox", _read, _build, _run, live=lambda source: True)
