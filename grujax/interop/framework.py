"""`Framework`: how the objects and files of another framework are read, written, run and verified."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from grujax.errors import InputError, require
from grujax.interop.prove import Runner, coarser, require_agreement

LARGEST_RATIO, SMALL = 20, 1 << 20
"""A member of an archive may unpack to this multiple of the file's size, or to this many bytes if that is more."""


def _no_file(*_: Any) -> Any:
    raise InputError("path", "a framework with files", "one without")


class Framework(NamedTuple):
    """A framework and the functions that convert its objects: modules, layers, parameters or programs.

    Attributes:
      read: turns an object into (model, variables); `build` is the inverse.
      run: makes a `Runner` of an object, which runs the framework itself.
      argument: the name of the object in errors.
      live: whether an object is also run by default, to make sure that nothing was missed.
      load, write: read an object from a file, and write it to one.
      endings: of its files. reads: of files that are only read, never written.
      classes: of its modules, models or graphs, as "package.name" or "package".
      keeps_statistics: its files contain the statistics that standardise inputs and targets.
      assumes: its files do not contain what a head reads.
      proved: whether `read` has already run the object.
    """

    name: str
    read: Callable[..., tuple[nn.Module, dict]]
    build: Callable[..., Any]
    run: Callable[[Any, nn.Module], Runner]
    argument: str = "source"
    live: Callable[[Any], bool] = lambda source: False
    classes: str = ""
    load: Callable[[Path], Any] = _no_file
    write: Callable[[Path, Any], object] = _no_file
    endings: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    keeps_statistics: bool = False
    assumes: bool = False
    proved: Callable[[Any], bool] = lambda source: False

    def imported(self, source: Any, verify: bool | None, **options: Any) -> tuple[nn.Module, dict]:
        """Reads (model, variables). verify: run both sides; None does so for live objects with 32 bits or more."""
        model, variables = self.read(source, **options)
        wide = jnp.finfo(coarser(model)).bits >= 32
        if (verify or (verify is None and wide and self.live(source))) and not self.proved(source):
            require_agreement(model, variables, self.run(source, model), self.argument)
        return model, variables

    def exported(self, model: nn.Module, variables: Mapping, verify: bool, **options: Any) -> Any:
        """Builds the framework's object. verify: run both sides."""
        target = self.build(model, variables, **options)
        if verify:
            require_agreement(model, variables, self.run(target, model), "model")
        return target

    def recognises(self, source: Any) -> bool:
        """Whether an object belongs to one of `classes`, without importing the package."""
        package, _, name = self.classes.partition(".")
        bases = [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(source).__mro__]
        return bool(package) and any(module.startswith(package) and name in ("", kind) for module, kind in bases)


def check_archive(path: Path) -> None:
    """Raises `InputError` if a zip file has a damaged member, one outside its folder, or one that unpacks too large."""
    with zipfile.ZipFile(path) as archive:
        size = path.stat().st_size
        for member in archive.infolist():
            outside = Path(member.filename).is_absolute() or ".." in Path(member.filename).parts
            require(not outside, "path", "members inside their folder", repr(member.filename))
            most = max(LARGEST_RATIO * size, SMALL)
            large, found = member.file_size > most, f"{member.filename!r} with {member.file_size} bytes"
            require(not large, "path", f"members of at most {most} bytes", found)
        broken = archive.testzip()
        require(broken is None, "path", "an undamaged file", f"{broken!r} with a wrong checksum")
