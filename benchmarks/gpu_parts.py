"""Runs one part of gpu.py in its own process: `python benchmarks/gpu_parts.py '{"part": "machine", "tiny": true}'`.

It prints one line of JSON for each result as soon as it is known.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_peers import CONTENDERS, forget_tuning

from grujax.bench.cases import Case, make_arrays
from grujax.bench.machine import versions
from grujax.bench.measure import KINDS, interleave
from grujax.bench.oracle import Gradients, oracle
from grujax.bench.peers.peer import Runs, Unavailable
from grujax.bench.peers.torch import torch_device
from grujax.bench.report import BACKWARD, FORWARD, PASSES
from grujax.testing.tolerances import tolerances_used

ROWS = {
    "bfloat16": ("bfloat16", None, "bfloat16"),
    "float32": ("float32", None, "bfloat16"),  # TF32 on a GPU
    "float32 highest": ("float32", "highest", "float32"),
}
"""The dtype, jax's default_matmul_precision, and the row of the tolerance table that applies to the values."""

KINDS_OF_VALUES = {
    "dense": {},
    "lengths": {"lengths": "uniform"},  # one length is set to 0
    "resets": {"resets": 0.1},
    "both directions": {"bidirectional": True},
}
CORES = os.cpu_count() or 1
RESULTS = os.fdopen(os.dup(1), "w", buffering=1)  # line-buffered


def say(part: str, key: str, value: Any) -> None:
    RESULTS.write(f"RESULT {json.dumps([part, key, value])}\n")


def attempt(run: Callable[[], Any]) -> Any:
    """Returns the result of `run`, or one line that says why it cannot run or how it failed."""
    try:
        return run()
    except Unavailable as error:
        return str(error)
    except Exception as error:
        return "failed: " + " ".join(f"{type(error).__name__}: {error}".split())[:300]


def machine(tiny: bool) -> None:
    """Reports the device, the versions, and the rates of a copy and of matrix products."""
    device = jax.devices()[0]
    say("machine", "device", device.device_kind)
    say("machine", "compute capability", getattr(device, "compute_capability", None))
    say("machine", "python", sys.version.split()[0])
    say("machine", "versions", attempt(partial(versions, CONTENDERS.values())))
    with suppress(ImportError):
        import torch

        allowed = {"products": torch.backends.cuda.matmul.allow_tf32, "cuDNN": torch.backends.cudnn.allow_tf32}
        say("machine", "TF32 by torch's default", allowed)
        say("machine", "cuDNN", torch.backends.cudnn.version())

    def rate(run: Callable[[], Any], amount: float) -> float:
        """Returns the rate in units of 1e12 per second."""
        return amount / 1e9 / median(interleave({"": lambda: jax.block_until_ready(run())}, 10)[""])

    def copy() -> float:
        x = jnp.ones(2**12 if tiny else 2**28)
        return rate(partial(jax.jit(lambda x: x + 1), x), 2 * x.nbytes)

    def product(dtype: str, precision: str | None) -> float:
        n = 128 if tiny else 8192
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        return rate(partial(jax.jit(partial(jnp.matmul, precision=precision)), a, a), 2 * n**3)

    say("machine", "copy, TB/s", attempt(copy))
    for row, (dtype, precision, _) in ROWS.items():
        say("machine", f"product {row}, TFLOP/s", attempt(partial(product, dtype, precision)))


def values(name: str, hidden_size: int, seed: int, tiny: bool) -> None:
    """Compares hs and all gradients of an implementation, computed twice, with the oracle."""

    def check(kind: str, row: str) -> dict[str, Any]:
        dtype, precision, tolerance = ROWS[row]
        case = Case(kind, 21, 24, 40, hidden_size, dtype=dtype, **KINDS_OF_VALUES[kind])
        a = make_arrays(case.shrunk() if tiny else case, seed)
        if a.lengths is not None:
            a.lengths[0] = a.cotangent[0] = 0
        hs, gradients = oracle(a, reset_after=True)
        expected = {"hs": hs} | gradients.named(a.num_directions)
        with jax.default_matmul_precision(precision):
            runs = CONTENDERS[name].build(a, CORES)
            found, again = ({"hs": runs.read_hs(runs.forward())} | read(runs).named(a.num_directions) for _ in range(2))
        used = {
            array: tolerances_used(found[array], e, tolerance, KINDS[FORWARD if array == "hs" else BACKWARD]).max()
            for array, e in expected.items()
        }
        return {
            "row": tolerance,
            "used": {array: float(share) for array, share in used.items()},
            "relative error": {array: relative_error(found[array], e) for array, e in expected.items()},
            "identical": all(np.array_equal(found[array], again[array]) for array in expected),
        }

    def checked(key: list[str]) -> None:
        say("values", f"{name} | H {hidden_size} | {' | '.join(key)}", attempt(partial(check, *key)))

    numbered = [(k + r, kind, row) for r, row in enumerate(ROWS) for k, kind in enumerate(KINDS_OF_VALUES)]
    pairs = [pair for number, *pair in numbered if not tiny or number % 3 == 0]  # tiny: each kind once
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(checked, pairs))


