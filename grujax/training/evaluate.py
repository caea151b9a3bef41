"""Evaluates a trained model: its outputs, its scores, and baselines to compare with."""

from collections.abc import Mapping
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from grujax.core.heads import of_head
from grujax.data import Sequences, batches, bucket_boundaries, statistics
from grujax.data.checks import in_words
from grujax.data.sequences import require_sequences
from grujax.data.targets import named, padded, unnamed
from grujax.errors import require
from grujax.linen import GRUEnsemble, GRUModel
from grujax.training.config import HeadWeights
from grujax.training.rows import weights_of_heads
from grujax.training.step import forward, row_losses

MAX_CONFUSION = 100
"""The most classes for which a confusion matrix is made: with 5,000 classes it would take 200 MB."""


class Scores(NamedTuple):
    """The figures of one split, as `score` returns them.

    A classifier has `accuracy`, `interval` and `confusion`, a regression `rmse` and `r2`; those of the other kind are
    None. With a label or target for each step, the figures are over all steps that have one. With several heads, `loss`
    is the sum of their losses, each times its weight, and the other figures are in `heads`.
    """

    loss: float
    """Weighted mean over rows, or mean over steps: cross-entropy; for a regression the squared error divided by the
    variance of the training targets, or with quantiles the pinball loss divided by their standard deviation."""
    rows: int  # N
    accuracy: float | None = None  # from 0 to 1
    interval: tuple[float, float] | None = None
    """95% Wilson interval of the accuracy; None for steps, which are not independent."""
    confusion: np.ndarray | None = None  # (K, K) counts, [true, predicted]; None with more than 100 classes
    rmse: float | None = None  # in the units of the targets; the mean over several targets
    r2: float | None = None  # the mean over several targets; None with a single row or step
    steps: int | None = None  # the number of steps that have a label or target
    heads: "dict[str, Scores] | None" = None  # with several heads, the figures of each by name

    def as_json(self) -> dict[str, Any]:
        """Returns the figures that are not None, by name, in types that `json.dumps` accepts.

        >>> Scores(0.5, 2, accuracy=1.0, confusion=np.eye(2, dtype=int)).as_json()
        {'loss': 0.5, 'rows': 2, 'accuracy': 1.0, 'confusion': [[1, 0], [0, 1]]}
        """
        kept = {name: value for name, value in self._asdict().items() if value is not None}
        kept |= {"confusion": self.confusion.tolist()} if self.confusion is not None else {}
        return kept | ({"heads": {name: head.as_json() for name, head in self.heads.items()}} if self.heads else {})

    @property
    def each(self) -> "dict[str, Scores]":
        """The figures of each head by name; a single head has the name ""."""
        return self.heads or {"": self}

    @property
    def metrics(self) -> dict[str, float]:
        """The main figure of each head, "accuracy" or "rmse"; with several heads "NAME accuracy" or "NAME rmse".

        >>> Scores(1.5, 2, heads={"label": Scores(0.5, 2, accuracy=1.0), "value": Scores(1.0, 2, rmse=3.0)}).metrics
        {'label accuracy': 1.0, 'value rmse': 3.0}
        """
        figures = {name: "rmse" if head.accuracy is None else "accuracy" for name, head in self.each.items()}
        return {f"{head} {name}" if head else name: getattr(self.each[head], name) for head, name in figures.items()}

    @property
    def metric(self) -> tuple[str, float]:
        """The name and value of the main figure; with several heads, of the first one."""
        return next(iter(self.metrics.items()))


@overload
def outputs_of(
    model: GRUModel[int] | GRUEnsemble,
    variables: Mapping[str, Any],
    data: Sequences,
    *,
    batch_size: int = 64,
    boundaries: tuple[int, ...] | None = None,
) -> np.ndarray: ...
@overload
def outputs_of(
    model: GRUModel[Mapping[str, int]],
    variables: Mapping[str, Any],
    data: Sequences,
    *,
    batch_size: int = 64,
    boundaries: tuple[int, ...] | None = None,
) -> dict[str, np.ndarray]: ...


