"""What a framework is here: one record for all of them, by which files are read, written and run."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from grujax.errors import require
from grujax.interop.prove import Runner

LARGEST_RATIO, SMALL = 20, 1 << 20
"""A member of an archive may be so many times as large as the file; and in any case so many bytes."""


class Framework(NamedTuple):
    """A framework's files. `read` gives what stands in one, in the framework's own form; `ours` turns that into (model,
    variables), `build` makes it of them, `write` writes it, and `run` is the framework itself at work on it.

    endings: of its files; reads: of files that are read and not written. keeps_statistics: what standardises inputs and
    targets stands in the file too. assumes: a file of it does not tell what a head reads.
    """

    name: str
    endings: tuple[str, ...]
    read: Callable[[Path], Any]
    ours: Callable[..., tuple[nn.Module, dict]]
    build: Callable[[nn.Module, Mapping], Any]
    write: Callable[[Path, Any], None]
    run: Callable[[Any, nn.Module], Runner]
    reads: tuple[str, ...] = ()
    keeps_statistics: bool = False
    assumes: bool = False


def check_archive(path: Path) -> None:
    """Raises `InputError` unless each member of a zip file is whole, stays in its folder and unfolds to no bomb."""
    with zipfile.ZipFile(path) as archive:
        size = path.stat().st_size
        for member in archive.infolist():
            outside = Path(member.filename).is_absolute() or ".." in Path(member.filename).parts
            require(not outside, "path", "members that stay in their folder", repr(member.filename))
            unfolds = member.file_size > max(LARGEST_RATIO * size, SMALL)
            require(not unfolds, "path", "a file that unfolds to its own size", f"{member.file_size} bytes in {size}")
        broken = archive.testzip()
        require(broken is None, "path", "a whole file", f"{broken!r} with a wrong checksum")
