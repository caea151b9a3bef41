"""Linen, NNX, Equinox and Haiku: the same outputs after conversion, and weights there and back bit for bit."""

import logging
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import applied
from flax import nnx
from flax.traverse_util import flatten_dict
from refusals import refused

from grujax import GRU, GRUCell, GRUEncoder, GRUModel
from grujax.core.dialects import DIALECTS
from grujax.interop import equinox, flax, haiku
from grujax.interop import nnx as interop_nnx
from grujax.interop.equinox import from_equinox, to_equinox
from grujax.interop.flax import from_flax, to_flax
from grujax.interop.haiku import from_haiku, to_haiku
from grujax.interop.nnx import from_nnx, to_nnx
from grujax.interop.parts import ConversionWarning
from grujax.interop.prove import compare
from grujax.testing import assert_close

I, H = 3, 4
BEFORE = {"reset_after": False, "update": "take"}
MODELS = {
    "cell": GRUCell(H),
    "layer": GRU(H),
    "two directions": GRU(H, bidirectional=True),
    "stack": GRU(H, num_layers=2),
    "stack of two directions": GRU(H, num_layers=2, bidirectional=True),
}


def drawn(shape, dtype, rng):
    """Random values, none of them 0 except the first, which is −0.0."""
    a = rng.normal(size=shape) / 2
    a.flat[0] = -0.0
    return jnp.asarray(a.astype(jnp.dtype(dtype)))


def filled(model, dtype="float64", keep=slice(None), **changed):
    """The model with random weights. keep: the part of each b_hh that is not 0."""
    model, rng = model.clone(param_dtype=getattr(jnp, dtype), **changed), np.random.default_rng(1)
    x = jnp.zeros((1, 2, I), dtype)
    given = (jnp.zeros((1, H), dtype), x[:, 0]) if isinstance(model, GRUCell) else (x,)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *given)

    def leaf(path, of):
        a = drawn(of.shape, dtype, rng)
        return jnp.zeros_like(a).at[keep].set(a[keep]) if path[-1].key == "b_hh" else a

    return model, jax.tree_util.tree_map_with_path(leaf, shapes)


def linen(model, dtype):
    def rnns(n):
        return [nn.RNN(nn.GRUCell(H, param_dtype=getattr(jnp, dtype))) for _ in range(n)]

    module: Any = rnns(1)[0].cell
    x, rng = jnp.zeros((1, 2, I), dtype), np.random.default_rng(0)
    given = (jnp.zeros((1, H), dtype), x[:, 0])
    if isinstance(model, GRU):
        layers = [nn.Bidirectional(*rnns(2)) if model.bidirectional else rnns(1)[0] for _ in range(model.num_layers)]
        module, given = layers[0] if len(layers) == 1 else nn.Sequential(layers), (x,)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *given)
    return module, jax.tree.map(lambda a: drawn(a.shape, dtype, rng), shapes)


def nnx_module(model, dtype):
    options = {"param_dtype": getattr(jnp, dtype), "kernel_init": nnx.initializers.zeros}
    options |= {"recurrent_kernel_init": nnx.initializers.zeros, "rngs": nnx.Rngs(0)}
    module: Any = nnx.GRUCell(I, H, **options)
    if isinstance(model, GRU):
        layers = []
        for n_inputs in [I, H * model.num_directions][: model.num_layers]:
            rnns = [nnx.RNN(nnx.GRUCell(n_inputs, H, **options)) for _ in range(model.num_directions)]
            layers.append(nnx.Bidirectional(*rnns) if model.bidirectional else rnns[0])
        module = layers[0] if len(layers) == 1 else nnx.Sequential(*layers)
    rng = np.random.default_rng(0)
    nnx.update(module, jax.tree.map(lambda a: drawn(a.shape, dtype, rng), nnx.state(module, nnx.Param)))
    return module


def equinox_cells(model, dtype, use_bias=True):
    rng, cells = np.random.default_rng(0), []
    for n_inputs in [I, H][: getattr(model, "num_layers", 1)]:
        options = {"use_bias": use_bias, "dtype": getattr(jnp, dtype), "key": jax.random.key(0)}
        cell = eqx.filter_eval_shape(eqx.nn.GRUCell, n_inputs, H, **options)
        cells.append(jax.tree.map(lambda a: drawn(a.shape, dtype, rng), cell))
    return cells if isinstance(model, GRU) else cells[0]


def haiku_params(model, dtype):
    rng, params = np.random.default_rng(0), {}
    for k in range(model.num_layers):
        shapes = {"w_i": (H if k else I, 3 * H), "w_h": (H, 3 * H), "b": (3 * H,)}
        params[f"net/~/gru_{k}" if k else "net/~/gru"] = {key: drawn(of, dtype, rng) for key, of in shapes.items()}
    return params


