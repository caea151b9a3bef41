"""Linen and NNX: the options of modules, refusals, files, and the bias that NNX does not have yet."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.serialization import from_bytes, msgpack_serialize, to_bytes
from flax.traverse_util import flatten_dict, unflatten_dict
from refusals import refused

from grujax import GRU, GRUCell, InputError
from grujax.interop import nnx as interop_nnx
from grujax.interop.flax import FRAMEWORK, from_flax, to_flax
from grujax.interop.nnx import from_nnx, to_nnx
from grujax.interop.parts import ConversionWarning
from grujax.interop.prove import compare
from grujax.testing import assert_close

I, H = 3, 4


def rnn(cell=None, **options):
    return nn.RNN(cell or nn.GRUCell(H), **options)


def both(**options):
    return nn.Bidirectional(rnn(), rnn(), **options)


def drawn(module, x=(1, 2, I)):
    """Random variables of a Linen module; the biases are not 0."""
    rng = np.random.default_rng(0)
    x = jnp.zeros(x, "float32")
    given = (x,)
    if isinstance(module, nn.RNNCellBase):
        given = (module.initialize_carry(jax.random.key(0), (1, I)), x[:, 0])
    with jax.numpy_dtype_promotion("standard"):  # the state is wider than the compute dtype
        shapes = jax.eval_shape(module.init, jax.random.key(0), *given)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape).astype("float32") / 2), shapes)


def nnx_cell(n_inputs=I, **options):
    return nnx.GRUCell(n_inputs, H, bias_init=nnx.initializers.ones, rngs=nnx.Rngs(0), **options)


# -- options of modules ------------------------------------------------------------------------------------------------

SAYS = {  # module, expected model, and whether to verify: only if the options can change the outputs
    "time_major": (rnn(time_major=True), GRU(H, time_major=True), False),
    "return_carry": (rnn(return_carry=True, unroll=2, keep_order=True), GRU(H), False),
    "time_major of both": (both(time_major=True), GRU(H, bidirectional=True, time_major=True), True),
    "overridden options": (nn.Bidirectional(rnn(time_major=True), rnn(reverse=True)), GRU(H, bidirectional=True), True),
    "a stack of one": (nn.Sequential([both()]), GRU(H, bidirectional=True), False),
    "dtype": (rnn(nn.GRUCell(H, dtype=jnp.bfloat16)), GRU(H, dtype=jnp.bfloat16), True),
    "activations": (
        rnn(nn.GRUCell(H, gate_fn=nn.hard_sigmoid, activation_fn=nn.relu)),
        GRU(H, gate_activation="hard_sigmoid", activation="relu"),
        True,
    ),
}


@pytest.mark.parametrize("case", SAYS)
def test_options_of_a_module_come_along(case):
    module, expected, verify = SAYS[case]
    foreign = drawn(module)
    model, variables = from_flax(module, foreign, verify=verify)
    assert model == expected
    again, tree = to_flax(model, variables)
    assert from_flax(again, tree)[0] == expected
    if case == "activations":
        assert (again.cell.gate_fn, again.cell.activation_fn) == (nn.hard_sigmoid, nn.relu)


def test_options_of_an_nnx_module_come_along():
    module = nnx.RNN(nnx_cell(gate_fn=nnx.hard_sigmoid, dtype=jnp.float64), time_major=True)
    model, variables = from_nnx(module)
    assert model == GRU(H, gate_activation="hard_sigmoid", dtype=jnp.float64, time_major=True)
    assert from_nnx(to_nnx(model, variables))[0] == model
    from_nnx(module.cell, verify=True)


@pytest.mark.parametrize(
    "module", [nn.GRUCell(H), rnn(), both(), nn.Sequential([both(), both()]), SAYS["a stack of one"][0]]
)
def test_keys_alone_tell_the_structure(module):
    variables = drawn(module)
    expected, weights = from_flax(module, variables)
    for source in (variables, variables["params"], nn.FrozenDict(variables), jax.tree.map(np.asarray, variables)):
        model, found = from_flax(source)
        assert model == expected
        jax.tree.map(np.testing.assert_array_equal, found, weights)
    from_flax(variables, verify=len(flatten_dict(variables)) < 30)  # all but the stack of two


@pytest.mark.parametrize("layers", [1, 2])
def test_an_nnx_state_tells_the_structure(layers):
    cells = [nnx.Bidirectional(*(nnx.RNN(nnx_cell(of)) for _ in range(2))) for of in [I, 2 * H][:layers]]
    module = nnx.Sequential(*cells)
    model, variables = from_nnx(module)
    assert model == GRU(H, num_layers=layers, bidirectional=True)
    for state in (nnx.state(module), nnx.state(module, nnx.Param)):
        found, weights = from_nnx(state)
        assert found == model
        jax.tree.map(np.testing.assert_array_equal, weights, variables)
    assert from_nnx(nnx.state(nnx_cell()), verify=True)[0] == GRUCell(H)


def test_a_partitioned_parameter_is_its_value():
    variables = drawn(nn.GRUCell(H))
    boxed = jax.tree.map(lambda a: nn.Partitioned(a, (None,) * a.ndim), variables)
    assert_close(from_flax(boxed)[1]["params"]["w_hh"], from_flax(variables)[1]["params"]["w_hh"])


# -- the bias that NNX does not have yet -------------------------------------------------------------------------------


class NewerCell(nnx.GRUCell):
    """The cell of google/flax#5595."""

    def __init__(self, in_features, hidden_features, *, rngs, bias_init=nnx.initializers.zeros, **options):
        super().__init__(in_features, hidden_features, rngs=rngs, bias_init=bias_init, **options)
        shape, dtype = (hidden_features,), options.get("param_dtype", jnp.float32)
        self.hn_bias = nnx.Param(bias_init(rngs.params(), shape, dtype))

    def __call__(self, carry, inputs):
        xr, xz, xn = jnp.split(self.dense_i(inputs), 3, axis=-1)
        hr, hz, hn = jnp.split(self.dense_h(carry), 3, axis=-1)
        r, z = self.gate_fn(xr + hr), self.gate_fn(xz + hz)
        n = self.activation_fn(xn + r * (hn + jnp.broadcast_to(self.hn_bias[...], hn.shape)))
        new = (1.0 - z) * n + z * carry
        return new, new


