"""Sequences a second of `fit` over 1, 2, 4 and 8 devices of this machine's CPU: `python benchmarks/throughput.py`.

What it can say: that sharing rows out works, what it costs on one machine, and what the exchange of gradients adds. The
devices of a CPU are threads on the same cores, so it cannot say how training scales: N of them have no more cores than
one, and the best to hope for is no loss. How many GPUs, TPUs or machines are faster than one is measured there alone.

Each count runs in a process of its own, in turns; a figure is the median over the epochs of all rounds.
"""

import json
import os
import statistics
import subprocess
import sys

COUNTS = (1, 2, 4, 8)
ROUNDS, EPOCHS, WARM = 2, 6, 2
ROWS, STEPS, CHANNELS = 1024, 50, 8
BATCH, HIDDEN = 128, 64


def measure(devices: int) -> list[float]:
    """Sequences a second in each epoch but the first two."""
    import numpy as np

    from grujax.data import Dataset, sequences
    from grujax.training import TrainConfig, fit
    from grujax.training.devices import first_devices

    rng = np.random.default_rng(0)
    data = Dataset("noise", sequences(rng.normal(size=(ROWS, STEPS, CHANNELS)), np.arange(ROWS) % 4))
    config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, hidden_size=HIDDEN, validation=0.0)
    fitted = fit(config, data, mesh=None if devices == 1 else first_devices(devices))
    return [epoch.sequences_per_second for epoch in fitted.history[WARM:]]


def main() -> None:
    found: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(ROUNDS):
        for count in COUNTS:
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
            environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(
                [sys.executable, __file__, str(count)], env=environment, capture_output=True, text=True, check=True
            )
            found[count] += json.loads(done.stdout)
    print(f"{os.cpu_count()} cores; {ROWS} sequences of {STEPS} steps, batches of {BATCH}, {HIDDEN} units both ways")
    print("| devices | sequences/s | beside one |\n|---|---|---|")
    medians = {count: statistics.median(values) for count, values in found.items()}
    for count, median in medians.items():
        print(f"| {count} | {median:,.0f} | {median / medians[1]:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
