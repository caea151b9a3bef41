"""Compared with PyTorch: values, gradients, training, and weights there and back."""

import functools
import json
import random
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from applied import applied
from drawn import drawn
from pairs import pairwise
from refusals import refused

from grujax import GRU, GRUCell, GRUEncoder, GRUModel
from grujax.interop.torch import from_torch, to_torch
from grujax.testing import assert_close, assert_trees_close

torch = pytest.importorskip("torch", reason="torch is not installed")
GOLDEN = Path(__file__).parents[1] / "golden"


class Reference(torch.nn.Module):
    """A typical model of users: a GRU, its last time step, a Linear."""

    def __init__(self, input_size=10, hidden_size=20, output_size=5, **options):
        super().__init__()
        self.gru = torch.nn.GRU(input_size, hidden_size, batch_first=True, **options)
        self.output_layer = torch.nn.Linear(hidden_size * (2 if self.gru.bidirectional else 1), output_size)

    def forward(self, x):
        return self.output_layer(self.gru(x)[0][:, -1])


def seeded(make, *args, seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    return make(*args, **options).to(dtype)


def numpy(tensor):
    return tensor.detach().numpy()


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_class_gives_the_same_predictions(dtype):
    module = seeded(Reference, dtype=getattr(torch, dtype))
    x = torch.randn(3, 7, 10, dtype=getattr(torch, dtype))
    model, variables = from_torch(module)
    assert model == GRUModel(hidden_size=20, output_size=5, param_dtype=getattr(jnp, dtype))
    y = applied(model, variables, x.numpy())
    assert (y.shape, y.dtype) == ((3, 5), dtype)
    assert_close(y, numpy(module(x)))


def test_arrays_of_numpy_need_no_torch(monkeypatch):
    state = {key: numpy(a) for key, a in seeded(torch.nn.GRU, 3, 4).state_dict().items()}
    model, variables = from_torch({key: torch.from_numpy(a) for key, a in state.items()})
    monkeypatch.setitem(sys.modules, "torch", None)
    found, same = from_torch(state)
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)


@pytest.mark.parametrize("pooling", ["last", "mean", "max", None])
def test_a_state_dict_is_proven_with_the_pooling_that_is_named(pooling):
    module = seeded(Reference, bidirectional=True)
    model, variables = from_torch(module.state_dict(), pooling=pooling, verify=True)
    x = torch.randn(3, 7, 10)
    output, h_last = module.gru(x)
    read = {"last": torch.cat([*h_last], -1), "mean": output.mean(1), "max": output.amax(1), None: output}
    assert_close(applied(model, variables, x.numpy()), numpy(module.output_layer(read[pooling])))
    with refused("pooling", "'attention'"):  # it needs additional weights
        from_torch(module.state_dict(), pooling="attention")
    with refused("pooling", "leave verify out"):
        from_torch(module.state_dict(), pooling=lambda output, valid: output[:, 0], verify=True)


def test_a_cell_gives_the_same_step():
    cell = seeded(torch.nn.GRUCell, 3, 4, dtype=torch.float64)
    x, h = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    model, variables = from_torch(cell)
    carry, y = applied(model, variables, h.numpy(), x.numpy())
    assert_close(carry, numpy(cell(x, h)))
    assert_close(y, numpy(cell(x, h)))


def at_random(seed):
    """A random point of a larger grid."""
    draw = random.Random(seed)
    sizes = [1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 64, 65]
    return {
        "hidden": draw.choice(sizes),
        "features": draw.choice(sizes),
        "n_steps": draw.choice([1, 2, 3, 5, 6, 9, 12]),
        "n_rows": draw.choice([1, 2, 3, 5, 8]),
        "n_layers": draw.choices([1, 2, 3, 4], [12, 5, 1, 1])[0],
        "bidirectional": draw.random() < 0.4,
        "bias": draw.random() < 0.75,
        "has_h0": draw.random() < 0.7,
        "has_lengths": draw.random() < 0.5,
        "dtype": "float32" if seed % 5 == 4 else "float64",
    }


