"""The recurrence in C++, for CPU: the library, and whether it is there.

`call.h` says what the kernels are told; `simd.h`, `product.h`, `forward.h`, `tangent.h` and `backward.h` are the
kernels, compiled once for each instruction set by `isa.cpp`; `threads.h`, `share.h`, `scratch.h` and the calls share
the work out; `ffi.cpp` has the handlers that XLA calls. `build.py` compiles them.
"""

import ctypes
import functools
import os
from pathlib import Path

import jax

TARGETS = ("grujax_forward", "grujax_tangent", "grujax_backward")


@functools.cache
def library() -> ctypes.CDLL | str:
    """The shared library, its handlers registered with XLA; or why it cannot run.

    GRUJAX_NATIVE_LIBRARY names another library than the one that was built at install.
    """
    from grujax.kernels.native import build  # late, for `python -m` runs that file

    path = Path(os.environ.get("GRUJAX_NATIVE_LIBRARY") or build.LIBRARY)
    if not path.is_file():
        return f"the native kernel is not built: {build.missing() or f'there is no {path}'}"
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the native kernel cannot be loaded: {error}"
    if (why := build.unfit(loaded)) is not None:
        return f"the native kernel is not used: {why}"
    loaded.grujax_instruction_set.restype = ctypes.c_char_p
    if not loaded.grujax_instruction_set():
        return "GRUJAX_NATIVE_ISA names an instruction set that this library or this processor lacks"
    for target in TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(loaded, target)), platform="cpu")
    return loaded


def status() -> tuple[str | None, str]:
    """The instruction set that the native kernel runs with, and ""; or None, and why it cannot run.

    >>> found, why_not = status()
    >>> (found is None) == (why_not != "")
    True
    """
    found = library()
    return (None, found) if isinstance(found, str) else (found.grujax_instruction_set().decode(), "")