def run_equinox(cells, x):
    def whole(xs):
        for cell in cells:
            xs = jax.lax.scan(lambda h, x, cell=cell: (cell(x, h),) * 2, jnp.zeros(H), xs)[1]
        return xs

    return jax.vmap(whole)(x)


def run_haiku(params, x):
    def net(x):
        core = hk.DeepRNN([hk.GRU(H) for _ in params])
        return hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)[0]

    transformed = hk.without_apply_rng(hk.transform(net))
    params = {key.removeprefix("net/~/"): of for key, of in params.items()}
    assert jax.tree.map(jnp.shape, transformed.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)
    return transformed.apply(params, x)


def sorted_by_name(tree):
    return dict(sorted(flatten_dict(tree, sep="/").items()))


class Framework(NamedTuple):
    """make: random weights for a model, in the framework's form. ours, theirs: convert to grujax and back. run: runs a
    sequence as users of the framework do. tensors: by name. kinds: its `MODELS`. keep: the part of b_hh that is not
    lost. fields: the options that a model must have."""

    make: Callable
    ours: Callable
    theirs: Callable
    runner: Callable
    run: Callable
    tensors: Callable
    kinds: tuple[str, ...]
    keep: slice
    fields: Mapping[str, Any] = MappingProxyType({})


FRAMEWORKS = {
    "flax": Framework(
        linen,
        lambda foreign, **options: from_flax(*foreign, **options),
        to_flax,
        lambda foreign, model: flax.FRAMEWORK.run((None, foreign[1]), model),
        lambda foreign, x: foreign[0].apply(foreign[1], x),
        lambda foreign: sorted_by_name(foreign[1]),
        tuple(MODELS),
        slice(2 * H, None),
    ),
    "nnx": Framework(
        nnx_module,
        from_nnx,
        to_nnx,
        interop_nnx.FRAMEWORK.run,
        lambda module, x: module(x),
        lambda module: {path: a.get_value() for path, a in nnx.to_flat_state(nnx.state(module, nnx.Param))},
        tuple(MODELS),
        slice(0),
    ),
    "equinox": Framework(
        equinox_cells,
        from_equinox,
        to_equinox,
        equinox.FRAMEWORK.run,
        run_equinox,
        lambda cells: dict(jax.tree_util.tree_flatten_with_path(cells)[0]),
        ("cell", "layer", "stack"),
        slice(2 * H, None),
    ),
    "haiku": Framework(
        haiku_params,
        from_haiku,
        lambda *given, **options: to_haiku(*given, "net/~/gru", **options),
        haiku.FRAMEWORK.run,
        run_haiku,
        lambda params: flatten_dict(params, sep="/"),
        ("layer", "stack"),
        slice(0),
        BEFORE,
    ),
}
EACH = [(name, kind) for name, framework in FRAMEWORKS.items() for kind in framework.kinds]
RUN = [(name, kind) for name, kind in EACH if kind in ("cell", FRAMEWORKS[name].kinds[-1])]
"""The cell and the largest layer of each framework; running all would take long."""
OF_DTYPES = [(*pair, "float64") for pair in EACH]
OF_DTYPES += [
    (name, of.kinds[0], dtype) for name, of in FRAMEWORKS.items() for dtype in ("float16", "bfloat16", "float32")
]
"""Every kind in float64, and the smallest in the other dtypes: no conversion depends on both."""


def assert_same_bits(found, expected):
    assert list(found) == list(expected)
    for key, a in expected.items():
        assert (found[key].dtype, found[key].shape) == (a.dtype, a.shape), key
        assert np.asarray(found[key]).tobytes() == np.asarray(a).tobytes(), key


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, kind", RUN)
def test_a_foreign_model_gives_the_same_outputs(name, kind):
    framework = FRAMEWORKS[name]
    foreign = framework.make(MODELS[kind], "float64")
    model, variables = framework.ours(foreign)
    assert compare(model, variables, framework.runner(foreign, model)).tolerances <= 1  # from a random h0
    if kind != "cell":
        x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 7, I)))
        with jax.numpy_dtype_promotion("standard"):
            expected = framework.run(foreign, x)
        assert_close(applied(model, variables, x)[0], np.asarray(expected))


