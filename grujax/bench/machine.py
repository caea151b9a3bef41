"""On what a run was measured: versions, processor, load, settings and commit."""

import importlib
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from grujax.bench.peers import Peer


def versions(peers: Iterable[Peer]) -> dict[str, str]:
    modules = {name: None for peer in peers for name in peer.modules}
    found = {}
    for name in ("grujax", "jax", "jaxlib", "numpy", *modules):
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            found[name] = "not installed"
    return found


def device() -> dict[str, Any]:
    """The machine, and what else changes the times: the load before the run, and settings of threads and XLA."""
    settings = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "XLA_FLAGS")
    accelerators = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    return {
        "cpu": _cpu_model(),
        "accelerator": accelerators[0] if accelerators else None,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "environment": {name: os.environ[name] for name in settings if name in os.environ},
    }


def _cpu_model() -> str:
    """The name of the processor; where there is no /proc/cpuinfo, what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def git(*arguments: str) -> str:
    """The answer of git in the folder of this file; empty outside a repository."""
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