def read(runs: Runs) -> Gradients:
    assert runs.gradients is not None and runs.read_gradients is not None
    return runs.read_gradients(runs.gradients())


def relative_error(found: Any, expected: Any) -> float:
    """Returns ||found - expected|| / ||expected||."""
    f, e = (np.asarray(v).astype(np.float64) for v in (found, expected))
    return float(np.linalg.norm(f - e) / np.linalg.norm(e))


def times(case: dict[str, Any], rows: list[str], seed: int, until: float, repeats: int) -> None:
    """Compiles and runs every contender once, then times them alternately.

    No compilation starts after `until` (`time.time()`). Other processes compile at the same time, so timing starts only
    when standard input is closed.
    """
    shape = Case(**case)
    drawn = make_arrays(shape, seed)
    rounded = jax.tree.map(lambda v: v if v.dtype == bool else v.astype(jnp.bfloat16), drawn)
    arrays = {"float32": drawn, "bfloat16": rounded}
    traits = (jax.default_backend(), *shape.traits)

    def prepared(key: tuple[str, str]) -> Any:
        """Returns the calls, the state after the last step and the gradient of w_hh, or why there are none."""
        (dtype, precision, _), peer = ROWS[key[0]], CONTENDERS[key[1]]
        if time.time() > until:
            return "no time left to compile it"

        def build() -> tuple[Runs, tuple[Any, Any]]:
            with jax.default_matmul_precision(precision):
                runs = peer.build(arrays[dtype], CORES)
                return runs, (runs.read_hs(runs.forward()[:, -1]), read(runs).weights[0][1])

        return peer.refuses(traits) or peer.missing() or attempt(build)

    keys = [(row, name) for row in rows for name in CONTENDERS]
    parallel = min(CORES, max(2, 2**28 // (shape.B * shape.T * shape.H)))  # large arrays fill the memory
    with ThreadPoolExecutor(parallel) as pool:
        contenders = dict(zip(keys, pool.map(prepared, keys), strict=True))
    RESULTS.write("READY\n")
    sys.stdin.read()
    for row in rows:
        ready = {name: contenders[row, name] for name in CONTENDERS if not isinstance(contenders[row, name], str)}
        reasons = {name: contenders[row, name] for name in CONTENDERS if name not in ready}
        with jax.default_matmul_precision(ROWS[row][1]):
            with suppress(ImportError, Unavailable):
                torch_device()  # sets the precision of torch's products
            if "torchrl" in ready:
                forget_tuning()
            for i, kind in enumerate(PASSES):
                thunks = {name: (runs.forward, runs.gradients)[i] for name, (runs, _) in ready.items()}
                taken = attempt(partial(interleave, thunks, repeats))
                if isinstance(taken, str):
                    found = dict.fromkeys(ready, taken)
                else:
                    found = {name: 1e3 * median(ms) / shape.T for name, ms in taken.items()}
                xla = ready.get("xla")
                errors = (
                    {name: relative_error(state[i], xla[1][i]) for name, (_, state) in ready.items()} if xla else {}
                )
                say("times", f"{shape.name} | {row} | {kind}", {"us a step": found | reasons, "from xla": errors})


if __name__ == "__main__":
    os.dup2(2, 1)  # the output of libraries and compilers must not mix with the results
    arguments = json.loads(sys.argv[1])
    {"machine": machine, "values": values, "times": times}[arguments.pop("part")](**arguments)
