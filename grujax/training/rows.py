"""Everything that is derived from the training rows: their statistics, the model, row weights and a fingerprint."""

import hashlib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grujax.core.heads import output_of
from grujax.data import Batch, Sequences, statistics
from grujax.data.checks import shown
from grujax.data.targets import unnamed
from grujax.errors import require
from grujax.linen import GRUEnsemble, GRUModel
from grujax.training.config import HeadWeights, TrainConfig


def constants_of(train: Sequences, quantiles: tuple[float, ...] = ()) -> dict[str, np.ndarray]:
    """Returns mean and standard deviation of the inputs (I,) and, for each regression head, of its targets (K,).

    With Q quantiles each target's statistics are repeated Q times: (K*Q,).
    """
    mean, std = statistics(train)
    constants = {"input_mean": mean, "input_std": std}
    for name, target in train.targets.items():
        if target.labels is not None:
            continue
        y = target.y[target.labelled] if target.per_step else target.y.reshape(len(train), -1)
        std = y.std(0, dtype=np.float64)
        of_targets = {"mean": y.mean(0, dtype=np.float64), "std": np.where(std == 0, 1, std)}
        constants |= {
            f"{output_of(name)}_{statistic}": array.astype(np.float32).repeat(len(quantiles) or 1)
            for statistic, array in of_targets.items()
        }
    rule = "quantiles needs a regression with a single head"
    remedy = "The data have classes." if "" in train.targets else "Train one head alone: of_head(name) of the data."
    require(not quantiles or "output_mean" in constants, "quantiles", "none", quantiles, remedy, rule=rule)
    return constants


def model_for(config: TrainConfig, train: Sequences, constants: dict[str, np.ndarray]) -> GRUModel:
    """Returns the model to train, with an output for each class or target of each head.

    No setting of `config` that the model needs may be None: `chosen` fills them in.
    """
    assert config.steps_per_frame is not None
    sizes = {
        name: constants[f"{output_of(name)}_mean"].size if target.labels is None else len(target.labels)
        for name, target in train.targets.items()
    }
    return GRUModel(
        config.hidden_size,
        unnamed(sizes),
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        pooling=None if config.pooling == "none" else config.pooling,
        dropout=config.dropout,
        steps_per_frame=config.steps_per_frame,
        reset_after=config.reset_after,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
    )


def ensemble_of(config: TrainConfig, model: GRUModel, train: Sequences) -> GRUModel | GRUEnsemble:
    """Returns the module that `fit` returns: the model, or an ensemble of `members` such models."""
    rule, remedy = f"members={config.members} needs a single head", "Train one model for each seed."
    require(config.members == 1 or "" in train.targets, "members", 1, config.members, remedy, rule=rule)
    return model if config.members == 1 else GRUEnsemble(model, config.members, train.labels is not None)


def weights_of_heads(head_weights: HeadWeights, names: Collection[str]) -> dict[str, float]:
    """Returns the factor of each head's loss by name: that of `head_weights`, or else 1."""
    unknown = [name for name in dict(head_weights) if name not in names]
    require(not unknown, "head_weights", f"heads of the data: {shown(filter(None, names))}", shown(unknown))
    return dict.fromkeys(names, 1.0) | dict(head_weights)


def class_weights(train: Sequences, config: TrainConfig) -> dict[str, np.ndarray]:
    """Returns the weight of a row by its class, (K,) float32 for each head with classes; {} without weights."""
    if config.class_weights == "none":
        return {}
    targets = {name: target for name, target in train.targets.items() if target.labels is not None}
    rule, remedy = "class_weights='balanced' needs classes", "The data have the targets of a regression."
    require(bool(targets), "class_weights", "'none'", "'balanced'", remedy, rule=rule)
    rule, remedy = "class_weights='balanced' needs a label for each sequence", "The data have a label for each step."
    require(not train.per_step, "class_weights", "'none'", "'balanced'", remedy, rule=rule)
    counts = {name: np.bincount(y, minlength=len(labels or ())) for name, (y, labels) in targets.items()}
    return {name: (len(train) / (len(n) * np.maximum(n, 1))).astype(np.float32) for name, n in counts.items()}


def row_weights(train: Sequences, config: TrainConfig) -> Any:
    """Returns the factor of each row's loss, (N,) float32, with several heads by name; None if all are 1.

    It is the row's own weight times the weight of its class, scaled to mean 1, times the weight of the head.
    """
    of_heads = weights_of_heads(config.head_weights, train.targets)
    of_classes = class_weights(train, config)
    if not of_classes and train.weight is None and not config.head_weights:
        return None
    of_rows = np.ones(len(train)) if train.weight is None else train.weight.astype(np.float64)
    products = {}
    for name, target in train.targets.items():
        weights = of_rows * of_classes[name][target.y] if name in of_classes else of_rows
        products[name] = (of_heads[name] * weights / weights.mean()).astype(np.float32)
    return unnamed(products)


def weighed(batch: Batch, weights: Any) -> Batch:
    """Returns the batch with the weights (N,) of its rows; with several heads these are by name."""
    if weights is None:
        return batch
    return batch._replace(weight=jax.tree.map(lambda a: batch.weight * a[batch.rows], weights))


def fingerprint(train: Sequences, variables: Any = None) -> str:
    """The SHA-256 of the training rows and of the variables that training starts from."""
    digest = hashlib.sha256(repr((train.x.shape, train.labels)).encode())
    for array in (train.x, train.lengths, *jax.tree.leaves((train.y, train.weight, variables))):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
