"""Measures the sequences per second of `fit` on 1, 2, 4 and 8 CPU devices: `python benchmarks/throughput.py`.

It shows that distributing the rows works, its cost on one machine, and the cost of exchanging gradients. It does not
show how training scales: CPU devices are threads on the same cores, so N devices have no more cores than one, and the
best possible result is no loss. How much faster several GPUs, TPUs or machines are can only be measured on them.

Each count runs in its own process, alternately. A figure is the median over the epochs of all rounds.
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
    """Returns the sequences per second of each epoch except the first two."""
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
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(ROUNDS):
        for count in COUNTS:
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
            environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(
                [sys.executable, __file__, str(count)], env=environment, capture_output=True, text=True, check=True
            )
            rates[count] += json.loads(done.stdout)
    print(
        f"{os.cpu_count()} cores; {ROWS} sequences of {STEPS} steps, batches of {BATCH}, {HIDDEN} units per direction"
    )
    print("| devices | sequences/s | relative to one |\n|---|---|---|")
    medians = {count: statistics.median(values) for count, values in rates.items()}
    for count, median in medians.items():
        print(f"| {count} | {median:,.0f} | {median / medians[1]:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
