"""Every GRU in a file or object, each to be taken out, and put back, alone; the rest is neither judged nor run."""

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
"""What finds GRUs in files and objects that are not trees of arrays."""
TORCH = (*torch_files.TORCH.endings, *torch_files.TORCH.reads)
"""Endings of a state dict."""


def find(source: Any, format: str | None = None) -> list[FoundGRU]:
    """Every GRU in a model, whatever else it is made of.

    Args:
      source: a file of any format that `load` reads, a folder of orbax; a module of torch or a state dict, a layer or
        model of Keras, an `onnx.ModelProto`, a tree of Flax or Haiku, a mapping of NumPy arrays.
      format: of a file, as in `load`.

    Raises:
      InputError: no such file, or one that is not whole.

    >>> import torch
    >>> module = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4, 2), "out": torch.nn.Conv1d(4, 2, 3)})
    >>> [(gru.name, gru.hidden_size, gru.num_layers, gru.where) for gru in find(module)]
    [('encoder', 4, 2, 'torch.nn.GRU')]
    """
    return opened(source, format).grus


def take(source: Any, prefix: str, format: str | None = None) -> tuple[nn.Module, dict]:
    """(model, variables) of the GRU of that name; `InputError` where there is none."""
    return _named(opened(source, format), prefix).take()


def replace(
    source: Any, tuned: Mapping[str, tuple[nn.Module, Mapping]], path: str | Path, format: str | None = None
) -> None:
    """Writes a source again with other weights in its GRUs, under the names they have there; all else stays as it is.

    Args:
      source, format: as in `find`; of objects a state dict or module of torch, a mapping of arrays, a model of Keras or
        an `onnx.ModelProto`.
      tuned: by the names that `find` gives, (model, variables) of the same sizes and options.
      path: where to; the source's own path replaces it. Whole or not at all. Shards become one file, of another name; a
        folder of orbax goes where nothing is.

    Raises:
      InputError: a name that is not there, weights of other shapes or another dtype, a source that cannot be written.
    """
    found, path = opened(source, format), Path(path)
    if found.write is None:
        remedy = "take it out, and put the weights back with the library that wrote it."
        raise InputError("source", "a file or object that can be written again", type(source).__name__, remedy)
    known = [ending for of in files.FORMATS.values() for ending in (*of.endings, *of.reads)]
    kept = path.name.endswith(found.endings or path.name) or not path.name.endswith(tuple(known))
    require(kept, "path", f"a name that ends in {found.endings}", repr(path.name), "The format stays as it is.")
    shard = torch_files.SHARD.fullmatch(path.name)
    require(shard is None, "path", "the name of a whole file", repr(path.name), "Shards are written as one.")
    pairs = isinstance(tuned, Mapping) and all(isinstance(of, tuple) and len(of) == 2 for of in tuned.values())
    require(pairs, "tuned", "(model, variables) by the name of each GRU", tuned)
    for name, (model, variables) in tuned.items():
        gru = _named(found, name)
        here, given = gru.take()[0], model
        computes = [field.name for field in own_fields(type(here)) if field.name not in (*FREE, *TRAINING)]
        same = type(here) is type(given) and all(getattr(here, key) == getattr(given, key) for key in computes)
        require(same, name or "tuned", f"a model like {_shown(here)}", _shown(given))
        gru.put(model, variables)
    if found.folder:
        require(not path.exists(), "path", "a folder that is not there yet", str(path))
        found.write(path)
        return
    with replacing(path) as temporary:
        found.write(temporary)


def _shown(model: nn.Module) -> str:
    return " ".join(repr(model).replace("# attributes", "").split())


def _named(found: Opened, name: str) -> FoundGRU:
    grus = {gru.name: gru for gru in found.grus}
    require_one_of(name, grus, "prefix")
    return grus[name]


def opened(source: Any, format: str | None) -> Opened:
    """What a source is, and the GRUs in it, each by a name of its own: a second "gru" is "gru#1"."""
    named = {}
    if isinstance(source, str | Path):
        found = _file(Path(source), format)
        found = found._replace(endings=(*found.endings, Path(source).suffix))
    else:
        require(format is None, "format", "none, which files alone have", repr(format), "Leave it out.")
        found = _object(source)
    for gru in found.grus:
        numbered = (f"{gru.name}#{number}" if number else gru.name for number in count())
        name = next(name for name in numbered if name not in named)
        named[name] = dataclasses.replace(gru, name=name)
    return found._replace(grus=[*named.values()])


