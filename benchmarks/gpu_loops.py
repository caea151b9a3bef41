"""Times the loops of the kernel for Hopper GPUs, in microseconds per step, without the products before and after them.

    PYTHONPATH=. python benchmarks/gpu_loops.py --out DIR [--compile]

Six calls are in flight at a time; a time is the median of seven such rounds. DIR/loops.json holds the times.
`--compile` compiles every loop for an H100 without having one and times nothing; it needs only jax's CUDA plugin and
ptxas.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import jax
from targets import compiled_for

from grujax.kernels.resident import backward, exact, forward
from grujax.kernels.resident.plan import BACKWARD, FORWARD, SAVING, plan
from grujax.saving.atomic import replacing

SIDES = {"forward": FORWARD, "saving": SAVING, "transposed": BACKWARD}
SHAPES = (  # B, T, H and the dtype of the products; float32 means TF32
    (64, 512, 128, "bfloat16"),
    (64, 512, 256, "bfloat16"),
    (64, 512, 256, "float32"),
    (64, 512, 384, "bfloat16"),
    (64, 512, 512, "bfloat16"),
    (1, 1024, 256, "bfloat16"),
    (1024, 128, 128, "bfloat16"),
    (256, 128, 512, "bfloat16"),
    (4096, 128, 256, "bfloat16"),
)
IN_FLIGHT, ROUNDS = 6, 7


def loop(B: int, T: int, H: int, dtype: str, kind: str) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    """Returns the loop of one direction, without flags, and the shapes of its arrays."""
    chosen = plan((False,), False, B, H, dtype, "default", SIDES[kind])
    rows = -(-B // chosen.rows) * chosen.rows

    def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    if kind == "transposed":
        back = (exact if chosen.rows == 1 else backward).backward

        def transposed(saved: Any, hs: Any, dhs: Any, dh_last: Any, w: Any) -> Any:
            return back([saved], [hs], [dhs], dh_last, w, None, None, plan=chosen, keep=True)

        states = [shape(rows, T, H)] * 2
        return transposed, [shape(T, rows, 4 * H), *states, shape(1, rows, H), shape(1, H, 3 * H, dtype=dtype)]
    forth = (exact if chosen.rows == 1 else forward).forward

    def states_of(x: Any, h0: Any, w: Any, bias: Any) -> Any:
        return forth([x], h0, w, bias, None, None, None, plan=chosen, keep=True, saved=kind == "saving")

    return states_of, [shape(rows, T, 3 * H), shape(1, rows, H), shape(1, 3, H, H, dtype=dtype), shape(1, 4, H)]


def timed(compiled: Any, shapes: list[jax.ShapeDtypeStruct], n_steps: int) -> float:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [(0.05 * jax.random.normal(key, a.shape)).astype(a.dtype) for key, a in zip(keys, shapes, strict=True)]
    jax.block_until_ready(compiled(*arrays))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready([compiled(*arrays) for _ in range(IN_FLIGHT)])
        times.append((time.perf_counter() - start) / IN_FLIGHT)
    return 1e6 * median(times) / n_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of loops.json")
    parser.add_argument("--compile", action="store_true", help="compile for an H100 without having one; time nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cases = {(*shape, kind): loop(*shape, kind) for shape in SHAPES for kind in SIDES}
    if options.compile:
        for case, (f, shapes) in cases.items():
            compiled_for("H100", f, *shapes)
            print(*case, flush=True)
        return
    lowered = [jax.jit(f).lower(*shapes) for f, shapes in cases.values()]
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(jax.stages.Lowered.compile, lowered))
    for (case, (_, shapes)), compiled in zip(cases.items(), programs, strict=True):
        name = " ".join(map(str, case))
        found[name] = timed(compiled, shapes, case[1])
        print(f"{name:36}{found[name]:8.2f} µs per step", flush=True)
        with replacing(options.out / "loops.json") as temporary:
            temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
