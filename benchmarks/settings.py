"""Measures grujax on CPU with different XLA flags and malloc settings: `python benchmarks/settings.py [NAME ...]`.

Each setting runs in its own processes, alternately. A figure is the median over the rounds of the time with the setting
divided by the time with the defaults in the same round.
"""

import json
import os
import statistics
import subprocess
import sys
import time

SETTINGS = {
    "defaults": "",
    "512-bit vectors": "XLA_FLAGS=--xla_cpu_prefer_vector_width=512",
    "no YNNPACK": "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=",
    "concurrency-optimised scheduler": "XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=true",
    "one-threaded Eigen": "XLA_FLAGS=--xla_cpu_multi_thread_eigen=false",
    "fast math": "XLA_FLAGS=--xla_cpu_enable_fast_math=true",
    "malloc keeps memory": "MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184",
}
"""{name: environment variables}."""
SHAPES = ("single", "small", "medium", "large", "narrow")
ROUNDS, REPEATS = 4, 9


def measure() -> dict[str, list[float]]:
    """Returns {shape: [median ms forward, median ms forward + backward]}."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from grujax import GRUWeights, gru
    from grujax.bench.cases import CASES

    medians = {}
    for shape in SHAPES:
        case, rng = CASES[shape], np.random.default_rng(0)
        sizes = [(case.B, case.T, case.I), (case.I, 3 * case.H), (case.H, 3 * case.H), (3 * case.H,), (3 * case.H,)]
        x, *weights = [jnp.asarray(rng.uniform(-1, 1, size) / case.H**0.5, jnp.float32) for size in sizes]

        def loss(x, weights):
            return gru(x, GRUWeights(*weights))[0].sum()

        calls = [jax.jit(lambda x, w: gru(x, GRUWeights(*w))[0]), jax.jit(jax.grad(loss, argnums=(0, 1)))]
        medians[shape] = []
        for call in calls:
            jax.block_until_ready(call(x, weights))
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                jax.block_until_ready(call(x, weights))
                times.append((time.perf_counter() - start) * 1e3)
            medians[shape].append(statistics.median(times))
    return medians


def main(*names: str) -> None:
    if unknown := [name for name in names if name not in SETTINGS]:
        sys.exit(f"NAME: expected names from {', '.join(SETTINGS)}, found {', '.join(unknown)}")
    chosen = {name: SETTINGS[name] for name in ("defaults", *(names or SETTINGS))}
    varied = {variable.split("=")[0] for variables in SETTINGS.values() for variable in variables.split()}
    inherited = {name: value for name, value in os.environ.items() if name not in varied}
    rounds = []
    for _ in range(ROUNDS):
        rounds.append({})
        for name, variables in chosen.items():
            setting = dict(variable.split("=", 1) for variable in variables.split())
            environment = inherited | {"JAX_PLATFORMS": "cpu"} | setting
            done = subprocess.run(
                [sys.executable, __file__, "--child"], env=environment, capture_output=True, text=True
            )
            rounds[-1][name] = json.loads(done.stdout) if done.returncode == 0 else None
    print("| forward, forward + backward | " + " | ".join(SHAPES) + " |")
    print("|---|" + "---|" * len(SHAPES))
    for name, variables in chosen.items():
        cells = []
        for shape in SHAPES:
            complete = [r for r in rounds if r[name]]
            ratios = [[r[name][shape][i] / r["defaults"][shape][i] for r in complete] for i in (0, 1)]
            cells.append(", ".join(f"{statistics.median(ratio):.2f}" if ratio else "failed" for ratio in ratios))
        print(f"| {name} `{variables}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if "--child" in sys.argv:
        print(json.dumps(measure()))
    else:
        main(*sys.argv[1:])
