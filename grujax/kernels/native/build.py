"""Compiles the native kernel into one shared library: `python -m grujax.kernels.native.build [TARGET]`.

The build hook of the wheel runs this file too, where the rest of grujax cannot be imported. CXX names another compiler,
CXXFLAGS gives it further options.
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
LIBRARY = HERE / "_gru.so"  # so named on every platform: whoever loads it gives the whole path
COMMAND = "python -m grujax.kernels.native.build"
AVX512 = "-DBYTES=64 -DREGISTERS=32 -mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mprefer-vector-width=512"

INSTRUCTION_SETS = {
    "avx512bf16": ("__AVX512BF16__", f"{AVX512} -mavx512bf16"),
    "avx512": ("__AVX512F__", AVX512),
    "avx2": ("__AVX2__", "-DBYTES=32 -DREGISTERS=16 -mavx2 -mfma"),
    "neon": ("__ARM_NEON", "-DBYTES=16 -DREGISTERS=32"),
    "plain": ("__cplusplus", "-DBYTES=16 -DREGISTERS=16"),
}
"""Of each the macro that a compiler which has it defines, and the options: BYTES of a vector, vector registers."""
EMULATED = {"emulated": ("__cplusplus", "-DBYTES=64 -DREGISTERS=32 -DEMULATED -Wno-psabi")}
"""For tests: the vectors and the products of pairs that avx512bf16 has, in code that runs on every processor."""


def missing() -> str | None:
    """What there is not, to build the library here: a compiler, headers or sources. None where all is there."""
    if not (HERE / "ffi.cpp").is_file():
        return f"no C++ sources in {HERE}"
    if _headers() is None:
        return "no headers of jaxlib, which it needs"
    if not _compiler():
        return "no C++ compiler: install one, or name one in CXX"
    # A command need not be a compiler: on macOS c++ may say how to install one, and no more.
    why = _refuses("#include <atomic>\n", "-std=c++17")
    return why and f"no C++ compiler: {shlex.join(_compiler())} fails on an empty program: {why}"


def build(
    target: Path = LIBRARY, sets: Mapping[str, tuple[str, str]] = INSTRUCTION_SETS, optimization: str = "-O3"
) -> list[str]:
    """Compiles the sources beside this file into `target`, once for each of `sets` that the compiler knows.

    `target` appears whole or not at all.

    Returns:
      The instruction sets in it.

    Raises:
      RuntimeError: something is missing, or does not compile; all that the compiler said is in the message.
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
    # The C++ runtime goes in, hidden, since that of the process may be older; what is undefined fails here, not there.
    linux = "-static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL -Wl,-z,defs -pthread"
    runtime = linux if sys.platform == "linux" else ""
    with TemporaryDirectory(dir=target.parent, prefix="_gru-") as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = [[*compiler, *unit, "-c", "-o", f"{folder}/{i}.o"] for i, unit in enumerate(units)]
        list(pool.map(_must_run, commands))
        made, objects = f"{folder}/{target.name}", [command[-1] for command in commands]
        link = [*compiler, *headers, "-shared", *objects, *runtime.split(), "-o", made, "-x", "c++", "-"]
        _must_run(link, STAMP % fingerprint())
        os.replace(made, target)
    return list(chosen)


STAMP = """#include "xla/ffi/api/c_api.h"
extern "C" {
extern const char grujax_sources[] = "%s";
extern const int grujax_api[] = {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
}
"""


def fingerprint() -> str:
    """Of the C++ sources beside this file."""
    sources = sorted(path for path in HERE.iterdir() if path.suffix in (".cpp", ".h", ".inc"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def unfit(library: CDLL) -> str | None:
    """Why this library must not be used: built from other sources, or for a newer jaxlib. None where it may be.

    To register a handler of a newer interface is no error at once: JAX fails later, where it starts its CPU.
    """
    expected = fingerprint().encode()
    if (c_char * len(expected)).in_dll(library, "grujax_sources").value != expected:
        return "it was built from other sources"
    if (headers := _headers()) is None:
        return "there are no headers of jaxlib, to compare versions"
    text = (headers / "xla/ffi/api/c_api.h").read_text(encoding="utf-8")
    newest = [int(part) for part in re.findall(r"define XLA_FFI_API_M\w+ (\d+)", text)]
    built = list((c_int * 2).in_dll(library, "grujax_api"))
    return f"it was built for XLA's interface {built}, and jaxlib has {newest}" if built > newest else None


def _compiler() -> list[str]:
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")
    return shlex.split(os.environ.get("CXX") or found)


def _headers() -> Path | None:
    jaxlib = importlib.util.find_spec("jaxlib")  # found, not imported
    folder = Path(jaxlib.origin).parent / "include" if jaxlib and jaxlib.origin else None
    return folder if folder and (folder / "xla/ffi/api/ffi.h").is_file() else None


def _refuses(source: str, *flags: str) -> str | None:
    return _run([*_compiler(), *flags, "-fsyntax-only", "-x", "c++", "-"], source)


def _run(command: Sequence[str], source: str = "") -> str | None:
    """None, or what a command said when it failed."""
    try:
        ran = subprocess.run(command, input=source, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        return str(error)
    return None if ran.returncode == 0 else ran.stderr.strip() or f"{command[0]} ended with {ran.returncode}"


def _must_run(command: Sequence[str], source: str = "") -> None:
    if (why := _run(command, source)) is not None:
        raise RuntimeError(f"the native kernel does not compile: {shlex.join(command)}\n{why}")


if __name__ == "__main__":
    try:
        to = Path(sys.argv[1]) if sys.argv[1:] else LIBRARY
        print(f"{to}: {', '.join(build(to))}")
    except RuntimeError as error:
        sys.exit(str(error))
