"""What this installation is."""

import importlib.util
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version

import jax
from rich.console import Console
from rich.table import Table

from grujax.kernels import explain


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, the kernel that would run, and caches."""

    def run(self, console: Console) -> int:
        table = Table("what", "found", title="grujax doctor")
        for name in ("grujax", "jax", "jaxlib", "flax", "optax", "numpy", "safetensors"):
            table.add_row(name, version(name))
        for extra, module in (("data", "aeon"), ("data", "sklearn"), ("plot", "matplotlib"), ("torch", "torch")):
            found = importlib.util.find_spec(module) is not None
            table.add_row(module, "installed" if found else f"not installed: pip install 'grujax[{extra}]'")
        table.add_row("python", sys.version.split()[0])
        table.add_row("devices", _devices())
        table.add_row("kernel", str(explain()))
        cache = jax.config.values["jax_compilation_cache_dir"]
        table.add_row(
            "compilation cache", str(cache or "none: set JAX_COMPILATION_CACHE_DIR to keep compiled programs")
        )
        console.print(table)
        return 0


def _devices() -> str:
    """Each kind of device once, with its count; a CPU, whose kind is its platform, is not named twice."""
    kinds = Counter(" ".join(dict.fromkeys((d.platform, d.device_kind))) for d in jax.devices())
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items())
