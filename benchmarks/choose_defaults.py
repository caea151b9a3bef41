"""Chooses `TrainConfig`'s defaults by 5-fold cross-validation on the 270 training utterances of JapaneseVowels.

The test set is never read. It was recorded on other occasions than the training set. Shuffled folds hold out
utterances of the same occasion, so their accuracy is too optimistic. Here the folds are blocks of each speaker's
utterances in the order of the file, the closest approximation of another occasion within the training set. For each
fold, `fit` runs with each of `SEEDS` and is tested on the held-out utterances. Each candidate changes the named
settings of `BASE`.

`python benchmarks/choose_defaults.py` runs one candidate on each core and can be stopped and continued. Set
JAX_COMPILATION_CACHE_DIR to keep compiled programs. The result is `benchmarks/results/choose_defaults.json`.
"""

import dataclasses
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import StratifiedKFold

from grujax.data import Dataset, load
from grujax.saving.atomic import replacing
from grujax.training import TrainConfig, fit

BASE = TrainConfig(
    pooling="max", hidden_size=64, batch_size=16, averaging=0.1, mixup=0.3, input_offset=0.4, dropout=0.5
)
CANDIDATES: dict[str, dict[str, Any]] = {
    "peak 1e-2": {"learning_rate": 1e-2},
    "peak 3e-3": {"learning_rate": 3e-3},
}
FOLDS, SEEDS = 5, (0, 1, 2)
RESULT = Path(__file__).parent / "results" / "choose_defaults.json"


def cross_validate(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the accuracy and cross-entropy over all folds and seeds, and the seconds that they took."""
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false"  # one core per process; JAX reads the variable when it starts
    )
    start = time.perf_counter()
    train = load("JapaneseVowels").train
    scores = []
    for seed in SEEDS:
        for fold, (rest, held) in enumerate(StratifiedKFold(FOLDS).split(train.y, train.y)):
            config = dataclasses.replace(BASE, **changes, seed=FOLDS * seed + fold)
            scores.append(fit(config, Dataset("fold", train.take(rest), train.take(held))).test)
        jax.clear_caches()  # the number of memory maps of a process may be limited
    rows = np.array([s.rows for s in scores])
    figures = {k: float(np.average([getattr(s, k) for s in scores], weights=rows)) for k in ("accuracy", "loss")}
    return figures | {"seconds": time.perf_counter() - start, "changes": changes}


def main() -> None:
    console, results, setting = Console(), {}, {"base": dataclasses.asdict(BASE), "folds": FOLDS, "seeds": list(SEEDS)}
    RESULT.parent.mkdir(exist_ok=True)
    if RESULT.exists():  # keep the candidates of an earlier run with the same base
        earlier = json.loads(RESULT.read_text())
        known = earlier.pop("candidates") if earlier.keys() >= setting.keys() else {}
        if earlier == setting:
            results = {name: r for name, r in known.items() if CANDIDATES.get(name) == r["changes"]}
    waiting = {name: changes for name, changes in CANDIDATES.items() if name not in results}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, max_tasks_per_child=1) as processes:
        names = {processes.submit(cross_validate, changes): name for name, changes in waiting.items()}
        for done in as_completed(names):
            results[names[done]] = done.result()
            console.print(f"{names[done]}: {results[names[done]]}")
            with replacing(RESULT) as path:
                path.write_text(json.dumps(setting | {"candidates": results}, indent=2) + "\n")
    table = Table(
        "candidate",
        "accuracy %",
        "cross-entropy",
        title=f"{FOLDS} folds: blocks in the order of the file; seeds {SEEDS}",
    )
    for name, r in sorted(results.items(), key=lambda item: (-item[1]["accuracy"], item[1]["loss"])):
        table.add_row(name, f"{100 * r['accuracy']:.2f}", f"{r['loss']:.4f}")
    console.print(table)


if __name__ == "__main__":
    main()
