"""Finds the GRUs in a file or object, takes single ones out and puts them back. The rest is neither checked nor run."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict
from numpy.typing import NDArray

from grujax.core.config import own_fields
from grujax.core.dialects import FLOATS
from grujax.errors import InputError, require, require_one_of, require_package
from grujax.interop import files, flax, keras_find, onnx_read, torch_files
from grujax.interop.found import FoundGRU, Opened, grus_in, record
from grujax.interop.parts import FREE, TRAINING
from grujax.interop.torch import arrays, from_torch, tensors
from grujax.interop.torch_keys import has_gru, unwrapped
from grujax.saving.atomic import replacing
from grujax.saving.model_file import opened as opened_safetensors

FINDERS: dict[str, Any] = {"keras": keras_find, "keras-weights": keras_find, "onnx": onnx_read}
"""Modules that find GRUs in files and objects that are not trees of arrays, by format."""
TORCH = (*torch_files.TORCH.endings, *torch_files.TORCH.reads)
"""Endings of the files of a state dict."""


def find(source: Any, format: str | None = None) -> list[FoundGRU]:
    """Lists every GRU in a model, whatever else the model contains.

    Args:
      source: a file of any format that `load` reads, an orbax folder, a torch module or state dict, a Keras layer or
        model, an `onnx.ModelProto`, a tree of Flax or Haiku, or a mapping of NumPy arrays.
      format: of a file, as in `load`.

    Raises:
      InputError: the file is missing, damaged or of an unknown format; or the object is none of these.

    >>> import torch
    >>> module = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4, 2), "out": torch.nn.Conv1d(4, 2, 3)})
    >>> [(gru.name, gru.hidden_size, gru.num_layers, gru.where) for gru in find(module)]
    [('encoder', 4, 2, 'torch.nn.GRU')]
    """
    return opened(source, format).grus


def take(source: Any, prefix: str, format: str | None = None) -> tuple[nn.Module, dict]:
    """Returns (model, variables) of the GRU with that name; raises `InputError` if there is none."""
    return _named(opened(source, format), prefix).take()


def replace(
    source: Any, tuned: Mapping[str, tuple[nn.Module, Mapping]], path: str | Path, format: str | None = None
) -> None:
    """Writes a source again with new weights in its GRUs, under their old names; everything else stays as it is.

    Args:
      source, format: as in `find`; an object must be a torch state dict or module, a mapping of arrays, a Keras model
        or an `onnx.ModelProto`.
      tuned: maps names that `find` lists to (model, variables) of the same sizes and options.
      path: of the new file, which is written whole or not at all; it may be the source. Shards become one file, which
        needs a name of its own. An orbax folder must not exist yet.

    Raises:
      InputError: an unknown name, weights of another shape or dtype, or a source that cannot be written.
    """
    content, path = opened(source, format), Path(path)
    if content.write is None:
        remedy = "Take the GRU out with take(), and put its weights back with the library that wrote the source."
        raise InputError("source", "a file or object that can be written again", type(source).__name__, remedy)
    known = [ending for framework in files.FORMATS.values() for ending in framework.endings + framework.reads]
    kept = path.name.endswith(content.endings or path.name) or not path.name.endswith(tuple(known))
    require(kept, "path", f"a name that ends in {content.endings}", repr(path.name), "The format cannot change.")
    shard = torch_files.SHARD.fullmatch(path.name)
    require(shard is None, "path", "the name of a whole file", repr(path.name), "Shards are written as one file.")
    pairs = isinstance(tuned, Mapping) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in tuned.values())
    require(pairs, "tuned", "(model, variables) by the name of each GRU", tuned)
    for name, (model, variables) in tuned.items():
        gru = _named(content, name)
        old = gru.take()[0]
        computes = [field.name for field in own_fields(type(old)) if field.name not in (*FREE, *TRAINING)]
        same = type(old) is type(model) and all(getattr(old, key) == getattr(model, key) for key in computes)
        require(same, name or "tuned", f"a model like {_shown(old)}", _shown(model))
        gru.put(model, variables)
    if content.folder:
        require(not path.exists(), "path", "a folder that does not exist yet", str(path))
        content.write(path)
        return
    with replacing(path) as temporary:
        content.write(temporary)


def _shown(model: nn.Module) -> str:
    return " ".join(repr(model).replace("# attributes", "").split())


def _named(content: Opened, name: str) -> FoundGRU:
    grus = {gru.name: gru for gru in content.grus}
    require_one_of(name, grus, "prefix")
    return grus[name]


def opened(source: Any, format: str | None) -> Opened:
    """Opens a source. Its GRUs get unique names: a second "gru" is called "gru#1"."""
    named = {}
    if isinstance(source, str | Path):
        content = _file(Path(source), format)
        content = content._replace(endings=(*content.endings, Path(source).suffix))
    else:
        require(format is None, "format", "none, since source is not a file", repr(format), "Leave it out.")
        content = _object(source)
    for gru in content.grus:
        numbered = (f"{gru.name}#{number}" if number else gru.name for number in count())
        name = next(name for name in numbered if name not in named)
        named[name] = dataclasses.replace(gru, name=name)
    return content._replace(grus=[*named.values()])


def _object(source: Any) -> Opened:
    names = [framework.name for framework in files.FORMATS.values() if framework.recognises(source)]
    if names:  # with torch as its backend, a Keras layer is a torch module too
        return FINDERS[names[-1]].in_object(source) if names[-1] in FINDERS else _torch_module(source)
    if isinstance(source, nnx.Module | nnx.State):
        source = nnx.to_pure_dict(nnx.state(source) if isinstance(source, nnx.Module) else source)
    served = "a path, a module, a mapping of arrays or a graph"
    require(isinstance(source, Mapping), "source", served, type(source).__name__)
    inner = unwrapped(source) if all(isinstance(key, str) for key in source) else source
    if has_gru(inner):
        in_numpy = any(isinstance(a, np.ndarray) for a in inner.values())
        whole, framework = _copied(source), torch_files.NUMPY if in_numpy else torch_files.TORCH
        content = _mapping(whole, lambda path: framework.write(path, whole))
        return content._replace(endings=framework.endings + framework.reads)
    return _mapping(source, None)


def _file(path: Path, format: str | None) -> Opened:
    framework = files.framework_of(path, format, reading=True)
    if framework is flax.ORBAX:
        whole = framework.load(path)
        return _mapping(whole[1], lambda path: framework.write(path, whole))._replace(folder=True)
    name = framework.name
    files.readable(path)
    if name in FINDERS:
        return FINDERS[name].in_file(path)
    if name in ("grujax", "stablehlo"):
        remedy = "grujax.load reads it." if name == "grujax" else "A program cannot be read back into weights."
        raise InputError("path", "a file of another framework", f"a {name} file", remedy)
    whole, write = framework.load(path), framework.write
    if name == "safetensors":
        with opened_safetensors(path) as file:
            write = partial(torch_files.write_safetensors, metadata=file.metadata() or {})
    content = _mapping(whole[1] if name == "flax" else whole, lambda path: write(path, whole))
    return content._replace(endings=framework.endings + framework.reads)


def _torch_module(module: Any) -> Opened:
    """Opens a live module: GRUs are taken from its layers, and put into its state dict."""
    torch, grus = require_package("torch", "torch"), []
    program = isinstance(module, torch.jit.ScriptModule)
    require(not program, "source", "a module", "a TorchScript program", "Pass its state_dict().")
    state = module.state_dict()
    content = _mapping(state, lambda path: torch_files.write_torch(path, state))
    named = {gru.name: gru for gru in content.grus}
    for name, layer in module.named_modules(remove_duplicate=False):
        if not isinstance(layer, (torch.nn.GRU, torch.nn.GRUCell)):
            continue
        where = "torch.nn.GRU" if isinstance(layer, torch.nn.GRU) else "torch.nn.GRUCell"
        take = partial(from_torch, layer)
        if name in named:
            grus.append(dataclasses.replace(named[name], where=where, take=take))
            continue
        with suppress(InputError):  # a lazy layer without values; any other computes its weights when it is called
            put = partial(_nowhere, name)
            grus.append(record(name, where, *from_torch(layer, verify=False), take, put))
    return content._replace(grus=grus, endings=TORCH)


def _nowhere(name: str, *_: Any) -> None:
    raise InputError(name, "weights in the state dict", "a module that computes them", "Save the module with torch.")


def _mapping(tree: Any, write: Callable[[Path], object] | None) -> Opened:
    """Opens nested mappings of arrays or a state dict, alone or in a checkpoint; new weights are put into them.

    "opt_state" of a `TrainState` is skipped: its moments have the shapes of weights.
    """
    inner = unwrapped(tree) if all(isinstance(key, str) for key in tree) else tree
    tree = inner if has_gru(inner) else tree
    leaves: dict[Any, Any] = flatten_dict(_plain(tree))
    paths = {"/".join(map(str, path)): path for path, a in leaves.items() if "opt_state" not in path and _is_floats(a)}
    flat = {key: leaves[path] for key, path in paths.items()}
    flat = {key: np.asarray(a) if isinstance(a, jax.Array) else a for key, a in flat.items()}

    def put(key: str, a: NDArray) -> None:
        *owners, last = paths[key]
        node = tree
        for owner in owners:
            node = node[owner]
        node[last] = a if isinstance(flat[key], np.ndarray) else tensors({key: a})[key]

    return Opened(grus_in(arrays(flat), put), write)


def _is_floats(a: Any) -> bool:
    array = isinstance(a, np.ndarray | jax.Array) or type(a).__module__.split(".")[0] == "torch"
    dtype = str(getattr(a, "dtype", "")).removeprefix("torch.")
    whole = str(getattr(a, "layout", "torch.strided")) == "torch.strided" and not getattr(a, "is_meta", False)
    whole = whole and not hasattr(a, "materialize")  # a parameter of a lazy module that has not run
    return array and dtype in FLOATS and whole


def _plain(tree: Any) -> Any:
    """The tree with all mappings and lists as dicts; the keys of a list are its indices."""
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    return tree if pairs is None else {key: _plain(a) for key, a in pairs}


def _copied(tree: Any) -> Any:
    """A copy of the mappings and lists of a tree; its leaves are shared."""
    if isinstance(tree, Mapping):
        return {key: _copied(a) for key, a in tree.items()}
    return [_copied(a) for a in tree] if isinstance(tree, list) else tree
