"""Describes the machine and software of a benchmark run: versions, processor, load, settings and commit."""

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
    """Returns the versions of grujax, JAX, NumPy and the packages of the peers."""
    modules = {name: None for peer in peers for name in peer.modules}
    by_name = {}
    for name in ("grujax", "jax", "jaxlib", "numpy", *modules):
        try:
            by_name[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            by_name[name] = "not installed"
    return by_name


def device() -> dict[str, Any]:
    """Returns the machine and what else affects the times: the load before the run, thread settings and XLA flags."""
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
    """Returns the name of the processor from /proc/cpuinfo or, without that file, from `platform.processor`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def git(*arguments: str) -> str:
    """Returns git's output in the folder of this file; empty outside a repository."""
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