ALIKE = {
    "bidirectional": [False, True],
    "bias": [True, False],
    "has_h0": [True, False],
    "has_lengths": [False, True],
    "dtype": ["float64", "float32"],
}
GRID = pairwise(hidden=[1, 3, 17], features=[1, 2, 33], n_steps=[1, 2, 12], n_rows=[1, 3], n_layers=[1, 2, 3], **ALIKE)
"""kernels/test_contract.py tests sizes at the edges of vectors and tiles."""
MORE = pairwise(
    hidden=[1, 3, 17, 64],
    features=[1, 2, 16, 33],
    n_steps=[1, 2, 5, 12],
    n_rows=[1, 2, 3, 8],
    n_layers=[1, 2, 3],
    **ALIKE,
)
CONFIGURATIONS = [pytest.param(case, id="-".join(map(str, case.values()))) for case in GRID]
CONFIGURATIONS += [
    pytest.param(case, id="-".join(map(str, case.values())), marks=pytest.mark.slow)
    for case in MORE
    if case not in GRID
]
CONFIGURATIONS += [pytest.param(at_random(seed), id=str(seed), marks=pytest.mark.slow) for seed in range(200)]


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(model, variables, x, h0, lengths, d_output, d_last):
    def loss(variables, x, h0):
        output, h_last = model.apply(variables, x, h0, lengths=lengths)
        return (output * d_output).sum() + (h_last * d_last).sum(), (output, h_last)

    (_, values), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(variables, x, h0)
    return values, gradients


@pytest.mark.parametrize("c", CONFIGURATIONS)
def test_any_configuration_equals_torch_in_values_and_gradients(c):
    rng = np.random.default_rng(0)
    n_directions = 1 + c["bidirectional"]
    shapes = {
        "x": (c["n_rows"], c["n_steps"], c["features"]),
        "h0": (c["n_layers"] * n_directions, c["n_rows"], c["hidden"]),
        "d_output": (c["n_rows"], c["n_steps"], n_directions * c["hidden"]),
        "d_last": (c["n_layers"] * n_directions, c["n_rows"], c["hidden"]),
    }
    arrays = {name: rng.normal(size=shape).astype(c["dtype"]) for name, shape in shapes.items()}
    lengths = rng.integers(1, c["n_steps"] + 1, c["n_rows"]) if c["has_lengths"] else None
    layout = {"num_layers": c["n_layers"], "bidirectional": c["bidirectional"], "bias": c["bias"], "batch_first": True}
    module = seeded(torch.nn.GRU, c["features"], c["hidden"], dtype=getattr(torch, c["dtype"]), **layout)
    model, variables = from_torch(module, verify=False)
    h0 = jnp.asarray(arrays["h0"]) if c["has_h0"] else None
    given = (jnp.asarray(arrays["x"]), h0, None if lengths is None else jnp.asarray(lengths))
    d = [jnp.asarray(arrays[name]) for name in ("d_output", "d_last")]
    (output, h_last), (d_variables, dx, dh0) = values_and_gradients(model, variables, *given, *d)

    module = module.double()  # the reference for float32 too, so that torch's own rounding is not part of the test
    ours = {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in arrays.items()}
    read = ours["x"]
    if lengths is not None:
        read = torch.nn.utils.rnn.pack_padded_sequence(
            read, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
    expected, expected_last = module(read, ours["h0"] if c["has_h0"] else None)
    if lengths is not None:
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(expected, batch_first=True, total_length=c["n_steps"])
    ((expected * ours["d_output"]).sum() + (expected_last * ours["d_last"]).sum()).backward()

    assert_close(output, numpy(expected), name="output")
    assert_close(h_last, numpy(expected_last), name="h_last")
    assert_close(dx, ours["x"].grad.numpy(), "gradient", name="dx")
    if c["has_h0"]:
        assert_close(dh0, ours["h0"].grad.numpy(), "gradient", name="dh0")
    found = to_torch(model, d_variables)
    for name, parameter in module.named_parameters():
        assert_close(found[name].numpy(), parameter.grad.numpy(), "gradient", name=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_twenty_steps_of_training_end_in_the_same_weights(optimizer):
    module = seeded(Reference, 4, 6, 2, dtype=torch.float64)
    x, y = torch.randn(8, 5, 4, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    model, variables = from_torch(module)
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](module.parameters(), lr=0.05)
    update = {"sgd": optax.sgd, "adam": optax.adam}[optimizer](0.05)
    state, start, xj, yj = update.init(variables), variables, jnp.asarray(x.numpy()), jnp.asarray(y.numpy())

    @jax.jit
    def train_step(variables, state):
        gradients = jax.grad(lambda v: ((model.apply(v, xj) - yj) ** 2).mean())(variables)
        updates, state = update.update(gradients, state)
        return optax.apply_updates(variables, updates), state

    for _ in range(20):
        theirs.zero_grad()
        ((module(x) - y) ** 2).mean().backward()
        theirs.step()
        with jax.numpy_dtype_promotion("standard"):  # optax.adam counts its steps in int32
            variables, state = train_step(variables, state)
    assert_trees_close(variables, from_torch(module, verify=False)[1], "gradient")
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), variables, start)
    assert min(jax.tree.leaves(moved)) > 1e-3


