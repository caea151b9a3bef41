"""How `TrainConfig`'s defaults were chosen: 5-fold cross-validation on JapaneseVowels' 270 training utterances alone.

The test set is never read. Each candidate changes one thing or two from `BASE`; each fold runs the whole of `fit`, its
own validation split and choice of epoch included, and is judged on the fold it has not seen. Run as
`python benchmarks/choose_defaults.py`; the result is `benchmarks/results/choose_defaults.json`.
"""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import StratifiedKFold

from grujax.data import Dataset, load
from grujax.saving import replacing
from grujax.training import TrainConfig, fit

BASE = TrainConfig(
    hidden_size=128, pooling="mean", dropout=0.3, epochs=60, input_noise=0.0, label_smoothing=0.0, validation=0.2
)
CANDIDATES: dict[str, dict] = {
    "base": {},
    "noise 0.3": {"input_noise": 0.3},
    "noise 0.6": {"input_noise": 0.6},
    "smoothing 0.1": {"label_smoothing": 0.1},
    "noise 0.3, smoothing 0.1": {"input_noise": 0.3, "label_smoothing": 0.1},
    "noise 0.6, smoothing 0.1": {"input_noise": 0.6, "label_smoothing": 0.1},
    "noise 0.6, dropout 0.5": {"input_noise": 0.6, "dropout": 0.5},
    "noise 0.6, max": {"input_noise": 0.6, "pooling": "max"},
    "noise 0.6, last": {"input_noise": 0.6, "pooling": "last"},
    "noise 0.6, validation 0.1": {"input_noise": 0.6, "validation": 0.1},
    "noise 0.6, H 64": {"input_noise": 0.6, "hidden_size": 64},
    "noise 0.6, H 256": {"input_noise": 0.6, "hidden_size": 256},
    "noise 0.6, one direction": {"input_noise": 0.6, "bidirectional": False},
    "noise 1.0": {"input_noise": 1.0},
    "noise 0.6, two layers": {"input_noise": 0.6, "num_layers": 2},
    "noise 0.6, rate 1e-3": {"input_noise": 0.6, "learning_rate": 1e-3},
    "noise 0.6, 150 epochs": {"input_noise": 0.6, "epochs": 150},
}
FOLDS, SEEDS = 5, (0, 1)
RESULT = Path(__file__).parent / "results" / "choose_defaults.json"


def cross_validate(config: TrainConfig) -> dict[str, float]:
    """Accuracy and cross-entropy over all folds and seeds together."""
    train = load("JapaneseVowels").train
    scores = []
    for seed in SEEDS:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(train.y, train.y)
        for fold, (rest, held) in enumerate(folds):
            data = Dataset("fold", train.take(rest), train.take(held))
            scores.append(fit(dataclasses.replace(config, seed=FOLDS * seed + fold), data).test)
    rows = np.array([s.count for s in scores])
    return {k: float(np.average([getattr(s, k) for s in scores], weights=rows)) for k in ("accuracy", "loss")}


def main() -> None:
    console, results = Console(), {}
    RESULT.parent.mkdir(exist_ok=True)
    for name, changes in CANDIDATES.items():
        began = time.perf_counter()
        results[name] = cross_validate(dataclasses.replace(BASE, **changes)) | {"changes": changes}
        console.print(f"{name}: {results[name]} in {time.perf_counter() - began:.0f} s")
        with replacing(RESULT) as path:
            path.write_text(json.dumps({"base": dataclasses.asdict(BASE), "candidates": results}, indent=2) + "\n")
    table = Table("candidate", "accuracy %", "cross-entropy", title=f"{FOLDS} folds, seeds {SEEDS}")
    for name, r in sorted(results.items(), key=lambda item: (-item[1]["accuracy"], item[1]["loss"])):
        table.add_row(name, f"{100 * r['accuracy']:.2f}", f"{r['loss']:.4f}")
    console.print(table)


if __name__ == "__main__":
    main()