def _object(source: Any) -> Opened:
    names = [of.name for of in files.FORMATS.values() if of.recognises(source)]
    if names:  # with torch as its backend, a layer of Keras is a module of torch too
        return FINDERS[names[-1]].in_object(source) if names[-1] in FINDERS else _torch_module(source)
    if isinstance(source, nnx.Module | nnx.State):
        source = nnx.to_pure_dict(nnx.state(source) if isinstance(source, nnx.Module) else source)
    served = "a path, a module, a mapping of arrays or a graph"
    require(isinstance(source, Mapping), "source", served, type(source).__name__)
    inner = unwrapped(source) if all(isinstance(key, str) for key in source) else source
    if has_gru(inner):
        of_numpy = any(isinstance(a, np.ndarray) for a in inner.values())
        whole, framework = _copied(source), torch_files.NUMPY if of_numpy else torch_files.TORCH
        found = _mapping(whole, lambda path: framework.write(path, whole))
        return found._replace(endings=(*framework.endings, *framework.reads))
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
        raise InputError("path", "a file with GRUs of another framework", f"one of {name}", "grujax.load reads it.")
    whole, write = framework.load(path), framework.write
    if name == "safetensors":
        with opened_safetensors(path) as file:
            write = partial(torch_files.write_safetensors, metadata=file.metadata() or {})
    found = _mapping(whole[1] if name == "flax" else whole, lambda path: write(path, whole))
    return found._replace(endings=(*framework.endings, *framework.reads))


def _torch_module(module: Any) -> Opened:
    """Of a live module: each taken as the live layer that it is, and put into the state dict."""
    torch, grus = require_package("torch", "torch"), []
    program = isinstance(module, torch.jit.ScriptModule)
    require(not program, "source", "a module", "a TorchScript program", "Pass its state_dict().")
    state = module.state_dict()
    found = _mapping(state, lambda path: torch_files.write_torch(path, state))
    named = {gru.name: gru for gru in found.grus}
    for name, of in module.named_modules(remove_duplicate=False):
        if not isinstance(of, (torch.nn.GRU, torch.nn.GRUCell)):
            continue
        where = "torch.nn.GRU" if isinstance(of, torch.nn.GRU) else "torch.nn.GRUCell"
        take = partial(from_torch, of)
        if name in named:
            grus.append(dataclasses.replace(named[name], where=where, take=take))
            continue
        with suppress(InputError):  # one without values; of others the module computes weights as it runs
            put = partial(_nowhere, name)
            grus.append(record(name, where, *from_torch(of, verify=False), take, put))
    return found._replace(grus=grus, endings=TORCH)


def _nowhere(name: str, *_: Any) -> None:
    raise InputError(name, "weights in the state dict", "a module that computes them", "Save the module by torch.")


def _mapping(tree: Any, write: Callable[[Path], object] | None) -> Opened:
    """Of nested mappings of arrays, or of a state dict, alone or in a checkpoint; what is put goes into them.

    The moments of a `TrainState`'s optimizer have the shapes of weights, and are none.
    """
    inner = unwrapped(tree) if all(isinstance(key, str) for key in tree) else tree
    tree = inner if has_gru(inner) else tree
    leaves: dict[Any, Any] = flatten_dict(_plain(tree))
    paths = {"/".join(map(str, path)): path for path, a in leaves.items() if "opt_state" not in path and _is_floats(a)}
    given = {key: leaves[path] for key, path in paths.items()}
    given = {key: np.asarray(a) if isinstance(a, jax.Array) else a for key, a in given.items()}

    def back(key: str, a: NDArray) -> None:
        *owners, last = paths[key]
        node = tree
        for owner in owners:
            node = node[owner]
        node[last] = a if isinstance(given[key], np.ndarray) else tensors({key: a})[key]

    return Opened(grus_in(arrays(given), back), write)


def _is_floats(a: Any) -> bool:
    array = isinstance(a, np.ndarray | jax.Array) or type(a).__module__.split(".")[0] == "torch"
    dtype = str(getattr(a, "dtype", "")).removeprefix("torch.")
    whole = str(getattr(a, "layout", "torch.strided")) == "torch.strided" and not getattr(a, "is_meta", False)
    whole = whole and not hasattr(a, "materialize")  # of a lazy module that has not run
    return array and dtype in FLOATS and whole


def _plain(tree: Any) -> Any:
    """Mappings as dicts, whatever class they have, and lists too, by numbers."""
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    return tree if pairs is None else {key: _plain(a) for key, a in pairs}


def _copied(tree: Any) -> Any:
    """Mappings and lists anew, what is in them as it is."""
    if isinstance(tree, Mapping):
        return {key: _copied(a) for key, a in tree.items()}
    return [_copied(a) for a in tree] if isinstance(tree, list) else tree
