"""Loading: the data sets in aeon, files, tables, and the files that are refused."""

import sys
import tracemalloc
import zipfile
from pathlib import Path

import aeon.datasets
import numpy as np
import pytest

from grujax.data import load, load_sequences
from grujax.errors import InputError

AEON = Path(aeon.datasets.__file__).parent / "data"
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(10, 5, 2)), np.array([0, 1] * 5)
HEADER = "@problemName toy\n@univariate true\n@equalLength false\n@classLabel true a b\n@data\n"


def refused(call, argument, found):
    """Checks the InputError that `call` must raise, and returns its message."""
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.argument == str(argument)
    assert found in str(caught.value.found)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


# data sets by name


def test_japanese_vowels():
    data = load("JapaneseVowels")
    assert (data.name, len(data.train), len(data.test), data.train.channels) == ("JapaneseVowels", 270, 370, 12)
    assert data.train.labels == data.test.labels == tuple("123456789")
    lengths = np.concatenate([data.train.lengths, data.test.lengths])
    assert (lengths.min(), lengths.max()) == (7, 29)
    x, y, *_ = aeon.datasets.load_from_ts_file(str(AEON / "JapaneseVowels/JapaneseVowels_TRAIN.ts"))
    assert data.train.y is not None
    for row, case in enumerate(x):
        length = case.shape[1]
        assert data.train.lengths[row] == length
        np.testing.assert_array_equal(data.train.x[row, :length], case.T.astype(np.float32))
        assert not data.train.x[row, length:].any()
        assert str(data.train.y[row] + 1) == y[row]


def test_pickup_gesture_sorts_its_labels_by_number():
    data = load("PickupGestureWiimoteZ")
    assert (len(data.train), len(data.test), data.train.channels) == (50, 50, 1)
    assert data.train.labels == tuple(map(str, range(1, 11)))
    assert data.train.y is not None and np.bincount(data.train.y).tolist() == [5] * 10


def test_covid_is_a_regression():
    data = load("Covid3Month")
    assert (len(data.train), len(data.test), data.train.x.shape[1:]) == (140, 61, (84, 1))
    assert data.train.labels is None and data.train.y is not None and data.train.y.dtype == np.float32
    np.testing.assert_allclose(data.train.y[:2], [0, 0.07758621], rtol=1e-6)


def test_basic_motions():
    data = load("BasicMotions")
    assert data.train.x.shape == data.test.x.shape == (40, 100, 6)
    assert data.train.labels == ("badminton", "running", "standing", "walking")
    assert data.train.lengths.tolist() == [100] * 40


def test_every_set_that_is_offered_loads():
    offered = [folder.name for folder in AEON.iterdir() if (folder / f"{folder.name}_TEST.ts").is_file()]
    assert len(offered) >= 10
    for name in offered:
        assert load(name).name == name


def test_a_name_means_its_test_split_to_a_trained_model():
    expected = load("JapaneseVowels").test
    found = load_sequences("JapaneseVowels", labels=tuple("123456789"), channels=12)
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_array_equal(found.y, expected.y)  # pyright: ignore[reportArgumentType]


def test_an_unknown_name_is_told_the_nearest():
    message = refused(lambda: load("JapanesVowel"), "source", "'JapanesVowel'")
    assert "Nearest: JapaneseVowels." in message
    assert "GunPoint" in refused(lambda: load_sequences("zzzz"), "source", "'zzzz'")
    assert refused(lambda: load("KDD-TSAD_135"), "source", "'KDD-TSAD_135'")


@pytest.mark.parametrize("source", ["GunPoint", AEON / "GunPoint" / "GunPoint_TRAIN.ts"])
def test_without_aeon(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "aeon.datasets", None)
    assert "pip install 'grujax[data]'" in refused(lambda: load(source), "aeon", "import of aeon.datasets halted")


# files


