"""Sequences: how data are stored, which data are refused, and the messages."""

import sys

import numpy as np
import pytest

from grujax.data import Dataset, sequences, statistics, stratified_split
from grujax.errors import InputError

X = np.arange(24, dtype=np.float64).reshape(3, 4, 2)


def with_value(value, where=(1, 2, 1)):
    x = X.copy()
    x[where] = value
    return x


def test_padding_becomes_zero_whatever_it_held_and_the_input_stays():
    x = with_value(np.nan, (0, slice(2, None)))
    x[2, 3] = [np.inf, 1e300]
    before = x.copy()
    data = sequences(x, lengths=[2, 4, 3])
    expected = X.astype(np.float32)
    expected[0, 2:] = expected[2, 3:] = 0
    np.testing.assert_array_equal(data.x, expected)
    np.testing.assert_array_equal(x, before)
    assert (data.x.dtype, data.lengths.dtype, data.lengths.tolist()) == (np.float32, np.int32, [2, 4, 3])
    assert (data.y, data.labels, data.channels, len(data)) == (None, None, 2, 3)


def test_float32_input_is_copied():
    x = X.astype(np.float32)
    sequences(x, lengths=[1, 1, 1])
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float16, np.float32, bool])
def test_every_real_dtype_is_cast(dtype):
    data = sequences(X.astype(dtype))
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, X.astype(dtype).astype(np.float32))


def test_a_list_is_padded_at_the_end():
    data = sequences([X[0, :1], X[1], X[2, :3].astype(int)])
    np.testing.assert_array_equal(data.x, sequences(X, lengths=[1, 4, 3]).x)
    assert data.lengths.tolist() == [1, 4, 3]


