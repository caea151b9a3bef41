"""Reads and writes state dicts in torch's own files, safetensors and NumPy's .npz; the first two also in shards.

torch's files are read with `weights_only=True`, so that no pickle in them is run. Safetensors files have torch's keys
and the metadata `format: pt`; grujax's own model files are safetensors too, with the metadata key `grujax`.
"""

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grujax.core.dialects import QUANTISED
from grujax.errors import InputError, require, require_package
from grujax.interop.framework import check_archive
from grujax.interop.torch import STATE
from grujax.interop.torch_keys import to_arrays, unwrapped
from grujax.saving.model_file import opened

SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-\d{5}(?P<ending>\.[a-z]+)")
LARGEST_INDEX = 16 << 20
"""The most bytes of an index that is read."""
MEMBERS = {
    "constants.pkl": ("a TorchScript program", "Save the state_dict() of torch.jit.load(path), a state dict."),
    "archive_format": ("a program of torch.export", "Save ExportedProgram.state_dict with torch.save."),
}
"""Zip files of torch that are not state dicts: the member that such a file has, what it is, and the remedy."""


def read_torch(path: Path) -> Mapping:
    """Reads a file of `torch.save`: a state dict, or a checkpoint that contains one."""
    torch = require_package("torch", "torch")
    remedy = "Save module.state_dict(), or pass the module itself to from_torch."
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
            with zipfile.ZipFile(path) as archive:
                names = {Path(name).name for name in archive.namelist()}
            for member, (what, instead) in MEMBERS.items():
                require(member not in names, "path", "a state dict", what, instead)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warning on how it stores tensors
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError("path", "only tensors", "other pickled objects, or another kind of file", remedy) from error
    except Exception as error:  # torch has no class of errors for files that are not its own
        raise InputError("path", "a file that torch.save wrote", type(error).__name__) from error
    require(isinstance(state, Mapping), "path", "a state dict", type(state).__name__, remedy)
    return state


def read_safetensors(path: Path) -> dict[str, NDArray]:
    with opened(path) as file:
        remedy = "This is a grujax model file: read it with grujax.load, or with format='grujax'."
        own = "grujax" in (file.metadata() or {})
        require(not own, "path", "a file with torch's keys", "the metadata key 'grujax'", remedy)
        dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118, not a dict
        for key, dtype in dtypes.items():  # NumPy has no float8
            require(not dtype.startswith("F8"), key, "floats of 16 bits or more", dtype, QUANTISED)
        return {key: file.get_tensor(key) for key in dtypes}


def read_numpy(path: Path) -> dict[str, NDArray]:
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file}
    except InputError:
        raise
    except Exception as error:  # zipfile's, NumPy's
        raise InputError("path", "a whole .npz file of arrays", f"{type(error).__name__}: {error}") from error


def joined(path: Path, read: Callable[[Path], Mapping]) -> Mapping:
    """Reads a file or, given one shard, all shards that its index names."""
    match = SHARD.fullmatch(path.name)
    if match is None:
        return read(path)
    index, whole = path.with_name(f"{match['stem']}{match['ending']}.index.json"), {}
    remedy = "Keep all shards and their index in one folder."
    require(index.is_file(), "path", "a whole model", f"one shard of several, without {index.name}", remedy)
    size = index.stat().st_size
    require(size <= LARGEST_INDEX, "path", f"an index of at most {LARGEST_INDEX} bytes", f"{size} in {index.name}")
    try:
        where = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = sorted(set(where.values()))
        beside = all(SHARD.fullmatch(name) and Path(name).name == name for name in files)
    except Exception as error:  # JSON of any other form
        raise InputError("path", "an index of shards", f"{type(error).__name__} in {index.name}", remedy) from error
    require(beside, "path", "shards in the folder of their index", f"{files}"[:200], remedy)
    for name in files:
        require(path.with_name(name).is_file(), "path", f"the shard {name}", "no such file", remedy)
        whole |= unwrapped(read(path.with_name(name)))
    missing = sorted(where.keys() ^ whole.keys())
    require(not missing, "path", "the tensors that the index names", f"missing or extra ones: {missing[:5]}")
    return whole


def write_torch(path: Path, state: Mapping) -> None:
    file = io.BytesIO()  # when the disk is full, torch's own writer only says "iostream error"
    require_package("torch", "torch").save(dict(state), file)
    path.write_bytes(file.getbuffer())


def write_safetensors(path: Path, arrays: Mapping, metadata: Mapping[str, str] | None = None) -> None:
    """metadata: by default torch's."""
    import safetensors.numpy

    contiguous = {key: np.ascontiguousarray(a) for key, a in arrays.items()}
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    path.write_bytes(safetensors.numpy.save(contiguous, metadata or None))


def write_numpy(path: Path, arrays: Mapping) -> None:
    for key, a in arrays.items():
        own = isinstance(a, np.ndarray) and a.dtype.kind in "fiubcUSmM"
        require(own, key, "an array of one of NumPy's own dtypes", getattr(a, "dtype", type(a)), "Write safetensors.")
    with path.open("wb") as file:
        np.savez(file, **arrays)


TORCH = STATE._replace(
    load=lambda path: joined(path, read_torch),
    write=write_torch,
    endings=(".pt", ".pth"),
    reads=(".ckpt", ".bin", ".pt2"),
)
SAFETENSORS = STATE._replace(
    name="safetensors",
    build=to_arrays,
    load=lambda path: joined(path, read_safetensors),
    write=write_safetensors,
    endings=(".safetensors",),
)
NUMPY = SAFETENSORS._replace(name="numpy", load=read_numpy, write=write_numpy, endings=(".npz",))