@pytest.mark.parametrize("kind", ["smallest, its update", "largest, the other update"])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_model_gives_the_same_outputs_in_the_framework(name, kind):
    framework = FRAMEWORKS[name]
    keep = slice(2 * H) if name == "nnx" else slice(None)  # it has no place for b_hn
    takes = (name == "haiku") == (kind == "smallest, its update")
    model = MODELS[framework.kinds[0 if kind == "smallest, its update" else -1]]
    changed = {**framework.fields, "update": "take" if takes else "keep"}
    model, variables = filled(model, keep=keep, **changed)
    with pytest.warns(ConversionWarning, match="stored as their sum"):
        foreign = framework.theirs(model, variables)
    assert compare(model, variables, framework.runner(foreign, model)).tolerances <= 1


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_verify_logs_the_difference_and_raises_where_the_conversion_is_wrong(name, caplog, monkeypatch):
    framework = FRAMEWORKS[name]
    foreign = framework.make(MODELS[framework.kinds[0]], "float32")
    with caplog.at_level(logging.INFO, "grujax.interop"):
        model, variables = framework.ours(foreign, verify=True)
        framework.theirs(model, variables, verify=True)
    assert caplog.text.count("largest difference") == 2
    wrong = DIALECTS[name]._replace(gates="nrz")
    monkeypatch.setitem(DIALECTS, name, wrong)
    with refused("the same outputs from both sides", "please report it"):
        framework.ours(foreign, verify=True)
    with refused("the same outputs from both sides"):
        framework.theirs(model, variables, verify=True)


# -- weights there and back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, kind, dtype", OF_DTYPES)
def test_foreign_weights_come_back_bit_for_bit(name, kind, dtype):
    framework = FRAMEWORKS[name]
    foreign = framework.make(MODELS[kind], dtype)
    model, variables = framework.ours(foreign, verify=False)
    assert model == MODELS[kind].clone(param_dtype=getattr(jnp, dtype), **framework.fields)
    back = framework.theirs(model, variables)
    assert_same_bits(framework.tensors(back), framework.tensors(foreign))
    if name == "flax":
        assert back[0] == foreign[0]


@pytest.mark.parametrize("name, kind, dtype", OF_DTYPES)
def test_what_has_a_place_comes_back_bit_for_bit(name, kind, dtype):
    framework = FRAMEWORKS[name]
    model, variables = filled(MODELS[kind], dtype, framework.keep, **framework.fields)
    found, back = framework.ours(framework.theirs(model, variables), verify=False)
    assert found == model
    assert_same_bits(sorted_by_name(back), sorted_by_name(variables))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_model_without_biases(name):
    framework = FRAMEWORKS[name]
    model, variables = filled(MODELS[framework.kinds[0]], bias=False, **framework.fields)
    if name == "equinox":
        foreign = framework.theirs(model, variables)
        assert foreign.bias is foreign.bias_n is None
        assert framework.ours(foreign)[0] == model
        assert framework.ours(equinox_cells(GRUCell(H), "float64", use_bias=False))[0].bias is False
    else:
        with pytest.warns(ConversionWarning, match="bias=False cannot be stored"):
            foreign = framework.theirs(model, variables)
        assert framework.ours(foreign)[0] == model.clone(bias=True)
    assert compare(model, variables, framework.runner(foreign, model)).tolerances <= 1


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_what_acts_in_training_alone_is_left_behind(name):
    framework = FRAMEWORKS[name]
    model = filled(GRU(H), keep=framework.keep, recurrent_dropout=0.5, **framework.fields)
    with pytest.warns(ConversionWarning, match=r"recurrent_dropout=0.5: it only acts in training"):
        framework.theirs(*model)


# -- refusals ----------------------------------------------------------------------------------------------------------

TO = {
    "reset mode": (lambda after: filled(GRU(H), reset_after=after), ["reset_after", "cannot be converted"]),
    "model": (lambda after: filled(GRUModel(H, 2), reset_after=not after), ["model", "variables['params']"]),
    "encoder": (lambda after: filled(GRUEncoder(H), reset_after=not after), ["model", "variables['params']['gru']"]),
    "merge": (lambda after: filled(GRU(H, merge="sum", reset_after=not after)), ["merge", "sum"]),
    "clip": (lambda after: filled(GRU(H, clip=1.0, reset_after=not after)), ["clip", "1.0"]),
    "learned": (
        lambda after: filled(GRU(H, initial_state="learned", reset_after=not after)),
        ["initial_state", "'learned'"],
    ),
    "statistics": (
        lambda after: (GRU(H, reset_after=not after), {"params": {}, "statistics": {}}),
        ["statistics", "fold_statistics"],
    ),
}


@pytest.mark.parametrize("case", TO)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_what_a_framework_has_no_place_for_is_refused(name, case):
    make, parts = TO[case]
    with refused(*parts):
        FRAMEWORKS[name].theirs(*make(name == "haiku"))


@pytest.mark.parametrize("name", ["equinox", "haiku"])
def test_two_directions_are_refused_where_nothing_would_tell_them(name):
    framework = FRAMEWORKS[name]
    with refused("bidirectional", "a GRU of each direction"):
        framework.theirs(*filled(GRU(H, bidirectional=True), keep=slice(0), **framework.fields))
    with refused("activation", "'tanh'", "'relu'"):
        framework.theirs(*filled(GRU(H, activation="relu"), keep=slice(0), **framework.fields))


