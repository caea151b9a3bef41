"""Every setting of a training run: API, command line and saved configuration at once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from grujax.core.config import POOLINGS
from grujax.errors import require, require_one_of

TYPES = {int: (Integral, "an integer"), float: (Real, "a number"), bool: ((bool, np.bool_), "True or False")}
"""What a field of each type takes, and in words. NumPy's scalars are numbers too."""


HeadWeights: TypeAlias = Mapping[str, float] | tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TrainConfig:
    """How `fit` trains. The defaults come from cross-validation (`docs/decisions/training-defaults.md`).

    `grujax.training.chosen` fills in what is None by the training rows. Raises `InputError` for a value out of range.

    >>> TrainConfig(hidden_size=32).batch_size
    16
    """

    hidden_size: int = 64
    """Hidden units of each layer and direction."""
    num_layers: int = 1
    """Layers of the GRU."""
    bidirectional: bool = True
    """Read each sequence in both directions."""
    steps_per_frame: int | None = None
    """Steps that the GRU reads as one (`GRUModel`). None: as many as make 50 frames at most of the longest sequence."""
    pooling: Literal["last", "mean", "max", "attention", "none"] | None = None
    """How the outputs of all steps become one vector; none: each step has an output. None: max; none, where the data
    have a label or target a step."""
    dropout: float = 0.5
    """Between the layers and before the head."""
    reset_after: bool = True
    """True: torch.nn.GRU's equations; False: those of Cho et al. 2014."""
    epochs: int | None = None
    """Passes over the rows that are trained on. None: 100, and as many more as 1200 steps take."""
    patience: int | None = None
    """Epochs without a smaller validation loss after which training ends. None: it does not end before `epochs`."""
    batch_size: int = 16
    """Sequences a step."""
    accumulate: int = 1
    """Steps whose mean gradient moves the weights at once: batches larger than memory holds."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products and the outputs of layers; weights, states and the loss stay in float32."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced": in the training loss a row of class k counts N / (K N_k), so that all classes count alike."""
    learning_rate: float = 1e-2
    """The peak, after warm-up; a cosine leads down to zero."""
    weight_decay: float = 1e-2
    """AdamW's."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises."""
    input_noise: float = 0.0
    """Standard deviation of the noise added to every step of the standardised inputs in training."""
    input_offset: float = 0.4
    """Standard deviation of the constant added to each channel of a sequence in training, standardised too."""
    mixup: float = 0.3
    """Alpha of mixup's Beta(alpha, alpha): in training each sequence is mixed with another of its batch. 0: none."""
    quantiles: tuple[float, ...] = ()
    """Levels, ascending, of a regression: for each target the model gives so many quantiles, by the pinball loss
    (Koenker and Bassett 1978), in place of the mean by squared error."""
    head_weights: HeadWeights = ()
    """What the loss of one of several heads counts in their sum, by its name; 1 where it is not named."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes."""
    averaging: float = 0.1
    """Share of all steps that the moving average of the weights spans; the average is what is validated and kept."""
    validation: float | None = None
    """Share of the training set held out to choose the best epoch. It is never exceeded: with very many classes, some
    have no held-out row. 0: all rows are trained on, and the last average is kept. None: 0.1 where that is 30 rows or
    more, else 0."""
    buckets: int = 4
    """At most so many padded lengths, for each of which the training step is compiled."""
    members: int = 1
    """Models that are trained beside each other, each with weights and draws of its own; the mean of their predictions
    is what is validated, kept and saved (`GRUEnsemble`)."""
    seed: int = 0
    """Of the split, the initial weights, the order of batches and the dropout."""

    def __post_init__(self) -> None:
        for f in fields(TrainConfig):
            kind, *none = get_args(f.type) if isinstance(f.type, UnionType) else (f.type,)
            if kind in TYPES and not (none and getattr(self, f.name) is None):
                value, (allowed, expected) = getattr(self, f.name), TYPES[kind]
                fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
                require(fits, f.name, expected + (" or None" if none else ""), repr(value))
        given = self.head_weights
        pairs: list[Any] = (
            list(given.items() if isinstance(given, Mapping) else given) if isinstance(given, Iterable) else [None]
        )
        fits = all(isinstance(of, (tuple, list)) and len(of) == 2 and _weighs(*of) for of in pairs)
        fits = fits and len(dict(pairs)) == len(pairs)
        require(fits, "head_weights", "a positive number by the name of each head", repr(given))
        object.__setattr__(self, "head_weights", tuple((name, float(count)) for name, count in pairs))  # can be hashed
        levels, expected = self.quantiles, "ascending levels between 0 and 1"
        numbers = isinstance(levels, (tuple, list)) and all(isinstance(level, Real) for level in levels)
        require(numbers, "quantiles", expected, repr(levels), "Write (0.1, 0.9).")
        object.__setattr__(self, "quantiles", tuple(levels))  # JSON has lists
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
    number, _ = TYPES[float]
    fits = isinstance(name, str) and name != "" and isinstance(count, number) and not isinstance(count, bool)
    return fits and bool(1e-30 < count < 1e30)  # also in float32
