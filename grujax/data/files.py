"""Reads files of sequences. Files are not trusted: nothing in them is unpickled, and what they declare is checked."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from grujax.data.checks import shown
from grujax.data.tables import Raw, check_size, read_csv, read_parquet
from grujax.errors import InputError, require, require_package

MAX_BYTES = 2**31
"""The default limit for the arrays of a file in bytes: a small .npz can unpack to any amount."""


def read(path: Path, max_bytes: int = MAX_BYTES) -> Raw:
    """Returns the arrays of a file. Raises InputError, with the name of the file, if it cannot be read.

    max_bytes: a larger file is refused before its values are read. The size is that of the file itself for `.ts` and
        `.csv`, and the one that its headers declare for the others, where a value counts as at least 4 bytes (the
        float32 that it becomes) in `.npz` and `.npy`, and at least 8 in `.parquet`.
    """
    try:
        require(path.suffix.lower() in _READERS, str(path), ENDINGS, path.suffix or "no ending")
        require(not path.is_dir(), str(path), "a file", "a folder")
        require(path.is_file(), str(path), "a file", "none at this path")
        return _READERS[path.suffix.lower()](path, max_bytes)
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise any exception of its reader
        raise InputError(str(path), f"a readable {path.suffix} file", f"{type(error).__name__}: {error}") from error


def _read_ts(path: Path, max_bytes: int) -> Raw:
    """Reads a `.ts` file with aeon, and refuses what aeon would misread."""
    reader = require_package("aeon.datasets", "data").load_from_ts_file
    check_size(path, path.stat().st_size, max_bytes)
    x, y, header = reader(str(path), return_meta_data=True)
    require(len(x) > 0, str(path), "a .ts file with sequences after @data", "none")
    # aeon's reader drops the signs, the exponents and all integers of values with time stamps
    require(not header["timestamps"], str(path), "@timeStamps false", "true", "Write the values without time stamps.")
    series = [case.T for case in x]  # aeon puts channels first
    if header["targetlabel"]:
        return Raw(series, y)
    if not header["classlabel"]:
        return Raw(series, None)
    known = header["class_values"]
    # without this line aeon reads the last channel as the class
    require(len(known) > 0, str(path), "a line @classLabel or @targetLabel", "neither")
    names = np.char.strip(np.char.lower(y))  # aeon lower-cases a file, then replaces every nan in it by NaN
    wrong = np.flatnonzero(~np.isin(names, known))
    if len(wrong):
        found = f"{names[wrong[0]].item()!r} in row {wrong[0]} of {path.name}"
        raise InputError("y", f"one of the labels that @classLabel declares, {shown(known)}", found)
    return Raw(series, names)


def _read_npz(path: Path, max_bytes: int) -> Raw:
    """Reads X, lengths, and y or y_NAME, after comparing the sizes of all arrays with `max_bytes`."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        keys = [member.filename.removesuffix(".npy") for member in members]
        require("X" in keys, str(path), "an array X", shown(keys))
        heads = {key.removeprefix("y_"): key for key in keys if key.startswith("y_")}
        known = {*keys} <= {"X", "y", "lengths", *heads.values()} and len(set(keys)) == len(keys) and "" not in heads
        require(known, str(path), "only the arrays X, lengths, and y or y_NAME for several heads", shown(keys))
        require("y" not in keys or not heads, str(path), "either y, or y_NAME for several heads", shown(keys))
        needed = 0
        for member in members:
            with archive.open(member) as file:
                needed += _declared(file, member, path)
        check_size(path, needed, max_bytes)
        for key, member in zip(keys, members, strict=True):
            with archive.open(member) as file:
                arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
    y = {name: arrays[key] for name, key in heads.items()} or arrays.get("y")
    return Raw(arrays["X"], y, arrays.get("lengths"))


def _declared(file: IO[bytes], member: zipfile.ZipInfo, path: Path) -> int:
    """Returns the size of an array in bytes by its header, at least 4 per value.

    Refuses pickled objects, and a shape that does not match the size of the member, before NumPy allocates the array.
    """
    format = np.lib.format
    version = format.read_magic(file)
    read = format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0
    shape, _, dtype = read(file)
    require(not dtype.hasobject, f"{member.filename} in {path}", "plain numbers or strings", "pickled objects")
    declared, actual = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    require(declared == actual, f"{member.filename} in {path}", f"{declared} bytes for shape {shape}", actual)
    return math.prod(shape) * max(dtype.itemsize, 4)


def _read_npy(path: Path, max_bytes: int) -> Raw:
    """Reads an array X without labels."""
    x = np.load(path, mmap_mode="r", allow_pickle=False)  # NumPy compares the header with the size of the file
    check_size(path, x.size * max(x.itemsize, 4), max_bytes)
    return Raw(np.array(x), None)


_READERS = {".csv": read_csv, ".npy": _read_npy, ".npz": _read_npz, ".parquet": read_parquet, ".ts": _read_ts}
ENDINGS = f"a file ending in {', '.join([*_READERS][:-1])} or {[*_READERS][-1]}"
