"""Compiles the native kernel into one shared library: `python -m grujax.kernels.native.build [TARGET]`.

The build hook of the wheel also runs this file, at a point where the rest of grujax cannot be imported. The environment
variable CXX selects another compiler, and CXXFLAGS adds compiler options.
"""

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, c_char, c_int
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
LIBRARY = HERE / "_gru.so"  # the same name on every platform, because it is loaded by its full path
COMMAND = "python -m grujax.kernels.native.build"
AVX512 = "-DBYTES=64 -DREGISTERS=32 -mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mprefer-vector-width=512"

INSTRUCTION_SETS = {
    "avx512bf16": ("__AVX512BF16__", f"{AVX512} -mavx512bf16"),
    "avx512": ("__AVX512F__", AVX512),
    "avx2": ("__AVX2__", "-DBYTES=32 -DREGISTERS=16 -mavx2 -mfma"),
    "neon": ("__ARM_NEON", "-DBYTES=16 -DREGISTERS=32"),
    "plain": ("__cplusplus", "-DBYTES=16 -DREGISTERS=16"),
}
"""By name: the macro that a compiler defines if it supports the set, and the options. BYTES is the size of a vector,
REGISTERS the number of vector registers."""
EMULATED = {"emulated": ("__cplusplus", "-DBYTES=64 -DREGISTERS=32 -DEMULATED -Wno-psabi")}
"""For tests: the vectors and the pair products of avx512bf16, in code that runs on every processor."""


def missing() -> str | None:
    """Says what is missing to build the library: a compiler, headers or sources. None if nothing is missing."""
    if not (HERE / "ffi.cpp").is_file():
        return f"no C++ sources in {HERE}"
    if _headers() is None:
        return "no C++ headers in jaxlib, which the build needs"
    if not _compiler():
        return "no C++ compiler: install one, or name one in the environment variable CXX"
    # The command need not be a compiler: on macOS, c++ may only print how to install one.
    why = _refuses("#include <atomic>\n", "-std=c++17")
    return why and f"no C++ compiler: {shlex.join(_compiler())} fails on an empty program: {why}"


def build(
    target: Path = LIBRARY, sets: Mapping[str, tuple[str, str]] = INSTRUCTION_SETS, optimization: str = "-O3"
) -> list[str]:
    """Compiles the sources beside this file into `target`, once for each of `sets` that the compiler supports.

    `target` is replaced atomically: it is complete or unchanged.

    Returns:
      The names of the instruction sets in the library.

    Raises:
      RuntimeError: something is missing or does not compile; the message contains the compiler's output.
    """
    if (why := missing()) is not None:
        raise RuntimeError(f"the native kernel cannot be built: {why}")
    known = "#ifndef {}\n#error\n#endif\n"
    chosen = {
        name: flags.split()
        for name, (macro, flags) in sets.items()
        if _refuses(known.format(macro), *flags.split()) is None
    }
    options = shlex.split(os.environ.get("CXXFLAGS", ""))
    compiler = [*_compiler(), *options, "-std=c++17", optimization, "-fPIC", "-ffp-contract=fast"]
    headers = ["-isystem", str(_headers())]
    units = [[*flags, f"-DISA={name}", "-fvisibility=hidden", f"{HERE}/isa.cpp"] for name, flags in chosen.items()]
    units.append([*(f"-DHAVE_{name.upper()}" for name in chosen), *headers, f"{HERE}/ffi.cpp"])
    # Links the C++ runtime statically and hidden, because the process may have loaded an older one. With -z defs an
    # undefined symbol fails at link time, not at load time.
    linux = "-static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL -Wl,-z,defs -pthread"
    runtime = linux if sys.platform == "linux" else ""
    with TemporaryDirectory(dir=target.parent, prefix="_gru-") as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = [[*compiler, *unit, "-c", "-o", f"{folder}/{i}.o"] for i, unit in enumerate(units)]
        list(pool.map(_must_run, commands))
        built, objects = f"{folder}/{target.name}", [command[-1] for command in commands]
        link = [*compiler, *headers, "-shared", *objects, *runtime.split(), "-o", built, "-x", "c++", "-"]
        _must_run(link, STAMP % fingerprint())
        os.replace(built, target)
    return list(chosen)


STAMP = """#include "xla/ffi/api/c_api.h"
extern "C" {
extern const char grujax_sources[] = "%s";
extern const int grujax_api[] = {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
}
"""


def fingerprint() -> str:
    """The SHA-256 of the C++ sources beside this file."""
    sources = sorted(path for path in HERE.iterdir() if path.suffix in (".cpp", ".h", ".inc"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def unfit(library: CDLL) -> str | None:
    """Says why a library must not be used: built from other sources, or for a newer jaxlib. None if it may be used.

    The version is checked here because registering a handler of a newer interface raises no error: JAX fails later,
    when it starts its CPU backend.
    """
    expected = fingerprint().encode()
    if (c_char * len(expected)).in_dll(library, "grujax_sources").value != expected:
        return "it was built from other sources"
    if (headers := _headers()) is None:
        return "jaxlib has no C++ headers, which are needed to compare versions"
    text = (headers / "xla/ffi/api/c_api.h").read_text(encoding="utf-8")
    newest = [int(part) for part in re.findall(r"define XLA_FFI_API_M\w+ (\d+)", text)]
    built = list((c_int * 2).in_dll(library, "grujax_api"))
    return f"it was built for XLA's FFI version {built}, and jaxlib has {newest}" if built > newest else None


def _compiler() -> list[str]:
    default = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")
    return shlex.split(os.environ.get("CXX") or default)


def _headers() -> Path | None:
    jaxlib = importlib.util.find_spec("jaxlib")  # without importing it
    folder = Path(jaxlib.origin).parent / "include" if jaxlib and jaxlib.origin else None
    return folder if folder and (folder / "xla/ffi/api/ffi.h").is_file() else None


def _refuses(source: str, *flags: str) -> str | None:
    return _run([*_compiler(), *flags, "-fsyntax-only", "-x", "c++", "-"], source)


def _run(command: Sequence[str], source: str = "") -> str | None:
    """Runs a command; returns None, or its error output if it failed."""
    try:
        process = subprocess.run(command, input=source, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        return str(error)
    if process.returncode == 0:
        return None
    return process.stderr.strip() or f"{command[0]} failed with exit code {process.returncode}"


def _must_run(command: Sequence[str], source: str = "") -> None:
    if (why := _run(command, source)) is not None:
        raise RuntimeError(f"the native kernel does not compile: {shlex.join(command)}\n{why}")


if __name__ == "__main__":
    try:
        target = Path(sys.argv[1]) if sys.argv[1:] else LIBRARY
        print(f"{target}: {', '.join(build(target))}")
    except RuntimeError as error:
        sys.exit(str(error))
