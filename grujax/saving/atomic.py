"""Atomic writing of files: completely or not at all, even if two runs write at once or one is killed."""

import errno
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_open: set[str] = set()
"""Names of the temporary files that this process is writing. In a container, an earlier process may have had the same
process number, so the number in a name does not identify them."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`. It is renamed to `path` if the block succeeds, and removed if it raises.

    Temporary files of killed processes in that folder are removed first (`remove_left_over`). If `path` is a folder, an
    `OSError` is raised before anything is written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    remove_left_over(path.parent)
    number = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    name = f".{path.name[:32]}.{number}.tmp{''.join(path.suffixes[-2:])}"  # file systems limit the length of a name
    temporary = path.with_name(name)
    _open.add(name)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        _open.discard(name)


def remove_left_over(folder: Path) -> None:
    """Removes the temporary files that killed processes of this host left in `folder`.

    Files of running processes stay, and so do files of other hosts, whose processes are not visible.
    """
    pattern = re.compile(rf"\..+\.{re.escape(socket.gethostname())}-(\d{{1,9}})-[0-9a-f]{{8}}\.tmp(\..*)?")
    for path in folder.glob(".*.tmp*"):
        match = pattern.fullmatch(path.name)
        if match and path.name not in _open and not _runs(int(match[1])):
            with suppress(OSError):  # already removed, or owned by another user
                path.unlink()


def _runs(process: int) -> bool:
    """Whether another process has this number. On Windows always True, because the check would end the process."""
    if os.name == "nt":
        return True
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # other errors: the process belongs to another user
    return True
