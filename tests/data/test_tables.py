"""Tables in wide form, and tables in Parquet, which are read like the same tables in CSV."""

import numpy as np
import pytest

from grujax.data import AxesWarning, load, load_sequences, sequences
from grujax.errors import InputError

pandas = pytest.importorskip("pandas", reason="pandas is not installed")

WIDE = """y,a_0,b_0,a_10,b_10,b_2,a_2
up,1,2,3,4,,5
down,6,7,,,,8
"""


def written(path, text):
    path.write_text(text)
    return path


def test_a_table_in_wide_form(tmp_path):
    """Steps are sorted by their numbers, and each sequence ends with its last value."""
    path = written(tmp_path / "w.csv", WIDE)
    found = load_sequences(path, labels=("down", "up"), fill=[0, -1])
    assert found.lengths.tolist() == [3, 2] and found.y.tolist() == [1, 0]
    assert found.x[:, :, :2].tolist() == [[[1, 2], [5, 2], [3, 4]], [[6, 7], [8, 7], [0, 0]]]
    assert found.x[0, :, 5].tolist() == [0, 2, 10] and found.x[0, :, 3].tolist() == [1, 0, 1]  # gap and mask of b
    with pytest.raises(InputError, match=r"nan at row 0, step 1, channel 1 of w.csv"):
        load_sequences(path, labels=("down", "up"))
    plain = load_sequences(written(tmp_path / "p.csv", "x_1,x_0\n2,1\n4,3\n"), need_labels=False)
    assert plain.x.tolist() == [[[1], [2]], [[3], [4]]] and plain.y is None


@pytest.mark.parametrize(
    "text, found",
    [
        ("id,a_0\n1,2\n", "'id', 'a_0'"),
        ("y\n1\n", "found 'y'"),
        ("y,0,00\n1,2,3\n", "each step of a channel once"),
        ("y,a_0,b_1\n1,2,3\n", "2 columns for 2 channels and 2 steps"),
        ("y,0\n", "a line for each sequence"),
        ("3,5,2\n4,6,1\n", "names of columns in the first line, found numbers alone, '3', '5', '2'. Name them x_0"),
        ("0.5,1e3\n4,6\n", "names of columns in the first line, found numbers alone"),
        ("0,1\n4,6\n", "names of columns in the first line, found numbers alone"),
        ("up,0.5\ndown,6\n", "columns 'sequence'"),
        ("y,0\na,1\nb,\n", "0 in row 1 of w.csv"),
        ("y,0\na,1\n,2\n", "none in sequence 1 of w.csv"),
    ],
)
def test_a_wide_table_that_cannot_be_read_is_refused(text, found, tmp_path):
    with pytest.raises(InputError) as caught:
        load(written(tmp_path / "w.csv", text))
    assert found in str(caught.value)


LONG = pandas.DataFrame(
    {"sequence": ["p", "q", "p", "p", "q"], "time": [2, 1, 1, 3, 2], "a": [3, 10, 1.5, 4, 11], "b": [3, 1, -1, 4, 2]}
)


@pytest.mark.parametrize(
    "columns",
    [
        {"y": ["up", "down", "up", "up", "down"]},
        {"y": pandas.Categorical(["up", "down", "up", "up", "down"]), "sequence": [7, 9, 7, 7, 9]},
        {"y": [12, 3, 12, 12, 3], "b": np.arange(5, dtype=np.int16)},
        {"y": [True, False, True, True, False], "b": [True, False, True, False, False]},
        {"y": [2.0, 1.0, 2.0, 2.0, 1.0]},
        {"y_step": ["up", None, "down", "up", "down"]},
        {"y_step": pandas.array([1, None, 2, 1, 2], "Int64")},
        {"y_step": [1.5, np.nan, 2.0, 1.0, 2.0]},
    ],
)
def test_parquet_is_read_as_the_same_table_in_csv(columns, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = LONG.assign(**columns)
    table.to_parquet(tmp_path / "t.parquet")
    table.astype({"b": float}).to_csv(tmp_path / "t.csv", index=False)
    read = [sequences(*_raw(tmp_path / name)) for name in ("t.parquet", "t.csv")]
    for name in ("x", "lengths", "y"):
        np.testing.assert_array_equal(getattr(read[0], name), getattr(read[1], name))
    assert read[0].labels == read[1].labels and read[0].x[0, 1].tolist()[0] == 3


def _raw(path):
    from grujax.data.files import read

    return read(path)[:2]


def test_parquet_in_wide_form_with_missing_values(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "w.csv").write_text(WIDE)
    pandas.read_csv(tmp_path / "w.csv").to_parquet(tmp_path / "w.parquet")
    read = [load_sequences(tmp_path / f"w.{end}", labels=("down", "up"), fill=[0, -1]) for end in ("csv", "parquet")]
    np.testing.assert_array_equal(read[0].x, read[1].x)
    np.testing.assert_array_equal(read[0].lengths, read[1].lengths)


def test_parquet_that_cannot_be_read_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"

    def refused(found, **options):
        with pytest.raises(InputError) as caught:
            load_sequences(path, need_labels=False, **options)
        assert found in str(caught.value) and "\n" not in str(caught.value), caught.value

    LONG.to_parquet(path)
    refused("at most max_bytes=159, found", max_bytes=159)
    path.write_bytes(path.read_bytes()[:-20])
    refused("ArrowInvalid")
    LONG.assign(a=pandas.Timestamp("2026-01-01")).to_parquet(path)
    refused("a in t.parquet: expected numbers, found timestamp")
    LONG.assign(a=["1"] * 5).to_parquet(path)
    refused("a in t.parquet: expected numbers, found dictionary")
    parquet.write_table(pyarrow.table([[1], [2]], names=["a", "a"]), path)
    refused("distinct names of columns")
    LONG.assign(time=[1, None, 1, 3, 2]).to_parquet(path)
    refused("time: expected finite numbers")


def test_axes_that_look_swapped_are_named():
    x = np.zeros((3, 2, 50))  # (N, C, T), as in aeon
    with pytest.warns(AxesWarning, match=r"read as 2 steps of 50 channels\. .*swapaxes\(1, 2\)"):
        sequences(x)
    with pytest.raises(InputError, match=r"^lengths: .* found 50 in row 0 of data\. .*swapaxes"):
        sequences(x, lengths=[50, 40, 30])
    with pytest.raises(InputError, match=r"^x: expected 50 channels as in row 0, found 40 .*row\.T"):
        sequences([x[0], x[1, :, :40]])
    with pytest.raises(InputError) as caught:
        sequences([x[0].T, x[1, :, :40].T[:, :1]])
    assert caught.value.remedy == ""
