"""What a framework is here: one record for all, by which objects and files are read, written, run and proved."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from grujax.errors import InputError, require
from grujax.interop.prove import Runner, coarser, require_agreement

LARGEST_RATIO, SMALL = 20, 1 << 20
"""A member of an archive may be so many times as large as the file; and in any case so many bytes."""


def _no_file(*_: Any) -> Any:
    raise InputError("path", "a framework with files", "one without")


class Framework(NamedTuple):
    """A framework, and what it calls a model: a module, layers, parameters or a program.

    read: of what is its own makes (model, variables), `build` the other way round; `run` is the framework itself at
    work. argument: as errors call what is read. live: whether it is run unasked, which shows that nothing was missed.
    load, write: from and to a file. endings: of its files; reads: of files that are read and not written.
    classes: of its modules, models or graphs, as package.name or package. keeps_statistics: what standardises inputs
    and targets stands in the file too. assumes: a file of it does not tell what a head reads. proved: whether it was
    run as it was read.
    """

    name: str
    read: Callable[..., tuple[nn.Module, dict]]
    build: Callable[..., Any]
    run: Callable[[Any, nn.Module], Runner]
    argument: str = "source"
    live: Callable[[Any], bool] = lambda theirs: False
    classes: str = ""
    load: Callable[[Path], Any] = _no_file
    write: Callable[[Path, Any], object] = _no_file
    endings: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    keeps_statistics: bool = False
    assumes: bool = False
    proved: Callable[[Any], bool] = lambda theirs: False

    def ours(self, theirs: Any, verify: bool | None, **options: Any) -> tuple[nn.Module, dict]:
        """The model and variables of what is theirs; verify: None runs what is live, in 32 bits or more."""
        model, variables = self.read(theirs, **options)
        wide = jnp.finfo(coarser(model)).bits >= 32
        if (verify or (verify is None and wide and self.live(theirs))) and not self.proved(theirs):
            require_agreement(model, variables, self.run(theirs, model), self.argument)
        return model, variables

    def theirs(self, model: nn.Module, variables: Mapping, verify: bool, **options: Any) -> Any:
        """The other way round."""
        made = self.build(model, variables, **options)
        if verify:
            require_agreement(model, variables, self.run(made, model), "model")
        return made

    def recognises(self, theirs: Any) -> bool:
        """Whether an object has a class of these, told without importing the package."""
        package, _, name = self.classes.partition(".")
        found = [(of.__module__.partition(".")[0], of.__name__) for of in type(theirs).__mro__]
        return bool(package) and any(module.startswith(package) and name in ("", kind) for module, kind in found)


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