def test_an_nnx_cell_that_has_hn_bias_keeps_it(monkeypatch):
    monkeypatch.setattr(nnx, "GRUCell", NewerCell)
    for module in (nnx_cell(), nnx.RNN(nnx_cell())):
        model, variables = from_nnx(module, verify=True)
        cell = variables["params"] if isinstance(model, GRUCell) else variables["params"]["l0"]
        assert np.asarray(cell["b_hh"]).tolist() == [0] * 2 * H + [1] * H
        back = to_nnx(model, variables)
        jax.tree.map(np.testing.assert_array_equal, nnx.state(back, nnx.Param), nnx.state(module, nnx.Param))
        jax.tree.map(np.testing.assert_array_equal, from_nnx(nnx.state(module))[1], variables)
    model, variables = GRU(H), GRU(H).init(jax.random.key(0), jnp.zeros((1, 2, I), "float32"))
    with pytest.warns(ConversionWarning, match="sum"):
        module = to_nnx(model, variables)
    assert compare(model, variables, interop_nnx.FRAMEWORK.run(module, model)).tolerances <= 1


def test_without_hn_bias_to_nnx_refuses_b_hn():
    variables = GRU(H).init(jax.random.key(0), jnp.zeros((1, 2, I), "float32"))
    with pytest.warns(ConversionWarning, match="sum"), refused("b_hn", "expected 0, found other values"):
        to_nnx(GRU(H), variables)


# -- refusals ----------------------------------------------------------------------------------------------------------


def changed(module=None, **new):
    """The tree of a module with changed entries. new: their values by key, with "_" for "/"; None removes the key."""
    flat = flatten_dict(drawn(module or rnn())["params"], sep="/")
    flat = {key: a for key, a in (flat | {k.replace("_", "/"): a for k, a in new.items()}).items() if a is not None}
    return unflatten_dict(flat, sep="/")


