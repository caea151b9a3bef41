"""Measures the costs of a GRU besides its run time: compile time, memory, compilations for ragged data, start-up.

    python benchmarks/costs.py [REPORT.json]

Prints a table for each, after about a minute on two idle cores. With a file name, also writes the figures as JSON.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from startup import Startup, measure_imports, measure_predictions

from grujax.data import Sequences, batches, bucket_boundaries, sequences
from grujax.errors import require
from grujax.linen.layer import GRU
from grujax.saving.atomic import replacing
from grujax.types import Array

Say = Callable[[str], object]


@dataclass(frozen=True)
class Size:
    """B rows, T steps, I input features, H hidden units, L layers."""

    B: int = 32
    T: int = 256
    I: int = 32
    H: int = 64
    L: int = 1

    def __str__(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in vars(self).items())


GROWTH = {"T": (64, 512, 4096), "L": (1, 2, 4), "B": (1, 32, 256)}
"""The sizes for which compile time is measured: one axis at a time differs from `Size()`."""


@dataclass(frozen=True)
class Compilation:
    """Seconds to trace, lower and compile the gradient program at `value` of the varied axis; median of `repeats`."""

    library: str
    axis: str
    value: int
    seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes of temporaries and results of the gradient program; None if the backend does not report them."""

    library: str
    T: int
    bytes: int | None


@dataclass(frozen=True)
class Epoch:
    """The number of compilations in one epoch of ragged data, and the share of padding in its steps."""

    batching: str
    batches: int
    compilations: int
    padding: float


@dataclass(frozen=True)
class Costs:
    """All measurements. A part that was not measured is empty."""

    compilations: tuple[Compilation, ...] = ()
    memory: tuple[Memory, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    imports: tuple[Startup, ...] = ()
    predictions: tuple[Startup, ...] = ()


class FlaxStack(nn.Module):
    """L layers as a user of Flax writes them: `nn.RNN`, which is `nn.scan`, over `nn.GRUCell`."""

    size: Size

    @nn.compact
    def __call__(self, x: Array, h0: Array) -> Any:
        for layer in range(self.size.L):
            x = nn.RNN(nn.GRUCell(self.size.H))(x, initial_carry=h0[layer])  # pyright: ignore[reportAssignmentType]
        return x


class OurStack(nn.Module):
    """The same stack with `grujax.GRU`."""

    size: Size
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Array, h0: Array) -> Array:
        return GRU(self.size.H, num_layers=self.size.L, implementation=self.implementation)(x, h0)[0]  # pyright: ignore


STACKS: dict[str, Callable[[Size], nn.Module]] = {
    "grujax": OurStack,
    "grujax, autodiff": partial(OurStack, implementation="autodiff"),
    "Flax nn.RNN": FlaxStack,
}


def gradient_program(stack: nn.Module, size: Size) -> tuple[Any, tuple]:
    """Returns a new jitted function and its arguments: the gradients of sum(hs²) by weights, x and h0, in float32."""
    x = jax.ShapeDtypeStruct((size.B, size.T, size.I), jnp.float32)
    h0 = jax.ShapeDtypeStruct((size.L, size.B, size.H), jnp.float32)
    variables = jax.eval_shape(stack.init, jax.random.key(0), x, h0)

    def loss(variables: Any, x: Array, h0: Array) -> Array:
        return jnp.square(jnp.asarray(stack.apply(variables, x, h0))).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))), (variables, x, h0)


def compile_seconds(stack: nn.Module, size: Size) -> float:
    """Returns the seconds of one compilation, from the Python function to the executable, without persistent cache."""
    jitted, arguments = gradient_program(stack, size)
    with without_persistent_cache():
        start = time.perf_counter()
        jitted.lower(*arguments).compile()
        return time.perf_counter() - start


def measure_compilations(say: Say, repeats: int = 3) -> tuple[Compilation, ...]:
    """Measures grujax and Flax over `GROWTH`, in rounds of random order, so that noise affects all equally."""
    points = [
        (library, axis, value) for axis in GROWTH for value in GROWTH[axis] for library in ("grujax", "Flax nn.RNN")
    ]
    times: dict[Any, list[float]] = {point: [] for point in points}
    for library in ("grujax", "Flax nn.RNN"):  # the first compilation of a process also loads modules
        compile_seconds(STACKS[library](Size(T=8)), Size(T=8))
    rng = random.Random(0)
    for number in range(repeats):
        say(f"compile time, round {number + 1} of {repeats}")
        for library, axis, value in rng.sample(points, len(points)):
            size = replace(Size(), **{axis: value})
            times[library, axis, value].append(compile_seconds(STACKS[library](size), size))
    return tuple(Compilation(*point, statistics.median(times[point])) for point in points)


def peak_bytes(stack: nn.Module, size: Size) -> int | None:
    """Returns the bytes of temporaries and results, as planned by XLA; arguments are not counted."""
    jitted, arguments = gradient_program(stack, size)
    with without_persistent_cache():  # an executable from the cache may not report its memory
        analysis = jitted.lower(*arguments).compile().memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def measure_memory(say: Say, steps: tuple[int, ...] = GROWTH["T"]) -> tuple[Memory, ...]:
    """Measures the memory of every stack over T."""
    say("memory")
    sizes = [Size(T=T) for T in steps]
    return tuple(Memory(name, size.T, peak_bytes(make(size), size)) for name, make in STACKS.items() for size in sizes)


