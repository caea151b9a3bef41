"""Searches hyper-parameters of `GRUClassifier` with optuna, by cross-validation on the training rows alone.

pip install 'grujax[data,tune]'
python examples/tune.py                    JapaneseVowels, 20 trials
python examples/tune.py --data GunPoint --trials 50 --storage sqlite:///tune.db     goes on where it ended
"""

import argparse

import numpy as np
import optuna
from sklearn.model_selection import StratifiedKFold

from grujax.data import load
from grujax.estimators import GRUClassifier


def parameters(trial: optuna.Trial, hidden_sizes: list[int]) -> dict:
    """What is searched, and where; all else keeps its default."""
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
    parser.add_argument("--data", default="JapaneseVowels", help="a set that comes with aeon, or a file")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=None, help="of each fit; as many as `chosen` says")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--storage", default=None, help="where optuna keeps the trials; memory")
    options = parser.parse_args()

    data = load(options.data)
    assert data.train.labels is not None and data.train.y is not None and data.test is not None, "a set with classes"
    rows = [x[:length] for x, length in zip(data.train.x, data.train.lengths, strict=True)]
    y = np.array(data.train.labels)[data.train.y]
    folds = StratifiedKFold(options.folds, shuffle=True, random_state=0)

    def objective(trial: optuna.Trial) -> float:
        """The mean accuracy on the folds held out; a trial worse than the median of the others ends early."""
        found = GRUClassifier(epochs=options.epochs, channels="last", **parameters(trial, options.hidden_sizes))
        scores = []
        for fold, (train, held) in enumerate(folds.split(rows, y)):
            found.fit([rows[i] for i in train], y[train])
            scores.append(found.score([rows[i] for i in held], y[held]))
            trial.report(float(np.mean(scores)), fold)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(scores))

    study = optuna.create_study(
        study_name=data.name,
        direction="maximize",
        storage=options.storage,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    study.optimize(objective, n_trials=options.trials)

    best = GRUClassifier(epochs=options.epochs, channels="last", **study.best_params).fit(rows, y)
    test = [x[:length] for x, length in zip(data.test.x, data.test.lengths, strict=True)]
    accuracy = best.score(test, np.array(data.train.labels)[data.test.y])
    print(f"best of {len(study.trials)} trials: {study.best_params}")
    print(f"{data.name}: cross-validation accuracy {study.best_value:.4f}, test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
