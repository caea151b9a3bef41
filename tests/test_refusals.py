"""A table of refused input and the text of the errors: argument, expected, found, remedy. All raise at trace time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from refusals import refused

import grujax
from grujax import GRU, GRUModel, GRUSpec, GRUWeights, gru
from grujax.kernels import explain, run
from grujax.kernels.table import KERNELS
from grujax.testing import assert_close
from grujax.types import Control, Recurrence

B, T, I, H = 4, 6, 3, 5
PLAIN = np.ones((B, T, I))


def ones(*of):
    """A JAX array, made without compiling a program."""
    return jax.device_put(np.ones(*of))


X, H0, KEY, RNGS = jax.device_put(PLAIN), ones((B, H)), jax.random.key(0), nnx.Rngs(0)
MADE = {}
FLAGS = np.ones((B, T), bool)


def weights(**new):
    shapes = {"w_ih": (I, 3 * H), "w_hh": (H, 3 * H), "b_ih": (3 * H,), "b_hh": (3 * H,)}
    return GRUWeights(**{name: ones(shape) for name, shape in shapes.items()} | new)


def function(x=X, w=None, *args, **options):
    return {"gru": lambda: gru(x, weights() if w is None else w, *args, **options)}


def modules(name, good, given, call, fields):
    """Calls of the module `name`: in Linen, with parameters made for `good`, and in NNX."""
    fields = (
        {"hidden_size": H, "param_dtype": jnp.float64} | ({"output_size": 2} if name == "GRUModel" else {}) | fields
    )

    def linen():
        module = getattr(grujax, name)(**fields)
        shapes = jax.eval_shape(module.init, KEY, *good)
        return module, jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype)), shapes)

    def nnx():
        return getattr(grujax.nnx, name)(input_size=I, rngs=RNGS, **fields)

    def made(face, make):  # made once for all cases with the same fields
        key = f"{face} {name} {fields}"
        if key not in MADE:
            MADE[key] = make()
        return MADE[key]

    def apply():
        module, variables = made("linen", linen)
        module.apply(variables, *given, **(call or {}))

    return {"linen": apply, "nnx": lambda: made("nnx", nnx)(*given, **(call or {}))}


def layer(x=X, h0=None, call=None, **fields):
    return modules("GRU", (X,), (x, h0), call, fields)


def cell(x=jax.device_put(PLAIN[:, 0]), carry=H0, **fields):
    return modules("GRUCell", (H0, X[:, 0]), (carry, x), None, fields)


def encoder(call=None, x=X, **fields):
    return modules("GRUEncoder", (X,), (x,), call, fields)


def model(call=None, x=X, **fields):
    return modules("GRUModel", (X,), (x,), call, fields)


NARROW = {"b_ih": ones(6), "b_hh": ones(6), "h0": ones((B, 2))}


def entry(spec=GRUSpec(), implementation=None, beside=(), **new):
    """A call of `grujax.kernels.run`."""
    of = {"x": jax.device_put(PLAIN.swapaxes(0, 1)), "h0": ones((B, H)), **weights()._asdict()} | new
    w, control = (kind(**{name: of.pop(name) for name in kind._fields if name in of}) for kind in (GRUWeights, Control))
    return {"run": lambda: run([*beside, Recurrence(**of, weights=w, control=control)], spec, implementation)}


def statistics(output_size=2, **arrays):
    return {"linen": lambda: GRUModel(hidden_size=H, output_size=output_size).apply({"statistics": arrays}, X)}


def saved(variables, model=None):
    model = GRU(hidden_size=H) if model is None else model
    return {"save": lambda: grujax.save("/nowhere/model.safetensors", model, variables)}


NAMES = "one of ['elu', 'hard_sigmoid', 'hard_tanh', 'identity', 'relu', 'sigmoid', 'softsign', 'tanh']"
NOT_X = {
    "of rank 0": (jax.device_put(1.0), ["x: expected (", "shape ()"]),
    "of other features": (jax.device_put(PLAIN[..., :2]), ["x: expected 3 input features on the last axis", "2)"]),
    "without features": (jax.device_put(PLAIN[..., :0]), ["x: expected 3 input features on the last axis", "0)"]),
    "integers": (jax.device_put(PLAIN.astype(int)), ["x: expected a floating dtype", "int64", "x.astype(jnp.float32)"]),
    "objects": (np.full((B, T, I), None), ["x: expected an array of numbers", "dtype object"]),
    "strings": (np.full((B, T, I), "1"), ["x: expected an array of numbers", "dtype <U1"]),
    "rows of other lengths": ([[1.0], [1.0, 2.0]], ["x: expected an array of numbers", "found a list"]),
    "a dict": ({"x": 1.0}, ["x: expected an array of numbers", "found a dict"]),
    "None": (None, ["x: expected an array of numbers", "found a NoneType"]),
    "a key": (KEY, ["x: expected an array of numbers", "key<fry>"]),
    "of the other byte order": (
        np.ones((B, T, I), ">f8"),
        ["x: expected numbers in the byte order", 'newbyteorder("=")'],
    ),
    "a tensor of torch": (torch.ones(B, T, I), ["x: expected", "a tensor of PyTorch", "x.detach().numpy()"]),
    "a parameter of torch": (torch.nn.Parameter(torch.ones(B, T, I)), ["a tensor of PyTorch", "x.detach().numpy()"]),
}
BAD = {
    **{
        f"{entry.__name__}, x {kind}": (entry(x=x[:, 0] if entry is cell and getattr(x, "ndim", 0) == 3 else x), parts)
        for entry in (function, layer, cell, encoder, model)
        for kind, (x, parts) in NOT_X.items()
    },
    # the arrays of gru
    "x of one axis": (function(ones(3)), ["x: expected (..., T, I)", "(3,)"]),
    "x in another order": (function(X, time_major=True, lengths=[1] * B), ["lengths: expected shape (6,)", "(4,)"]),
    "x complex": (function(jax.device_put(PLAIN.astype(complex))), ["x: expected a floating", "complex"]),
    "h0 shape": (function(X, None, ones((B, 4))), ["h0: expected shape (4, 5)", "(4, 4)"]),
    "h0 dtype": (function(X, None, ones((B, H), int)), ["h0: expected a floating"]),
    "h_reset shape": (function(resets=FLAGS, h_reset=ones((B, H))), ["h_reset: expected shape (5,)", "(4, 5)"]),
    "h_reset alone": (function(h_reset=ones(H)), ["h_reset needs resets (h_reset: expected None", "h0"]),
    "w_hh transposed": (function(X, weights(w_hh=ones((15, 5)))), ["weights.w_hh: expected (H, 3H)", "from_torch"]),
    "w_hh axes": (function(X, weights(w_hh=ones(15))), ["weights.w_hh: expected (H, 3H)", "(15,)"]),
    "w_ih": (function(X, weights(w_ih=ones((3, 14)))), ["weights.w_ih: expected (I, 3H)", "(3, 14)"]),
    "b_hh": (function(X, weights(b_hh=ones(14))), ["b_hh: expected shape (15,)", "(14,)"]),
    "b_ih integers": (function(X, weights(b_ih=ones(15, int))), ["weights.b_ih: expected a floating", "int"]),
    "one scale": (
        function(X, weights(scale_hh=ones(15))),
        ["layer_norm=True needs scale_ih", "scale_ih: expected an array"],
    ),
    "scale shape": (
        function(X, weights(scale_ih=ones(15), scale_hh=ones(5))),
        ["scale_hh: expected shape (15,)", "(5,)"],
    ),
    # which steps are valid, where sequences begin
    "lengths shape": (function(lengths=[1, 2, 3]), ["lengths: expected shape (4,)", "(3,)"]),
    "lengths dtype": (function(lengths=[1.0] * B), ["lengths: expected integers", "float"]),
    "lengths bool": (function(lengths=[True] * B), ["lengths: expected integers", "bool"]),
    "lengths long": (function(lengths=[1, 7, 1, 1]), ["lengths: expected 0 to T = 6", "1 to 7"]),
    "lengths negative": (function(lengths=[-1, 4, 1, 1]), ["lengths", "-1 to 4"]),
    "lengths and mask": (
        function(lengths=[1] * B, mask=FLAGS),
        ["lengths and mask cannot both be given (mask: expected None"],
    ),
    "mask shape": (
        function(mask=FLAGS.T),
        ["mask: expected shape (4, 6), found shape (6, 4). One value for each step"],
    ),
    "mask dtype": (function(mask=FLAGS * 1.0), ["mask: expected dtype bool", "float64", "mask > 0.5"]),
    "resets shape": (function(resets=FLAGS[:, :5]), ["resets: expected shape (4, 6)", "(4, 5)"]),
    "resets dtype": (function(resets=FLAGS * 1), ["resets: expected dtype bool", "int64"]),
    # the variants
    "update": (function(update="forget"), ["update: expected one of ['keep', 'take']", "'forget'"]),
    "activation": (function(activation="swish"), [f"activation: expected {NAMES}", "'swish'"]),
    "gate activation": (function(gate_activation=3), [f"gate_activation: expected {NAMES}", "found 3"]),
    "clip": (function(clip=0.0), ["clip: expected a positive number or None", "0.0"]),
    "clip text": (function(clip="3"), ["clip: expected a positive number or None", "'3'"]),
    "compute dtype": (function(dtype=jnp.int32), ["dtype: expected a floating dtype or None", "int32"]),
    "implementation": (
        function(implementation="fast"),
        [f"implementation: expected one of {[*sorted(KERNELS), None]}", "'fast'"],
    ),
    "implementation of layers": (function(implementation="reference"), ["only the layers"]),
    "xla layer norm": (
        {"explain": lambda: explain(spec=GRUSpec(layer_norm=True), implementation="xla")},
        ["implementation='xla' cannot serve this call: ", "layer normalisation", "Pass None"],
    ),
    # the layer
    "no layers": (layer(num_layers=0), ["num_layers: expected a positive integer, found 0"]),
    "half a layer": (layer(num_layers=1.5), ["num_layers: expected a positive integer, found 1.5"]),
    "layer h0": (
        layer(X, ones((2, B, H)), num_layers=2, bidirectional=True),
        ["h0: expected shape (4, 4, 5)", "layers * directions"],
    ),
    "layer h0 dtype": (layer(X, ones((1, B, H), int)), ["h0: expected a floating dtype"]),
    "layer lengths": (layer(call={"lengths": [1, 2, 3]}), ["lengths: expected shape (4,)"]),
    "reference lengths": (
        layer(call={"lengths": [1, 2, 3, 7]}, implementation="reference"),
        ["0 to T = 6", "1 to 7"],
    ),
    "layer implementation": (
        layer(implementation="cudnn"),
        ["implementation: expected one of ['reference', ", "'cudnn'"],
    ),
    "layer activation": (layer(activation="gelu", implementation="reference"), [f"activation: expected {NAMES}"]),
    "layer xla layer norm": (layer(layer_norm=True, implementation="xla"), ["layer normalisation", "Pass None"]),
    "initializer": (layer(initializer="he"), ["initializer: expected one of ['flax', 'keras', 'torch']", "'he'"]),
    "blocks": (layer(blocks=0), ["blocks: expected a positive integer, found 0"]),
    "blocks of no size": (
        layer(blocks=2),
        ["blocks=2 needs a hidden_size that it divides (hidden_size: expected a multiple of 2, found 5)"],
    ),
    "update bias": (layer(bias=False, update_bias=1.0), ["update_bias=1.0 needs bias=True (update_bias: expected 0"]),
    "param dtype": (layer(param_dtype=jnp.int32), ["param_dtype: expected a floating dtype"]),
    "merge": (layer(bidirectional=True, merge="max"), ["merge: expected one of ['concat', 'sum', 'mean', 'mul'"]),
    "merge of one": (
        layer(merge="sum"),
        ["merge='sum' needs bidirectional=True (merge: expected 'concat', found 'sum')"],
    ),
    "merge None of two layers": (
        layer(bidirectional=True, merge=None, num_layers=2),
        ["merge=None needs num_layers=1 (merge: expected one of ['concat'"],
    ),
    "connection": (layer(connection="dense"), ["connection: expected one of [None, 'residual', 'highway']", "'dense'"]),
    "initial state": (layer(initial_state="ones"), ["initial_state: expected one of ['zeros', 'learned']", "'ones'"]),
    **{
        f"{rate} {value}": (layer(**{rate: value}), [f"{rate}: expected a probability, found {value}"])
        for rate in ("dropout", "input_dropout", "recurrent_dropout", "weight_dropout", "zoneout")
        for value in (1.5, -0.1, float("nan"))
    },
    # the cell
    "carry": (cell(carry=ones((B, 4))), ["carry: expected shape (4, 5)", "(4, 4)"]),
    "carry dtype": (cell(carry=ones((B, H), int)), ["carry: expected a floating dtype"]),
    "no units": (cell(carry=ones((B, 0)), hidden_size=0), ["hidden_size: expected a positive integer, found 0"]),
    "cell update": (cell(update="both"), ["update: expected one of", "'both'"]),
    # the models
    "pooling": (
        encoder(pooling="sum"),
        ["pooling: expected one of ['last', 'mean', 'max', 'attention', None]", "'sum'"],
    ),
    "merge None pooled": (
        encoder(bidirectional=True, merge=None),
        ["merge=None needs a GRU without pooling", "returns the directions separately"],
    ),
    "resets pooled": (
        encoder({"resets": FLAGS}),
        ["resets with pooling='last' need segments (pooling: expected None", "num_segments"],
    ),
    "segments unpooled": (
        encoder({"segments": FLAGS * 1, "num_segments": 2}, pooling=None),
        ["segments need a pooling by name", "found None", "unpack_sequences"],
    ),
    "segments pooled by a function": (
        encoder({"segments": FLAGS * 1, "num_segments": 2}, pooling=lambda output, valid: output[:, 0]),
        ["segments need a pooling by name", "found a function", "unpack_sequences"],
    ),
    **{
        f"heads {sizes} {hidden}": (model(output_size=sizes, head_hidden=hidden), ["output_size: expected", found])
        for sizes, hidden, found in (
            ({1: 2}, (), "found 1."),
            ({"a/b": 2}, (), "found 'a/b'."),
            ({"hidden": 2}, (), "found 'hidden', whose layer head_hidden would"),
            ({"activation": 2}, (), "found 'activation', whose layer head_activation would"),
            ({"a": 2, "a_hidden0": 3}, (4,), "found 'a_hidden0', whose layer head_a_hidden0 would"),
            ({"a_hidden0": 3, "a": 2}, (4,), "found 'a', whose layer head_a_hidden0 would"),
        )
    },
    "segments alone": (encoder({"segments": FLAGS * 1}), ["segments need num_segments", "None"]),
    "segments traced": (
        {"linen": lambda: jax.jit(lambda n: encoder({"segments": FLAGS * 1, "num_segments": n})["linen"]())(2)},
        ["num_segments", "a traced value", "shape of the result"],
    ),
    "num_segments alone": (
        encoder({"num_segments": 2}),
        ["num_segments needs segments (num_segments: expected None, found 2"],
    ),
    "num_segments negative": (
        encoder({"segments": FLAGS * 0 - 1, "num_segments": -1}),
        ["num_segments: expected 0 or more", "-1"],
    ),
    "segments shape": (
        encoder({"segments": FLAGS.T * 1, "num_segments": 2}),
        ["segments: expected shape (4, 6)", "(6, 4). One value for each step"],
    ),
    "segments dtype": (
        encoder({"segments": FLAGS * 1.0, "num_segments": 2}),
        ["segments: expected integers", "float64"],
    ),
    "segments in a list": (
        encoder({"segments": [[3] * T] * B, "num_segments": 3}),
        ["segments: expected -1 to num_segments - 1 = 2", "3 to 3"],
    ),
    "segments beyond": (
        encoder({"segments": FLAGS * 3, "num_segments": 3}),
        ["segments: expected -1 to num_segments - 1 = 2", "3 to 3"],
    ),
    "model lengths": (model({"lengths": [7, 1, 1, 1]}), ["lengths: expected 0 to T = 6", "1 to 7"]),
    "model lengths and mask": (model({"lengths": [1] * B, "mask": FLAGS}), ["lengths and mask cannot both be given"]),
    "no output": (model(output_size=0), ["output_size: expected a positive integer, found 0"]),
    "no heads": (model(output_size={}), ["output_size: expected at least one head"]),
    "no output of a head": (model(output_size={"a": 0}), ["output_size['a']: expected a positive integer, found 0"]),
    "hidden layer of no units": (model(head_hidden=(4, 0)), ["head_hidden[1]: expected a positive integer, found 0"]),
    "head activation": (model(head_activation="gelu"), [f"head_activation: expected {NAMES}", "'gelu'"]),
    "statistics": (
        statistics(input_mean=ones(2), input_std=ones(2)),
        ["statistics/input_mean: expected shape (3,)", "(2,)"],
    ),
    "statistics of several heads": (
        statistics({"a": 1}, output_mean=ones(1)),
        ["output_mean and output_std need a single head (statistics/output_mean", "output_NAME_mean"],
    ),
    # other arguments that are not arrays of numbers
    "weights in a dict": (
        function(w=weights()._asdict()),
        ["weights: expected a GRUWeights", "a dict", "GRUWeights(**"],
    ),
    "no w_ih": (function(w=weights(w_ih=None)), ["weights.w_ih: expected an array", "NoneType"]),
    "w_hh a tensor": (
        function(w=weights(w_hh=torch.ones(H, 3 * H))),
        ["weights.w_hh", "weights.w_hh.detach().numpy()"],
    ),
    "no features": (
        function(jax.device_put(PLAIN[..., :0]), weights(w_ih=ones((0, 15)))),
        ["weights.w_ih: expected (I, 3H), without an axis of size 0"],
    ),
    "h0 a tensor": (function(X, None, torch.ones(B, H)), ["h0: expected an array of JAX", "h0.detach().numpy()"]),
    "layer h0 objects": (layer(X, np.full((1, B, H), None)), ["h0: expected an array of numbers", "object"]),
    **{
        f"layer h0 (B, H), {case}": (layer(X, h0), [f"h0: expected {expected}"])
        for case, h0, expected in (
            ("a tensor", torch.ones(B, H), "an array of JAX"),
            ("objects", np.full((B, H), None), "an array of numbers"),
            ("the other byte order", np.ones((B, H), ">f4"), "numbers in the byte order"),
            ("ragged", [[1.0], [1.0, 2.0]], "an array of numbers"),
        )
    },
    "no carry": (cell(carry=None), ["carry: expected an array of numbers", "NoneType"]),
    "lengths a tensor": (layer(call={"lengths": torch.ones(B, dtype=int)}), ["lengths", "lengths.detach().numpy()"]),
    "resets strings": (model({"resets": np.full((B, T), "0")}), ["resets: expected an array of numbers", "<U1"]),
    "dtype without a meaning": (layer(dtype="float99"), ["dtype: expected a floating dtype or None", "'float99'"]),
    "saved, no dict": (saved([1, 2]), ["variables: expected a dict of arrays", "a list"]),
    "saved, a name that is none": (saved({"params": {3: X}}), ["variables: expected a dict whose keys are names"]),
    "saved, no array": (saved({"params": {"a": object()}}), ["params/a: expected an array of numbers", "a object"]),
    "saved, rows of other lengths": (
        saved({"params": {"a": [[1], [1, 2]]}}),
        ["params/a: expected an array", "a list"],
    ),
    "saved, a tensor": (saved({"params": {"w_ih": torch.ones(2)}}), ["params/w_ih", "a tensor of PyTorch"]),
    "saved, a module of NNX": (
        saved({}, grujax.nnx.GRU(input_size=I, hidden_size=H, rngs=RNGS)),
        ["model: expected one of", "found grujax.nnx.layer.GRU", "to_linen"],
    ),
    # the entry point of the kernels
    "entry in a list": (entry(x=[[[0.0] * I] * B] * T), ["x: expected an array", "a list"]),
    "entry a tensor": (entry(h0=torch.ones(B, H)), ["h0: expected an array of JAX", "h0.detach().numpy()"]),
    "entry without w_hh": (entry(w_hh=None), ["w_hh: expected an array", "NoneType"]),
    "entry of rank 0": (entry(w_hh=jax.device_put(1.0)), ["w_hh: expected (H, 3H)", "shape ()"]),
    "entry without units": (entry(w_hh=ones((0, 0))), ["w_hh: expected (H, 3H)", "shape (0, 0)"]),
    "entry axes": (entry(x=ones((T, I))), ["x: expected (T, B, I)"]),
    "entry features": (entry(x=ones((T, B, 2))), ["w_ih: expected shape (2, 15)", "(3, 15)"]),
    "entry of two sizes": (
        entry(beside=[Recurrence(X, weights())]),
        ["x: expected shape (4, 6, 3)", "(6, 4, 3)", "the same shapes"],
    ),
    "entry of two widths": (
        entry(
            beside=[Recurrence(jax.device_put(PLAIN.swapaxes(0, 1)), weights())],
            w_hh=ones((2, 6)),
            w_ih=ones((3, 6)),
            **NARROW,
        ),
        ["w_hh: expected shape (5, 15)", "(2, 6)"],
    ),
    "entry h0": (entry(h0=ones((H, B))), ["h0: expected shape (4, 5)", "(5, 4)", "(T, B, features)"]),
    "entry w_hh": (entry(w_hh=ones((H, 14))), ["w_hh: expected shape (5, 15)"]),
    "entry b_hh": (entry(b_hh=ones(H)), ["b_hh: expected shape (15,)", "(5,)"]),
    "entry valid": (entry(valid=ones((B, T), bool)), ["valid: expected shape (6, 4)", "(4, 6)"]),
    "entry valid dtype": (entry(valid=ones((T, B))), ["valid: expected bool", "float"]),
    "entry reset dtype": (entry(reset=ones((T, B), int)), ["reset: expected bool", "int"]),
    "entry h_reset": (entry(h_reset=ones((B, H))), ["h_reset: expected shape (5,)"]),
    "entry state_mask": (entry(state_mask=ones(H)), ["state_mask: expected shape (4, 5)", "(5,)"]),
    "entry hold": (entry(hold=ones((B, H))), ["hold: expected shape (6, 4, 5)", "(4, 5)"]),
    "entry scale alone": (entry(scale_hh=ones(15)), ["scale_hh needs layer_norm=True"]),
    "entry scale missing": (
        entry(GRUSpec(layer_norm=True)),
        ["layer_norm=True needs scale_ih (scale_ih: expected an array, found None)"],
    ),
    "entry x integers": (entry(x=ones((T, B, I), int)), ["x: expected a floating dtype", "int"]),
    "entry h0 integers": (entry(h0=ones((B, H), int)), ["h0: expected a floating dtype", "int"]),
    "entry implementation": (
        entry(implementation="cudnn"),
        [f"implementation: expected one of {[*sorted(KERNELS), None]}"],
    ),
}


@pytest.mark.parametrize("case, face", [(case, face) for case, (calls, _) in BAD.items() for face in calls])
def test_bad_input_is_refused_by_name(case, face):
    calls, parts = BAD[case]
    with refused(*parts):
        calls[face]()


@pytest.mark.parametrize("case", [case for case, (calls, _) in BAD.items() if "gru" in calls])
def test_what_shapes_and_dtypes_tell_is_refused_under_jit_too(case):
    calls, parts = BAD[case]
    with refused(*parts):
        jax.jit(calls["gru"])()


def test_a_length_that_jit_does_not_know_ends_with_the_sequence():
    long = jax.jit(lambda n: gru(X, weights(), lengths=n)[0])(jnp.full(B, T + 3))
    assert_close(long, gru(X, weights())[0])