def count_compilations(ragged_batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """Counts the compilations of a GRU's jitted gradient in a pass over batches of x (B, T, I) and lengths (B,)."""
    traced, layer = 0, GRU(8)
    variables = layer.init(jax.random.key(0), ragged_batches[0][0][:, :1])

    def loss(variables: Any, x: Array, lengths: Array) -> Array:
        nonlocal traced
        traced += 1  # runs only while tracing
        return layer.apply(variables, x, lengths=lengths)[0].sum()  # pyright: ignore

    step = jax.jit(jax.grad(loss))
    for x, lengths in ragged_batches:
        step(variables, x, lengths)
    return traced


def ragged(seed: int = 0) -> Sequences:
    """Draws 270 sequences of 12 channels and 7 to 29 steps, with the mean and spread of JapaneseVowels' lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.normal(15.8, 3.6, 270).round(), 7, 29).astype(int)
    return sequences([rng.normal(size=(n, 12)) for n in lengths])


def to_the_longest(data: Sequences, batch_size: int, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the batches of a plain loop: shuffled rows, each batch (x, lengths) padded to its longest sequence."""
    order = rng.permutation(len(data))
    rows = [data.take(order[first : first + batch_size]) for first in range(0, len(data), batch_size)]
    return [(batch.x, batch.lengths) for batch in rows]


def measure_epochs(say: Say, batch_size: int = 32, buckets: int = 4) -> tuple[Epoch, ...]:
    """Measures an epoch of `ragged` data, in the buckets of `training.fit` and padded to each batch's longest."""
    say("one epoch of ragged data")
    data, rng = ragged(), np.random.default_rng(1)
    ours = batches(data, batch_size, bucket_boundaries(data.lengths, buckets), rng)
    ways = {
        "grujax's buckets": [(batch.x, batch.lengths) for batch in ours],
        "each batch's longest": to_the_longest(data, batch_size, rng),
    }
    real = int(data.lengths.sum())  # rows that fill up a batch count as padding
    return tuple(
        Epoch(way, len(xs), count_compilations(xs), 1 - real / sum(x.shape[0] * x.shape[1] for x, _ in xs))
        for way, xs in ways.items()
    )


PARTS: dict[str, Callable[[Say], tuple]] = {
    "compilations": measure_compilations,
    "memory": measure_memory,
    "epochs": measure_epochs,
    "imports": measure_imports,
    "predictions": measure_predictions,
}
"""The function that measures each field of `Costs`."""


def measure(say: Say = lambda line: None, parts: tuple[str, ...] = tuple(PARTS)) -> Costs:
    """Measures the named parts, by default all: about a minute on two idle cores."""
    unknown = [part for part in parts if part not in PARTS]
    require(not unknown, "parts", f"names from {list(PARTS)}", unknown)
    return Costs(**{part: PARTS[part](say) for part in parts})


def tables(costs: Costs) -> list[Table]:
    """Returns a table for each part that was measured."""
    made = []
    if costs.compilations:
        cells = [(c.library, f"{c.axis} {c.value}", f"{c.seconds:.2f}", c.seconds) for c in costs.compilations]
        made.append(_by_library(f"compile time of forward + backward, s\n{Size()}, one varied", cells))
    if costs.memory:
        shown = [(m, "not reported" if m.bytes is None else f"{m.bytes / 1e6:.1f}") for m in costs.memory]
        cells = [(m.library, f"T {m.T}", text, m.bytes) for m, text in shown]
        made.append(_by_library(f"memory of forward + backward, MB\n{Size()}, T varied", cells))
    if costs.epochs:
        epochs = Table("padded to", "batches", "compilations", "padding", title="one epoch of ragged data")
        for e in costs.epochs:
            epochs.add_row(e.batching, str(e.batches), str(e.compilations), f"{e.padding:.0%}")
        made.append(epochs)
    cells = [
        (s.library, name, "not installed" if s.seconds is None else f"{s.seconds:.2f}", s.seconds)
        for name, startups in (("import", costs.imports), ("from start to first prediction", costs.predictions))
        for s in startups
    ]
    return [*made, _by_library("in a fresh process, s", cells)] if cells else made


def _by_library(title: str, cells: Sequence[tuple[str, str, str, float | None]]) -> Table:
    """Makes a table of rows by libraries from (library, row, text, value). Last column: grujax's value over Flax's."""
    texts = {(row, library): text for library, row, text, _ in cells}
    values = {(row, library): value for library, row, _, value in cells}
    rows, libraries = (list(dict.fromkeys(names)) for names in zip(*texts, strict=True))
    flax = next((library for library in libraries if library.startswith("Flax")), None)
    made = Table(title=title)
    made.add_column("", no_wrap=True)
    for heading in (*libraries, *([f"grujax / {flax}"] if flax else [])):
        made.add_column(heading, justify="right")
    for row in rows:
        grujax_value, flax_value = values.get((row, "grujax")), values.get((row, flax or ""))
        ratio = [f"{grujax_value / flax_value:.2f}x" if grujax_value and flax_value else ""] if flax else []
        made.add_row(row, *(texts.get((row, library), "") for library in libraries), *ratio)
    return made


@contextmanager
def without_persistent_cache() -> Iterator[None]:
    """A context manager that disables JAX's persistent compilation cache."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX looks for a cache only once
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def main(path: Path | None = None) -> None:
    console = Console()
    costs = measure(console.print)
    for table in tables(costs):
        console.print(table)
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(costs), indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
