"""Folds the statistics that standardise inputs and targets into the weights, for frameworks that cannot store them."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from grujax.core.heads import of_head, output_of
from grujax.errors import require, require_equal, require_one_of
from grujax.linen.model import GRUModel


def fold_statistics(model: nn.Module, variables: Mapping) -> dict:
    """Returns variables without "statistics", with which the model computes the same from raw inputs, up to rounding.

        w_ih ← w_ih / std        b_ih ← b_ih − (mean / std) w_ih        in the first layer
        kernel ← kernel · std    bias ← bias · std + mean              in the head, if the targets were standardised

    It computes in float64 and rounds the results to the dtype of the parameters.

    Raises:
      InputError: the weights cannot hold the statistics, because the model has no biases, or layer normalisation, or
        frames, or an output activation and statistics of the targets; or the statistics do not fit the model.

    >>> import jax, grujax
    >>> model = grujax.GRUModel(hidden_size=4, output_size=2)
    >>> x = 5 + jax.random.normal(jax.random.key(0), (3, 7, 1))
    >>> variables = model.init(jax.random.key(1), x)
    >>> variables["statistics"] = {"input_mean": jnp.full(1, 5.0), "input_std": jnp.full(1, 2.0)}
    >>> folded = fold_statistics(model, variables)
    >>> bool(abs(model.apply(folded, x) - model.apply(variables, x)).max() < 1e-6)
    True
    """
    require(isinstance(model, GRUModel), "model", "a grujax.GRUModel, which has statistics", type(model).__name__)
    assert isinstance(model, GRUModel)
    remedy = "The zeros that fill up the last frame would be shifted too."
    require_equal(model.steps_per_frame, 1, "steps_per_frame", remedy)
    known = {"params"} <= variables.keys() <= {"params", "statistics"}
    require(known, "variables", '"params", and "statistics"', sorted(variables), "Nothing else can be folded.")
    params = {path: np.asarray(a) for path, a in flatten_dict(dict(variables["params"])).items()}
    input_size = params["encoder", "gru", model.cell_names[0][0], "w_ih"].shape[0]
    checked = checked_statistics(model, variables.get("statistics", {}), input_size)
    statistics = {key: a.astype(np.float64) for key, a in checked.items()}

    def put(path: tuple[str, ...], a: NDArray) -> None:
        params[path] = a.astype(params[path].dtype)

    if "input_mean" in statistics:
        require(model.bias, "bias", "True, to store the mean of the inputs", False)
        require(not model.layer_norm, "layer_norm", "False, since it would cancel the folded statistics", True)
        mean, std = statistics["input_mean"], statistics["input_std"]
        for name in model.cell_names[0]:
            layer = ("encoder", "gru", name)
            w_ih = params[*layer, "w_ih"].astype(np.float64) / std[:, None]
            put((*layer, "b_ih"), params[*layer, "b_ih"] - mean @ w_ih)
            put((*layer, "w_ih"), w_ih)
    for name, layers in model.heads.items():
        targets, (head, _) = of_head(statistics, name), layers[-1]
        if targets:
            remedy = "The statistics apply after the activation, the weights before it."
            require_equal(model.output_activation, None, "output_activation", remedy)
            put((head, "kernel"), params[head, "kernel"] * targets["output_std"])
            put((head, "bias"), params[head, "bias"] * targets["output_std"] + targets["output_mean"])
    return {"params": unflatten_dict({path: jnp.asarray(a) for path, a in params.items()})}


def checked_statistics(model: Any, given: Mapping, input_size: int) -> dict[str, NDArray]:
    """The statistics in NumPy; raises `InputError` unless their names and shapes fit the model."""
    remedy = "Only a GRUModel reads them."
    require(isinstance(model, GRUModel) or not given, "statistics", "none", sorted(given), remedy)
    statistics = {name: np.asarray(a) for name, a in given.items()}
    sizes = {"input": input_size} | {
        output_of(name): layers[-1][1] for name, layers in getattr(model, "heads", {}).items()
    }
    for name, a in statistics.items():
        require_one_of(name, [f"{which}_{s}" for which in sizes for s in ("mean", "std")], f"statistics/{name}")
        which = name.rpartition("_")[0]
        require_equal(a.shape, (sizes[which],), f"statistics/{name}", "It has one number per feature.")
        for other in (f"{which}_mean", f"{which}_std"):
            require(other in statistics, f"statistics/{other}", f"one beside {name}", "none")
    return statistics
