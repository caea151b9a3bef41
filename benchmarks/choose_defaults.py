"""How `TrainConfig`'s defaults were chosen: 5-fold cross-validation on JapaneseVowels' 270 training utterances alone.

The test set is never read. Each candidate changes one thing or two from `BASE`; each fold runs the whole of `fit`, its
own validation split and choice of epoch included, and is judged on the fold it has not seen. Run as
`python benchmarks/choose_defaults.py`; the result is `benchmarks/results/choose_defaults.json`.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import StratifiedKFold

from grujax.data import Dataset, load
from grujax.saving import replacing
from grujax.training import TrainConfig, fit

BASE = TrainConfig(
    hidden_size=128,
    num_layers=1,
    pooling="mean",
    dropout=0.3,
    epochs=60,
    input_noise=0.0,
    label_smoothing=0.0,
    validation=0.2,
)
CANDIDATES: dict[str, dict] = {
    "base": {},
    "noise 0.5": {"input_noise": 0.5},
    "noise 0.5, validation 0.1": {"input_noise": 0.5, "validation": 0.1},
    "noise 0.5, smoothing 0.1": {"input_noise": 0.5, "label_smoothing": 0.1},
    "noise 1.0": {"input_noise": 1.0},
    "noise 0.5, max": {"input_noise": 0.5, "pooling": "max"},
    "noise 0.5, last": {"input_noise": 0.5, "pooling": "last"},
    "noise 0.5, dropout 0.5": {"input_noise": 0.5, "dropout": 0.5},
    "noise 0.5, smoothing 0.1, max": {"input_noise": 0.5, "label_smoothing": 0.1, "pooling": "max"},
    "noise 0.5, smoothing 0.1, H 256": {"input_noise": 0.5, "label_smoothing": 0.1, "hidden_size": 256},
    "noise 0.8, smoothing 0.1": {"input_noise": 0.8, "label_smoothing": 0.1},
    "noise 0.8, smoothing 0.1, max": {"input_noise": 0.8, "label_smoothing": 0.1, "pooling": "max"},
    "noise 0.5, smoothing 0.1, batch 16": {"input_noise": 0.5, "label_smoothing": 0.1, "batch_size": 16},
    "noise 0.5, smoothing 0.1, rate 1e-3": {"input_noise": 0.5, "label_smoothing": 0.1, "learning_rate": 1e-3},
    **{
        f"noise 0.8, smoothing 0.1, max, {name}": {"input_noise": 0.8, "label_smoothing": 0.1, "pooling": "max", **more}
        for name, more in {
            "150 epochs": {"epochs": 150},
            "validation 0.1": {"validation": 0.1},
            "two layers": {"num_layers": 2},
            "H 64": {"hidden_size": 64},
            "decay 0.1": {"weight_decay": 0.1},
            "one direction": {"bidirectional": False},
            "noise 1.2": {"input_noise": 1.2},
            "dropout 0.1": {"dropout": 0.1},
            "H 256": {"hidden_size": 256},
            "smoothing 0.2": {"label_smoothing": 0.2},
            "two layers, noise 1.2": {"num_layers": 2, "input_noise": 1.2},
            "two layers, dropout 0.5": {"num_layers": 2, "dropout": 0.5},
        }.items()
    },
}
FOLDS, SEEDS = 5, (0,)
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
    rows = np.array([s.rows for s in scores])
    return {k: float(np.average([getattr(s, k) for s in scores], weights=rows)) for k in ("accuracy", "loss")}


def main() -> None:
    console, results = Console(), {}
    RESULT.parent.mkdir(exist_ok=True)
    if RESULT.exists():  # go on where an earlier run with the same base stopped
        earlier = json.loads(RESULT.read_text())
        results = earlier["candidates"] if earlier["base"] == dataclasses.asdict(BASE) else {}
    for name, changes in CANDIDATES.items():
        if results.get(name, {}).get("changes") == changes:
            continue
        began = time.perf_counter()
        results[name] = cross_validate(dataclasses.replace(BASE, **changes)) | {"changes": changes}
        console.print(f"{name}: {results[name]} in {time.perf_counter() - began:.0f} s")
        jax.clear_caches()  # each compiled program holds memory maps, of which a process may have only so many
        with replacing(RESULT) as path:
            path.write_text(json.dumps({"base": dataclasses.asdict(BASE), "candidates": results}, indent=2) + "\n")
    table = Table("candidate", "accuracy %", "cross-entropy", title=f"{FOLDS} folds, seeds {SEEDS}")
    for name, r in sorted(results.items(), key=lambda item: (-item[1]["accuracy"], item[1]["loss"])):
        table.add_row(name, f"{100 * r['accuracy']:.2f}", f"{r['loss']:.4f}")
    console.print(table)


if __name__ == "__main__":
    main()