def outputs_of(
    model: GRUModel | GRUEnsemble,
    variables: Mapping[str, Any],
    data: Sequences,
    *,
    batch_size: int = 64,
    boundaries: tuple[int, ...] | None = None,
) -> np.ndarray | dict[str, np.ndarray]:
    """Returns the model's outputs for every row of the data, in order and without dropout.

    Args:
      model: a model with one or several heads, or an ensemble.
      variables: "params" and, for a trained model, "statistics".
      data: N sequences with the channels that the model was trained on.
      batch_size: the number of rows per call of the model.
      boundaries: the padded lengths, each compiled once. None: `grujax.data.bucket_boundaries` of the data.

    Returns:
      A float32 array (N, output_size); without pooling (N, T, output_size), with 0 in the padding. With several heads a
      dict of such arrays by name.

    Raises:
      InputError: another type of `model` or `data`, or another number of channels than in training.

    >>> from grujax.data import sequences
    >>> data = sequences([[[1.0], [2.0]], [[3.0]]])
    >>> model = GRUModel(hidden_size=8, output_size=5)
    >>> outputs_of(model, model.init(jax.random.key(0), data.x), data).shape
    (2, 5)
    """
    known = isinstance(model, GRUModel | GRUEnsemble)
    order = "The order is model, variables, data."
    require(known, "model", "a `GRUModel` or `GRUEnsemble`", type(model).__name__, order)
    require_sequences(data, "data")
    boundaries = bucket_boundaries(data.lengths) if boundaries is None else boundaries
    member = model.model if isinstance(model, GRUEnsemble) else model
    each_step = () if member.pooling is not None else data.x.shape[1:2]
    outputs = {
        name: np.zeros((len(data), *each_step, width), np.float32) for name, width in named(member.output_size).items()
    }
    for batch in batches(data, batch_size, boundaries):
        kept = batch.weight > 0
        for name, output in named(forward(model, variables, batch.x, batch.lengths)).items():
            rows = np.asarray(output)[kept, : outputs[name].shape[1]]  # a batch may be longer or shorter than the data
            outputs[name][batch.rows[kept], : rows.shape[1]] = rows
    return unnamed(outputs)


def score(
    outputs: np.ndarray | Mapping[str, np.ndarray],
    data: Sequences,
    variables: Mapping[str, Any],
    label_smoothing: float = 0.0,
    quantiles: tuple[float, ...] = (),
    head_weights: HeadWeights = (),
) -> Scores:
    """Returns the figures of a model's outputs as `Scores`.

    Args:
      outputs: (N, K) logits of K classes, or K targets, or (N, K*Q) with Q quantiles; with labels or targets for each
        step (N, T, ...). With several heads a dict of such arrays by name.
      data: N rows with a known y.
      variables: those of the model; a regression needs `output_std` in "statistics".
      label_smoothing: share of each label that the loss spreads over all classes.
      quantiles: the levels that the model predicts. rmse and r2 are computed for the middle one.
      head_weights: the factor of each head's loss, as in `TrainConfig`.

    Raises:
      InputError: heads, labels or targets of `data` that do not match `outputs`, or an unknown head in `head_weights`.

    >>> from grujax.data import sequences
    >>> data = sequences([[[1.0]], [[2.0]]], ["a", "b"])
    >>> scores = score(np.array([[2.0, -2.0], [1.0, -1.0]]), data, {"statistics": {}})
    >>> scores.accuracy, scores.confusion.tolist()
    (0.5, [[1, 0], [1, 0]])

    Source: Wilson 1927, Journal of the American Statistical Association 22, for the interval.
    """
    require_sequences(data, "data")
    by_head, statistics, each = named(outputs), variables["statistics"], {}
    fits = by_head.keys() == data.targets.keys()
    require(fits, "y", f"{in_words(by_head)}, as the model has", in_words(data.targets))
    weights = weights_of_heads(head_weights, data.targets)
    for name in data.targets:
        each[name] = _score(by_head[name], data.of_head(name), of_head(statistics, name), label_smoothing, quantiles)
    loss = sum(weights[name] * scores.loss for name, scores in each.items())
    return each[""]._replace(loss=loss) if "" in each else Scores(loss, len(data), heads=each)


