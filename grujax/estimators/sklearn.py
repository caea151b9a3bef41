"""GRUs as estimators of scikit-learn. They train by `grujax.training.fit`."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import Tags, check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from grujax.core.keywords import explained
from grujax.data import AxesWarning, Dataset, Sequences
from grujax.data.checks import unmasked
from grujax.errors import InputError, counted, require
from grujax.estimators.parameters import Parameters, Settable
from grujax.estimators.series import Channels, as_sequences, is_table
from grujax.linen import GRUEnsemble
from grujax.training import Fitted, TrainConfig, fit

OF_MODEL = ("hidden_size", "num_layers", "bidirectional", "reset_after", "steps_per_frame", "pooling")
"""Parameters of the model, which `warm_start` keeps from the previous fit."""


@explained
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Parameters(Parameters):
    channels: Channels | None = None
    """The axis of the channels: "last" for X (N, T, C), "first" for X (N, C, T). None: "last", with a warning if there
    are more channels than steps."""
    missing: Literal["refuse", "mask"] = "refuse"
    """How NaN in X is treated: "refuse" raises an error; "mask" fills in missing values and passes the GRU a mask of
    them and the time since the last observation. See `grujax.data.sequences`."""
    warm_start: bool = False
    """Whether `fit` continues from the weights, input statistics and classes of the previous `fit`."""


class _GRU(BaseEstimator, Settable, _Parameters):
    """The base class of the classifier and the regressor."""

    fitted_: Fitted
    fill_: np.ndarray | None
    classes_: np.ndarray
    n_features_in_: int
    _of_table: bool

    def _fit(
        self,
        X: Any,
        y: np.ndarray,
        classes: np.ndarray | None,
        sample_weight: ArrayLike | None,
        lengths: ArrayLike | None,
    ) -> Self:
        """Fits the model. For a classifier y is (N,) int32, indices into `classes`; a regressor has no `classes`."""
        labels = None if classes is None else tuple(map(str, classes.tolist()))
        config, before = self.config(), None
        require(self.warm_start in (True, False), "warm_start", "True or False", repr(self.warm_start))
        if self.warm_start and hasattr(self, "fitted_"):
            config, before = self._continued(config), self.fitted_.variables
        self._of_table = is_table(X)
        data = self._sequences(X, lengths, reset=True)
        check_consistent_length(data.x, y)
        data = replace(data, y=y, labels=labels)
        if before is not None and classes is None:
            known, found = before["statistics"]["output_mean"].size, y[:1].size
            require(found == known, "y", f"{known} targets a row, as in the first fit", found, "Set warm_start=False.")
        weight = np.ones(len(data), np.float32)
        if sample_weight is not None:  # rows of weight 0 are removed, as the input statistics would include them
            weight = _weights(sample_weight, len(data))
            data = replace(data, weight=weight).take(np.flatnonzero(weight))
        if labels is not None and len(found := np.unique(y[weight > 0])) < 2:
            where = "" if sample_weight is None else " where sample_weight is not 0"
            raise InputError("y", "at least two classes", f"only {labels[found[0]]!r}{where}")
        self.fitted_, self.fill_ = fit(config, Dataset("X", data), variables=before), data.fill
        if classes is not None:
            self.classes_ = classes
        if self.fitted_.interrupted:  # the estimator keeps the result so far, but a search over parameters ends
            raise KeyboardInterrupt
        return self

    def _continued(self, config: TrainConfig) -> TrainConfig:
        """Returns the config with the settings of the model from the previous fit.

        Raises InputError if the config sets one of them to another value.
        """
        model = self.fitted_.model
        members, model = (model.members, model.model) if isinstance(model, GRUEnsemble) else (1, model)
        before = {"members": members, **{name: getattr(model, name) for name in OF_MODEL}}
        wanted = {name: getattr(config, name) for name in before}
        odd = [name for name in before if wanted[name] not in (None, before[name])]
        before["missing"], wanted["missing"] = "refuse" if self.fill_ is None else "mask", self.missing
        odd += ["missing"] if before["missing"] != wanted["missing"] else []
        expected, found = (", ".join(str(values[name]) for name in odd) for values in (before, wanted))
        rule = "warm_start=True continues with the model of the previous fit"
        require(not odd, ", ".join(odd), expected, found, "Set warm_start=False for another model.", rule=rule)
        return replace(config, **{name: before[name] for name in OF_MODEL})

    def _checked_y(self, y: Any, dtype: Any) -> np.ndarray:
        """Returns y as an array of `dtype`; None keeps its dtype."""
        rule = f"{type(self).__name__} requires y to be passed, but the target y is None"
        require(y is not None, "y", "a label or target for each row", None, rule=rule)
        remedy = "grujax.training.fit trains several heads."
        require(not isinstance(y, Mapping), "y", "the labels or targets of a single head", "a dict", remedy)
        y = unmasked(y)
        dates = dtype == np.float32 and getattr(y, "dtype", np.dtype(np.float32)).kind in "mM"
        require(not dates, "y", "numbers", "dates or times", "Subtract a date, and divide by a unit of time.")
        return check_array(y, ensure_2d=False, dtype=dtype, input_name="y")

    def _sequences(self, X: Any, lengths: ArrayLike | None, reset: bool = False) -> Sequences:
        """Returns X as `Sequences`. `reset` is True in `fit`, which sets the number of features."""
        known, missing, fill = None, self.missing, None
        if not reset or (self.warm_start and hasattr(self, "fitted_")):
            fill = self.fill_
            missing, share = ("refuse", 1) if fill is None else ("mask", 3)  # value, mask and gap for each channel
            known = self.fitted_.variables["statistics"]["input_mean"].size // share
        if is_table(X):
            X, finite = unmasked(X), lengths is None and missing == "refuse"
            options = {"ensure_all_finite": finite, "ensure_min_samples": 2 if reset else 1}
            X = validate_data(self, X, reset=reset, **options) if self._of_table else check_array(X, **options)
        data = as_sequences(X, lengths, self.channels, known, missing=missing, fill=fill)
        channels = data.channels if data.fill is None else data.fill.size
        if reset and not self._of_table:
            self.n_features_in_ = channels
            self.__dict__.pop("feature_names_in_", None)
            longest = int(data.lengths.max())
            if self.channels is None and channels > longest:
                what = f"X is read as (N, T, C), {channels} channels of {counted(longest, 'step')}"
                remedy = "Pass channels='first' for (N, C, T), or channels='last'."
                warnings.warn(f"{what}. {remedy}", AxesWarning, stacklevel=4)
        return data

    def _outputs(self, X: Any, lengths: ArrayLike | None) -> np.ndarray:
        """Returns the model's outputs, (N, output_size) float64."""
        check_is_fitted(self)
        return self.fitted_.outputs(self._sequences(X, lengths)).astype(np.float64)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "mask"
        return tags


