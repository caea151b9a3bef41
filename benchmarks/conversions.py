"""Prints the table of docs/interop.md: what a conversion loses, and the largest difference between both frameworks.

    python benchmarks/conversions.py

Each row converts random float32 models of 10 features and 20 units, runs the other framework and grujax on the same
random data (3 sequences of 7 steps, with a random state and lengths if it takes them), and prints the largest absolute
difference of all outputs over five seeds.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from grujax import GRU, GRUCell, GRUModel
from grujax.interop import ConversionWarning, equinox, flax, haiku, keras, nnx, onnx, stablehlo, torch_files
from grujax.interop.prove import Runner, compare

NOTHING = "nothing"
SPLIT = "the split of the biases"
SEEDS = range(5)


class Row(NamedTuple):
    """A row of the table."""

    framework: str
    models: tuple[nn.Module, ...]
    runner: Callable[[nn.Module, Mapping], Runner]
    loses: str


def _through(framework: Any) -> Callable[[nn.Module, Mapping], Runner]:
    return lambda model, variables: framework.run(framework.build(model, variables), model)


LAYERS = (GRU(20), GRU(20, num_layers=2, bidirectional=True))
BEFORE = tuple(layer.copy(reset_after=False) for layer in LAYERS)
MODELS = (GRUModel(20, 5), GRUModel(20, 5, num_layers=2, bidirectional=True))

ROWS = (
    Row("PyTorch `nn.GRU`, `.pt`", LAYERS, _through(torch_files.TORCH), NOTHING),
    Row("PyTorch `nn.GRUCell`", (GRUCell(20),), _through(torch_files.TORCH), NOTHING),
    Row("PyTorch `nn.GRU` + `nn.Linear`", MODELS, _through(torch_files.TORCH), NOTHING),
    Row("safetensors, torch's keys", MODELS, _through(torch_files.SAFETENSORS), NOTHING),
    Row("Keras, `reset_after=True`", (*LAYERS, *MODELS), _through(keras.FRAMEWORK), NOTHING),
    Row("Keras, `reset_after=False`", BEFORE, _through(keras.FRAMEWORK), SPLIT),
    Row("ONNX, `linear_before_reset=1`", (*LAYERS, *MODELS), _through(onnx.FRAMEWORK), NOTHING),
    Row("ONNX, `linear_before_reset=0`", BEFORE, _through(onnx.FRAMEWORK), NOTHING),
    Row("Flax Linen", (GRUCell(20), *LAYERS), lambda m, v: flax.FRAMEWORK.run(flax.to_flax(m, v), m), SPLIT),
    Row(
        "Flax NNX 0.12",
        (GRUCell(20), *LAYERS),
        lambda m, v: nnx.FRAMEWORK.run(nnx.to_nnx(m, v), m),
        f"{SPLIT}; b_hn refused",
    ),
    Row(
        "Equinox",
        (GRUCell(20), GRU(20, num_layers=2)),
        lambda m, v: equinox.FRAMEWORK.run(equinox.to_equinox(m, v), m),
        SPLIT,
    ),
    Row(
        "Haiku",
        (BEFORE[0], GRU(20, num_layers=2, reset_after=False)),
        lambda m, v: haiku.FRAMEWORK.run(haiku.to_haiku(m, v), m),
        SPLIT,
    ),
    Row(
        "StableHLO (not read back)",
        (*LAYERS, *MODELS),
        _through(stablehlo.FRAMEWORK),
        NOTHING,
    ),
)


def variables_of(model: Any, seed: int, with_b_hn: bool = True) -> dict:
    """Draws parameters like torch's, none of them zero, except b_hn if the framework does not store it."""
    x = jnp.zeros((1, 1, 10))
    arguments = (jnp.zeros((1, model.hidden_size)), x[0]) if isinstance(model, GRUCell) else (x,)
    variables = model.init(jax.random.key(seed), *arguments)

    def without(path: Any, a: jax.Array) -> jax.Array:
        return a.at[2 * model.hidden_size :].set(0) if path[-1].key == "b_hh" and not with_b_hn else a

    return jax.tree_util.tree_map_with_path(without, variables)


def difference(row: Row) -> float:
    """Returns the largest difference over all models and seeds."""
    differences = []
    for seed in SEEDS:
        for model in row.models:
            variables = variables_of(model, seed, with_b_hn="NNX" not in row.framework)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConversionWarning)
                differences.append(compare(model, variables, row.runner(model, variables), seed).largest)
    return float(np.max(differences))


def table() -> str:
    lines = ["| framework | a conversion loses | largest difference, float32 |", "|---|---|---|"]
    lines += [f"| {row.framework} | {row.loses} | {difference(row):.1e} |" for row in ROWS]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    with contextlib.suppress(BrokenPipeError):
        print(table())
