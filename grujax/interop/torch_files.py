"""Files of a state dict: torch's own, safetensors and NumPy's, each also in shards that an index names.

Torch's are read with `weights_only=True`: no pickle in them is run. Safetensors keep torch's keys and the metadata
`format: pt`; grujax's own model files are safetensors too, which their metadata key `grujax` tells.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require, require_package
from grujax.interop.framework import Framework, check_archive
from grujax.interop.torch import arrays, from_torch, runner, tensors, to_torch
from grujax.interop.torch_keys import from_arrays, to_arrays, unwrapped
from grujax.interop.weight_layouts import QUANTISED
from grujax.saving.model_file import opened

SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-\d{5}(?P<ending>\.[a-z]+)")
LARGEST_INDEX = 16 << 20
"""Bytes of an index that is still read."""
MEMBERS = {
    "constants.pkl": (
        "a TorchScript program",
        "torch.save(torch.jit.load(path).state_dict(), ...) makes a state dict.",
    ),
    "archive_format": ("a program of torch.export", "Save ExportedProgram.state_dict with torch.save."),
}
"""What zip files of torch hold that are no state dict, by a member's name."""


class Stored(NamedTuple):
    """What the file holds."""

    arrays: dict[str, NDArray]
    metadata: Mapping[str, str] = MappingProxyType({})


def read_torch(path: Path) -> Mapping:
    """What `torch.save` wrote: a state dict, or a checkpoint with one in it."""
    torch = require_package("torch", "torch")
    remedy = "Save module.state_dict(), or call from_torch on the module where its class is at hand."
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
            with zipfile.ZipFile(path) as archive:
                names = {Path(name).name for name in archive.namelist()}
            for member, (what, instead) in MEMBERS.items():
                require(member not in names, "path", "a state dict", what, instead)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on how it stores tensors
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError("path", "tensors alone", "other pickled objects", remedy) from error
    except Exception as error:  # torch has no class of errors for what is no file of its own
        raise InputError("path", "a file that torch.save wrote", type(error).__name__) from error
    require(isinstance(state, Mapping), "path", "a state dict", type(state).__name__, remedy)
    return state


def read_safetensors(path: Path) -> Stored:
    with opened(path) as file:
        metadata = file.metadata() or {}
        own = "This is a grujax model file: grujax.load reads it, as does format='grujax'."
        require("grujax" not in metadata, "path", "torch's key names", "the metadata key 'grujax'", own)
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118, not a dict
        for key, kind in kinds.items():  # NumPy has no such numbers
            require(not kind.startswith("F8"), key, "floats of 16 bits or more", kind, QUANTISED)
        return Stored({key: file.get_tensor(key) for key in kinds}, metadata)


def read_numpy(path: Path) -> Stored:
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            return Stored({key: file[key] for key in file})
    except InputError:
        raise
    except Exception as error:  # zipfile's, NumPy's
        raise InputError("path", "a whole .npz file of arrays", type(error).__name__) from error


def joined(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` gives of a file; of a shard that of all shards that its index names, an `InputError` without one.

    Raises:
      InputError: an index that names files elsewhere, or tensors that are not there.
    """
    match = SHARD.fullmatch(path.name)
    if match is None:
        return read(path)
    index = path.with_name(f"{match['stem']}{match['ending']}.index.json")
    remedy = "Convert all shards together, their index beside them."
    require(index.is_file(), "path", "a whole model", f"one shard of several, without {index.name}", remedy)
    size = index.stat().st_size
    require(size <= LARGEST_INDEX, "path", f"an index of {LARGEST_INDEX} bytes at most", f"{size} in {index.name}")
    try:
        where = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = sorted(set(where.values()))
        beside = all(SHARD.fullmatch(name) and Path(name).name == name for name in files)
    except Exception as error:  # JSON of any other form
        raise InputError("path", "an index of shards", f"{type(error).__name__} in {index.name}") from error
    require(beside, "path", "shards beside their index", f"{files} in {index.name}")
    whole: dict[str, Any] = {}
    for name in files:
        require(path.with_name(name).is_file(), "path", f"the shard {name}", "no such file", remedy)
        part = read(path.with_name(name))
        whole |= part.arrays if isinstance(part, Stored) else unwrapped(part)
    missing = sorted(where.keys() ^ whole.keys())
    require(not missing, "path", "the tensors that the index names", f"others: {missing[:5]}")
    return Stored(whole) if match["ending"] == ".safetensors" else whole


def from_stored(stored: Stored, **options: Any) -> tuple[nn.Module, dict]:
    """The model and variables of arrays under torch's keys; see `grujax.interop.torch.from_torch`."""
    return from_arrays(dict(unwrapped(stored.arrays)), **options)


def _stored(model: nn.Module, variables: Mapping) -> Stored:
    return Stored(to_arrays(model, variables), {"format": "pt"})


def _run(stored: Stored, model: nn.Module) -> Any:
    return runner(tensors(stored.arrays), model)


def write_torch(path: Path, state: Mapping) -> None:
    require_package("torch", "torch").save(dict(state), path)


def write_safetensors(path: Path, stored: Stored) -> None:
    import safetensors.numpy

    found = {key: np.ascontiguousarray(a) for key, a in stored.arrays.items()}
    path.write_bytes(safetensors.numpy.save(found, dict(stored.metadata) or None))


def write_numpy(path: Path, stored: Stored) -> None:
    for key, a in stored.arrays.items():
        require(a.dtype.kind in "fiub", key, "a dtype of NumPy's own", str(a.dtype), "Write safetensors.")
    with path.open("wb") as file:
        np.savez(file, **stored.arrays)  # pyright: ignore[reportArgumentType], its own options have other names


TORCH = Framework(
    "torch",
    (".pt", ".pth"),
    lambda path: joined(path, read_torch),
    from_torch,
    to_torch,
    write_torch,
    lambda state, model: runner(tensors(arrays(unwrapped(state))), model),
    (".ckpt", ".bin", ".pt2"),
    assumes=True,
)
SAFETENSORS = Framework(
    "safetensors",
    (".safetensors",),
    lambda path: joined(path, read_safetensors),
    from_stored,
    _stored,
    write_safetensors,
    _run,
    assumes=True,
)
NUMPY = Framework("numpy", (".npz",), read_numpy, from_stored, _stored, write_numpy, _run, assumes=True)