@pytest.mark.parametrize(
    ("y", "labels", "indices"),
    [
        (["10", "2", "-1"], ("-1", "2", "10"), [2, 1, 0]),
        (["b", "1.5", "a"], ("1.5", "a", "b"), [2, 0, 1]),
        (np.array([7, 7, 3]), ("3", "7"), [1, 1, 0]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (np.array(["nan", "b", "9"], object), ("9", "b", "nan"), [2, 1, 0]),
        (np.array(["é", "b", "é"], np.dtypes.StringDType()), ("b", "é"), [1, 0, 1]),
    ],
)
def test_classes_are_numbered_in_label_order(y, labels, indices):
    data = sequences(X, y)
    assert data.labels == labels
    assert data.y is not None and data.y.dtype == np.int32 and data.y.tolist() == indices


def test_a_class_called_nan_does_not_break_the_order():
    names = [str(number) for number in range(40)]
    data = sequences(np.ones((41, 1, 1)), ["nan", *reversed(names)])
    assert data.labels == (*names, "nan")


def test_given_labels_keep_their_order():
    data = sequences(X, ["a", "c", "a"], labels=["c", "b", "a"])
    assert data.labels == ("c", "b", "a")
    assert data.y is not None and data.y.tolist() == [2, 0, 2]


def test_floats_are_targets():
    data = sequences(X, [0.5, -1.0, 2.0])
    assert data.labels is None
    assert data.y is not None and data.y.dtype == np.float32 and data.y.tolist() == [0.5, -1.0, 2.0]


@pytest.mark.parametrize(
    "y",
    [
        [["b", "a"], ["", "b", "10"], ["a", "b", None, "b"]],
        np.array([["b", "a", "zz", "zz"], ["", "b", "10", "zz"], ["a", "b", "", "b"]]),
        [["b", "a"], [None, "b", "10", "zz"], np.array(["a", "b", None, "b"], object)],
    ],
)
def test_a_label_a_step(y):
    """Padding may hold anything; None, "" and -1 are steps without a label."""
    data = sequences(X, y, lengths=[2, 3, 4])
    assert data.labels == ("10", "a", "b") and data.per_step
    np.testing.assert_array_equal(data.y, [[2, 1, -1, -1], [-1, 2, 0, -1], [1, 2, -1, 2]])
    assert data.y.dtype == np.int32
    np.testing.assert_array_equal(data.labelled, data.y >= 0)
    np.testing.assert_array_equal(sequences([X[0, :2], X[1, :3], X[2]], y, labels=data.labels).y, data.y)
    short = data.take([1, 0])
    np.testing.assert_array_equal(short.y, [[-1, 2, 0], [2, 1, -1]])
    numbers = sequences(X, [[7, -1], [-1, 3, 3], [7, 7, 7, -1]], lengths=[2, 3, 4])
    assert numbers.labels == ("3", "7") and numbers.y[0].tolist() == [1, -1, -1, -1]


def test_targets_a_step():
    y = np.random.default_rng(0).normal(size=(3, 4, 2))
    y[0, 1] = y[1, 3] = np.nan
    data = sequences(X, y, lengths=[2, 4, 4])
    expected = y.copy()
    expected[0, 2:] = np.nan
    assert data.per_step and data.labels is None and data.y.dtype == np.float32
    np.testing.assert_array_equal(data.y, expected.astype(np.float32))
    np.testing.assert_array_equal(data.labelled, ~np.isnan(expected[..., 0]))
    several = sequences(X, y[:, 2])  # two axes of floats: several targets per sequence
    assert not several.per_step and several.y.shape == (3, 2)


def test_a_step_and_a_sequence_do_not_go_together():
    steps, rows = sequences(X, [[1, 2, 1, 2]] * 3), sequences(X, [1, 2, 1])
    with pytest.raises(InputError, match=r"^y: expected targets \(\) per step as in training, found \(\) per row"):
        Dataset("both", steps, rows)
    assert Dataset("longer", steps, sequences([*X, *X[:1].repeat(2, 1)], [[1, 2, 1, 2]] * 3 + [[1] * 8])).test


REFUSED = {
    "nan": (dict(x=with_value(np.nan)), "x", "nan at row 1, step 2, channel 1 of here"),
    "infinite": (dict(x=with_value(-np.inf)), "x", "-inf at row 1, step 2, channel 1"),
    "too large": (dict(x=with_value(1e300)), "x", "1e+300 at row 1, step 2, channel 1"),
    "nan in a list": (dict(x=[X[0], with_value(np.nan)[1]]), "x", "nan at row 1, step 2, channel 1"),
    "complex": (dict(x=X + 1j), "x", "complex128"),
    "objects": (dict(x=X.astype(object)), "x", "object"),
    "strings": (dict(x=X.astype(str)), "x", "<U"),
    "two axes": (dict(x=X[0]), "x", "shape (4, 2)"),
    "a flat row": (dict(x=[X[0], X[1, :, 0]]), "x[1]", "shape (4,)"),
    "a ragged row": (dict(x=[X[0], [[1.0], [2.0, 3.0]]]), "x[1]", "unequal sizes"),
    "other channels": (dict(x=[X[0], X[1, :, :1]]), "x", "1 in row 1 of here"),
    "no sequence": (dict(x=X[:0]), "x", "shape (0, 4, 2)"),
    "no step": (dict(x=X[:, :0]), "x", "shape (3, 0, 2)"),
    "no channel": (dict(x=X[..., :0]), "x", "shape (3, 4, 0)"),
    "an empty list": (dict(x=[]), "x", "shape (0, 0, 0)"),
    "an empty row": (dict(x=[X[0], X[1, :0]]), "lengths", "0 in row 1 of here"),
    "length 0": (dict(x=X, lengths=[1, 0, 2]), "lengths", "0 in row 1"),
    "length -1": (dict(x=X, lengths=[1, 2, -1]), "lengths", "-1 in row 2"),
    "length above T": (dict(x=X, lengths=[5, 4, 4]), "lengths", "5 in row 0"),
    "fractional length": (dict(x=X, lengths=[1.0, 2.5, 4.0]), "lengths", "2.5 in row 1"),
    "nan length": (dict(x=X, lengths=[1.0, 2.0, np.nan]), "lengths", "nan in row 2"),
    "float lengths": (dict(x=X, lengths=[1.0, 2.0, 3.0]), "lengths", "float64"),
    "string lengths": (dict(x=X, lengths=["1", "2", "3"]), "lengths", "<U1"),
    "too few lengths": (dict(x=X, lengths=[1, 2]), "lengths", "shape (2,)"),
    "lengths beside a list": (dict(x=list(X), lengths=[1, 2, 3]), "lengths", "some"),
    "too few y": (dict(x=X, y=[1, 2]), "y", "shape (2,)"),
    "y with three axes": (dict(x=X, y=[[[[1.0]]]] * 3), "y", "shape (3, 1, 1, 1)"),
    "too few labels a step": (dict(x=X, y=[[1], [2], [3]]), "y[0]", "shape (1,)"),
    "one of them": (dict(x=list(X), y=[[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4]]), "y[1]", "shape (3,)"),
    "too few rows": (dict(x=X, y=[[1, 2, 3, 4], [1, 2, 3, 4]]), "y", "2"),
    "a ragged y": (dict(x=X, y=[[1, 2, 3, 4], [1, [2], 3, 4], [1, 2, 3, 4]]), "y[1]", "unequal sizes"),
    "flat targets": (dict(x=X, lengths=[4, 4, 3], y=[[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3]]), "y", "float64"),
    "no label at all": (dict(x=X, y=[[None] * 4] * 3), "y", "none in here"),
    "unseen label a step": (
        dict(x=X, y=[[-1, 1, 1, 1], [1, -1, -1, 2], [1, 1, 1, 1]], labels=("1",)),
        "y",
        "'2' in row 1, step 3 of here",
    ),
    "half a target": (dict(x=X, y=[[[1.0, 2.0]] * 4, [[1, 2], [np.nan, 2]] * 2, [[1, 2]] * 4]), "y", "row 1, step 1"),
    "infinite targets": (dict(x=X, y=[[[np.inf]] * 4] * 3), "y", "row 0, step 0"),
    "too large targets": (dict(x=X, y=[[[1e39]] * 4] * 3), "y", "row 0, step 0"),
    "targets a step for classes": (dict(x=X, y=np.ones((3, 4, 1)), labels=("1",)), "y", "targets (1,) for each step"),
    "nan in y": (dict(x=X, y=[1.0, np.nan, 2.0]), "y", "nan in row 1 of here"),
    "infinite y": (dict(x=X, y=[1.0, 2.0, np.inf]), "y", "inf in row 2"),
    "too large y": (dict(x=X, y=[1e39, 2.0, 3.0]), "y", "1e+39 in row 0"),
    "complex y": (dict(x=X, y=[1j, 2.0, 3.0]), "y", "complex128"),
    "objects in y": (dict(x=X, y=[None, "a", "b"]), "y", "object"),
    "unseen label": (dict(x=X, y=["a", "b", "z"], labels=("a", "b")), "y", "'z' in row 2 of here"),
    "targets for classes": (dict(x=X, y=[1.0, 2.0, 3.0], labels=("1", "2", "3")), "y", "float64"),
}


@pytest.mark.parametrize(("arguments", "argument", "found"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("error")
def test_refuses(arguments, argument, found):
    with pytest.raises(InputError) as caught:
        sequences(**arguments, source="here")
    assert caught.value.argument == argument
    assert found in str(caught.value.found)
    assert "\n" not in str(caught.value)


def test_an_unseen_label_is_told_the_known_ones():
    with pytest.raises(InputError, match="one of the known labels 'a', 'b', found 'z'"):
        sequences(X, ["z", "a", "b"], labels=("a", "b"))
    with pytest.raises(InputError, match=r"'9', ... \(12 in all\), found 'z'"):
        sequences(X, ["z", "0", "1"], labels=map(str, range(12)))


def test_take_keeps_the_order_and_trims():
    data = sequences(X, ["a", "b", "c"], [1, 4, 2])
    taken = data.take([2, 0, 2])
    np.testing.assert_array_equal(taken.x, data.x[[2, 0, 2], :2])
    assert taken.lengths.tolist() == [2, 1, 2] and taken.labels == data.labels
    assert taken.y is not None and taken.y.tolist() == [2, 0, 2]
    assert sequences(X).take([1]).y is None


@pytest.mark.parametrize("indices", [[], [3], [-1], [0.5], [[0]], [True, False, True]])
def test_take_refuses(indices):
    with pytest.raises(InputError) as caught:
        sequences(X).take(indices)
    assert caught.value.argument == "indices"


@pytest.mark.parametrize(
    ("test", "argument", "found"),
    [
        (sequences(X[..., :1], [1, 2, 3]), "channels", "1 in the test split"),
        (sequences(X, [1.0, 2.0, 3.0]), "labels", "none in the test split"),
        (sequences(X, [1, 2, 4]), "labels", "'1', '2', '4' in the test split"),
        (sequences(X), "y", "none"),
    ],
)
def test_a_dataset_is_of_one_task(test, argument, found):
    with pytest.raises(InputError) as caught:
        Dataset("name", sequences(X, [1, 2, 3]), test)
    assert (caught.value.argument, caught.value.found) == (argument, found)


def numbered(y):
    """Sequences whose only value is their row number."""
    return sequences(np.arange(len(y)).reshape(-1, 1, 1), y)


def rows(data):
    return data.x[:, 0, 0].astype(int).tolist()


def test_split_is_stratified_complete_and_repeatable():
    data = numbered(["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    rest, held = stratified_split(data, 0.2, seed=3)
    assert sorted(rows(rest) + rows(held)) == list(range(100))
    assert data.y is not None and held.y is not None
    assert np.bincount(held.y).tolist() == [12, 6, 2]
    np.testing.assert_array_equal(held.y, data.y[rows(held)])
    assert rest.labels == held.labels == ("a", "b", "c")
    again, other = stratified_split(data, 0.2, seed=3)[1], stratified_split(data, 0.2, seed=4)[1]
    assert rows(again) == rows(held) != rows(other)


@pytest.mark.parametrize(("classes", "each", "fraction"), [(3, 2, 0.2), (3, 2, 0.5), (500, 2, 0.1), (50, 3, 0.3)])
def test_split_never_holds_out_more_than_was_asked_for(classes, each, fraction):
    data = numbered(np.arange(classes).repeat(each))
    rest, held = stratified_split(data, fraction, seed=0)
    assert held.y is not None and rest.y is not None
    assert len(held) == round(fraction * classes * each) and sorted(rows(rest) + rows(held)) == list(range(len(data)))
    assert np.bincount(held.y).max() == 1 and len(set(rest.y)) == classes
    assert rows(stratified_split(data, fraction, seed=0)[1]) == rows(held)
    assert classes == 3 or rows(stratified_split(data, fraction, seed=1)[1]) != rows(held)


def test_split_of_targets():
    rest, held = stratified_split(numbered(np.linspace(0, 1, 10)), 0.25, seed=0)
    assert (len(rest), len(held)) == (8, 2)
    assert sorted(rows(rest) + rows(held)) == list(range(10))


@pytest.mark.parametrize(
    ("y", "fraction", "seed", "argument", "found"),
    [
        ([0, 0, 1], 0.2, 0, "y", "one of '1'"),
        ([0, 0, 1, 1], 0.75, 0, "data", "4 with 3 of them held out"),
        ([0.5], 0.2, 0, "data", "1 with 1 of them held out"),
        ([0] * 98 + [1] * 2, 0.9, 0, "fraction", "0.9"),
        ([0, 0, 1, 1], 0.0, 0, "fraction", "0.0"),
        ([0, 0, 1, 1], 1.0, 0, "fraction", "1.0"),
        ([0, 0, 1, 1], float("nan"), 0, "fraction", "nan"),
        ([0, 0, 1, 1], 0.5, -1, "seed", "-1"),
    ],
)
def test_split_refuses(y, fraction, seed, argument, found):
    with pytest.raises(InputError) as caught:
        stratified_split(numbered(y), fraction, seed)
    assert (caught.value.argument, str(caught.value.found)) == (argument, found)


def test_split_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(InputError, match=r"pip install 'grujax\[data\]'"):
        stratified_split(numbered([0, 0, 1, 1]), 0.5, 0)


def test_statistics_see_valid_steps_only():
    data = sequences(X, lengths=[1, 4, 2])
    steps = np.concatenate([X[0, :1], X[1], X[2, :2]])
    mean, std = statistics(data)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, steps.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, steps.std(0), rtol=1e-6)


def test_statistics_are_computed_in_float64():
    x = np.random.default_rng(0).normal(10_000, 0.1, (50, 400, 1)).astype(np.float32)
    mean, std = statistics(sequences(x))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(), rtol=1e-7)
    np.testing.assert_allclose(std, x.astype(np.float64).std(), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e38, 1e-45])
def test_a_constant_channel_has_std_one(value):
    mean, std = statistics(sequences(np.full((7, 11, 1), value)))
    assert std.tolist() == [1.0]
    np.testing.assert_allclose(mean, np.float32(value), rtol=1e-6)