def _weights(sample_weight: ArrayLike, count: int) -> np.ndarray:
    """Returns the weights of the rows, (N,) float32, scaled to a maximum of 1; `fit` scales them to a mean of 1."""
    expected = f"{count} finite numbers, zero or positive, not all of them zero"
    try:
        weight = np.asarray(unmasked(sample_weight), np.float64)
    except (TypeError, ValueError) as error:
        remedy = "The parameter class_weights='balanced' balances classes."
        raise InputError("sample_weight", expected, f"{type(error).__name__}: {error}", remedy) from error
    fits = weight.shape == (count,) and bool((weight >= 0).all()) and 0 < weight.sum() < np.inf
    found = f"shape {weight.shape}, {weight.min(initial=np.inf)} to {weight.max(initial=-np.inf)}"
    require(fits, "sample_weight", expected, found)
    return (weight / weight.max()).astype(np.float32)


class GRUClassifier(ClassifierMixin, _GRU):
    """Classifies sequences by a GRU with a dense head, as an estimator of scikit-learn.

    The parameters are the fields of `grujax.training.TrainConfig` except `quantiles` and `head_weights`, with `seed`
    named `random_state`, and in addition `channels`, `missing` and `warm_start`. With missing="mask", NaN in X is a
    missing value.

    X is a list of arrays (T_i, C) or (T_i,), or an array (N, T, C) or (N, T), with `lengths` (N,) if it is padded;
    an array or table (N, T) is N series of one channel. With channels="first", X is (N, C, T).

    Attributes:
      classes_: (K,) the labels, in the order of `np.unique`.
      n_features_in_: T for X (N, T), otherwise C.
      fitted_: the result of `grujax.training.fit`: `model`, `variables`, `history`.
      fill_: with missing="mask" the means (C,), used before the first observation; otherwise None.

    >>> rows = [[float(i % 2)] * (3 + i % 5) for i in range(40)]
    >>> classifier = GRUClassifier(hidden_size=8, bidirectional=False, buckets=1).fit(rows, ["even", "odd"] * 20)
    >>> classifier.predict([[0.0, 0.0, 0.0], [1.0, 1.0]]).tolist()
    ['even', 'odd']
    """

    def fit(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, lengths: ArrayLike | None = None
    ) -> Self:
        """Trains on N sequences.

        Args:
          X: see the class.
          y: (N,) labels, of any type that `np.unique` takes.
          sample_weight: (N,), the weight of each row in the loss; rows of weight 0 are left out.
          lengths: (N,) integers from 1 to T, for padded arrays.

        Raises:
          InputError: invalid X, y, weights, lengths or parameters; it is a `ValueError`.
          ValueError: raised by scikit-learn's checks of y and of X (N, T).
          KeyboardInterrupt: after Ctrl-C; from the end of the first epoch on, the estimator keeps the result so far.
        """
        y = column_or_1d(self._checked_y(y, None), warn=True)
        try:
            check_classification_targets(y)
            classes = np.unique(y)
        except TypeError as error:  # NumPy cannot sort these labels, for example None among strings
            raise InputError("y", "labels of one type, none of them missing", error) from error
        if self.warm_start and hasattr(self, "classes_"):
            unseen = np.setdiff1d(classes, self.classes_)
            rule = "warm_start=True continues with the classes of the first fit"
            require(not len(unseen), "y", self.classes_, f"also {unseen}", "Set warm_start=False.", rule=rule)
            classes = self.classes_
        return self._fit(X, np.searchsorted(classes, y).astype(np.int32), classes, sample_weight, lengths)

    def predict_proba(self, X: Any, lengths: ArrayLike | None = None) -> np.ndarray:
        """Returns (N, K) float64 probabilities, the columns in the order of `classes_`."""
        return softmax(self._outputs(X, lengths), axis=1)

    def predict(self, X: Any, lengths: ArrayLike | None = None) -> np.ndarray:
        """Returns (N,) labels, those with the largest probability."""
        number = self._outputs(X, lengths).argmax(1)
        return self.classes_[number]

    def score(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, lengths: ArrayLike | None = None
    ) -> float:
        """Returns the accuracy, from 0 to 1."""
        return float(accuracy_score(y, self.predict(X, lengths), sample_weight=sample_weight))


