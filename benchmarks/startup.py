"""Measures import time and the time to the first prediction, each in a new process; `costs.py` prints them."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from grujax.errors import require

IMPORTS = {"jax": "jax", "grujax": "grujax", "Flax": "flax.linen", "torch": "torch"}

PREDICTIONS = {
    "grujax": """
import jax, numpy as np, grujax
x = np.ones((32, 100, 12), np.float32)
model = grujax.GRUModel(64, 9)
variables = model.init(jax.random.key(0), x)
print(float(jax.jit(model.apply)(variables, x)[0, 0]))
""",
    "Flax": """
import jax, numpy as np, flax.linen as nn
x = np.ones((32, 100, 12), np.float32)
class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(9)(nn.RNN(nn.GRUCell(64))(x)[:, -1])
model = Model()
variables = model.init(jax.random.key(0), x)
print(float(jax.jit(model.apply)(variables, x)[0, 0]))
""",
    "torch": """
import torch
x = torch.ones(32, 100, 12)
gru, head = torch.nn.GRU(12, 64, batch_first=True), torch.nn.Linear(64, 9)
with torch.no_grad():
    print(float(head(gru(x)[0][:, -1])[0, 0]))
""",
}
"""For each library a program that creates a GRU of 64 units with a head, applies it to one batch and prints a value."""


@dataclass(frozen=True)
class Startup:
    """Seconds in a new process, median of `repeats`; None if the library is not installed."""

    library: str
    seconds: float | None


def process_seconds(program: str) -> float:
    """Returns the seconds from the start of Python to its end. Raises `InputError` if the program fails."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    start = time.perf_counter()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - start
    found = done.stderr.strip().rpartition("\n")[2] or "an error"
    require(done.returncode == 0, "the program", "a program that runs", found)
    return seconds


def startup_times(
    programs: dict[str, str], modules: dict[str, str], repeats: int, least: float = 0.0
) -> tuple[Startup, ...]:
    """Returns the median of each program's seconds minus `least`; None if its module is not installed."""
    installed = [library for library in programs if find_spec(modules[library].partition(".")[0]) is not None]
    times: dict[str, list[float]] = {library: [] for library in installed}
    for _ in range(repeats):
        for library in installed:
            times[library].append(process_seconds(programs[library]) - least)
    return tuple(Startup(name, statistics.median(times[name]) if name in times else None) for name in programs)


def measure_imports(
    say: Callable[[str], object], modules: dict[str, str] = IMPORTS, repeats: int = 3
) -> tuple[Startup, ...]:
    """Measures the import of each module, without the start of Python itself."""
    say("import time")
    python = statistics.median(process_seconds("") for _ in range(repeats))
    return startup_times({library: f"import {module}" for library, module in modules.items()}, modules, repeats, python)


def measure_predictions(say: Callable[[str], object], repeats: int = 3) -> tuple[Startup, ...]:
    """Measures each library from the start of Python to the printed prediction."""
    say("time to the first prediction")
    return startup_times(PREDICTIONS, IMPORTS, repeats)
