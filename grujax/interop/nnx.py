"""Weights from Flax NNX and back: `nnx.GRUCell`, `nnx.RNN` and `nnx.Bidirectional` of it, `nnx.Sequential` of these.

The cell has `dense_i` with kernel (I, 3H) and bias (3H,), and `dense_h` with only a kernel (H, 3H), columns r | z | n.
It lacks b_hn, the bias that r multiplies (google/flax#5594). A Flax whose cell has it, as `hn_bias` (H,)
(google/flax#5595), is supported as well.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import flax.linen as nn
from flax import nnx
from flax.traverse_util import unflatten_dict
from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS
from grujax.errors import require
from grujax.interop import trees
from grujax.interop.framework import Framework
from grujax.interop.parts import Place, to_jax
from grujax.interop.prove import Runner
from grujax.linen import GRU, GRUCell

PLACE = Place("flax.nnx.GRUCell", {"activation": None, "gate_activation": None}, (GRU, GRUCell))


def from_nnx(source: nnx.Module | nnx.State, *, verify: bool | None = None) -> tuple[nn.Module, dict]:
    """Returns the model and variables of an NNX module, by the rules of `grujax.interop.flax.from_flax`.

    source: the module; or its `nnx.State`. The keys of a state give the structure but not the options, so defaults are
    assumed.

    >>> model, variables = from_nnx(nnx.RNN(nnx.GRUCell(10, 20, rngs=nnx.Rngs(0))))
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (20, (10, 60))
    """
    return FRAMEWORK.imported(source, verify)


def to_nnx(model: nn.Module, variables: Mapping, *, verify: bool = False) -> nnx.Module:
    """Returns the NNX module of a `GRU` or `GRUCell` with reset_after=True; b_hn must be 0 if NNX has no `hn_bias`.

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20, bidirectional=True, initializer="flax")
    >>> to_nnx(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))(jnp.ones((3, 7, 10))).shape
    (3, 7, 40)
    """
    return FRAMEWORK.exported(model, variables, verify)


def _read(source: nnx.Module | nnx.State) -> tuple[nn.Module, dict]:
    served = isinstance(source, nnx.Module | nnx.State)
    require(served, "source", "a flax.nnx.Module or its nnx.State", type(source).__name__)
    layout = None if isinstance(source, nnx.State) else trees.layout_of_module(source, nnx)
    flat = _tensors(source)
    dialect = "nnx with hn_bias" if any(key.endswith("hn_bias") for key in flat) else "nnx"
    return trees.read_tree(flat, layout or trees.layout_of_keys(list(flat)), DIALECTS[dialect])


def _build(model: nn.Module, variables: Mapping) -> nnx.Module:
    dialect, layout = "nnx with hn_bias" if hasattr(_cell(1, 1), "hn_bias") else "nnx", trees.layout_of_model(model)
    return _module(model, layout, trees.written_tree(model, variables, PLACE, DIALECTS[dialect], list(layout.cells)))


def _run(source: Any, model: nn.Module) -> Runner:
    """Runs NNX. An `nnx.Sequential` neither takes nor returns states, so its layers run one by one."""
    if isinstance(source, nnx.State):
        flat = _tensors(source)
        layout = trees.layout_of_keys(list(flat))
        cells = [{key: a for key, a in flat.items() if key.startswith(prefix)} for prefix in layout.cells]
        source = _module(model, layout, cells)
    layers = source.layers if isinstance(source, nnx.Sequential) else [source]
    calls: list[Any] = [_pure(layer) for layer in layers]
    two = isinstance(layers[0], nnx.Bidirectional)
    return trees.jax_runner(model, lambda x, h: calls[0](h, x)[0], [trees.recurrent(call, two) for call in calls])


def _pure(module: Any) -> Callable[..., Any]:
    """The module as a pure function: under jit, NNX refuses modules from outside."""
    definition, state = nnx.split(module)
    return lambda *args, **kwargs: nnx.merge(definition, state, copy=True)(*args, **kwargs)


def _tensors(source: nnx.Module | nnx.State) -> dict[str, NDArray]:
    """The arrays by their paths, without the random states that RNNs store to draw the first carry."""
    kept: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(nnx.state(source) if isinstance(source, nnx.Module) else source):
        if not isinstance(variable, nnx.RngState):
            name = "/".join(map(str, path)).replace("layers/", "layers_")  # as in Linen
            kept[name] = variable.get_value() if isinstance(variable, nnx.Variable) else variable
    return trees.flattened(unflatten_dict(kept, sep="/"), "source")


def _cell(input_size: int, hidden_size: int, **options: Any) -> Any:
    """A cell whose kernels are zeros."""
    zeros = {"kernel_init": nn.initializers.zeros, "recurrent_kernel_init": nn.initializers.zeros}
    return nnx.GRUCell(input_size, hidden_size, **zeros, **options, rngs=nnx.Rngs(0))


def _module(model: Any, layout: trees.Layout, tensors: Sequence[Mapping[str, NDArray]]) -> Any:
    """The NNX module with these tensors in a layout."""
    cells = []
    for prefix, arrays in zip(layout.cells, tensors, strict=True):
        input_size = arrays[f"{prefix}dense_i/kernel"].shape[0]
        cells.append(_cell(input_size, model.hidden_size, **trees.cell_options(model)))
        for key, a in arrays.items():
            reduce(getattr, key.removeprefix(prefix).split("/"), cells[-1]).set_value(to_jax(a, key))
    return trees.nested(cells, nnx, layout, getattr(model, "time_major", False))


FRAMEWORK = Framework("nnx", _read, _build, _run, live=lambda source: isinstance(source, nnx.Module))
