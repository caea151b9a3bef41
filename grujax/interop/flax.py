"""Weights from Flax Linen and back: `nn.GRUCell`, `nn.RNN` and `nn.Bidirectional` of it, and `nn.Sequential` of these.

A Linen cell has a kernel for each gate, ir, iz, in (I, H) and hr, hz, hn (H, H), and biases for ir, iz, in and hn.
Those of hr and hz only occur in sums, which ir and iz store.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.serialization import msgpack_restore, to_bytes
from flax.traverse_util import unflatten_dict

from grujax.core.dialects import DIALECTS
from grujax.errors import InputError, require
from grujax.interop import trees
from grujax.interop.framework import Framework
from grujax.interop.parts import Place, to_jax
from grujax.interop.prove import Runner
from grujax.linen import GRU, GRUCell

PLACE = Place("flax.linen.GRUCell", {"activation": None, "gate_activation": None}, (GRU, GRUCell))
OWN = re.compile(r"layers_\d+|forward_rnn|backward_rnn|cell|i[rzn]|h[rzn]")
"""Names in the tree of a GRU of Flax."""


def from_flax(
    source: nn.Module | Mapping, variables: Mapping | None = None, *, verify: bool | None = None
) -> tuple[nn.Module, dict]:
    """Returns the model and variables of a Linen module. See `grujax.interop`.

    An `nn.GRUCell` becomes a `grujax.GRUCell`. An `nn.RNN` or `nn.Bidirectional` of cells, or an `nn.Sequential` of
    these, becomes a `grujax.GRU` with the same `time_major`, `dtype` and activations.

    The model returns outputs and last states, whatever `return_carry` is. With lengths, its outputs are 0 in the
    padding; Flax returns there what the cell computes from the padding.

    Args:
      source: the module; or only its parameters, {"params": tree} or the tree. The keys of a tree give the structure,
        but not the options, nor layers without parameters: defaults, and no such layers, are assumed.
      variables: of the module.

    Raises:
      InputError: the module or tree is not one of these, or something would be lost.

    >>> import jax, jax.numpy as jnp
    >>> rnn = nn.RNN(nn.GRUCell(20))
    >>> model, variables = from_flax(rnn, rnn.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> model.hidden_size, variables["params"]["l0"]["w_ih"].shape
    (20, (10, 60))
    """
    return FRAMEWORK.imported((None, source) if variables is None else (source, variables), verify)


def to_flax(model: nn.Module, variables: Mapping, *, verify: bool = False) -> tuple[nn.Module, dict]:
    """Returns the Linen module of a `GRU` or `GRUCell` with reset_after=True, and its variables.

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20, bidirectional=True, initializer="flax")
    >>> module, variables = to_flax(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> module.apply(variables, jnp.ones((3, 7, 10))).shape
    (3, 7, 40)
    """
    return FRAMEWORK.exported(model, variables, verify)


def _read(source: tuple[nn.Module | None, Mapping]) -> tuple[nn.Module, dict]:
    module, variables = source
    if not isinstance(variables, Mapping):
        remedy = "For a Linen module, call from_flax(module, variables)."
        raise InputError("variables", '{"params": tree}', type(variables).__name__, remedy)
    for collection in variables if "params" in variables else ():
        found, remedy = f"also {str(collection)[:80]!r}", "All weights of a GRU are in params."
        require(collection == "params", "variables", 'only "params"', found, remedy)
    flat = _tensors(variables)
    layout = trees.layout_of_keys(list(flat)) if module is None else trees.layout_of_module(module, nn)
    return trees.read_tree(flat, layout, DIALECTS["flax"])


def _build(model: nn.Module, variables: Mapping) -> tuple[nn.Module, dict]:
    layout = trees.layout_of_model(model)
    cells = trees.written_tree(model, variables, PLACE, DIALECTS["flax"], list(layout.cells))
    params = {key: to_jax(a, key) for cell in cells for key, a in cell.items()}
    return _module(model, layout), {"params": unflatten_dict(params, sep="/")}


def _run(source: tuple[nn.Module | None, Mapping], model: nn.Module) -> Runner:
    """Runs Flax. An `nn.Sequential` neither takes nor returns states, so its layers run one by one."""
    tree = _inner(source[1].get("params", source[1]))
    module: Any = source[0] or _module(model, trees.layout_of_keys(list(_tensors(tree))))
    stacked = isinstance(module, nn.Sequential)
    layers: list[Any] = list(module.layers) if stacked else [module]
    inside = [tree[f"layers_{k}"] for k in range(len(layers))] if stacked else [tree]
    two = isinstance(layers[0], nn.Bidirectional)
    calls = [partial(layer.apply, {"params": params}) for layer, params in zip(layers, inside, strict=True)]
    return trees.jax_runner(model, lambda x, h: calls[0](h, x)[0], [trees.recurrent(call, two) for call in calls])


def _tensors(variables: Mapping) -> dict:
    tree = variables.get("params", variables)
    require(isinstance(tree, Mapping), "params", "a tree of arrays", type(tree).__name__)
    return trees.flattened(_inner(tree), "variables")


def _inner(tree: Mapping) -> Mapping:
    """The tree of the GRU, without the names of enclosing modules that contain nothing else."""
    for _ in range(8):
        name, inner = next(iter(tree.items()), ("cell", None))
        named = re.fullmatch(r"\w{1,80}", str(name)) is not None and OWN.fullmatch(str(name)) is None
        if len(tree) != 1 or not named or not isinstance(inner, Mapping):
            break
        tree = inner
    return tree


def _module(model: Any, layout: trees.Layout) -> nn.Module:
    cells = [nn.GRUCell(model.hidden_size, **trees.cell_options(model)) for _ in layout.cells]
    return trees.nested(cells, nn, layout, getattr(model, "time_major", False))


def _load(path: Path) -> tuple[None, dict[str, Any]]:
    """Reads a file of `flax.serialization.to_bytes`, {"params": tree} or the tree; msgpack contains only data."""
    remedy = 'Write flax.serialization.to_bytes({"params": params}).'
    try:
        tree = msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack, NumPy and Flax have no common class of errors for damaged bytes
        found = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        raise InputError("path", "a whole msgpack file of Flax", found[:200], remedy) from error
    if not isinstance(tree, dict):
        raise InputError("path", "a tree of parameters", type(tree).__name__, remedy)
    return None, tree


def _store(path: Path, target: tuple[nn.Module | None, Mapping]) -> None:
    """Writes the tree, which does not contain the activations of its module."""
    fields = {} if target[0] is None else trees.layout_of_module(target[0], nn).fields
    for field, default in (("activation", "tanh"), ("gate_activation", "sigmoid")):
        found, remedy = fields.get(field, default), "A file of Flax cannot store it: write another format."
        require(found == default, field, repr(default), repr(found), remedy)
    path.write_bytes(to_bytes(target[1]))


def _load_folder(path: Path) -> tuple[None, Mapping[str, Any]]:
    """Reads the parameters in an orbax folder; the error for another folder says what it is."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    remedy = "In Keras, write model.save('model.keras'); or export it to ONNX with tf2onnx."
    require("saved_model.pb" not in names, "path", "a model file", f"a SavedModel of TensorFlow at {path}", remedy)
    inside = [path / name for name in ("default", "params", "state") if (path / name).is_dir()]
    of_orbax = bool(names & {"_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA"})
    steps = [name for name in names if name.isdecimal()]
    remedy = f"Name a step of it, {path / max(steps, key=int)}." if steps else ""
    require(of_orbax, "path", "a file, or a folder that orbax wrote", f"another folder, {path}", remedy)
    import orbax.checkpoint as ocp  # a dependency of Flax

    for folder in (path, *inside):
        if (folder / "_METADATA").exists():
            try:
                with ocp.PyTreeCheckpointer() as checkpointer:
                    metadata = checkpointer.metadata(folder.absolute()).item_metadata.tree
                    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
                    return None, checkpointer.restore(folder.absolute(), restore_args=as_numpy)
            except Exception as error:  # tensorstore and orbax have no common class of errors for damaged folders
                raise InputError("path", "a whole folder of orbax", f"{type(error).__name__} at {path}") from error
    raise InputError("path", "a folder of orbax with a tree of arrays", f"{sorted(names)[:5]} at {path}")


def _store_folder(path: Path, target: tuple[Any, Mapping[str, Any]]) -> None:
    """Writes an orbax folder whole or not at all: orbax writes it beside `path` and renames it."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), target[1])


FRAMEWORK = Framework(
    "flax",
    _read,
    _build,
    _run,
    "variables",
    live=lambda source: source[0] is not None,
    load=_load,
    write=_store,
    endings=(".msgpack",),
)
ORBAX = FRAMEWORK._replace(name="orbax", load=_load_folder, write=_store_folder, endings=())
"""The same trees in folders of orbax."""
