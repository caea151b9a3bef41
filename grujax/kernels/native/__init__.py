"""Loads the native kernel, the recurrence in C++ for CPUs, and reports whether it can run.

`call.h` declares the data of a call; `simd.h`, `product.h`, `forward.h`, `tangent.h` and `backward.h` are the kernels,
which `isa.cpp` compiles once for each instruction set; `threads.h`, `share.h`, `scratch.h` and the `*_call.h` files
divide the work among threads; `ffi.cpp` has the handlers that XLA calls. `build.py` compiles all of it.
"""

import ctypes
import functools
import os
from pathlib import Path

import jax

TARGETS = ("grujax_forward", "grujax_tangent", "grujax_backward")


@functools.cache
def library() -> ctypes.CDLL | str:
    """Loads the shared library and registers its handlers with XLA; returns the reason as text if it cannot run.

    The environment variable GRUJAX_NATIVE_LIBRARY replaces the library that was built at install by another.
    """
    from grujax.kernels.native import build  # late, because `python -m` runs that file

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
    """Returns the instruction set of the native kernel and "", or None and the reason why the kernel cannot run.

    >>> instruction_set, reason = status()
    >>> (instruction_set is None) == (reason != "")
    True
    """
    loaded = library()
    return (None, loaded) if isinstance(loaded, str) else (loaded.grujax_instruction_set().decode(), "")
