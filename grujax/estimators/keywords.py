"""Parameters that an estimator has not: the TypeError names the class and says what to write."""

import difflib
import functools
import inspect
from dataclasses import fields
from typing import TypeVar

from grujax.core.keywords import OURS
from grujax.training import TrainConfig

INSTEAD = OURS | {"seed": "random_state", "random_state": "seed", "lr": "learning_rate", "max_iter": "epochs"}
"""Another name of a parameter: ours."""

Class = TypeVar("Class", bound=type)


def explained(cls: Class) -> Class:
    """`cls`, a dataclass, with a constructor whose TypeError, for another word, says what to write."""
    made = cls.__init__
    names = [f.name for f in fields(cls) if f.init]

    @functools.wraps(made)
    def __init__(self, *args, **parameters) -> None:
        name = type(self).__name__
        for word in parameters:
            if word not in names:
                raise TypeError(f"{name} has no parameter {word}. {_instead(word, name, names)}")
        made(self, *args, **parameters)

    setattr(__init__, "__signature__", inspect.signature(made))  # noqa: B010, which frameworks read parameters from
    setattr(cls, "__init__", __init__)  # noqa: B010, pyright knows no method that may be assigned
    return cls


def _instead(word: str, name: str, names: list[str]) -> str:
    trained = [f.name for f in fields(TrainConfig)] if "training" in names else []
    known = [*names, *trained]
    near = [ours for ours in (word, INSTEAD.get(word)) if ours in known] or difflib.get_close_matches(word, known, 1)
    if not near:
        return f"It has {', '.join(names)}."
    return f"Write {near[0]}=." if near[0] in names else f"Write training=replace({name}.training, {near[0]}=...)."
