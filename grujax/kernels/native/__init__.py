"""The recurrence in C++, for CPU: the library, and whether it is there.

`call.h` names what the kernels are told; `simd.h`, `product.h`, `forward.h` and `backward.h` are the kernels, compiled
once for each instruction set; `threads.h`, `share.h`, `scratch.h` and the two calls share the work out; `ffi.cpp` has
the handlers that XLA calls. `build.py` compiles them.
"""

import ctypes
import functools
import os
from pathlib import Path

import jax

TARGETS = ("grujax_forward", "grujax_backward")


@functools.cache
def library() -> ctypes.CDLL | str:
    """The shared library, its handlers registered with XLA; or why it is not there."""
    named = os.environ.get("GRUJAX_NATIVE_LIBRARY")
    path = Path(named) if named else Path(__file__).with_name("_gru.so")
    if not path.exists():
        return f"the native kernel is not built ({path} does not exist)"
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the native kernel cannot be loaded: {error}"
    loaded.grujax_instruction_set.restype = ctypes.c_char_p
    for target in TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(loaded, target)), platform="cpu")
    return loaded


def status() -> tuple[str | None, str]:
    """The instruction set that runs, and ""; or None, and why there is none."""
    found = library()
    if isinstance(found, str):
        return None, found
    name = found.grujax_instruction_set().decode()
    return (name, "") if name else (None, "GRUJAX_NATIVE_ISA names an instruction set that this machine lacks")
