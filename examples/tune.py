"""Searches hyper-parameters of `GRUClassifier` with optuna, by cross-validation on the training rows.

pip install 'grujax[data,tune]'
python examples/tune.py                    JapaneseVowels, 20 trials
python examples/tune.py --data GunPoint --trials 50 --storage sqlite:///tune.db     can be stopped and continued
"""

import argparse
from typing import Any

import numpy as np

from grujax import InputError
from grujax.data import load
from grujax.errors import require, require_count, require_package


def parameters(trial: Any, hidden_sizes: list[int]) -> dict[str, Any]:
    """Draws the parameters of a trial; all others keep their defaults."""
    return {
        "hidden_size": trial.suggest_categorical("hidden_size", hidden_sizes),
        "pooling": trial.suggest_categorical("pooling", ["last", "mean", "max"]),
        "dropout": trial.suggest_float("dropout", 0.0, 0.6, step=0.1),
        "learning_rate": trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True),
        "input_offset": trial.suggest_float("input_offset", 0.0, 0.6, step=0.1),
        "mixup": trial.suggest_float("mixup", 0.0, 0.6, step=0.1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="JapaneseVowels", help="the name of a data set in aeon, or a file")
    parser.add_argument("--trials", type=int, default=20, help="number of settings to try")
    parser.add_argument("--folds", type=int, default=3, help="folds of the cross-validation")
    parser.add_argument("--epochs", type=int, default=None, help="epochs of each fit; default: chosen from the data")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[32, 64, 128], help="hidden sizes to search")
    parser.add_argument("--storage", default=None, help="optuna's database; other options make another study in it")
    options = parser.parse_args()
    try:
        search(**vars(options))
    except InputError as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted by Ctrl-C\n")


def search(
    data: str, trials: int, folds: int, epochs: int | None, hidden_sizes: list[int], storage: str | None
) -> None:
    """Prints the best trial and the test accuracy of its parameters. The test split is evaluated only once."""
    optuna = require_package("optuna", "tune")
    from sklearn.model_selection import StratifiedKFold

    from grujax.estimators import GRUClassifier

    require_count(trials, "--trials")
    for size in hidden_sizes:  # refuse a wrong size here, before optuna logs it as a failed trial
        GRUClassifier(hidden_size=size, epochs=epochs).config()
    dataset = load(data)
    train, test = dataset.train, dataset.test
    assert train.y is not None and test is not None and test.y is not None  # guaranteed by `load`
    has_classes = train.labels is not None and not train.per_step
    found = f"{dataset.name}, which has other targets"
    require(has_classes, "--data", "a data set with a class for each sequence", found)
    fewest = np.bincount(train.y).min()
    require(2 <= folds <= fewest, "--folds", f"from 2 to {fewest}, the rows of the smallest class", folds)
    y = train.y
    rows, test_rows = ([x[:length] for x, length in zip(s.x, s.lengths, strict=True)] for s in (train, test))
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)

    def objective(trial: Any) -> float:
        """Returns the mean accuracy on the held-out folds. A trial worse than the median of the others ends early."""
        classifier = GRUClassifier(epochs=epochs, channels="last", **parameters(trial, hidden_sizes))
        scores = []
        for fold, (rest, held_out) in enumerate(splits.split(rows, y)):
            classifier.fit([rows[i] for i in rest], y[rest])
            scores.append(classifier.score([rows[i] for i in held_out], y[held_out]))
            trial.report(float(np.mean(scores)), fold)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(scores))

    try:
        study = optuna.create_study(
            study_name=f"{dataset.name}, {folds} folds, epochs {epochs}, hidden sizes {hidden_sizes}",  # search space
            direction="maximize",
            storage=storage,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=0),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        )
    except Exception as error:  # of optuna, SQLAlchemy or a database driver
        raise InputError("--storage", "the URL of a database, such as sqlite:///tune.db", error) from error
    try:
        study.optimize(objective, n_trials=trials)
    finally:  # after Ctrl-C too
        complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        if complete:
            print(f"best of {len(study.trials)} trials: {study.best_params}")
            print(f"{dataset.name}: cross-validation accuracy {study.best_value:.4f}", flush=True)

    best = GRUClassifier(epochs=epochs, channels="last", **study.best_params).fit(rows, y)
    print(f"{dataset.name}: test accuracy {best.score(test_rows, test.y):.4f}")


if __name__ == "__main__":
    main()
