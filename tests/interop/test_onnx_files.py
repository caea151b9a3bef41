"""ONNX files: external data, damage, and sizes, which are checked before anything is read."""

import numpy as np
import pytest
from onnx_graphs import GEMM, HEAD, INT32, PLAIN, H, X, drawn, edited, graph, gru, onnx, same, stacked, tensor, weights
from refusals import refused

from grujax import GRU, InputError
from grujax.interop.onnx import from_onnx, to_onnx
from grujax.interop.onnx_tensors import load


def external(folder, location="weights.bin", size=None, **changed):
    """Writes a model whose W is external data. size: of that file, cut or padded. changed: entries; None omits one."""
    proto, data = graph([gru()], X, PLAIN, weights()), weights()["W"].tobytes()
    w = tensor(proto, "W")
    w.ClearField("raw_data")
    w.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": "8", "length": str(len(data))} | changed
    for key, value in entries.items():
        if value is not None:
            w.external_data.add(key=key, value=value)
    beside = folder / "model"
    beside.mkdir()
    (beside / "weights.bin").write_bytes((bytes(8) + data + bytes(1000))[: 8 + len(data) if size is None else size])
    (folder / "outside.bin").write_bytes(bytes(8) + data)
    (beside / "link.bin").symlink_to(folder / "outside.bin")
    (beside / "linked").symlink_to(folder)
    (beside / "m.onnx").write_bytes(proto.SerializeToString())
    return beside / "m.onnx"


@pytest.mark.parametrize(
    "options", [{}, {"location": "./weights.bin"}, {"length": None}, {"length": None, "size": 1000}]
)
def test_external_data_inside_the_folder_is_read(tmp_path, options):
    params = from_onnx(load(external(tmp_path, **options)))[1]
    same(params, from_onnx(graph([gru()], X, PLAIN, weights()))[1])


EXTERNAL = {
    "absolute": ({"location": "/etc/passwd"}, ["W", "inside the model's folder", "'/etc/passwd'"]),
    "upwards": ({"location": "../outside.bin"}, ["W", "inside the model's folder", "outside.bin"]),
    "upwards within": ({"location": "a/../../outside.bin"}, ["W", "inside the model's folder"]),
    "upwards in Windows": ({"location": "..\\outside.bin"}, ["W", "inside the model's folder"]),
    "drive": ({"location": "C:/outside.bin"}, ["W", "inside the model's folder"]),
    "link": ({"location": "link.bin"}, ["W", "inside the model's folder", "link.bin"]),
    "link to a folder": ({"location": "linked/outside.bin"}, ["W", "inside the model's folder"]),
    "nowhere": ({"location": None}, ["W", "inside the model's folder", "''"]),
    "itself a folder": ({"location": "."}, ["W", "inside the model's folder"]),
    "missing": ({"location": "other.bin"}, ["W", "inside the model's folder", "'other.bin'"]),
    "truncated": ({"size": 100}, ["W"]),
    "past the end": ({"offset": "9"}, ["W"]),
    "too short": ({"length": "140"}, ["W", "144 bytes", "140"]),
    "too long": ({"length": "148"}, ["W"]),
    "negative": ({"offset": "-8"}, ["W", "external data", "-8"]),
    "no number": ({"length": "1e3"}, ["W", "external data", "1e3"]),
    "huge": ({"offset": "9" * 40}, ["W", "external data"]),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_external_data_outside_the_folder_or_of_another_size_is_refused(case, tmp_path):
    options, parts = EXTERNAL[case]
    with refused(*parts):
        load(external(tmp_path, **options))


def test_external_data_is_no_larger_than_the_tensor_before_it_is_read(tmp_path, monkeypatch):
    def read(*args):
        raise AssertionError("it was read")

    path = external(tmp_path, length=str(2**40))
    monkeypatch.setattr(onnx.external_data_helper, "load_external_data_for_tensor", read)
    with refused("W", "144 bytes", str(2**40)):
        load(path)


def test_external_data_is_never_read_behind_the_back_of_the_check(tmp_path):
    proto = onnx.load_model_from_string(external(tmp_path).read_bytes())
    with refused("W", "load(path)"):
        from_onnx(proto)


def resized(name, **changed):
    def change(proto):
        for key, value in changed.items():
            if key == "dims":
                tensor(proto, name).dims[:] = value
            else:
                setattr(tensor(proto, name), key, value)

    return lambda: edited(change).SerializeToString()


FILES = {
    "empty": (lambda: b"", ["path", "1 to"]),
    "text": (lambda: b"no model at all\n" * 9, ["path"]),
    "zeros": (lambda: bytes(100), ["path", "an ONNX model"]),
    "zip": (lambda: b"PK\x03\x04" + bytes(range(200)), ["path", "an ONNX model"]),
    "truncated": (lambda: stacked().SerializeToString()[:700], ["path", "an ONNX model"]),
    "fewer bytes": (resized("W", raw_data=bytes(100)), ["W", "144 bytes", "100"]),
    "more bytes": (resized("R", raw_data=bytes(1000)), ["R", "192 bytes", "1000"]),
    "huge dims": (resized("W", dims=[1, 2**40, 2**40]), ["W", "bytes"]),
    "negative dims": (resized("W", dims=[1, -12, -3]), ["W", "0 or more"]),
    "fewer axes": (resized("W", dims=[36]), ["W", "three axes", "(36,)"]),
    "complex": (resized("B", data_type=onnx.TensorProto.COMPLEX64, dims=[1, 12]), ["B", "FLOAT", "14"]),
    "integers": (resized("B", data_type=INT32), ["B", "float32", "int32"]),
    "no dtype": (resized("B", data_type=0), ["B", "FLOAT", "number 0"]),
    "dtypes apart": (
        resized("B", data_type=onnx.TensorProto.FLOAT16, raw_data=bytes(48)),
        ["B", "dtype float32", "float16"],
    ),
    "newer than the package": (
        lambda: edited(lambda proto: setattr(proto, "ir_version", 10**6)).SerializeToString(),
        ["source", "checker"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_refused_in_one_line(case, tmp_path):
    make, parts = FILES[case]
    (tmp_path / "m.onnx").write_bytes(make())
    with refused(*parts):
        from_onnx(load(tmp_path / "m.onnx"))


def test_the_size_is_checked_before_the_file_is_read(tmp_path):
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(2**31)
    with refused("path", f"{2**31} bytes"):
        load(tmp_path / "m.onnx")
    with refused("path", "no file at"):
        load(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "make", [lambda: graph([gru(), *GEMM], X, {"y": 2}, weights() | HEAD), lambda: to_onnx(GRU(H), drawn(GRU(H)))]
)
def test_no_flipped_bit_and_no_cut_lets_another_error_out(make, tmp_path, apart):
    data, draw = make().SerializeToString(), np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for cut in range(1, len(data), len(data) // 12):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError):
            from_onnx(load(path))
    for at in draw.integers(len(data), size=12):  # each that is still a graph runs in a separate process
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            from_onnx(load(path))
        except InputError as error:
            assert "\n" not in str(error)
