"""The parameters of an estimator: the fields of `TrainConfig`, by the conventions of scikit-learn."""

from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from grujax.core.keywords import explained
from grujax.errors import require
from grujax.training import TrainConfig
from grujax.training.config import HeadWeights


@explained
@dataclass(frozen=True, kw_only=True)
class Parameters(TrainConfig):
    """The fields of `TrainConfig` as parameters, except `quantiles` and `head_weights`, which scikit-learn's scores
    do not support. `seed` has scikit-learn's name, `random_state`."""

    quantiles: tuple[float, ...] = field(default=(), init=False)
    head_weights: HeadWeights = field(default=(), init=False)
    seed: int = field(default=0, init=False)
    random_state: int | np.random.RandomState | None = 0
    """Seed of the validation split, the initial weights, the order of batches, and the noise, mixup and dropout; see
    scikit-learn's glossary."""

    def config(self) -> TrainConfig:
        """Returns the parameters as a `TrainConfig`. Raises `InputError` for a value out of range."""
        seed = self.random_state
        if seed is None or isinstance(seed, np.random.RandomState):
            seed = check_random_state(seed).randint(2**31)
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(TrainConfig)}
        fits = isinstance(seed, Integral) and 0 <= seed < 2**32
        require(fits, "random_state", "an integer from 0 to 2**32 - 1, a RandomState or None", repr(seed))
        values["seed"] = int(seed)
        return TrainConfig(**values)


class Settable:
    """Makes a frozen dataclass behave like an estimator of scikit-learn, whose parameters can be set at any time and
    are checked in `fit`. Must precede `Parameters` among the base classes."""

    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__
    __eq__ = object.__eq__
    __hash__ = object.__hash__
    __repr__ = BaseEstimator.__repr__

    def __post_init__(self) -> None:
        pass
