"""Which module may import which, checked by reading the source."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import grujax

ROOT = Path(grujax.__file__).parent
GROUPS = [
    ["errors", "signals"],
    ["types", "arrays"],
    ["equations"],
    ["testing"],
    ["kernels", "data"],
    ["core"],
    ["linen"],
    ["nnx", "equinox"],
    ["seq2seq"],
    ["saving"],
    ["interop", "training", "inspect", "bench"],
    ["estimators", "cli"],
    ["__init__", "__main__"],
]
"""A file imports only from the groups listed before its own and from its own package, not from others of its group."""

SHARED = {"step", "products", "derivative", "checks", "order", "calls"}
"""The modules of kernels/ that platform kernels use. Platform kernels do not import each other."""

RANK = {name: rank for rank, group in enumerate(GROUPS) for name in group}
BASES = {"estimators": {"sklearn", "aeon"}}
"""Packages that may be imported at module level, because classes are derived from theirs."""

EXTRAS = {
    "torch",
    "keras",
    "onnx",
    "onnxruntime",
    "openvino",
    "equinox",
    "haiku",
    "h5py",
    "sklearn",
    "pandas",
    "statsmodels",
    "matplotlib",
    "aeon",
    "sktime",
    "tensorboardX",
    "tensorflow",
    "orbax",
}
STANDARD = set(sys.stdlib_module_names)


def imports(tree, package, in_functions=True):
    """Returns the modules that a file imports, as absolute names. Code under `if TYPE_CHECKING` does not run."""
    found, waiting = [], list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names] if module == "grujax" else [module]
            if module == "grujax.kernels":
                found += [f"{module}.{alias.name}" for alias in node.names]
        elif in_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


def broken_rules(sources):
    """Returns the rules that `sources`, {"layer.py": text, "kernels/scan.py": text, ...}, break."""
    broken = []
    above = {"__init__", "table", "entry"}
    kernels = {Path(name.split("/")[1]).stem for name in sources if name.startswith("kernels/")} - SHARED - above
    for name, text in sources.items():
        parts = list(Path(name).with_suffix("").parts)
        me, tree = parts[0], ast.parse(text)
        if me not in RANK:
            broken.append(f"{name}: has no place in the order")
            continue
        for module in imports(tree, ["grujax", *parts[:-1]]):
            top, *rest = module.split(".")
            if top == "grujax" and rest:
                other = rest[0]
                allowed = other == me or (other in RANK and RANK[other] < RANK[me])
                if me != "__init__" and not allowed:
                    broken.append(f"{name}: imports {module}, which is not above it")
                inside = me == other == "kernels" and parts[1] not in above and len(rest) > 1
                others = kernels - {parts[1]} if inside and parts[1] in kernels else set()
                if inside and rest[1] in others | {"table"}:
                    broken.append(f"{name}: a kernel imports {module}")
            if me == "equations" and top not in STANDARD | {"numpy"}:
                broken.append(f"{name}: the oracle imports {module}")
            if top == "tyro" and me != "cli":
                broken.append(f"{name}: imports tyro outside the command line")
            if top == "flax" and RANK[me] < RANK["linen"]:
                broken.append(f"{name}: imports flax above linen")
        for module in imports(tree, ["grujax", *parts[:-1]], in_functions=False):
            if module.split(".")[0] in EXTRAS - BASES.get(me, set()):
                broken.append(f"{name}: imports {module} at module level")
    return broken


def test_every_file_imports_only_what_stands_above_it():
    sources = {p.relative_to(ROOT).as_posix(): p.read_text() for p in ROOT.rglob("*.py")}
    assert {"linen/layer.py", "kernels/table.py", "kernels/xla.py", "interop/torch.py"} <= set(sources)
    assert broken_rules(sources) == []


def test_each_rule_can_fail():
    bad = {
        "core/stack.py": "from grujax.linen.layer import GRU",
        "types.py": "from grujax import kernels",
        "equations.py": "import jax.numpy as jnp",
        "core/sequence.py": "import flax.linen as nn",
        "kernels/xla.py": "from .native import run",
        "kernels/mosaic.py": "from grujax.kernels import xla",
        "kernels/native/handlers.py": "from grujax.kernels.mosaic import run",
        "kernels/calls/program.py": "from grujax.kernels.table import KERNELS",
        "kernels/derivative.py": "def f():\n    from grujax.kernels.table import explain",
        "data/load.py": "from grujax.core.inputs import check_inputs",
        "training/fit.py": "from grujax.bench.cases import CASES",
        "interop/torch.py": "try:\n    import torch.nn\nexcept ImportError:\n    pass",
        "utils.py": "",
        "estimators/parameters.py": "import torch",
        "estimators/sklearn.py": "from grujax.cli import main",
        "training/evaluate.py": "import sklearn",
        "training/config.py": "def f():\n    import tyro",
    }
    assert {line.split(":")[0] for line in broken_rules(bad)} == set(bad)
    good = {
        "interop/torch.py": "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\nfrom grujax import linen",
        "kernels/table.py": "from grujax.kernels.xla import scan\nfrom grujax.kernels import derivative",
        "kernels/xla.py": "from grujax.kernels.step import step\nfrom .derivative import linear_scan",
        "kernels/derivative.py": "import jax",
        "kernels/native/handlers.py": "from grujax.kernels.calls.arrays import N\nfrom . import build",
        "training/fit.py": "from grujax.training.step import step\nfrom grujax.data import load",
        "estimators/sklearn.py": "from sklearn.base import BaseEstimator\nfrom grujax.training import fit",
    }
    assert broken_rules(good) == []


def test_importing_grujax_imports_none_of_what_few_users_need():
    ours = ["grujax.training", "grujax.interop.torch", "grujax.nnx", "grujax.cli"]
    heavy = [*sorted(EXTRAS), "optax", "tyro", "rich", *ours]
    code = "import sys, flax.linen; before = set(sys.modules)"
    code += "; from grujax import *; new = set(sys.modules) - before"
    code += f"; print([m for m in {heavy} if m in new])"
    code += "; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent, timeout=120
    )
    assert run.stdout.split("\n")[:2] == ["[]", "False"]


def test_submodules_load_on_first_use():
    """Type checkers and `dir` know each public submodule. It is not imported before its use, and neither is JAX."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = [name for node in checked.body if isinstance(node, ast.ImportFrom) for name in node.names]
    known = {name.asname for name in imported if name.asname}
    assert {name.name for name in imported} == known | set(grujax.__all__)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert known | {"cli", "core"} == packages | {"equations", "equinox"}
    assert known <= set(dir(grujax))
    late = ["jax", "numpy", *(f"grujax.{name}" for name in sorted(known))]
    code = f"import sys, grujax; print([name for name in {late} if name in sys.modules])"
    code += f"; print([grujax.__dict__.get(name, getattr(grujax, name)).__name__ for name in {sorted(known)}])"
    code += "; print(hasattr(grujax, 'nosuch'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split("\n")[:3] == ["[]", str([f"grujax.{name}" for name in sorted(known)]), "False"]
    with pytest.raises(AttributeError, match="module 'grujax' has no attribute 'nosuch'"):
        grujax.nosuch  # noqa: B018


def test_the_version_is_written_in_one_file():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "grujax/__init__.py"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", grujax.__version__)


def test_importing_grujax_takes_little_more_than_importing_flax():
    """Measures the CPU seconds that grujax adds. One of three runs must pass: the first may compile bytecode."""
    code = "import time, flax; began = time.process_time(); from grujax import *; print(time.process_time() - began)"
    command = [sys.executable, "-c", code]
    runs = (subprocess.run(command, capture_output=True, text=True, check=True, timeout=120) for _ in range(3))
    assert any(float(run.stdout) < 0.2 for run in runs)