def test_npz_with_its_sibling(tmp_path):
    train = saved(tmp_path / "toy_TRAIN.npz", X=X, y=Y, lengths=np.arange(10) % 5 + 1)
    saved(tmp_path / "toy_TEST.npz", X=X[:3] + 1, y=Y[:3])
    data = load(str(train))
    assert (data.name, data.train.labels) == ("toy", ("0", "1"))
    assert data.train.lengths.tolist() == [1, 2, 3, 4, 5] * 2
    np.testing.assert_array_equal(data.train.x[4], X[4].astype(np.float32))
    np.testing.assert_array_equal(data.test.x, (X[:3] + 1).astype(np.float32))


def test_the_sibling_of_a_plain_stem_and_a_given_test_file(tmp_path):
    train = saved(tmp_path / "toy.npz", X=X, y=Y)
    saved(tmp_path / "toy_TEST.npz", X=X[:3], y=Y[:3])
    other = saved(tmp_path / "other.npz", X=X[:4], y=Y[:4])
    assert len(load(train).test) == 3
    assert len(load(train, test=other).test) == 4


def test_without_a_sibling_a_share_is_held_out(tmp_path):
    train = saved(tmp_path / "toy_TRAIN.npz", X=X, y=Y)
    data = load(train, seed=1)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert data.test.y is not None and sorted(data.test.y) == [0, 1]
    joined = np.concatenate([data.train.x, data.test.x])
    np.testing.assert_array_equal(np.sort(joined[:, 0, 0]), np.sort(X[:, 0, 0].astype(np.float32)))
    assert len(load(train, fraction=0.4).test) == 4
    assert not np.array_equal(load(train, seed=2).test.x, data.test.x)


def test_ts_with_unequal_lengths(tmp_path):
    path = tmp_path / "toy.ts"
    path.write_text(HEADER + "1,2,3:a\n4:b\n5,6: A \n7,8:b\n")
    data = load_sequences(path, labels=("b", "a"), channels=1)
    assert data.x[:, :, 0].tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0], [7, 8, 0]]
    assert data.y is not None and data.y.tolist() == [1, 0, 1, 0]


def test_a_label_that_contains_nan(tmp_path):
    path = tmp_path / "toy.ts"
    path.write_text(HEADER.replace("a b", "banana b") + "1:banana\n2:b\n")
    assert load_sequences(path, labels=("banana", "b")).labels == ("banana", "b")


def test_integer_targets_for_a_regression(tmp_path):
    train = saved(tmp_path / "toy_TRAIN.npz", X=X, y=Y + 0.5)
    test = saved(tmp_path / "toy_TEST.npz", X=X, y=Y)
    for found in (load(train).test, load_sequences(test)):
        assert found.labels is None and found.y is not None
        assert found.y.dtype == np.float32 and found.y.tolist() == Y.tolist()


def test_predicting_needs_no_labels(tmp_path):
    for arrays in ({}, {"y": Y[:2]}, {"y": np.full(10, np.nan)}):
        path = saved(tmp_path / "toy.npz", X=X, **arrays)
        data = load_sequences(path, labels=("0", "1"), channels=2, need_labels=False)
        assert data.y is None and data.labels is None
        np.testing.assert_array_equal(data.x, X.astype(np.float32))
    path = tmp_path / "toy.ts"
    path.write_text(HEADER.replace("true a b", "false") + "1,2,3\n4\n")
    assert load_sequences(path, need_labels=False).lengths.tolist() == [3, 1]


# refusals


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("data.xlsx", ".xlsx"),
        ("folder/data", "no ending"),
        ("/", "no ending"),
        ("gone.ts", "none"),
        ("gone.npz", "none"),
    ],
)
def test_refuses_a_path(source, found):
    refused(lambda: load(source), source, found)
    refused(lambda: load_sequences(source), source, found)


def test_refuses_a_folder_and_a_missing_test_file(tmp_path):
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    refused(lambda: load(folder), folder, "a folder")
    train = saved(tmp_path / "toy.npz", X=X, y=Y)
    refused(lambda: load(train, test=tmp_path / "gone.npz"), tmp_path / "gone.npz", "none")


