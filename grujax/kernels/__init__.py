"""The recurrence kernels: `run` executes a recurrence, `explain` says which implementation runs and why."""

from grujax.kernels.entry import run
from grujax.kernels.table import Explanation, explain

__all__ = ["Explanation", "explain", "run"]
