"""How the native kernel is compiled and packaged, tested on a copy of the project with two toy sources."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from grujax.kernels import native

ROOT = Path(__file__).parent.parent
NATIVE = "grujax/kernels/native"
FFI = """
extern "C" const char* sets() { return ""
#ifdef HAVE_AVX2
  "avx2 "
#endif
#ifdef HAVE_PLAIN
  "plain "
#endif
; }
"""
ISA = "namespace ISA { extern const int bytes = BYTES / REGISTERS; }\n"
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler to test with")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the files that a build reads, with toy sources and without the environment variables of a build."""
    for name in ("GRUJAX_NATIVE", "CXX", "CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    project = tmp_path / "project"
    (project / NATIVE).mkdir(parents=True)
    files = ["pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore", "grujax/__init__.py"]
    for name in (*files, f"{NATIVE}/build.py"):
        shutil.copy(ROOT / name, project / name)
    (project / NATIVE / "ffi.cpp").write_text(FFI)
    (project / NATIVE / "isa.cpp").write_text(ISA)
    return project


@pytest.fixture
def build(project):
    """build.py of that copy, imported as a module."""
    spec = importlib.util.spec_from_file_location("build", project / NATIVE / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def command(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def files(project):
    return {path.name for path in (project / NATIVE).iterdir()} - {"__pycache__"}


def test_the_library_is_built_beside_its_sources(project, build):
    sets = build.build()
    assert "plain" in sets and files(project) == {"build.py", "ffi.cpp", "isa.cpp", "_gru.so"}
    library = ctypes.CDLL(str(build.LIBRARY))
    library.sets.restype = ctypes.c_char_p
    assert library.sets().decode().split() == [name for name in ("avx2", "plain") if name in sets]
    assert build.unfit(library) is None


def test_a_set_that_the_compiler_does_not_know_is_left_out(build, monkeypatch, tmp_path):
    sets = build.build()
    refusing = command(tmp_path / "c++", 'for a; do [ "$a" = -DBYTES=32 ] && exit 1; done; exec c++ "$@"')
    monkeypatch.setenv("CXX", refusing)
    assert build.build() == [name for name in sets if name != "avx2"]


def test_a_library_of_other_sources_or_of_a_newer_interface_is_not_used(project, build, monkeypatch, tmp_path):
    build.build()
    library = ctypes.CDLL(str(build.LIBRARY))
    api = tmp_path / "xla/ffi/api"
    api.mkdir(parents=True)
    monkeypatch.setattr(build, "_headers", lambda: tmp_path)
    for minor, why in ((0, "FFI version [0, "), (99, None)):
        (api / "c_api.h").write_text(f"#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR {minor}\n")
        found = build.unfit(library)
        assert found is None if why is None else why in found
    (project / NATIVE / "new.h").write_text("// new\n")
    assert build.unfit(library) == "it was built from other sources"


def test_what_is_undefined_fails_when_it_is_built(project, build):
    (project / NATIVE / "ffi.cpp").write_text('extern "C" { int nowhere(); int call() { return nowhere(); } }\n')
    with pytest.raises(RuntimeError, match="nowhere"):
        build.build()
    assert "_gru.so" not in files(project)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_reason_is_said(build):
    assert build.missing() == "no C++ compiler: install one, or name one in the environment variable CXX"
    with pytest.raises(RuntimeError, match="cannot be built: no C\\+\\+ compiler"):
        build.build()


def test_a_command_that_does_not_compile_is_no_compiler(build, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", command(tmp_path / "c++", "echo install the developer tools >&2; exit 1"))
    assert "fails on an empty program: install the developer tools" in build.missing()
    monkeypatch.setenv("CXX", "nosuch")
    assert "nosuch" in build.missing()


def test_without_headers_or_sources_the_reason_is_said(project, build, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert build.missing() == "no C++ headers in jaxlib, which the build needs"
    (project / NATIVE / "ffi.cpp").unlink()
    assert build.missing() == f"no C++ sources in {project / NATIVE}"


def test_all_that_the_compiler_says_is_shown_and_the_library_stays(project, build):
    build.build()
    before = build.LIBRARY.read_bytes()
    (project / NATIVE / "isa.cpp").write_text("".join(f"#error number {i}\n" for i in range(40)))
    with pytest.raises(RuntimeError) as error:
        build.build()
    assert "does not compile" in str(error.value) and "isa.cpp" in str(error.value)
    assert all(f"#error number {i}\n" in f"{error.value}\n" for i in range(40))
    assert build.LIBRARY.read_bytes() == before and files(project) == {"build.py", "ffi.cpp", "isa.cpp", "_gru.so"}


def test_the_status_says_why_a_library_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("GRUJAX_NATIVE_LIBRARY", str(tmp_path / "_gru.so"))
    monkeypatch.setattr(native, "library", native.library.__wrapped__)  # without its cache
    found, why = native.status()
    assert found is None and why.startswith("the native kernel is not built: ")
    (tmp_path / "_gru.so").write_text("no library")
    found, why = native.status()
    assert found is None and why.startswith("the native kernel cannot be loaded: ")


def hook(project, call, to, **environment):
    """Returns the file that `hatchling.build` makes from the project, or None, and what it printed."""
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed")
    to.mkdir(exist_ok=True)
    code = f"import hatchling.build, sys; hatchling.build.{call}(sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code, to], cwd=project, env=environment, capture_output=True, text=True, timeout=300
    )
    made = list(to.iterdir())
    assert len(made) == (done.returncode == 0)
    return (made[0] if made else None), done.stdout + done.stderr


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {Path(name).name for name in archive.namelist() if name.startswith(NATIVE)}


def test_one_wheel_for_a_platform_and_every_python(project, tmp_path):
    (project / NATIVE / "_gru.so").write_text("stale")
    wheel, _ = hook(project, "build_wheel", tmp_path / "out", GRUJAX_NATIVE="require")
    assert wheel is not None
    python, abi, platform = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none") and platform != "any" and not platform.startswith("manylinux")
    assert contents(wheel) == {"build.py", "ffi.cpp", "isa.cpp", "_gru.so"}
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{NATIVE}/_gru.so") != b"stale"
        tags = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/WHEEL"))
    assert "Root-Is-Purelib: false" in tags and f"Tag: py3-none-{platform}" in tags


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_wheel_is_pure_and_a_warning_says_so(project, tmp_path):
    wheel, said = hook(project, "build_wheel", tmp_path / "out")
    assert wheel is not None and wheel.name.endswith("-py3-none-any.whl") and "_gru.so" not in contents(wheel)
    assert "without its native CPU kernel: no C++ compiler" in said and "python -m grujax.kernels.native.build" in said


@pytest.mark.usefixtures("no_compiler")
def test_require_makes_a_missing_compiler_an_error(project, tmp_path):
    wheel, said = hook(project, "build_wheel", tmp_path / "out", GRUJAX_NATIVE="require")
    assert wheel is None and "cannot be built: no C++ compiler" in said


def test_skip_builds_none(project, tmp_path):
    (project / NATIVE / "_gru.so").write_text("of another build")
    wheel, said = hook(project, "build_wheel", tmp_path / "out", GRUJAX_NATIVE="skip")
    assert wheel is not None and wheel.name.endswith("-py3-none-any.whl") and "_gru.so" not in contents(wheel)
    assert "native" not in said and (project / NATIVE / "_gru.so").read_text() == "of another build"


def test_another_mode_is_refused(project, tmp_path):
    wheel, said = hook(project, "build_wheel", tmp_path / "out", GRUJAX_NATIVE="yes")
    assert wheel is None and "GRUJAX_NATIVE: expected 'require', 'skip' or nothing, found 'yes'" in said


@pytest.mark.parametrize("mode", ["", "require"])
def test_a_compile_error_ends_the_build_in_every_mode(project, tmp_path, mode):
    (project / NATIVE / "ffi.cpp").write_text("#error this is wrong\n")
    wheel, said = hook(project, "build_wheel", tmp_path / "out", GRUJAX_NATIVE=mode)
    assert wheel is None and "#error this is wrong" in said and "GRUJAX_NATIVE=skip" in said


def test_a_wheel_is_built_from_the_source_distribution(project, tmp_path):
    sdist, _ = hook(project, "build_sdist", tmp_path / "sdist")
    assert sdist is not None and "_gru.so" not in files(project)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("grujax-*")
    wheel, _ = hook(source, "build_wheel", tmp_path / "wheel", GRUJAX_NATIVE="require")
    assert wheel is not None and contents(wheel) == {"build.py", "ffi.cpp", "isa.cpp", "_gru.so"}


@pytest.mark.slow
@pytest.mark.parametrize("editable", [(), ("--editable",)], ids=["copied", "editable"])
def test_pip_installs_the_library(project, tmp_path, editable):
    """In a new environment, with the build requirements that pyproject.toml names."""
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=300)
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *editable, project]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        install, env=environment | {"GRUJAX_NATIVE": "require"}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    find = "import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec('grujax').origin).parent)"
    found = subprocess.run(
        [python, "-c", find], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60
    )
    library = ctypes.CDLL(f"{found.stdout.strip()}/kernels/native/_gru.so")
    assert library.sets is not None
    assert (project in Path(found.stdout.strip()).parents) == bool(editable)