TS = {
    "empty": ("", "PATH", "none"),
    "another language": ("export const a: number = 1;\n", "PATH", "none"),
    "no sequence": (HEADER, "PATH", "none"),
    "no number": (HEADER + "1,x:a\n", "PATH", "could not convert"),
    "channels": (HEADER + "1,2:a\n1,2:3,4:b\n", "PATH", "Inconsistent number of dimensions"),
    "not unicode": (HEADER.encode() + b"\xff\xfe:a\n", "PATH", "UnicodeDecodeError"),
    "no tag value": ("@problemName\n@data\n1:a\n", "PATH", "IndexError"),
    "timestamps": ("@timeStamps true\n" + HEADER + "(0,-1.5),(1,2):a\n", "PATH", "true"),
    "no label line": ("@data\n1,2:a\n1,2:b\n", "PATH", "neither"),
    "undeclared label": (HEADER + "1:a\n2:c\n", "y", "'c' in row 1 of toy.ts"),
    "missing label": (HEADER + "1:a\n2:?\n", "y", "'nan' in row 1 of toy.ts"),
    "missing value": (HEADER + "1,2:a\n1,?:b\n", "x", "nan at row 1, step 1, channel 0 of toy.ts"),
    "unlabelled": (HEADER.replace("true a b", "false") + "1\n2\n", "y", "none in toy.ts"),
    "one class": (HEADER + "1:a\n2:a\n", "y", "only 'a' in toy.ts"),
    "missing target": ("@targetLabel true\n@data\n1:0.5\n1:?\n", "y", "nan in row 1 of toy.ts"),
}


@pytest.mark.parametrize(("text", "argument", "found"), TS.values(), ids=TS)
def test_refuses_ts(text, argument, found, tmp_path):
    path = tmp_path / "toy.ts"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(lambda: load(path), path if argument == "PATH" else argument, found)


NPZ = {
    "no X": (dict(x=X, y=Y), "PATH", "'x', 'y'"),
    "another key": (dict(X=X, y=Y, mask=Y), "PATH", "'mask'"),
    "no y": (dict(X=X), "y", "none in toy.npz"),
    "two axes": (dict(X=X[0], y=Y), "x", "shape (5, 2) in toy.npz"),
    "short y": (dict(X=X, y=Y[:4]), "y", "shape (4,) in toy.npz"),
    "length 0": (dict(X=X, y=Y, lengths=Y), "lengths", "0 in row 0 of toy.npz"),
    "long lengths": (dict(X=X, y=Y, lengths=Y + 5), "lengths", "6 in row 1 of toy.npz"),
    "one class": (dict(X=X, y=Y * 0), "y", "only '0' in toy.npz"),
    "a class of one": (dict(X=X, y=np.arange(10) // 9), "y", "one of '1'"),
    "text": (dict(X=X.astype(str), y=Y), "x", "<U"),
}


@pytest.mark.parametrize(("arrays", "argument", "found"), NPZ.values(), ids=NPZ)
def test_refuses_npz(arrays, argument, found, tmp_path):
    path = saved(tmp_path / "toy.npz", **arrays)
    refused(lambda: load(path), path if argument == "PATH" else argument, found)


def test_refuses_pickles(tmp_path):
    path = saved(tmp_path / "toy.npz", X=X, y=np.array([{}] * 10, object))
    refused(lambda: load(path), f"y.npy in {path}", "pickled objects")


def test_refuses_what_is_no_zip(tmp_path):
    path = tmp_path / "toy.npz"
    np.save(tmp_path / "array.npy", X)
    for content in (b"", b"PK\x03\x04", (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        refused(lambda: load(path), path, "BadZipFile")


def test_refuses_a_damaged_zip(tmp_path):
    path = saved(tmp_path / "toy.npz", X=X, y=Y)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: load(path), path, "BadZipFile")
    middle = whole.index(X.tobytes()) + 80
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    refused(lambda: load(path), path, "Bad CRC-32")


def test_refuses_a_member_that_is_no_array(tmp_path):
    path = tmp_path / "toy.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", "not an array")
    refused(lambda: load(path), path, "magic string")


def test_refuses_an_array_given_twice(tmp_path):
    path = saved(tmp_path / "toy.npz", X=X, y=Y)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("X.npy", archive.read("X.npy"))
    refused(lambda: load(path), path, "'X', 'y', 'X'")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, bool])