def _score(
    outputs: np.ndarray,
    data: Sequences,
    statistics: Mapping[str, Any],
    label_smoothing: float,
    quantiles: tuple[float, ...],
) -> Scores:
    """`score` for a single head."""
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix, r2_score, root_mean_squared_error

    y, weight, steps = data.y, data.weight, None
    unit, each = "step" if outputs.ndim == 3 else "row", len(quantiles) or 1
    fits = data.per_step == (unit == "step")
    require(fits, "y", f"a label or target for each {unit}, as the model has", f"shape {y.shape}")
    if data.per_step:
        outputs, y = outputs[data.labelled], y[data.labelled]
        weight = None if weight is None else weight.repeat(data.labelled.sum(1))
        steps = len(y)
    if data.labels is None:
        expected = f"{outputs.shape[1] // each} targets for each {unit}, as the model has"
        require(y.size * each == outputs.size, "y", expected, f"shape {y.shape}")
    arrays = jax.numpy.asarray(outputs), jax.numpy.asarray(y)
    losses = np.asarray(row_losses(*arrays, statistics, label_smoothing, quantiles))
    loss = float(np.average(losses, weights=weight))
    if data.labels is None:
        outputs = outputs[:, each // 2 :: each]
        y = y.reshape(outputs.shape)
        r2 = float(r2_score(y, outputs)) if len(y) > 1 else None
        return Scores(loss, len(data), rmse=float(root_mean_squared_error(y, outputs)), r2=r2, steps=steps)
    predicted = outputs.argmax(1)
    right = int((predicted == y).sum())
    interval = binomtest(right, len(y)).proportion_ci(method="wilson")
    interval = None if data.per_step else (float(interval.low), float(interval.high))
    confusion = None
    if len(data.labels) <= MAX_CONFUSION:
        confusion = confusion_matrix(y, predicted, labels=np.arange(len(data.labels)))
    return Scores(loss, len(data), right / len(y), interval, confusion, steps=steps)


def baselines(train: Sequences, test: Sequences) -> dict[str, float]:
    """Returns the accuracy, or for a regression the root mean squared error, of two methods without a GRU, by name.

    They are the majority class (or mean target), and the nearest neighbour in Euclidean distance on the standardised
    series, padded with zeros to one length. With a label or target for each step, only the majority class (or mean
    target) of the steps is computed. With several heads, pass one of them: `train.of_head(name)`, `test.of_head(name)`.

    Raises InputError for data with several heads.

    >>> from grujax.data import sequences
    >>> data = sequences([[[1.0]], [[2.0]], [[3.0]]], ["a", "b", "b"])
    >>> {name: round(accuracy, 3) for name, accuracy in baselines(data, data).items()}
    {'majority class': 0.667, 'nearest neighbour': 1.0}
    """
    require_sequences(train, "train")
    require_sequences(test, "test")
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.metrics import accuracy_score, root_mean_squared_error
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    single, remedy = "" in train.targets, "Give one head of each split: of_head(name)."
    require(single, "train", "a single head", in_words(train.targets), remedy)
    name, dummy = ("mean target", DummyRegressor()) if train.labels is None else ("majority class", DummyClassifier())
    figure = root_mean_squared_error if train.labels is None else accuracy_score
    if train.per_step:
        y_train, y_test = train.y[train.labelled], test.y[test.labelled]
        predicted = np.asarray(dummy.fit(np.zeros((len(y_train), 1)), y_train).predict(np.zeros((len(y_test), 1))))
        return {name: float(figure(y_test, predicted.reshape(y_test.shape)))}

    mean, std = statistics(train)
    n_steps = max(train.x.shape[1], test.x.shape[1])

    def flat(data: Sequences) -> np.ndarray:
        x = padded(((data.x - mean) / std).astype(np.float32, copy=False), 1, n_steps, 0)
        x[np.arange(n_steps) >= data.lengths[:, None]] = 0
        return x.reshape(len(data), -1)

    neighbour = KNeighborsRegressor(1) if train.labels is None else KNeighborsClassifier(1)
    models = {name: dummy, "nearest neighbour": neighbour}
    x_train, x_test = flat(train), flat(test)
    return {name: float(figure(test.y, m.fit(x_train, train.y).predict(x_test))) for name, m in models.items()}