def zeros(*shape):
    return jnp.zeros(shape, "float32")


TREES = {
    "lstm": (lambda: drawn(rnn(nn.LSTMCell(H))), ["cell/", "this extra key"]),
    "lstm cell": (lambda: drawn(nn.LSTMCell(H)), ["this extra key", "ir/kernel"]),
    "head": (lambda: drawn(nn.Sequential([rnn(), nn.Dense(2)])), ["layers_1/", "this extra key"]),
    "a gap": (
        lambda: drawn(nn.Sequential([rnn(), nn.Dropout(0.5, deterministic=True), rnn()]), (1, 2, I)),
        ["layers_1/cell/ir/kernel", "no such key"],
    ),
    "half a pair": (
        lambda: {"forward_rnn": drawn(rnn())["params"]},
        ["backward_rnn/cell/ir/kernel", "no such key"],
    ),
    "one of both kinds": (lambda: drawn(nn.Sequential([both(), rnn()])), ["layers_1/cell/", "this extra key"]),
    "a billion layers": (lambda: {"layers_999999": drawn(rnn())["params"]}, ["layers_999999/", "this extra key"]),
    "missing": (lambda: changed(cell_hn_bias=None), ["cell/hn/bias", "no such key", "incomplete"]),
    "extra": (lambda: changed(cell_hr_bias=zeros(H)), ["cell/hr/bias", "this extra key", "lost"]),
    "gate of another width": (lambda: changed(cell_hz_kernel=zeros(H, 5)), ["cell/hz/kernel", "(4, 4)", "(4, 5)"]),
    "gate of other inputs": (lambda: changed(cell_in_kernel=zeros(5, H)), ["cell/in/kernel", "(3, 4)", "(5, 4)"]),
    "bias": (lambda: changed(cell_iz_bias=zeros(1, H)), ["cell/iz/bias", "(4,)", "(1, 4)"]),
    "one axis": (lambda: changed(cell_ir_kernel=zeros(H)), ["cell/ir/kernel", "two axes", "(4,)"]),
    "no units": (
        lambda: jax.tree.map(
            lambda a: a[..., :0] if a.shape[0] == I else a[(slice(0),) * a.ndim], drawn(nn.GRUCell(H))
        ),
        ["hr/kernel", "one unit", "(0, 0)"],
    ),
    "dtype of one gate": (lambda: changed(cell_iz_bias=jnp.zeros(H, "float16")), ["cell/iz/bias", "float16"]),
    "integers": (lambda: changed(cell_iz_bias=jnp.zeros(H, int)), ["cell/iz/bias", "float32", "int64"]),
    "a key": (lambda: changed(cell_iz_bias=jax.random.key(0)), ["cell/iz/bias", "key<fry>"]),
    "no array": (lambda: changed(cell_iz_bias=[0.0] * H), ["cell/iz/bias", "an array", "list"]),
    "no names": (lambda: {"cell": {"ir\n": zeros(1)}}, ["keys that are names", "'ir\\n'"]),
    "another collection": (lambda: drawn(rnn()) | {"batch_stats": {}}, ["'batch_stats'", "found also"]),
    "params no tree": (lambda: {"params": zeros(3)}, ["params", "a tree"]),
    "empty": (dict, ["ir/kernel", "no such key"]),
    "neither": (lambda: 3, ["variables", "int"]),
    "a module alone": (rnn, ["variables", "RNN", "from_flax(module, variables)"]),
}


@pytest.mark.parametrize("case", TREES)
def test_what_is_no_tree_of_a_gru_is_refused_by_name(case):
    make, parts = TREES[case]
    with refused(*parts):
        from_flax(make())


class Own(nn.GRUCell):
    """A subclass may compute anything."""


def mean(forward, backward):
    return (forward + backward) / 2


