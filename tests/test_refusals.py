"""One table of what cannot be served, and what is said of it: argument, expected, found, remedy. All at trace time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from grujax import GRU, GRUCell, GRUEncoder, GRUModel, GRUSpec, GRUWeights, gru
from grujax.kernels import explain, run
from grujax.kernels.table import KERNELS
from grujax.testing import assert_close
from grujax.types import Control, Recurrence

B, T, I, H = 4, 6, 3, 5
X, KEY = jnp.ones((B, T, I)), jax.random.key(0)
FLAGS = np.ones((B, T), bool)


def weights(**new):
    shapes = {"w_ih": (I, 3 * H), "w_hh": (H, 3 * H), "b_ih": (3 * H,), "b_hh": (3 * H,)}
    return GRUWeights(**{name: jnp.ones(shape) for name, shape in shapes.items()} | new)


def function(x=X, w=None, *args, **options):
    return lambda: gru(x, weights() if w is None else w, *args, **options)


def layer(x=X, h0=None, call=None, **fields):
    return lambda: GRU(H, param_dtype=jnp.float64, **fields).init(KEY, x, h0, **(call or {}))


def cell(x=X[:, 0], carry=None, **fields):
    carry = jnp.ones((B, H)) if carry is None else carry
    return lambda: GRUCell(**{"hidden_size": H, "param_dtype": jnp.float64} | fields).init(KEY, carry, x)


def encoder(call=None, **fields):
    return lambda: GRUEncoder(H, param_dtype=jnp.float64, **fields).init(KEY, X, **(call or {}))


def model(call=None, output_size=2, **fields):
    return lambda: GRUModel(H, output_size, param_dtype=jnp.float64, **fields).init(KEY, X, **(call or {}))


def entry(spec=GRUSpec(), implementation=None, **new):
    """A call of `grujax.kernels.run`."""
    of = {"x": X.swapaxes(0, 1), "h0": jnp.ones((B, H)), **weights()._asdict()} | new
    w, control = (kind(**{name: of.pop(name) for name in kind._fields if name in of}) for kind in (GRUWeights, Control))
    return lambda: run([Recurrence(**of, weights=w, control=control)], spec, implementation)


def statistics(**arrays):
    return lambda: GRUModel(H, 2).apply({"statistics": arrays}, X)


NAMES = "one of ['elu', 'hard_sigmoid', 'hard_tanh', 'identity', 'relu', 'sigmoid', 'softsign', 'tanh']"
BAD = {
    # the arrays of gru
    "x of one axis": (function(jnp.ones(3)), ["x: expected (..., T, I)", "(3,)"]),
    "x of other features": (function(X[..., :2]), ["x: expected 3 input features", "(4, 6, 2)", "(batch, time, "]),
    "x in another order": (function(X, time_major=True, lengths=[1] * B), ["lengths: expected shape (6,)", "(4,)"]),
    "x integers": (function(X.astype(int)), ["x: expected a floating", "int", "astype"]),
    "x complex": (function(X.astype(complex)), ["x: expected a floating", "complex"]),
    "h0 shape": (function(X, None, jnp.ones((B, 4))), ["h0: expected shape (4, 5)", "(4, 4)"]),
    "h0 dtype": (function(X, None, jnp.ones((B, H), int)), ["h0: expected a floating"]),
    "h_reset shape": (function(resets=FLAGS, h_reset=jnp.ones((B, H))), ["h_reset: expected shape (5,)", "(4, 5)"]),
    "h_reset alone": (function(h_reset=jnp.ones(H)), ["h_reset: expected None without resets", "h0"]),
    "w_hh transposed": (function(X, weights(w_hh=jnp.ones((15, 5)))), ["weights.w_hh: expected (H, 3H)", "from_torch"]),
    "w_hh axes": (function(X, weights(w_hh=jnp.ones(15))), ["weights.w_hh: expected (H, 3H)", "(15,)"]),
    "w_ih": (function(X, weights(w_ih=jnp.ones((3, 14)))), ["weights.w_ih: expected (I, 15)", "(3, 14)"]),
    "b_hh": (function(X, weights(b_hh=jnp.ones(14))), ["weights.b_hh: expected (15,)", "(14,)"]),
    "b_ih integers": (function(X, weights(b_ih=jnp.ones(15, int))), ["weights.b_ih: expected a floating", "int"]),
    "one scale": (function(X, weights(scale_hh=jnp.ones(15))), ["weights.scale_ih", "one without the other"]),
    "scale shape": (
        function(X, weights(scale_ih=jnp.ones(15), scale_hh=jnp.ones(5))),
        ["weights.scale_hh: expected (15,)", "(5,)"],
    ),
    # which steps are valid, where sequences begin
    "lengths shape": (function(lengths=[1, 2, 3]), ["lengths: expected shape (4,)", "(3,)"]),
    "lengths dtype": (function(lengths=[1.0] * B), ["lengths: expected integers", "float"]),
    "lengths bool": (function(lengths=[True] * B), ["lengths: expected integers", "bool"]),
    "lengths long": (function(lengths=[1, 7, 1, 1]), ["lengths: expected 0 to T = 6", "1 to 7"]),
    "lengths negative": (function(lengths=[-1, 4, 1, 1]), ["lengths", "-1 to 4"]),
    "lengths and mask": (function(lengths=[1] * B, mask=FLAGS), ["mask: expected None beside lengths", "one of them"]),
    "mask shape": (function(mask=FLAGS.T), ["mask: expected shape (4, 6), one a step", "(6, 4)"]),
    "mask dtype": (function(mask=FLAGS * 1.0), ["mask: expected dtype bool", "float64", "mask != 0"]),
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
        ["implementation", str(sorted(KERNELS)), "'fast'"],
    ),
    "implementation of layers": (function(implementation="reference"), ["only the layers"]),
    "xla layer norm": (
        lambda: explain(spec=GRUSpec(layer_norm=True), implementation="xla"),
        ["implementation: expected one that can serve", "layer normalisation", "Pass None"],
    ),
    # the layer
    "no layers": (layer(num_layers=0), ["num_layers: expected a positive integer, found 0"]),
    "half a layer": (layer(num_layers=1.5), ["num_layers: expected a positive integer, found 1.5"]),
    "layer h0": (
        layer(X, jnp.ones((2, B, H)), num_layers=2, bidirectional=True),
        ["h0: expected shape (4, 4, 5)", "layers * directions"],
    ),
    "layer h0 dtype": (layer(X, jnp.ones((1, B, H), int)), ["h0: expected a floating dtype"]),
    "layer lengths": (layer(call={"lengths": [1, 2, 3]}), ["lengths: expected shape (4,)"]),
    "reference lengths": (
        layer(call={"lengths": [1, 2, 3, 7]}, implementation="reference"),
        ["0 to T = 6", "1 to 7"],
    ),
    "layer integers": (layer(X.astype(int)), ["x: expected a floating dtype"]),
    "layer implementation": (layer(implementation="fast"), ["implementation: expected one of", "'fast'"]),
    "layer activation": (layer(activation="gelu", implementation="reference"), [f"activation: expected {NAMES}"]),
    "layer xla layer norm": (layer(layer_norm=True, implementation="xla"), ["layer normalisation", "Pass None"]),
    "initializer": (layer(initializer="he"), ["initializer: expected one of ['flax', 'keras', 'torch']", "'he'"]),
    "update bias": (layer(bias=False, update_bias=1.0), ["update_bias: expected 0 with bias=False", "1.0"]),
    "param dtype": (lambda: GRU(H, param_dtype=jnp.int32).init(KEY, X), ["param_dtype: expected a floating dtype"]),
    "merge": (layer(bidirectional=True, merge="max"), ["merge: expected one of ['concat', 'sum', 'mean', 'mul'"]),
    "merge of one": (layer(merge="sum"), ['merge: expected "concat" in one direction', "nothing to merge"]),
    "merge None of two layers": (
        layer(bidirectional=True, merge=None, num_layers=2),
        ["merge: expected None for a single layer", "num_layers=2"],
    ),
    "connection": (layer(connection="dense"), ["connection: expected one of [None, 'residual', 'highway']", "'dense'"]),
    "initial state": (layer(initial_state="ones"), ["initial_state: expected one of ['zeros', 'learned']", "'ones'"]),
    **{
        f"{rate} {value}": (layer(**{rate: value}), [f"{rate}: expected a probability, found {value}"])
        for rate in ("dropout", "input_dropout", "recurrent_dropout", "weight_dropout", "zoneout")
        for value in (1.5, -0.1, float("nan"))
    },
    # the cell
    "carry": (cell(carry=jnp.ones((B, 4))), ["carry: expected shape (4, 5)", "(4, 4)"]),
    "carry dtype": (cell(carry=jnp.ones((B, H), int)), ["carry: expected a floating dtype"]),
    "cell integers": (cell(jnp.ones((B, I), int)), ["x: expected a floating"]),
    "no units": (cell(carry=jnp.ones((B, 0)), hidden_size=0), ["hidden_size: expected a positive integer, found 0"]),
    "cell update": (cell(update="both"), ["update: expected one of", "'both'"]),
    # the models
    "pooling": (encoder(pooling="sum"), ["pooling: expected one of ['last', 'mean', 'max', 'attention']", "'sum'"]),
    "merge None pooled": (encoder(bidirectional=True, merge=None), ["merge", "GRU alone returns the directions apart"]),
    "resets pooled": (encoder({"resets": FLAGS}), ["pooling: expected None beside resets", "'last'", "num_segments"]),
    "segments unpooled": (
        encoder({"segments": FLAGS * 1, "num_segments": 2}, pooling=None),
        ["pooling", "found None", "unpack_sequences"],
    ),
    "segments pooled by a function": (
        encoder({"segments": FLAGS * 1, "num_segments": 2}, pooling=lambda output, valid: output[:, 0]),
        ["pooling", "found a function", "unpack_sequences"],
    ),
    "segments alone": (encoder({"segments": FLAGS * 1}), ["num_segments: expected an integer beside segments", "None"]),
    "segments traced": (
        lambda: jax.jit(lambda n: encoder({"segments": FLAGS * 1, "num_segments": n})())(2),
        ["num_segments", "a traced value", "shape of the result"],
    ),
    "num_segments alone": (encoder({"num_segments": 2}), ["num_segments: expected None without segments", "2"]),
    "num_segments negative": (
        encoder({"segments": FLAGS * 0 - 1, "num_segments": -1}),
        ["num_segments: expected 0 or more", "-1"],
    ),
    "segments shape": (
        encoder({"segments": FLAGS.T * 1, "num_segments": 2}),
        ["segments: expected shape (4, 6), one a step", "(6, 4)"],
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
    "model lengths and mask": (model({"lengths": [1] * B, "mask": FLAGS}), ["mask: expected None beside lengths"]),
    "no output": (model(output_size=0), ["output_size: expected a positive integer, found 0"]),
    "no heads": (model(output_size={}), ["output_size: expected at least one head"]),
    "no output of a head": (model(output_size={"a": 0}), ["output_size['a']: expected a positive integer, found 0"]),
    "hidden layer of no units": (model(head_hidden=(4, 0)), ["head_hidden[1]: expected a positive integer, found 0"]),
    "head activation": (model(head_activation="gelu"), [f"head_activation: expected {NAMES}", "'gelu'"]),
    "statistics": (
        statistics(input_mean=jnp.ones(2), input_std=jnp.ones(2)),
        ["statistics/input_mean: expected shape (3,)", "(2,)"],
    ),
    "statistics of several heads": (
        lambda: GRUModel(H, {"a": 1}).apply({"statistics": {"output_mean": jnp.ones(1)}}, X),
        ["statistics/output_mean: expected none where there are several heads"],
    ),
    # the entry point of the kernels
    "entry axes": (entry(x=jnp.ones((T, I))), ["x: expected (T, B, I)"]),
    "entry features": (entry(x=jnp.ones((T, B, 2))), ["w_ih: expected shape (2, 15)", "(3, 15)"]),
    "entry h0": (entry(h0=jnp.ones((H, B))), ["h0: expected shape (4, 5)", "(5, 4)", "(T, B, features)"]),
    "entry w_hh": (entry(w_hh=jnp.ones((H, 14))), ["w_hh: expected shape (5, 15)"]),
    "entry w_hh of one axis": (entry(w_hh=jnp.ones(15)), ["w_hh: expected shape"]),
    "entry b_hh": (entry(b_hh=jnp.ones(H)), ["b_hh: expected shape (15,)", "(5,)"]),
    "entry valid": (entry(valid=jnp.ones((B, T), bool)), ["valid: expected shape (6, 4)", "(4, 6)"]),
    "entry valid dtype": (entry(valid=jnp.ones((T, B))), ["valid: expected dtype bool", "float"]),
    "entry reset dtype": (entry(reset=jnp.ones((T, B), int)), ["reset: expected dtype bool", "int"]),
    "entry h_reset": (entry(h_reset=jnp.ones((B, H))), ["h_reset: expected shape (5,)"]),
    "entry state_mask": (entry(state_mask=jnp.ones(H)), ["state_mask: expected shape (4, 5)", "(5,)"]),
    "entry hold": (entry(hold=jnp.ones((B, H))), ["hold: expected shape (6, 4, 5)", "(4, 5)"]),
    "entry scale alone": (entry(scale_hh=jnp.ones(15)), ["scale_hh: expected None with layer_norm=False"]),
    "entry scale missing": (entry(GRUSpec(layer_norm=True)), ["scale_ih: expected an array with layer_norm=True"]),
    "entry x integers": (entry(x=jnp.ones((T, B, I), int)), ["x: expected a floating dtype", "int"]),
    "entry h0 integers": (entry(h0=jnp.ones((B, H), int)), ["h0: expected a floating dtype", "int"]),
    "entry implementation": (
        entry(implementation="cudnn"),
        [f"implementation: expected one of {sorted(KERNELS)}"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    call, parts = BAD[case]
    with refused(*parts):
        call()


@pytest.mark.parametrize("case", [case for case, (call, _) in BAD.items() if call.__qualname__.startswith("function")])
def test_what_shapes_and_dtypes_tell_is_refused_under_jit_too(case):
    call, parts = BAD[case]
    with refused(*parts):
        jax.jit(call)()


def test_a_length_that_jit_does_not_know_ends_with_the_sequence():
    long = jax.jit(lambda n: gru(X, weights(), lengths=n)[0])(jnp.full(B, T + 3))
    assert_close(long, gru(X, weights())[0])
