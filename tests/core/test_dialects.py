"""The layouts of other frameworks: the order of the gates, how much of the biases is stored, and refused weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from grujax.core.dialects import BIASES, DIALECTS, Cell, lost, read, write

I, H = 2, 3


def cell(dtype="float32", bias=True, b_hh=True, seed=0):
    """Random weights. With b_hh=False it is zero, and every dialect can store the cell."""
    rng = np.random.default_rng(seed)
    shapes = {"w_ih": (I, 3 * H), "w_hh": (H, 3 * H)} | ({"b_ih": (3 * H,), "b_hh": (3 * H,)} if bias else {})
    arrays = {name: rng.normal(size=shape).astype(getattr(jnp, dtype)) for name, shape in shapes.items()}
    if bias:
        arrays["b_ih"][1] = -0.0  # -0.0 + 0.0 would be 0.0
        if not b_hh:
            arrays["b_hh"][:] = 0
    return Cell(**arrays)


def bits(a):
    return a.dtype.name, a.shape, a.tobytes()


def storable(name, dtype="float32"):
    """The cell with the part of b_hh that the dialect stores; the rest is 0."""
    full = cell(dtype)
    biases = DIALECTS[name].biases
    if biases == "both":
        return full
    of_candidate = np.arange(3 * H) >= 2 * H if biases == "candidate apart" else np.zeros(3 * H, bool)
    return full._replace(b_hh=np.where(of_candidate, full.b_hh, full.b_hh.dtype.type(0)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", DIALECTS)
def test_what_is_written_is_read_again_bit_for_bit(name, dtype):
    given = storable(name, dtype)
    before = [a.copy() for a in given]
    for update in ("keep", "take"):
        written = write(given, DIALECTS[name], update)
        arrays = written.values()
        assert all(a.flags.c_contiguous and not np.shares_memory(a, b) for a in arrays for b in given)
        again = read(written, DIALECTS[name], update)
        assert [bits(a) for a in again] == [bits(a) for a in given]
    assert [bits(a) for a in given] == [bits(a) for a in before]


def gates(update="keep", bias=True):
    """All values are 1 for r, 2 for z and 3 for n; b_hh is 10 times as large."""
    one = np.repeat([1.0, 2.0, 3.0], H)
    biases = {"b_ih": one, "b_hh": 10 * one} if bias else {}
    return Cell(np.broadcast_to(one, (I, 3 * H)), np.broadcast_to(one, (H, 3 * H)), **biases)


WRITTEN = {  # the values along the axis of the gates: of the matrices, then of each bias
    "torch": ([1, 2, 3], [1, 2, 3], [10, 20, 30]),
    "onnx": ([2, 1, 3], [2, 1, 3], [20, 10, 30]),
    "keras": ([2, 1, 3], [2, 1, 3], [20, 10, 30]),
    "keras, reset before": ([2, 1, 3], [22, 11, 33]),
    "flax": ([1, 2, 3], [11, 22, 3], [30]),
    "nnx with hn_bias": ([1, 2, 3], [11, 22, 3], [30]),
    "equinox": ([1, 2, 3], [11, 22, 3], [30]),
    "haiku": ([-2, 1, 3], [-22, 11, 33]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_gate_stands_where_the_framework_looks_for_it(name):
    dialect, (weights, *biases) = DIALECTS[name], WRITTEN[name]
    w_ih, w_hh, *found = write(gates(), dialect).values()
    if dialect.by_gate:
        assert len(found) == 8
        w_ih, w_hh = np.hstack([w_ih, w_hh, found[0]]), np.hstack(found[1:4])
        found = [np.hstack(found[4:7]), found[7]]
    elif dialect.joined:
        assert found[0].shape == {"stack": (2, 3 * H), "concatenate": (6 * H,)}[dialect.joined]
        assert (name, dialect.joined) in [("keras", "stack"), ("onnx", "concatenate")]
        found = np.split(found[0].ravel(), 2)
    assert w_ih.shape == ((3 * H, I) if dialect.rows else (I, 3 * H))
    assert w_hh.shape == ((3 * H, H) if dialect.rows else (H, 3 * H))
    for matrix in (w_ih, w_hh):
        row = matrix.T[0] if dialect.rows else matrix[0]
        np.testing.assert_array_equal(row, np.repeat(weights, H))
    assert len(found) == len(biases) == len(BIASES[dialect.biases].sizes)
    for one, expected in zip(found, biases, strict=True):
        np.testing.assert_array_equal(one, np.repeat(expected, H))


def test_nnx_has_no_place_for_the_candidate_bias():
    with refused("b_hn", "0", "other values", "grujax.nnx"):
        write(gates(), DIALECTS["nnx"])
    without = gates()._replace(b_hh=np.repeat([10.0, 20.0, 0.0], H))
    np.testing.assert_array_equal(write(without, DIALECTS["nnx"])["dense_i/bias"], np.repeat([11.0, 22.0, 3.0], H))


@pytest.mark.parametrize("name", DIALECTS)
def test_what_is_lost_is_said_and_nothing_else(name):
    dialect = DIALECTS[name]
    assert lost(storable(name), dialect) == []
    expected = [] if dialect.biases == "both" else ["b_ih and b_hh are stored as their sum"]
    assert [sentence[:37] for sentence in lost(gates(), dialect)] == [sentence[:37] for sentence in expected]
    bare = gates(bias=False)
    biases = [a for name, a in write(bare, dialect).items() if name in dialect.tensors[-4:] and a.ndim == 1]
    assert len(lost(bare, dialect)) == dialect.always_biased == bool(biases)
    assert all((bias == 0).all() for bias in biases)


def test_weights_without_biases_are_read_without():
    again = read(write(gates(bias=False), DIALECTS["keras"]), DIALECTS["keras"])
    assert again.b_ih is None and again.b_hh is None


def tensors(**changes):
    written = zip(("ih", "hh", "b0", "b1"), write(cell(), DIALECTS["torch"]).values(), strict=True)
    return {name: changes.get(name, a) for name, a in written}


REFUSED = {
    "lstm": ({"hh": np.ones((4 * H, H), np.float32)}, ["hh", "(9, 3)", "(12, 3)", "LSTM"]),
    "plain rnn": ({"hh": np.ones((H, H), np.float32)}, ["hh", "(9, 3)", "(3, 3)", "plain RNN"]),
    "no units": ({"hh": np.ones((0, 0), np.float32)}, ["hh: expected one unit or more, found (0, 0)"]),
    "no features": ({"ih": np.ones((9, 0), np.float32)}, ["ih: expected one feature or more, found (9, 0)"]),
    "of other units": ({"ih": np.ones((6, I), np.float32)}, ["ih", "(9, 2)", "(6, 2)"]),
    "one axis": ({"ih": np.ones(9, np.float32)}, ["ih", "two axes", "(9,)"]),
    "short bias": ({"b1": np.ones(3, np.float32)}, ["b1", "(9,)", "(3,)"]),
    "integers": ({"ih": np.ones((9, I), int)}, ["ih", "float32", "int64"]),
    "two dtypes": ({"b0": np.ones(9)}, ["b0", "dtype float32", "dtype float64", "one dtype"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_gru_is_refused_by_the_name_of_its_tensor(case):
    changes, parts = REFUSED[case]
    with refused(*parts):
        read(tensors(**changes), DIALECTS["torch"])


def test_matrices_that_are_not_turned_are_refused():
    with refused("hh", "(9, 27)", "(9, 3)", "transposed"):
        read(tensors(), DIALECTS["keras"]._replace(joined=""))
