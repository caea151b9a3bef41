"""First differences and per-series normalisation beside the raw channels, cross-validated on training rows alone.

`python benchmarks/try_channels.py` prints a JSON line for each set, split and variant: the mean accuracy of two seeds
in three folds, that of the two seeds' mean probabilities, the nearest neighbour's, and CPU seconds. Test sets are not
read. docs/decisions/training-defaults.md says what followed.
"""

import json
import time

import numpy as np
from scipy.special import softmax
from sklearn.model_selection import StratifiedKFold

from grujax.data import Dataset, Sequences, load
from grujax.training import TrainConfig, baselines, fit, outputs_of

SETS = (
    "ArrowHead", "GunPoint", "Covid3Month_disc", "UnitTest", "ItalyPowerDemand", "BasicMotions", "JapaneseVowels",
)  # fmt: skip
VARIANTS = ("raw", "differences", "differences and normalised")


def with_channels(data: Sequences, variant: str) -> Sequences:
    """The data with the further channels of a variant."""
    x, valid = data.x, (np.arange(data.x.shape[1]) < data.lengths[:, None])[..., None]
    parts = [x]
    if "normalised" in variant:
        count = data.lengths[:, None, None]
        centred = (x - x.sum(1, keepdims=True) / count) * valid
        std = np.sqrt((centred**2).sum(1, keepdims=True) / count)
        parts.append(centred / np.where(std == 0, 1, std))
    if "differences" in variant:
        parts.append(np.diff(x, axis=1, prepend=x[:, :1]) * valid)
    return Sequences(np.concatenate(parts, -1).astype(np.float32), data.lengths, data.y, data.labels)


def cross_validate(name: str, variant: str, split: int) -> dict[str, float]:
    """Figures in % over three folds: shuffled by `split`, of JapaneseVowels blocks of the file."""
    data, began = with_channels(load(name).train, variant), time.process_time()
    assert data.y is not None
    folds = StratifiedKFold(3) if name == "JapaneseVowels" else StratifiedKFold(3, shuffle=True, random_state=split)
    right, of_two, neighbour = 0.0, 0.0, 0.0
    for rest, held in folds.split(data.x, data.y):
        train, test = data.take(rest), data.take(held)
        assert test.y is not None
        runs = [fit(TrainConfig(seed=2 * split + k), Dataset(name, train, test), evaluate_test=False) for k in (0, 1)]
        outputs = [outputs_of(run.model, run.variables, test) for run in runs]
        right += float(np.mean([(output.argmax(1) == test.y).sum() for output in outputs]))
        of_two += float((softmax(outputs, axis=2).sum(0).argmax(1) == test.y).sum())
        neighbour += baselines(train, test)["nearest neighbour"] * len(test)
    figures = {"accuracy": right, "two members": of_two, "nearest neighbour": neighbour}
    return {k: 100 * v / len(data) for k, v in figures.items()} | {"cpu": time.process_time() - began}


if __name__ == "__main__":
    for name in SETS:
        for split in (0, 1):
            for variant in VARIANTS:
                print(
                    json.dumps({"set": name, "split": split, "variant": variant} | cross_validate(name, variant, split))
                )
