"""Missing values: last observed value, mask and time gap, compared with loops over the equations of Che et al."""

import numpy as np
import pytest

from grujax.data import Dataset, UnitWarning, load, load_sequences, sequences
from grujax.errors import InputError


def by_hand(x, times, fill):
    """The recursion of the paper for one sequence: (T, C) -> (T, 3C)."""
    steps, channels = x.shape
    out = np.zeros((steps, 3 * channels))
    for c in range(channels):
        last, gap = fill[c], 0.0
        for t in range(steps):
            if t > 0:
                gap = times[t] - times[t - 1] + (0 if out[t - 1, channels + c] else gap)
            seen = not np.isnan(x[t, c])
            last = x[t, c] if seen else last
            out[t, c], out[t, channels + c], out[t, 2 * channels + c] = last, seen, gap
    return out


def holey(seed, count=5):
    rng = np.random.default_rng(seed)
    x, times = [], []
    for size in rng.integers(1, 8, count):
        values = rng.normal(10, 3, (size, 2))
        values[rng.uniform(size=values.shape) < 0.5] = np.nan
        x.append(values)
        times.append(np.cumsum(rng.uniform(0, 4, size)))
    return x, times


@pytest.mark.parametrize("timed", [False, True])
def test_values_mask_and_gaps_by_hand(timed):
    x, times = holey(0)
    found = sequences(x, missing="mask", times=times if timed else None)
    fill = np.nanmean(np.concatenate(x), 0)
    np.testing.assert_allclose(found.fill, fill, rtol=1e-6)
    assert found.channels == 6 and found.x.dtype == np.float32
    for row, values, at in zip(found.x, x, times, strict=True):
        expected = by_hand(values, at if timed else np.arange(len(values)), fill)
        np.testing.assert_allclose(row[: len(values)], expected, rtol=1e-5, atol=1e-5)
        assert not row[len(values) :].any()


def test_new_data_are_filled_as_the_training_split_and_padding_may_hold_anything():
    train, (x, _) = sequences(holey(0)[0], [*"ababa"], missing="mask"), holey(1)
    width = max(map(len, x))
    padded = np.full((5, width, 2), np.nan)
    for row, values in zip(padded, x, strict=True):
        row[: len(values)] = values
    test = sequences(padded, [*"ababa"], [*map(len, x)], missing="mask", fill=train.fill)
    for row, values in zip(test.x, x, strict=True):
        np.testing.assert_allclose(row[: len(values)], by_hand(values, np.arange(9), train.fill), rtol=1e-5)
    np.testing.assert_array_equal(Dataset("d", train, test).test.take([2]).fill, train.fill)
    alone = sequences(x, [*"ababa"], missing="mask")
    for other in (alone, sequences(np.ones((2, 3, 6)), [*"ab"])):
        with pytest.raises(InputError, match=r"^fill: expected the values of the training split"):
            Dataset("d", train, other)
    never = sequences([[[1.0, np.nan]]], missing="mask")
    assert never.fill.tolist() == [1, 0] and never.x.tolist() == [[[1, 0, 1, 0, 0, 0]]]


def test_a_table_has_its_times_and_a_trained_model_its_fill(tmp_path):
    lines = [f"{row},{5 * step},{row % 2},{'' if step == 1 else row + step}" for row in range(20) for step in range(3)]
    path = tmp_path / "t.csv"
    path.write_text("sequence,time,y,a\n" + "\n".join(lines) + "\n")
    data = load(path, missing="mask")
    np.testing.assert_array_equal(data.train.x[:, :, 1:], [[[1, 0], [0, 5], [1, 10]]] * 16)
    np.testing.assert_array_equal(data.test.x[:, 1, 0], data.test.x[:, 0, 0])
    again = load_sequences(path, fill=data.train.fill, channels=3, need_labels=False)
    np.testing.assert_array_equal(again.x[:, 2, 0], np.arange(20) + 2)
    with pytest.raises(InputError, match=r"nan at row 0, step 1, channel 0 of t.csv\. .*missing='mask'"):
        load(path)


def timed(path, unit=2.0, time="time", count=20):
    """Writes a table whose steps are `unit` apart; the second value of each sequence is missing."""
    lines = [f"{row},{unit * step},{row % 2},{'' if step == 1 else row}" for row in range(count) for step in range(3)]
    if not time:
        lines = [line.split(",", 2)[0] + "," + line.split(",", 2)[2] for line in lines]
    path.write_text(f"sequence,{time}{',' * bool(time)}y,a\n" + "\n".join(lines) + "\n")
    return path


def test_times_that_may_be_in_another_unit_are_told(tmp_path):
    train = timed(tmp_path / "train.csv")
    data = load(train, missing="mask").train
    assert data.gap == data.take([0]).gap == 2
    options = {"fill": data.fill, "need_labels": False}
    for unit in (0.5, 2, 9.5):
        assert load_sequences(timed(tmp_path / "new.csv", unit), gap=data.gap, **options).gap == unit
    for unit in (2 / 60, 10.0, 2000.0):  # 1/60, 5 and 1000 times the gap in training
        other = timed(tmp_path / "new.csv", unit)
        with pytest.warns(UnitWarning, match=rf"^time: a median gap of {unit:g} in new\.csv, and of 2 in training"):
            load_sequences(other, gap=data.gap, **options)
        with pytest.warns(UnitWarning, match=r"in the test split, and of 2 in training"):
            load(train, test=other, missing="mask")
        found = load_sequences(other, **options)  # a model without a training gap gets no warning
        assert found.gap == pytest.approx(unit)
    assert load(timed(tmp_path / "bare.csv", time=""), missing="mask").train.gap == 1  # times are 0, 1, ... by default
    few = timed(tmp_path / "few.csv", 2000, count=2)  # too few gaps for a median
    assert load_sequences(few, gap=data.gap, **options).gap is None


X = np.ones((2, 3, 1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"missing": "fill"}, r"missing: expected one of \['refuse', 'mask'\]"),
        ({"times": np.ones((2, 3))}, r"times needs missing='mask'"),
        ({"fill": [1.0]}, r"fill needs missing='mask'"),
        ({"missing": "mask", "fill": [1.0, 2.0]}, r"fill: expected 1 values"),
        ({"missing": "mask", "fill": [np.inf]}, r"fill: expected finite"),
        ({"missing": "mask", "fill": ["1"]}, r"fill: expected real"),
        ({"missing": "mask", "times": np.ones((1, 3))}, r"times: expected a row for each of 2"),
        ({"missing": "mask", "times": np.ones((2, 2))}, r"times\[0\]: expected one time for each of 3 steps"),
        (
            {"missing": "mask", "times": [[1, 2, 3], [2, 1, 3]]},
            r"times\[1\]: expected finite numbers that do not decrease",
        ),
        ({"missing": "mask", "times": [[1, 2, np.nan], [2, 1, 3]]}, r"times\[0\]: expected finite"),
        ({"missing": "mask", "times": [[1, 2, 5e39], [2, 3, 4]]}, r"times\[0\]: expected finite"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        sequences(X, **options)


def test_infinite_is_not_missing():
    with pytest.raises(InputError, match=r"inf at row 1, step 2, channel 0"):
        sequences([[[1.0]], [[1.0], [np.nan], [np.inf], [-np.inf]]], missing="mask")
    with pytest.raises(InputError, match=r"inf at row 1, step 0, channel 0"):  # not the NaN that an infinite mean fills
        sequences([[[np.nan], [1.0]], [[np.inf], [1.0]]], missing="mask")
