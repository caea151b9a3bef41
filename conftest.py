"""Pytest options: by default the fast tests, compiled quickly; with `--slow` all tests, compiled as for users."""

import gc
import os
from importlib.util import find_spec

import jax
import pytest

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK += " --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # XLA aborts at an unknown flag
    QUICK += " --xla_cpu_use_fusion_emitters=false"
"""With these flags XLA compiles in a quarter of the time. Tests mostly compile: each program runs once or twice."""


collect_ignore = ["grujax/estimators/aeon.py", "grujax/estimators/sktime.py"]
"""aeon and sktime take seconds to import; tests/estimators runs the examples in these files."""
if not find_spec("equinox"):
    collect_ignore.append("grujax/equinox.py")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too, with all of XLA's optimisations")


def pytest_configure(config):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # otherwise torch's threads spin while others compute
    config.addinivalue_line("markers", "slow: a larger grid of what another test samples; runs with --slow alone")
    if not config.getoption("--slow"):
        os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


def pytest_collection_finish(session):
    """Collects garbage less often. Tracing makes many small objects; this saves a sixth of the time."""
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def no_garbage_is_looked_for_in_what_is_there_already():
    """Excludes everything made before this file from garbage collection, which takes seconds late in a session."""
    gc.freeze()


@pytest.fixture(autouse=True)
def plain_numerics_in_doctests(request):
    """Runs doctests as a user would: without the strict numerics that tests/conftest.py switches on."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    text = "".join(example.source for example in request.node.dtest.examples)
    for package, signs in {"torch": ("torch", ".pt"), "keras": ("keras",), "onnx": ("onnx",)}.items():
        if any(sign in text for sign in signs) and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