# -- weights there and back --------------------------------------------------------------------------------------------

MODULES = {
    "gru": (torch.nn.GRU, (3, 4), {}),
    "deep": (torch.nn.GRU, (3, 4), {"num_layers": 3, "bidirectional": True}),
    "no bias": (torch.nn.GRU, (3, 4), {"num_layers": 2, "bias": False}),
    "one unit": (torch.nn.GRU, (1, 1), {"bidirectional": True}),
    "cell": (torch.nn.GRUCell, (3, 4), {}),
    "cell without bias": (torch.nn.GRUCell, (3, 4), {"bias": False}),
    "model": (Reference, (3, 4, 2), {"num_layers": 2, "bidirectional": True}),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", MODULES)
def test_weights_come_back_bit_for_bit_as_copies(kind, dtype):
    make, args, options = MODULES[kind]
    module = seeded(make, *args, dtype=getattr(torch, dtype), **options)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    model, variables = from_torch(module, verify=False)
    assert model.param_dtype == getattr(jnp, dtype)
    assert {a.dtype.name for a in jax.tree.leaves(variables)} == {dtype}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    back = to_torch(model, variables)
    assert list(back) == list(before)
    for key, tensor in before.items():
        assert back[key].dtype == tensor.dtype and back[key].is_contiguous()
        assert torch.equal(back[key], tensor), key
        back[key].zero_()  # the tensors are copies: zeroing them leaves the arrays alone
    again = to_torch(model, variables)
    assert all(torch.equal(again[key], tensor) for key, tensor in before.items())
    module.load_state_dict(again)
    assert from_torch(before)[0] == model


def test_a_tree_that_flax_made_goes_there_and_back():
    model = GRUModel(4, 2, num_layers=2, bidirectional=True, bias=False)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 3), jnp.float32))
    state = to_torch(model, variables, gru="rnn.inner", head="fc")
    assert "rnn.inner.weight_hh_l1_reverse" in state and "fc.bias" in state
    found, back = from_torch(state)
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, variables, back)


def test_sizes_and_dropout_are_read_off_the_module():
    module = seeded(torch.nn.GRU, 3, 4, num_layers=2, bidirectional=True, bias=False, dropout=0.25)
    assert from_torch(module)[0] == GRU(4, num_layers=2, bidirectional=True, bias=False, dropout=0.25)
    assert from_torch(module.state_dict())[0] == GRU(4, num_layers=2, bidirectional=True, bias=False)
    wrapped = torch.nn.ModuleDict({"a": torch.nn.GRU(3, 4), "b": torch.nn.Dropout(0.5), "c": torch.nn.Linear(4, 7)})
    assert from_torch(wrapped, verify=False)[0] == GRUModel(4, 7, dropout=0.5)  # it has no `forward` to verify


# -- refusals ----------------------------------------------------------------------------------------------------------


def changed(make=torch.nn.GRU, args=(3, 4), /, drop=(), options=None, **new):
    state = dict(seeded(make, *args, **(options or {})).state_dict())
    return {key: value for key, value in (state | new).items() if key not in drop}


class Scaled(Reference):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))


def sequential(*layers):
    return torch.nn.Sequential(*layers)


