"""Every GRU in a file or object, each to be taken out, and put back, alone; the rest is neither judged nor run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax import nnx
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from numpy.typing import NDArray

from grujax.errors import InputError, require
from grujax.interop import torch_files
from grujax.interop.containers import folder_tree
from grujax.interop.find_trees import in_tree
from grujax.interop.flax import load as read_msgpack
from grujax.interop.found import FoundGRU, record, set_array
from grujax.interop.torch_keys import KEY, effective, from_arrays, to_arrays, unwrapped
from grujax.interop.weight_layouts import DTYPES
from grujax.saving.atomic import replacing

OPTIONS = ("hidden_size", "num_layers", "bidirectional", "reverse", "bias", "reset_after", "update", "clip")
OPTIONS += ("activation", "gate_activation", "param_dtype")
"""What weights that are put back must agree in with those that were there."""


class Opened(NamedTuple):
    """A source: the GRUs in it, and how it is written once something was put into it; None where that cannot be."""

    grus: list[FoundGRU]
    write: Callable[[Path], None] | None


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
      source, format: as in `find`; of objects a state dict, a mapping of arrays or an `onnx.ModelProto`.
      tuned: by the names that `find` gives, (model, variables) of the same sizes and options.
      path: where to; the source's own path replaces it. Whole or not at all.

    Raises:
      InputError: a name that is not there, weights of other shapes or another dtype, a source that cannot be written.
    """
    found = opened(source, format)
    if found.write is None:
        remedy = "take it out, and put the weights back with the library that wrote it."
        raise InputError("source", "a file or object that can be written again", type(source).__name__, remedy)
    for name, (model, variables) in tuned.items():
        gru = _named(found, name)
        here, given = gru.take()[0], model
        same = all(getattr(here, key, None) == getattr(given, key, None) for key in OPTIONS)
        require(same and type(here) is type(given), name, f"a model like {_shown(here)}", _shown(given))
        gru.put(model, variables)
    with replacing(Path(path)) as temporary:
        found.write(temporary)


def _shown(model: nn.Module) -> str:
    return " ".join(repr(model).replace("# attributes", "").split())


def _named(found: Opened, name: str) -> FoundGRU:
    grus = {gru.name: gru for gru in found.grus}
    require(name in grus, "prefix", f"one of {list(grus)}", repr(name))
    return grus[name]


def opened(source: Any, format: str | None) -> Opened:
    """What a source is, and the GRUs in it."""
    if isinstance(source, str | Path):
        return _file(Path(source), format)
    kind = type(source)
    module = kind.__module__.split(".")[0]
    if any(f"{of.__module__}.{of.__name__}" == "torch.nn.modules.module.Module" for of in kind.__mro__):
        return _torch_module(source)
    if module in ("onnx", "onnx_ml_pb2") or kind.__name__ == "ModelProto":
        from grujax.interop.onnx_find import in_proto

        return in_proto(source)
    if any(of.__module__.split(".")[0] == "keras" for of in kind.__mro__):
        from grujax.interop.keras_find import in_layer

        return Opened(in_layer(source), None)
    if isinstance(source, nnx.Module | nnx.State):
        state = nnx.state(source) if isinstance(source, nnx.Module) else source
        source = nnx.to_pure_dict(state)
    served = "a path, a module, a mapping of arrays or a graph"
    require(isinstance(source, Mapping), "source", served, kind.__name__)
    inner = unwrapped(source) if all(isinstance(key, str) for key in source) else source
    if any(isinstance(key, str) and KEY.fullmatch(key) for key in inner):
        return _state_dict(dict(inner), lambda path, state: torch_files.write_torch(path, state))
    return Opened(in_tree(source), None)


