"""The development commands: `nox -s tests`, `slow`, `lowest`, `newest`, `sanitizers`, `neon`, `tpu`, `hopper`, `lint`,
`docs`, `links`.

Arguments after `--` are passed to pytest, or to Sphinx by `docs` and `links`.
"""

import shutil
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]


FAST = [
    "tests/test_equations.py",
    "tests/kernels",
    "tests/core/test_sequence.py",
    "tests/linen",
    "tests/nnx",
    "tests/saving",
    "tests/seq2seq",
]
"""The tests that `lowest` and `newest` run: those that need JAX and Flax but no other framework."""
RUNNERS = ["pytest", "pytest-xdist", "hypothesis"]


def lower_bounds() -> list[str]:
    """Returns `name==version` for each dependency, at its lowest version."""
    return [requirement.replace(">=", "==") for requirement in PROJECT["dependencies"]]


@nox.session(python="3.11")
def tests(session: nox.Session) -> None:
    """Runs the tests on two processes."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(python="3.11")
def slow(session: nox.Session) -> None:
    """Runs all tests, including those marked slow."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "2", "--slow", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Runs the fast tests with the lowest version of every dependency that pyproject.toml allows."""
    session.install("-e", ".", *lower_bounds(), *RUNNERS)
    session.run("pytest", "-n", "2", *FAST, *session.posargs)


@nox.session(python=["3.12", "3.13"])
def newest(session: nox.Session) -> None:
    """Runs the fast tests with the newest version of every dependency."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".", *RUNNERS)
    session.run("pytest", "-n", "2", *FAST, *session.posargs)


SANITIZERS = {
    # Without libstdc++ it does not find __cxa_throw. Leaks are ignored, because jaxlib never frees its global objects.
    "address,undefined": ("libasan.so libstdc++.so", "detect_leaks=0"),
    # jaxlib is ignored, because it is not compiled for the sanitizer.
    "thread": ("libtsan.so", "ignore_noninstrumented_modules=1"),
}
"""The sanitizers of g++ that can run together, the libraries to preload, and options."""


@nox.session(python="3.11")
def sanitizers(session: nox.Session) -> None:
    """Runs the native kernel's tests under the address, undefined behaviour and thread sanitizers of g++, on Linux."""
    session.install("-e", ".[stablehlo]", *RUNNERS, env={"GRUJAX_NATIVE": "skip"})
    library = str(Path(session.create_tmp(), "_gru.so").absolute())
    for names, (runtimes, options) in SANITIZERS.items():
        flags = f"-fsanitize={names} -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
        build = ["python", "-m", "grujax.kernels.native.build", library]
        session.run(*build, env={"CXX": "g++", "CXXFLAGS": flags})
        commands = [["g++", f"-print-file-name={runtime}"] for runtime in runtimes.split()]
        preload = " ".join(str(session.run(*command, external=True, silent=True)).strip() for command in commands)
        environment = {"LD_PRELOAD": preload, "ASAN_OPTIONS": options, "TSAN_OPTIONS": options}
        # Reports go to the process's stderr, which pytest must not capture: captured output is lost when it dies.
        tests = ["--capture=sys", "tests/kernels/test_native.py", *session.posargs]
        session.run("python", "-m", "pytest", *tests, env={"GRUJAX_NATIVE_LIBRARY": library, **environment})


FROM_DEBIAN = ["g++-aarch64-linux-gnu", "qemu-user-static"]
ON_ARM = ["python3-minimal", "libpython3-stdlib", "libstdc++6"]
"""Debian packages: the tools that build and run ARM programs, and ARM programs from Debian's arm64 archive."""


@nox.session(python="3.11")
def neon(session: nox.Session) -> None:
    """Cross-compiles the native kernel for ARM and runs part of the contract with an ARM Python in qemu, on Debian."""
    for tool in ("apt-get", "aarch64-linux-gnu-g++", "qemu-aarch64-static"):
        if shutil.which(tool) is None:
            session.skip(f"{tool} is not installed: use Debian with the packages {' and '.join(FROM_DEBIAN)}")
    session.install("-e", ".", env={"GRUJAX_NATIVE": "skip"})
    folder = Path(session.create_tmp()).absolute()
    root, site, library = (str(folder / name) for name in ("root", "site", "_gru.so"))
    session.run("python", "-m", "grujax.kernels.native.build", library, env={"CXX": "aarch64-linux-gnu-g++"})
    places = {"Dir::State": folder, "Dir::State::status": folder / "status", "Dir::Cache": folder}
    options = {"APT::Architecture": "arm64", "APT::Architectures": "arm64"} | places
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    for name in ("lists/partial", "archives/partial"):
        Path(folder, name).mkdir(parents=True, exist_ok=True)
    Path(folder, "status").touch()
    session.run(*apt, "update", external=True)
    session.run(*apt, "install", "-y", "--download-only", "--no-install-recommends", *ON_ARM, external=True)
    for package in folder.glob("archives/*.deb"):
        session.run("dpkg", "-x", str(package), root, external=True, silent=True)
    (python,) = Path(root).glob("usr/bin/python3.*[0-9]")
    platforms = [f"--platform=manylinux{glibc}_aarch64" for glibc in ("_2_28", "_2_27", "_2_17", "2014")]
    wheels = [f"--target={site}", f"--python-version={python.name[6:]}", "--only-binary=:all:", "--upgrade", *platforms]
    session.run("pip", "install", "-q", *wheels, *PROJECT["dependencies"], *RUNNERS)
    emulated = ["qemu-aarch64-static", "-L", root, str(python), "tests/kernels/test_native.py", *session.posargs]
    env = {"PYTHONPATH": f"{site}:.:tests", "GRUJAX_NATIVE_LIBRARY": library, "GRUJAX_NATIVE_ISA": "neon"}
    output = str(session.run(*emulated, external=True, silent=True, env=env))
    session.log(output)
    if not output.startswith("neon\nactivations\n"):
        session.error("the library has no kernel for ARM")


@nox.session(python="3.11")
def tpu(session: nox.Session) -> None:
    """Tests the kernel for TPU, compilation by libtpu included, which needs no TPU."""
    session.install("-e", ".", "jax[tpu]", *RUNNERS, env={"GRUJAX_NATIVE": "skip"})
    session.run("pytest", "--slow", "tests/kernels/test_tpu.py", *session.posargs)


@nox.session(python="3.12")
def hopper(session: nox.Session) -> None:
    """Tests the kernel for Hopper GPUs, compilation by jax's CUDA plugin and ptxas included, which needs no GPU."""
    compilers = ["jax[cuda13-local]", "nvidia-cuda-nvcc"]  # without the runtime libraries, several gigabytes
    session.install("-e", ".", *compilers, *RUNNERS, env={"GRUJAX_NATIVE": "skip"})
    tests = ["--dist", "load", "tests/kernels/test_resident_compiled.py", *session.posargs]
    session.run("pytest", "-n", "2", *tests, env={"GRUJAX_HOPPER": "require"})


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Runs ruff and pyright."""
    session.install("-e", ".[dev]")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("pyright", "--pythonpath", str(Path(session.bin) / "python"))


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """Builds the site in build/site with its notebooks. Warnings, broken links and missing alt texts are errors."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-E", "-b", "html", "docs", "build/site", *session.posargs)


@nox.session(python="3.11")
def links(session: nox.Session) -> None:
    """Checks the site's links to other sites; needs the network."""
    session.install("-e", ".[docs]")
    options = ["-D", "nb_execution_mode=off", *session.posargs]
    session.run("sphinx-build", "-b", "linkcheck", "docs", "build/links", *options)
