"""`TrainConfig`, the settings of a training run. The Python API, the command line and saved runs share it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from grujax.core.config import POOLINGS
from grujax.errors import require, require_one_of

TYPES = {int: (Integral, "an integer"), float: (Real, "a number"), bool: ((bool, np.bool_), "True or False")}
"""The values that a field of each type accepts, and their description. NumPy's scalars are accepted as numbers."""


HeadWeights: TypeAlias = Mapping[str, float] | tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `fit`. The defaults come from cross-validation (`docs/decisions/training-defaults.md`).

    `grujax.training.chosen` derives each setting that is None from the training rows. Raises `InputError` for a value
    of a wrong type or out of range.

    >>> TrainConfig(hidden_size=32).batch_size
    16
    """

    # `grujax train --help` keeps the line breaks of these docstrings: they are between sentences.
    hidden_size: int = 64
    """Hidden units per layer and direction."""
    num_layers: int = 1
    """Number of GRU layers."""
    bidirectional: bool = True
    """Read each sequence in both directions."""
    steps_per_frame: int | None = None
    """Steps that the GRU reads as one frame (`GRUModel`).
    None: so many that the longest sequence has at most 50 frames; 1 where each step has an output."""
    pooling: Literal["last", "mean", "max", "attention", "none"] | None = None
    """How the outputs of all steps are reduced to one vector; "none" keeps an output for each step.
    None: "max", or "none" if the data have a label or target for each step."""
    dropout: float = 0.5
    """Dropout rate between the layers and before the head."""
    reset_after: bool = True
    """True: the equations of torch.nn.GRU. False: the equations of Cho et al. 2014."""
    epochs: int | None = None
    """Passes over the training rows. None: 100, or more if 100 make fewer than 1200 steps."""
    patience: int | None = None
    """Training ends after this many epochs without a smaller validation loss. None: only after `epochs`."""
    batch_size: int = 16
    """Sequences per step."""
    accumulate: int = 1
    """Number of steps whose mean gradient makes one update of the weights: for batches that do not fit into memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the products and the layer outputs. Weights, states and the loss stay in float32."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced": a row of class k weighs N / (K N_k) in the training loss, so that all classes count equally."""
    learning_rate: float = 1e-2
    """Peak learning rate, reached after the warm-up; it then falls to zero along a cosine."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; a larger gradient is scaled down to it."""
    warmup: float = 0.1
    """Share of all steps during which the learning rate rises."""
    input_noise: float = 0.0
    """Standard deviation of the noise added to every step of the standardised inputs in training."""
    input_offset: float = 0.4
    """Standard deviation of the constant added to each standardised channel of a sequence in training."""
    mixup: float = 0.3
    """Alpha of mixup's Beta(alpha, alpha): in training each sequence is mixed with another of its batch. 0: off."""
    quantiles: tuple[float, ...] = ()
    """Ascending quantile levels for a regression. The model then predicts these quantiles of each target, trained with
    the pinball loss (Koenker and Bassett 1978), instead of the mean, trained with the squared error."""
    head_weights: HeadWeights = ()
    """With several heads, the factor of each head's loss in their sum, by the name of the head; 1 for other heads."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes."""
    averaging: float = 0.1
    """Span of the moving average of the weights, as a share of all steps. The average is what is validated and kept."""
    validation: float | None = None
    """Share of the training set held out to choose the best epoch.
    It is never exceeded: with very many classes, some have no held-out row.
    0: trains on all rows and keeps the last averaged weights. None: 0.1 if that is 30 rows or more, else 0."""
    buckets: int = 4
    """Largest number of padded lengths; the training step is compiled for each of them."""
    members: int = 1
    """Number of models that are trained together, each with its own weights and random draws.
    They are validated, kept and saved as one `GRUEnsemble`, whose prediction is the mean of theirs."""
    seed: int = 0
    """Seed of the split, the initial weights, the order of batches, and the noise, mixup and dropout."""

    def __post_init__(self) -> None:
        for f in fields(TrainConfig):
            kind, *none = get_args(f.type) if isinstance(f.type, UnionType) else (f.type,)
            if kind in TYPES and not (none and getattr(self, f.name) is None):
                value, (allowed, expected) = getattr(self, f.name), TYPES[kind]
                fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
                require(fits, f.name, expected + (" or None" if none else ""), repr(value))
        heads = self.head_weights
        pairs: list[Any] = (
            list(heads.items() if isinstance(heads, Mapping) else heads) if isinstance(heads, Iterable) else [None]
        )
        fits = all(isinstance(pair, (tuple, list)) and len(pair) == 2 and _weighs(*pair) for pair in pairs)
        fits = fits and len(dict(pairs)) == len(pairs)
        require(fits, "head_weights", "a positive number for each head, by name", repr(heads))
        object.__setattr__(self, "head_weights", tuple((name, float(count)) for name, count in pairs))  # hashable
        levels, expected = self.quantiles, "ascending levels between 0 and 1"
        numbers = isinstance(levels, (tuple, list)) and all(isinstance(level, Real) for level in levels)
        require(numbers, "quantiles", expected, repr(levels), "Write (0.1, 0.9).")
        object.__setattr__(self, "quantiles", tuple(levels))  # JSON has no tuples
        rising = list(levels) == sorted(set(levels)) and all(0 < level < 1 for level in levels)
        require(rising, "quantiles", expected, levels)
        counts = ("hidden_size", "num_layers", "epochs", "patience", "batch_size", "buckets", "steps_per_frame")
        for name in (*counts, "accumulate", "members"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "at least 1", value)
        require(self.members <= 1000, "members", "at most 1000", self.members)
        for name in ("learning_rate", "clip_norm"):
            require(0 < getattr(self, name) < float("inf"), name, "a positive number", getattr(self, name))
        for name in ("weight_decay", "input_noise", "input_offset", "mixup"):
            require(0 <= getattr(self, name) < float("inf"), name, "zero or a positive number", getattr(self, name))
        for name in ("dropout", "warmup", "label_smoothing", "averaging"):
            require(0 <= getattr(self, name) < 1, name, "from 0 to below 1", getattr(self, name))
        require(self.validation is None or 0 <= self.validation < 1, "validation", "from 0 to below 1", self.validation)
        require(0 <= self.seed < 2**32, "seed", "an integer from 0 to 2**32 - 1", self.seed)
        require_one_of(self.pooling, (*POOLINGS, "none", None), "pooling")
        require_one_of(self.precision, ("float32", "bfloat16"), "precision")
        require_one_of(self.class_weights, ("none", "balanced"), "class_weights")


def _weighs(name: Any, count: Any) -> bool:
    """Whether `name` can name a head and `count` be the factor of its loss."""
    number, _ = TYPES[float]
    fits = isinstance(name, str) and name != "" and isinstance(count, number) and not isinstance(count, bool)
    return fits and bool(1e-30 < count < 1e30)  # positive and finite in float32 too
