"""`chosen`, which derives the settings that are None from the training rows."""

import math
from dataclasses import replace
from typing import Any

from grujax.core.config import POOLINGS
from grujax.data import Sequences
from grujax.data.sequences import require_sequences
from grujax.errors import require
from grujax.training.config import TrainConfig

HELD = 30
"""The fewest validation rows. With fewer, the best epoch would be chosen by luck."""
EPOCHS, STEPS, FRAMES = 100, 1200, 50
"""The fewest epochs and steps of a run, and the most frames of a sequence."""


def chosen(config: TrainConfig, train: Sequences) -> tuple[TrainConfig, dict[str, str]]:
    """Returns the config with a value for each setting that is None, and the reason for each choice by setting.

    Sets `pooling`, `steps_per_frame`, `validation` and `epochs`; the other settings stay as they are. Raises
    `InputError` for settings that do not fit the labels or targets of `train`.

    >>> from grujax.data import sequences
    >>> config, why = chosen(TrainConfig(), sequences([[[1.0]]] * 40))
    >>> config.validation, config.epochs
    (0.0, 400)
    >>> print(why["epochs"])
    400 epochs: 100 would be 300 steps, fewer than 1200
    """
    require(
        isinstance(config, TrainConfig), "config", "a `TrainConfig`", type(config).__name__, "Write TrainConfig(...)."
    )
    require_sequences(train, "train")
    classes = not train.targets or any(target.labels is not None for target in train.targets.values())
    rule, remedy = "label_smoothing needs classes", "Leave it at 0: the data have the targets of a regression."
    require(classes or not config.label_smoothing, "label_smoothing", 0.0, config.label_smoothing, remedy, rule=rule)
    values: dict[str, Any] = {}
    why: dict[str, str] = {}
    if config.pooling is None:
        values["pooling"] = "none" if train.per_step else "max"
        if train.per_step:
            why["pooling"] = "an output for each step, as each has a label or target"
    pooled = values.get("pooling", config.pooling) != "none"
    each = "step" if train.per_step else "sequence"
    rule = f"a label or target for each {each} needs pooling{' none' if train.per_step else ''}"
    fits = not train.targets or pooled != train.per_step
    expected = "'none'" if train.per_step else f"one of {list(POOLINGS)}"
    require(fits, "pooling", expected, repr(config.pooling), "Leave it at None: it follows from the data.", rule=rule)
    if config.steps_per_frame is None and not pooled:
        values["steps_per_frame"] = 1
    elif config.steps_per_frame is None:
        longest = int(train.lengths.max())
        values["steps_per_frame"] = size = math.ceil(longest / FRAMES)
        if size > 1:
            frames = math.ceil(longest / size)
            more = f"{longest} steps are more than {FRAMES}"
            why["steps_per_frame"] = f"{size} steps per frame: {frames} frames, because {more}"
    if config.validation is None:
        held = round(0.1 * len(train))
        values["validation"] = 0.1 if held >= HELD else 0.0
        why["validation"] = (
            f"{held} rows held out, to choose the best epoch"
            if values["validation"]
            else f"all {len(train)} rows are trained on and the last weights kept: "
            f"a tenth, {held} rows, is too few to choose the best epoch"
        )
    share = values.get("validation", config.validation) or 0.0
    per_epoch = max(1, math.ceil((len(train) - round(share * len(train))) / config.batch_size))
    if config.epochs is None:
        epochs = max(EPOCHS, math.ceil(STEPS / per_epoch))
        values["epochs"] = epochs
        fewer = f"{EPOCHS} would be {EPOCHS * per_epoch} steps, fewer than {STEPS}"
        why["epochs"] = f"{epochs} epochs: {fewer if epochs > EPOCHS else f'{epochs * per_epoch} steps or more'}"
    return replace(config, **values), why