class GRURegressor(RegressorMixin, _GRU):
    """Predicts targets of sequences by a GRU with a dense head, as an estimator of scikit-learn.

    The parameters, X, and the attributes `n_features_in_`, `fitted_` and `fill_` are those of `GRUClassifier`.

    >>> import numpy as np
    >>> level = np.linspace(-1, 1, 40)
    >>> X = np.repeat(level[:, None], 5, axis=1)
    >>> regressor = GRURegressor(hidden_size=8, bidirectional=False, dropout=0.0, input_offset=0.0, mixup=0.0)
    >>> regressor.fit(X, level).score(X, level) > 0.9
    True
    """

    def fit(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, lengths: ArrayLike | None = None
    ) -> Self:
        """Trains on N sequences.

        y is (N,) or, with several targets, (N, K). All else is as in `GRUClassifier.fit`.
        """
        return self._fit(X, self._checked_y(y, np.float32), None, sample_weight, lengths)

    def predict(self, X: Any, lengths: ArrayLike | None = None) -> np.ndarray:
        """Returns (N,) or (N, K) float64 targets, in their own units."""
        outputs = self._outputs(X, lengths)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def score(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, lengths: ArrayLike | None = None
    ) -> float:
        """Returns the coefficient of determination R², with several targets their mean."""
        return float(r2_score(y, self.predict(X, lengths), sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