FROM = {
    "lstm module": (lambda: torch.nn.LSTM(3, 4), ["nn.LSTM"]),
    "rnn module": (lambda: torch.nn.RNN(3, 4), ["nn.RNN"]),
    "lstm": (lambda: changed(torch.nn.LSTM), ["weight_hh_l0", "(12, 4)", "(16, 4)", "LSTM"]),
    "rnn": (lambda: changed(torch.nn.RNN), ["weight_hh_l0", "(12, 4)", "(4, 4)", "plain RNN"]),
    "lstm cell": (lambda: changed(torch.nn.LSTMCell), ["weight_hh", "(16, 4)", "LSTM"]),
    "projection": (lambda: changed(torch.nn.LSTM, options={"proj_size": 2}), ["weight_hr_l0", "proj_size"]),
    "cannot run": (lambda: sequential(torch.nn.GRU(3, 4), torch.nn.Linear(4, 2)), ["runs on x (B, T, I)", "TypeError"]),
    "norm": (lambda: sequential(torch.nn.GRU(3, 4), torch.nn.LayerNorm(4)), ["1:", "nn.LayerNorm", "interop.find"]),
    "lstm inside": (lambda: sequential(torch.nn.LSTM(3, 4), torch.nn.Linear(4, 2)), ["0:", "nn.LSTM"]),
    "two heads": (lambda: sequential(torch.nn.GRU(3, 4), *[torch.nn.Linear(4, 4)] * 2), ["one nn.Linear", "'2.'"]),
    "two grus": (lambda: sequential(torch.nn.GRU(3, 4), torch.nn.GRU(4, 4)), ["one nn.GRU", "'0.'", "'1.'"]),
    "head of other inputs": (
        lambda: sequential(torch.nn.GRU(3, 4), torch.nn.Linear(5, 2)),
        ["1.weight", "4 input features", "found 5"],
    ),
    "parameter besides": (Scaled, ["scale", "this extra key", "lost"]),
    "missing weight_hh": (lambda: changed(drop=["weight_hh_l0"]), ["weight_hh_l0", "no such key", "incomplete"]),
    "missing bias": (lambda: changed(drop=["bias_hh_l0"]), ["bias_hh_l0", "no such key", "incomplete"]),
    "missing layer": (
        lambda: changed(
            options={"num_layers": 3}, drop=[f"{w}_{p}_l1" for w in ("weight", "bias") for p in ("ih", "hh")]
        ),
        ["weight_ih_l1", "no such key", "incomplete"],
    ),
    "half a reverse": (
        lambda: changed(weight_ih_l0_reverse=torch.ones(12, 3)),
        ["weight_hh_l0_reverse", "no such key"],
    ),
    "extra key": (lambda: changed(extra=torch.ones(3)), ["extra", "this extra key"]),
    "cell key in a gru": (
        lambda: changed(torch.nn.GRUCell, weight_ih_l0=torch.ones(12, 3)),
        ["weight_ih_l0", "this extra key"],
    ),
    "wrong shape": (lambda: changed(bias_ih_l0=torch.ones(11)), ["bias_ih_l0", "(12,)", "(11,)"]),
    "no features": (lambda: changed(weight_ih_l0=torch.ones(12, 0)), ["weight_ih_l0", "one feature", "(12, 0)"]),
    "no units": (
        lambda: {"weight_ih_l0": torch.ones(0, 3), "weight_hh_l0": torch.ones(0, 0)},
        ["weight_hh_l0", "one unit", "(0, 0)"],
    ),
    "no outputs": (
        lambda: {f"gru.{key}": a for key, a in changed().items()} | {"fc.weight": torch.ones(0, 4)},
        ["fc.weight", "a matrix of weights", "(4, 0)"],
    ),
    "a scalar for a head": (
        lambda: {f"gru.{key}": a for key, a in changed().items()} | {"fc.weight": torch.ones(())},
        ["fc.weight", "a matrix of weights", "()"],
    ),
    "one axis": (lambda: changed(weight_ih_l0=torch.ones(12)), ["weight_ih_l0", "two axes", "(12,)"]),
    "transposed": (lambda: changed(weight_hh_l0=torch.ones(4, 12)), ["weight_hh_l0", "(36, 12)", "(4, 12)"]),
    "complex": (lambda: changed(weight_ih_l0=torch.ones(12, 3) * 1j), ["weight_ih_l0", "float32", "complex64"]),
    "integer": (lambda: changed(bias_hh_l0=torch.ones(12, dtype=torch.int32)), ["bias_hh_l0", "float32", "int32"]),
    "float8": (lambda: changed(bias_hh_l0=torch.ones(12).to(torch.float8_e5m2)), ["bias_hh_l0", "float8_e5m2"]),
    "mixed dtypes": (
        lambda: changed(bias_hh_l0=torch.ones(12).half()),
        ["bias_hh_l0", "dtype float32", "dtype float16"],
    ),
    "no tensor": (lambda: changed(bias_hh_l0=[1.0] * 12), ["bias_hh_l0", "torch.Tensor", "list"]),
    "meta": (lambda: torch.nn.GRU(3, 4, device="meta"), ["weight_ih_l0", "meta device"]),
    "empty": (dict, ["state dict", "one nn.GRU"]),
    "neither": (lambda: 3, ["module_or_state_dict", "state dict", "int"]),
}


