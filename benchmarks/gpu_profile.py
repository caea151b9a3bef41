"""Profiles a whole call on a GPU: the time of each kernel that it launches, and the remaining time of the host.

    PYTHONPATH=. python benchmarks/gpu_profile.py --out DIR [--tiny]

DIR/profile.json holds, for each shape and pass, the microseconds per call by the clock, and those of each kernel by
JAX's profiler. The difference between the call and the sum of its kernels is the host's time: dispatch, launches,
waiting. `--tiny` shrinks the shapes. The profile of a CPU has no separate device, so the host's operations are listed
instead.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from grujax import GRUWeights, gru
from grujax.saving.atomic import replacing

SHAPES = ((64, 512, 128), (64, 512, 256), (1024, 128, 128), (64, 512, 512))  # B, T, H; I = H
DTYPES = ("bfloat16", "float32")
CALLS = 20
PASSES: dict[str, Callable[..., Any]] = {
    "forward": lambda x, weights: gru(x, weights)[0],
    "forward + backward": jax.grad(lambda x, weights: gru(x, weights)[0].astype(jnp.float32).sum(), argnums=(0, 1)),
}


def arrays(B: int, T: int, H: int, dtype: str) -> tuple[jax.Array, GRUWeights]:
    sizes = ((B, T, H), (H, 3 * H), (H, 3 * H), (3 * H,), (3 * H,))
    keys = jax.random.split(jax.random.key(0), len(sizes))
    x, *weights = ((jax.random.normal(k, size) * H**-0.5).astype(dtype) for k, size in zip(keys, sizes, strict=True))
    return x, GRUWeights(*weights)


def kernels(call: Callable[[], Any]) -> dict[str, float]:
    """Returns the microseconds per call of each kernel, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        times: Counter[str] = Counter()
        plane_name, line_name = ("/device:GPU", "Stream") if jax.default_backend() == "gpu" else ("/host:CPU", "")
        for plane in (plane for plane in profile.planes if plane.name.startswith(plane_name)):
            for line in (line for line in plane.lines if line.name.startswith(line_name)):
                for event in (event for event in line.events if not event.name.startswith("$")):  # a Python function
                    times[event.name] += event.duration_ns / 1e3 / CALLS
    return dict(times.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of profile.json")
    parser.add_argument("--tiny", action="store_true", help="shapes of a few steps")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    profile: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for shape in ((2, 3, 4),) if options.tiny else SHAPES:
        for dtype in DTYPES:
            inputs = arrays(*shape, dtype)
            for name, f in PASSES.items():
                program = jax.jit(f).lower(*inputs).compile()

                def call(program: Any = program, inputs: Any = inputs) -> None:
                    jax.block_until_ready(program(*inputs))

                call()
                times = []
                for _ in range(CALLS):
                    start = time.perf_counter()
                    call()
                    times.append(1e6 * (time.perf_counter() - start))
                each = kernels(call)
                key = f"{', '.join(map(str, shape))} {dtype}, {name}"
                profile[key] = {"call": median(times), "kernels": each}
                print(f"{key}: {median(times):.0f} µs per call, kernels {sum(each.values()):.0f}", flush=True)
                print(*(f"  {us:8.1f}  {kernel[:100]}" for kernel, us in list(each.items())[:12]), sep="\n", flush=True)
                with replacing(options.out / "profile.json") as temporary:
                    temporary.write_text(json.dumps(profile, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
