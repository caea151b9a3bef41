"""How much longer `fit` takes than its own compiled steps alone: `python benchmarks/fit.py [SOURCE] [--epochs N]`.

After each epoch of `fit` the same steps run in a bare loop on batches that lie on the device, so both see the same
machine. Printed are the medians over the epochs, in milliseconds, and their ratio. Nothing is validated.
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from grujax.data import batches, load
from grujax.training import TrainConfig, chosen, fit
from grujax.training.rows import constants_of
from grujax.training.step import draw, initial_state, make_optimizer, train_step

WARM = 3
"""Epochs that are not counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="JapaneseVowels")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden-size", type=int, default=64)
    options = parser.parse_args()
    data = load(options.source)
    given = TrainConfig(
        epochs=options.epochs, validation=0.0, batch_size=options.batch_size, hidden_size=options.hidden_size
    )
    config, _ = chosen(given, data.train)
    steps: list[Any] = []
    state: Any = None
    of_fit, bare, last = [], [], 0.0

    def prepare(model: Any, boundaries: tuple[int, ...]) -> None:
        nonlocal state
        constants = jax.tree.map(jnp.asarray, constants_of(data.train))
        made = list(batches(data.train, config.batch_size, boundaries))
        num_steps, step_config = options.epochs * len(made), replace(config, seed=0)
        params = model.init(jax.random.key(0), made[0].x[:1])["params"]
        state = initial_state(params, make_optimizer(config, num_steps), config)
        for batch in made:
            given = jax.device_put((constants, batch, draw(config, 0)))
            lowered = train_step.lower(model, step_config, num_steps, state, *given)
            steps.append((lowered.compile(), given))

    def on_best(fitted: Any) -> None:
        if not steps:
            prepare(fitted.model, tuple(sorted(shape[1] for shape in fitted.compiled.shapes)))

    def on_epoch(epoch: Any) -> None:
        nonlocal state, last
        began = time.perf_counter()
        if last:
            of_fit.append(began - last)
        for step, given in steps:
            state = step(state, *given)
        jax.block_until_ready(state)
        last = time.perf_counter()
        bare.append(last - began)

    fit(config, data, on_best=on_best, on_epoch=on_epoch, evaluate_test=False)
    medians = [1e3 * statistics.median(times[WARM:]) for times in (of_fit, bare)]
    print(f"{options.source}, {config.hidden_size} units, batches of {config.batch_size}, {len(steps)} steps an epoch")
    print(
        f"fit {medians[0]:.2f} ms an epoch, bare steps {medians[1]:.2f} ms: {medians[0] / medians[1]:.2f} times as long"
    )


if __name__ == "__main__":
    main()
