"""The native kernel for CPU, in C++: whether it is there."""

import os
from ctypes import CDLL, c_char_p
from pathlib import Path


def status() -> tuple[str | None, str]:
    """The instruction set that the native kernel runs with, and ""; or None, and why it cannot run.

    GRUJAX_NATIVE_LIBRARY names another library than the one that was built at install.

    >>> found, why_not = status()
    >>> (found is None) == (why_not != "")
    True
    """
    from grujax.kernels.native import build  # late, for `python -m` runs that file

    path = Path(os.environ.get("GRUJAX_NATIVE_LIBRARY") or build.LIBRARY)
    if not path.is_file():
        return None, build.missing() or f"there is no {path}"
    try:
        library = CDLL(str(path))
    except OSError as error:
        return None, f"it cannot be loaded: {error}"
    if (why := build.unfit(library)) is not None:
        return None, why
    library.gru_instruction_set.restype = c_char_p
    return library.gru_instruction_set().decode(), ""
