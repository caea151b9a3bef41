"""Measures how much longer `fit` takes than its own compiled steps: `python benchmarks/fit.py [SOURCE] [--epochs N]`.

`fit` alternates with a bare loop that runs the same steps on batches on the device, so both see the same machine. The
bare loop waits at the end of each epoch, like a loop that prints its loss. It runs once with single steps, and once
with the program of several steps that `fit` runs. The output is the medians over the rounds, in milliseconds per epoch,
and the medians of the ratios. Nothing is validated, and neither compilation nor the first epochs are counted.
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grujax.data import batches, load
from grujax.data.batches import batch_of, plan_of
from grujax.training import Fitted, TrainConfig, chosen, fit
from grujax.training.devices import EVERY
from grujax.training.rows import constants_of
from grujax.training.step import Steps, draw, initial_state, make_optimizer, train_step, train_steps

WARM = 3
"""The number of first epochs that are not counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="JapaneseVowels")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden-size", type=int, default=64)
    options = parser.parse_args()
    data = load(options.source)
    settings = TrainConfig(
        epochs=options.epochs, validation=0.0, batch_size=options.batch_size, hidden_size=options.hidden_size
    )
    config, _ = chosen(settings, data.train)

    def fitted() -> tuple[float, Fitted]:
        ends: list[float] = []
        result = fit(config, data, on_epoch=lambda epoch: ends.append(time.perf_counter()), evaluate_test=False)
        return (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM), result

    _, result = fitted()
    constants = jax.tree.map(jnp.asarray, constants_of(data.train))
    boundaries = tuple(sorted(shape[1] for shape in result.compiled.shapes))
    epoch = list(batches(data.train, config.batch_size, boundaries))
    num_steps, step_config = options.epochs * len(epoch), replace(config, seed=0)
    params = result.model.init(jax.random.key(0), epoch[0].x[:1])["params"]
    state: Any = initial_state(params, make_optimizer(config, num_steps), config)
    singly: list[Any] = []
    for batch in epoch:
        arguments = jax.device_put((constants, batch, draw(config, 0)))
        singly.append((train_step.lower(result.model, step_config, num_steps, state, *arguments).compile(), arguments))
    together: list[Any] = []
    bucket, rows = plan_of(data.train.lengths, config.batch_size, boundaries)
    for first in range(0, len(epoch), EVERY):
        part = slice(first, first + EVERY)
        draws = jax.tree.map(lambda *a: np.stack(a), *(draw(config, 0) for _ in epoch[part]))
        steps = Steps(bucket[part], batch_of(data.train, rows[part], boundaries[-1]), draws)
        arguments = jax.device_put((constants, np.int32(len(epoch[part])), steps))
        static = result.model, step_config, num_steps, boundaries
        together.append((train_steps.lower(*static, state, *arguments).compile(), arguments))

    def bare(calls: list[Any]) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(options.epochs):
            for call, arguments in calls:
                output = call(state, *arguments)
                state = output if calls is singly else output[0]
            jax.block_until_ready(state)
        return (time.perf_counter() - start) / options.epochs

    for calls in (singly, together):
        bare(calls)
    times = [(fitted()[0], bare(singly), bare(together)) for _ in range(options.rounds)]
    medians = [1e3 * statistics.median(each) for each in zip(*times, strict=True)]
    ratios = [statistics.median(each[0] / each[n] for each in times) for n in (1, 2)]
    print(f"{options.source}, {config.hidden_size} units, batches of {config.batch_size}, {len(epoch)} steps per epoch")
    print("fit {:.2f} ms per epoch, bare steps {:.2f}, several in one program {:.2f}".format(*medians), end=": ")
    print("{:.2f} and {:.2f} times as long".format(*ratios))


if __name__ == "__main__":
    main()
