"""How much longer `fit` takes than its own compiled steps alone: `python benchmarks/fit.py [SOURCE] [--epochs N]`.

In turns `fit` trains, and the same steps run in a bare loop on batches that lie on the device: once it waits at the
end of each epoch, as one that prints its loss does, and once only at the end of all. So all see the same machine.
Printed are the medians over the rounds, in milliseconds an epoch, and of the ratios. Nothing is validated, and neither
compilation nor the first epochs are counted.
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from grujax.data import batches, load
from grujax.training import Fitted, TrainConfig, chosen, fit
from grujax.training.rows import constants_of
from grujax.training.step import draw, initial_state, make_optimizer, train_step

WARM = 3
"""Epochs that are not counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="JapaneseVowels")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden-size", type=int, default=64)
    options = parser.parse_args()
    data = load(options.source)
    given = TrainConfig(
        epochs=options.epochs, validation=0.0, batch_size=options.batch_size, hidden_size=options.hidden_size
    )
    config, _ = chosen(given, data.train)

    def fitted() -> tuple[float, Fitted]:
        ends: list[float] = []
        found = fit(config, data, on_epoch=lambda epoch: ends.append(time.perf_counter()), evaluate_test=False)
        return (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM), found

    _, found = fitted()
    constants = jax.tree.map(jnp.asarray, constants_of(data.train))
    made = list(batches(data.train, config.batch_size, tuple(sorted(shape[1] for shape in found.compiled.shapes))))
    num_steps, step_config = options.epochs * len(made), replace(config, seed=0)
    params = found.model.init(jax.random.key(0), made[0].x[:1])["params"]
    state: Any = initial_state(params, make_optimizer(config, num_steps), config)
    steps: list[Any] = []
    for batch in made:
        given = jax.device_put((constants, batch, draw(config, 0)))
        steps.append((train_step.lower(found.model, step_config, num_steps, state, *given).compile(), given))

    def bare(waits: bool) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(options.epochs):
            for step, given in steps:
                state = step(state, *given)
            if waits:
                jax.block_until_ready(state)
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / options.epochs

    bare(True)
    times = [(fitted()[0], bare(True), bare(False)) for _ in range(options.rounds)]
    medians = [1e3 * statistics.median(each) for each in zip(*times, strict=True)]
    ratios = [statistics.median(of[0] / of[n] for of in times) for n in (1, 2)]
    print(f"{options.source}, {config.hidden_size} units, batches of {config.batch_size}, {len(steps)} steps an epoch")
    print("fit {:.2f} ms an epoch, bare steps {:.2f}, never waiting {:.2f}".format(*medians), end=": ")
    print("{:.2f} and {:.2f} times as long".format(*ratios))


if __name__ == "__main__":
    main()
