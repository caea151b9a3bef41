"""`grujax doctor`: shows what is installed and which kernel runs."""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import jax
from rich.console import Console
from rich.table import Column, Table

from grujax.kernels import explain
from grujax.kernels.native import status
from grujax.kernels.native.build import COMMAND


@dataclass(frozen=True)
class Doctor:
    """Print the versions, the devices, the kernel that runs by default, the state of the native kernel, and the cache
    of compiled programs."""

    def run(self, console: Console) -> int:
        table = Table("item", Column("found", overflow="fold"), title="grujax doctor")
        for name in ("grujax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "safetensors"):
            table.add_row(name, version(name))
        for extra, name in (("data", "aeon"), ("data", "scikit-learn"), ("plot", "matplotlib"), ("torch", "torch")):
            table.add_row(name, _version_or_remedy(name, extra))
        table.add_row("python", sys.version.split()[0])
        table.add_row("devices", _devices())
        table.add_row("kernel", str(explain()))
        table.add_row("native kernel", _native())
        cache = jax.config.values["jax_compilation_cache_dir"]
        table.add_row(
            "compilation cache", str(cache or "none: set JAX_COMPILATION_CACHE_DIR to keep compiled programs")
        )
        console.print(table)
        return 0


def _version_or_remedy(name: str, extra: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"not installed: pip install 'grujax[{extra}]'"


def _native() -> str:
    instruction_set, reason = status()
    if instruction_set is None:
        return f"cannot run: {reason}. To build it: {COMMAND}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{instruction_set}, up to {cores} threads"


def _devices() -> str:
    """Each kind of device with its count. On a CPU the platform and the kind are the same word, printed once."""
    kinds = Counter(" ".join(dict.fromkeys((d.platform, d.device_kind))) for d in jax.devices())
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items())