MODULES = {
    "lstm": (lambda: rnn(nn.LSTMCell(H)), ["module", "GRUCells", "LSTMCell"]),
    "subclass": (lambda: rnn(Own(H)), ["module", "GRUCells", "Own"]),
    "dense": (lambda: nn.Dense(4), ["module", "an RNN or a Bidirectional of GRUCells", "Dense"]),
    "head": (lambda: nn.Sequential([rnn(), nn.Dense(2)]), ["layers_1", "an RNN", "Dense"]),
    "function": (lambda: nn.Sequential([rnn(), nn.relu]), ["layers_1", "an RNN"]),
    "cell in a stack": (lambda: nn.Sequential([nn.GRUCell(H)]), ["layers_0", "an RNN", "GRUCell"]),
    "empty": (lambda: nn.Sequential([]), ["layers", "at least one"]),
    "both kinds": (lambda: nn.Sequential([both(), rnn()]), ["layers_1", "Bidirectional, as layers_0", "RNN"]),
    "several options": (lambda: nn.Sequential([rnn(), rnn(time_major=True)]), ["layers_1", "time_major"]),
    "reverse": (lambda: rnn(reverse=True, keep_order=True), ["module.reverse", "Reverse the input"]),
    "no rnn inside": (lambda: nn.Bidirectional(nn.Dense(2), rnn()), ["module", "RNNs", "Dense"]),
    "merge": (lambda: both(merge_fn=mean), ["module.merge_fn", "concatenation", "mean"]),
    "gate": (lambda: nn.GRUCell(H, gate_fn=jnp.sin), ["module.gate_fn", "'hard_sigmoid'", "clone(gate_activation"]),
    "activation": (lambda: rnn(nn.GRUCell(H, activation_fn=mean)), ["module.activation_fn", "clone(activation"]),
    "first state": (lambda: rnn(nn.GRUCell(H, carry_init=nn.initializers.ones)), ["carry_init", "zeros", "as h0"]),
    "a cell where an rnn was": (lambda: nn.GRUCell(H), ["cell/", "this extra key", "the tree"]),
    "other width": (lambda: rnn(nn.GRUCell(5)), ["cell/ir/kernel", "(3, 5)", "(3, 4)"]),
}


@pytest.mark.parametrize("case", MODULES)
def test_modules_that_no_gru_stands_for_are_refused_by_name(case):
    make, parts = MODULES[case]
    with refused(*parts):
        from_flax(make(), drawn(rnn()))


def surgery(change):
    module = nnx.RNN(nnx_cell())
    change(module.cell)
    return module


NNX = {
    "lstm": (lambda: nnx.RNN(nnx.LSTMCell(I, H, rngs=nnx.Rngs(0))), ["module", "GRUCells", "LSTMCell"]),
    "head": (
        lambda: nnx.Sequential(nnx.RNN(nnx_cell()), nnx.Linear(H, 2, rngs=nnx.Rngs(0))),
        ["layers_1", "an RNN", "Linear"],
    ),
    "state of a head": (
        lambda: nnx.state(nnx.Sequential(nnx.RNN(nnx_cell()), nnx.Linear(H, 2, rngs=nnx.Rngs(0)))),
        ["layers_1/", "this extra key"],
    ),
    "reverse": (lambda: nnx.RNN(nnx_cell(), reverse=True), ["module.reverse", "Reverse the input"]),
    "merge": (
        lambda: nnx.Bidirectional(nnx.RNN(nnx_cell()), nnx.RNN(nnx_cell()), merge_fn=mean),
        ["module.merge_fn", "mean"],
    ),
    "shape": (
        lambda: surgery(lambda cell: setattr(cell, "dense_i", nnx.Linear(I, 5, rngs=nnx.Rngs(0)))),
        ["cell/dense_i/kernel", "(3, 12)", "(3, 5)"],
    ),
    "bias of dense_h": (
        lambda: surgery(lambda cell: setattr(cell, "dense_h", nnx.Linear(H, 3 * H, rngs=nnx.Rngs(0)))),
        ["cell/dense_h/bias", "this extra key"],
    ),
    "no bias": (
        lambda: surgery(lambda cell: setattr(cell, "dense_i", nnx.Linear(I, 12, use_bias=False, rngs=nnx.Rngs(0)))),
        ["cell/dense_i/bias"],
    ),
    "linen": (rnn, ["source", "flax.nnx.Module", "RNN"]),
}


