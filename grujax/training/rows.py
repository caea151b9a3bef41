"""What follows from the training rows: statistics, the model, class weights, their fingerprint."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grujax.data import Batch, Sequences, statistics
from grujax.errors import require
from grujax.linen import GRUEnsemble, GRUModel
from grujax.training.config import TrainConfig


def constants_of(train: Sequences, quantiles: tuple[float, ...] = ()) -> dict[str, np.ndarray]:
    """Mean and standard deviation of the inputs (I,) and, in regression, of the targets (K,), once a quantile."""
    mean, std = statistics(train)
    constants = {"input_mean": mean, "input_std": std}
    if train.labels is None:
        assert train.y is not None
        y = train.y[train.labelled] if train.per_step else train.y.reshape(len(train), -1)
        std = y.std(0, dtype=np.float64)
        constants["output_mean"] = y.mean(0, dtype=np.float64).astype(np.float32)
        constants["output_std"] = np.where(std == 0, 1, std).astype(np.float32)
        if quantiles:
            constants |= {name: constants[name].repeat(len(quantiles)) for name in ("output_mean", "output_std")}
    rule, remedy = "quantiles needs a regression", "These rows have classes."
    require(not quantiles or train.labels is None, "quantiles", "none", quantiles, remedy, rule=rule)
    return constants


def model_for(config: TrainConfig, train: Sequences, constants: dict[str, np.ndarray]) -> GRUModel[int]:
    """The model that is trained: of a config without None, with an output for each class or target."""
    assert config.steps_per_frame is not None
    return GRUModel(
        config.hidden_size,
        constants["output_mean"].size if train.labels is None else len(train.labels),
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        pooling=None if config.pooling == "none" else config.pooling,
        dropout=config.dropout,
        steps_per_frame=config.steps_per_frame,
        reset_after=config.reset_after,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
    )


def ensemble_of(config: TrainConfig, model: GRUModel[int], train: Sequences) -> GRUModel[int] | GRUEnsemble:
    """What `fit` hands out: the model, or several of its form."""
    return model if config.members == 1 else GRUEnsemble(model, config.members, train.labels is not None)


def class_weights(train: Sequences, config: TrainConfig) -> np.ndarray | None:
    """(K,) float32: what a row of each class counts; None where all count 1."""
    if config.class_weights == "none":
        return None
    rule, remedy = "class_weights='balanced' needs classes", "These are targets of a regression."
    require(train.labels is not None, "class_weights", "'none'", "'balanced'", remedy, rule=rule)
    rule, remedy = "class_weights='balanced' needs a label a sequence", "These are labels a step."
    require(not train.per_step, "class_weights", "'none'", "'balanced'", remedy, rule=rule)
    assert train.labels is not None and train.y is not None
    counts = np.bincount(train.y, minlength=len(train.labels))
    return (len(train) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def row_weights(train: Sequences, config: TrainConfig) -> np.ndarray | None:
    """(N,) float32 of mean 1: what each row counts, its own weight times that of its class; None where all are 1."""
    of_class = class_weights(train, config)
    if of_class is None and train.weight is None:
        return None
    weights = np.ones(len(train)) if train.weight is None else train.weight.astype(np.float64)
    weights = weights if of_class is None else weights * of_class[train.y]
    return (weights / weights.mean()).astype(np.float32)


def weighed(batch: Batch, weights: np.ndarray | None) -> Batch:
    """The batch with the weights (N,) of its rows."""
    return batch if weights is None else batch._replace(weight=batch.weight * weights[batch.rows])


def fingerprint(train: Sequences, variables: Any = None) -> str:
    """SHA-256 of the training rows and of the variables that training begins with."""
    digest = hashlib.sha256(repr((train.x.shape, train.labels)).encode())
    for array in (train.x, train.lengths, train.y, *jax.tree.leaves((train.weight, variables))):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