def _file(path: Path, format: str | None) -> Opened:
    from grujax.interop.files import framework_of, readable

    if path.is_dir():
        return Opened(in_tree(folder_tree(path)), None)
    name = framework_of(path, format, reading=True).name
    readable(path)
    if name == "torch":
        whole = torch_files.TORCH.read(path)
        inner = unwrapped(whole)
        found = _state_dict(inner, lambda path, _: torch_files.write_torch(path, whole))
        return found if torch_files.SHARD.fullmatch(path.name) is None else found._replace(write=None)
    if name in ("safetensors", "numpy"):
        stored: torch_files.Stored = {"safetensors": torch_files.SAFETENSORS, "numpy": torch_files.NUMPY}[name].read(
            path
        )
        write = torch_files.write_safetensors if name == "safetensors" else torch_files.write_numpy
        flat = dict(stored.arrays)
        grus = _in_arrays(flat, "state dict")
        if not grus or torch_files.SHARD.fullmatch(path.name) is not None:
            return Opened(grus or in_tree(unflatten_dict(flat, sep="/")), None)
        return Opened(grus, lambda path: write(path, stored._replace(arrays=flat)))
    if name == "onnx":
        from grujax.interop.onnx_find import in_proto
        from grujax.interop.onnx_tensors import load as read_onnx

        return in_proto(read_onnx(path))
    if name in ("keras", "keras-weights"):
        from grujax.interop.keras_find import in_file

        return Opened(*in_file(path))
    if name == "flax":
        tree = read_msgpack(path)
        return Opened(in_tree(tree), lambda path: _write_msgpack(path, tree))
    raise InputError("path", "a file with GRUs of another framework", f"one of {name}", "grujax.load reads it.")


def _write_msgpack(path: Path, tree: dict) -> None:
    path.write_bytes(msgpack_serialize(tree))


def _torch_module(module: Any) -> Opened:
    from grujax.interop.torch import from_torch

    torch = torch_files.require_package("torch", "torch")
    served = (torch.nn.GRU, torch.nn.GRUCell)
    found = {name: of for name, of in module.named_modules() if isinstance(of, served)}
    state = module.state_dict()
    writable = _state_dict(state, torch_files.write_torch)
    puts = {gru.name: gru.put for gru in writable.grus}
    grus = []
    for name, of in found.items():
        model, variables = from_torch(of, verify=False)
        kind = f"torch.nn.{'GRUCell' if isinstance(of, torch.nn.GRUCell) else 'GRU'}"
        grus.append(record(name, kind, model, variables, lambda of=of: from_torch(of), puts.get(name, _no_place)))
    return Opened(grus, writable.write)


def _no_place(model: nn.Module, variables: Mapping) -> None:
    raise InputError("source", "weights as they are", "weights that something computes", "Remove weight_norm first.")


def _state_dict(state: Any, write: Callable[[Path, Any], None]) -> Opened:
    """torch's, tensors in place."""
    torch = torch_files.require_package("torch", "torch")
    kept = {key: a for key, a in state.items() if isinstance(key, str) and isinstance(a, torch.Tensor | np.ndarray)}
    kept = {key: a for key, a in kept.items() if isinstance(a, np.ndarray) or not a.is_meta}
    floats = {key: a for key, a in kept.items() if str(a.dtype).removeprefix("torch.") in DTYPES}
    flat = torch_files.arrays(floats)

    def back(key: str, a: NDArray) -> None:
        state[key] = a if isinstance(state[key], np.ndarray) else torch_files.tensors({key: a})[key]

    return Opened(_in_arrays(flat, "state dict", back), lambda path: write(path, state))


def _in_arrays(
    flat: dict[str, NDArray], where: str, back: Callable[[str, NDArray], None] | None = None
) -> list[FoundGRU]:
    """Under torch's keys."""
    grus, plain = [], effective({key: a for key, a in flat.items() if a.dtype.name in DTYPES})
    prefixes = dict.fromkeys(m["prefix"] for key in plain if (m := KEY.fullmatch(key)))
    for prefix in prefixes:
        name = prefix.removesuffix(".")

        def read(name: str = name) -> tuple[nn.Module, dict]:
            return from_arrays(plain, prefix=name)

        def put(model: nn.Module, variables: Mapping, prefix: str = prefix) -> None:
            for key, a in to_arrays(model, variables).items():
                set_array(flat, f"{prefix}{key}", a)
                if back is not None:
                    back(f"{prefix}{key}", a)

        try:
            grus.append(record(name, where, *read(), read, put))
        except InputError:  # an LSTM, or a part of one
            continue
    return grus