def with_equinox(change):
    cells = equinox_cells(GRU(H, num_layers=2), "float32")
    return eqx.tree_at(lambda cells: change(cells)[0], cells, change(cells)[1], is_leaf=lambda a: a is None)


EQUINOX = {
    "lstm": (lambda: eqx.nn.LSTMCell(I, H, key=jax.random.key(0)), ["source", "GRUCell", "LSTMCell", "in a list"]),
    "lstm above": (
        lambda: [equinox_cells(GRUCell(H), "float32"), eqx.nn.LSTMCell(H, H, key=jax.random.key(0))],
        ["source[1]", "LSTMCell"],
    ),
    "none": (lambda: [], ["source", "at least one cell"]),
    "other width": (lambda: equinox_cells(GRU(H, num_layers=2), "float32")[::-1], ["source[1]", "4 input", "3"]),
    "shape": (lambda: with_equinox(lambda cells: (cells[1].bias_n, jnp.ones(5, "float32"))), ["source[1].bias_n"]),
    "integers": (lambda: with_equinox(lambda cells: (cells[0].bias, jnp.ones(12, int))), ["source[0].bias", "int64"]),
    "no array": (lambda: with_equinox(lambda cells: (cells[0].bias, None)), ["source[0].bias", "NoneType"]),
}


@pytest.mark.parametrize("case", EQUINOX)
def test_what_is_no_gru_of_equinox_is_refused_by_name(case):
    make, parts = EQUINOX[case]
    with refused(*parts):
        from_equinox(make())


def with_haiku(**changed):
    return {name: of for name, of in (haiku_params(GRU(H, num_layers=2), "float32") | changed).items() if of}


def of_haiku(**changed):
    return {"gru": haiku_params(GRU(H), "float32")["net/~/gru"] | changed}


HAIKU = {
    "another module": (lambda: with_haiku(linear={"w": jnp.ones(3)}), ["this extra module", "one by one"]),
    "two names": (lambda: {"encoder": of_haiku()["gru"], "decoder": of_haiku()["gru"]}, ["this extra module"]),
    "gap": (lambda: {"gru": of_haiku()["gru"], "gru_2": of_haiku()["gru"]}, ["gru_2", "gru to gru_1"]),
    "other width": (lambda: {"gru": of_haiku()["gru"], "gru_1": of_haiku()["gru"]}, ["gru_1", "4 input features"]),
    "lstm": (lambda: {"lstm": {"linear": {"w": jnp.ones((7, 16))}}}, ["lstm/w_i", "no such key"]),
    "extra": (lambda: of_haiku(b_n=jnp.ones(4)), ["gru/b_n", "this extra key"]),
    "shape": (lambda: of_haiku(b=jnp.ones(11, "float32")), ["gru/b", "(12,)", "(11,)"]),
    "transposed": (lambda: of_haiku(w_i=jnp.ones((12, 3), "float32")), ["gru/w_i", "(12, 12)", "(12, 3)"]),
    "dtypes": (lambda: of_haiku(b=jnp.ones(12, "float64")), ["gru/b", "float32", "float64"]),
    "list": (lambda: of_haiku(b=[0.0] * 12), ["gru/b", "an array", "list"]),
    "no tensors": (lambda: {"gru": 3}, ["gru", "a mapping", "int"]),
    "number as a name": (lambda: {3: of_haiku()["gru"]}, ["params", "names of modules", "3"]),
    "empty": (dict, ["params", "none"]),
    "neither": (lambda: 3, ["params", "int"]),
}


@pytest.mark.parametrize("case", HAIKU)
def test_what_is_no_gru_of_haiku_is_refused_by_name(case):
    make, parts = HAIKU[case]
    with refused(*parts):
        from_haiku(make())


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_float64_is_never_truncated_where_64_bits_are_off(name):
    framework = FRAMEWORKS[name]
    foreign = framework.make(GRU(H), "float64")
    model, variables = filled(GRU(H), keep=framework.keep, **framework.fields)
    variables = jax.tree.map(np.asarray, variables)
    with jax.enable_x64(False):
        with refused("float64", "jax_enable_x64"):
            framework.ours(foreign)
        with refused("float64", "jax_enable_x64"):
            framework.theirs(model.clone(param_dtype=jnp.float32), variables)


@pytest.mark.parametrize("name", ["equinox", "haiku"])
def test_without_the_framework_the_message_says_what_to_install(name, monkeypatch):
    framework = FRAMEWORKS[name]
    foreign = framework.make(GRU(H), "float64")
    monkeypatch.setitem(sys.modules, name, None)
    with refused(f"pip install 'grujax[{name}]'"):
        framework.ours(foreign, verify=True)
    with refused(f"pip install 'grujax[{name}]'"):
        framework.theirs(*filled(GRU(H), keep=framework.keep, **framework.fields), verify=True)