def test_refuses_a_bomb_before_it_is_unpacked(dtype, tmp_path, monkeypatch):
    path = tmp_path / "toy.npz"
    np.savez_compressed(path, X=np.zeros((10, 50_000, 2), dtype), y=Y)
    assert path.stat().st_size < 10**5
    needed = 10**6 * max(np.dtype(dtype).itemsize, 4) + 80
    for call in (load, load_sequences):
        assert call(path, max_bytes=needed)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("unpacked"))
    for call in (lambda **limit: load(path, **limit), lambda **limit: load_sequences(path, **limit)):
        message = refused(lambda call=call: call(max_bytes=needed - 1), path, str(needed))
        assert f"at most max_bytes={needed - 1}" in message


def test_a_ts_file_past_the_limit_is_refused(tmp_path):
    path = tmp_path / "toy.ts"
    path.write_text(HEADER + "1:a\n2:b\n1:a\n2:b\n")
    size = path.stat().st_size
    assert len(load_sequences(path, labels=("a", "b"), max_bytes=size)) == 4
    refused(lambda: load_sequences(path, max_bytes=size - 1), path, str(size))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_loading_holds_the_values_and_those_in_float32(dtype, tmp_path):
    np.savez_compressed(tmp_path / "toy.npz", X=np.ones((100, 1000, 20), dtype), y=np.arange(100) % 2)
    size = 2 * 10**6 * (np.dtype(dtype).itemsize + 4)
    load_sequences(tmp_path / "toy.npz")  # so that imports are not counted
    tracemalloc.start()
    data = load_sequences(tmp_path / "toy.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.x.all() and size < peak < 1.1 * size


def test_refuses_a_shape_that_the_bytes_do_not_fill(tmp_path, monkeypatch):
    path = tmp_path / "toy.npz"
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6, 2)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("X.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(80))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("allocated"))
    message = refused(lambda: load(path), f"X.npy in {path}", "80")
    assert "16000000000000 bytes for shape (1000000, 1000000, 2)" in message


def test_refuses_what_the_model_does_not_know(tmp_path):
    path = saved(tmp_path / "toy.npz", X=X, y=Y)
    message = refused(lambda: load_sequences(path, labels=("0", "1"), channels=12), "channels", "2 in toy.npz")
    assert message.startswith("channels: expected 12, found 2")
    refused(lambda: load_sequences(path, labels=("0", "7")), "y", "'1' in row 1 of toy.npz")
    refused(lambda: load_sequences("GunPoint"), "y", "<U")  # classes, for a regression model
    refused(lambda: load_sequences("Covid3Month", labels=("0", "1")), "y", "float64")


def test_refuses_a_test_set_of_another_task(tmp_path):
    train = saved(tmp_path / "toy.npz", X=X, y=Y)
    unseen = saved(tmp_path / "unseen.npz", X=X, y=Y + 1)
    refused(lambda: load(train, test=unseen), "y", "'2' in row 1 of unseen.npz")
    narrow = saved(tmp_path / "narrow.npz", X=X[..., :1], y=Y)
    refused(lambda: load(train, test=narrow), "channels", "1 in the test split")
    targets = saved(tmp_path / "targets.npz", X=X, y=Y / 2)
    refused(lambda: load(train, test=targets), "y", "float64")
    names = saved(tmp_path / "names.npz", X=X, y=Y.astype(str))
    refused(lambda: load(targets, test=names), "y", "<U")


# tables

LONG = """sequence,time,y,a,b
p,2,up,3.0,-3
q,1,down,10,0.5
p,1,up,1.5,-1
p,3,up,4.0,-4
q,2,down,11,0.25
"""


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_in_long_form(tmp_path):
    path = written(tmp_path / "t.csv", LONG)
    found = load_sequences(path, labels=("down", "up"), channels=2)
    assert found.lengths.tolist() == [3, 2] and found.y.tolist() == [1, 0]
    assert found.x[0].tolist() == [[1.5, -1], [3, -3], [4, -4]] and found.x[1, :2].tolist() == [[10, 0.5], [11, 0.25]]
    as_it_stands = written(tmp_path / "u.csv", LONG.replace("time", "c"))  # under another name, the time is a channel
    assert load_sequences(as_it_stands, labels=("down", "up")).x[0, :, 0].tolist() == [2, 1, 3]
    many = "".join(f"{row},{1 + row % 2},{step}\n" for step in range(3) for row in range(20))
    data = load(written(tmp_path / "n.csv", "\ufeffsequence,y,x\n" + many))
    assert data.train.labels == ("1", "2") and len(data.train) == 16 and data.train.x[0, :, 0].tolist() == [0, 1, 2]
    targets = load(written(tmp_path / "r.csv", "sequence,y,x\n" + many.replace(",1,", ",1.5,")))
    assert targets.train.labels is None and sorted(set(targets.train.y.tolist())) == [1.5, 2]
    unlabelled = load_sequences(written(tmp_path / "p.csv", "sequence,x\n1,2\n"), need_labels=False)
    assert unlabelled.y is None and unlabelled.x.tolist() == [[[2.0]]]


TABLES = {
    "no column of sequences": (LONG.replace("sequence", "id"), "'id', 'time'"),
    "no channel": ("sequence,time,y\n1,1,a\n", "'sequence', 'time', 'y'"),
    "two columns of a name": (LONG.replace("b\n", "a\n", 1), "'a', 'a'"),
    "no line": ("sequence,a\n", "none"),
    "nothing": ("", "none"),
    "a time twice": (LONG.replace("p,3", "p,2"), "2 twice in sequence 'p' of t.csv"),
    "a missing time": (LONG.replace("p,3", "p,"), "a missing one in t.csv"),
    "two labels": (LONG.replace("q,2,down", "q,2,up"), "'down' and 'up' in 'q' of t.csv"),
    "a missing label": (LONG.replace("down", ""), "none in sequence 'q' of t.csv"),
    "a missing value": (LONG.replace("4.0", ""), "nan at row 0, step 2, channel 0 of t.csv"),
    "a word for a value": (LONG.replace("4.0", "four"), "ValueError"),
    "a value too many in each line": ("sequence,a\n1,2,3\n1,2,3\n", "more"),
    "a value too many in one": (LONG + "q,3,down,1,2,3\n", "ParserError"),
    "not UTF-8": (LONG.encode("utf-16"), "UnicodeDecodeError"),
    "an endless number": (LONG.replace("4.0", "1e999"), "inf at row 0"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_read_is_refused(name, tmp_path):
    content, found = TABLES[name]
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_sequences(path, labels=("down", "up"))
    assert found in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_a_table_larger_than_allowed_is_refused_before_it_is_read(tmp_path):
    path = written(tmp_path / "t.csv", LONG)
    refused(lambda: load_sequences(path, labels=("down", "up"), max_bytes=50), path, str(len(LONG)))


def test_npy_holds_x_alone(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    found = load_sequences(path, need_labels=False)
    np.testing.assert_array_equal(found.x, X.astype(np.float32))
    refused(lambda: load(path), "y", "none in x.npy")
    refused(lambda: load_sequences(path, need_labels=False, max_bytes=799), path, "800")
    path.write_bytes(path.read_bytes()[:-1])
    refused(lambda: load_sequences(path, need_labels=False), path, "ValueError")
    np.save(path, np.array([{}]))
    refused(lambda: load_sequences(path, need_labels=False), path, "ValueError")
