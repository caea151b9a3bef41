"""Files written whole or not at all, even where two runs write at once or one is killed."""

import errno
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_open: set[str] = set()
"""Names of the temporary files that this process writes now: another one may have its number, in a container."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to `path` when the block ends well, removed when it raises.

    Files that a killed process left in that folder are removed first (`remove_left_over`). A folder at `path` is an
    `OSError` before anything is written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    remove_left_over(path.parent)
    number = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    name = f".{path.name[:32]}.{number}.tmp{''.join(path.suffixes[-2:])}"  # short: a system limits the length
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
    """Removes the temporary files that processes of this host left in `folder` when they were killed.

    Those of a running process stay, and so do those of another host, whose processes cannot be seen from here.
    """
    ours = re.compile(rf"\..+\.{re.escape(socket.gethostname())}-(\d{{1,9}})-[0-9a-f]{{8}}\.tmp(\..*)?")
    for path in folder.glob(".*.tmp*"):
        found = ours.fullmatch(path.name)
        if found and path.name not in _open and not _runs(int(found[1])):
            with suppress(OSError):  # gone, or another user's
                path.unlink()


def _runs(process: int) -> bool:
    """Whether another process of that number runs; on Windows, where asking would end it, always."""
    if os.name == "nt":
        return True
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # else it is another user's
    return True