@pytest.mark.parametrize("case", NNX)
def test_what_is_no_gru_of_nnx_is_refused_by_name(case):
    make, parts = NNX[case]
    with refused(*parts):
        from_nnx(make())


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_file_comes_back_bit_for_bit(dtype, tmp_path):
    path = tmp_path / "gru.msgpack"
    tree = jax.tree.map(lambda a: a.astype(dtype), drawn(both()))
    model, variables = from_flax(tree)
    FRAMEWORK.write(path, FRAMEWORK.build(model, variables))
    jax.tree.map(np.testing.assert_array_equal, from_bytes(tree, path.read_bytes()), tree)  # as Flax reads it
    foreign = FRAMEWORK.load(path)
    found, back = FRAMEWORK.read(foreign)
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    if dtype == "float32":
        assert compare(found, back, FRAMEWORK.run(foreign, found)).tolerances <= 1


def whole():
    return to_bytes(drawn(rnn()))


def array_of(name, shape, buffer=b"\0" * 16):
    """Packs a tree of one array, of any dtype and shape, as Flax does."""
    import msgpack

    packed = msgpack.packb((shape, name, buffer), use_bin_type=True)
    return msgpack.packb({"cell": {"ir": {"kernel": msgpack.ExtType(1, packed)}}})


def nested(depth):
    return b"\x81\xa1a" * depth + b"\xc0"


FILES = {
    "nothing": (lambda: b"", ["whole msgpack file"]),
    "truncated": (lambda: whole()[:-7], ["whole msgpack file"]),
    "longer": (lambda: whole() + b"\0", ["whole msgpack file"]),
    "text": (lambda: b"hello", ["whole msgpack file"]),
    "a pickle": (lambda: b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", ["msgpack"]),
    "a zip": (lambda: b"PK\x03\x04" + b"\0" * 64, ["whole msgpack file"]),
    "a number": (lambda: b"\x07", ["a tree of parameters", "int"]),
    "a list": (lambda: msgpack_serialize([1]), ["a tree of parameters", "list"]),
    "claims 4 billion keys": (lambda: b"\xdf\xff\xff\xff\xff", ["whole msgpack file"]),
    "claims 4 gigabytes": (lambda: b"\xc6\xff\xff\xff\xff", ["whole msgpack file"]),
    "nested": (lambda: nested(100_000), ["whole msgpack file"]),
    "nested a little": (lambda: nested(300), ["keys of a GRU"]),
    "shape of another size": (lambda: array_of(b"float32", (3, 5)), ["whole msgpack file", "reshape"]),
    "objects": (lambda: array_of(b"object", (2,)), ["whole msgpack file"]),
    "no dtype": (lambda: array_of(b"os.system", (2,)), ["whole msgpack file"]),
    "complex": (lambda: array_of(b"complex128", (1,)), ["cell/ir/kernel", "complex128"]),
    "bytes": (lambda: array_of(b"S16", (1,)), ["cell/ir/kernel", "S16"]),
    "keys of two types": (lambda: b"\x82\xa1a\x01\x02\x03", ["a: ", "an array", "int"]),
    "key of two lines": (lambda: b"\x81\xa3a\nb\x81\xa1a\x01", ["keys that are names"]),
    "training state": (
        lambda: msgpack_serialize({"step": 3, "params": {}, "opt_state": {}}),
        ["'opt_state'", "found also"],
    ),
    "chunks of nothing": (lambda: msgpack_serialize({"a": {"__msgpack_chunked_array__": True}}), ["whole msgpack"]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_or_hostile_file_is_refused_in_a_line(case, tmp_path):
    make, parts = FILES[case]
    path: Path = tmp_path / "model.msgpack"
    path.write_bytes(make())
    with pytest.raises(InputError) as error:
        from_flax(FRAMEWORK.load(path)[1])
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert len(message) < 600 and len(message.splitlines()) == 1


def test_no_file_is_refused(tmp_path):
    with refused("path", "FileNotFoundError"):
        FRAMEWORK.load(tmp_path / "none.msgpack")