@pytest.mark.parametrize("case", FROM)
def test_what_is_no_gru_is_refused_by_name(case):
    make, parts = FROM[case]
    with refused(*parts):
        from_torch(make())


def initialised(model):
    return model, drawn(model, np.zeros((1, 2, 3), np.float32))


def with_params(change):
    model, variables = initialised(GRU(4))
    cell = dict(variables["params"]["l0"])
    change(cell)
    return model, {"params": {"l0": cell}}


TO = {
    "reset before": (lambda: initialised(GRU(4, reset_after=False)), ["reset_after", "cannot be converted"]),
    "pooling": (lambda: initialised(GRUModel(4, 2, pooling="mean")), ["pooling", "'mean'", "no other pooling"]),
    "activation of the head": (
        lambda: initialised(GRUModel(4, 2, output_activation="sigmoid")),
        ["output_activation", "'sigmoid'"],
    ),
    "backwards": (
        lambda: initialised(GRU(4, reverse=True)),
        ["reverse: expected False", "flip the valid steps of x and of the output"],
    ),
    "encoder": (lambda: initialised(GRUEncoder(4)), ["model", "GRUEncoder", "['gru']"]),
    "statistics": (
        lambda: (GRUModel(4, 2), initialised(GRUModel(4, 2))[1] | {"statistics": {"input_mean": jnp.zeros(3)}}),
        ["statistics", "lost", "moves the statistics into"],
    ),
    "no params": (lambda: (GRU(4), {}), ["variables", "params"]),
    "missing": (lambda: with_params(lambda cell: cell.pop("b_hh")), ["l0/b_hh", "(12,)", "found none"]),
    "missing w_ih": (lambda: with_params(lambda cell: cell.pop("w_ih")), ["l0/w_ih", "(I, 3H)", "none"]),
    "extra": (lambda: with_params(lambda cell: cell.update(b=jnp.ones(1))), ["l0/b", "this extra parameter"]),
    "shape": (lambda: with_params(lambda cell: cell.update(b_hh=jnp.ones(5))), ["l0/b_hh", "(12,)", "(5,)"]),
    "dtypes": (
        lambda: with_params(lambda cell: cell.update(b_hh=jnp.ones(12, jnp.float16))),
        ["one dtype", "float16", "float32"],
    ),
    "integers": (
        lambda: (GRU(4), jax.tree.map(lambda a: a.astype(jnp.int32), initialised(GRU(4))[1])),
        ["variables", "int32"],
    ),
}


@pytest.mark.parametrize("case", TO)
def test_what_torch_has_no_place_for_is_refused(case):
    make, parts = TO[case]
    with refused(*parts):
        to_torch(*make())


def test_float64_is_never_truncated_where_64_bits_are_off():
    with jax.enable_x64(False), refused("weight_ih_l0: ", "float64", "jax_enable_x64"):
        from_torch(torch.nn.GRU(3, 4).double())


def test_without_torch_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with refused("torch is required: pip install 'grujax[torch]'"):
        from_torch(object())
    with refused("pip install 'grujax[torch]'"):
        to_torch(GRU(4), {})


# -- golden trees ------------------------------------------------------------------------------------------------------

GOLDEN_MODELS = {
    "gru": GRU(5, num_layers=2, bidirectional=True),
    "gru_cell": GRUCell(5),
    "gru_model": GRUModel(5, 2, num_layers=2),
}


def summary(name):
    """Name, shape, dtype and a checksum (the sum of absolute values) of every parameter drawn from key(0)."""
    model, x = GOLDEN_MODELS[name], jnp.zeros((1, 2, 3), jnp.float32)
    args = (jnp.zeros((1, 5), jnp.float32), x[:, 0]) if name == "gru_cell" else (x,)
    leaves, _ = jax.tree_util.tree_flatten_with_path(model.init(jax.random.key(0), *args))
    return {
        "/".join(key.key for key in path): [list(a.shape), a.dtype.name, float(np.abs(np.float64(a)).sum())]
        for path, a in leaves
    }


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_parameter_trees_stay_as_they_are(name):
    """A change would break files that users have saved, or change the weights that a seed gives."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    found = summary(name)
    assert {k: v[:2] for k, v in found.items()} == {k: v[:2] for k, v in golden.items()}
    assert [v[2] for v in found.values()] == pytest.approx([golden[k][2] for k in found], rel=1e-6)
